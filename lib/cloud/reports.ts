/**
 * Writes what edges report, as the node that reports it: Kubernetes' Node authorizer and NodeRestriction judge it. Order
 * holds per object; different objects go in parallel. Every outcome is an answer: done, or refused for good.
 */
import { Backoff } from "../core/backoff.ts";
import type { Clock, Random } from "../core/clock.ts";
import { errorText } from "../core/errors.ts";
import type { Logger } from "../core/log.ts";
import { KeyedLock, Semaphore } from "../core/queue.ts";
import { KubeApiError, type KubeClient, objectPath } from "../kube/client.ts";
import type { Event, NodeStatus, PodStatus } from "../kube/types.ts";
import type { Report } from "../wire/messages.ts";

/** Requests of one node at once: the rest waits in its session's window. */
const perNodeMax = 16;

export interface ReportPorts {
  client: KubeClient;
  clock: Clock;
  random: Random;
  log: Logger;
  /** What the hub adds to a node's status (addresses, kubelet port). */
  nodeStatus: (node: string, status: NodeStatus) => NodeStatus;
  wrote: (sort: string, outcome: "ok" | "gone" | "refused") => void;
}

export class NodeReports {
  readonly #locks = new KeyedLock();
  readonly #slots = new Semaphore(perNodeMax);
  constructor(readonly node: string, readonly ports: ReportPorts) {}

  /** Resolves when the report is in Kubernetes (or its object is gone); to a text when it was refused for good. */
  write(report: Report, signal: AbortSignal): Promise<string | undefined> {
    return this.#locks.run(keyOf(report), () => this.#slots.run(() => this.#write(report, signal)));
  }

  async #write(report: Report, signal: AbortSignal): Promise<string | undefined> {
    const { clock, random, log, wrote } = this.ports;
    const backoff = new Backoff({ baseMs: 100, maxMs: 10_000 }, random);
    for (;;) {
      signal.throwIfAborted();
      try {
        await this.#send(report, signal);
        wrote(report.report, "ok");
        return undefined;
      } catch (error) {
        signal.throwIfAborted();
        if (error instanceof KubeApiError) {
          // Gone, or another object of that name (the uid is a precondition): nothing is left to say about it.
          if (error.status === 404 || (error.status === 409 && report.report !== "nodeStatus")) {
            wrote(report.report, "gone");
            return undefined;
          }
          if (error.status === 403 || error.status === 422 || error.status === 400) {
            wrote(report.report, "refused");
            log.warn("Kubernetes refused a report", {
              node: this.node,
              kind: report.report,
              error: error.message,
            });
            return error.message;
          }
        }
        const delayMs = Math.max(backoff.next(), error instanceof KubeApiError ? error.retryAfterMs ?? 0 : 0);
        log.debug("Report failed, retrying", {
          node: this.node,
          kind: report.report,
          error: errorText(error),
        });
        await clock.sleep(delayMs, signal);
      }
    }
  }

  async #send(report: Report, signal: AbortSignal): Promise<void> {
    const { client } = this.ports;
    const options = { as: { node: this.node }, signal };
    switch (report.report) {
      case "podStatus": {
        const path = objectPath("/api/v1", "pods", report.namespace, report.name, "status");
        const patch = { metadata: { uid: report.uid }, status: replaceAddresses(report.status as PodStatus) };
        await client.patch(path, "strategic", patch, options);
        return;
      }
      case "podGone":
        await client.delete(objectPath("/api/v1", "pods", report.namespace, report.name), {
          uid: report.uid,
          gracePeriodSeconds: 0,
        }, options);
        return;
      case "nodeStatus": {
        const status = this.ports.nodeStatus(this.node, report.status as NodeStatus);
        const patch = {
          status: {
            ...status,
            ...(status.addresses ? { addresses: [{ $patch: "replace" }, ...status.addresses] } : {}),
          },
        };
        await client.patch(
          objectPath("/api/v1", "nodes", undefined, this.node, "status"),
          "strategic",
          patch,
          options,
        );
        return;
      }
      case "event": {
        const event = report.event as Event;
        const path = objectPath("/api/v1", "events", report.namespace);
        try {
          await client.create(path, event, options);
        } catch (error) {
          // The same thing happened again: the edge counts on under the first one's name.
          if (!(error instanceof KubeApiError && error.reason === "AlreadyExists")) throw error;
          const { count, lastTimestamp, message } = event;
          await client.patch(
            objectPath("/api/v1", "events", report.namespace, event.metadata.name),
            "merge",
            { count, lastTimestamp, message },
            options,
          );
        }
        return;
      }
    }
  }
}

/** podIPs and hostIPs are lists with merge keys: without the directive an old address would stay. */
function replaceAddresses(status: PodStatus): unknown {
  const replace = <T>(list: T[] | undefined) => list ? [{ $patch: "replace" }, ...list] : undefined;
  return {
    ...status,
    ...(status.podIPs ? { podIPs: replace(status.podIPs) } : {}),
    ...(status.hostIPs ? { hostIPs: replace(status.hostIPs) } : {}),
  };
}

function keyOf(report: Report): string {
  switch (report.report) {
    case "podStatus":
    case "podGone":
      return report.uid;
    case "nodeStatus":
      return "node";
    case "event":
      return "events " + ((report.event as Event).metadata?.name ?? "");
  }
}
