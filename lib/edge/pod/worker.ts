/**
 * One pod's worker: asks `decide` what should happen, does it, learns what came of it, reports, waits for the next
 * cause. One step at a time, so that no container is ever started twice; causes may come at any moment.
 *
 * states: running (desired) → terminating (deletionTimestamp, or the object is gone) → finished
 */
import { errorText } from "../../core/errors.ts";
import type { Timer } from "../../core/clock.ts";
import type { Logger } from "../../core/log.ts";
import { Signal } from "../../core/queue.ts";
import { CriError } from "../../cri/grpc.ts";
import type { PodSandboxConfig } from "../../cri/runtime.ts";
import type { Container, Pod, PodStatus } from "../../kube/types.ts";
import { containerConfig, hostsFile, sandboxConfig } from "./config.ts";
import { decide, inSandbox, lengthenBackoff, type Step } from "./decide.ts";
import { resolveEnv } from "./env.ts";
import type { ImageResult, Images } from "./images.ts";
import type { PodPorts } from "./ports.ts";
import { ContainerProbes, runHandler } from "./probes.ts";
import {
  type ContainerRecord,
  type ContainerRun,
  isTerminating,
  newPodState,
  podKey,
  type PodState,
  podUid,
  recordOf,
  startBrokenOff,
  terminationFileAnnotation,
  terminationPolicyAnnotation,
} from "./state.ts";
import { lostRun, podStatus } from "./status.ts";
import { type MountableVolume, mountSource, PodVolumes } from "./volumes.ts";

/** Retry of what the runtime refused: 1 s doubling to 5 min, as the image back-off below it. */
const retryBaseMs = 1000;
const retryMaxMs = 300_000;
/** Image pulls (kubelet: 10 s to 5 min). */
const pullRetryBaseMs = 10_000;
/** Changes on the way to Ready are reported together if Ready comes within this time. */
const reportDelayMs = 300;
/** Volumes of a running pod that could not be brought up to date (cut off, a missing secret). */
const volumesRetryMs = 10_000;
/** Before an unsynced reference is worth an event: it is usually on its way. */
const referencePatienceMs = 2000;
/** Termination messages (pkg/kubelet/container: MaxContainerTerminationMessageLength, …LogLength). */
const terminationMessageBytesMax = 4096;
const terminationLogBytesMax = 2048;
/** Grace when the object is gone from the API already. */
const removedGraceSeconds = 1;

export interface WorkerContext {
  ports: PodPorts;
  images: Images;
  /** Compares a worker with the runtime; throws when the runtime cannot be asked. */
  compare(worker: PodWorker): Promise<void>;
  /** A container of this worker exists from now on. */
  containerMade(id: string): void;
  finished(worker: PodWorker): void;
}

export class PodWorker {
  readonly #context: WorkerContext;
  readonly #ports: PodPorts;
  readonly #log: Logger;
  readonly volumes: PodVolumes;
  readonly state: PodState = newPodState();
  #pod: Pod;
  #phase: "running" | "terminating" | "finished" = "running";
  /** The object is gone from the API: nothing is reported any more. */
  #removed = false;
  readonly #cause = new Signal();
  readonly #stop = new AbortController();
  /** Ends what a running worker waits for (pulls, hooks) once the pod is to go. */
  readonly #terminate = new AbortController();
  #wakeTimer: Timer | undefined;
  #reportTimer: Timer | undefined;
  /** The runtime died during a call: what came of it is not known. */
  #unsure = false;
  #volumesDirty = false;
  #volumesRetryAtMs: number | undefined;
  #waitingSinceMs: number | undefined;
  readonly #probes = new Map<string, ContainerProbes>();
  readonly #terminationMessages = new Map<string, string>();
  #reported: PodStatus | undefined;
  #reportedText = "";
  #sandboxConfig: PodSandboxConfig | undefined;

  constructor(pod: Pod, context: WorkerContext) {
    this.#pod = pod;
    this.#context = context;
    this.#ports = context.ports;
    this.#log = context.ports.log.with({ pod: podKey(pod), uid: podUid(pod) });
    this.volumes = new PodVolumes(context.ports);
    this.#reported = pod.status;
    if (pod.status?.startTime) this.state.startedMs = Date.parse(pod.status.startTime);
    const phase = pod.status?.phase;
    if (phase === "Succeeded" || phase === "Failed") {
      const { reason, message } = pod.status ?? {};
      this.state.ended = { phase, ...(reason ? { reason } : {}), ...(message ? { message } : {}) };
    }
    if (isTerminating(pod)) this.#goTerminating("deletionTimestamp is set");
  }

