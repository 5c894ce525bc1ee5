/**
 * The metadata store: what the cloud wants of this node, and what the node has to tell. Everything is read from memory;
 * every change is committed in groups, and a change is acknowledged to the cloud only after its commit.
 */
import type { Clock } from "../../core/clock.ts";
import { text } from "../../core/bytes.ts";
import { errorText } from "../../core/errors.ts";
import type { Logger } from "../../core/log.ts";
import { digestOf } from "../../wire/digest.ts";
import type { Change } from "../../wire/edge_session.ts";
import { absentVersion } from "../../wire/hub_session.ts";
import type { HaveEntry } from "../../wire/messages.ts";
import type { KubeObject } from "../../kube/types.ts";
import type { ReportRow, StorePort, StoreWrite } from "./port.ts";

/** Retry of a commit that failed (a full disk), ms. Nothing is acknowledged meanwhile. */
const commitRetryMs = 1000;

export interface Held<T extends KubeObject = KubeObject> {
  uid: string;
  version: string;
  /** Undefined: known not to exist. */
  object: T | undefined;
}

export class EdgeStore {
  readonly #port: StorePort;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #kinds = new Map<string, Map<string, Held>>();
  readonly #meta = new Map<string, string>();
  #pending: StoreWrite[] = [];
  #waiters: (() => void)[] = [];
  #committing = false;
  #closed = false;
  #failure: string | undefined;
  #commits = 0;

  private constructor(port: StorePort, ports: { clock: Clock; log: Logger }) {
    this.#port = port;
    this.#clock = ports.clock;
    this.#log = ports.log;
  }

  static async open(
    port: StorePort,
    ports: { clock: Clock; log: Logger },
  ): Promise<{ store: EdgeStore; reports: ReportRow[] }> {
    const store = new EdgeStore(port, ports);
    const { meta, objects, reports } = await port.load();
    for (const [key, value] of Object.entries(meta)) store.#meta.set(key, value);
    for (const row of objects) {
      store.#kind(row.kind).set(row.key, {
        uid: row.uid,
        version: row.version,
        object: row.json && JSON.parse(text(row.json)) as KubeObject,
      });
    }
    return { store, reports };
  }

  /** Why nothing can be written at the moment. */
  get failure(): string | undefined {
    return this.#failure;
  }
  get damaged(): string | undefined {
    return this.#port.damaged;
  }
  get bytes(): number {
    return this.#port.bytes();
  }
  /** Transactions so far: flash wears. */
  get commits(): number {
    return this.#commits;
  }

  get<T extends KubeObject>(kind: string, key: string): Held<T> | undefined {
    return this.#kinds.get(kind)?.get(key) as Held<T> | undefined;
  }
  list<T extends KubeObject>(kind: string): T[] {
    return [...this.#kinds.get(kind)?.values() ?? []].flatMap(({ object }) => object ? [object as T] : []);
  }
  kinds(): string[] {
    return [...this.#kinds.keys()];
  }

  /** What is held of a kind, for the session. */
  entries(kind: string): HaveEntry[] {
    return [...this.#kinds.get(kind) ?? []].map(([key, { uid, version }]): HaveEntry => [key, uid, version]);
  }
  digests(): Record<string, string> {
    const digests: Record<string, string> = {};
    for (const kind of this.#kinds.keys()) {
      const digest = digestOf(this.entries(kind));
      if (digest !== "") digests[kind] = digest;
    }
    return digests;
  }

  meta(key: string): string | undefined {
    return this.#meta.get(key);
  }
  setMeta(key: string, value: string): void {
    if (this.#meta.get(key) === value) return;
    this.#meta.set(key, value);
    this.write({ write: "meta", key, value });
  }

  /** Takes a change of the session. It is durable once `flushed` resolves. The former state is returned. */
  apply(change: Change): Held | undefined {
    const { kind, key, uid, version } = change;
    const objects = this.#kind(kind);
    const before = objects.get(key);
    if (change.change === "drop") {
      objects.delete(key);
      this.write({ write: "drop", kind, key });
      return before;
    }
    const absent = change.change === "absent";
    objects.set(key, {
      uid,
      version: absent ? absentVersion : version,
      object: absent ? undefined : JSON.parse(text(change.json)) as KubeObject,
    });
    // Copied: the frame that it is a view of does not outlive this turn.
    const json = absent ? undefined : change.json.slice();
    this.write({ write: "object", row: { kind, key, uid, version: absent ? absentVersion : version, json } });
    return before;
  }

  /** Everything of a former cluster. */
  clear(): void {
    for (const [kind, objects] of this.#kinds) {
      for (const key of objects.keys()) this.write({ write: "drop", kind, key });
    }
    this.#kinds.clear();
  }

  write(write: StoreWrite): void {
    this.#pending.push(write);
    void this.#commit();
  }

  /** Resolves when everything written before is on the disk. */
  flushed(): Promise<void> {
    if (this.#pending.length === 0 && !this.#committing) return Promise.resolve();
    return new Promise((resolve) => {
      this.#waiters.push(resolve);
      void this.#commit();
    });
  }

  async close(): Promise<void> {
    if (this.#failure === undefined) await this.flushed();
    this.#closed = true;
    await this.#port.close();
  }

  async #commit(): Promise<void> {
    if (this.#committing) return;
    this.#committing = true;
    await Promise.resolve(); // what this turn writes goes together
    while ((this.#pending.length > 0 || this.#waiters.length > 0) && !this.#closed) {
      const writes = this.#pending, waiters = this.#waiters;
      this.#pending = [];
      this.#waiters = [];
      try {
        if (writes.length > 0) {
          await this.#port.commit(writes);
          this.#commits++;
        }
        if (this.#failure !== undefined) this.#log.info("The store can be written again");
        this.#failure = undefined;
        for (const resolve of waiters) resolve();
      } catch (error) {
        this.#pending = [...writes, ...this.#pending];
        this.#waiters = [...waiters, ...this.#waiters];
        if (this.#failure === undefined) {
          this.#log.error(
            "Cannot write the store; nothing is lost, but nothing new is acknowledged until it can. Free some space",
            {
              error: errorText(error),
            },
          );
        }
        this.#failure = errorText(error);
        await this.#clock.sleep(commitRetryMs);
      }
    }
    this.#committing = false;
  }

  #kind(kind: string): Map<string, Held> {
    let objects = this.#kinds.get(kind);
    if (!objects) this.#kinds.set(kind, objects = new Map());
    return objects;
  }
}
