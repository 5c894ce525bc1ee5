/**
 * A Kubernetes API server in memory, behind the `HttpSend` of lib/kube/client.ts: objects with uid and resourceVersion,
 * paged lists, watches that resume, bookmarks, compaction (410), optimistic concurrency, merge patches, deletion with
 * preconditions and grace, selectors, impersonation with a pluggable authorizer.
 *
 * Not in it: defaulting, validation, admission, discovery, apply.
 */
import type { HttpRequest, HttpResponse, HttpSend } from "../../lib/kube/client.ts";

// deno-lint-ignore no-explicit-any
export type Json = any;

interface Sort {
  kind: string;
  namespaced: boolean;
  /** Its status is written by the subresource alone. */
  status?: boolean;
}
const sorts: Record<string, Sort> = {
  "/api/v1/namespaces": { kind: "Namespace", namespaced: false, status: true },
  "/api/v1/nodes": { kind: "Node", namespaced: false, status: true },
  "/api/v1/pods": { kind: "Pod", namespaced: true, status: true },
  "/api/v1/services": { kind: "Service", namespaced: true, status: true },
  "/api/v1/secrets": { kind: "Secret", namespaced: true },
  "/api/v1/configmaps": { kind: "ConfigMap", namespaced: true },
  "/api/v1/events": { kind: "Event", namespaced: true },
  "/api/v1/serviceaccounts": { kind: "ServiceAccount", namespaced: true },
  "/apis/coordination.k8s.io/v1/leases": { kind: "Lease", namespaced: true },
  "/apis/certificates.k8s.io/v1/certificatesigningrequests": {
    kind: "CertificateSigningRequest",
    namespaced: false,
    status: true,
  },
};

/** List members that strategic merge patches merge by a key; all other lists are replaced. */
const mergeKeys: Record<string, string> = {
  conditions: "type",
  addresses: "type",
  podIPs: "ip",
  hostIPs: "ip",
  containers: "name",
};

export interface Attributes {
  user: string;
  groups: string[];
  /** get, list, watch, create, update, patch, delete. */
  verb: string;
  resource: string;
  subresource: string;
  namespace: string;
  name: string;
  fieldSelector: string;
}
export type Authorizer = (attributes: Attributes) => boolean;

export interface Recorded extends Attributes {
  method: string;
  target: string;
  headers: [string, string][];
  body: Json;
  status: number;
}

interface StoredEvent {
  revision: number;
  collection: string;
  before: Json | undefined;
  after: Json | undefined;
}

interface Watch {
  collection: string;
  matches: (object: Json) => boolean;
  namespace: string | undefined;
  bookmarks: boolean;
  controller: ReadableStreamDefaultController<Uint8Array>;
  end: () => void;
}

class Refusal extends Error {
  constructor(
    readonly code: number,
    readonly reason: string,
    message: string,
    readonly retryAfterSeconds?: number,
  ) {
    super(message);
  }
}

export class FakeKubeApi {
  readonly requests: Recorded[] = [];
  /** Credentials of the connection, before impersonation. */
  user = { name: "kubernetes-admin", groups: ["system:masters"] };
  authorize: Authorizer = () => true;
  /** Answers instead of the server when it returns something; throws for a broken connection. */
  intercept:
    | ((
      request: HttpRequest,
      attributes: Attributes | undefined,
    ) => { status: number; body?: Json } | undefined | Promise<{ status: number; body?: Json } | undefined>)
    | undefined;
  /** Answers TokenReviews. */
  tokens = new Map<string, { username: string; groups: string[] }>();
  /** Answers SubjectAccessReviews. */
  access: (spec: Json) => boolean = () => false;
  /** How a watch from before the last compaction is told so: API servers do both. */
  gone: "event" | "status" = "event";
  version = { major: "1", minor: "37", gitVersion: "v1.37.2" };

  #revision = 100;
  #compacted = 0;
  #nextUid = 1;
  readonly #collections = new Map<string, Map<string, Json>>();
  readonly #history: StoredEvent[] = [];
  readonly #watches = new Set<Watch>();
  readonly #pages = new Map<string, { items: Json[]; revision: number }>();