  get pod(): Pod {
    return this.#pod;
  }
  get phase(): string {
    return this.#phase;
  }
  get status(): PodStatus {
    return this.#status();
  }

  /** The loop; resolves when the pod is gone for good or the agent stops. */
  async run(): Promise<void> {
    while (this.#phase !== "finished" && !this.#stop.signal.aborted) {
      try {
        const again = this.#phase === "terminating" ? await this.#terminatePod() : await this.#turn();
        if (again) continue;
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        if (
          this.#phase === "running" || !this.#terminate.signal.aborted ||
          !(error === this.#terminate.signal.reason)
        ) {
          this.#log.warn("Pod worker failed, retrying", { error: errorText(error) });
          this.#wakeIn(retryBaseMs);
        } else continue;
      }
      if (this.phase === "finished") return;
      await this.#cause.wait(this.#stop.signal);
    }
  }

  /** A new version of the pod. */
  update(pod: Pod): void {
    this.#pod = pod;
    if (isTerminating(pod)) this.#goTerminating("deletionTimestamp is set");
    this.#volumesDirty = true; // labels and annotations may be in downwardAPI files
    this.#cause.notify();
  }

  /** The object is gone from the API. */
  remove(): void {
    this.#removed = true;
    if (this.#phase === "terminating") {
      // It may be waiting out a long grace that nobody wants any more.
      for (const record of this.state.containers.values()) {
        if (record.current?.state === "running") {
          this.#ports.runtime.stopContainer(record.current.id, removedGraceSeconds).catch(() => {});
        }
      }
    }
    this.#goTerminating("the object is gone");
    this.#cause.notify();
  }

  /** A configMap, secret or service that the pod may use has changed. */
  referenceChanged(): void {
    this.#volumesDirty = true;
    for (const record of this.state.containers.values()) {
      if (record.waiting?.reason === "CreateContainerConfigError") record.retryAtMs = 0;
    }
    this.#cause.notify();
  }

  /** Fresh news of one run. */
  runChanged(name: string, news: ContainerRun): void {
    const record = recordOf(this.state, name);
    const run = startBrokenOff(news) ? { ...news, state: "created" as const } : news;
    if (record.current && record.current.id !== run.id) {
      if (run.attempt < record.current.attempt) {
        if (!record.previous || record.previous.attempt <= run.attempt) record.previous = run;
        return;
      }
      record.previous = record.current.state === "created" ? record.previous : record.current;
    }
    const before = record.current?.id === run.id ? record.current.state : undefined;
    record.current = run;
    if (run.state === "exited" && before !== "exited") {
      this.#log.info("Container exited", { container: name, reason: run.reason, count: run.exitCode });
      this.#endRun(name, record);
    }
    if (run.state === "running" && !this.#probes.has(name) && this.#phase === "running") {
      this.#startProbes(name, record);
    }
    this.#cause.notify();
  }

  /** The runtime does not know the run any more. */
  runLost(name: string): void {
    const record = this.state.containers.get(name);
    const run = record?.current;
    // What never ran has no end: it is made again.
    if (run?.state === "created") this.#cause.notify();
    else if (run && run.state !== "exited") this.runChanged(name, lostRun(run, this.#ports.clock.now()));
  }

  sandboxChanged(sandbox: PodState["sandbox"]): void {
    // Adopted: its volumes may be out of date, and nobody refreshes its tokens yet.
    if (!this.state.sandbox) this.#volumesDirty = true;
    this.state.sandbox = sandbox;
    this.#cause.notify();
  }

  wake(): void {
    this.#cause.notify();
  }

  /** The agent stops: containers run on. */
  stop(): void {
    this.#stop.abort(new Error("the agent stops"));
    this.#wakeTimer?.cancel();
    this.#reportTimer?.cancel();
    for (const probes of this.#probes.values()) probes.stop();
    this.#cause.notify();
  }

  // ---- running

  /** One round: true when there is more to do at once. */
  async #turn(): Promise<boolean> {
    const nowMs = this.#ports.clock.now();
    this.state.startedMs ??= nowMs;
    if (this.state.ended) {
      this.#report(false);
      return false;
    }
    if (this.#unsure) {
      try {
        await this.#context.compare(this);
      } catch (error) {
        if (this.#runtimeAway(error)) return false;
        throw error;
      }
      this.#unsure = false;
    }
    if (this.#volumesDirty && this.state.sandbox?.ready) {
      this.#volumesDirty = false;
      const result = await this.volumes.prepare(this.#pod, this.#podIps());
      if (result.state === "bad") this.#mountFailed(result.volume, result.message);
      if (result.state !== "ok") this.#volumesRetryAtMs = nowMs + volumesRetryMs;
    }
    const { steps, wakeMs } = decide(this.#pod, this.state, nowMs);
    this.#wakeAt(wakeMs, this.volumes.refreshAtMs, this.#volumesRetryAtMs);
    let again = false;
    for (const step of steps) {
      if (this.#phase !== "running" || this.#stop.signal.aborted) return true;
      again = await this.#do(step) || again;
    }
    this.#report(again);
    return again;
  }

  async #do(step: Step): Promise<boolean> {
    switch (step.step) {
      case "sandbox":
        return await this.#makeSandbox(step.attempt);
      case "start":
        return await this.#startContainer(step.container, step.attempt, step.init);
      case "stop": {
        const record = recordOf(this.state, step.container.name);
        await this.#stopContainer(
          step.container,
          record,
          step.reason,
          this.#pod.spec.terminationGracePeriodSeconds ?? 30,
        );
        record.killReason = undefined;
        return true;
      }
      case "backoff": {
        const record = recordOf(this.state, step.container.name);
        const message =
          `back-off ${
            duration(step.delayMs)
          } restarting failed container=${step.container.name} pod=${this.#pod.metadata.name}_` +
          `${this.#pod.metadata.namespace ?? "default"}(${podUid(this.#pod)})`;
        if (record.waiting?.reason !== "CrashLoopBackOff") {
          this.#event(
            step.container,
            "Warning",
            "BackOff",
            `Back-off restarting failed container ${step.container.name} in pod ` +
              `${this.#pod.metadata.name}_${this.#pod.metadata.namespace ?? "default"}(${podUid(this.#pod)})`,
          );
        }
        record.waiting = { reason: "CrashLoopBackOff", message };
        return false;
      }
      case "end": {
        this.state.ended = { phase: step.phase };
        for (const record of this.state.containers.values()) record.waiting = undefined;
        this.#log.info("Pod ended", { to: step.phase });
        // Sidecars go when the work is done; then the network is given back.
        for (const container of this.#pod.spec.initContainers ?? []) {
          const record = recordOf(this.state, container.name);
          if (record.current?.state === "running") {
            await this.#stopContainer(container, record, `Stopping container ${container.name}`, 30);
          }
        }
        const status = this.#status(); // with the addresses that stopping takes away
        if (this.state.sandbox?.ready) {
          await this.#ports.runtime.stopSandbox(this.state.sandbox.id);
          this.state.sandbox = { ...this.state.sandbox, ready: false };
        }
        this.#reported = { ...this.#reported, ...(status.podIP ? { podIP: status.podIP } : {}) };
        return false;
      }
    }
  }

  async #makeSandbox(attempt: number): Promise<boolean> {
    const { runtime, cgroups, options } = this.#ports;
    const old = this.state.sandbox;
    try {
      if (old) {
        for (const record of this.state.containers.values()) {
          if (record.current?.sandboxId === old.id && record.current.state === "running") {
            await runtime.stopContainer(record.current.id, 2);
          }
        }
        await runtime.stopSandbox(old.id);
        this.#event(
          undefined,
          "Normal",
          "SandboxChanged",
          "Pod sandbox changed, it will be killed and re-created.",
        );
      }
      const config = this.#configOfSandbox(attempt);
      await this.#ports.files.makeDirectory(config.logDirectory ?? options.logDir, { mode: 0o755 });
      const handler = this.#pod.spec.runtimeClassName ?? "";
      // Volumes are made meanwhile; what goes wrong there is told when a container needs them.
      const [id] = await Promise.all([
        runtime.runSandbox(config, handler),
        this.volumes.prepare(this.#pod, []).catch(() => {}),
      ]);
      const { ips, createdMs } = await runtime.sandboxStatus(id);
      this.state.sandbox = { id, attempt, ready: true, ips, createdMs };
      this.state.sandboxFailures = 0;
      void cgroups;
      this.#volumesDirty = JSON.stringify(this.#pod.spec.volumes ?? []).includes("status.podIP");
      return true;
    } catch (error) {
      if (this.#runtimeAway(error)) return false;
      const message = `Failed to create pod sandbox: ${errorText(error)}`;
      this.#event(undefined, "Warning", "FailedCreatePodSandBox", message);
      // The number stays taken: the runtime may still be cleaning up the failed one.
      this.state.sandbox = { id: "", attempt, ready: false, ips: [], createdMs: 0 };
      this.state.sandboxRetryAtMs = this.#ports.clock.now() +
        this.#retryDelay(this.state.sandboxFailures++, retryBaseMs);
      return true;
    }
  }

  #configOfSandbox(attempt: number): PodSandboxConfig {
    const { options, cgroups, node } = this.#ports;
    this.#sandboxConfig = sandboxConfig(this.#pod, attempt, {
      options,
      cgroupParent: cgroups.parent(this.#pod),
      nodeName: node().name,
    });
    return this.#sandboxConfig;
  }

  async #startContainer(container: Container, attempt: number, init: boolean): Promise<boolean> {
    const { runtime, clock } = this.#ports;
    const record = recordOf(this.state, container.name);
    const fieldPath = `spec.${init ? "initContainers" : "containers"}{${container.name}}`;
    const fail = (reason: string, message: string, baseMs = retryBaseMs): boolean => {
      record.waiting = { reason, message };
      record.retryAtMs = clock.now() + this.#retryDelay(record.failures++, baseMs);
      return true;
    };
    let image: ImageResult;
    try {
      image = await this.#context.images.ensure(this.#pod, container, fieldPath, this.#terminate.signal);
    } catch (error) {
      if (this.#runtimeAway(error)) return false;
      throw error;
    }
    if (image.state === "failed") {
      // Shown once as what it is; the next round shows the back-off.
      const backingOff = record.waiting?.reason === "ImagePullBackOff" ||
        (image.reason === "ErrImagePull" && record.failures > 0);
      const result = fail(image.reason, image.message, pullRetryBaseMs);
      this.#report(false);
      if (image.reason === "ErrImagePull") {
        const message = `Back-off pulling image "${container.image ?? ""}": ErrImagePull: ${image.message}`;
        record.waiting = {
          reason: backingOff ? "ImagePullBackOff" : "ErrImagePull",
          message: backingOff ? message : image.message,
        };
        if (!backingOff) {
          this.#ports.clock.timer(pullRetryBaseMs / 5, () => {
            if (record.waiting?.reason !== "ErrImagePull") return;
            record.waiting = { reason: "ImagePullBackOff", message };
            this.#event(
              container,
              "Normal",
              "BackOff",
              `Back-off pulling image "${container.image ?? ""}"`,
              fieldPath,
            );
            this.#event(container, "Warning", "Failed", "Error: ImagePullBackOff", fieldPath);
            this.#report(false);
          });
        }
      }
      return result;
    }
    const prepared = await this.#prepare(container, attempt);
    if (prepared.state === "wait") {
      this.#waitingSinceMs ??= clock.now();
      record.waiting = { reason: init ? "PodInitializing" : "ContainerCreating" };
      if (clock.now() - this.#waitingSinceMs > referencePatienceMs) {
        this.#mountFailed(prepared.volume ?? "", prepared.message);
      }
      record.retryAtMs = clock.now() + retryBaseMs;
      return true;
    }
    if (prepared.state !== "ok") {
      if (prepared.volume !== undefined) {
        record.waiting = { reason: init ? "PodInitializing" : "ContainerCreating" };
        record.retryAtMs = clock.now() + this.#retryDelay(record.failures++, retryBaseMs);
        this.#mountFailed(prepared.volume, prepared.message);
        return true;
      }
      this.#event(container, "Warning", "Failed", `Error: ${prepared.message}`, fieldPath);
      return fail("CreateContainerConfigError", prepared.message);
    }
    this.#waitingSinceMs = undefined;
    if (this.#phase !== "running") return true;
    const sandbox = this.state.sandbox;
    if (!sandbox?.ready) return true;
    const sandboxConfig = this.#sandboxConfig ?? this.#configOfSandbox(sandbox.attempt);
    const restart = record.current?.state === "exited";
    let id: string;
    try {
      await this.#removeOldRuns(record);
      const config = containerConfig(this.#pod, container, {
        ...prepared.value,
        attempt,
        imageReference: image.reference,
        sandboxConfig,
      });
      id = await runtime.createContainer(sandbox.id, config, sandboxConfig);
    } catch (error) {
      if (this.#runtimeAway(error)) return false;
      if (error instanceof CriError && error.code === "NotFound") {
        this.state.sandbox = { ...sandbox, ready: false };
      }
      this.#event(container, "Warning", "Failed", `Error: ${errorText(error)}`, fieldPath);
      return fail("CreateContainerError", errorText(error));
    }
    this.#context.containerMade(id);
    this.#event(container, "Normal", "Created", `Container created`, fieldPath);
    const run: ContainerRun = {
      id,
      sandboxId: sandbox.id,
      attempt,
      state: "created",
      startedMs: 0,
      finishedMs: 0,
      exitCode: 0,
      reason: "",
      message: "",
      image: container.image ?? "",
      imageRef: image.reference,
      logPath: "",
      annotations: {
        "kubeedge.io/image": container.image ?? "",
        [terminationFileAnnotation]: prepared.value.terminationFile,
        [terminationPolicyAnnotation]: container.terminationMessagePolicy ?? "File",
      },
    };
    if (restart) lengthenBackoff(record, clock.now());
    if (record.current && record.current.state !== "created") record.previous = record.current;
    record.current = run;
    record.startupDone = record.ready = false;
    record.killReason = undefined;
    try {
      await runtime.startContainer(id);
    } catch (error) {
      if (this.#runtimeAway(error)) return false;
      const message = errorText(error);
      this.#event(container, "Warning", "Failed", `Error: ${message}`, fieldPath);
      const nowMs = clock.now();
      record.current = {
        ...run,
        state: "exited",
        exitCode: 128,
        reason: "StartError",
        message,
        startedMs: 0,
        finishedMs: nowMs,
      };
      record.waiting = { reason: "RunContainerError", message };
      lengthenBackoff(record, nowMs);
      return true;
    }
    // An exit that came with the start has been told by its event already.
    if (record.current === run) record.current = { ...run, state: "running", startedMs: clock.now() };
    record.waiting = undefined;
    record.failures = 0;
    this.#event(container, "Normal", "Started", `Container started`, fieldPath);
    if (container.lifecycle?.postStart) {
      const context = {
        pod: this.#pod,
        container,
        containerId: id,
        podIp: this.#podIps()[0] ?? "",
        timeoutSeconds: 0,
      };
      const hook = await runHandler(
        container.lifecycle.postStart,
        { ...context, timeoutSeconds: 0 },
        this.#ports,
      );
      if (!hook.ok) {
        this.#event(container, "Warning", "FailedPostStartHook", `PostStartHook failed`, fieldPath);
        record.killReason = "FailedPostStartHook";
        return true;
      }
    }
    if (record.current?.id === id && record.current.state === "running") {
      this.#startProbes(container.name, record);
    }
    return true;
  }

  /** Volumes, environment, mounts, hosts and termination message file of a container. */
  async #prepare(container: Container, attempt: number) {
    const { files, objects, node, options } = this.#ports;
    const pod = this.#pod, podIps = this.#podIps();
    const volumes = await this.volumes.prepare(pod, podIps);
    if (volumes.state !== "ok") return volumes;
    const resolved = resolveEnv(container, { pod, objects, node: node(), podIps });
    if (resolved.state !== "ok") return { ...resolved, volume: undefined };
    for (const message of resolved.value.skipped) {
      this.#event(container, "Warning", "InvalidEnvironmentVariableNames", message);
    }
    const env = resolved.value.env;
    const mounts: { containerPath: string; hostPath: string; readonly: boolean; propagation: 0 | 1 | 2 }[] =
      [];
    for (const mount of container.volumeMounts ?? []) {
      const volume: MountableVolume | undefined = volumes.volumes.get(mount.name);
      if (!volume) {
        return {
          state: "bad" as const,
          message: `volume ${mount.name} is not in the pod`,
          volume: undefined,
        };
      }
      const source = await mountSource(mount, volume, env, files);
      if (source.state !== "ok") return { ...source, volume: undefined };
      const propagation = {
        None: 0,
        HostToContainer: 1,
        Bidirectional: 2,
      }[mount.mountPropagation ?? "None"] as 0 | 1 | 2;
      mounts.push({
        containerPath: absolute(mount.mountPath),
        hostPath: source.value,
        readonly: mount.readOnly === true,
        propagation,
      });
    }
    const directory = this.volumes.directory(pod);
    if (!pod.spec.hostNetwork && !mounts.some((mount) => mount.containerPath === "/etc/hosts")) {
      const hostPath = `${directory}/etc-hosts`;
      await files.write(hostPath, hostsFile(pod, podIps, options.clusterDomain), 0o644);
      mounts.push({ containerPath: "/etc/hosts", hostPath, readonly: false, propagation: 0 });
    }
    const terminationFile = `${directory}/containers/${container.name}/${attempt}`;
    await files.write(terminationFile, "", 0o666);
    const terminationPath = container.terminationMessagePath ?? "/dev/termination-log";
    mounts.push({
      containerPath: terminationPath,
      hostPath: terminationFile,
      readonly: false,
      propagation: 0,
    });
    return { state: "ok" as const, value: { options, node: node(), env, mounts, terminationFile } };
  }

