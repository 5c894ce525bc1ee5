/**
 * A thin Kubernetes REST client over an injected transport (lib/sys/kube_http.ts, or the fake API server of the tests).
 * What it adds to HTTP: impersonation, error bodies as errors, patches, and watches as raw lines.
 */
import { text } from "../core/bytes.ts";
import type { KubeList, Status } from "./types.ts";

/** Answers beyond this are refused: a full list page of the largest objects stays far below. */
export const responseBytesMax = 64 * 1024 * 1024;
/** Default time for a request that is not a watch, ms. */
export const requestTimeoutMs = 30_000;

export interface HttpRequest {
  method: string;
  /** Path and query. */
  target: string;
  headers: [string, string][];
  body?: Uint8Array<ArrayBuffer> | string;
  signal?: AbortSignal;
  /** Undefined: no limit on the answer's duration (watches). */
  timeoutMs?: number;
}
export interface HttpResponse {
  status: number;
  headers: Headers;
  body: ReadableStream<Uint8Array> | null;
}
/** Sends to the API server with the credentials of the kubeconfig; throws when there is no answer. */
export type HttpSend = (request: HttpRequest) => Promise<HttpResponse>;

/** As whom a request is made; nothing: as the credentials say. */
export type Impersonation = { node: string };

export interface RequestOptions {
  query?: Record<string, string | number | boolean | undefined>;
  as?: Impersonation | undefined;
  signal?: AbortSignal | undefined;
  timeoutMs?: number;
}

/** The API server cannot be reached, or broke off. */
export class KubeUnreachable extends Error {
  override name = "KubeUnreachable";
}

/** The API server refused; `reason` is Kubernetes' own (NotFound, Conflict, …). */
export class KubeApiError extends Error {
  override name = "KubeApiError";
  constructor(
    message: string,
    readonly status: number,
    readonly reason: string,
    readonly retryAfterMs?: number,
  ) {
    super(message);
  }
}

export type PatchType = "merge" | "strategic" | "json" | "apply";
const patchTypes: Record<PatchType, string> = {
  merge: "application/merge-patch+json",
  strategic: "application/strategic-merge-patch+json",
  json: "application/json-patch+json",
  apply: "application/apply-patch+yaml",
};

export class KubeClient {
  readonly #send: HttpSend;
  /** From Kubernetes 1.36 nodes are impersonated by name alone (constrained impersonation); before, with their group. */
  #groupsNeeded = false;

  constructor(send: HttpSend) {
    this.#send = send;
  }

  /** Asks the server's version and chooses the form of impersonation. */
  async connect(signal?: AbortSignal): Promise<{ major: number; minor: number; gitVersion: string }> {
    const version = await this.get<{ major: string; minor: string; gitVersion: string }>("/version", {
      signal,
    });
    const major = Number.parseInt(version.major), minor = Number.parseInt(version.minor);
    this.#groupsNeeded = major === 1 && minor < 36;
    return { major, minor, gitVersion: version.gitVersion };
  }

  /** The whole answer, whatever its status. Throws KubeUnreachable. */
  async request(
    method: string,
    path: string,
    options: RequestOptions & { body?: Uint8Array<ArrayBuffer> | string; contentType?: string } = {},
  ): Promise<{ status: number; body: Uint8Array; headers: Headers }> {
    const response = await this.#start(method, path, options, options.timeoutMs ?? requestTimeoutMs);
    try {
      return { status: response.status, headers: response.headers, body: await readAll(response.body) };
    } catch (error) {
      throw new KubeUnreachable(`Cannot read the answer to ${method} ${path}`, { cause: error });
    }
  }

