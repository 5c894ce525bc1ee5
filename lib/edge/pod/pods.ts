/**
 * All pods of the node: the front door of this folder. Start reading at worker.ts (one pod), then decide.ts (what
 * should happen next) and status.ts (what is told about it).
 *
 * Desired pods come from the store by `setPod` and `removePod`; the runtime's truth by `adopt` and `runtimeEvent`.
 */
import { errorText } from "../../core/errors.ts";
import { KeyedLock } from "../../core/queue.ts";
import type { CriEvent, RuntimeContainer, Sandbox } from "../../cri/runtime.ts";
import type { Pod, PodStatus } from "../../kube/types.ts";
import { Images } from "./images.ts";
import type { PodPorts } from "./ports.ts";
import { agentAnnotation, containerNameLabel, podKey, podUid, podUidLabel } from "./state.ts";
import { PodWorker, type WorkerContext } from "./worker.ts";

/** A pod whose containers cannot be looked at yet. */
const adoptRetryMs = 500;
/** Waits between looks at a container whose exit was told. */
const exitRetryMs = [5, 10, 20, 50, 100, 200, 500, 1000] as const;

interface RuntimeList {
  sandboxes: Sandbox[];
  containers: RuntimeContainer[];
}

export class Pods {
  readonly #ports: PodPorts;
  readonly #images: Images;
  readonly #workers = new Map<string, PodWorker>();
  /** Container id → pod uid. */
  readonly #owners = new Map<string, string>();
  /** Pods that wait for an older pod of the same name to be gone. */
  readonly #waiting = new Map<string, Pod>();
  readonly #relists = new KeyedLock();
  #adopted: RuntimeList | undefined;
  #stopped = false;

  constructor(ports: PodPorts) {
    this.#ports = ports;
    this.#images = new Images(ports);
  }

  /** Learns what runs. To be awaited before the first `setPod`, so that nothing is started twice. */
  async adopt(): Promise<void> {
    this.#adopted = await this.#list();
  }

  /** A pod is to run here, or has changed. */
  setPod(pod: Pod): void {
    const uid = podUid(pod);
    const worker = this.#workers.get(uid);
    if (worker) return worker.update(pod);
    const namesake = [...this.#workers.values()].find((other) => podKey(other.pod) === podKey(pod));
    if (namesake) {
      this.#waiting.set(uid, pod);
      return;
    }
    const context: WorkerContext = {
      ports: this.#ports,
      images: this.#images,
      compare: async (worker) => {
        const { sandboxes, containers } = await this.#list();
        await this.#compare(worker, sandboxes, containers);
      },
      containerMade: (id) => this.#owners.set(id, uid),
      finished: (done) => this.#finished(done),
    };
    const made = new PodWorker(pod, context);
    this.#workers.set(uid, made);
    void this.#start(made);
  }

  /** The object is gone from the API. */
  removePod(uid: string): void {
    this.#waiting.delete(uid);
    this.#workers.get(uid)?.remove();
  }

  /** The desired pods are all known: what runs for nobody is stopped and removed. */
  async removeOrphans(): Promise<void> {
    const { sandboxes } = await this.#list();
    for (const sandbox of sandboxes) {
      const uid = sandbox.labels[podUidLabel] ?? sandbox.podUid;
      if (this.#workers.has(uid)) continue;
      this.#ports.log.info("Removing a sandbox that belongs to no pod", {
        pod: `${sandbox.podNamespace}/${sandbox.podName}`,
        uid,
      });
      try {
        await this.#ports.runtime.stopSandbox(sandbox.id);
        await this.#ports.runtime.removeSandbox(sandbox.id);
        if (this.#workers.has(uid)) continue;
        await this.#ports.files.removeTree(`${this.#ports.options.rootDir}/pods/${uid}`);
        await this.#ports.files.removeTree(
          `${this.#ports.options.logDir}/${sandbox.podNamespace}_${sandbox.podName}_${uid}`,
        );
        await this.#ports.cgroups.remove({ uid });
      } catch (error) {
        this.#ports.log.warn("Cannot remove orphaned sandbox", { uid, error: errorText(error) });
      }
    }
  }

  referenceChanged(kind: string, namespace: string, name: string): void {
    for (const worker of this.#workers.values()) {
      if (worker.pod.metadata.namespace === namespace && refersTo(worker.pod, kind, name)) {
        worker.referenceChanged();
      }
    }
  }

  /** One event of the runtime. */
  async runtimeEvent(event: CriEvent): Promise<void> {
    const uid = this.#owners.get(event.containerId);
    const worker = uid !== undefined ? this.#workers.get(uid) : undefined;
    if (uid === undefined || !worker) {
      // A sandbox's own task: its end takes the pod's network away.
      const owner = [...this.#workers.values()].find((candidate) =>
        candidate.state.sandbox?.id === event.containerId
      );
      if (owner?.state.sandbox && event.type === "exit" && owner.phase === "running") {
        owner.sandboxChanged({ ...owner.state.sandbox, ready: false });
      }
      return;
    }
    if (event.type !== "exit") return;
    // The runtime's own books follow the same event, and may be a moment behind it.
    for (const delayMs of [...exitRetryMs, undefined]) {
      if (await this.#refresh(worker, event.containerId) === "exited" || delayMs === undefined) return;
      await this.#ports.clock.sleep(delayMs);
    }
  }

  /** Compares everything with the runtime: after lost events, and as a safety net. */
  async relist(): Promise<void> {
    await this.#relists.run("relist", async () => {
      const { sandboxes, containers } = await this.#list();
      for (const worker of this.#workers.values()) await this.#compare(worker, sandboxes, containers);
    });
  }

