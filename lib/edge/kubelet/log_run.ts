/** Which run of a container a log request means. Pure. */
import type { Found } from "./exchange.ts";
import type { PodView, RunView } from "./ports.ts";

/** The run whose log is meant, by the pod's status (pkg/kubelet: validateContainerLogStatus). */
export function logRun(view: PodView, container: string, previous: boolean): Found<RunView> {
  const bad = (what: string): Found<RunView> => ({
    state: "refused",
    refusal: { status: 400, message: what },
  });
  const subject = `container "${container}" in pod "${view.pod.metadata.name}"`;
  const { containerStatuses = [], initContainerStatuses = [], ephemeralContainerStatuses = [] } = view.status;
  const status = [...containerStatuses, ...initContainerStatuses, ...ephemeralContainerStatuses]
    .find((candidate) => candidate.name === container);
  if (!status) return bad(`${subject} is not available`);
  const { running, terminated, waiting } = status.state ?? {};
  const last = status.lastState?.terminated;
  let id: string | undefined;
  if (previous) {
    if (!last?.containerID) return bad(`previous terminated ${subject} not found`);
    id = last.containerID;
  } else if (running) id = status.containerID;
  else if (terminated) id = terminated.containerID || last?.containerID;
  else if (last) id = last.containerID;
  else if (waiting) return bad(`${subject} is waiting to start: ${waitingText(waiting.reason)}`);
  else return bad(`${subject} is waiting to start - no logs yet`);
  if (!id) return bad(`${subject} is terminated`);
  const { current, previous: before } = view.state.containers.get(container) ?? {};
  const run = [current, before].find((candidate) => candidate?.id === id.slice(id.indexOf("://") + 3));
  if (!run) return bad(`${subject} is not available`);
  return { state: "ok", value: run };
}

function waitingText(reason: string | undefined): string {
  if (reason === "ErrImagePull") return "image can't be pulled";
  if (reason === "ImagePullBackOff") return "trying and failing to pull image";
  return reason ?? "";
}
