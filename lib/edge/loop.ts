/**
 * EdgeCore: read this first. What flows through it:
 *
 *     cloud ══► Link ──► EdgeStore (SQLite) ──► Pods (one worker each) ──► container runtime (CRI)
 *                 ▲                                  │ ▲
 *                 └──── Outbox ◄── status, events ◄──┘ └── runtime events, relists
 *     cloud ══► streams of the session, and the admin socket ──► KubeletApi (logs, exec, stats)
 *
 * The parts know each other only here. Nothing below waits for the cloud: a node that starts cut off runs what its
 * store holds.
 */
import type { Clock, Random } from "../core/clock.ts";
import { errorText } from "../core/errors.ts";
import type { Logger } from "../core/log.ts";
import type { Metrics } from "../core/metrics.ts";
import { kubeletVersion, version } from "../core/version.ts";
import { readCertificate } from "../crypto/x509.ts";
import type { ContainerRuntime, RuntimeInfo } from "../cri/runtime.ts";
import type { ConfigMap, NodeStatus, Pod, Secret, Service } from "../kube/types.ts";
import type { Change } from "../wire/edge_session.ts";
import { Events } from "./events.ts";
import type { Identity } from "./identity.ts";
import type { KubeletApi } from "./kubelet/api.ts";
import type { Exchange } from "./kubelet/exchange.ts";
import type { LogRotation } from "./kubelet/log_rotation.ts";
import { type Connect, Link } from "./link.ts";
import {
  type MachineFacts,
  nodeCapacity,
  nodeStatus,
  nodeStatusChanged,
  nodeStatusReportMs,
} from "./node_status.ts";
import { Outbox } from "./outbox.ts";
import { Pods } from "./pod/pods.ts";
import type {
  BoundToken,
  Lookup,
  NodeFacts,
  PodCgroups,
  PodFiles,
  PodOptions,
  Prober,
  TokenSpec,
} from "./pod/ports.ts";
import { podUid } from "./pod/state.ts";
import type { StorePort } from "./store/port.ts";
import { EdgeStore } from "./store/store.ts";

/** Comparison with the runtime in case an event was lost, ms. Events do the work; the kubelet relists every second. */
const relistMs = 60_000;
/** Look at the machine and the runtime, ms. */
const healthMs = 10_000;
/** Before the runtime is asked again after it went away. */
const runtimeRetryMs = 500;
const syncedPods = "synced pods";

export interface EdgeOptions extends PodOptions {
  maxPods: number;
  /** Given address of the node in place of the machine's own. */
  nodeIp: string | undefined;
}
export interface EdgePorts {
  identity: Identity;
  saveIdentity: (identity: Identity) => void;
  storePort: StorePort;
  runtime: ContainerRuntime;
  connect: Connect;
  files: PodFiles;
  cgroups: PodCgroups;
  prober: Prober;
  machine: () => MachineFacts;
  /** Free memory (bytes) and share of free disk below the root directory. */
  headroom: () => { memoryFreeBytes: number; diskFreeShare: number };
  kubelet: (
    core: { pods: Pods; nodeName: () => string; health: () => string | undefined },
  ) => { api: KubeletApi; rotation: LogRotation };
  clock: Clock;
  random: Random;
  log: Logger;
  metrics: Metrics;
}

export class EdgeCore {
  readonly #ports: EdgePorts;
  readonly #options: EdgeOptions;
  readonly #store: EdgeStore;
  readonly #outbox: Outbox;
  readonly #link: Link;
  readonly #events: Events;
  readonly #pods: Pods;
  readonly #kubelet: KubeletApi;
  readonly #stop = new AbortController();
  readonly #tasks: Promise<unknown>[] = [];
  #facts: MachineFacts;
  #runtime: RuntimeInfo | undefined;
  #runtimeError = "the container runtime has not answered yet";
  #adopted = false;
  #orphansRemoved = false;
  #nodeStatus: NodeStatus | undefined;
  #nodeStatusMs = 0;

