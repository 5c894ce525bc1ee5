/**
 * The EdgeController: read this first. What flows through it:
 *
 *     watches (pods, nodes, services; node records) ──► Cache, one view per node ──► Hub ──► sessions ══► edges
 *     Secrets, ConfigMaps, authorized per node ──► References ──┘                     │
 *     Kubernetes ◄── NodeReports, Leases (as the node) ◄──────────────────────────────┘ ◄══ reports, heartbeats
 *     kube-apiserver ──► KubeletPorts ──► streams of the session ══► edges
 */
import type { Clock, Random } from "../core/clock.ts";
import { text } from "../core/bytes.ts";
import { errorText, UserError } from "../core/errors.ts";
import type { Logger } from "../core/log.ts";
import type { Metrics } from "../core/metrics.ts";
import { KubeApiError, type KubeClient, objectPath } from "../kube/client.ts";
import { Reflector, type ReflectorHandler } from "../kube/reflector.ts";
import type { ConfigMap, KubeObject, NodeStatus } from "../kube/types.ts";
import { Authority, hubCertificateMs } from "./authority.ts";
import { Cache } from "./cache.ts";
import { Hub, type HubGuest, type HubSocket } from "./hub.ts";
import { hubConfigMap } from "./hub_config.ts";
import { join, readJoinRequest } from "./join.ts";
import { removeSpentTokens } from "./join_tokens.ts";
import { KubeletAuth } from "./kubelet_auth.ts";
import { KubeletPorts, type ListenKubelet } from "./kubelet_port.ts";
import { Leases } from "./leases.ts";
import { NodeRecords, recordLabel } from "./node_records.ts";
import { References } from "./references.ts";

/** A record without its Node this long after the join belongs to a node that was deleted while we were away, ms. */
const joinPatienceMs = 60_000;
const authorityReloadMs = 10_000;
const housekeepingMs = 60_000;
const clientCaName = "extension-apiserver-authentication";

export interface HubServerRoutes {
  http(request: { method: string; path: string; body: Uint8Array; remote: string }): Promise<
    { status: number; body: string; type: string } | undefined
  >;
  connect(socket: HubSocket): HubGuest | undefined;
}
export interface ServerIdentity {
  certificate: string;
  key: string;
}
export interface HubListener {
  port: number;
  certify(identity: ServerIdentity): void;
  stop(): void;
}
export type ListenHub = (
  options: { hostname: string; port: number } & ServerIdentity,
  routes: HubServerRoutes,
) => Promise<HubListener>;

export interface CloudOptions {
  namespace: string;
  listen: { host: string; port: number };
  /** `wss://host:port` each, as edges dial them. */
  hubUrls: string[];
  /** Where the API server reaches the kubelet ports. */
  advertiseAddress: string;
  kubeletListen: string;
  kubeletPorts: [number, number];
  nodeAddresses: "hub" | "edge";
}
export interface CloudPorts {
  client: KubeClient;
  clock: Clock;
  random: Random;
  log: Logger;
  metrics: Metrics;
  listenHub: ListenHub;
  listenKubelet: ListenKubelet;
}

export interface NodeLine {
  node: string;
  connected: boolean;
  revoked: boolean;
  sinceMs: number;
  lastSeenMs: number;
  roundTripMs: number;
  agent: string;
  address: string;
  kubeletPort: number;
}

export class EdgeController {
  readonly #ports: CloudPorts;
  readonly #options: CloudOptions;
  readonly #authority: Authority;
  readonly #records: NodeRecords;
  readonly #cluster: string;
  readonly #cache: Cache;
  readonly #hub: Hub;
  readonly #reflectors: Reflector[] = [];
  readonly #failing = new Map<string, string>();
  #kubelet: KubeletPorts | undefined;
  #listener: HubListener | undefined;
  #certificateRenewMs = 0;
  #signerHash = "";
  readonly #stop = new AbortController();

