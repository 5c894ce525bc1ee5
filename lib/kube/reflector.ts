/**
 * List, then watch, for as long as it takes: resumes by resourceVersion, takes bookmarks, lists again after 410 Gone
 * and when the cluster was restored from a backup, backs off when refused or unreachable. Objects are handed on as the raw bytes that the API server wrote.
 */
import { abortable } from "../core/abortable.ts";
import { concat, text } from "../core/bytes.ts";
import { Backoff } from "../core/backoff.ts";
import type { Clock, Random } from "../core/clock.ts";
import { errorText } from "../core/errors.ts";
import type { Logger } from "../core/log.ts";
import { type Impersonation, KubeApiError, type KubeClient } from "./client.ts";
import { elementsOf, readString, spanOf, withTypeMeta } from "./slice.ts";

/** Objects per list page. */
const listPageObjects = 500;
/** One event line; an object is at most 1.5 MiB in etcd, JSON escapes may double it. */
const eventBytesMax = 4 * 1024 * 1024;
/** The server is asked to end a watch after this long (a random share is added), so that load spreads again, s. */
const watchSeconds = 300;

export interface RawObject {
  /** The whole object. */
  bytes: Uint8Array;
  namespace: string;
  name: string;
  uid: string;
  resourceVersion: string;
}

export interface ReflectorHandler {
  /** The state as a whole, after each list. */
  replaced(objects: RawObject[]): void;
  upserted(object: RawObject): void;
  deleted(object: RawObject): void;
}

export interface ReflectorOptions {
  client: KubeClient;
  /** Collection, for example `/api/v1/pods`. */
  path: string;
  apiVersion: string;
  kind: string;
  fieldSelector?: string;
  labelSelector?: string;
  as?: () => Impersonation | undefined;
  handler: ReflectorHandler;
  /** A list or watch failed; the reflector goes on by itself. */
  failed?: (error: unknown) => void;
  clock: Clock;
  random: Random;
  log: Logger;
}

export class Reflector {
  readonly #options: ReflectorOptions;
  readonly #abort = new AbortController();
  readonly #synced = Promise.withResolvers<void>();
  #resourceVersion: string | undefined;
  #done: Promise<void> | undefined;
  #listed = false;
  #relist = false;
  /** The server was away. */
  #away = false;
  /** Ends the watch in progress. */
  #watching: AbortController | undefined;

  constructor(options: ReflectorOptions) {
    this.#options = options;
    this.#synced.promise.catch(() => {});
  }

  /** Resolves after the first list; rejects when stopped before. */
  get synced(): Promise<void> {
    return this.#synced.promise;
  }
  get hasSynced(): boolean {
    return this.#listed;
  }

  start(): this {
    this.#done ??= this.#run();
    return this;
  }

  /** Lists again: the handler's filter lets through what it did not before. */
  relist(): void {
    this.#resourceVersion = undefined;
    this.#relist = true;
    this.#watching?.abort(new Error("list again"));
  }

  async stop(): Promise<void> {
    this.#abort.abort(new Error("reflector stopped"));
    this.#watching?.abort(new Error("reflector stopped"));
    this.#synced.reject(new Error("reflector stopped"));
    await this.#done;
  }

