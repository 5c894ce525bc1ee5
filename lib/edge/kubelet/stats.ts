/**
 * What the node and its pods use: /stats/summary (k8s.io/kubelet/pkg/apis/stats/v1alpha1) and the counters behind
 * /metrics/resource. Nothing is sampled while nobody asks.
 */
import { errorText } from "../../core/errors.ts";
import type { ContainerStats } from "../../cri/runtime.ts";
import { parseQuantity } from "../../kube/quantity.ts";
import type { Pod } from "../../kube/types.ts";
import { containerNameLabel, podNameLabel, podNamespaceLabel, rfc3339 } from "../pod/state.ts";
import {
  allContainers,
  containerLogDirectory,
  type FileSystemFigures,
  type NodeFigures,
  type PodView,
  type RunView,
  type StatsPorts,
} from "./ports.ts";

/** Below it a difference of two samples is mostly noise. */
const rateLeastMs = 200;
/** Beyond it the former sample says nothing of the present. */
const rateMostMs = 60_000;
/** Between the two samples for the one who asks first. */
const firstRateMs = 500;

/** One running container of a known pod. */
export interface ContainerCounters {
  container: string;
  run: RunView;
  stats: ContainerStats;
}
export interface PodCounters {
  view: PodView;
  containers: ContainerCounters[];
}
export interface Counters {
  /** Undefined when the machine or the runtime did not tell. */
  node: NodeFigures | undefined;
  pods: PodCounters[];
  failed: boolean;
}

export class Stats {
  readonly #ports: StatsPorts;
  readonly #cpu = new RateMeter();
  #sampling: Promise<Counters> | undefined;

  constructor(ports: StatsPorts) {
    this.#ports = ports;
  }

