/** Who may use a kubelet port: the kubelet's own rules (pkg/kubelet/server/auth.go), asked of Kubernetes. */
import type { Clock } from "../core/clock.ts";
import type { KubeClient } from "../kube/client.ts";
import { createHash } from "node:crypto";

/** The kubelet's webhook caches: 2 min for tokens and allowed, 30 s for denied. */
const allowedMs = 120_000;
const deniedMs = 30_000;
const cacheEntriesMax = 1000;

export interface UserInfo {
  username: string;
  uid?: string;
  groups?: string[];
  extra?: Record<string, string[]>;
}

/** Attributes of a request, most specific first: any one that is allowed lets it pass. */
export function attributesOf(
  method: string,
  path: string,
  node: string,
): { verb: string; subresource: string; name: string }[] {
  const verb =
    { POST: "create", GET: "get", HEAD: "get", PUT: "update", PATCH: "patch", DELETE: "delete" }[method] ??
      "";
  const under = (prefix: string) => path === prefix || path.startsWith(prefix + "/");
  const of = (...subresources: string[]) =>
    subresources.map((subresource) => ({ verb, subresource, name: node }));
  if (under("/stats")) return of("stats");
  if (under("/metrics")) return of("metrics");
  if (under("/logs")) return of("log");
  if (under("/checkpoint")) return of("checkpoint");
  if (under("/pods") || under("/runningpods")) return of("pods", "proxy");
  if (under("/healthz")) return of("healthz", "proxy");
  if (under("/configz")) return of("configz", "proxy");
  return of("proxy");
}

export class KubeletAuth {
  readonly #cache = new Map<string, { untilMs: number; value: unknown }>();
  constructor(readonly ports: { client: KubeClient; clock: Clock }) {}

  /** The user of a bearer token, or undefined. */
  async token(bearer: string): Promise<UserInfo | undefined> {
    const key = "t" + createHash("sha256").update(bearer).digest("base64");
    const known = this.#get<UserInfo | null>(key);
    if (known !== undefined) return known ?? undefined;
    const review = { apiVersion: "authentication.k8s.io/v1", kind: "TokenReview", spec: { token: bearer } };
    const { status } = await this.ports.client.create<
      { status: { authenticated?: boolean; user?: UserInfo } }
    >(
      "/apis/authentication.k8s.io/v1/tokenreviews",
      review,
    );
    const user = status.authenticated && status.user ? status.user : null;
    this.#set(key, user, user ? allowedMs : deniedMs);
    return user ?? undefined;
  }

  async allowed(user: UserInfo, method: string, path: string, node: string): Promise<boolean> {
    for (const attributes of attributesOf(method, path, node)) {
      if (await this.#review(user, attributes)) return true;
    }
    return false;
  }

  async #review(
    user: UserInfo,
    attributes: { verb: string; subresource: string; name: string },
  ): Promise<boolean> {
    const key = "a" + JSON.stringify([user.username, user.groups, user.extra, attributes]);
    const known = this.#get<boolean>(key);
    if (known !== undefined) return known;
    const spec = {
      user: user.username,
      groups: user.groups ?? [],
      uid: user.uid ?? "",
      extra: user.extra ?? {},
      resourceAttributes: { ...attributes, version: "v1", resource: "nodes" },
    };
    const review = { apiVersion: "authorization.k8s.io/v1", kind: "SubjectAccessReview", spec };
    const { status } = await this.ports.client.create<{ status: { allowed: boolean } }>(
      "/apis/authorization.k8s.io/v1/subjectaccessreviews",
      review,
    );
    this.#set(key, status.allowed, status.allowed ? allowedMs : deniedMs);
    return status.allowed;
  }

  #get<T>(key: string): T | undefined {
    const entry = this.#cache.get(key);
    return entry && entry.untilMs > this.ports.clock.monotonic() ? entry.value as T : undefined;
  }
  #set(key: string, value: unknown, forMs: number): void {
    if (this.#cache.size >= cacheEntriesMax) this.#cache.clear();
    this.#cache.set(key, { untilMs: this.ports.clock.monotonic() + forMs, value });
  }
}
