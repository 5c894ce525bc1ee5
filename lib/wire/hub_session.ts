/**
 * The hub's half of a session, pure: see messages.ts for the order of things. lib/cloud/session.ts owns the socket and
 * judges proofs; the node's desired state comes as a `NodeView`.
 *
 * states: proving (hello sent) → judging (proof received) → live → closed
 *
 * What the edge holds is tracked per object: `#held` has the version that the edge said it had or was sent. A change is
 * sent only when it differs, so that being told twice about a change is free, and the order in which `changed` and
 * `have` arrive does not matter.
 */
import { type Bytes, fromHex } from "../core/bytes.ts";
import {
  frameBytesMax,
  requestsMax,
  sessionTimeoutMs,
  unackedBytesMax,
  unackedReportsMax,
  unprovedFrameBytesMax,
  unprovedTimeoutMs,
} from "../core/limits.ts";
import { digestOf } from "./digest.ts";
import {
  decodeFrame,
  decodeJson,
  encodeFrame,
  encodeJson,
  encodeObject,
  type Frame,
  noVersion,
  protocolVersion,
  protocolVersionLeast,
} from "./frame.ts";
import {
  commonVersion,
  type Proof,
  readHave,
  readProof,
  readReport,
  readRequest,
  type Refuse,
  type Report,
  type Request,
  type Response,
  type Welcome,
} from "./messages.ts";
import { Streams } from "./streams.ts";

/** One object that a node is to hold; `json` undefined: the node is to know that it does not exist. */
export interface ViewObject {
  uid: string;
  /** Hex of 8 bytes; `absentVersion` when it does not exist. */
  version: string;
  json: Uint8Array | undefined;
}
export const absentVersion = "0000000000000000";

/** What one node is to hold, as the cloud's cache has it. */
export interface NodeView {
  kinds(): readonly string[];
  keys(kind: string): Iterable<string>;
  get(kind: string, key: string): ViewObject | undefined;
}

export interface HubSessionHandlers {
  transmit(message: Bytes): void;
  /** Judge it (certificate, record, signature), then call `accept` or `refuse`. */
  proof(proof: Proof, version: number): void;
  /** Write it to Kubernetes as the node, then call `reported(seq)`. */
  report(seq: number, report: Report): void;
  /** Answer with `respond(id, …)`. */
  request(id: number, request: Request): void;
  /** The edge's round trip as it measured it. */
  heartbeat(roundTripMs: number): void;
  /** A fault of the peer or silence: close the socket. */
  failed(reason: string): void;
}

export class HubSession {
  readonly #handlers: HubSessionHandlers;
  readonly streams: Streams;
  #state: "proving" | "judging" | "live" | "closed" = "proving";
  readonly #openedMs: number;
  #lastReceivedMs: number;
  #view: NodeView | undefined;
  /** kind → key → version (hex) that the edge holds or is being sent. */
  readonly #held = new Map<string, Map<string, string>>();
  /** Kinds of which the edge was asked what it has and has not said it yet. */
  readonly #awaited = new Set<string>();
  /** What may have to be sent, in order; a synced marker follows the objects of its kind. */
  readonly #pending = new Map<string, { kind: string; key: string | undefined }>();
  #seq = 0;
  #unackedBytes = 0;
  readonly #unacked: { seq: number; bytes: number }[] = [];
  #reportSeq = 0;
  #reportAcked = 0;
  readonly #reportsDone = new Set<number>();
  #requestsOpen = 0;