  private constructor(
    ports: EdgePorts,
    options: EdgeOptions,
    store: EdgeStore,
    reports: ConstructorParameters<typeof Outbox>[0],
  ) {
    const { identity, clock, random, log, metrics, runtime, files, cgroups, prober } = ports;
    this.#ports = ports;
    this.#options = options;
    this.#store = store;
    this.#facts = ports.machine();
    this.#outbox = new Outbox(reports, {
      write: (write) => store.write(write),
      clock,
      wake: () => this.#link?.pump(),
    });
    this.#events = new Events({
      node: identity.node,
      put: (report) => this.#outbox.put(report),
      clock,
      random,
    });
    this.#pods = new Pods({
      runtime,
      files,
      cgroups,
      prober,
      clock,
      random,
      log,
      options,
      objects: {
        get: <T>(kind: "secrets" | "configmaps", namespace: string, name: string) =>
          this.#lookup<T>(kind, `${namespace}/${name}`),
        services: (namespace) => this.#services(namespace),
      },
      requestToken: (namespace, account, spec) => this.#requestToken(namespace, account, spec),
      report: (pod, status) => this.#outbox.put({ report: "podStatus", ...nameOf(pod), status }),
      gone: (pod) => this.#outbox.put({ report: "podGone", ...nameOf(pod) }),
      event: (pod, event) => this.#events.pod(pod, event),
      node: () => this.#nodeFacts(),
    });
    const { api, rotation } = ports.kubelet({
      pods: this.#pods,
      nodeName: () => identity.node,
      health: () => this.ready(),
    });
    this.#kubelet = api;
    this.#tasks.push(rotation.run(this.#stop.signal));
    this.#link = new Link(identity, {
      connect: ports.connect,
      store,
      outbox: () => this.#outbox,
      saveIdentity: ports.saveIdentity,
      clock,
      random,
      log,
      agent: version,
      changed: (change) => this.#changed(change),
      connected: () => this.#reportNode(true),
      synced: (kind) => this.#synced(kind),
      streamOpened: (stream, open) => {
        void this.serve({
          ...open,
          readable: stream.readable,
          writable: stream.writable,
          sendHead: (head) => stream.sendHead(head),
          reset: (reason) => stream.reset(reason),
        });
      },
      dismissed: (reason) => this.#dismissed(reason),
    });
    metrics.gauge("kubeedge_edge_pods", "Pods of this node.").from(() => this.#pods.size);
    metrics.gauge("kubeedge_edge_connected", "1 while the session with the cloud is live.").from(() =>
      this.#link.live ? 1 : 0
    );
    metrics.gauge("kubeedge_edge_outbox_reports", "Reports that the cloud does not have yet.").from(() =>
      this.#outbox.size
    );
    metrics.gauge("kubeedge_edge_store_commits_total", "Transactions of the store since the start.").from(
      () => store.commits,
    );
    metrics.gauge("kubeedge_edge_store_bytes", "Size of the store's file.").from(() => store.bytes);
  }

  static async start(ports: EdgePorts, options: EdgeOptions): Promise<EdgeCore> {
    const { log, clock, identity } = ports;
    const { store, reports } = await EdgeStore.open(ports.storePort, ports);
    if (store.damaged !== undefined) {
      log.error(
        "The store was damaged and put aside; running pods go on, the rest comes again from the cloud",
        { path: store.damaged },
      );
    }
    if (store.meta("cluster") !== undefined && store.meta("cluster") !== identity.cluster) {
      log.warn("The store is another cluster's; its pods end here", {
        from: store.meta("cluster") ?? "",
        to: identity.cluster,
      });
      store.clear();
      for (const { slot } of reports.splice(0)) store.write({ write: "forget", slot });
    }
    store.setMeta("cluster", identity.cluster);
    const core = new EdgeCore(ports, options, store, reports);
    core.#tasks.push(core.#runRuntime(), core.#link.run());
    core.#every(1000, () => core.#link.tick());
    core.#every(healthMs, () => core.#look());
    core.#every(relistMs, () => core.#adopted ? core.#pods.relist() : undefined);
    log.info("EdgeCore runs", {
      node: identity.node,
      version,
      count: store.list("pods").length,
      ms: clock.monotonic() | 0,
    });
    return core;
  }

  /** Why the agent is not ready, or undefined. */
  ready(): string | undefined {
    return this.#store.failure !== undefined
      ? `the store cannot be written: ${this.#store.failure}`
      : this.#runtimeProblem();
  }

  /** One request of the kubelet's API, from the cloud or from the admin socket. */
  async serve(exchange: Exchange): Promise<void> {
    await this.#kubelet.serve(exchange);
  }

  /** For `edge status`. */
  status(): unknown {
    const pods = this.#pods.list();
    const { state, url, sinceMs, roundTripMs, lastError } = this.#link.status;
    return {
      node: this.#link.identity.node,
      agent: version,
      cloud: { state, url, sinceMs, roundTripMs, lastError },
      runtime: {
        name: this.#runtime?.name ?? "",
        version: this.#runtime?.version ?? "",
        ready: this.#runtimeProblem() === undefined,
        message: this.#runtimeProblem() ?? "",
      },
      pods: { running: pods.filter(({ status }) => status.phase === "Running").length, total: pods.length },
      outbox: { count: this.#outbox.size },
      certificate: { notAfterMs: readCertificate(this.#link.identity.certificate).notAfterMs },
      store: { bytes: this.#store.bytes, commits: this.#store.commits },
    };
  }
  pods(): Pod[] {
    return this.#pods.list().map(({ pod, status }) => ({ ...pod, status }));
  }

  /** Containers run on. */
  async close(): Promise<void> {
    this.#stop.abort(new Error("the agent stops"));
    this.#pods.stop();
    this.#link.stop();
    await Promise.allSettled(this.#tasks);
    await this.#store.close();
  }

  // ---- the cloud's side

  #changed(change: Change): void {
    const { kind, key, uid } = change;
    if (kind === "pods") {
      if (!this.#adopted) return; // all pods are set once the runtime was looked at
      const held = this.#store.get<Pod>("pods", key);
      if (held?.object) this.#setPod(held.object);
      else this.#dropPod(key, uid);
      return;
    }
    if (kind !== "secrets" && kind !== "configmaps") return;
    const slash = key.indexOf("/");
    this.#pods.referenceChanged(kind, key.slice(0, slash), key.slice(slash + 1));
  }

  #setPod(pod: Pod): void {
    const uid = podUid(pod);
    // Another object took the name: the former one is gone.
    for (const { pod: other } of this.#pods.list()) {
      if (
        nameOf(other).namespace === nameOf(pod).namespace && other.metadata.name === pod.metadata.name &&
        podUid(other) !== uid
      ) {
        this.#forget(podUid(other));
      }
    }
    const status = this.#outbox.lastStatus(uid) ?? pod.status;
    this.#pods.setPod(status ? { ...pod, status } : pod);
  }

  #dropPod(key: string, uid: string): void {
    for (const { pod } of this.#pods.list()) {
      const { namespace, name } = nameOf(pod);
      if (`${namespace}/${name}` === key && (uid === "" || podUid(pod) === uid)) this.#forget(podUid(pod));
    }
  }
  #forget(uid: string): void {
    this.#pods.removePod(uid);
    this.#outbox.forget(uid);
  }

  #synced(kind: string): void {
    if (kind !== "pods") return;
    this.#store.setMeta(syncedPods, "true");
    void this.#removeOrphans();
  }

  #dismissed(reason: string): void {
    const { log } = this.#ports;
    const pods = this.#store.list<Pod>("pods");
    if (pods.length > 0) {
      log.warn("Stopping the pods of this node: the cloud gave it up", { count: pods.length, reason });
    }
    for (const kind of this.#store.kinds()) {
      for (const [key, uid] of this.#store.entries(kind)) {
        const change: Change = { change: "drop", kind, key, uid, version: "", json: new Uint8Array(0) };
        this.#store.apply(change);
        this.#changed(change);
      }
    }
  }

  async #requestToken(namespace: string, serviceAccount: string, spec: TokenSpec): Promise<BoundToken> {
    const answer = await this.#link.request({ request: "token", namespace, serviceAccount, spec });
    if ("failed" in answer) throw new Error(answer.failed);
    const { token, expirationTimestamp, message } = answer.body as {
      token?: string;
      expirationTimestamp?: string;
      message?: string;
    };
    if (answer.status >= 400 || token === undefined) throw new Error(message ?? `status ${answer.status}`);
    return { token, expiresMs: Date.parse(expirationTimestamp ?? "") };
  }

  #lookup<T>(kind: "secrets" | "configmaps", key: string): Lookup<T> {
    const held = this.#store.get<Secret & ConfigMap>(kind, key);
    if (!held) return { state: "unknown" };
    return held.object ? { state: "present", object: held.object as unknown as T } : { state: "absent" };
  }

  #services(namespace: string): Service[] {
    return this.#store.list<Service>("services").filter(({ metadata }) =>
      metadata.namespace === namespace || (metadata.namespace === "default" && metadata.name === "kubernetes")
    );
  }

  // ---- the runtime's side

  async #runRuntime(): Promise<void> {
    const { runtime, log, clock } = this.#ports;
    const { signal } = this.#stop;
    while (!signal.aborted) {
      try {
        const events = new AbortController();
        const end = () => events.abort(signal.reason);
        signal.addEventListener("abort", end, { once: true });
        this.#runtime = await runtime.info();
        // Subscribed before the list: nothing falls between the two.
        const listening = this.#listen(events.signal);
        if (!this.#adopted) await this.#adopt();
        else await this.#pods.relist();
        this.#reportNode(false);
        await listening;
        signal.removeEventListener("abort", end);
        if (signal.aborted) return;
        throw new Error("the container runtime ended the flow of events");
      } catch (error) {
        if (signal.aborted) return;
        if (this.#runtime !== undefined) {
          log.warn("The container runtime went away; its containers run on", { error: errorText(error) });
        }
        this.#runtime = undefined;
        this.#runtimeError = errorText(error);
        this.#reportNode(false);
        await clock.sleep(runtimeRetryMs, signal).catch(() => {});
      }
    }
  }

  async #listen(signal: AbortSignal): Promise<void> {
    for await (const event of this.#ports.runtime.events(signal)) {
      this.#pods.runtimeEvent(event).catch((error: unknown) => {
        this.#ports.log.debug("Cannot follow an event of the runtime; the relist will", {
          error: errorText(error),
        });
      });
    }
  }

  async #adopt(): Promise<void> {
    await this.#pods.adopt();
    this.#adopted = true;
    for (const pod of this.#store.list<Pod>("pods")) this.#setPod(pod);
    if (this.#store.meta(syncedPods) === "true") void this.#removeOrphans();
  }

  /** Once, when the desired pods and the running ones are both known. */
  async #removeOrphans(): Promise<void> {
    if (this.#orphansRemoved || !this.#adopted) return;
    this.#orphansRemoved = true;
    await this.#pods.removeOrphans().catch((error: unknown) => {
      this.#orphansRemoved = false;
      this.#ports.log.warn("Cannot remove orphaned pods", { error: errorText(error) });
    });
  }

  // ---- the node

  #runtimeProblem(): string | undefined {
    if (!this.#runtime) return `container runtime is down: ${this.#runtimeError}`;
    if (!this.#runtime.ready) return `container runtime is not ready: ${this.#runtime.message}`;
    if (!this.#runtime.networkReady) return `container runtime network not ready: ${this.#runtime.message}`;
    return undefined;
  }

  async #look(): Promise<void> {
    this.#facts = this.#ports.machine();
    if (this.#runtime) {
      this.#runtime = await this.#ports.runtime.info().catch((error: unknown) => {
        this.#runtimeError = errorText(error);
        return undefined;
      });
    }
    this.#reportNode(false);
  }

  /** Tells the node's status when it has changed, when it is due, or always. */
  #reportNode(always: boolean): void {
    const { clock } = this.#ports;
    const nowMs = clock.now();
    const status = nodeStatus({
      facts: this.#ownFacts(),
      health: {
        notReady: this.#runtimeProblem(),
        ...this.#ports.headroom(),
        runtime: this.#runtime ?? { name: "containerd", version: "unknown" },
      },
      maxPods: this.#options.maxPods,
      kubeletVersion,
      nowMs,
      previous: this.#nodeStatus,
    });
    const due = nowMs - this.#nodeStatusMs >= nodeStatusReportMs;
    if (!always && !due && !nodeStatusChanged(this.#nodeStatus, status)) return;
    this.#nodeStatus = status;
    this.#nodeStatusMs = nowMs;
    this.#outbox.put({ report: "nodeStatus", status });
  }

  #ownFacts(): MachineFacts {
    const { nodeIp } = this.#options;
    return nodeIp === undefined
      ? this.#facts
      : { ...this.#facts, ips: [nodeIp, ...this.#facts.ips.filter((ip) => ip !== nodeIp)] };
  }

  #nodeFacts(): NodeFacts {
    const facts = this.#ownFacts();
    const { allocatable } = nodeCapacity(facts, this.#options.maxPods);
    return { name: this.#link.identity.node, ips: facts.ips, allocatable, memoryBytes: facts.memoryBytes };
  }

  #every(ms: number, task: () => unknown): void {
    const { clock, log } = this.#ports;
    const turns = async () => {
      while (!this.#stop.signal.aborted) {
        await clock.sleep(ms, this.#stop.signal);
        await Promise.resolve(task()).catch((error: unknown) =>
          log.debug("A periodic task failed", { error: errorText(error) })
        );
      }
    };
    this.#tasks.push(turns().catch(() => {})); // stopped
  }
}

function nameOf(pod: Pod): { namespace: string; name: string; uid: string } {
  return { namespace: pod.metadata.namespace ?? "default", name: pod.metadata.name, uid: podUid(pod) };
}