  async #run(): Promise<void> {
    const { clock, random, log, path } = this.#options;
    const { signal } = this.#abort;
    const backoff = new Backoff({ baseMs: 200, maxMs: 30_000 }, random);
    while (!signal.aborted) {
      try {
        if (this.#away && this.#resourceVersion !== undefined && await this.#restored()) this.relist();
        this.#away = false;
        if (this.#relist || this.#resourceVersion === undefined) await this.#list();
        const startedMs = clock.monotonic();
        await this.#watch();
        // A watch that lasted is no failure; one that ends at once must not spin.
        if (this.#relist || clock.monotonic() - startedMs > 1000) backoff.reset();
        else await clock.sleep(backoff.next(), signal).catch(() => {});
      } catch (error) {
        if (signal.aborted) return;
        if (this.#relist || (error instanceof KubeApiError && error.status === 410)) {
          this.#resourceVersion = undefined;
          continue;
        }
        this.#away ||= !(error instanceof KubeApiError);
        this.#options.failed?.(error);
        const delayMs = Math.max(backoff.next(), error instanceof KubeApiError ? error.retryAfterMs ?? 0 : 0);
        log.debug("Watch failed, retrying", { path, error: errorText(error), ms: Math.round(delayMs) });
        await clock.sleep(delayMs, signal).catch(() => {});
      }
    }
  }

  #query(): Record<string, string | number | undefined> {
    const { fieldSelector, labelSelector } = this.#options;
    return { fieldSelector, labelSelector };
  }

  /**
   * Whether the server's books are older than what was seen of them: a watch from "the future" would be granted, and
   * leave out everything until the revisions have caught up. Resource versions compare as numbers (KEP-5504).
   */
  async #restored(): Promise<boolean> {
    const { client, path, as } = this.#options;
    const query = { ...this.#query(), limit: 1 };
    const body = await client.getBytes(path, { query, as: as?.(), signal: this.#abort.signal });
    const now = readString(body, ["metadata", "resourceVersion"]) ?? "", seen = this.#resourceVersion ?? "";
    return now.length < seen.length || (now.length === seen.length && now < seen);
  }

  async #list(): Promise<void> {
    const { client, path, apiVersion, kind, as, handler } = this.#options;
    const objects: RawObject[] = [];
    this.#relist = false;
    let next: string | undefined;
    do {
      const query = { ...this.#query(), limit: listPageObjects, continue: next };
      const body = await client.getBytes(path, { query, as: as?.(), signal: this.#abort.signal });
      const items = spanOf(body, ["items"]);
      for (const span of (items && elementsOf(body, items)) ?? []) {
        // Copied: a page must not live as long as the smallest object in it.
        const object = rawObject(withTypeMeta(body.slice(span.start, span.end), apiVersion, kind));
        if (object) objects.push(object);
      }
      next = readString(body, ["metadata", "continue"]) || undefined;
      this.#resourceVersion = readString(body, ["metadata", "resourceVersion"]);
    } while (next !== undefined);
    handler.replaced(objects);
    this.#listed = true;
    this.#synced.resolve();
  }

  async #watch(): Promise<void> {
    const { client, path, as, random } = this.#options;
    const query = {
      ...this.#query(),
      watch: true,
      allowWatchBookmarks: true,
      resourceVersion: this.#resourceVersion,
      timeoutSeconds: Math.round(watchSeconds * (1 + random.float())),
    };
    const { signal } = this.#watching = new AbortController();
    this.#abort.signal.throwIfAborted();
    const body = await client.openWatch(path, { query, as: as?.(), signal });
    for await (const line of lines(abortable(body, signal), eventBytesMax)) this.#event(line);
  }

  #event(line: Uint8Array): void {
    const type = readString(line, ["type"]);
    const span = spanOf(line, ["object"]);
    if (type === undefined || !span) throw new Error("watch event without type or object");
    const bytes = line.slice(span.start, span.end);
    if (type === "ERROR") {
      const status = JSON.parse(text(bytes)) as { code?: number; reason?: string; message?: string };
      throw new KubeApiError(`watch: ${status.message ?? "error"}`, status.code ?? 500, status.reason ?? "");
    }
    const object = rawObject(bytes);
    if (!object) throw new Error("watch event whose object has no metadata");
    if (type === "ADDED" || type === "MODIFIED") this.#options.handler.upserted(object);
    else if (type === "DELETED") this.#options.handler.deleted(object);
    this.#resourceVersion = object.resourceVersion;
  }
}

function rawObject(bytes: Uint8Array): RawObject | undefined {
  const resourceVersion = readString(bytes, ["metadata", "resourceVersion"]);
  if (resourceVersion === undefined) return undefined;
  return {
    bytes,
    namespace: readString(bytes, ["metadata", "namespace"]) ?? "",
    name: readString(bytes, ["metadata", "name"]) ?? "",
    uid: readString(bytes, ["metadata", "uid"]) ?? "",
    resourceVersion,
  };
}

/** Splits a stream at line feeds. Throws a RangeError on lines over `bytesMax`; a line without its end is dropped. */
export async function* lines(
  stream: AsyncIterable<Uint8Array>,
  bytesMax: number,
): AsyncGenerator<Uint8Array> {
  let rest: Uint8Array[] = [];
  let restBytes = 0;
  for await (const chunk of stream) {
    let start = 0;
    for (;;) {
      const end = chunk.indexOf(0x0a, start);
      if (end < 0) break;
      const part = chunk.subarray(start, end);
      const line = rest.length === 0 ? part : concat([...rest, part]);
      rest = [];
      restBytes = 0;
      start = end + 1;
      if (line.length > 0) yield line;
    }
    if (start < chunk.length) {
      rest.push(chunk.slice(start));
      restBytes += chunk.length - start;
      if (restBytes > bytesMax) throw new RangeError(`line of more than ${bytesMax} bytes`);
    }
  }
}
