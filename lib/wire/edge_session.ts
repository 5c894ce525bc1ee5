/**
 * The edge's half of a session, pure: messages and times go in, messages go out by `transmit`, and what they mean by
 * the handlers. lib/edge/link.ts owns the socket, the key and the store.
 *
 * states: greeting (awaits hello) → proving (proof is being made or judged) → live → closed
 */
import type { Bytes } from "../core/bytes.ts";
import { fromHex, hex } from "../core/bytes.ts";
import {
  frameBytesMax,
  heartbeatIntervalMs,
  requestsMax,
  sessionTimeoutMs,
  unackedReportsMax,
} from "../core/limits.ts";
import {
  decodeFrame,
  decodeJson,
  decodeObject,
  encodeFrame,
  encodeJson,
  type Frame,
  protocolVersion,
  protocolVersionLeast,
} from "./frame.ts";
import {
  commonVersion,
  type HaveEntry,
  type Hello,
  type Proof,
  readHello,
  readRefuse,
  readResponse,
  readWelcome,
  type Refuse,
  type Report,
  type Request,
  type Response,
  type StreamOpen,
  type Welcome,
} from "./messages.ts";
import { Streams, type WireStream } from "./streams.ts";

/** One change of what the edge is to hold; bytes are a view of the message. */
export interface Change {
  change: "object" | "absent" | "drop";
  kind: string;
  key: string;
  uid: string;
  /** Hex. */
  version: string;
  json: Uint8Array;
}

export interface EdgeSessionHandlers {
  transmit(message: Bytes): void;
  /** The hub has spoken: make the proof and hand it to `prove`. */
  hello(hello: Hello): void;
  /** Proved. Hand what the store holds of each kind in `want` to `have`; all other kinds are in step. */
  welcome(welcome: Welcome): void;
  refused(refuse: Refuse): void;
  /** Commit the change, then call `committed(seq)`: the hub forgets it only then. */
  change(seq: number, change: Change): void;
  /** Everything of the kind has been handed to `change`; commit and `committed(seq)` like a change. */
  synced(seq: number, kind: string): void;
  /** Reports up to this one are in Kubernetes or refused for good. `ids` as given to `report`. */
  reported(ids: number[]): void;
  /** A report that Kubernetes refused; it also comes in `reported`. */
  reportRefused(id: number, reason: string): void;
  streamOpened(stream: WireStream, open: StreamOpen): void;
  /** The hub asks for a reconnect (it restarts or rolls a certificate). */
  goaway(reason: string): void;
  /** A fault of the peer or silence: close the socket. */
  failed(reason: string): void;
}

export class EdgeSession {
  readonly #handlers: EdgeSessionHandlers;
  readonly streams: Streams;
  #state: "greeting" | "proving" | "live" | "closed" = "greeting";
  #lastReceivedMs: number;
  #lastPingMs: number;
  #pingId = 0;
  #pingSentMs: number | undefined;
  #roundTripMs = 0;
  #ackedSeq = 0;
  #receivedSeq = 0;
  #reportSeq = 0;
  /** Reports in flight, in order of their numbers. */
  readonly #reports: { seq: number; id: number }[] = [];
  #requestId = 0;
  readonly #requests = new Map<number, (response: Response | { failed: string }) => void>();

  constructor(handlers: EdgeSessionHandlers, now: number) {
    this.#handlers = handlers;
    this.#lastReceivedMs = now;
    this.#lastPingMs = now;
    this.streams = new Streams({
      transmit: (message) => this.#send(message as Bytes),
      opened: (stream, open) => handlers.streamOpened(stream, open),
    });
  }

  get state(): string {
    return this.#state;
  }
  get live(): boolean {
    return this.#state === "live";
  }
  get roundTripMs(): number {
    return this.#roundTripMs;
  }
  get unackedReports(): number {
    return this.#reports.length;
  }
  /** More reports may be handed to `report`. */
  get reportRoom(): number {
    return this.live ? unackedReportsMax - this.#reports.length : 0;
  }

