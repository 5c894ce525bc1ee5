/** What the kubelet's API asks of the rest of the agent and of the machine. */
import type { Clock } from "../../core/clock.ts";
import type { Logger } from "../../core/log.ts";
import type { ContainerRuntime, ContainerState } from "../../cri/runtime.ts";
import type { Container, Pod, PodStatus } from "../../kube/types.ts";
import type { LogFiles } from "./log_reader.ts";
import type { Connection } from "./tunnel.ts";

/** One run of a container, as lib/edge/pod keeps it. */
export interface RunView {
  id: string;
  attempt: number;
  state: ContainerState;
  /** ms since 1970; 0 when it never ran. */
  startedMs: number;
  imageRef: string;
  /** Empty until the runtime was asked. */
  logPath: string;
}

export interface PodView {
  readonly pod: Pod;
  readonly status: PodStatus;
  readonly state: {
    readonly sandbox: { id: string; ready: boolean; createdMs: number } | undefined;
    readonly containers: ReadonlyMap<string, { current: RunView | undefined; previous: RunView | undefined }>;
  };
}

/** The pods of this node; `Pods` of lib/edge/pod fits. */
export interface PodIndex {
  find(namespace: string, name: string): PodView | undefined;
  list(): readonly { pod: Pod; status: PodStatus }[];
}

/** Bytes and inodes of a mounted file system. */
export interface FileSystemFigures {
  availableBytes: number;
  capacityBytes: number;
  usedBytes: number;
  inodesFree: number;
  inodes: number;
  inodesUsed: number;
}

export interface InterfaceFigures {
  name: string;
  rxBytes: number;
  rxErrors: number;
  txBytes: number;
  txErrors: number;
}

/** The machine as a whole. */
export interface NodeFigures {
  /** ms since 1970. */
  timeMs: number;
  bootMs: number;
  cpuCoreNanoSeconds: number;
  memory: {
    availableBytes: number;
    usageBytes: number;
    workingSetBytes: number;
    rssBytes: number;
    pageFaults: number;
    majorPageFaults: number;
  };
  swap: { availableBytes: number; usageBytes: number };
  /** Of the agent's root directory. */
  fileSystem: FileSystemFigures;
  /** The one with the default route; undefined where there is none. */
  defaultInterface: string | undefined;
  interfaces: InterfaceFigures[];
  processes: { most: number; running: number };
}

export interface StatsPorts {
  nodeName: () => string;
  pods: PodIndex;
  runtime: Pick<ContainerRuntime, "stats" | "imageFsPath">;
  /** Throws when the machine does not tell. */
  nodeStats(): Promise<NodeFigures>;
  /** Undefined when the path is not there. */
  fileSystem(path: string): Promise<FileSystemFigures | undefined>;
  files: {
    stat(path: string): Promise<{ bytes: number } | undefined>;
    list(directory: string): Promise<string[]>;
  };
  clock: Clock;
  log: Logger;
  /** `/var/log/pods`. */
  logDir: string;
}

export interface KubeletPorts extends StatsPorts {
  runtime: Pick<ContainerRuntime, "stats" | "imageFsPath" | "exec" | "attach" | "portForward" | "execSync">;
  files: LogFiles & StatsPorts["files"];
  dial(host: string, port: number): Promise<Connection>;
  /** Text of /metrics. */
  metrics: () => string;
  /** Why the agent is not healthy. */
  health: () => string | undefined;
  /** For /configz; nothing secret. */
  config: () => Record<string, unknown>;
}

export function allContainers({ spec }: Pod): Container[] {
  return [...(spec.initContainers ?? []), ...spec.containers, ...(spec.ephemeralContainers ?? [])];
}

/** Directory of all logs of a container (pkg/kubelet/kuberuntime: BuildContainerLogsDirectory). */
export function containerLogDirectory({ metadata }: Pod, container: string, logDir: string): string {
  return `${logDir}/${metadata.namespace ?? "default"}_${metadata.name}_${metadata.uid ?? ""}/${container}`;
}

export function runLogPath(pod: Pod, container: string, run: RunView, logDir: string): string {
  return run.logPath || `${containerLogDirectory(pod, container, logDir)}/${run.attempt}.log`;
}

/** For LogRotation: the running containers and the files they write to. */
export function* runningLogs(pods: PodIndex, logDir: string): Generator<{ id: string; logPath: string }> {
  for (const { pod } of pods.list()) {
    const view = pods.find(pod.metadata.namespace ?? "default", pod.metadata.name);
    for (const [name, { current }] of view?.state.containers ?? []) {
      if (current?.state === "running") {
        yield { id: current.id, logPath: runLogPath(pod, name, current, logDir) };
      }
    }
  }
}