  /** The newest two runs are kept: `kubectl logs -p` reads the one before. */
  async #removeOldRuns(record: ContainerRecord): Promise<void> {
    const old = record.current?.state === "created" ? record.current : record.previous;
    if (!old) return;
    await this.#ports.runtime.removeContainer(old.id).catch((error: unknown) => {
      if (this.#runtimeAway(error)) throw error;
    });
    this.#terminationMessages.delete(old.id);
    if (old === record.previous) record.previous = undefined;
  }

  #startProbes(name: string, record: ContainerRecord): void {
    const run = record.current;
    const container = [...this.#pod.spec.containers, ...(this.#pod.spec.initContainers ?? [])].find((c) =>
      c.name === name
    );
    if (!run || !container || this.#probes.has(name)) return;
    // After a restart of the agent a container that was ready stays so until a probe says otherwise.
    const before = this.#reported?.containerStatuses?.find((status) => status.name === name);
    if (before?.containerID === `containerd://${run.id}`) {
      record.startupDone = before.started ?? false;
      record.ready = before.ready;
    }
    const context = { pod: this.#pod, container, containerId: run.id, podIp: this.#podIps()[0] ?? "" };
    const changed = () => this.#cause.notify();
    this.#probes.set(
      name,
      new ContainerProbes(context, this.#ports, {
        started: () => {
          record.startupDone = true;
          changed();
        },
        ready: (ready) => {
          record.ready = ready;
          changed();
        },
        kill: (message) => {
          record.killReason = message;
          changed();
        },
      }),
    );
  }

  /** A run is over: its probes end, its termination message is read. */
  #endRun(name: string, record: ContainerRecord): void {
    this.#probes.get(name)?.stop();
    this.#probes.delete(name);
    record.ready = record.startupDone = false;
    const run = record.current;
    if (!run) return;
    const file = run.annotations[terminationFileAnnotation];
    if (!file) return;
    void (async () => {
      let message = await this.#ports.files.readTail(file, terminationMessageBytesMax);
      if (
        !message && run.annotations[terminationPolicyAnnotation] === "FallbackToLogsOnError" &&
        run.exitCode !== 0 && run.logPath
      ) {
        const log = await this.#ports.files.readTail(run.logPath, terminationLogBytesMax * 4);
        message = log?.split("\n").slice(-81).map((line) => line.replace(/^\S+ (stdout|stderr) [FP] /, ""))
          .join("\n").slice(-terminationLogBytesMax);
      }
      if (message) {
        this.#terminationMessages.set(run.id, message);
        this.#cause.notify();
      }
    })().catch(() => {});
  }

  // ---- the end

  #goTerminating(why: string): void {
    if (this.#phase !== "running") return;
    this.#log.info("Pod is terminating", { from: this.#phase, to: "terminating", reason: why });
    this.#phase = "terminating";
    this.#terminate.abort(new Error("the pod is being deleted"));
    this.#cause.notify();
  }

  /** Stops and removes everything; false when it has to be tried again later. */
  async #terminatePod(): Promise<boolean> {
    const { runtime, cgroups } = this.#ports;
    for (const probes of this.#probes.values()) probes.stop();
    this.#probes.clear();
    const grace = this.#removed
      ? removedGraceSeconds
      : this.#pod.metadata.deletionGracePeriodSeconds ?? this.#pod.spec.terminationGracePeriodSeconds ?? 30;
    try {
      const all = [...this.#pod.spec.containers, ...(this.#pod.spec.initContainers ?? []).toReversed()];
      const stop = async (container: Container) => {
        const record = recordOf(this.state, container.name);
        if (record.current?.state === "running") {
          await this.#stopContainer(container, record, `Stopping container ${container.name}`, grace);
        }
      };
      await Promise.all(this.#pod.spec.containers.map(stop));
      for (const container of all) await stop(container); // sidecars after the main containers, last one first
      if (!this.#removed) this.#report(false);
      if (this.state.sandbox && this.state.sandbox.id !== "") {
        await runtime.stopSandbox(this.state.sandbox.id);
        this.state.sandbox = { ...this.state.sandbox, ready: false };
      }
      await this.volumes.remove(this.#pod);
    } catch (error) {
      if (!this.#runtimeAway(error)) {
        this.#log.warn("Cannot stop pod, retrying", { error: errorText(error) });
        this.#wakeIn(retryBaseMs);
      }
      return false;
    }
    this.#finishStatus();
    if (!this.#removed) {
      this.#report(false);
      this.#ports.gone(this.#pod);
    }
    try {
      if (this.state.sandbox && this.state.sandbox.id !== "") {
        await runtime.removeSandbox(this.state.sandbox.id);
      }
      await cgroups.remove({ uid: podUid(this.#pod) });
      await this.#ports.files.removeTree(
        `${this.#ports.options.logDir}/${
          this.#pod.metadata.namespace ?? "default"
        }_${this.#pod.metadata.name}_${podUid(this.#pod)}`,
      );
    } catch (error) {
      this.#log.warn("Cannot clean up after pod; the next start will", { error: errorText(error) });
    }
    this.#phase = "finished";
    this.#reportTimer?.cancel();
    this.#wakeTimer?.cancel();
    this.#log.info("Pod is gone");
    this.#context.finished(this);
    return false;
  }

  /** A deleted pod ends in Succeeded or Failed, so that its owners know (kubelet: since 1.27). */
  #finishStatus(): void {
    if (this.state.ended) return;
    const runs = this.#pod.spec.containers.map((container) => recordOf(this.state, container.name).current);
    const failed = runs.some((run) => run === undefined || run.exitCode !== 0);
    this.state.ended = { phase: failed ? "Failed" : "Succeeded" };
  }

  async #stopContainer(
    container: Container,
    record: ContainerRecord,
    message: string,
    graceSeconds: number,
  ): Promise<void> {
    const run = record.current;
    if (!run) return;
    const { runtime, clock } = this.#ports;
    this.#probes.get(container.name)?.stop();
    this.#probes.delete(container.name);
    this.#event(container, "Normal", "Killing", message.startsWith("Stopping") ? message : `${message}`);
    const startedMs = clock.monotonic();
    const hook = container.lifecycle?.preStop;
    if (hook && graceSeconds > 0) {
      const context = {
        pod: this.#pod,
        container,
        containerId: run.id,
        podIp: this.#podIps()[0] ?? "",
        timeoutSeconds: graceSeconds,
      };
      const late = clock.sleep(graceSeconds * 1000).then(() => ({
        ok: false,
        output: "it did not end within the grace period",
      }));
      const result = await Promise.race([runHandler(hook, context, this.#ports), late]);
      if (!result.ok) this.#event(container, "Warning", "FailedPreStopHook", "PreStopHook failed");
    }
    const leftSeconds = Math.max(
      graceSeconds > 0 ? 2 : 0,
      Math.ceil(graceSeconds - (clock.monotonic() - startedMs) / 1000),
    );
    try {
      await runtime.stopContainer(run.id, Math.min(leftSeconds, Math.max(graceSeconds, 0) || leftSeconds));
      const status = await runtime.containerStatus(run.id);
      if (record.current?.id === run.id && record.current.state !== "exited") {
        this.runChanged(container.name, { ...status, sandboxId: run.sandboxId });
      }
    } catch (error) {
      if (!(error instanceof CriError && error.code === "NotFound")) throw error;
      this.runLost(container.name);
    }
  }

  // ---- reports

  #status(): PodStatus {
    return podStatus(this.#pod, this.state, {
      nowMs: this.#ports.clock.now(),
      hostIps: this.#ports.node().ips,
      terminationMessage: (id) => this.#terminationMessages.get(id),
      previous: this.#reported,
    });
  }

  /** Reports what has changed; changes that have more to follow wait a little for it. */
  #report(moreToCome: boolean): void {
    if (this.#removed || this.#stop.signal.aborted) return;
    const status = this.#status();
    const text = JSON.stringify(status);
    if (text === this.#reportedText) return;
    const early = status.phase === "Pending" &&
      (moreToCome ||
        (status.containerStatuses ?? []).every(({ state }) =>
          state?.waiting?.reason === "ContainerCreating"
        ));
    if (early || (status.phase === "Running" && moreToCome)) {
      this.#reportTimer ??= this.#ports.clock.timer(reportDelayMs, () => {
        this.#reportTimer = undefined;
        this.#report(false);
      });
      if (early && moreToCome || status.phase === "Running") return;
      if (this.#reportTimer) return;
    }
    this.#reportTimer?.cancel();
    this.#reportTimer = undefined;
    this.#reportedText = text;
    this.#reported = status;
    this.#ports.report(this.#pod, status);
  }

  #event(
    container: Container | undefined,
    type: "Normal" | "Warning",
    reason: string,
    message: string,
    fieldPath?: string,
  ): void {
    const init = container && (this.#pod.spec.initContainers ?? []).includes(container);
    const path = fieldPath ??
      (container ? `spec.${init ? "initContainers" : "containers"}{${container.name}}` : undefined);
    this.#ports.event(this.#pod, { type, reason, message, fieldPath: path });
  }

  #mountFailed(volume: string, message: string): void {
    const text = volume === "" ? message : `MountVolume.SetUp failed for volume "${volume}" : ${message}`;
    this.#event(undefined, "Warning", "FailedMount", text);
  }

  #podIps(): string[] {
    return this.#pod.spec.hostNetwork ? this.#ports.node().ips : this.state.sandbox?.ips ?? [];
  }

  /** True when the runtime cannot be reached: wait for it, nothing is wrong with the pod. */
  #runtimeAway(error: unknown): boolean {
    if (!(error instanceof CriError) || error.code !== "Unavailable") return false;
    this.#unsure = true;
    this.#log.debug("Container runtime is away", { error: errorText(error) });
    this.#wakeIn(retryBaseMs);
    return true;
  }

  #retryDelay(failures: number, baseMs: number): number {
    return Math.min(retryMaxMs, baseMs * 2 ** Math.min(failures, 20));
  }

  #wakeAt(...times: (number | undefined)[]): void {
    const known = times.filter((time): time is number => time !== undefined);
    this.#wakeTimer?.cancel();
    this.#wakeTimer = undefined;
    if (known.length === 0) return;
    this.#wakeIn(Math.max(0, Math.min(...known) - this.#ports.clock.now()));
  }

  #wakeIn(ms: number): void {
    this.#wakeTimer?.cancel();
    this.#wakeTimer = this.#ports.clock.timer(ms, () => {
      const dueMs = Math.min(this.volumes.refreshAtMs ?? Infinity, this.#volumesRetryAtMs ?? Infinity);
      if (dueMs <= this.#ports.clock.now()) {
        this.#volumesDirty = true;
        this.#volumesRetryAtMs = undefined;
      }
      this.#cause.notify();
    });
  }

  /** The newest run of a container in the sandbox in force. */
  runOf(name: string): ContainerRun | undefined {
    const record = this.state.containers.get(name);
    return record && (inSandbox(this.state, record) ?? record.current);
  }
}

function absolute(path: string): string {
  return path.startsWith("/") ? path : `/${path}`;
}

/** Go's duration text of whole seconds: `10s`, `1m20s`, `5m0s`. */
function duration(ms: number): string {
  const seconds = Math.round(ms / 1000);
  return seconds < 60 ? `${seconds}s` : `${Math.floor(seconds / 60)}m${seconds % 60}s`;
}
