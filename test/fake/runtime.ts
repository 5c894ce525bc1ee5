/** A container runtime in memory: everything that ContainerRuntime says, with exits, faults and pulls at a test's word. */
import { CriError } from "../../lib/cri/grpc.ts";
import type {
  ContainerConfig,
  ContainerRuntime,
  ContainerStats,
  CriEvent,
  PodSandboxConfig,
  RuntimeContainer,
  RuntimeContainerStatus,
  RuntimeImage,
  Sandbox,
} from "../../lib/cri/runtime.ts";
import { podUidLabel } from "../../lib/edge/pod/state.ts";

interface FakeContainer extends RuntimeContainerStatus {
  command: string[];
  environment: Record<string, string>;
}

/** What every call ends with while the runtime cannot be reached. */
export function away(): CriError {
  return new CriError("the container runtime cannot be reached", "Unavailable");
}

export class FakeRuntime implements ContainerRuntime {
  readonly sandboxes = new Map<string, Sandbox & { ips: string[] }>();
  readonly containers = new Map<string, FakeContainer>();
  readonly images = new Set<string>(["busybox"]);
  /** What was asked, in order: `create NAME`, `start NAME`, `stop NAME GRACE`, … */
  readonly calls: string[] = [];
  /** Name of a call → error that it ends with, until removed. */
  readonly faults = new Map<string, Error>();
  /** Names of calls that are carried out, but whose answer is lost with the runtime. */
  readonly unheard = new Set<string>();
  execOutcome: (command: string[]) => number = () => 0;
  listener: ((event: CriEvent) => void) | undefined;
  #next = 1;
  constructor(readonly now: () => number) {}

  // ---- a test's side

  find(name: string): FakeContainer | undefined {
    return [...this.containers.values()].filter((one) => one.name === name).sort((a, b) =>
      b.attempt - a.attempt
    )[0];
  }
  /** The newest container of that name ends by itself. */
  exit(name: string, exitCode: number): void {
    const container = this.find(name);
    if (!container) throw new Error(`no container ${name}`);
    this.#end(container, exitCode);
  }
  running(): string[] {
    return [...this.containers.values()].filter(({ state }) => state === "running").map(({ name }) => name)
      .sort();
  }