  constructor(handlers: HubSessionHandlers, now: number) {
    this.#handlers = handlers;
    this.#openedMs = now;
    this.#lastReceivedMs = now;
    this.streams = new Streams({ transmit: (message) => this.#send(message as Bytes) });
  }

  get live(): boolean {
    return this.#state === "live";
  }
  get proved(): boolean {
    return this.#state === "live";
  }
  get lastReceivedMs(): number {
    return this.#lastReceivedMs;
  }
  /** Nothing is waiting to be sent or acknowledged. */
  get quiet(): boolean {
    return this.#pending.size === 0 && this.#unacked.length === 0 && this.#awaited.size === 0;
  }

  /** Speaks first. */
  greet(nonce: string, cluster: string): void {
    const hello = { nonce, cluster, versionLeast: protocolVersionLeast, versionMost: protocolVersion };
    this.#send(encodeFrame("hello", 0, encodeJson(hello)));
  }

  message(message: Uint8Array, now: number): void {
    if (this.#state === "closed") return;
    const decoded = decodeFrame(message, this.live ? frameBytesMax : unprovedFrameBytesMax);
    if (decoded.state === "bad") return this.#handlers.failed(decoded.reason);
    this.#lastReceivedMs = now;
    this.#frame(decoded.frame);
  }

  /** The proof holds. The view must be complete: what it lacks is taken from the edge. */
  accept(welcome: Omit<Welcome, "want">, view: NodeView, digests: Record<string, string>): void {
    if (this.#state !== "judging") return;
    this.#state = "live";
    this.#view = view;
    const want: string[] = [];
    for (const kind of new Set([...view.kinds(), ...Object.keys(digests)])) {
      const held = new Map<string, string>();
      this.#held.set(kind, held);
      const entries: [string, string, string][] = [];
      for (const key of view.keys(kind)) {
        const object = view.get(kind, key);
        if (object) entries.push([key, object.uid, object.version]);
      }
      if (digestOf(entries) === (digests[kind] ?? "")) {
        for (const [key, , version] of entries) held.set(key, version);
      } else if ((digests[kind] ?? "") === "") {
        // The edge holds nothing of it: no need to ask.
        for (const [key] of entries) this.#enqueue(kind, key);
        this.#enqueue(kind, undefined);
        want.push(kind);
      } else {
        want.push(kind);
        this.#awaited.add(kind);
      }
    }
    this.#send(encodeFrame("welcome", 0, encodeJson({ ...welcome, want })));
    this.#pump();
  }

  /** Ends the session with a reason that the edge understands; the caller closes the socket. */
  refuse(refuse: Refuse): void {
    this.#send(encodeFrame("refuse", 0, encodeJson(refuse)));
  }

  /** The view changed for this object (or may have). */
  changed(kind: string, key: string): void {
    if (!this.live) return;
    this.#enqueue(kind, key);
    this.#pump();
  }

  /** The report is in Kubernetes, or refused for good with `refusal`. Acknowledged once all before it are. */
  reported(seq: number, refusal?: string): void {
    if (refusal !== undefined) {
      this.#send(encodeFrame("refused", seq, new TextEncoder().encode(refusal.slice(0, 500))));
    }
    this.#reportsDone.add(seq);
    const before = this.#reportAcked;
    while (this.#reportsDone.delete(this.#reportAcked + 1)) this.#reportAcked++;
    if (this.#reportAcked > before) this.#send(encodeFrame("ack", this.#reportAcked));
  }

  respond(id: number, response: Response): void {
    this.#requestsOpen--;
    this.#send(encodeFrame("response", id, encodeJson(response)));
  }

  /** Asks the edge to reconnect. */
  goaway(reason: string): void {
    this.#send(encodeFrame("goaway", 0, new TextEncoder().encode(reason)));
  }

  /** Silence and unproved guests; call about once a second. */
  tick(now: number): void {
    if (this.#state === "closed") return;
    if (!this.live && now - this.#openedMs > unprovedTimeoutMs && this.#state === "proving") {
      return this.#handlers.failed(`no proof within ${unprovedTimeoutMs} ms`);
    }
    if (now - this.#lastReceivedMs > sessionTimeoutMs) {
      this.#handlers.failed(`nothing heard for ${sessionTimeoutMs} ms`);
    }
  }

  closed(reason: string): void {
    if (this.#state === "closed") return;
    this.#state = "closed";
    this.streams.close(reason);
    this.#pending.clear();
    this.#held.clear();
  }

  #frame(frame: Frame): void {
    const { type, id, body } = frame;
    if (this.#state === "proving") {
      if (type !== "proof") return this.#handlers.failed(`${type} before proof`);
      return this.#proof(body);
    }
    if (this.#state !== "live") return this.#handlers.failed(`${type} before welcome`);
    switch (type) {
      case "have":
        return this.#have(body);
      case "ack":
        return this.#acked(id);
      case "report": {
        if (id !== this.#reportSeq + 1) return this.#handlers.failed(`report ${id} after ${this.#reportSeq}`);
        if (id - this.#reportAcked > unackedReportsMax) {
          return this.#handlers.failed("too many reports in flight");
        }
        this.#reportSeq = id;
        const json = decodeJson(body);
        const report = json.state === "ok" ? readReport(json.value) : json;
        if (report.state === "bad") return this.#handlers.failed(report.reason);
        return this.#handlers.report(id, report.value);
      }
      case "request": {
        const json = decodeJson(body);
        const request = json.state === "ok" ? readRequest(json.value) : json;
        if (request.state === "bad") return this.#handlers.failed(request.reason);
        if (++this.#requestsOpen > requestsMax) return this.#handlers.failed("too many requests in flight");
        return this.#handlers.request(id, request.value);
      }
      case "ping": {
        if (body.length !== 4) return this.#handlers.failed("ping is not 4 bytes");
        this.#handlers.heartbeat(new DataView(body.buffer, body.byteOffset, 4).getUint32(0) / 1000);
        return this.#send(encodeFrame("pong", id));
      }
      case "streamHead":
      case "streamData":
      case "streamEnd":
      case "streamReset":
      case "streamCredit": {
        const result = this.streams.frame(frame);
        if (result.state === "bad") this.#handlers.failed(result.reason);
        return;
      }
      default:
        return this.#handlers.failed(`${type} is not for a hub`);
    }
  }

  #proof(body: Uint8Array): void {
    const json = decodeJson(body);
    const proof = json.state === "ok" ? readProof(json.value) : json;
    if (proof.state === "bad") return this.#handlers.failed(proof.reason);
    const mine = { least: protocolVersionLeast, most: protocolVersion };
    const theirs = { least: proof.value.versionLeast, most: proof.value.versionMost };
    const version = commonVersion(mine, theirs);
    this.#state = "judging";
    if (version === undefined) {
      const message =
        `the edge speaks session protocol ${theirs.least} to ${theirs.most}, this hub ${mine.least} to ` +
        `${mine.most}: upgrade the older of the two`;
      this.refuse({ code: "version", message });
      return this.#handlers.failed(message);
    }
    this.#handlers.proof(proof.value, version);
  }

  #have(body: Uint8Array): void {
    const json = decodeJson(body);
    const have = json.state === "ok" ? readHave(json.value) : json;
    if (have.state === "bad") return this.#handlers.failed(have.reason);
    const { kind, entries } = have.value;
    if (!this.#awaited.delete(kind)) {
      // A kind whose digest was empty is not awaited, but the edge answers for all that it was asked.
      return entries.length === 0
        ? undefined
        : this.#handlers.failed(`have of ${kind}, which was not asked for`);
    }
    const held = this.#heldOf(kind);
    for (const [key, uid, version] of entries) {
      if (held.has(key)) continue; // something newer is on its way already
      // An object of the same name but another uid is another object: its version says nothing.
      const object = this.#view?.get(kind, key);
      held.set(key, object && object.uid !== uid ? "" : version);
      this.#enqueue(kind, key);
    }
    for (const key of this.#view?.keys(kind) ?? []) this.#enqueue(kind, key);
    this.#enqueue(kind, undefined);
    this.#pump();
  }

  #acked(seq: number): void {
    if (seq > this.#seq) return this.#handlers.failed(`acknowledgement of ${seq}, which was never sent`);
    while (this.#unacked[0] && this.#unacked[0].seq <= seq) {
      this.#unackedBytes -= (this.#unacked.shift() as { bytes: number }).bytes;
    }
    this.#pump();
  }

  #heldOf(kind: string): Map<string, string> {
    let held = this.#held.get(kind);
    if (!held) this.#held.set(kind, held = new Map());
    return held;
  }

  #enqueue(kind: string, key: string | undefined): void {
    const name = `${kind}\0${key ?? ""}`;
    if (!this.#pending.has(name)) this.#pending.set(name, { kind, key });
  }

  #pump(): void {
    for (const [name, { kind, key }] of this.#pending) {
      if (this.#unackedBytes >= unackedBytesMax) return;
      this.#pending.delete(name);
      if (key === undefined) {
        this.#sendSync(encodeFrame("synced", this.#seq + 1, new TextEncoder().encode(kind)));
      } else this.#sendObject(kind, key);
    }
  }

  #sendObject(kind: string, key: string): void {
    const held = this.#heldOf(kind);
    const object = this.#view?.get(kind, key);
    const before = held.get(key);
    if (!object) {
      if (before === undefined) return; // nothing to drop, or `have` will tell
      held.delete(key);
      const body = encodeObject({ kind, key, uid: "", version: noVersion, json: new Uint8Array(0) });
      return this.#sendSync(encodeFrame("drop", this.#seq + 1, body));
    }
    if (before === object.version) return;
    held.set(key, object.version);
    const type = object.json ? "object" : "absent";
    const json = object.json ?? new Uint8Array(0);
    const body = encodeObject({ kind, key, uid: object.uid, version: fromHex(object.version), json });
    this.#sendSync(encodeFrame(type, this.#seq + 1, body));
  }

  #sendSync(message: Bytes): void {
    this.#seq++;
    this.#unacked.push({ seq: this.#seq, bytes: message.length });
    this.#unackedBytes += message.length;
    this.#send(message);
  }

  #send(message: Bytes): void {
    if (this.#state !== "closed") this.#handlers.transmit(message);
  }
}