  private constructor(ports: CloudPorts, options: CloudOptions, authority: Authority, cluster: string) {
    const { client, clock, random, log, metrics } = ports;
    this.#ports = ports;
    this.#options = options;
    this.#authority = authority;
    this.#cluster = cluster;
    this.#records = new NodeRecords({
      client,
      namespace: options.namespace,
      clock,
      kubeletPorts: options.kubeletPorts,
    });
    const changed = (node: string, kind: string, key: string) => this.#hub.changed(node, kind, key);
    const watchFailures = metrics.counter(
      "kubeedge_cloud_watch_failures_total",
      "Lists and watches that failed and were tried again.",
    );
    const references = new References({
      client,
      clock,
      random,
      log,
      changed,
      watchFailed: () => watchFailures.inc(),
    });
    this.#cache = new Cache({
      references,
      changed,
      nodeDeleted: (node) => this.#nodeDeleted(node),
      isEdge: (node) => this.#records.get(node) !== undefined,
    });
    const renewed = metrics.counter("kubeedge_cloud_leases_renewed_total", "Node leases renewed.");
    const reports = metrics.counter("kubeedge_cloud_reports_total", "Reports of edges, by sort and outcome.");
    this.#hub = new Hub({
      client,
      authority,
      records: this.#records,
      cache: this.#cache,
      leases: new Leases({ client, clock, log, renewed: () => renewed.inc() }),
      reports: {
        client,
        clock,
        random,
        log,
        nodeStatus: (node, status) => this.#nodeStatus(node, status),
        wrote: (sort, outcome) => reports.inc({ sort, outcome }),
      },
      cluster,
      urls: options.hubUrls,
      clock,
      random,
      log,
      metrics,
    });
  }

  /** Comes up when everything that a node's view is made of has been listed once. */
  static async start(ports: CloudPorts, options: CloudOptions): Promise<EdgeController> {
    const { client, clock, random, log } = ports;
    const { namespace } = options;
    const version = await client.connect();
    log.info("Connected to Kubernetes", { version: version.gitVersion });
    const system = await client.get<KubeObject>(
      objectPath("/api/v1", "namespaces", undefined, "kube-system"),
    );
    await ensureNamespace(client, namespace);
    const authority = await Authority.load({ client, namespace, clock, random });
    const controller = new EdgeController(ports, options, authority, system.metadata.uid ?? "");
    await controller.#run();
    return controller;
  }

  /** Why the controller is not ready, or undefined. */
  ready(): string | undefined {
    const waiting = this.#reflectors.filter((reflector) => !reflector.hasSynced).length;
    if (waiting > 0) return `${waiting} lists are not loaded yet`;
    for (const [what, error] of this.#failing) return `${what}: ${error}`;
    return undefined;
  }

  get port(): number {
    return this.#listener?.port ?? 0;
  }

  nodes(): NodeLine[] {
    const live = new Map(this.#hub.sessions.map((session) => [session.node, session]));
    return this.#records.list().map(({ record, news }) => {
      const session = live.get(record.node);
      const { sinceMs = 0, lastSeenMs = 0, roundTripMs = 0, agent = "", address = "" } = session ?? news ??
        {};
      const { node, kubeletPort, revoked } = record;
      return {
        node,
        kubeletPort,
        connected: session !== undefined,
        revoked: revoked !== undefined,
        sinceMs,
        lastSeenMs,
        roundTripMs,
        agent,
        address,
      };
    });
  }

  async close(): Promise<void> {
    this.#stop.abort(new Error("the cloud stops"));
    this.#kubelet?.close();
    this.#listener?.stop();
    await this.#hub.close();
    await Promise.all([
      ...this.#reflectors.map((reflector) => reflector.stop()),
      this.#cache.references.stop(),
    ]);
  }

  async #run(): Promise<void> {
    const { client, clock, random, log, listenKubelet } = this.#ports;
    const { namespace, advertiseAddress, kubeletListen } = this.#options;
    await this.#reflect("configmaps", "ConfigMap", this.#records, {
      namespace,
      labelSelector: `${recordLabel}=true`,
    }).synced;
    const nodes = this.#reflect("nodes", "Node", this.#cache.nodeHandler);
    const services = this.#reflect("services", "Service", this.#cache.serviceHandler);
    const pods = this.#reflect("pods", "Pod", this.#cache.podHandler, { fieldSelector: "spec.nodeName!=" });
    await Promise.all([nodes.synced, services.synced, pods.synced]);
    this.#removeStrayRecords();
    // A record that another replica wrote may come after the pods of its node were passed over.
    const known = new Set(this.#records.list().map(({ record }) => record.node));
    this.#records.listen((node, record) => {
      if (record && !known.has(node)) {
        pods.relist();
        nodes.relist();
      }
      if (record) known.add(node);
      else known.delete(node);
    });
    await this.#certify();
    await this.#publish();
    this.#kubelet = new KubeletPorts({
      client,
      records: this.#records,
      auth: new KubeletAuth({ client, clock }),
      listen: listenKubelet,
      hostname: kubeletListen,
      addresses: [advertiseAddress],
      clientCa: await this.#clientCa(),
      podOnNode: (node, podNamespace, name) => this.#cache.podOnNode(node, podNamespace, name),
      openStream: (node, open) => this.#hub.openStream(node, open),
      clock,
      random,
      log,
    });
    this.#every(1000, () => this.#hub.tick());
    this.#every(authorityReloadMs, () => this.#reloadAuthority());
    this.#every(housekeepingMs, async () => {
      this.#kubelet?.tick(await this.#clientCa());
      await removeSpentTokens({ client, namespace, clock, random });
    });
    log.info("The cloud is ready", {
      url: this.#options.hubUrls.join(","),
      port: this.port,
      count: this.#records.list().length,
    });
  }

  #reflect(
    resource: string,
    kind: string,
    handler: ReflectorHandler,
    options: { namespace?: string; fieldSelector?: string; labelSelector?: string } = {},
  ): Reflector {
    const { client, clock, random, log } = this.#ports;
    const { namespace, ...selectors } = options;
    const reflector = new Reflector({
      client,
      path: objectPath("/api/v1", resource, namespace),
      apiVersion: "v1",
      kind,
      ...selectors,
      handler: {
        replaced: (objects) => {
          this.#failing.delete(resource);
          handler.replaced(objects);
        },
        upserted: (object) => handler.upserted(object),
        deleted: (object) => handler.deleted(object),
      },
      failed: (error) => {
        if (!reflector.hasSynced) {
          this.#failing.set(resource, errorText(error));
          log.warn("Cannot list, retrying", { kind: resource, error: errorText(error) });
        }
      },
      clock,
      random,
      log,
    });
    this.#reflectors.push(reflector);
    return reflector.start();
  }

  /** `kubectl delete node`: the name is free again, its certificate is worth nothing, its session ends. */
  #nodeDeleted(node: string): void {
    this.#ports.log.info("Node was deleted from the cluster", { node });
    this.#records.remove(node).catch((error: unknown) => {
      this.#ports.log.warn("Cannot remove the record of a deleted node", { node, error: errorText(error) });
    });
  }

  #removeStrayRecords(): void {
    for (const { record } of this.#records.list()) {
      const view = this.#cache.view(record.node);
      const old = this.#ports.clock.now() - record.joinedMs > joinPatienceMs;
      if (old && view.get("nodes", record.node) === undefined) this.#nodeDeleted(record.node);
    }
  }

  /** What only the cloud knows of a node's status: where its kubelet port is. */
  #nodeStatus(node: string, status: NodeStatus): NodeStatus {
    const { advertiseAddress, nodeAddresses } = this.#options;
    const own = (status.addresses ?? []).filter(({ type }) => type === "InternalIP");
    const hub = nodeAddresses === "hub" ? [{ type: "InternalIP" as const, address: advertiseAddress }] : own;
    const port = this.#records.get(node)?.kubeletPort;
    return {
      ...status,
      ...(status.addresses
        ? { addresses: [...hub, { type: "Hostname" as const, address: advertiseAddress }] }
        : {}),
      ...(port !== undefined ? { daemonEndpoints: { kubeletEndpoint: { Port: port } } } : {}),
    };
  }

  /** Gives the hub a fresh certificate; opens it the first time. */
  async #certify(): Promise<void> {
    const { listenHub, clock } = this.#ports;
    const { listen, hubUrls, advertiseAddress } = this.#options;
    const hosts = new Set([
      ...hubUrls.map((url) => new URL(url).hostname.replace(/^\[|\]$/g, "")),
      advertiseAddress,
    ]);
    const identity = await this.#authority.issueHub([...hosts]);
    this.#certificateRenewMs = clock.now() + hubCertificateMs * 2 / 3;
    this.#signerHash = this.#authority.signerHash;
    if (this.#listener) return this.#listener.certify(identity);
    try {
      this.#listener = await listenHub(
        { hostname: listen.host, port: listen.port, ...identity },
        this.#routes(),
      );
    } catch (error) {
      throw new UserError(
        `Cannot listen on ${listen.host}:${listen.port}: ${errorText(error)}; choose another --listen`,
      );
    }
  }

  #routes(): HubServerRoutes {
    const { client, clock, random, log } = this.#ports;
    const json = (status: number, body: unknown) => ({
      status,
      body: JSON.stringify(body),
      type: "application/json",
    });
    return {
      connect: (socket) => this.#hub.connect(socket),
      http: async ({ method, path, body, remote }) => {
        if (method === "GET" && path === "/v1/ca") {
          return { status: 200, body: this.#authority.bundle, type: "application/x-pem-file" };
        }
        if (method !== "POST" || path !== "/v1/join") return undefined;
        let document: unknown;
        try {
          document = JSON.parse(text(body));
        } catch {
          return json(400, { message: "the body is not JSON" });
        }
        const request = readJoinRequest(document);
        if (typeof request === "string") return json(400, { message: request });
        try {
          const outcome = await join(request, {
            client,
            clock,
            random,
            log: log.with({ address: remote }),
            namespace: this.#options.namespace,
            authority: this.#authority,
            records: this.#records,
            cluster: this.#cluster,
            urls: this.#options.hubUrls,
          });
          return outcome.status === 200
            ? json(200, outcome.answer)
            : json(outcome.status, { message: outcome.message });
        } catch (error) {
          log.error("A join failed", { node: request.node, error: errorText(error) });
          return json(503, { message: "the cloud cannot reach Kubernetes at the moment; try again" });
        }
      },
    };
  }

  async #reloadAuthority(): Promise<void> {
    const changed = await this.#authority.reload();
    const { clock, log } = this.#ports;
    if (this.#authority.signerHash !== this.#signerHash || clock.now() > this.#certificateRenewMs) {
      await this.#certify();
    }
    if (!changed) return;
    log.info("The edge CA was rolled on", { to: this.#authority.state.stage });
    await this.#publish();
    this.#hub.reconnectAll("the CA is being rolled");
  }

  async #publish(): Promise<void> {
    const { client } = this.#ports;
    const { namespace, hubUrls } = this.#options;
    const path = objectPath("/api/v1", "configmaps", namespace, hubConfigMap);
    const data = { urls: JSON.stringify(hubUrls), authorityHash: this.#authority.signerHash };
    const before = await client.find<ConfigMap>(path);
    if (!before) {
      const object = {
        apiVersion: "v1",
        kind: "ConfigMap",
        metadata: { name: hubConfigMap, namespace },
        data,
      };
      await client.create(objectPath("/api/v1", "configmaps", namespace), object);
    } else if (JSON.stringify(before.data) !== JSON.stringify(data)) {
      await client.patch(path, "merge", { data });
    }
  }

  /** The CA of those who may call kubelets, as the API server itself publishes it. */
  async #clientCa(): Promise<string> {
    const object = await this.#ports.client.find<ConfigMap>(
      objectPath("/api/v1", "configmaps", "kube-system", clientCaName),
    );
    const pem = object?.data?.["client-ca-file"];
    if (!pem) {
      this.#ports.log.warn("The API server publishes no client CA: kubelet ports accept bearer tokens only");
    }
    return pem ?? "";
  }

  #every(ms: number, task: () => unknown): void {
    const { clock, log } = this.#ports;
    const turn = async () => {
      while (!this.#stop.signal.aborted) {
        await clock.sleep(ms, this.#stop.signal);
        await Promise.resolve().then(task).catch((error: unknown) =>
          log.warn("A periodic task failed, trying again", { error: errorText(error) })
        );
      }
    };
    turn().catch(() => {}); // stopped
  }
}

async function ensureNamespace(client: KubeClient, namespace: string): Promise<void> {
  try {
    await client.create("/api/v1/namespaces", {
      apiVersion: "v1",
      kind: "Namespace",
      metadata: { name: namespace },
    });
  } catch (error) {
    // 403: a least-privilege role; the manifests made the namespace, and what is missing shows at the first Secret.
    if (!(error instanceof KubeApiError && (error.status === 409 || error.status === 403))) throw error;
  }
}
