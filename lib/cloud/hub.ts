/**
 * The hub: judges proofs, owns the sessions, moves changes out and reports in. One session a node.
 */
import type { Clock, Random } from "../core/clock.ts";
import { fromHex, hex } from "../core/bytes.ts";
import { errorText } from "../core/errors.ts";
import { leaseRenewIntervalMs, unprovedConnectionsMax } from "../core/limits.ts";
import type { Logger } from "../core/log.ts";
import type { Metrics } from "../core/metrics.ts";
import { verifyProof } from "../crypto/proof.ts";
import { checkCertificate, checkRequest } from "../crypto/x509.ts";
import { createHash } from "node:crypto";
import { KubeApiError, type KubeClient, objectPath } from "../kube/client.ts";
import { HubSession } from "../wire/hub_session.ts";
import { type Proof, proofParameters, type Refuse, type Request, type StreamOpen } from "../wire/messages.ts";
import type { WireStream } from "../wire/streams.ts";
import type { Authority } from "./authority.ts";
import type { Cache } from "./cache.ts";
import type { Leases } from "./leases.ts";
import type { NodeRecords } from "./node_records.ts";
import { NodeReports, type ReportPorts } from "./reports.ts";

/** One WebSocket as the hub sees it. */
export interface HubSocket {
  send(message: Uint8Array<ArrayBuffer>): void;
  close(reason: string): void;
  remote: string;
}
/** What the socket's owner calls. */
export interface HubGuest {
  message(bytes: Uint8Array): void;
  closed(): void;
  /** Proved: the server may lift its limits for guests. */
  readonly proved: boolean;
}

export interface HubPorts {
  client: KubeClient;
  authority: Authority;
  records: NodeRecords;
  cache: Cache;
  leases: Leases;
  reports: ReportPorts;
  cluster: string;
  urls: string[];
  clock: Clock;
  random: Random;
  log: Logger;
  metrics: Metrics;
}

/** News of a session are written to its record at most this often, ms. */
const newsIntervalMs = 5 * 60_000;

interface Live {
  node: string;
  /** Of the key that it proved, and of those that a renewal gave it. */
  keyHashes: Set<string>;
  session: HubSession;
  socket: HubSocket;
  instance: string;
  agent: string;
  sinceMs: number;
  lastSeenMs: number;
  roundTripMs: number;
  newsMs: number;
  leaseMs: number;
  leaseHeardMs: number;
  abort: AbortController;
  reports: NodeReports;
}

export class Hub {
  readonly #ports: HubPorts;
  readonly #live = new Map<string, Live>();
  readonly #guests = new Set<{ session: HubSession; socket: HubSocket; proved: () => boolean }>();
  #nextSession = 1;
  #unproved = 0;

