/**
 * What the node has to tell the cloud, kept until Kubernetes has it. Of a pod's or the node's state the newest wins;
 * events keep their order. A pod's last status stays in the store after it was told: a restarted agent goes on from it.
 */
import type { Clock } from "../core/clock.ts";
import type { PodStatus } from "../kube/types.ts";
import type { Report } from "../wire/messages.ts";
import type { ReportRow, StoreWrite } from "./store/port.ts";

/** Events that wait; beyond it the oldest are dropped (counted): a cut node must not fill its disk with them. */
const eventsMax = 1000;
/** Events are worth a disk write only when the cloud does not take them within this time, ms. */
const eventPatienceMs = 1000;

interface Waiting {
  id: number;
  slot: string;
  report: Report;
  inFlight: boolean;
  stored: boolean;
}

export interface OutboxPorts {
  write(write: StoreWrite): void;
  clock: Clock;
  /** There may be something to send. */
  wake(): void;
}

export class Outbox {
  readonly #ports: OutboxPorts;
  /** In the order in which it is sent. */
  readonly #waiting = new Map<string, Waiting>();
  /** Slot → last state told or to be told. */
  readonly #statuses = new Map<string, PodStatus>();
  #nextId: number;
  #dropped = 0;
  #events = 0;

  constructor(rows: ReportRow[], ports: OutboxPorts) {
    this.#ports = ports;
    this.#nextId = Math.max(0, ...rows.map((row) => row.id)) + 1;
    for (const row of [...rows].sort((a, b) => a.id - b.id)) {
      const report = JSON.parse(row.report) as Report;
      if (report.report === "podStatus") this.#statuses.set(row.slot, report.status as PodStatus);
      if (report.report === "event") this.#events++;
      if (!row.acknowledged) {
        this.#waiting.set(row.slot, { id: row.id, slot: row.slot, report, inFlight: false, stored: true });
      }
    }
  }

  get size(): number {
    return this.#waiting.size;
  }
  get droppedEvents(): number {
    return this.#dropped;
  }

  /** The last status that was reported for the pod. */
  lastStatus(uid: string): PodStatus | undefined {
    return this.#statuses.get(`pod/${uid}`);
  }

  put(report: Report): void {
    const id = this.#nextId++;
    const slot = slotOf(report, id);
    // Put last again: a state that changes all the time must not stand before the others, nor wait behind its own past.
    this.#waiting.delete(slot);
    const waiting: Waiting = { id, slot, report, inFlight: false, stored: false };
    this.#waiting.set(slot, waiting);
    switch (report.report) {
      case "podStatus":
        this.#statuses.set(slot, report.status as PodStatus);
        this.#store(waiting);
        break;
      case "event":
        if (++this.#events > eventsMax) this.#dropOldestEvent();
        this.#ports.clock.timer(eventPatienceMs, () => {
          if (this.#waiting.get(slot) === waiting) this.#store(waiting);
        });
        break;
      case "podGone": // told again by the pod's worker after a restart
      case "nodeStatus":
        break;
    }
    this.#ports.wake();
  }

  /** The pod is no longer this node's. */
  forget(uid: string): void {
    const slot = `pod/${uid}`;
    this.#waiting.delete(slot);
    if (this.#statuses.delete(slot)) this.#ports.write({ write: "forget", slot });
  }

  /** Hands out what is to be sent, as long as `send` takes it. */
  drain(send: (id: number, report: Report) => boolean): void {
    for (const waiting of this.#waiting.values()) {
      if (waiting.inFlight) continue;
      if (!send(waiting.id, waiting.report)) return;
      waiting.inFlight = true;
    }
  }

  /** In Kubernetes, or refused for good. */
  acknowledged(ids: number[]): void {
    const done = new Set(ids);
    for (const waiting of [...this.#waiting.values()]) {
      if (!done.has(waiting.id)) continue;
      this.#waiting.delete(waiting.slot);
      if (waiting.report.report === "event") this.#events--;
      if (!waiting.stored) continue;
      if (waiting.report.report === "podStatus") {
        this.#ports.write({ write: "acknowledged", slot: waiting.slot, id: waiting.id });
      } else this.#ports.write({ write: "forget", slot: waiting.slot });
    }
  }

  /** The session is over: all is to be sent again. */
  disconnected(): void {
    for (const waiting of this.#waiting.values()) waiting.inFlight = false;
  }

  #store(waiting: Waiting): void {
    waiting.stored = true;
    const { slot, id, report } = waiting;
    this.#ports.write({
      write: "report",
      row: { slot, id, acknowledged: false, report: JSON.stringify(report) },
    });
  }

  #dropOldestEvent(): void {
    for (const waiting of this.#waiting.values()) {
      if (waiting.report.report !== "event" || waiting.inFlight) continue;
      this.#waiting.delete(waiting.slot);
      if (waiting.stored) this.#ports.write({ write: "forget", slot: waiting.slot });
      this.#events--;
      this.#dropped++;
      return;
    }
  }
}

function slotOf(report: Report, id: number): string {
  switch (report.report) {
    case "podStatus":
      return `pod/${report.uid}`;
    case "podGone":
      return `gone/${report.uid}`;
    case "nodeStatus":
      return "node";
    case "event":
      return `event/${id}`;
  }
}
