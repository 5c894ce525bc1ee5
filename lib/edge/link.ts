/**
 * The link to the cloud: dials the hubs in turn, proves the node's key, moves changes in and reports out, renews the
 * node's certificate. It never gives up: whatever the cloud says, the node goes on with what its store holds.
 */
import type { Clock, Random } from "../core/clock.ts";
import { Backoff } from "../core/backoff.ts";
import { hex } from "../core/bytes.ts";
import { errorText } from "../core/errors.ts";
import type { Logger } from "../core/log.ts";
import { Signal } from "../core/queue.ts";
import { signProof } from "../crypto/proof.ts";
import {
  authorityHash,
  checkCertificate,
  makeKey,
  makeRequest,
  readCertificate,
  splitPem,
} from "../crypto/x509.ts";
import { type Change, EdgeSession, nonceOf } from "../wire/edge_session.ts";
import { protocolVersion, protocolVersionLeast } from "../wire/frame.ts";
import {
  type Hello,
  proofParameters,
  type Refuse,
  type Request,
  type Response,
  type StreamOpen,
  type Welcome,
} from "../wire/messages.ts";
import type { WireStream } from "../wire/streams.ts";
import type { Identity } from "./identity.ts";
import type { Outbox } from "./outbox.ts";
import type { EdgeStore } from "./store/store.ts";

/** Between attempts: soon enough after a short cut, no flood on a hub that comes back to ten thousand nodes. */
const retryBaseMs = 500;
const retryMaxMs = 15_000;
/** After a refusal that a person has to look into. */
const refusedRetryMs = 60_000;
/** A session that lasted this long ends the back-off. */
const steadyMs = 10_000;
/** A hub that goes away is left within this time, at random: its other nodes do the same. */
const goawaySpreadMs = 3000;
/** Renewal after this share of the certificate's life. */
const renewShare = 2 / 3;
const renewCheckMs = 3_600_000;
const clockSkewWarnMs = 60_000;

export interface Connection {
  send(message: Uint8Array): void;
  close(): void;
}
export type Connect = (
  url: string,
  authorities: string,
  handlers: { message(bytes: Uint8Array): void; closed(reason: string): void },
) => Promise<Connection>;

export interface LinkPorts {
  connect: Connect;
  store: EdgeStore;
  outbox: () => Outbox;
  saveIdentity: (identity: Identity) => void;
  clock: Clock;
  random: Random;
  log: Logger;
  agent: string;
  /** A change of what the node is to hold; the store has it already. */
  changed(change: Change): void;
  /** The session is live. */
  connected(): void;
  /** Everything of the kind is here. */
  synced(kind: string): void;
  streamOpened(stream: WireStream, open: StreamOpen): void;
  /** The cloud does not want this node any more: its pods are another's, or nobody's. */
  dismissed(reason: string): void;
}

export interface LinkStatus {
  state: "connecting" | "connected" | "refused";
  url: string;
  sinceMs: number;
  roundTripMs: number;
  lastError: string;
}

export class Link {
  readonly #ports: LinkPorts;
  readonly #instance: string;
  #identity: Identity;
  #session: EdgeSession | undefined;
  #connection: Connection | undefined;
  readonly #stop = new AbortController();
  readonly #ended = new Signal();
  #status: LinkStatus;
  #nextRenewCheckMs = 0;
  #liveMs = 0;
  #wants = new Set<string>();
  #refused: Refuse | undefined;