  constructor(ports: HubPorts) {
    this.#ports = ports;
    const { metrics, records } = ports;
    metrics.gauge("kubeedge_cloud_sessions", "Live edge sessions.").from(() => this.#live.size);
    metrics.gauge("kubeedge_cloud_unproved_connections", "Connections without proof.").from(() =>
      this.#unproved
    );
    records.listen((node, record) => {
      if (!record) {
        this.end(node, {
          code: "deleted",
          message: `node "${node}" was deleted from the cluster; join it again with a token`,
        });
      } else if (record.revoked !== undefined) {
        this.end(node, { code: "revoked", message: `node "${node}" is revoked: ${record.revoked}` });
      } else if (this.#live.get(node)?.keyHashes.has(record.keyHash) === false) {
        this.end(node, replaced(node));
      }
    });
  }

  get sessions(): {
    node: string;
    sinceMs: number;
    lastSeenMs: number;
    roundTripMs: number;
    agent: string;
    address: string;
  }[] {
    return [...this.#live.values()].map(({ node, sinceMs, lastSeenMs, roundTripMs, agent, socket }) => ({
      node,
      sinceMs,
      lastSeenMs,
      roundTripMs,
      agent,
      address: socket.remote,
    }));
  }
  connected(node: string): boolean {
    return this.#live.has(node);
  }

  /** A new connection; undefined when there are too many without proof. */
  connect(socket: HubSocket): HubGuest | undefined {
    const { clock, random, cluster, log } = this.#ports;
    if (this.#unproved >= unprovedConnectionsMax) return undefined;
    this.#unproved++;
    const nonce = hex(random.bytes(32));
    let live: Live | undefined, over = false, proved = false;
    const finish = (reason: string) => {
      if (over) return;
      over = true;
      if (!proved) this.#unproved--;
      session.closed(reason);
      this.#guests.delete(guest);
      if (live) this.#ended(live, reason);
    };
    const refuse = (refuse: Refuse, node = "") => {
      log.warn("Session refused", {
        node,
        reason: refuse.code,
        error: refuse.message,
        address: socket.remote,
      });
      this.#refusals.inc({ code: refuse.code });
      session.refuse({ code: refuse.code, message: refuse.message });
      socket.close(refuse.code);
      finish(refuse.code);
    };
    const session: HubSession = new HubSession({
      transmit: (message) => socket.send(message),
      proof: (proof, version) => {
        void this.#judge(proof, nonce, socket).then(async (judged) => {
          if (over) return;
          if ("code" in judged) return refuse(judged, judged.node);
          await this.#ports.cache.references.complete(judged.node);
          if (over) return;
          // That may have taken a while, in which the node was revoked, deleted or taken over.
          const late = this.#refusalOf(judged.node, judged.keyHash);
          if (late) return refuse(late, judged.node);
          proved = true;
          this.#unproved--;
          live = this.#welcome(judged, session, socket, proof, version);
        }).catch((error: unknown) => {
          log.error("Judging a proof failed", { error: errorText(error) });
          socket.close("internal error");
          finish("internal error");
        });
      },
      report: (seq, report) => {
        const current = live;
        if (!current) return;
        current.reports.write(report, current.abort.signal).then(
          (refusal) => session.reported(seq, refusal),
          () => {}, // the session is over: the edge sends it again
        );
      },
      request: (id, request) => {
        const current = live;
        if (!current) return;
        this.#answer(current.node, request).then(
          (response) => session.respond(id, response),
          (error: unknown) => {
            session.respond(id, { status: 503, body: { message: errorText(error) } });
          },
        );
      },
      heartbeat: (roundTripMs) => {
        if (live) live.roundTripMs = roundTripMs;
      },
      failed: (reason) => {
        log.info("Session failed", { node: live?.node ?? "", reason, address: socket.remote });
        socket.close(reason);
        finish(reason);
      },
    }, clock.monotonic());
    const guest = { session, socket, proved: () => proved };
    this.#guests.add(guest);
    session.greet(nonce, cluster);
    return {
      message: (bytes) => {
        if (live) live.lastSeenMs = clock.now();
        session.message(bytes, clock.monotonic());
      },
      closed: () => finish("the connection closed"),
      get proved() {
        return proved;
      },
    };
  }

  /** The view of a node changed. */
  changed(node: string, kind: string, key: string): void {
    this.#live.get(node)?.session.changed(kind, key);
  }

  /** Ends a node's session with a reason for the edge. */
  end(node: string, refuse: Refuse): void {
    const live = this.#live.get(node);
    if (!live) return;
    live.session.refuse(refuse);
    live.socket.close(refuse.code);
    live.session.closed(refuse.code);
    this.#ended(live, refuse.code);
  }

  openStream(node: string, open: StreamOpen): WireStream | undefined {
    return this.#live.get(node)?.session.streams.open(open);
  }

  /** Heartbeats, leases and news; about once a second. */
  tick(): void {
    const { clock, leases } = this.#ports;
    const now = clock.monotonic();
    for (const { session } of this.#guests) session.tick(now);
    for (const live of this.#live.values()) {
      // Renewed only when the edge was heard since the last time: a silent session lets Kubernetes mark the node NotReady.
      const heardMs = live.session.lastReceivedMs;
      if (heardMs > live.leaseHeardMs && now >= live.leaseMs) {
        live.leaseMs = now + leaseRenewIntervalMs;
        live.leaseHeardMs = heardMs;
        void leases.renew(live.node);
      }
      if (now - live.newsMs > newsIntervalMs) this.#note(live, true);
    }
  }

  /** Asks all edges to reconnect, which they do at a random moment of the next seconds. */
  reconnectAll(reason: string): void {
    for (const live of this.#live.values()) live.session.goaway(reason);
  }

  /** Asks all edges to reconnect, then closes. */
  async close(): Promise<void> {
    this.reconnectAll("the hub restarts");
    await Promise.all([...this.#live.values()].map((live) => this.#note(live, false)));
    for (const { socket } of this.#guests) socket.close("the hub stops");
  }

  get #refusals() {
    return this.#ports.metrics.counter("kubeedge_cloud_sessions_refused_total", "Sessions refused, by code.");
  }

  async #judge(
    proof: Proof,
    nonce: string,
    socket: HubSocket,
  ): Promise<Judged | (Refuse & { node?: string })> {
    const { authority, records, clock, log } = this.#ports;
    const chain = checkCertificate(proof.certificate, authority.bundle, clock.now());
    if (chain.state === "bad") {
      return {
        code: "certificate",
        message: `the node's certificate was not accepted: ${chain.reason}; join again with a token`,
      };
    }
    const { facts } = chain;
    const node = /^system:node:(.+)$/.exec(facts.commonName)?.[1];
    if (node === undefined || !facts.organizations.includes("system:nodes")) {
      return { code: "certificate", message: "the certificate is not a node's" };
    }
    const refusal = this.#refusalOf(node, facts.keyHash);
    if (refusal) return { node, ...refusal };
    const parameters = proofParameters(proof);
    const proved = authority.hashes.some((authorityHash) =>
      verifyProof(
        proof.certificate,
        { nonce: fromHex(nonce), authorityHash, parameters },
        fromHex(proof.signature),
      )
    );
    if (!proved) {
      return {
        node,
        code: "proof",
        message: "the proof of the node's key is wrong or not for this connection",
      };
    }
    const other = this.#live.get(node);
    if (
      other && other.instance !== proof.instance && clock.monotonic() - other.session.lastReceivedMs < 15_000
    ) {
      log.warn("A second agent claims a node that is connected", {
        node,
        address: socket.remote,
        from: other.socket.remote,
      });
      return {
        node,
        code: "duplicate",
        message:
          `node "${node}" is connected from ${other.socket.remote} already; two machines must not share one key`,
      };
    }
    if (records.get(node)?.nextKeyHash === facts.keyHash) {
      await records.change(node, (old) => {
        const { nextKeyHash, ...rest } = old;
        return nextKeyHash === facts.keyHash ? { ...rest, keyHash: nextKeyHash } : old;
      });
    }
    return { node, keyHash: facts.keyHash };
  }

  /** What the node's record says against this key. */
  #refusalOf(node: string, keyHash: string): Refuse | undefined {
    const record = this.#ports.records.get(node);
    if (!record) {
      return {
        code: "deleted",
        message: `node "${node}" is not known here (deleted?); join again with a token`,
      };
    }
    if (record.revoked !== undefined) {
      return { code: "revoked", message: `node "${node}" is revoked: ${record.revoked}` };
    }
    return record.keyHash === keyHash || record.nextKeyHash === keyHash ? undefined : replaced(node);
  }

  #welcome(
    { node, keyHash }: Judged,
    session: HubSession,
    socket: HubSocket,
    proof: Proof,
    version: number,
  ): Live {
    const { clock, random, authority, cache, urls, log, reports, records } = this.#ports;
    const before = this.#live.get(node);
    if (before) {
      before.socket.close("replaced by a newer session");
      before.session.closed("replaced by a newer session");
      before.abort.abort(new Error("replaced"));
    }
    const nowMs = clock.now();
    const keyHashes = new Set([keyHash, records.get(node)?.nextKeyHash ?? keyHash]);
    const live: Live = {
      node,
      keyHashes,
      session,
      socket,
      instance: proof.instance,
      agent: proof.agent,
      sinceMs: nowMs,
      lastSeenMs: nowMs,
      roundTripMs: 0,
      newsMs: clock.monotonic(),
      leaseMs: 0,
      leaseHeardMs: 0,
      abort: new AbortController(),
      reports: new NodeReports(node, reports),
    };
    this.#live.set(node, live);
    const name = `${this.#nextSession++}-${hex(random.bytes(4))}`;
    session.accept(
      { session: name, version, node, timeMs: nowMs, caBundle: authority.bundle, urls },
      cache.view(node),
      proof.digests,
    );
    log.info("Edge connected", { node, session: name, address: socket.remote, version: proof.agent });
    void this.#note(live, true);
    return live;
  }

  #ended(live: Live, reason: string): void {
    live.abort.abort(new Error(reason));
    if (this.#live.get(live.node) !== live) return;
    this.#live.delete(live.node);
    this.#ports.log.info("Edge disconnected", { node: live.node, reason });
    void this.#note(live, false);
  }

  async #note(live: Live, connected: boolean): Promise<void> {
    const { records, clock, log } = this.#ports;
    live.newsMs = clock.monotonic();
    const { sinceMs, lastSeenMs, roundTripMs, agent, socket } = live;
    await records.note(live.node, {
      connected,
      sinceMs,
      lastSeenMs,
      roundTripMs,
      agent,
      address: socket.remote,
    }).catch((error: unknown) => {
      log.debug("Cannot note a session's news", { node: live.node, error: errorText(error) });
    });
  }

  async #answer(node: string, request: Request): Promise<{ status: number; body: unknown }> {
    const { client, authority, records } = this.#ports;
    switch (request.request) {
      case "token": {
        const path = objectPath(
          "/api/v1",
          "serviceaccounts",
          request.namespace,
          request.serviceAccount,
          "token",
        );
        const body = {
          apiVersion: "authentication.k8s.io/v1",
          kind: "TokenRequest",
          metadata: {},
          spec: request.spec,
        };
        try {
          const answer = await client.create<{ status: unknown }>(path, body, { as: { node } });
          return { status: 201, body: answer.status };
        } catch (error) {
          if (error instanceof KubeApiError) {
            return { status: error.status, body: { message: error.message } };
          }
          throw error;
        }
      }
      case "renew": {
        const checked = await checkRequest(request.csr);
        if (checked.state === "bad") return { status: 400, body: { message: checked.reason } };
        const keyHash = hex(createHash("sha256").update(checked.publicKey).digest());
        this.#live.get(node)?.keyHashes.add(keyHash);
        // The old key stays good until the new one has been used: an answer that is lost costs nothing.
        const record = await records.change(
          node,
          (old) => old.keyHash === keyHash ? old : { ...old, nextKeyHash: keyHash },
        );
        if (!record) return { status: 404, body: { message: `node "${node}" has no record` } };
        return {
          status: 200,
          body: {
            certificate: await authority.issueNode(node, checked.publicKey),
            caBundle: authority.bundle,
          },
        };
      }
    }
  }
}

/** A proof that holds. */
interface Judged {
  node: string;
  keyHash: string;
}

function replaced(node: string): Refuse {
  return {
    code: "replaced",
    message: `the name "${node}" was taken over by another machine; join under another name`,
  };
}
