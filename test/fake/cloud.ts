/** The whole EdgeController over the fake API, and edges that meet it in memory: everything but sockets. */
import assert from "node:assert/strict";
import { hex, text, utf8 } from "../../lib/core/bytes.ts";
import { Metrics } from "../../lib/core/metrics.ts";
import { createToken, type TokenGrant } from "../../lib/cloud/join_tokens.ts";
import { hubConfigMap } from "../../lib/cloud/hub_config.ts";
import { EdgeController, type HubServerRoutes } from "../../lib/cloud/loop.ts";
import type { JoinAnswer } from "../../lib/cloud/join.ts";
import type { KubeletHandlers } from "../../lib/cloud/kubelet_port.ts";
import { parseJoinToken } from "../../lib/crypto/join_token.ts";
import { signProof } from "../../lib/crypto/proof.ts";
import {
  authorityHash,
  issueLeaf,
  makeAuthority,
  makeKey,
  makeRequest,
  publicKeyOf,
  splitPem,
} from "../../lib/crypto/x509.ts";
import { digestOf } from "../../lib/wire/digest.ts";
import { EdgeSession, nonceOf } from "../../lib/wire/edge_session.ts";
import {
  type Proof,
  proofParameters,
  type Refuse,
  type StreamOpen,
  type Welcome,
} from "../../lib/wire/messages.ts";
import { encodeFrame, encodeJson } from "../../lib/wire/frame.ts";
import type { WireStream } from "../../lib/wire/streams.ts";
import { type Json, nodeAuthorizer } from "./kube_api.ts";
import { configMaps, makeWorld, until, type World } from "./world.ts";

export const namespace = "kubeedge-system";
export const hubUrl = "wss://hub.example:10443";

export interface Cloud extends World {
  controller: EdgeController;
  metrics: Metrics;
  routes: () => HubServerRoutes;
  /** Kubelet ports by number, as they were opened. */
  kubeletPorts: Map<number, KubeletHandlers>;
  token: (grant?: Partial<TokenGrant>) => Promise<string>;
  close: () => Promise<void>;
}

export async function startCloud(before: (world: World) => void = () => {}): Promise<Cloud> {
  const world = makeWorld();
  const { api, client, clock, random, log } = world;
  api.put("/api/v1/namespaces", { metadata: { name: "kube-system", uid: "cluster-1" } });
  api.authorize = nodeAuthorizer(api);
  // The csrsigning controller.
  api.intercept = (request) => {
    if (request.method === "PUT" && request.target.endsWith("/approval")) {
      const object = JSON.parse(String(request.body));
      object.status.certificate = btoa(servingCertificate);
      return {
        status: 200,
        body: api.put("/apis/certificates.k8s.io/v1/certificatesigningrequests", object),
      };
    }
    return undefined;
  };
  before(world);
  await clock.advance(1000); // no clock reads 0 when the cloud starts
  const metrics = new Metrics();
  let routes: HubServerRoutes | undefined;
  const kubeletPorts = new Map<number, KubeletHandlers>();
  const controller = await EdgeController.start({
    client,
    clock,
    random,
    log,
    metrics,
    listenHub: (_options, given) => {
      routes = given;
      return Promise.resolve({ port: 10443, certify() {}, stop() {} });
    },
    listenKubelet: (options, handlers) => {
      kubeletPorts.set(options.port, handlers);
      return Promise.resolve({ close: () => void kubeletPorts.delete(options.port) });
    },
  }, {
    namespace,
    listen: { host: "127.0.0.1", port: 10443 },
    hubUrls: [hubUrl],
    advertiseAddress: "10.0.0.1",
    kubeletListen: "127.0.0.1",
    kubeletPorts: [11000, 11009],
    nodeAddresses: "hub",
  });
  return {
    ...world,
    controller,
    metrics,
    kubeletPorts,
    routes: () => routes ?? assert.fail("the hub does not listen"),
    token: async (grant = {}) => {
      const hash = api.find(configMaps, `${namespace}/${hubConfigMap}`).data.authorityHash;
      const full: TokenGrant = {
        description: "",
        expiresMs: clock.now() + 3_600_000,
        usesLeft: undefined,
        nodeNames: "*",
        labels: {},
        taints: [],
        takeover: false,
        ...grant,
      };
      return (await createToken(full, { urls: [hubUrl], authorityHash: hash }, {
        client,
        namespace,
        clock,
        random,
      })).token;
    },
    close: () => controller.close(),
  };
}

