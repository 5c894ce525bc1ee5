/** What a worker knows of its pod's sandbox and containers; rebuilt from the runtime after every restart. */
import type { RuntimeContainerStatus } from "../../cri/runtime.ts";
import type { Container, Pod } from "../../kube/types.ts";

/** Labels and annotations that the runtime keeps for us; the kubelet's own names, so that tools find our containers. */
export const podNameLabel = "io.kubernetes.pod.name";
export const podNamespaceLabel = "io.kubernetes.pod.namespace";
export const podUidLabel = "io.kubernetes.pod.uid";
export const containerNameLabel = "io.kubernetes.container.name";
export const imageAnnotation = "kubeedge.io/image";
export const terminationPathAnnotation = "io.kubernetes.container.terminationMessagePath";
export const terminationPolicyAnnotation = "io.kubernetes.container.terminationMessagePolicy";
/** Where the termination message lies on the host. */
export const terminationFileAnnotation = "kubeedge.io/termination-message-file";
/** Root directory of the agent that made the sandbox: two agents on one runtime leave each other's pods alone. */
export const agentAnnotation = "kubeedge.io/agent";
export const graceAnnotation = "io.kubernetes.pod.terminationGracePeriod";

export interface SandboxState {
  id: string;
  attempt: number;
  ready: boolean;
  ips: string[];
  createdMs: number;
}

/** One run of a container. */
export type ContainerRun = Pick<
  RuntimeContainerStatus,
  | "id"
  | "sandboxId"
  | "attempt"
  | "state"
  | "startedMs"
  | "finishedMs"
  | "exitCode"
  | "reason"
  | "message"
  | "image"
  | "imageRef"
  | "annotations"
  | "logPath"
>;

/** The agent was killed while it waited for the start: containerd breaks it off with its caller, and nothing ran. */
export function startBrokenOff({ state, reason, startedMs, message }: ContainerRun): boolean {
  return state === "exited" && reason === "StartError" && startedMs === 0 &&
    /context canceled$/.test(message);
}

export interface ContainerRecord {
  name: string;
  /** The newest run. */
  current: ContainerRun | undefined;
  /** The run before. */
  previous: ContainerRun | undefined;
  /** Why it is not started. */
  waiting: { reason: string; message?: string } | undefined;
  /** Crash back-off: length of the last one, and when it was taken (ms since 1970). */
  backoffMs: number;
  backoffAtMs: number;
  /** Earliest next try after a failed create, start or pull. */
  retryAtMs: number;
  failures: number;
  startupDone: boolean;
  ready: boolean;
  /** A probe wants it restarted: why. */
  killReason: string | undefined;
}

export interface PodState {
  sandbox: SandboxState | undefined;
  /** The sandbox cannot be made: next try. */
  sandboxRetryAtMs: number;
  sandboxFailures: number;
  containers: Map<string, ContainerRecord>;
  startedMs: number | undefined;
  /** The pod is over for good (phase, reason, message). */
  ended: { phase: "Succeeded" | "Failed"; reason?: string; message?: string } | undefined;
}

export function newPodState(): PodState {
  return {
    sandbox: undefined,
    sandboxRetryAtMs: 0,
    sandboxFailures: 0,
    containers: new Map(),
    startedMs: undefined,
    ended: undefined,
  };
}

export function recordOf(state: PodState, name: string): ContainerRecord {
  let record = state.containers.get(name);
  if (!record) {
    record = {
      name,
      current: undefined,
      previous: undefined,
      waiting: undefined,
      backoffMs: 0,
      backoffAtMs: 0,
      retryAtMs: 0,
      failures: 0,
      startupDone: false,
      ready: false,
      killReason: undefined,
    };
    state.containers.set(name, record);
  }
  return record;
}

export function podKey(pod: Pod): string {
  return `${pod.metadata.namespace ?? "default"}/${pod.metadata.name}`;
}
export function podUid(pod: Pod): string {
  return pod.metadata.uid ?? "";
}
/** A restartable init container. */
export function isSidecar(container: Container): boolean {
  return container.restartPolicy === "Always";
}
export function hashOf(container: Container): string {
  return container.image ?? "";
}
export function isTerminating(pod: Pod): boolean {
  return pod.metadata.deletionTimestamp !== undefined;
}
/** `2026-11-01T10:00:00Z`, as Kubernetes writes times. */
export function rfc3339(ms: number): string {
  return new Date(ms).toISOString().replace(/\.\d{3}Z$/, "Z");
}
