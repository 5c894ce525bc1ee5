/**
 * What should happen next for a pod that is meant to run: a pure function of the pod, what is known of its containers
 * and the time. The worker carries the steps out, learns what came of them, and asks again.
 */
import type { Container, Pod, RestartPolicy } from "../../kube/types.ts";
import { type ContainerRecord, hashOf, isSidecar, type PodState, recordOf } from "./state.ts";

/** Crash back-off as the kubelet's (MaxContainerBackOff, initial 10 s, forgotten after twice the longest). */
export const crashBackoffBaseMs = 10_000;
export const crashBackoffMaxMs = 300_000;

export type Step =
  /** Make a (new) sandbox; the containers of the old one are dead or to be stopped first. */
  | { step: "sandbox"; attempt: number }
  | { step: "start"; container: Container; attempt: number; init: boolean }
  /** Stop a running container that is to be started again (probe failed, image changed). */
  | { step: "stop"; container: Container; reason: string }
  /** Wait in CrashLoopBackOff. */
  | { step: "backoff"; container: Container; untilMs: number; delayMs: number }
  /** Nothing will run again: stop the sandbox. */
  | { step: "end"; phase: "Succeeded" | "Failed" };

export interface Decision {
  /** In order; the worker does them one after another. */
  steps: Step[];
  /** Ask again at this time (ms since 1970), if nothing happens before. */
  wakeMs: number | undefined;
}

export function restartPolicyOf(pod: Pod): RestartPolicy {
  return pod.spec.restartPolicy ?? "Always";
}

/** Whether an exited container runs again. */
function runsAgain(policy: RestartPolicy, exitCode: number): boolean {
  return policy === "Always" || (policy === "OnFailure" && exitCode !== 0);
}

export function decide(pod: Pod, state: PodState, nowMs: number): Decision {
  const decision: Decision = { steps: [], wakeMs: undefined };
  if (state.ended) return decision;
  const policy = restartPolicyOf(pod);
  const outcome = finalOutcome(pod, state, policy);
  if (outcome) {
    decision.steps.push({ step: "end", phase: outcome });
    return decision;
  }
  if (!state.sandbox?.ready) {
    if (state.sandboxRetryAtMs > nowMs) decision.wakeMs = state.sandboxRetryAtMs;
    else decision.steps.push({ step: "sandbox", attempt: state.sandbox ? state.sandbox.attempt + 1 : 0 });
    return decision;
  }
  if (!initContainers(pod, state, policy, nowMs, decision)) return decision;
  for (const container of pod.spec.containers) {
    considerContainer(
      { container, record: recordOf(state, container.name), policy, init: false },
      state,
      nowMs,
      decision,
    );
  }
  return decision;
}

/** True when every ordinary init container is done and every sidecar has started: the main containers may go. */
function initContainers(
  pod: Pod,
  state: PodState,
  policy: RestartPolicy,
  nowMs: number,
  decision: Decision,
): boolean {
  const inits = pod.spec.initContainers ?? [];
  // Once a main container of this sandbox was started, ordinary init containers are over; sidecars are kept running.
  const mainStarted = pod.spec.containers.some((container) =>
    inSandbox(state, recordOf(state, container.name))
  );
  for (const container of inits) {
    const record = recordOf(state, container.name);
    const run = inSandbox(state, record);
    if (isSidecar(container)) {
      considerContainer({ container, record, policy: "Always", init: true }, state, nowMs, decision);
      if (!mainStarted && !(run?.state === "running" && record.startupDone)) return false;
      continue;
    }
    if (mainStarted) continue;
    if (run?.state === "exited" && run.exitCode === 0) continue;
    const initPolicy: RestartPolicy = policy === "Always" ? "OnFailure" : policy;
    considerContainer({ container, record, policy: initPolicy, init: true }, state, nowMs, decision);
    return false;
  }
  return true;
}

/** The newest run, if it belongs to the sandbox in force. */
export function inSandbox(state: PodState, record: ContainerRecord) {
  return record.current && record.current.sandboxId === state.sandbox?.id ? record.current : undefined;
}

interface Candidate {
  container: Container;
  record: ContainerRecord;
  policy: RestartPolicy;
  init: boolean;
}

function considerContainer(
  { container, record, policy, init }: Candidate,
  state: PodState,
  nowMs: number,
  decision: Decision,
): void {
  const run = inSandbox(state, record);
  const wake = (ms: number) => decision.wakeMs = Math.min(decision.wakeMs ?? ms, ms);
  const start = () => {
    if (record.retryAtMs > nowMs) wake(record.retryAtMs);
    else decision.steps.push({ step: "start", container, attempt: nextAttempt(record), init });
  };
  if (!run) {
    // A run that ended in an older sandbox counts: Completed containers of OnFailure and Never pods stay so.
    const ended = record.current?.state === "exited" ? record.current : undefined;
    if (ended && !init && !runsAgain(policy, ended.exitCode) && ended.reason !== sandboxLostReason) return;
    return start();
  }
  switch (run.state) {
    case "running":
      if (record.killReason !== undefined) {
        decision.steps.push({ step: "stop", container, reason: record.killReason });
      } else if ((run.annotations["kubeedge.io/image"] ?? hashOf(container)) !== hashOf(container)) {
        const reason = `Container ${container.name} definition changed, will be restarted`;
        decision.steps.push({ step: "stop", container, reason });
      }
      return;
    case "created":
      return start(); // its start failed, or the agent died between create and start
    case "exited":
    case "unknown": {
      if (!runsAgain(policy, run.exitCode)) return;
      const delayMs = backoffDelay(record, nowMs);
      const untilMs = run.finishedMs + delayMs;
      if (delayMs > 0 && untilMs > nowMs) {
        decision.steps.push({ step: "backoff", container, untilMs, delayMs });
        wake(untilMs);
      } else start();
      return;
    }
  }
}

/** The runs that were started, counted: one that was only created is made again under its number. */
function nextAttempt({ current }: ContainerRecord): number {
  if (!current) return 0;
  return current.state === "created" ? current.attempt : current.attempt + 1;
}

/** Marks a run whose end nobody saw, because its sandbox or record vanished. */
export const sandboxLostReason = "ContainerStatusUnknown";

function backoffDelay(record: ContainerRecord, nowMs: number): number {
  return nowMs - record.backoffAtMs > 2 * crashBackoffMaxMs ? 0 : record.backoffMs;
}

/** To be called when an exited container is started again: lengthens its back-off. */
export function lengthenBackoff(record: ContainerRecord, nowMs: number): void {
  const before = backoffDelay(record, nowMs);
  record.backoffMs = before === 0 ? crashBackoffBaseMs : Math.min(crashBackoffMaxMs, before * 2);
  record.backoffAtMs = nowMs;
}

/** The phase in which the pod ends, if nothing of it will run again. */
function finalOutcome(pod: Pod, state: PodState, policy: RestartPolicy): "Succeeded" | "Failed" | undefined {
  if (policy === "Always") return undefined;
  for (const container of pod.spec.initContainers ?? []) {
    if (isSidecar(container)) continue;
    const run = recordOf(state, container.name).current;
    if (
      run?.state === "exited" && run.exitCode !== 0 && policy === "Never" && run.reason !== sandboxLostReason
    ) return "Failed";
  }
  let failed = false;
  for (const container of pod.spec.containers) {
    const run = recordOf(state, container.name).current;
    if (!run || run.state !== "exited" || runsAgain(policy, run.exitCode)) return undefined;
    failed ||= run.exitCode !== 0;
  }
  return failed ? "Failed" : "Succeeded";
}
