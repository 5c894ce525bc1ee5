/** The pod's status from what is known of it: a pure function, with the kubelet's phases, conditions and reasons. */
import type {
  Container,
  ContainerState,
  ContainerStatus,
  Pod,
  PodCondition,
  PodPhase,
  PodStatus,
} from "../../kube/types.ts";
import { qosClass } from "./config.ts";
import { inSandbox, restartPolicyOf, sandboxLostReason } from "./decide.ts";
import {
  type ContainerRecord,
  type ContainerRun,
  isSidecar,
  isTerminating,
  type PodState,
  recordOf,
  rfc3339,
} from "./state.ts";

export interface StatusContext {
  nowMs: number;
  hostIps: string[];
  /** Text of a termination message, by container id. */
  terminationMessage: (containerId: string) => string | undefined;
  /** The status reported before (or the API's, after a fresh start). */
  previous: PodStatus | undefined;
}

export function podStatus(pod: Pod, state: PodState, context: StatusContext): PodStatus {
  const inits = pod.spec.initContainers ?? [];
  const initStatuses = inits.map((container) => containerStatus(pod, container, state, context, true));
  const statuses = pod.spec.containers.map((container) =>
    containerStatus(pod, container, state, context, false)
  );
  const phase = phaseOf(pod, state, initStatuses, statuses, context.previous);
  const ips = pod.spec.hostNetwork ? context.hostIps : state.sandbox?.ips ?? [];
  const status: PodStatus = {
    ...(pod.metadata.generation !== undefined ? { observedGeneration: pod.metadata.generation } : {}),
    phase,
    conditions: conditions(pod, state, phase, initStatuses, statuses, context),
    hostIP: context.hostIps[0] ?? "",
    hostIPs: context.hostIps.map((ip) => ({ ip })),
    startTime: rfc3339(state.startedMs ?? context.nowMs),
    qosClass: qosClass(pod),
    containerStatuses: statuses,
  };
  if (
    ips[0] !== undefined &&
    (state.sandbox?.ready || pod.spec.hostNetwork || phase === "Succeeded" || phase === "Failed")
  ) {
    status.podIP = ips[0];
    status.podIPs = ips.map((ip) => ({ ip }));
  }
  if (initStatuses.length > 0) status.initContainerStatuses = initStatuses;
  if (state.ended?.reason !== undefined) status.reason = state.ended.reason;
  if (state.ended?.message !== undefined) status.message = state.ended.message;
  return status;
}

function containerStatus(
  pod: Pod,
  container: Container,
  state: PodState,
  context: StatusContext,
  init: boolean,
): ContainerStatus {
  const record = recordOf(state, container.name);
  const run = record.current;
  const base = context.previous?.[init ? "initContainerStatuses" : "containerStatuses"]?.find((old) =>
    old.name === container.name
  );
  const status: ContainerStatus = {
    name: container.name,
    state: {},
    lastState: {},
    ready: false,
    restartCount: run?.attempt ?? base?.restartCount ?? 0,
    image: run?.image || (container.image ?? ""),
    imageID: run?.imageRef ?? "",
    started: false,
  };
  if (run) status.containerID = `containerd://${run.id}`;
  const shown = shownState(pod, record, state, init, context);
  status.state = shown.state;
  if (shown.last) status.lastState = shown.last;
  const running = status.state?.running !== undefined;
  if (init && !isSidecar(container)) {
    status.ready = run?.state === "exited" && run.exitCode === 0;
    status.started = running;
  } else {
    status.started = running && record.startupDone;
    status.ready = running && record.ready && record.startupDone;
  }
  const mounts = container.volumeMounts ?? [];
  if (mounts.length > 0) {
    status.volumeMounts = mounts.map(({ name, mountPath, readOnly }) => ({
      name,
      mountPath,
      ...(readOnly ? { readOnly, recursiveReadOnly: "Disabled" } : {}),
    }));
  }
  if (container.resources && Object.keys(container.resources).length > 0 && run) {
    status.resources = container.resources;
    if (container.resources.requests) status.allocatedResources = container.resources.requests;
  }
  return status;
}

function shownState(
  pod: Pod,
  record: ContainerRecord,
  state: PodState,
  init: boolean,
  context: StatusContext,
): { state: ContainerState; last?: ContainerState } {
  const run = record.current;
  const waiting = record.waiting;
  const previous = record.previous ? { last: { terminated: terminated(record.previous, context) } } : {};
  if (run?.state === "running") {
    return { state: { running: { startedAt: rfc3339(run.startedMs) } }, ...previous };
  }
  if (run && (run.state === "exited" || run.state === "unknown")) {
    const ended = { terminated: terminated(run, context) };
    // Waiting to be started again: the end becomes the last state.
    if (waiting && !state.ended && !isTerminating(pod)) return { state: { waiting }, last: ended };
    return { state: ended, ...previous };
  }
  if (waiting) return { state: { waiting }, ...previous };
  const initsLeft = !init && (pod.spec.initContainers ?? []).length > 0;
  const reason = initsLeft
    ? "PodInitializing"
    : init && run === undefined && state.sandbox
    ? "PodInitializing"
    : "ContainerCreating";
  return { state: { waiting: { reason } }, ...previous };
}