  /** The transport to hand to KubeClient. */
  readonly send: HttpSend = async (request) => {
    await Promise.resolve();
    request.signal?.throwIfAborted();
    const url = new URL(request.target, "http://fake");
    const route = readRoute(url);
    const impersonated = header(request, "impersonate-user");
    const attributes: Attributes | undefined = route && {
      user: impersonated ?? this.user.name,
      groups: impersonated === undefined ? this.user.groups : [
        ...request.headers.filter(([name]) => name === "impersonate-group").map(([, value]) => value),
        ...(impersonated.startsWith("system:node:") ? ["system:nodes"] : []),
      ],
      verb: verbOf(request.method, route, url),
      resource: route.resource,
      subresource: route.subresource,
      namespace: route.namespace ?? "",
      name: route.name ?? "",
      fieldSelector: url.searchParams.get("fieldSelector") ?? "",
    };
    const body = request.body === undefined
      ? undefined
      : JSON.parse(typeof request.body === "string" ? request.body : new TextDecoder().decode(request.body));
    const empty = {
      user: impersonated ?? this.user.name,
      groups: [],
      verb: "",
      resource: "",
      subresource: "",
      namespace: "",
      name: "",
      fieldSelector: "",
    };
    const recorded: Recorded = {
      ...(attributes ?? empty),
      method: request.method,
      target: request.target,
      headers: request.headers,
      body,
      status: 0,
    };
    this.requests.push(recorded);
    const intercepted = await this.intercept?.(request, attributes);
    const answer = intercepted
      ? json(
        intercepted.status,
        intercepted.body ?? statusOf(intercepted.status, "Intercepted", "intercepted by the test"),
      )
      : this.#answer(request, url, route, attributes, body);
    recorded.status = answer.status;
    return answer;
  };

  // ---- for tests: the cluster's other actors, without requests