  constructor(identity: Identity, ports: LinkPorts) {
    this.#identity = identity;
    this.#ports = ports;
    this.#instance = hex(ports.random.bytes(8));
    this.#status = {
      state: "connecting",
      url: "",
      sinceMs: ports.clock.now(),
      roundTripMs: 0,
      lastError: "",
    };
  }

  get status(): LinkStatus {
    return { ...this.#status, roundTripMs: this.#session?.roundTripMs ?? 0 };
  }
  get identity(): Identity {
    return this.#identity;
  }
  get live(): boolean {
    return this.#session?.live ?? false;
  }

  /** Runs until `stop`. */
  async run(): Promise<void> {
    const { clock, random, log } = this.#ports;
    const { signal } = this.#stop;
    const backoff = new Backoff({ baseMs: retryBaseMs, maxMs: retryMaxMs }, random);
    for (let attempt = 0; !signal.aborted; attempt++) {
      const url = this.#identity.urls[attempt % this.#identity.urls.length] ?? "";
      this.#liveMs = 0;
      this.#refused = undefined;
      try {
        await this.#once(url);
      } catch (error) {
        this.#lost(errorText(error));
        log.info("Cannot reach the cloud, retrying", {
          url,
          error: errorText(error),
          attempt: backoff.attempt,
        });
      }
      if (signal.aborted) return;
      if (this.#liveMs > 0 && clock.monotonic() - this.#liveMs > steadyMs) backoff.reset();
      const refused = this.#refused as Refuse | undefined;
      const delayMs = refused && refused.code !== "retry" && refused.code !== "duplicate"
        ? refusedRetryMs * (0.5 + random.float())
        : backoff.next();
      await clock.sleep(delayMs, signal).catch(() => {});
    }
  }

  stop(): void {
    this.#stop.abort(new Error("the agent stops"));
    this.#connection?.close();
    this.#session?.closed("the agent stops");
    this.#ended.notify();
  }

  /** Sends what waits in the outbox, as far as the window goes. */
  pump(): void {
    const session = this.#session;
    if (!session?.live) return;
    this.#ports.outbox().drain((id, report) => session.report(id, report));
  }

  request(request: Request): Promise<Response | { failed: string }> {
    return this.#session?.request(request) ?? Promise.resolve({ failed: "the cloud cannot be reached" });
  }

  /** About once a second. */
  tick(): void {
    const { clock } = this.#ports;
    this.#session?.tick(clock.monotonic());
    if (this.live && clock.now() > this.#nextRenewCheckMs) {
      this.#nextRenewCheckMs = clock.now() + renewCheckMs;
      void this.#renew();
    }
  }

  /** One connection from its dialling to its end. */
  async #once(url: string): Promise<void> {
    const { connect, clock, log } = this.#ports;
    this.#status = { ...this.#status, url };
    let over = false;
    const end = (reason: string) => {
      if (over) return;
      over = true;
      session.closed(reason);
      if (this.#session === session) this.#lost(reason);
      this.#connection?.close();
      this.#ended.notify();
    };
    const waiting: Uint8Array[] = [];
    const transmit = (message: Uint8Array) =>
      this.#connection ? this.#connection.send(message) : waiting.push(message);
    const session: EdgeSession = new EdgeSession({
      transmit,
      hello: (hello) => {
        this.#prove(hello, session).catch((error: unknown) => end(errorText(error)));
      },
      welcome: (welcome) => this.#welcomed(welcome, session),
      refused: (refuse) => {
        this.#onRefused(refuse);
        end(refuse.message);
      },
      change: (seq, change) => {
        this.#ports.store.apply(change);
        void this.#ports.store.flushed().then(() => session.committed(seq));
        this.#ports.changed(change);
      },
      synced: (seq, kind) => {
        this.#wants.delete(kind);
        void this.#ports.store.flushed().then(() => session.committed(seq));
        this.#ports.synced(kind);
      },
      reported: (ids) => {
        this.#ports.outbox().acknowledged(ids);
        this.pump();
      },
      reportRefused: (_id, reason) => log.warn("Kubernetes refused a report of this node", { reason }),
      streamOpened: (stream, open) => this.#ports.streamOpened(stream, open),
      goaway: (reason) => {
        log.info("The hub asks for a reconnect", { reason });
        clock.timer(this.#ports.random.float() * goawaySpreadMs, () => end(reason));
      },
      failed: (reason) => end(reason),
    }, clock.monotonic());
    this.#connection = undefined;
    this.#session = session;
    const connection = await connect(url, this.#identity.caBundle, {
      message: (bytes) => session.message(bytes, clock.monotonic()),
      closed: (reason) => end(reason),
    });
    if (this.#stop.signal.aborted) return connection.close();
    this.#connection = connection;
    for (const message of waiting) connection.send(message);
    while (!over && !this.#stop.signal.aborted) await this.#ended.wait();
  }

  async #prove(hello: Hello, session: EdgeSession): Promise<void> {
    const { agent, store } = this.#ports;
    const identity = this.#identity;
    if (hello.cluster !== identity.cluster) {
      this.#onRefused({
        code: "cluster",
        message:
          "the hub serves another cluster; to move this node: kubeedge edge reset, then join with that cluster's token",
      });
      throw new Error("the hub serves another cluster");
    }
    const claims = {
      versionLeast: protocolVersionLeast,
      versionMost: protocolVersion,
      agent,
      instance: this.#instance,
      digests: store.digests(),
    };
    const signature = await signProof(identity.key, {
      nonce: nonceOf(hello),
      authorityHash: authorityHash(identity.caBundle),
      parameters: proofParameters(claims),
    });
    session.prove({ ...claims, certificate: identity.certificate, signature: hex(signature) });
  }

  #welcomed(welcome: Welcome, session: EdgeSession): void {
    const { clock, log, store } = this.#ports;
    this.#liveMs = clock.monotonic();
    const skewMs = welcome.timeMs - clock.now();
    if (Math.abs(skewMs) > clockSkewWarnMs) {
      log.warn("This machine's clock differs from the cloud's; set it (NTP)", { ms: Math.round(skewMs) });
    }
    this.#status = {
      state: "connected",
      url: this.#status.url,
      sinceMs: clock.now(),
      roundTripMs: 0,
      lastError: "",
    };
    log.info("Connected to the cloud", {
      url: this.#status.url,
      session: welcome.session,
      count: welcome.want.length,
    });
    this.#take(welcome);
    this.#wants = new Set(welcome.want);
    for (const kind of welcome.want) session.have(kind, store.entries(kind));
    this.#ports.connected();
    for (const kind of ["nodes", "services", "configmaps", "secrets", "pods"]) {
      if (!this.#wants.has(kind)) this.#ports.synced(kind);
    }
    this.pump();
    this.#nextRenewCheckMs = 0;
  }

  /** CAs and URLs in force, as the proved hub says them. */
  #take({ caBundle, urls }: Welcome): void {
    const next = {
      ...this.#identity,
      ...(caBundle ? { caBundle } : {}),
      ...(urls && urls.length > 0 ? { urls } : {}),
    };
    if (JSON.stringify(next) === JSON.stringify(this.#identity)) return;
    this.#ports.log.info("CA bundle or hub URLs changed", { url: next.urls.join(",") });
    this.#identity = next;
    this.#ports.saveIdentity(next);
  }

  async #renew(): Promise<void> {
    const { clock, log } = this.#ports;
    const identity = this.#identity;
    try {
      const { notBeforeMs, notAfterMs } = readCertificate(identity.certificate);
      const signer = splitPem(identity.caBundle)[0] ?? "";
      const due = clock.now() > notBeforeMs + (notAfterMs - notBeforeMs) * renewShare;
      if (!due && checkCertificate(identity.certificate, signer, clock.now()).state === "ok") return;
      const key = await makeKey();
      const csr = await makeRequest(key, {
        commonName: `system:node:${identity.node}`,
        organization: "system:nodes",
      });
      const answer = await this.request({ request: "renew", csr });
      if ("failed" in answer) throw new Error(answer.failed);
      const { certificate, caBundle, message } = answer.body as {
        certificate?: string;
        caBundle?: string;
        message?: string;
      };
      if (answer.status !== 200 || certificate === undefined) {
        throw new Error(message ?? `status ${answer.status}`);
      }
      this.#identity = { ...this.#identity, key, certificate, ...(caBundle ? { caBundle } : {}) };
      this.#ports.saveIdentity(this.#identity);
      log.info("The node's certificate was renewed", {
        to: new Date(readCertificate(certificate).notAfterMs).toISOString(),
      });
    } catch (error) {
      log.warn("Cannot renew the node's certificate, trying again in an hour", { error: errorText(error) });
    }
  }

  #onRefused(refuse: Refuse): void {
    const { log, clock } = this.#ports;
    this.#refused = refuse;
    this.#status = { ...this.#status, state: "refused", sinceMs: clock.now(), lastError: refuse.message };
    log.error("The cloud refused this node; its pods go on unless it was deleted or replaced", {
      reason: refuse.code,
      error: refuse.message,
    });
    if (refuse.code === "deleted" || refuse.code === "replaced") this.#ports.dismissed(refuse.message);
  }

  #lost(reason: string): void {
    const { clock, log } = this.#ports;
    if (this.#status.state === "connected") {
      log.warn("The cloud is lost; going on with what is stored", { reason });
    }
    if (this.#status.state !== "refused" || this.#refused === undefined) {
      this.#status = {
        ...this.#status,
        state: "connecting",
        sinceMs: this.#status.state === "connected" ? clock.now() : this.#status.sinceMs,
        lastError: reason,
      };
    }
    this.#session = undefined;
    this.#connection = undefined;
    this.#ports.outbox().disconnected();
  }
}