function terminated(run: ContainerRun, context: StatusContext): NonNullable<ContainerState["terminated"]> {
  const message = context.terminationMessage(run.id) ||
    (run.reason !== "Error" && run.reason !== "Completed" ? run.message : "");
  return {
    exitCode: run.exitCode,
    reason: run.reason || (run.exitCode === 0 ? "Completed" : "Error"),
    ...(message ? { message } : {}),
    ...(run.startedMs > 0 ? { startedAt: rfc3339(run.startedMs) } : { startedAt: null as unknown as string }),
    ...(run.finishedMs > 0
      ? { finishedAt: rfc3339(run.finishedMs) }
      : { finishedAt: null as unknown as string }),
    containerID: `containerd://${run.id}`,
  };
}

function phaseOf(
  pod: Pod,
  state: PodState,
  inits: ContainerStatus[],
  mains: ContainerStatus[],
  previous: PodStatus | undefined,
): PodPhase {
  if (state.ended) return state.ended.phase;
  if (previous?.phase === "Succeeded" || previous?.phase === "Failed") return previous.phase;
  const initsPending = (pod.spec.initContainers ?? []).some((container, i) => {
    const status = inits[i];
    return isSidecar(container) ? !status?.started && !status?.state?.terminated : !status?.ready;
  });
  const mainsStarted = pod.spec.containers.some((container) =>
    inSandbox(state, recordOf(state, container.name))
  );
  if (initsPending && !mainsStarted) return "Pending";
  let running = 0, waiting = 0, stopped = 0;
  for (const { state: shown, lastState } of mains) {
    if (shown?.running) running++;
    else if (shown?.terminated) stopped++;
    else if (lastState?.terminated) stopped++;
    else waiting++;
  }
  if (waiting > 0) return "Pending";
  if (running > 0 || stopped > 0) {
    // Everything stopped and nothing restarts is `ended`; otherwise a restart is on its way.
    if (running === 0 && isTerminating(pod) && restartPolicyOf(pod) !== "Always") {
      return previous?.phase ?? "Running";
    }
    return "Running";
  }
  return "Pending";
}

function conditions(
  pod: Pod,
  state: PodState,
  phase: PodPhase,
  inits: ContainerStatus[],
  mains: ContainerStatus[],
  context: StatusContext,
): PodCondition[] {
  const observedGeneration = pod.metadata.generation;
  const over = phase === "Succeeded" || phase === "Failed";
  const sidecars = (pod.spec.initContainers ?? []).flatMap((c, i) =>
    isSidecar(c) && inits[i] ? [inits[i] as ContainerStatus] : []
  );
  const unready = [...sidecars, ...mains].filter((status) => !status.ready).map((status) => status.name);
  const incomplete = (pod.spec.initContainers ?? []).flatMap((container, i) => {
    const status = inits[i];
    return (isSidecar(container) ? status?.started : status?.ready) ? [] : [container.name];
  });
  const mainsStarted = pod.spec.containers.some((container) =>
    inSandbox(state, recordOf(state, container.name))
  );
  const make = (type: string, ok: boolean, reason?: string, message?: string): PodCondition => {
    const status = ok ? "True" : "False";
    const old = context.previous?.conditions?.find((condition) => condition.type === type);
    return {
      type,
      status,
      ...(observedGeneration !== undefined ? { observedGeneration } : {}),
      lastProbeTime: null,
      lastTransitionTime: old?.status === status && old.lastTransitionTime
        ? old.lastTransitionTime
        : rfc3339(context.nowMs),
      ...(reason !== undefined ? { reason } : {}),
      ...(message !== undefined ? { message } : {}),
    };
  };
  const unreadyText = `containers with unready status: [${unready.join(" ")}]`;
  const completed = phase === "Succeeded" ? "PodCompleted" : "PodFailed";
  const containersReady = over
    ? make("ContainersReady", false, completed)
    : unready.length > 0
    ? make("ContainersReady", false, "ContainersNotReady", unreadyText)
    : make("ContainersReady", true);
  const gates = (pod.spec.readinessGates ?? []).filter(({ conditionType }) =>
    pod.status?.conditions?.find((condition) => condition.type === conditionType)?.status !== "True"
  );
  const ready = over
    ? make("Ready", false, completed)
    : unready.length > 0
    ? make("Ready", false, "ContainersNotReady", unreadyText)
    : gates.length > 0
    ? make(
      "Ready",
      false,
      "ReadinessGatesNotReady",
      gates.map((gate) => `the status of pod readiness gate "${gate.conditionType}" is not "True"`).join(
        ", ",
      ),
    )
    : make("Ready", true);
  return [
    make("PodReadyToStartContainers", state.sandbox?.ready ?? false),
    phase === "Succeeded"
      ? make("Initialized", true, "PodCompleted")
      : incomplete.length > 0 && !mainsStarted
      ? make(
        "Initialized",
        false,
        "ContainersNotInitialized",
        `containers with incomplete status: [${incomplete.join(" ")}]`,
      )
      : make("Initialized", true),
    ready,
    containersReady,
    make("PodScheduled", true),
  ];
}

/** An end that nobody saw (pkg/kubelet/kuberuntime: the container was removed behind our back). */
export function lostRun(run: ContainerRun, nowMs: number): ContainerRun {
  return {
    ...run,
    state: "exited",
    exitCode: 137,
    reason: sandboxLostReason,
    message: "The container could not be located when the pod was terminated",
    finishedMs: nowMs,
  };
}