  /** Creates or replaces; fills apiVersion, kind, uid and resourceVersion. */
  put(collection: string, object: Json): Json {
    const known = this.#of(collection).get(keyOf(object));
    return this.#store(collection, known, {
      ...structuredClone(object),
      metadata: { ...object.metadata, uid: object.metadata.uid ?? known?.metadata.uid },
    });
  }
  find(collection: string, key: string): Json | undefined {
    const object = this.#of(collection).get(key);
    return object && structuredClone(object);
  }
  all(collection: string): Json[] {
    return structuredClone([...this.#of(collection).values()]);
  }
  remove(collection: string, key: string): void {
    const object = this.#of(collection).get(key);
    if (object) this.#delete(collection, object);
  }
  /** Forgets all history: watches and pages from before are gone. */
  compact(): void {
    this.#compacted = this.#revision;
    this.#history.length = 0;
    this.#pages.clear();
  }
  /** Ends all watches as a timeout or a restart does. */
  endWatches(): void {
    for (const watch of [...this.#watches]) watch.end();
  }
  bookmark(): void {
    for (const watch of this.#watches) {
      const sort = sorts[watch.collection] as Sort;
      const object = {
        kind: sort.kind,
        apiVersion: apiVersionOf(watch.collection),
        metadata: { resourceVersion: String(this.#revision), creationTimestamp: null },
      };
      if (watch.bookmarks) emit(watch, "BOOKMARK", object);
    }
  }
  /** Sends raw text down all watches. */
  inject(text: string): void {
    for (const watch of this.#watches) watch.controller.enqueue(new TextEncoder().encode(text));
  }
  get watches(): number {
    return this.#watches.size;
  }
  get revision(): number {
    return this.#revision;
  }
  /** Restores the cluster from a backup: the revisions go back, watches end. */
  rewind(revision: number): void {
    this.#revision = revision;
    this.#history.length = 0;
    this.#compacted = 0;
    this.endWatches();
  }

  // ---- requests

  #answer(
    request: HttpRequest,
    url: URL,
    route: Route | undefined,
    attributes: Attributes | undefined,
    body: Json,
  ): HttpResponse {
    try {
      if (url.pathname === "/version") return json(200, this.version);
      if (!route || !attributes) {
        throw new Refusal(404, "NotFound", "the server could not find the requested resource");
      }
      if (!this.authorize(attributes)) {
        const { user, verb, resource, subresource, namespace, name } = attributes;
        const what = `${resource}${subresource ? "/" + subresource : ""}`;
        throw new Refusal(
          403,
          "Forbidden",
          `${what} "${name}" is forbidden: User "${user}" cannot ${verb} resource "${what}" in namespace "${namespace}"`,
        );
      }
      const virtual = this.#virtual(route, body);
      if (virtual) return virtual;
      if (!sorts[route.collection]) {
        throw new Refusal(404, "NotFound", "the server could not find the requested resource");
      }
      switch (attributes.verb) {
        case "get":
          return json(200, this.#get(route));
        case "list":
          return json(200, this.#list(route, url.searchParams));
        case "watch":
          return this.#watch(route, url.searchParams, request.signal);
        case "create":
          return json(201, this.#create(route, body));
        case "update":
          return json(200, this.#update(route, body));
        case "patch":
          return json(200, this.#patch(route, body, header(request, "content-type") ?? ""));
        case "delete":
          return json(200, this.#remove(route, body));
        default:
          throw new Refusal(
            405,
            "MethodNotAllowed",
            `the server does not allow ${request.method} on the requested resource`,
          );
      }
    } catch (error) {
      if (error instanceof Refusal) {
        return json(error.code, statusOf(error.code, error.reason, error.message, error.retryAfterSeconds));
      }
      throw error;
    }
  }

  /** Reviews and token requests: answers that are never stored. */
  #virtual(route: Route, body: Json): HttpResponse | undefined {
    if (route.collection.endsWith("/tokenreviews")) {
      const user = this.tokens.get(body.spec.token);
      return json(201, {
        ...body,
        status: user ? { authenticated: true, user } : { authenticated: false, error: "unknown token" },
      });
    }
    if (route.collection.endsWith("/subjectaccessreviews")) {
      return json(201, { ...body, status: { allowed: this.access(body.spec) } });
    }
    if (route.resource === "serviceaccounts" && route.subresource === "token") {
      return json(201, {
        ...body,
        status: {
          token: `token-of-${route.namespace}-${route.name}`,
          expirationTimestamp: "2030-01-01T00:00:00Z",
        },
      });
    }
    return undefined;
  }

  #get(route: Route): Json {
    return this.#existing(route);
  }

  #list(route: Route, query: URLSearchParams): Json {
    const next = query.get("continue");
    let page = next ? this.#pages.get(next) : undefined;
    if (next && !page) {
      throw new Refusal(
        410,
        "Expired",
        "The provided continue parameter is too old to display a consistent list result.",
      );
    }
    if (next) this.#pages.delete(next);
    if (!page) {
      const matches = selector(query);
      const items = [...this.#of(route.collection)].sort(([a], [b]) => a < b ? -1 : 1).map(([, object]) =>
        object
      )
        .filter((object) => inNamespace(object, route.namespace) && matches(object));
      page = { items, revision: this.#revision };
    }
    const limit = Number(query.get("limit") ?? 0) || page.items.length;
    const items = page.items.slice(0, limit), rest = page.items.slice(limit);
    const metadata: Json = { resourceVersion: String(page.revision) };
    if (rest.length > 0) {
      metadata.continue = btoa(`${page.revision}:${this.requests.length}:${rest.length}`);
      metadata.remainingItemCount = rest.length;
      this.#pages.set(metadata.continue, { items: rest, revision: page.revision });
    }
    const kind = (sorts[route.collection] as Sort).kind;
    // As the API server does it: items of a list carry no apiVersion and kind.
    return {
      kind: `${kind}List`,
      apiVersion: apiVersionOf(route.collection),
      metadata,
      items: items.map(({ kind: _kind, apiVersion: _version, ...rest }) => rest),
    };
  }

  #watch(route: Route, query: URLSearchParams, signal: AbortSignal | undefined): HttpResponse {
    const from = query.get("resourceVersion");
    const matches = selector(query);
    const expired = from && from !== "0" && Number(from) < this.#compacted;
    const message = `too old resource version: ${from} (${this.#compacted})`;
    if (expired && this.gone === "status") throw new Refusal(410, "Expired", message);
    let watch: Watch | undefined;
    const body = new ReadableStream<Uint8Array>({
      start: (controller) => {
        const end = () => {
          if (watch && this.#watches.delete(watch)) controller.close();
        };
        watch = {
          collection: route.collection,
          namespace: route.namespace,
          matches,
          bookmarks: query.get("allowWatchBookmarks") === "true",
          controller,
          end,
        };
        if (expired) {
          emit(watch, "ERROR", statusOf(410, "Expired", message));
          controller.close();
          return;
        }
        this.#watches.add(watch);
        if (!from || from === "0") {
          for (const object of this.#of(route.collection).values()) this.#tell(watch, undefined, object);
        } else {for (const event of this.#history) {
            if (event.revision > Number(from) && event.collection === route.collection) {
              this.#tell(watch, event.before, event.after);
            }
          }}
        signal?.addEventListener("abort", () => {
          if (watch && this.#watches.delete(watch)) controller.error(signal.reason);
        }, { once: true });
      },
      cancel: () => {
        if (watch) this.#watches.delete(watch);
      },
    });
    return { status: 200, headers: new Headers({ "content-type": "application/json" }), body };
  }

  #create(route: Route, body: Json): Json {
    if (route.name !== undefined) throw new Refusal(405, "MethodNotAllowed", "POST to an object");
    const sort = sorts[route.collection] as Sort;
    const name = body.metadata?.name ??
      (body.metadata?.generateName
        ? body.metadata.generateName + Math.random().toString(36).slice(2, 7)
        : undefined);
    if (!name) throw new Refusal(422, "Invalid", `${sort.kind} "" is invalid: metadata.name: Required value`);
    const namespace = sort.namespaced ? route.namespace : undefined;
    if (sort.namespaced && namespace === undefined) {
      throw new Refusal(400, "BadRequest", "an empty namespace may not be set during creation");
    }
    if (body.metadata.namespace !== undefined && body.metadata.namespace !== namespace) {
      throw new Refusal(
        400,
        "BadRequest",
        "the namespace of the provided object does not match the namespace sent on the request",
      );
    }
    const metadata = { ...body.metadata, name, ...(namespace === undefined ? {} : { namespace }) };
    const object = { ...body, metadata };
    delete metadata.resourceVersion;
    delete metadata.uid;
    const existing = this.#of(route.collection).get(keyOf(object));
    if (existing) throw new Refusal(409, "AlreadyExists", `${route.resource} "${name}" already exists`);
    return this.#store(route.collection, undefined, object);
  }

  #update(route: Route, body: Json): Json {
    const before = this.#existing(route);
    this.#checkRevision(route, before, body.metadata ?? {});
    const sort = sorts[route.collection] as Sort;
    const status = route.subresource !== "";
    const after = status
      ? { ...before, status: body.status }
      : sort.status
      ? { ...body, status: before.status }
      : { ...body };
    after.metadata = {
      ...(status ? before.metadata : body.metadata),
      uid: before.metadata.uid,
      creationTimestamp: before.metadata.creationTimestamp,
    };
    return this.#store(route.collection, before, after);
  }

  #patch(route: Route, body: Json, contentType: string): Json {
    const before = this.#existing(route);
    this.#checkRevision(route, before, body.metadata ?? {});
    if (!/merge-patch\+json$/.test(contentType)) {
      throw new Refusal(
        415,
        "UnsupportedMediaType",
        `the body of the request was in an unknown format ${contentType}`,
      );
    }
    const sort = sorts[route.collection] as Sort;
    const strategic = contentType.includes("strategic");
    const patched = merged(before, body, strategic);
    const after = route.subresource !== ""
      ? { ...before, status: patched.status }
      : sort.status
      ? { ...patched, status: before.status }
      : patched;
    if (after.status === undefined) delete after.status;
    return this.#store(route.collection, before, after);
  }

  #remove(route: Route, body: Json): Json {
    const before = this.#existing(route);
    const { uid, resourceVersion } = body?.preconditions ?? {};
    this.#checkRevision(route, before, {
      ...(uid ? { uid } : {}),
      ...(resourceVersion ? { resourceVersion } : {}),
    });
    const graceSeconds = body?.gracePeriodSeconds ??
      (route.resource === "pods" && before.spec?.nodeName
        ? before.spec.terminationGracePeriodSeconds ?? 30
        : 0);
    if (graceSeconds > 0 && route.resource === "pods") {
      const deletionTimestamp = before.metadata.deletionTimestamp ??
        new Date(Date.UTC(2026, 0, 1)).toISOString();
      return this.#store(route.collection, before, {
        ...before,
        metadata: { ...before.metadata, deletionTimestamp, deletionGracePeriodSeconds: graceSeconds },
      });
    }
    this.#delete(route.collection, before);
    return {
      kind: "Status",
      apiVersion: "v1",
      metadata: {},
      status: "Success",
      details: { name: route.name, uid: before.metadata.uid },
    };
  }

  #existing(route: Route): Json {
    const key = route.namespace === undefined ? route.name ?? "" : `${route.namespace}/${route.name}`;
    const object = this.#of(route.collection).get(key);
    if (!object) throw new Refusal(404, "NotFound", `${route.resource} "${route.name}" not found`);
    return object;
  }

  #checkRevision(route: Route, before: Json, metadata: Json): void {
    const conflict = (message: string) =>
      new Refusal(
        409,
        "Conflict",
        `Operation cannot be fulfilled on ${route.resource} "${route.name}": ${message}`,
      );
    if (metadata.uid !== undefined && metadata.uid !== before.metadata.uid) {
      throw conflict(
        `Precondition failed: UID in precondition: ${metadata.uid}, UID in object meta: ${before.metadata.uid}`,
      );
    }
    if (
      metadata.resourceVersion !== undefined && metadata.resourceVersion !== before.metadata.resourceVersion
    ) {
      throw conflict(
        "the object has been modified; please apply your changes to the latest version and try again",
      );
    }
  }

  // ---- storage

  #of(collection: string): Map<string, Json> {
    let objects = this.#collections.get(collection);
    if (!objects) this.#collections.set(collection, objects = new Map());
    return objects;
  }

  #store(collection: string, before: Json | undefined, object: Json): Json {
    const sort = sorts[collection] as Sort;
    const uid = before?.metadata.uid ?? object.metadata.uid ?? `uid-${this.#nextUid++}`;
    const after = {
      ...object,
      apiVersion: apiVersionOf(collection),
      kind: sort.kind,
      metadata: {
        ...object.metadata,
        uid,
        creationTimestamp: before?.metadata.creationTimestamp ?? object.metadata.creationTimestamp ??
          "2026-01-01T00:00:00Z",
        resourceVersion: String(++this.#revision),
      },
    };
    this.#of(collection).set(keyOf(after), after);
    this.#happened(collection, before, after);
    return after;
  }

  #delete(collection: string, before: Json): void {
    this.#of(collection).delete(keyOf(before));
    this.#revision++;
    this.#happened(collection, before, undefined);
  }

  #happened(collection: string, before: Json | undefined, after: Json | undefined): void {
    this.#history.push({ revision: this.#revision, collection, before, after });
    for (const watch of this.#watches) if (watch.collection === collection) this.#tell(watch, before, after);
  }

  #tell(watch: Watch, before: Json | undefined, after: Json | undefined): void {
    const sees = (object: Json | undefined) =>
      object !== undefined && inNamespace(object, watch.namespace) && watch.matches(object);
    const [saw, sees2] = [sees(before), sees(after)];
    if (sees2) emit(watch, saw ? "MODIFIED" : "ADDED", after);
    else if (saw) {
      const gone = this.#history.findLast((event) => event.before === before);
      emit(watch, "DELETED", {
        ...before,
        metadata: {
          ...before.metadata,
          resourceVersion: after?.metadata.resourceVersion ?? String(gone?.revision ?? this.#revision),
        },
      });
    }
  }
}

