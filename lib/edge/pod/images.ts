/** Image pulls: policy, secrets, one pull of an image at a time, back-off per pod and image. */
import { errorText } from "../../core/errors.ts";
import { KeyedLock, Semaphore } from "../../core/queue.ts";
import { CriError } from "../../cri/grpc.ts";
import type { Container, Pod } from "../../kube/types.ts";
import type { PodPorts } from "./ports.ts";
import { pullCredentials } from "./pull_secrets.ts";

/** Pulls at once on one node: a slow link gains nothing from more. */
const pullsMax = 5;

/** [DOMAIN/]PATH[:TAG][@DIGEST] as github.com/distribution/reference reads it. */
const imageName = (() => {
  const label = "[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?";
  const domain = `(?:${label}(?:\\.${label})*|\\[[a-fA-F0-9:]+\\])(?::[0-9]+)?`;
  const component = "[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*";
  const tag = "[\\w][\\w.-]{0,127}",
    digest = "[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}";
  return new RegExp(`^(?:${domain}/)?${component}(?:/${component})*(?::${tag})?(?:@${digest})?$`);
})();

export type ImageResult = { state: "ok"; reference: string } | {
  state: "failed";
  reason: string;
  message: string;
};

export class Images {
  readonly #ports: Pick<PodPorts, "runtime" | "objects" | "event" | "clock">;
  readonly #perImage = new KeyedLock();
  readonly #slots = new Semaphore(pullsMax);

  constructor(ports: Pick<PodPorts, "runtime" | "objects" | "event" | "clock">) {
    this.#ports = ports;
  }

  /**
   * Makes the container's image present by its policy. Events as the kubelet's.
   * Throws a CriError `Unavailable` when the runtime is away: nothing is known of the image then.
   */
  async ensure(pod: Pod, container: Container, fieldPath: string, signal: AbortSignal): Promise<ImageResult> {
    const { runtime, event } = this.#ports;
    const image = container.image ?? "";
    const policy = container.imagePullPolicy ??
      (/(:latest|^[^:]*|\/[^:@]*)$/.test(image) && !image.includes("@") ? "Always" : "IfNotPresent");
    if (!imageName.test(image)) {
      const message =
        `Failed to apply default image tag "${image}": couldn't parse image name "${image}": invalid reference format`;
      event(pod, { type: "Warning", reason: "InspectFailed", message, fieldPath });
      return { state: "failed", reason: "InvalidImageName", message };
    }
    try {
      const present = policy === "Always" ? undefined : await runtime.imageStatus(image);
      if (present) {
        const message = `Container image "${image}" already present on machine`;
        event(pod, { type: "Normal", reason: "Pulled", message, fieldPath });
        return { state: "ok", reference: present.id };
      }
      if (policy === "Never") {
        const message = `Container image "${image}" is not present with pull policy of Never`;
        event(pod, { type: "Warning", reason: "ErrImageNeverPull", message, fieldPath });
        return { state: "failed", reason: "ErrImageNeverPull", message };
      }
      return await this.#pull(pod, image, fieldPath, signal);
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      if (error instanceof CriError && error.code === "Unavailable") throw error;
      const message = `Failed to pull image "${image}": ${errorText(error)}`;
      event(pod, { type: "Warning", reason: "Failed", message, fieldPath });
      event(pod, { type: "Warning", reason: "Failed", message: "Error: ErrImagePull", fieldPath });
      return { state: "failed", reason: "ErrImagePull", message: errorText(error) };
    }
  }

  async #pull(pod: Pod, image: string, fieldPath: string, signal: AbortSignal): Promise<ImageResult> {
    const { runtime, event, objects, clock } = this.#ports;
    const askedMs = clock.monotonic();
    event(pod, { type: "Normal", reason: "Pulling", message: `Pulling image "${image}"`, fieldPath });
    const pulled = this.#perImage.run(image, () =>
      this.#slots.run(async (): Promise<ImageResult> => {
        if (signal.aborted) throw signal.reason;
        const startedMs = clock.monotonic();
        let failure: unknown;
        for (const auth of pullCredentials(image, pod, objects)) {
          try {
            const reference = await runtime.pullImage(image, auth);
            const status = await runtime.imageStatus(reference);
            const nowMs = clock.monotonic();
            const message =
              `Successfully pulled image "${image}" in ${seconds(nowMs - startedMs)} (${
                seconds(nowMs - askedMs)
              } ` +
              `including waiting). Image size: ${status?.bytes ?? 0} bytes.`;
            event(pod, { type: "Normal", reason: "Pulled", message, fieldPath });
            return { state: "ok", reference };
          } catch (error) {
            failure = error;
          }
        }
        throw failure;
      }));
    return await unless(signal, pulled);
  }
}

/** The runtime goes on with a pull that nobody waits for any more: what it fetched is kept for the next. */
function unless<T>(signal: AbortSignal, work: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const give = () => reject(signal.reason);
    if (signal.aborted) give();
    signal.addEventListener("abort", give, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", give));
  });
}

function seconds(ms: number): string {
  return ms < 1000 ? `${Math.round(ms)}ms` : `${(ms / 1000).toFixed(3)}s`;
}