export interface Identity {
  node: string;
  key: string;
  certificate: string;
  caBundle: string;
}

/** What `kubeedge edge join` does with the endpoint. */
export async function joinEdge(
  cloud: Cloud,
  node: string,
  options: { token?: string; key?: string; labels?: Json; taints?: Json } = {},
): Promise<Identity> {
  const answer = await tryJoin(cloud, node, options);
  assert.equal(answer.status, 200, JSON.stringify(answer.body));
  const { certificate, caBundle } = answer.body as JoinAnswer;
  // The watch has brought the record before the machine could dial.
  return { node, key: answer.key, certificate, caBundle };
}

export async function tryJoin(
  cloud: Cloud,
  node: string,
  options: { token?: string; key?: string; labels?: Json; taints?: Json } = {},
): Promise<{ status: number; body: Json; key: string }> {
  const parsed = parseJoinToken(options.token ?? await cloud.token());
  assert.ok(parsed.state === "ok");
  const key = options.key ?? await makeKey();
  const csr = await makeRequest(key, { commonName: `system:node:${node}`, organization: "system:nodes" });
  const request = {
    tokenId: parsed.token.id,
    secret: parsed.token.secret,
    node,
    csr,
    architecture: "amd64",
    labels: options.labels ?? {},
    taints: options.taints ?? [],
  };
  const answer = await cloud.routes().http({
    method: "POST",
    path: "/v1/join",
    body: utf8(JSON.stringify(request)),
    remote: "192.0.2.1:1",
  });
  assert.ok(answer);
  return { status: answer.status, body: JSON.parse(answer.body), key };
}

/** An edge's store, kept over its sessions. */
export class EdgeStore {
  readonly kinds = new Map<string, Map<string, { uid: string; version: string; json: string }>>();
  of(kind: string): Map<string, { uid: string; version: string; json: string }> {
    let objects = this.kinds.get(kind);
    if (!objects) this.kinds.set(kind, objects = new Map());
    return objects;
  }
  object(kind: string, key: string): Json {
    const json = this.of(kind).get(key)?.json;
    return json ? JSON.parse(json) : undefined;
  }
  entries(kind: string): [string, string, string][] {
    return [...this.of(kind)].map(([key, { uid, version }]) => [key, uid, version]);
  }
  digests(): Record<string, string> {
    return Object.fromEntries([...this.kinds.keys()].map((kind) => [kind, digestOf(this.entries(kind))]));
  }
}

/** One connection of one edge. */
export class EdgeLink {
  readonly session: EdgeSession;
  welcome: Welcome | undefined;
  refused: Refuse | undefined;
  failed: string | undefined;
  closed: string | undefined;
  goaway: string | undefined;
  proof: Proof | undefined;
  readonly synced = new Set<string>();
  readonly changes: string[] = [];
  readonly reported: number[] = [];
  readonly reportRefusals: string[] = [];
  readonly streams: { stream: WireStream; open: StreamOpen }[] = [];
  bytesReceived = 0;
  bytesSent = 0;
  /** Heartbeats go out as the simulated time passes; false: the link has died without a word. */
  beating = true;
  readonly #guest: { message(bytes: Uint8Array): void; closed(): void } | undefined;