/** The Node authorizer with NodeRestriction, as far as edge nodes feel it; everybody else may do everything. */
export function nodeAuthorizer(api: FakeKubeApi): Authorizer {
  return ({ user, verb, resource, subresource, namespace, name, fieldSelector }) => {
    const node = /^system:node:(.+)$/.exec(user)?.[1];
    if (node === undefined) return true;
    const pods = api.all("/api/v1/pods").filter((pod) => pod.spec?.nodeName === node);
    const own = (candidate: string) =>
      pods.some((pod) => pod.metadata.namespace === namespace && pod.metadata.name === candidate);
    switch (resource) {
      case "nodes":
        return name === node && ["get", "update", "patch", "watch", "list"].includes(verb);
      case "pods":
        return own(name) &&
          (verb === "get" || verb === "delete" || (verb === "patch" && subresource === "status"));
      case "secrets":
      case "configmaps": {
        const asked = name || /^metadata\.name=([^,]+)$/.exec(fieldSelector)?.[1];
        return asked !== undefined && ["get", "list", "watch"].includes(verb) &&
          pods.some((pod) => pod.metadata.namespace === namespace && refersTo(pod.spec, resource, asked));
      }
      case "serviceaccounts":
        return subresource === "token" &&
          pods.some((pod) =>
            pod.metadata.namespace === namespace && (pod.spec.serviceAccountName ?? "default") === name
          );
      case "leases":
        return namespace === "kube-node-lease" && (name === node || verb === "create");
      case "events":
      case "certificatesigningrequests":
        return verb === "create" || verb === "get";
      default:
        return false;
    }
  };
}

