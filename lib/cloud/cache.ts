/**
 * What every edge node is to hold, kept from shared watches with the cloud's own identity and indexed by node: one pod's
 * change touches one node's view, whatever the number of nodes. Secrets and ConfigMaps come from references.ts.
 */
import { text } from "../core/bytes.ts";
import type { RawObject, ReflectorHandler } from "../kube/reflector.ts";
import { deliveryVersion } from "../kube/object_hash.ts";
import { cutMembers, readString } from "../kube/slice.ts";
import type { Pod } from "../kube/types.ts";
import type { NodeView, ViewObject } from "../wire/hub_session.ts";
import { type Reference, type References, referencesOf } from "./references.ts";

export const viewKinds = ["nodes", "services", "configmaps", "secrets", "pods"] as const;

interface CachedPod {
  object: ViewObject;
  namespace: string;
  references: Reference[];
}

/** One node's view. */
class NodeState implements NodeView {
  readonly pods = new Map<string, CachedPod>();
  node: ViewObject | undefined;
  constructor(readonly name: string, readonly cache: Cache) {}

  kinds(): readonly string[] {
    return viewKinds;
  }
  keys(kind: string): Iterable<string> {
    switch (kind) {
      case "nodes":
        return this.node ? [this.name] : [];
      case "pods":
        return this.pods.keys();
      case "services":
        return this.cache.servicesFor(this.namespaces());
      case "secrets":
      case "configmaps":
        return this.cache.references.keysOf(this.name, kind);
      default:
        return [];
    }
  }
  get(kind: string, key: string): ViewObject | undefined {
    switch (kind) {
      case "nodes":
        return key === this.name ? this.node : undefined;
      case "pods":
        return this.pods.get(key)?.object;
      case "services":
        return this.cache.service(key, this.namespaces());
      case "secrets":
      case "configmaps":
        return this.cache.references.get(this.name, kind, key);
      default:
        return undefined;
    }
  }
  namespaces(): Set<string> {
    return new Set([...this.pods.values()].map((pod) => pod.namespace));
  }
}

/** Told of each object of a node's view that may have changed. */
export type ChangeListener = (node: string, kind: string, key: string) => void;

export class Cache {
  readonly references: References;
  readonly #nodes = new Map<string, NodeState>();
  readonly #podNodes = new Map<string, string>();
  readonly #services = new Map<string, ViewObject>();
  readonly #changed: ChangeListener;
  readonly #nodeDeleted: (node: string) => void;
  /** Only pods and Node objects of edge nodes are kept. */
  readonly #isEdge: (node: string) => boolean;

  constructor(
    options: {
      references: References;
      changed: ChangeListener;
      nodeDeleted: (node: string) => void;
      isEdge: (node: string) => boolean;
    },
  ) {
    this.references = options.references;
    this.#changed = options.changed;
    this.#nodeDeleted = options.nodeDeleted;
    this.#isEdge = options.isEdge;
  }

  view(node: string): NodeView {
    return this.#state(node);
  }

  /** The pod of that name if it is on the node. */
  podOnNode(node: string, namespace: string, name: string): boolean {
    return this.#nodes.get(node)?.pods.has(`${namespace}/${name}`) ?? false;
  }

