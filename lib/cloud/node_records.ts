/**
 * What the cloud remembers of an edge node, in one ConfigMap each (`edge-node.NAME`): whose key holds the name, the
 * node's kubelet port, whether it is revoked. All replicas see the same by watching; changes are made with optimistic
 * concurrency.
 */
import type { Clock } from "../core/clock.ts";
import { KeyedLock } from "../core/queue.ts";
import { KubeApiError, type KubeClient, objectPath } from "../kube/client.ts";
import type { RawObject, ReflectorHandler } from "../kube/reflector.ts";
import { text } from "../core/bytes.ts";
import type { ConfigMap } from "../kube/types.ts";

export const recordLabel = "kubeedge.io/node-record";
const namePrefix = "edge-node.";

export interface NodeRecord {
  node: string;
  /** Hex of SHA-256 over the SPKI of the node's key. */
  keyHash: string;
  /** A key that a renewal gave and the node has not used yet. */
  nextKeyHash?: string;
  kubeletPort: number;
  joinedMs: number;
  revoked?: string;
}

/** Last news of a node's session, kept beside the record for `kubeedge cloud nodes`. */
export interface NodeNews {
  connected: boolean;
  sinceMs: number;
  lastSeenMs: number;
  roundTripMs: number;
  agent: string;
  address: string;
}

export type Claim =
  | { state: "ok"; record: NodeRecord }
  | { state: "refused"; reason: "taken" | "revoked" | "ports"; message: string };

interface Entry {
  record: NodeRecord;
  news: NodeNews | undefined;
  object: ConfigMap;
}

export interface RecordPorts {
  client: KubeClient;
  namespace: string;
  clock: Clock;
  /** First and last kubelet port, inclusive. */
  kubeletPorts: [number, number];
}

export class NodeRecords implements ReflectorHandler {
  readonly #ports: RecordPorts;
  readonly #entries = new Map<string, Entry>();
  readonly #claims = new KeyedLock();
  readonly #listeners = new Set<(node: string, record: NodeRecord | undefined) => void>();

  constructor(ports: RecordPorts) {
    this.#ports = ports;
  }

