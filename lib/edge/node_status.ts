/** The node's own status: what it can take, how it is, what it runs on. Told when it changes, and every five minutes. */
import type { NodeCondition, NodeStatus, ResourceList } from "../kube/types.ts";
import { rfc3339 } from "./pod/state.ts";

/** Kubernetes' nodeStatusReportFrequency, ms. */
export const nodeStatusReportMs = 5 * 60_000;

export interface MachineFacts {
  machineId: string;
  systemUuid: string;
  bootId: string;
  kernelVersion: string;
  osImage: string;
  architecture: string;
  cpuCount: number;
  memoryBytes: number;
  diskBytes: number;
  /** Primary first. */
  ips: string[];
}
export interface NodeHealth {
  /** Why the node cannot run pods; undefined: it can. */
  notReady: string | undefined;
  memoryFreeBytes: number;
  diskFreeShare: number;
  runtime: { name: string; version: string };
}

/** Eviction thresholds of the kubelet (memory.available<100Mi, nodefs.available<10%): conditions only, for now. */
const memoryFreeBytesLeast = 100 * 1024 * 1024;
const diskFreeShareLeast = 0.1;

export function nodeCapacity(
  facts: MachineFacts,
  maxPods: number,
): { capacity: ResourceList; allocatable: ResourceList } {
  const capacity: ResourceList = {
    cpu: String(facts.cpuCount),
    memory: `${Math.floor(facts.memoryBytes / 1024)}Ki`,
    "ephemeral-storage": `${Math.floor(facts.diskBytes / 1024)}Ki`,
    "hugepages-1Gi": "0",
    "hugepages-2Mi": "0",
    pods: String(maxPods),
  };
  const allocatable = {
    ...capacity,
    memory: `${Math.floor((facts.memoryBytes - memoryFreeBytesLeast) / 1024)}Ki`,
    "ephemeral-storage": String(Math.floor(facts.diskBytes * (1 - diskFreeShareLeast))),
  };
  return { capacity, allocatable };
}

export interface NodeStatusInput {
  facts: MachineFacts;
  health: NodeHealth;
  maxPods: number;
  kubeletVersion: string;
  nowMs: number;
  previous: NodeStatus | undefined;
}

export function nodeStatus(
  { facts, health, maxPods, kubeletVersion, nowMs, previous }: NodeStatusInput,
): NodeStatus {
  const condition = (type: string, on: boolean, reason: string, message: string): NodeCondition => {
    const status = on ? "True" : "False";
    const before = previous?.conditions?.find((old) => old.type === type);
    const lastTransitionTime = before?.status === status && before.lastTransitionTime
      ? before.lastTransitionTime
      : rfc3339(nowMs);
    return { type, status, lastHeartbeatTime: rfc3339(nowMs), lastTransitionTime, reason, message };
  };
  const memory = health.memoryFreeBytes < memoryFreeBytesLeast,
    disk = health.diskFreeShare < diskFreeShareLeast;
  return {
    ...nodeCapacity(facts, maxPods),
    addresses: facts.ips.map((address) => ({ type: "InternalIP", address })),
    conditions: [
      condition(
        "MemoryPressure",
        memory,
        memory ? "KubeletHasInsufficientMemory" : "KubeletHasSufficientMemory",
        `kubelet has ${memory ? "in" : ""}sufficient memory available`,
      ),
      condition(
        "DiskPressure",
        disk,
        disk ? "KubeletHasDiskPressure" : "KubeletHasNoDiskPressure",
        `kubelet has ${disk ? "" : "no "}disk pressure`,
      ),
      condition("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
      health.notReady === undefined
        ? condition("Ready", true, "KubeletReady", "kubelet is posting ready status")
        : condition("Ready", false, "KubeletNotReady", health.notReady),
    ],
    nodeInfo: {
      machineID: facts.machineId,
      systemUUID: facts.systemUuid,
      bootID: facts.bootId,
      kernelVersion: facts.kernelVersion,
      osImage: facts.osImage,
      containerRuntimeVersion: `${health.runtime.name}://${health.runtime.version}`,
      kubeletVersion,
      kubeProxyVersion: "",
      operatingSystem: "linux",
      architecture: facts.architecture,
    },
  };
}

/** Whether two statuses differ in more than their heartbeats. */
export function nodeStatusChanged(before: NodeStatus | undefined, after: NodeStatus): boolean {
  const bare = (status: NodeStatus | undefined) =>
    status &&
    JSON.stringify({
      ...status,
      conditions: status.conditions?.map(({ lastHeartbeatTime: _, ...rest }) => rest),
    });
  return bare(before) !== bare(after);
}
