/**
 * Secrets and ConfigMaps that pods refer to: one watch per object, shared by the nodes that need it, run as one of them
 * (a node may watch single named objects only, and the cloud itself may read none). Each node is authorized by a read of
 * its own before it is given anything: Kubernetes decides, by its Node authorizer.
 */
import type { Clock, Random } from "../core/clock.ts";
import { errorText } from "../core/errors.ts";
import type { Logger } from "../core/log.ts";
import { KubeApiError, type KubeClient, objectPath } from "../kube/client.ts";
import { deliveryVersion } from "../kube/object_hash.ts";
import { Reflector } from "../kube/reflector.ts";
import { cutMembers } from "../kube/slice.ts";
import type { Pod } from "../kube/types.ts";
import { absentVersion, type ViewObject } from "../wire/hub_session.ts";

export type ReferenceKind = "secrets" | "configmaps";
export interface Reference {
  kind: ReferenceKind;
  /** namespace/name */
  key: string;
}

/** The authorizer's graph learns of a binding a moment after the pod: how often and how long to ask again, ms. */
const authorizeRetryMs = [20, 50, 100, 200, 400, 800, 1600];
/** After that the node is told nothing about the object; asked again this often. */
const refusedRetryMs = 30_000;

/** Everything that a pod refers to, once. */
export function referencesOf(pod: Pod): Reference[] {
  const namespace = pod.metadata.namespace ?? "default";
  const found = new Map<string, Reference>();
  const add = (kind: ReferenceKind, name: string | undefined) => {
    if (name) found.set(`${kind} ${name}`, { kind, key: `${namespace}/${name}` });
  };
  for (const { name } of pod.spec.imagePullSecrets ?? []) add("secrets", name);
  for (const volume of pod.spec.volumes ?? []) {
    add("configmaps", volume.configMap?.name);
    add("secrets", volume.secret?.secretName);
    for (const source of volume.projected?.sources ?? []) {
      add("configmaps", source.configMap?.name);
      add("secrets", source.secret?.name);
    }
  }
  for (
    const container of [
      ...pod.spec.containers,
      ...(pod.spec.initContainers ?? []),
      ...(pod.spec.ephemeralContainers ?? []),
    ]
  ) {
    for (const { configMapRef, secretRef } of container.envFrom ?? []) {
      add("configmaps", configMapRef?.name);
      add("secrets", secretRef?.name);
    }
    for (const { valueFrom } of container.env ?? []) {
      add("configmaps", valueFrom?.configMapKeyRef?.name);
      add("secrets", valueFrom?.secretKeyRef?.name);
    }
  }
  return [...found.values()];
}

type Grant = "asking" | "granted" | "refused";

/** One referred object. */
interface Watched {
  reference: Reference;
  nodes: Map<string, Grant>;
  object: ViewObject | undefined;
  /** As whom the watch runs. */
  watcher: string | undefined;
  reflector: Reflector | undefined;
}

export interface ReferencePorts {
  client: KubeClient;
  clock: Clock;
  random: Random;
  log: Logger;
  changed: (node: string, kind: string, key: string) => void;
  watchFailed: () => void;
}

export class References {
  readonly #ports: ReferencePorts;
  readonly #watched = new Map<string, Watched>();
  readonly #needed = new Map<string, Map<string, Reference>>();
  readonly #completeWaiters = new Map<string, (() => void)[]>();
  #stopped = false;

  constructor(ports: ReferencePorts) {
    this.#ports = ports;
  }

  /** What the node needs from now on. */
  need(node: string, references: Reference[]): void {
    const now = new Map(references.map((reference) => [`${reference.kind} ${reference.key}`, reference]));
    const before = this.#needed.get(node);
    this.#needed.set(node, now);
    for (const [id, reference] of now) if (!before?.has(id)) this.#add(node, id, reference);
    for (const id of before?.keys() ?? []) if (!now.has(id)) this.#remove(node, id);
    this.#checkComplete(); // what was missing may be needed no longer
  }

  get(node: string, kind: ReferenceKind, key: string): ViewObject | undefined {
    const watched = this.#watched.get(`${kind} ${key}`);
    return watched?.nodes.get(node) === "granted" ? watched.object : undefined;
  }

  keysOf(node: string, kind: ReferenceKind): string[] {
    return [...(this.#needed.get(node)?.values() ?? [])].filter((reference) => reference.kind === kind).map((
      reference,
    ) => reference.key);
  }