  constructor(
    readonly cloud: Cloud,
    readonly identity: Identity,
    readonly options: {
      store?: EdgeStore;
      instance?: string;
      remote?: string;
      forge?: (proof: Proof) => Proof | Promise<Proof>;
      silent?: boolean;
    } = {},
  ) {
    const { clock } = cloud;
    const store = options.store ?? new EdgeStore();
    const session: EdgeSession = this.session = new EdgeSession({
      transmit: (message) => {
        this.bytesSent += message.length;
        queueMicrotask(() => this.closed ?? this.#guest?.message(message));
      },
      hello: (hello) => {
        if (options.silent) return;
        const claims = {
          versionLeast: 1,
          versionMost: 1,
          agent: "test",
          instance: options.instance ?? "instance-1",
          digests: store.digests(),
        };
        const hash = authorityHash(splitPem(identity.caBundle)[0] ?? "");
        void signProof(identity.key, {
          nonce: nonceOf(hello),
          authorityHash: hash,
          parameters: proofParameters(claims),
        }).then(async (signature) => {
          const proof: Proof = { ...claims, certificate: identity.certificate, signature: hex(signature) };
          this.proof = await options.forge?.(proof) ?? proof;
          session.prove(this.proof);
        });
      },
      welcome: (welcome) => {
        this.welcome = welcome;
        for (const kind of welcome.want) session.have(kind, store.entries(kind));
      },
      refused: (refuse) => this.refused = refuse,
      change: (seq, { change, kind, key, uid, version, json }) => {
        this.changes.push(`${change} ${kind} ${key}`);
        if (change === "drop") store.of(kind).delete(key);
        else store.of(kind).set(key, { uid, version, json: text(json) });
        session.committed(seq);
      },
      synced: (seq, kind) => {
        this.synced.add(kind);
        session.committed(seq);
      },
      reported: (ids) => this.reported.push(...ids),
      reportRefused: (_id, reason) => this.reportRefusals.push(reason),
      streamOpened: (stream, open) => this.streams.push({ stream, open }),
      goaway: (reason) => this.goaway = reason,
      failed: (reason) => {
        this.failed = reason;
        this.close(reason);
      },
    }, clock.monotonic());
    this.#guest = cloud.routes().connect({
      remote: options.remote ?? "192.0.2.1:1000",
      send: (message) => {
        this.bytesReceived += message.length;
        queueMicrotask(() => this.session.message(message, clock.monotonic()));
      },
      close: (reason) =>
        queueMicrotask(() => {
          this.closed ??= reason;
          session.closed(reason);
        }),
    });
    if (!this.#guest) this.closed = "too many guests";
    const beat = () => {
      if (!this.beating || this.over) return;
      session.tick(clock.monotonic());
      clock.timer(1000, beat);
    };
    clock.timer(1000, beat);
  }

  get over(): boolean {
    return this.refused !== undefined || this.closed !== undefined;
  }
  async live(): Promise<this> {
    await until(() => this.welcome || this.over, "a welcome or a refusal");
    assert.ok(
      this.welcome,
      `refused: ${JSON.stringify(this.refused)} closed: ${this.closed} failed: ${this.failed}`,
    );
    return this;
  }
  async refusal(): Promise<Refuse> {
    await until(() => this.welcome || this.over, "a welcome or a refusal");
    assert.equal(this.welcome, undefined, "the session must not come up");
    await until(() => this.refused, "a refusal");
    return this.refused ?? assert.fail();
  }
  /** Sends a frame as no right edge would. */
  raw(type: Parameters<typeof encodeFrame>[0], id: number, body: unknown): void {
    this.#guest?.message(encodeFrame(type, id, encodeJson(body)));
  }
  close(reason = "the test closes"): void {
    if (this.closed !== undefined) return;
    this.closed = reason;
    this.session.closed(reason);
    this.#guest?.closed();
  }
}

/** Any certificate will do for a port that the test opens in memory; it lives until 2036. */
const made = { nowMs: Date.UTC(2026, 0, 1), serial: new Uint8Array([1]) };
const clusterAuthority = await makeAuthority("cluster", { ...made, days: 3650 });
const servingCertificate = await issueLeaf(clusterAuthority, {
  ...made,
  subject: { commonName: "x" },
  publicKey: await publicKeyOf(await makeKey()),
  usage: "server",
  lifeMs: 3650 * 86_400_000,
});