function refersTo(value: Json, resource: "secrets" | "configmaps", name: string): boolean {
  if (Array.isArray(value)) return value.some((item) => refersTo(item, resource, name));
  if (typeof value !== "object" || value === null) return false;
  const members = resource === "secrets"
    ? ["secret", "secretRef", "secretKeyRef"]
    : ["configMap", "configMapRef", "configMapKeyRef"];
  return members.some((member) => value[member]?.name === name || value[member]?.secretName === name) ||
    (resource === "secrets" && value.imagePullSecrets?.some((item: Json) => item.name === name)) ||
    Object.values(value).some((item) => refersTo(item, resource, name));
}

interface Route {
  /** `/api/v1/pods`, `/apis/GROUP/VERSION/RESOURCE`. */
  collection: string;
  resource: string;
  namespace: string | undefined;
  name: string | undefined;
  subresource: string;
}

function readRoute(url: URL): Route | undefined {
  const match = /^(\/api\/v1|\/apis\/[^/]+\/[^/]+)\/(.+)$/.exec(url.pathname);
  if (!match) return undefined;
  const [, group = "", rest = ""] = match;
  let parts = rest.split("/").map(decodeURIComponent);
  let namespace: string | undefined;
  if (parts[0] === "namespaces" && parts.length > 2 && parts[2] !== "status" && parts[2] !== "finalize") {
    namespace = parts[1];
    parts = parts.slice(2);
  }
  const [resource = "", name, subresource = ""] = parts;
  return { collection: `${group}/${resource}`, resource, namespace, name, subresource };
}