  list(): { pod: Pod; status: PodStatus }[] {
    return [...this.#workers.values()].map((worker) => ({ pod: worker.pod, status: worker.status }));
  }

  find(namespace: string, name: string): PodWorker | undefined {
    return [...this.#workers.values()].find(({ pod }) =>
      pod.metadata.name === name && pod.metadata.namespace === namespace
    );
  }

  get size(): number {
    return this.#workers.size;
  }

  /** The agent stops; containers run on. */
  stop(): void {
    this.#stopped = true;
    for (const worker of this.#workers.values()) worker.stop();
  }

  async #start(worker: PodWorker): Promise<void> {
    try {
      const list = this.#adopted;
      if (list && list.sandboxes.some((sandbox) => sandbox.podUid === podUid(worker.pod))) {
        await this.#compare(worker, list.sandboxes, list.containers);
      }
    } catch (error) {
      this.#ports.log.warn("Cannot adopt pod, looking again", {
        pod: podKey(worker.pod),
        error: errorText(error),
      });
      await this.#ports.clock.sleep(adoptRetryMs);
      // What was listed at the start may be gone by now.
      this.#adopted = await this.#list().catch(() => this.#adopted);
      if (!this.#stopped) return await this.#start(worker);
    }
    await worker.run();
  }

  #finished(worker: PodWorker): void {
    const uid = podUid(worker.pod);
    this.#workers.delete(uid);
    for (const [id, owner] of this.#owners) if (owner === uid) this.#owners.delete(id);
    for (const pod of [...this.#waiting.values()]) {
      if (podKey(pod) !== podKey(worker.pod)) continue;
      this.#waiting.delete(podUid(pod));
      this.setPod(pod);
    }
  }

  async #list(): Promise<RuntimeList> {
    const [sandboxes, containers] = await Promise.all([
      this.#ports.runtime.listSandboxes(),
      this.#ports.runtime.listContainers(),
    ]);
    const own = sandboxes.filter((sandbox) =>
      sandbox.annotations[agentAnnotation] === this.#ports.options.rootDir
    );
    return { sandboxes: own, containers };
  }

  async #compare(worker: PodWorker, sandboxes: Sandbox[], containers: RuntimeContainer[]): Promise<void> {
    const uid = podUid(worker.pod);
    const own = sandboxes.filter((sandbox) => sandbox.podUid === uid).sort((a, b) => b.attempt - a.attempt);
    const newest = own[0];
    const known = worker.state.sandbox;
    if (
      newest && (known?.id !== newest.id || known.ready !== newest.ready) &&
      newest.attempt >= (known?.attempt ?? 0)
    ) {
      const { ips, createdMs } = newest.ready
        ? await this.#ports.runtime.sandboxStatus(newest.id)
        : { ips: known?.ips ?? [], createdMs: newest.createdMs };
      worker.sandboxChanged({ id: newest.id, attempt: newest.attempt, ready: newest.ready, ips, createdMs });
    } else if (!newest && known?.ready) {
      worker.sandboxChanged({ ...known, ready: false });
    }
    const runs = containers.filter((container) => container.labels[podUidLabel] === uid).sort((a, b) =>
      a.attempt - b.attempt
    );
    for (const container of runs) {
      const name = container.labels[containerNameLabel] ?? container.name;
      this.#owners.set(container.id, uid);
      const record = worker.state.containers.get(name);
      const seen = [record?.current, record?.previous].find((run) => run?.id === container.id);
      if (seen && seen.state === container.state) continue;
      await this.#refresh(worker, container.id, container);
    }
    for (const record of worker.state.containers.values()) {
      if (record.current && !runs.some((run) => run.id === record.current?.id)) worker.runLost(record.name);
    }
  }

  async #refresh(worker: PodWorker, id: string, listed?: RuntimeContainer): Promise<string> {
    const status = await this.#ports.runtime.containerStatus(id);
    const name = status.labels[containerNameLabel] ?? status.name;
    const sandboxId = listed?.sandboxId ?? worker.state.containers.get(name)?.current?.sandboxId ??
      worker.state.sandbox?.id ?? "";
    worker.runChanged(name, { ...status, sandboxId });
    return status.state;
  }
}

/** Whether a pod uses the configMap or secret, by its spec's text: names are DNS names, so they stand in quotes. */
function refersTo(pod: Pod, kind: string, name: string): boolean {
  if (kind === "services") return false; // service variables are taken at start
  return JSON.stringify([
    pod.spec.volumes,
    pod.spec.containers,
    pod.spec.initContainers,
    pod.spec.imagePullSecrets,
  ]).includes(`"${name}"`);
}