  /** A fresh sample; who asks meanwhile gets the same one. */
  counters(): Promise<Counters> {
    this.#sampling ??= this.#sample().finally(() => {
      this.#sampling = undefined;
    });
    return this.#sampling;
  }

  /** Throws when the machine or the runtime does not tell. */
  async summary(): Promise<object> {
    let counters = await this.counters();
    if (!counters.failed && !this.#cpu.complete) {
      await this.#ports.clock.sleep(firstRateMs);
      counters = await this.counters();
    }
    const { node, pods, failed } = counters;
    if (!node || failed) throw new Error("the container runtime or the machine does not tell its figures");
    const imagePath = await this.#ports.runtime.imageFsPath().catch(() => undefined);
    const images = imagePath === undefined ? undefined : await this.#ports.fileSystem(imagePath);
    return {
      node: this.#node(node, images),
      pods: await Promise.all(pods.map((pod) => this.#pod(pod, { node, images: images ?? node.fileSystem }))),
    };
  }

  async #sample(): Promise<Counters> {
    const { runtime, nodeStats, pods, log } = this.#ports;
    const [node, stats] = await Promise.allSettled([nodeStats(), runtime.stats()]);
    for (const result of [node, stats]) {
      if (result.status === "rejected") {
        log.warn("Cannot take statistics", { error: errorText(result.reason) });
      }
    }
    const byView = new Map<PodView, ContainerCounters[]>();
    for (const container of stats.status === "fulfilled" ? stats.value : []) {
      const { labels } = container;
      const view = pods.find(labels[podNamespaceLabel] ?? "", labels[podNameLabel] ?? "");
      const name = labels[containerNameLabel] ?? container.name;
      const run = view?.state.containers.get(name)?.current;
      if (!view || run?.id !== container.containerId || run.state !== "running") continue;
      const list = byView.get(view) ?? [];
      byView.set(view, [...list, { container: name, run, stats: container }]);
    }
    const figures = node.status === "fulfilled" ? node.value : undefined;
    this.#cpu.begin();
    if (figures) this.#cpu.add("", figures.timeMs, figures.cpuCoreNanoSeconds);
    for (const { stats } of [...byView.values()].flat()) {
      if (stats.cpuCoreNanoSeconds !== undefined) {
        this.#cpu.add(stats.containerId, stats.timestampMs, stats.cpuCoreNanoSeconds);
      }
    }
    this.#cpu.end();
    return {
      node: figures,
      pods: [...byView].map(([view, containers]) => ({ view, containers })),
      failed: node.status === "rejected" || stats.status === "rejected",
    };
  }

  #node(node: NodeFigures, images: FileSystemFigures | undefined): object {
    const time = rfc3339(node.timeMs);
    const { name, ...main } = node.interfaces.find(({ name }) => name === node.defaultInterface) ??
      { name: "" };
    return {
      nodeName: this.#ports.nodeName(),
      startTime: rfc3339(node.bootMs),
      cpu: {
        time,
        ...defined({ usageNanoCores: this.#cpu.rate("") }),
        usageCoreNanoSeconds: node.cpuCoreNanoSeconds,
      },
      memory: { time, ...node.memory },
      network: { time, name, ...main, interfaces: node.interfaces },
      fs: { time, ...node.fileSystem },
      runtime: images ? { imageFs: { time, ...images }, containerFs: { time, ...images } } : {},
      rlimit: { time, maxpid: node.processes.most, curproc: node.processes.running },
      swap: { time, swapAvailableBytes: node.swap.availableBytes, swapUsageBytes: node.swap.usageBytes },
    };
  }

  async #pod(
    { view, containers }: PodCounters,
    context: { node: NodeFigures; images: FileSystemFigures },
  ): Promise<object> {
    const { name, namespace = "default", uid = "" } = view.pod.metadata;
    const parts = await Promise.all(
      containers.map((counters) => this.#container(view.pod, counters, context)),
    );
    const timeMs = Math.max(0, ...containers.map(({ stats }) => stats.timestampMs));
    const time = rfc3339(timeMs);
    const sum = (read: (part: typeof parts[number]) => number | undefined) => {
      const values = parts.map(read).filter((value) => value !== undefined);
      return values.length === 0 ? undefined : values.reduce((total, value) => total + value, 0);
    };
    const { availableBytes, capacityBytes, inodes, inodesFree } = context.node.fileSystem;
    return {
      podRef: { name, namespace, uid },
      startTime: view.status.startTime ?? rfc3339(view.state.sandbox?.createdMs ?? 0),
      containers: parts,
      cpu: {
        time,
        ...defined({
          usageNanoCores: sum(({ cpu }) => cpu.usageNanoCores),
          usageCoreNanoSeconds: sum(({ cpu }) => cpu.usageCoreNanoSeconds),
        }),
      },
      memory: { time, ...defined({ workingSetBytes: sum(({ memory }) => memory.workingSetBytes) }) },
      "ephemeral-storage": {
        time,
        availableBytes,
        capacityBytes,
        usedBytes: sum(({ rootfs, logs }) => (rootfs.usedBytes ?? 0) + logs.usedBytes) ?? 0,
        inodesFree,
        inodes,
        inodesUsed: sum(({ rootfs, logs }) => (rootfs.inodesUsed ?? 0) + logs.inodesUsed) ?? 0,
      },
    };
  }

  async #container(
    pod: Pod,
    { container, run, stats }: ContainerCounters,
    { node, images }: { node: NodeFigures; images: FileSystemFigures },
  ) {
    const time = rfc3339(stats.timestampMs);
    const { cpuCoreNanoSeconds, memoryWorkingSetBytes } = stats;
    const limit = allContainers(pod).find(({ name }) => name === container)?.resources?.limits?.["memory"];
    const limitBytes = limit === undefined ? undefined : parseQuantity(limit);
    const availableBytes = limitBytes === undefined || memoryWorkingSetBytes === undefined
      ? undefined
      : Math.max(0, Math.floor(limitBytes) - memoryWorkingSetBytes);
    const logs = await this.#logs(containerLogDirectory(pod, container, this.#ports.logDir));
    return {
      name: container,
      startTime: rfc3339(run.startedMs),
      cpu: {
        time,
        ...defined({
          usageNanoCores: this.#cpu.rate(stats.containerId),
          usageCoreNanoSeconds: cpuCoreNanoSeconds,
        }),
      },
      memory: { time, ...defined({ availableBytes, workingSetBytes: memoryWorkingSetBytes }) },
      rootfs: {
        time,
        ...space(images),
        ...defined({ usedBytes: stats.writableLayerBytes, inodesUsed: stats.writableLayerInodes }),
      },
      logs: { time, ...space(node.fileSystem), ...logs },
    };
  }

  async #logs(directory: string): Promise<{ usedBytes: number; inodesUsed: number }> {
    const { files } = this.#ports;
    const names = await files.list(directory);
    const sizes = await Promise.all(
      names.map(async (name) => (await files.stat(`${directory}/${name}`))?.bytes ?? 0),
    );
    return { usedBytes: sizes.reduce((total, bytes) => total + bytes, 0), inodesUsed: names.length };
  }
}

interface Counted {
  timeMs: number;
  total: number;
  rate: number | undefined;
}

/** How fast counters grow, per second, from the two newest samples that are far enough apart. */
export class RateMeter {
  #known = new Map<string, Counted>();
  #fresh = new Map<string, Counted>();

  /** Starts a sample. */
  begin(): void {
    this.#fresh = new Map();
  }

  add(key: string, timeMs: number, total: number): void {
    const former = this.#known.get(key);
    const ms = former ? timeMs - former.timeMs : Infinity;
    if (former && ms >= 0 && ms < rateLeastMs && total >= former.total) this.#fresh.set(key, former);
    else if (!former || ms < 0 || ms > rateMostMs || total < former.total) {
      this.#fresh.set(key, { timeMs, total, rate: undefined });
    } else this.#fresh.set(key, { timeMs, total, rate: Math.round((total - former.total) / ms * 1000) });
  }

  /** Ends a sample: what was not in it is forgotten. */
  end(): void {
    this.#known = this.#fresh;
  }

  rate(key: string): number | undefined {
    return this.#known.get(key)?.rate;
  }

  /** Every counter has a rate. */
  get complete(): boolean {
    return [...this.#known.values()].every(({ rate }) => rate !== undefined);
  }
}

function space({ availableBytes, capacityBytes, inodesFree, inodes }: FileSystemFigures) {
  return { availableBytes, capacityBytes, inodesFree, inodes };
}

type Defined<T> = { [K in keyof T]?: Exclude<T[K], undefined> };
function defined<T extends Record<string, number | undefined>>(fields: T): Defined<T> {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as Defined<T>;
}