function verbOf(method: string, route: Route, url: URL): string {
  if (method === "GET") {
    return url.searchParams.get("watch") === "true" ? "watch" : route.name === undefined ? "list" : "get";
  }
  return { POST: "create", PUT: "update", PATCH: "patch", DELETE: "delete" }[method] ?? method.toLowerCase();
}

function header(request: HttpRequest, wanted: string): string | undefined {
  return request.headers.find(([name]) => name.toLowerCase() === wanted)?.[1];
}
function keyOf(object: Json): string {
  const { namespace, name } = object.metadata;
  return namespace === undefined ? name : `${namespace}/${name}`;
}
function apiVersionOf(collection: string): string {
  return collection.replace(/^\/apis?\//, "").split("/").slice(0, -1).join("/");
}
function inNamespace(object: Json, namespace: string | undefined): boolean {
  return namespace === undefined || object.metadata.namespace === namespace;
}
function emit(watch: Watch, type: string, object: Json): void {
  watch.controller.enqueue(new TextEncoder().encode(JSON.stringify({ type, object }) + "\n"));
}
function json(status: number, body: Json): HttpResponse {
  const bytes = new TextEncoder().encode(JSON.stringify(body));
  const stream = new ReadableStream<Uint8Array>({
    start(controller) {
      controller.enqueue(bytes);
      controller.close();
    },
  });
  return { status, headers: new Headers({ "content-type": "application/json" }), body: stream };
}
function statusOf(code: number, reason: string, message: string, retryAfterSeconds?: number): Json {
  const details = retryAfterSeconds === undefined ? {} : { details: { retryAfterSeconds } };
  return {
    kind: "Status",
    apiVersion: "v1",
    metadata: {},
    status: "Failure",
    message,
    reason,
    code,
    ...details,
  };
}

function merged(target: Json, patch: Json, strategic: boolean, member = ""): Json {
  if (Array.isArray(patch)) {
    if (!strategic) return patch;
    const replace = patch.some((item) => item?.$patch === "replace");
    const items = patch.filter((item) => item?.$patch === undefined);
    const key = mergeKeys[member];
    if (replace || key === undefined || !Array.isArray(target)) return items;
    const rest = items.filter((item) => !target.some((old) => old[key] === item[key]));
    return [
      ...target.map((old: Json) =>
        merged(old, items.find((item) => item[key] === old[key]) ?? {}, strategic)
      ),
      ...rest,
    ];
  }
  if (typeof patch !== "object" || patch === null) return patch;
  const result: Json = typeof target === "object" && target !== null && !Array.isArray(target)
    ? { ...target }
    : {};
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) delete result[name];
    else result[name] = merged(result[name], value, strategic, name);
  }
  return result;
}