  /** Resolves when every reference of the node is known, absent or refused. */
  async complete(node: string): Promise<void> {
    while (!this.#stopped && !this.#isComplete(node)) {
      await new Promise<void>((resolve) => {
        const waiters = this.#completeWaiters.get(node) ?? [];
        waiters.push(resolve);
        this.#completeWaiters.set(node, waiters);
      });
    }
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    await Promise.all([...this.#watched.values()].map((watched) => watched.reflector?.stop()));
  }

  #isComplete(node: string): boolean {
    for (const id of this.#needed.get(node)?.keys() ?? []) {
      const watched = this.#watched.get(id);
      const grant = watched?.nodes.get(node);
      if (!watched || grant === "asking" || (grant === "granted" && !watched.object)) return false;
    }
    return true;
  }

  #add(node: string, id: string, reference: Reference): void {
    let watched = this.#watched.get(id);
    if (!watched) {
      this.#watched.set(
        id,
        watched = {
          reference,
          nodes: new Map(),
          object: undefined,
          watcher: undefined,
          reflector: undefined,
        },
      );
    }
    watched.nodes.set(node, "asking");
    void this.#authorize(node, id, watched);
  }

  #remove(node: string, id: string): void {
    const watched = this.#watched.get(id);
    if (!watched) return;
    watched.nodes.delete(node);
    if (watched.nodes.size === 0) {
      this.#watched.delete(id);
      void watched.reflector?.stop();
    } else if (watched.watcher === node) this.#handOver(watched);
    this.#ports.changed(node, watched.reference.kind, watched.reference.key);
  }

  async #authorize(node: string, id: string, watched: Watched): Promise<void> {
    const { client, clock, log } = this.#ports;
    const { kind, key } = watched.reference;
    const [namespace = "", name = ""] = key.split("/");
    const current = () => this.#watched.get(id) === watched && watched.nodes.has(node) && !this.#stopped;
    for (let attempt = 0; current(); attempt++) {
      try {
        const bytes = await client.getBytes(objectPath("/api/v1", kind, namespace, name), { as: { node } });
        if (!current()) return;
        this.#granted(node, watched, viewObject(bytes));
        return;
      } catch (error) {
        if (!current()) return;
        if (error instanceof KubeApiError && error.status === 404) {
          this.#granted(node, watched, { uid: "", version: absentVersion, json: undefined });
          return;
        }
        const forbidden = error instanceof KubeApiError && error.status === 403;
        const delayMs = authorizeRetryMs[attempt];
        if (delayMs === undefined && watched.nodes.get(node) !== "refused") {
          if (forbidden) watched.nodes.set(node, "refused");
          log.warn("A node may not read what its pod refers to", {
            node,
            kind,
            key,
            error: errorText(error),
          });
          this.#checkComplete();
        }
        await clock.sleep(delayMs ?? refusedRetryMs);
      }
    }
  }

  #granted(node: string, watched: Watched, object: ViewObject): void {
    watched.nodes.set(node, "granted");
    // The shared watch knows better, once it runs.
    if (!watched.reflector) watched.object = object;
    watched.object ??= object;
    if (!watched.reflector) this.#watch(watched, node);
    this.#ports.changed(node, watched.reference.kind, watched.reference.key);
    this.#checkComplete();
  }

  #watch(watched: Watched, node: string): void {
    const { client, clock, random, log, watchFailed } = this.#ports;
    const { kind, key } = watched.reference;
    const [namespace = "", name = ""] = key.split("/");
    const absent: ViewObject = { uid: "", version: absentVersion, json: undefined };
    const set = (object: ViewObject) => {
      if (watched.object?.version === object.version && watched.object.uid === object.uid) return;
      watched.object = object;
      for (const [user, grant] of watched.nodes) {
        if (grant === "granted") this.#ports.changed(user, kind, key);
      }
    };
    watched.watcher = node;
    const reflector = new Reflector({
      client,
      path: objectPath("/api/v1", kind, namespace),
      apiVersion: "v1",
      kind: kind === "secrets" ? "Secret" : "ConfigMap",
      fieldSelector: `metadata.name=${name}`,
      as: () => watched.watcher === undefined ? undefined : { node: watched.watcher },
      handler: {
        replaced: (objects) => set(objects[0] ? viewObject(objects[0].bytes, objects[0].uid) : absent),
        upserted: (object) => set(viewObject(object.bytes, object.uid)),
        deleted: () => set(absent),
      },
      // The node that watches may have lost its right: another one takes over.
      failed: (error) => {
        watchFailed();
        if (error instanceof KubeApiError && error.status === 403) this.#handOver(watched);
      },
      clock,
      random,
      log,
    });
    watched.reflector = reflector.start();
  }

  #handOver(watched: Watched): void {
    const others = [...watched.nodes].filter(([node, grant]) =>
      grant === "granted" && node !== watched.watcher
    );
    const next = others[0]?.[0];
    if (next !== undefined) watched.watcher = next;
  }

  #checkComplete(): void {
    for (const [node, waiters] of [...this.#completeWaiters]) {
      if (!this.#isComplete(node)) continue;
      this.#completeWaiters.delete(node);
      for (const wake of waiters) wake();
    }
  }
}

function viewObject(bytes: Uint8Array, uid?: string): ViewObject {
  const json = cutMembers(bytes, [["metadata", "managedFields"]]) ?? bytes;
  const known = uid ??
    (JSON.parse(new TextDecoder().decode(json)) as { metadata: { uid?: string } }).metadata.uid ?? "";
  return { uid: known, version: deliveryVersion(json), json };
}