  /** One WebSocket message from the hub; `now` is monotonic. */
  message(message: Uint8Array, now: number): void {
    if (this.#state === "closed") return;
    const decoded = decodeFrame(message, frameBytesMax);
    if (decoded.state === "bad") return this.#fail(decoded.reason);
    this.#lastReceivedMs = now;
    this.#frame(decoded.frame, now);
  }

  /** Sends the proof; `digests` inside are the store's at this moment. */
  prove(proof: Proof): void {
    if (this.#state === "proving") this.#send(encodeFrame("proof", 0, encodeJson(proof)));
  }

  /** What the store holds of a kind that `welcome` wanted. */
  have(kind: string, entries: HaveEntry[]): void {
    this.#send(encodeFrame("have", 0, encodeJson({ kind, entries })));
  }

  /** The store has committed everything up to `seq`. */
  committed(seq: number): void {
    if (this.#state !== "live" || seq <= this.#ackedSeq) return;
    this.#ackedSeq = seq;
    this.#send(encodeFrame("ack", seq));
  }

  /** Sends one report; `id` is the outbox's own and comes back in `reported`. False when there is no room. */
  report(id: number, report: Report): boolean {
    if (this.reportRoom <= 0) return false;
    const seq = ++this.#reportSeq;
    this.#reports.push({ seq, id });
    this.#send(encodeFrame("report", seq, encodeJson(report)));
    return true;
  }

  /** Asks the hub; resolves with the answer or with why there is none. */
  request(request: Request): Promise<Response | { failed: string }> {
    if (!this.live) return Promise.resolve({ failed: "the cloud cannot be reached" });
    if (this.#requests.size >= requestsMax) return Promise.resolve({ failed: "too many requests in flight" });
    const id = ++this.#requestId;
    return new Promise((resolve) => {
      this.#requests.set(id, resolve);
      this.#send(encodeFrame("request", id, encodeJson(request)));
    });
  }

  /** Heartbeat and silence; call about once a second. */
  tick(now: number): void {
    if (this.#state === "closed") return;
    if (now - this.#lastReceivedMs > sessionTimeoutMs) {
      return this.#fail(`nothing heard for ${sessionTimeoutMs} ms`);
    }
    if (this.live && now - this.#lastPingMs >= heartbeatIntervalMs) {
      this.#lastPingMs = now;
      this.#pingSentMs = now;
      const body = new Uint8Array(4);
      new DataView(body.buffer).setUint32(0, Math.min(0xffffffff, Math.round(this.#roundTripMs * 1000)));
      this.#send(encodeFrame("ping", ++this.#pingId, body));
    }
  }

  /** The socket is gone. Reports in flight stay in the outbox; requests and streams fail. */
  closed(reason: string): void {
    if (this.#state === "closed") return;
    this.#state = "closed";
    this.streams.close(reason);
    for (const resolve of this.#requests.values()) resolve({ failed: reason });
    this.#requests.clear();
  }

  #frame(frame: Frame, now: number): void {
    const { type, id, body } = frame;
    if (this.#state === "greeting") {
      if (type === "refuse") return this.#refuse(body);
      if (type !== "hello") return this.#fail(`${type} before hello`);
      return this.#hello(body);
    }
    if (this.#state === "proving") {
      if (type === "refuse") return this.#refuse(body);
      if (type !== "welcome") return this.#fail(`${type} before welcome`);
      return this.#welcome(body);
    }
    switch (type) {
      case "object":
      case "absent":
      case "drop": {
        if (!this.#inOrder(id)) return;
        const object = decodeObject(body);
        if (object.state === "bad") return this.#fail(object.reason);
        const { kind, key, uid, version, json } = object.object;
        return this.#handlers.change(id, { change: type, kind, key, uid, version: hex(version), json });
      }
      case "synced": {
        if (!this.#inOrder(id)) return;
        return this.#handlers.synced(id, new TextDecoder().decode(body));
      }
      case "ack":
        return this.#reported(id);
      case "refused": {
        const report = this.#reports.find((known) => known.seq === id);
        if (report) this.#handlers.reportRefused(report.id, new TextDecoder().decode(body));
        return;
      }
      case "response":
        return this.#response(id, body);
      case "pong":
        if (id === this.#pingId && this.#pingSentMs !== undefined) this.#roundTripMs = now - this.#pingSentMs;
        return;
      case "refuse":
        return this.#refuse(body);
      case "goaway":
        return this.#handlers.goaway(new TextDecoder().decode(body));
      case "streamOpen":
      case "streamData":
      case "streamEnd":
      case "streamReset":
      case "streamCredit": {
        const result = this.streams.frame(frame);
        if (result.state === "bad") this.#fail(result.reason);
        return;
      }
      default:
        return this.#fail(`${type} is not for an edge`);
    }
  }

  #hello(body: Uint8Array): void {
    const json = decodeJson(body);
    const hello = json.state === "ok" ? readHello(json.value) : json;
    if (hello.state === "bad") return this.#fail(hello.reason);
    const theirs = { least: hello.value.versionLeast, most: hello.value.versionMost };
    const mine = { least: protocolVersionLeast, most: protocolVersion };
    if (commonVersion(mine, theirs) === undefined) {
      const message =
        `the hub speaks session protocol ${theirs.least} to ${theirs.most}, this edge ${mine.least} to ` +
        `${mine.most}: upgrade the older of the two`;
      return this.#handlers.refused({ code: "version", message });
    }
    this.#state = "proving";
    this.#handlers.hello(hello.value);
  }

  #welcome(body: Uint8Array): void {
    const json = decodeJson(body);
    const welcome = json.state === "ok" ? readWelcome(json.value) : json;
    if (welcome.state === "bad") return this.#fail(welcome.reason);
    this.#state = "live";
    this.#handlers.welcome(welcome.value);
  }

  #refuse(body: Uint8Array): void {
    const json = decodeJson(body);
    const refuse = json.state === "ok" ? readRefuse(json.value) : json;
    if (refuse.state === "bad") return this.#fail(refuse.reason);
    this.#handlers.refused(refuse.value);
  }

  #inOrder(seq: number): boolean {
    if (seq === this.#receivedSeq + 1) {
      this.#receivedSeq = seq;
      return true;
    }
    this.#fail(`sync frame ${seq} after ${this.#receivedSeq}`);
    return false;
  }

  #reported(seq: number): void {
    if (seq > this.#reportSeq) return this.#fail(`acknowledgement of report ${seq}, which was never sent`);
    const ids: number[] = [];
    while (this.#reports[0] && this.#reports[0].seq <= seq) {
      ids.push((this.#reports.shift() as { id: number }).id);
    }
    if (ids.length > 0) this.#handlers.reported(ids);
  }

  #response(id: number, body: Uint8Array): void {
    const resolve = this.#requests.get(id);
    const json = decodeJson(body);
    const response = json.state === "ok" ? readResponse(json.value) : json;
    if (response.state === "bad") return this.#fail(response.reason);
    this.#requests.delete(id);
    resolve?.(response.value);
  }

  #send(message: Bytes): void {
    if (this.#state !== "closed") this.#handlers.transmit(message);
  }

  #fail(reason: string): void {
    this.#handlers.failed(reason);
  }
}

/** Nonce of a hello as bytes. */
export function nonceOf(hello: Hello): Bytes {
  return fromHex(hello.nonce);
}