/** Field selectors on any member, with = and !=; label selectors in full. */
function selector(query: URLSearchParams): (object: Json) => boolean {
  const tests: ((object: Json) => boolean)[] = [];
  for (const term of (query.get("fieldSelector") ?? "").split(",").filter(Boolean)) {
    const [, path = "", operator = "", value = ""] = /^([^=!]+)(==?|!=)(.*)$/.exec(term) ?? [];
    const read = (object: Json) =>
      String(path.split(".").reduce((at: Json, name) => at?.[name], object) ?? "");
    tests.push((object) => (read(object) === value) !== (operator === "!="));
  }
  for (const term of (query.get("labelSelector") ?? "").split(/,(?![^(]*\))/).filter(Boolean)) {
    const set = /^\s*(\S+)\s+(in|notin)\s+\(([^)]*)\)\s*$/.exec(term);
    const [, path = "", operator = "", value = ""] = /^([^=!]+)(==?|!=)(.*)$/.exec(term) ?? [];
    const labels = (object: Json) => object.metadata.labels ?? {};
    if (set) {
      const values = (set[3] ?? "").split(",").map((item) => item.trim());
      tests.push((object) => values.includes(labels(object)[set[1] ?? ""]) !== (set[2] === "notin"));
    } else if (operator) tests.push((object) => (labels(object)[path] === value) !== (operator === "!="));
    else if (term.startsWith("!")) tests.push((object) => !(term.slice(1) in labels(object)));
    else tests.push((object) => term.trim() in labels(object));
  }
  return (object) => tests.every((test) => test(object));
}
