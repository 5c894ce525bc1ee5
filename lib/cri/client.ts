/** The container runtime port over CRI v1 and containerd's own events (CRI's are missing in 1.6, and replay in 2.x). */
import { fromBinary } from "@bufbuild/protobuf";
import { Events, TaskExitSchema, TaskOOMSchema, TaskStartSchema } from "./gen/containerd_events_pb.ts";
import { ContainerState as State, ImageService, RuntimeService } from "./gen/cri_pb.ts";
import type * as pb from "./gen/cri_pb.ts";
import { CriError, type GrpcSend, stream, unary } from "./grpc.ts";
import type {
  AuthConfig,
  ContainerConfig,
  ContainerRuntime,
  ContainerState,
  ContainerStats,
  CriEvent,
  ExecSyncResult,
  PodSandboxConfig,
  RuntimeContainer,
  RuntimeContainerStatus,
  RuntimeImage,
  RuntimeInfo,
  Sandbox,
  SandboxStatus,
  StreamRequest,
} from "./runtime.ts";

/** Calls that only ask; what the kubelet allows (runtimeRequestTimeout). */
const askTimeoutMs = 2 * 60_000;
/** Creating a sandbox includes CNI plug-ins, which may wait for addresses. */
const sandboxTimeoutMs = 4 * 60_000;
/** A pull over a bad link; it can be repeated and goes on where the layers ended. */
const pullTimeoutMs = 60 * 60_000;

const runtime = RuntimeService.method;
const image = ImageService.method;

export class Cri implements ContainerRuntime {
  readonly #send: GrpcSend;
  constructor(send: GrpcSend) {
    this.#send = send;
  }