  async get<T>(path: string, options: RequestOptions = {}): Promise<T> {
    return parse(await this.#checked("GET", path, options));
  }
  /** Raw bytes of the object. */
  async getBytes(path: string, options: RequestOptions = {}): Promise<Uint8Array> {
    return await this.#checked("GET", path, options);
  }
  async list<T>(path: string, options: RequestOptions = {}): Promise<KubeList<T>> {
    return parse(await this.#checked("GET", path, options));
  }
  async create<T>(path: string, object: unknown, options: RequestOptions = {}): Promise<T> {
    return parse(await this.#checked("POST", path, { ...options, body: JSON.stringify(object) }));
  }
  async replace<T>(path: string, object: unknown, options: RequestOptions = {}): Promise<T> {
    return parse(await this.#checked("PUT", path, { ...options, body: JSON.stringify(object) }));
  }
  async patch<T>(path: string, type: PatchType, patch: unknown, options: RequestOptions = {}): Promise<T> {
    const request = { ...options, body: JSON.stringify(patch), contentType: patchTypes[type] };
    return parse(await this.#checked("PATCH", path, request));
  }
  async delete(
    path: string,
    deletion: { uid?: string; gracePeriodSeconds?: number } = {},
    options: RequestOptions = {},
  ): Promise<void> {
    const body: Record<string, unknown> = { apiVersion: "v1", kind: "DeleteOptions" };
    if (deletion.uid !== undefined) body.preconditions = { uid: deletion.uid };
    if (deletion.gracePeriodSeconds !== undefined) body.gracePeriodSeconds = deletion.gracePeriodSeconds;
    await this.#checked("DELETE", path, { ...options, body: JSON.stringify(body) });
  }

  /** Undefined in place of a NotFound error. */
  async find<T>(path: string, options: RequestOptions = {}): Promise<T | undefined> {
    try {
      return await this.get<T>(path, options);
    } catch (error) {
      if (error instanceof KubeApiError && error.status === 404) return undefined;
      throw error;
    }
  }

  /** Opens a watch; its body carries one JSON event a line. Throws KubeApiError when it is refused. */
  async openWatch(path: string, options: RequestOptions = {}): Promise<ReadableStream<Uint8Array>> {
    const response = await this.#start("GET", path, options, undefined);
    if (response.status >= 400) {
      throw apiError("GET", path, response.status, response.headers, await readAll(response.body));
    }
    if (!response.body) throw new KubeUnreachable(`Cannot watch ${path}: the answer has no body`);
    return response.body;
  }

  async #checked(
    method: string,
    path: string,
    options: RequestOptions & { body?: string; contentType?: string },
  ): Promise<Uint8Array> {
    const { status, body, headers } = await this.request(method, path, options);
    if (status >= 400) throw apiError(method, path, status, headers, body);
    return body;
  }

  async #start(
    method: string,
    path: string,
    options: RequestOptions & { body?: Uint8Array<ArrayBuffer> | string; contentType?: string },
    timeoutMs: number | undefined,
  ): Promise<HttpResponse> {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(options.query ?? {})) {
      if (value !== undefined) query.set(name, String(value));
    }
    const target = query.size > 0 ? `${path}?${query}` : path;
    const headers: [string, string][] = [["accept", "application/json"]];
    if (options.body !== undefined) headers.push(["content-type", options.contentType ?? "application/json"]);
    if (options.as) {
      headers.push(["impersonate-user", `system:node:${options.as.node}`]);
      if (this.#groupsNeeded) headers.push(["impersonate-group", "system:nodes"]);
    }
    const request: HttpRequest = { method, target, headers };
    if (options.body !== undefined) request.body = options.body;
    if (options.signal) request.signal = options.signal;
    if (timeoutMs !== undefined) request.timeoutMs = timeoutMs;
    try {
      return await this.#send(request);
    } catch (error) {
      if (options.signal?.aborted) throw options.signal.reason;
      throw new KubeUnreachable(`Cannot reach the Kubernetes API for ${method} ${path}`, { cause: error });
    }
  }
}

/** Escapes a name for use as one path segment: names from a peer never change which resource is meant. */
export function segment(name: string): string {
  const escaped = encodeURIComponent(name);
  return escaped === "." || escaped === ".." ? "%2E".repeat(escaped.length) : escaped;
}

/** `/api/v1/namespaces/NS/RESOURCE/NAME[/SUBRESOURCE]`; the group path is `/api/v1` or `/apis/GROUP/VERSION`. */
export function objectPath(
  group: string,
  resource: string,
  namespace: string | undefined,
  name?: string,
  subresource?: string,
): string {
  let path = group;
  if (namespace !== undefined) path += `/namespaces/${segment(namespace)}`;
  path += `/${resource}`;
  if (name !== undefined) path += `/${segment(name)}`;
  if (subresource !== undefined) path += `/${subresource}`;
  return path;
}

function apiError(
  method: string,
  path: string,
  status: number,
  headers: Headers,
  body: Uint8Array,
): KubeApiError {
  let detail: Status = {};
  try {
    detail = JSON.parse(text(body)) as Status;
  } catch { /* not from the API server itself: a proxy's page */ }
  const seconds = detail.details?.retryAfterSeconds ?? Number(headers.get("retry-after") ?? Number.NaN);
  const retryAfterMs = Number.isFinite(seconds) ? seconds * 1000 : undefined;
  const message = detail.message ?? text(body.subarray(0, 200)).trim();
  return new KubeApiError(
    `${method} ${path}: ${status} ${message}`,
    status,
    detail.reason ?? "",
    retryAfterMs,
  );
}

function parse<T>(body: Uint8Array): T {
  return JSON.parse(text(body)) as T;
}

async function readAll(body: ReadableStream<Uint8Array> | null): Promise<Uint8Array> {
  if (!body) return new Uint8Array(0);
  const parts: Uint8Array[] = [];
  let length = 0;
  for await (const part of body) {
    parts.push(part);
    length += part.length;
    if (length > responseBytesMax) throw new RangeError(`answer of more than ${responseBytesMax} bytes`);
  }
  if (parts.length === 1) return parts[0] as Uint8Array;
  const whole = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