  get(node: string): NodeRecord | undefined {
    return this.#entries.get(node)?.record;
  }
  news(node: string): NodeNews | undefined {
    return this.#entries.get(node)?.news;
  }
  list(): { record: NodeRecord; news: NodeNews | undefined }[] {
    return [...this.#entries.values()].map(({ record, news }) => ({ record, news }));
  }
  /** Called with each change of a record; undefined when it is gone. */
  listen(listener: (node: string, record: NodeRecord | undefined) => void): void {
    this.#listeners.add(listener);
  }

  /** Fills the index once, for commands that do not watch. */
  async load(): Promise<void> {
    const { client, namespace } = this.#ports;
    const list = await client.list<ConfigMap>(objectPath("/api/v1", "configmaps", namespace), {
      query: { labelSelector: `${recordLabel}=true` },
    });
    for (const object of list.items) this.#take(object);
  }

  /** The name for this key: a new record, or the one there is when the key is the same or may take over. */
  claim(node: string, keyHash: string, options: { takeover: boolean }): Promise<Claim> {
    // One at a time: two machines that join at once must not be given the same port.
    return this.#claims.run("claim", () => this.#claim(node, keyHash, options));
  }

  async #claim(node: string, keyHash: string, options: { takeover: boolean }): Promise<Claim> {
    for (;;) {
      const object = await this.#find(node);
      const record = object && recordOf(object);
      if (record?.revoked !== undefined) {
        return {
          state: "refused",
          reason: "revoked",
          message:
            `node "${node}" is revoked (${record.revoked}); kubeedge cloud nodes restore ${node} undoes that`,
        };
      }
      if (record && record.keyHash !== keyHash && !options.takeover) {
        const since = new Date(record.joinedMs).toISOString();
        return {
          state: "refused",
          reason: "taken",
          message:
            `the name "${node}" belongs to another machine since ${since}. Choose another with --name; if this machine replaces it, ` +
            `use a token of "kubeedge cloud token create --takeover", or "kubectl delete node ${node}" first`,
        };
      }
      const kubeletPort = record?.kubeletPort ?? this.#freePort();
      if (kubeletPort === undefined) {
        const [first, last] = this.#ports.kubeletPorts;
        return {
          state: "refused",
          reason: "ports",
          message: `all kubelet ports from ${first} to ${last} are taken; widen --kubelet-ports at the cloud`,
        };
      }
      const next: NodeRecord = { node, keyHash, kubeletPort, joinedMs: this.#ports.clock.now() };
      if (await this.#write(object, next)) return { state: "ok", record: next };
    }
  }

  /** Changes a record; undefined when there is none. */
  async change(node: string, change: (record: NodeRecord) => NodeRecord): Promise<NodeRecord | undefined> {
    for (;;) {
      const object = await this.#find(node);
      if (!object) return undefined;
      const next = change(recordOf(object));
      if (await this.#write(object, next)) return next;
    }
  }

  /** Notes news of the session; best effort, conflicts are left to the next time. */
  async note(node: string, news: NodeNews): Promise<void> {
    const entry = this.#entries.get(node);
    if (!entry) return;
    const { client, namespace } = this.#ports;
    await client.patch(objectPath("/api/v1", "configmaps", namespace, namePrefix + node), "merge", {
      data: { news: JSON.stringify(news) },
    });
  }

  async remove(node: string): Promise<void> {
    const { client, namespace } = this.#ports;
    try {
      await client.delete(objectPath("/api/v1", "configmaps", namespace, namePrefix + node));
    } catch (error) {
      if (!(error instanceof KubeApiError && error.status === 404)) throw error;
    }
  }

  // ---- ReflectorHandler

  replaced(objects: RawObject[]): void {
    const before = new Set(this.#entries.keys());
    for (const object of objects) {
      const node = this.#take(JSON.parse(text(object.bytes)) as ConfigMap);
      if (node !== undefined) before.delete(node);
    }
    for (const node of before) this.#drop(node);
  }
  upserted(object: RawObject): void {
    this.#take(JSON.parse(text(object.bytes)) as ConfigMap);
  }
  deleted(object: RawObject): void {
    this.#drop(object.name.slice(namePrefix.length));
  }

  #take(object: ConfigMap): string | undefined {
    let record: NodeRecord, news: NodeNews | undefined;
    try {
      record = recordOf(object);
      news = object.data?.news === undefined ? undefined : JSON.parse(object.data.news) as NodeNews;
    } catch {
      return undefined; // not written by us
    }
    const before = this.#entries.get(record.node);
    this.#entries.set(record.node, { record, news, object });
    if (JSON.stringify(before?.record) !== JSON.stringify(record)) this.#tell(record.node, record);
    return record.node;
  }
  #drop(node: string): void {
    if (this.#entries.delete(node)) this.#tell(node, undefined);
  }
  #tell(node: string, record: NodeRecord | undefined): void {
    for (const listener of this.#listeners) listener(node, record);
  }

  async #find(node: string): Promise<ConfigMap | undefined> {
    const { client, namespace } = this.#ports;
    return await client.find<ConfigMap>(objectPath("/api/v1", "configmaps", namespace, namePrefix + node));
  }

  /** False when somebody else was faster. */
  async #write(before: ConfigMap | undefined, record: NodeRecord): Promise<boolean> {
    const { client, namespace } = this.#ports;
    const object: ConfigMap = {
      apiVersion: "v1",
      kind: "ConfigMap",
      metadata: {
        ...before?.metadata,
        name: namePrefix + record.node,
        namespace,
        labels: { ...before?.metadata.labels, [recordLabel]: "true" },
      },
      data: { ...before?.data, record: JSON.stringify(record) },
    };
    try {
      const written = before
        ? await client.replace<ConfigMap>(
          objectPath("/api/v1", "configmaps", namespace, namePrefix + record.node),
          object,
        )
        : await client.create<ConfigMap>(objectPath("/api/v1", "configmaps", namespace), object);
      this.#take(written);
      return true;
    } catch (error) {
      if (error instanceof KubeApiError && (error.status === 409 || error.status === 404)) return false;
      throw error;
    }
  }

  #freePort(): number | undefined {
    const taken = new Set([...this.#entries.values()].map(({ record }) => record.kubeletPort));
    for (let port = this.#ports.kubeletPorts[0]; port <= this.#ports.kubeletPorts[1]; port++) {
      if (!taken.has(port)) return port;
    }
    return undefined;
  }
}

function recordOf(object: ConfigMap): NodeRecord {
  const record = JSON.parse(object.data?.record ?? "") as NodeRecord;
  if (
    typeof record.node !== "string" || typeof record.keyHash !== "string" ||
    typeof record.kubeletPort !== "number"
  ) {
    throw new Error(`ConfigMap ${object.metadata.name} holds no node record`);
  }
  return record;
}