  async info(): Promise<RuntimeInfo> {
    const options = { timeoutMs: 10_000 };
    const [version, status] = await Promise.all([
      unary(this.#send, runtime.version, { version: "v1" }, options),
      unary(this.#send, runtime.status, {}, options),
    ]);
    const condition = (type: string) =>
      status.status?.conditions.find((candidate) => candidate.type === type);
    const ready = condition("RuntimeReady"), network = condition("NetworkReady");
    const messages = [ready, network].flatMap((c) => c && !c.status ? [c.message || c.reason] : []);
    return {
      name: version.runtimeName,
      version: version.runtimeVersion.replace(/^v/, ""),
      ready: ready?.status ?? false,
      networkReady: network?.status ?? false,
      message: messages.join(", "),
    };
  }

  async listSandboxes(): Promise<Sandbox[]> {
    const { items } = await unary(this.#send, runtime.listPodSandbox, {}, { timeoutMs: askTimeoutMs });
    return items.map(sandbox);
  }

  async listContainers(): Promise<RuntimeContainer[]> {
    const { containers } = await unary(this.#send, runtime.listContainers, {}, { timeoutMs: askTimeoutMs });
    return containers.map((c) => ({
      id: c.id,
      sandboxId: c.podSandboxId,
      name: c.metadata?.name ?? "",
      attempt: c.metadata?.attempt ?? 0,
      state: stateOf(c.state),
      createdMs: milliseconds(c.createdAt),
      labels: c.labels,
      annotations: c.annotations,
    }));
  }

  async sandboxStatus(id: string): Promise<SandboxStatus> {
    const { status } = await unary(this.#send, runtime.podSandboxStatus, { podSandboxId: id }, {
      timeoutMs: askTimeoutMs,
    });
    if (!status) throw new CriError(`sandbox ${id} has no status`, "NotFound");
    const ips = status.network?.ip
      ? [status.network.ip, ...status.network.additionalIps.map((other) => other.ip)]
      : [];
    return { ...sandbox(status), ips };
  }

  async containerStatus(id: string): Promise<RuntimeContainerStatus> {
    const { status } = await unary(this.#send, runtime.containerStatus, { containerId: id }, {
      timeoutMs: askTimeoutMs,
    });
    if (!status) throw new CriError(`container ${id} has no status`, "NotFound");
    return {
      id,
      sandboxId: "",
      name: status.metadata?.name ?? "",
      attempt: status.metadata?.attempt ?? 0,
      state: stateOf(status.state),
      createdMs: milliseconds(status.createdAt),
      startedMs: milliseconds(status.startedAt),
      finishedMs: milliseconds(status.finishedAt),
      exitCode: status.exitCode,
      reason: status.reason,
      message: status.message,
      image: status.image?.userSpecifiedImage || status.image?.image || "",
      imageRef: status.imageRef,
      logPath: status.logPath,
      labels: status.labels,
      annotations: status.annotations,
    };
  }

  async runSandbox(config: PodSandboxConfig, runtimeHandler: string): Promise<string> {
    const answer = await unary(this.#send, runtime.runPodSandbox, { config, runtimeHandler }, {
      timeoutMs: sandboxTimeoutMs,
    });
    return answer.podSandboxId;
  }
  async stopSandbox(id: string): Promise<void> {
    await unary(this.#send, runtime.stopPodSandbox, { podSandboxId: id }, { timeoutMs: askTimeoutMs });
  }
  async removeSandbox(id: string): Promise<void> {
    await unary(this.#send, runtime.removePodSandbox, { podSandboxId: id }, { timeoutMs: askTimeoutMs });
  }
  async createContainer(
    sandboxId: string,
    config: ContainerConfig,
    sandboxConfig: PodSandboxConfig,
  ): Promise<string> {
    const request = { podSandboxId: sandboxId, config, sandboxConfig };
    return (await unary(this.#send, runtime.createContainer, request, { timeoutMs: askTimeoutMs }))
      .containerId;
  }
  async startContainer(id: string): Promise<void> {
    await unary(this.#send, runtime.startContainer, { containerId: id }, { timeoutMs: askTimeoutMs });
  }
  async stopContainer(id: string, graceSeconds: number): Promise<void> {
    const options = { timeoutMs: askTimeoutMs + graceSeconds * 1000 };
    await unary(
      this.#send,
      runtime.stopContainer,
      { containerId: id, timeout: BigInt(graceSeconds) },
      options,
    );
  }
  async removeContainer(id: string): Promise<void> {
    await unary(this.#send, runtime.removeContainer, { containerId: id }, { timeoutMs: askTimeoutMs });
  }
  async reopenLog(id: string): Promise<void> {
    await unary(this.#send, runtime.reopenContainerLog, { containerId: id }, { timeoutMs: askTimeoutMs });
  }
  async execSync(id: string, command: string[], timeoutSeconds: number): Promise<ExecSyncResult> {
    const request = { containerId: id, cmd: command, timeout: BigInt(timeoutSeconds) };
    const options = { timeoutMs: timeoutSeconds > 0 ? timeoutSeconds * 1000 + 5000 : askTimeoutMs };
    const { exitCode, stdout, stderr } = await unary(this.#send, runtime.execSync, request, options);
    return { exitCode, stdout, stderr };
  }

  async exec({ containerId, command = [], ...streams }: StreamRequest): Promise<string> {
    const request = { containerId, cmd: command, ...streams };
    return (await unary(this.#send, runtime.exec, request, { timeoutMs: askTimeoutMs })).url;
  }
  async attach({ containerId, stdin, stdout, stderr, tty }: StreamRequest): Promise<string> {
    const request = { containerId, stdin, stdout, stderr, tty };
    return (await unary(this.#send, runtime.attach, request, { timeoutMs: askTimeoutMs })).url;
  }
  async portForward(sandboxId: string, ports: number[]): Promise<string> {
    const request = { podSandboxId: sandboxId, port: ports };
    return (await unary(this.#send, runtime.portForward, request, { timeoutMs: askTimeoutMs })).url;
  }

  async imageStatus(name: string): Promise<RuntimeImage | undefined> {
    const status = await unary(this.#send, image.imageStatus, { image: { image: name } }, {
      timeoutMs: askTimeoutMs,
    });
    return status.image ? imageOf(status.image) : undefined;
  }
  async listImages(): Promise<RuntimeImage[]> {
    return (await unary(this.#send, image.listImages, {}, { timeoutMs: askTimeoutMs })).images.map(imageOf);
  }
  async pullImage(name: string, auth: AuthConfig | undefined): Promise<string> {
    const request = auth ? { image: { image: name }, auth } : { image: { image: name } };
    return (await unary(this.#send, image.pullImage, request, { timeoutMs: pullTimeoutMs })).imageRef;
  }
  async removeImage(name: string): Promise<void> {
    await unary(this.#send, image.removeImage, { image: { image: name } }, { timeoutMs: askTimeoutMs });
  }
  async imageFsPath(): Promise<string | undefined> {
    const info = await unary(this.#send, image.imageFsInfo, {}, { timeoutMs: askTimeoutMs });
    return info.imageFilesystems[0]?.fsId?.mountpoint;
  }

  async stats(): Promise<ContainerStats[]> {
    const answer = await unary(this.#send, runtime.listContainerStats, {}, { timeoutMs: askTimeoutMs });
    return answer.stats.map((stats) => ({
      containerId: stats.attributes?.id ?? "",
      labels: stats.attributes?.labels ?? {},
      name: stats.attributes?.metadata?.name ?? "",
      timestampMs: milliseconds(stats.cpu?.timestamp ?? stats.memory?.timestamp ?? 0n),
      cpuCoreNanoSeconds: number(stats.cpu?.usageCoreNanoSeconds?.value),
      memoryWorkingSetBytes: number(stats.memory?.workingSetBytes?.value),
      writableLayerBytes: number(stats.writableLayer?.usedBytes?.value),
      writableLayerInodes: number(stats.writableLayer?.inodesUsed?.value),
    }));
  }

  async *events(signal: AbortSignal): AsyncGenerator<CriEvent> {
    const filters = ["start", "exit", "oom"].map((topic) => `namespace==k8s.io,topic=="/tasks/${topic}"`);
    try {
      for await (
        const { topic, event } of stream(this.#send, Events.method.subscribe, { filters }, { signal })
      ) {
        if (!event) continue;
        if (topic === "/tasks/start") {
          yield { type: "start", containerId: fromBinary(TaskStartSchema, event.value).containerId };
        } else if (topic === "/tasks/oom") {
          yield { type: "oom", containerId: fromBinary(TaskOOMSchema, event.value).containerId };
        } else {
          const exit = fromBinary(TaskExitSchema, event.value);
          // An exec's end is an exit of the same task with another id.
          if (exit.id === exit.containerId) {
            yield { type: "exit", containerId: exit.containerId, exitCode: exit.exitStatus };
          }
        }
      }
    } catch (error) {
      if (!signal.aborted && !(error instanceof CriError && error.code === "Unavailable")) throw error;
    }
  }
}

function sandbox(item: pb.PodSandbox | pb.PodSandboxStatus): Sandbox {
  return {
    id: item.id,
    podUid: item.metadata?.uid ?? "",
    podName: item.metadata?.name ?? "",
    podNamespace: item.metadata?.namespace ?? "",
    attempt: item.metadata?.attempt ?? 0,
    ready: item.state === 0,
    createdMs: milliseconds(item.createdAt),
    labels: item.labels,
    annotations: item.annotations,
  };
}

function imageOf(item: pb.Image): RuntimeImage {
  return {
    id: item.id,
    repoTags: item.repoTags,
    repoDigests: item.repoDigests,
    bytes: Number(item.size),
    uid: item.uid ? Number(item.uid.value) : undefined,
    username: item.username,
  };
}

function stateOf(state: State): ContainerState {
  switch (state) {
    case State.CONTAINER_CREATED:
      return "created";
    case State.CONTAINER_RUNNING:
      return "running";
    case State.CONTAINER_EXITED:
      return "exited";
    default:
      return "unknown";
  }
}

function milliseconds(nanoseconds: bigint): number {
  return nanoseconds > 0n ? Number(nanoseconds / 1_000_000n) : 0;
}
function number(value: bigint | undefined): number | undefined {
  return value === undefined ? undefined : Number(value);
}