  readonly podHandler: ReflectorHandler = {
    replaced: (objects) => {
      const gone = new Set(this.#podNodes.keys());
      for (const object of objects) {
        gone.delete(`${object.namespace}/${object.name}`);
        this.#setPod(object);
      }
      for (const key of gone) this.#removePod(key);
    },
    upserted: (object) => this.#setPod(object),
    deleted: (object) => this.#removePod(`${object.namespace}/${object.name}`),
  };

  readonly nodeHandler: ReflectorHandler = {
    replaced: (objects) => {
      const names = new Set(objects.map((object) => object.name));
      for (const object of objects) this.#setNode(object);
      for (const [name, state] of this.#nodes) if (state.node && !names.has(name)) this.#removeNode(name);
    },
    upserted: (object) => this.#setNode(object),
    deleted: (object) => this.#removeNode(object.name),
  };

  readonly serviceHandler: ReflectorHandler = {
    replaced: (objects) => {
      const keys = new Set(objects.map((object) => `${object.namespace}/${object.name}`));
      for (const object of objects) this.#setService(object);
      for (const key of [...this.#services.keys()]) if (!keys.has(key)) this.#removeService(key);
    },
    upserted: (object) => this.#setService(object),
    deleted: (object) => this.#removeService(`${object.namespace}/${object.name}`),
  };

  servicesFor(namespaces: Set<string>): string[] {
    return [...this.#services.keys()].filter((key) => visible(key, namespaces));
  }
  service(key: string, namespaces: Set<string>): ViewObject | undefined {
    return visible(key, namespaces) ? this.#services.get(key) : undefined;
  }

  #state(node: string): NodeState {
    let state = this.#nodes.get(node);
    if (!state) this.#nodes.set(node, state = new NodeState(node, this));
    return state;
  }

  #setPod(raw: RawObject): void {
    const key = `${raw.namespace}/${raw.name}`;
    const node = readString(raw.bytes, ["spec", "nodeName"]) ?? "";
    const before = this.#podNodes.get(key);
    if (before !== undefined && before !== node) this.#removePod(key);
    if (node === "" || !this.#isEdge(node)) return;
    const json = cutMembers(raw.bytes, [["metadata", "managedFields"]]) ?? raw.bytes;
    const version = deliveryVersion(json);
    const state = this.#state(node);
    const known = state.pods.get(key);
    if (known?.object.version === version) return; // its status changed: the edge wrote that itself
    const namespacesBefore = state.namespaces();
    const references = referencesOf(JSON.parse(text(json)) as Pod);
    state.pods.set(key, { object: { uid: raw.uid, version, json }, namespace: raw.namespace, references });
    this.#podNodes.set(key, node);
    this.#retarget(state);
    if (!namespacesBefore.has(raw.namespace)) this.#servicesChanged(state, raw.namespace);
    this.#changed(node, "pods", key);
  }

  #removePod(key: string): void {
    const node = this.#podNodes.get(key);
    if (node === undefined) return;
    this.#podNodes.delete(key);
    const state = this.#state(node);
    const pod = state.pods.get(key);
    state.pods.delete(key);
    this.#retarget(state);
    if (pod && !state.namespaces().has(pod.namespace)) this.#servicesChanged(state, pod.namespace);
    this.#changed(node, "pods", key);
  }

  #retarget(state: NodeState): void {
    this.references.need(state.name, [...state.pods.values()].flatMap((pod) => pod.references));
  }

  #servicesChanged(state: NodeState, namespace: string): void {
    for (const key of this.#services.keys()) {
      if (key.startsWith(namespace + "/")) this.#changed(state.name, "services", key);
    }
  }

  #setNode(raw: RawObject): void {
    if (!this.#isEdge(raw.name)) return;
    // The status is the edge's own, and changes with every heartbeat.
    const json = cutMembers(raw.bytes, [["metadata", "managedFields"], ["status"]]) ?? raw.bytes;
    const version = deliveryVersion(json);
    const state = this.#state(raw.name);
    if (state.node?.version === version) return;
    state.node = { uid: raw.uid, version, json };
    this.#changed(raw.name, "nodes", raw.name);
  }

  #removeNode(name: string): void {
    const state = this.#nodes.get(name);
    if (!state?.node) return;
    state.node = undefined;
    this.#changed(name, "nodes", name);
    this.#nodeDeleted(name);
  }

  #setService(raw: RawObject): void {
    const json = cutMembers(raw.bytes, [["metadata", "managedFields"], ["status"]]) ?? raw.bytes;
    const key = `${raw.namespace}/${raw.name}`, version = deliveryVersion(json);
    if (this.#services.get(key)?.version === version) return;
    this.#services.set(key, { uid: raw.uid, version, json });
    this.#tellServices(key);
  }
  #removeService(key: string): void {
    if (this.#services.delete(key)) this.#tellServices(key);
  }
  #tellServices(key: string): void {
    for (const state of this.#nodes.values()) {
      if (visible(key, state.namespaces())) this.#changed(state.name, "services", key);
    }
  }
}

/** Services of the namespaces in which the node has pods, and the API server's own. */
function visible(key: string, namespaces: Set<string>): boolean {
  return key === "default/kubernetes" || namespaces.has(key.slice(0, key.indexOf("/")));
}