  #end(container: FakeContainer, exitCode: number): void {
    if (container.state !== "running") return;
    container.state = "exited";
    container.exitCode = exitCode;
    container.reason = exitCode === 0 ? "Completed" : "Error";
    container.finishedMs = this.now();
    this.listener?.({ type: "exit", containerId: container.id, exitCode });
  }
  #ask(call: string, more = ""): void {
    this.calls.push(more ? `${call} ${more}` : call);
    const fault = this.faults.get(call);
    if (fault) throw fault;
  }
  /** As #ask; what it returns is to be thrown once the call is carried out. */
  #askUnheard(call: string, more: string): Error | undefined {
    this.#ask(call, more);
    return this.unheard.has(call) ? away() : undefined;
  }
  /** containerd keeps a name for each pod, container and attempt until it is removed. */
  #reserve(kind: string, taken: { attempt: number; id: string } | undefined): void {
    if (taken) throw new CriError(`failed to reserve ${kind} name: reserved for "${taken.id}"`, "Unknown");
  }
  #of(id: string): FakeContainer {
    const container = this.containers.get(id);
    if (!container) throw new CriError(`container ${id}: not found`, "NotFound");
    return container;
  }

  // ---- the agent's side

  async info() {
    await Promise.resolve();
    return { name: "fake", version: "1", ready: true, networkReady: true, message: "" };
  }
  async listSandboxes(): Promise<Sandbox[]> {
    await Promise.resolve();
    return [...this.sandboxes.values()].map((sandbox) => ({ ...sandbox }));
  }
  async listContainers(): Promise<RuntimeContainer[]> {
    await Promise.resolve();
    return [...this.containers.values()].map((container) => ({ ...container }));
  }
  async sandboxStatus(id: string) {
    await Promise.resolve();
    const sandbox = this.sandboxes.get(id);
    if (!sandbox) throw new CriError(`sandbox ${id}: not found`, "NotFound");
    return { ...sandbox };
  }
  async containerStatus(id: string): Promise<RuntimeContainerStatus> {
    await Promise.resolve();
    return { ...this.#of(id) };
  }
  async runSandbox(config: PodSandboxConfig): Promise<string> {
    await Promise.resolve();
    const unheard = this.#askUnheard("sandbox", config.metadata?.name ?? "");
    const { uid = "", attempt = 0 } = config.metadata ?? {};
    this.#reserve(
      "sandbox",
      [...this.sandboxes.values()].find((one) => one.podUid === uid && one.attempt === attempt),
    );
    const id = `s${this.#next++}`;
    this.sandboxes.set(id, {
      id,
      podUid: config.metadata?.uid ?? "",
      podName: config.metadata?.name ?? "",
      podNamespace: config.metadata?.namespace ?? "",
      attempt: config.metadata?.attempt ?? 0,
      ready: true,
      createdMs: this.now(),
      labels: { ...config.labels },
      annotations: { ...config.annotations },
      ips: ["10.0.0.9"],
    });
    if (unheard) throw unheard;
    return id;
  }
  async stopSandbox(id: string): Promise<void> {
    await Promise.resolve();
    this.#ask("stopSandbox");
    const sandbox = this.sandboxes.get(id);
    if (!sandbox) return;
    for (const container of this.containers.values()) {
      if (container.sandboxId === id) this.#end(container, 137);
    }
    sandbox.ready = false;
  }
  async removeSandbox(id: string): Promise<void> {
    await Promise.resolve();
    this.#ask("removeSandbox");
    this.sandboxes.delete(id);
    for (const container of [...this.containers.values()]) {
      if (container.sandboxId === id) this.containers.delete(container.id);
    }
  }
  async createContainer(sandboxId: string, config: ContainerConfig): Promise<string> {
    await Promise.resolve();
    const name = config.metadata?.name ?? "";
    const unheard = this.#askUnheard("create", name);
    const podUid = config.labels?.[podUidLabel], attempt = config.metadata?.attempt ?? 0;
    this.#reserve(
      "container",
      [...this.containers.values()].find((one) =>
        one.name === name && one.attempt === attempt && one.labels[podUidLabel] === podUid
      ),
    );
    const id = `c${this.#next++}`;
    const environment = (config.envs ?? []).map((
      { key, value },
    ) => [key ?? "", new TextDecoder().decode(value)]);
    this.containers.set(id, {
      id,
      sandboxId,
      name,
      attempt: config.metadata?.attempt ?? 0,
      state: "created",
      createdMs: this.now(),
      startedMs: 0,
      finishedMs: 0,
      exitCode: 0,
      reason: "",
      message: "",
      image: config.image?.userSpecifiedImage ?? "",
      imageRef: `sha256:${config.image?.image ?? ""}`,
      logPath: "",
      labels: { ...config.labels },
      annotations: { ...config.annotations },
      command: [...config.command ?? []],
      environment: Object.fromEntries(environment),
    });
    if (unheard) throw unheard;
    return id;
  }
  async startContainer(id: string): Promise<void> {
    await Promise.resolve();
    const container = this.#of(id);
    const unheard = this.#askUnheard("start", container.name);
    container.state = "running";
    container.startedMs = this.now();
    if (unheard) throw unheard;
    this.listener?.({ type: "start", containerId: id });
  }
  async stopContainer(id: string, graceSeconds: number): Promise<void> {
    await Promise.resolve();
    const container = this.#of(id);
    this.#ask("stop", `${container.name} ${graceSeconds}`);
    this.#end(container, 143);
  }
  async removeContainer(id: string): Promise<void> {
    await Promise.resolve();
    this.#ask("remove", this.#of(id).name);
    this.containers.delete(id);
  }
  async reopenLog(): Promise<void> {
    await Promise.resolve();
  }
  async execSync(id: string, command: string[]) {
    await Promise.resolve();
    this.#ask("exec", `${this.#of(id).name} ${command.join(" ")}`);
    return { exitCode: this.execOutcome(command), stdout: new Uint8Array(0), stderr: new Uint8Array(0) };
  }
  exec(): Promise<string> {
    return Promise.resolve("http://127.0.0.1:1/exec");
  }
  attach(): Promise<string> {
    return Promise.resolve("http://127.0.0.1:1/attach");
  }
  portForward(): Promise<string> {
    return Promise.resolve("http://127.0.0.1:1/portForward");
  }
  async imageStatus(image: string): Promise<RuntimeImage | undefined> {
    await Promise.resolve();
    this.#ask("image", image);
    if (!this.images.has(image)) return undefined;
    return { id: image, repoTags: [image], repoDigests: [], bytes: 1, uid: undefined, username: "" };
  }
  async listImages(): Promise<RuntimeImage[]> {
    return (await Promise.all([...this.images].map((image) => this.imageStatus(image)))).flatMap((one) =>
      one ? [one] : []
    );
  }
  async pullImage(image: string): Promise<string> {
    await Promise.resolve();
    this.#ask("pull", image);
    this.images.add(image);
    return image;
  }
  removeImage(image: string): Promise<void> {
    this.images.delete(image);
    return Promise.resolve();
  }
  imageFsPath(): Promise<string | undefined> {
    return Promise.resolve(undefined);
  }
  stats(): Promise<ContainerStats[]> {
    return Promise.resolve([]);
  }
  async *events(signal: AbortSignal): AsyncGenerator<CriEvent> {
    const queue: CriEvent[] = [];
    let wake = () => {};
    this.listener = (event) => {
      queue.push(event);
      wake();
    };
    signal.addEventListener("abort", () => wake(), { once: true });
    while (!signal.aborted) {
      const event = queue.shift();
      if (event) yield event;
      else await new Promise<void>((resolve) => wake = resolve);
    }
  }
}
