/** Kubernetes Events of pods and of the node: the same thing again counts on in the same Event, as the kubelet does. */
import type { Clock, Random } from "../core/clock.ts";
import { hex } from "../core/bytes.ts";
import type { Event, ObjectReference, Pod } from "../kube/types.ts";
import type { Report } from "../wire/messages.ts";
import type { PodEvent } from "./pod/ports.ts";
import { rfc3339 } from "./pod/state.ts";

/** Events that are remembered for counting. */
const knownMax = 500;
/** Later than this it is a new event. */
const sameMs = 10 * 60_000;

interface Known {
  name: string;
  firstMs: number;
  lastMs: number;
  count: number;
}

export class Events {
  readonly #known = new Map<string, Known>();
  constructor(
    readonly ports: { node: string; put: (report: Report) => void; clock: Clock; random: Random },
  ) {}

  pod(pod: Pod, event: PodEvent): void {
    const { name, uid, resourceVersion, namespace = "default" } = pod.metadata;
    this.#put(namespace, {
      apiVersion: "v1",
      kind: "Pod",
      name,
      namespace,
      ...(uid !== undefined ? { uid } : {}),
      ...(resourceVersion !== undefined ? { resourceVersion } : {}),
      ...(event.fieldPath !== undefined ? { fieldPath: event.fieldPath } : {}),
    }, event);
  }

  node(event: PodEvent): void {
    this.#put("default", { kind: "Node", name: this.ports.node, uid: this.ports.node }, event);
  }

  #put(namespace: string, involvedObject: ObjectReference, { type, reason, message }: PodEvent): void {
    const { clock, random, node, put } = this.ports;
    const nowMs = clock.now();
    const key = JSON.stringify([involvedObject.uid, involvedObject.fieldPath, type, reason, message]);
    let known = this.#known.get(key);
    if (!known || nowMs - known.lastMs > sameMs) {
      known = {
        name: `${involvedObject.name ?? ""}.${nowMs.toString(16)}${hex(random.bytes(3))}`,
        firstMs: nowMs,
        lastMs: nowMs,
        count: 0,
      };
    }
    known.count++;
    known.lastMs = nowMs;
    this.#known.delete(key);
    this.#known.set(key, known);
    for (const oldest of this.#known.keys()) {
      if (this.#known.size <= knownMax) break;
      this.#known.delete(oldest);
    }
    const event: Event = {
      apiVersion: "v1",
      kind: "Event",
      metadata: { name: known.name, namespace },
      involvedObject,
      type,
      reason,
      message: message.slice(0, 1024), // the API server's limit
      source: { component: "kubelet", host: node },
      reportingComponent: "kubelet",
      reportingInstance: node,
      firstTimestamp: rfc3339(known.firstMs),
      lastTimestamp: rfc3339(known.lastMs),
      count: known.count,
    };
    put({ report: "event", namespace, event });
  }
}
