/**
 * Streams of one session: each is an HTTP exchange that the hub opens and the edge answers (logs, exec, …), after its
 * heads an opaque flow of bytes both ways. Pure: frames in, frames out through `transmit`.
 *
 * Two credits hold every sender back (Deno's WebSocket has no pause of its own):
 * - per stream, granted as the receiver's reader takes bytes: a reader that stalls fills `streamWindowBytes`, no more;
 * - per session (stream id 0), granted as bytes arrive: at most `sessionWindowBytes` of streams stand in front of a
 *   sync frame, and a stalled reader does not hold up the other streams.
 * A peer that sends beyond its credit is at fault and loses the session.
 */
import { sessionWindowBytes, streamChunkBytesMax, streamsMax, streamWindowBytes } from "../core/limits.ts";
import { decodeJson, encodeFrame, encodeJson, type Frame } from "./frame.ts";
import { readStreamHead, readStreamOpen, type StreamHead, type StreamOpen } from "./messages.ts";

/** A stream failed or was given up; the message is for the person behind it. */
export class StreamReset extends Error {
  override name = "StreamReset";
}

export type StreamsResult = { state: "ok" } | { state: "bad"; reason: string };
const fine: StreamsResult = { state: "ok" };

export interface StreamsOptions {
  transmit: (message: Uint8Array) => void;
  /** On the edge: called for each stream that the hub opens. */
  opened?: (stream: WireStream, open: StreamOpen) => void;
}

export class Streams {
  readonly #options: StreamsOptions;
  readonly #streams = new Map<number, WireStream>();
  /** Streams with bytes to send, in turn. */
  readonly #ready = new Set<WireStream>();
  #nextId = 1;
  #sessionCredit = sessionWindowBytes;
  #receivedUncredited = 0;
  #closed: string | undefined;

  constructor(options: StreamsOptions) {
    this.#options = options;
  }

  get size(): number {
    return this.#streams.size;
  }

  /** Opens a stream (hub). Undefined when the session has `streamsMax` already or is closed. */
  open(open: StreamOpen): WireStream | undefined {
    if (this.#closed !== undefined || this.#streams.size >= streamsMax) return undefined;
    const stream = new WireStream(this.#nextId++, this.#host);
    this.#streams.set(stream.id, stream);
    this.#options.transmit(encodeFrame("streamOpen", stream.id, encodeJson(open)));
    return stream;
  }

  /** Takes a frame of one of the stream types. Frames of streams that are over are dropped: they crossed the end. */
  frame(frame: Frame): StreamsResult {
    const { type, id, body } = frame;
    if (type === "streamOpen") return this.#accept(id, body);
    if (type === "streamCredit") return this.#credit(id, body);
    if (type === "streamData") this.#countArrived(body.length);
    const stream = this.#streams.get(id);
    if (!stream) return fine;
    switch (type) {
      case "streamHead": {
        const json = decodeJson(body);
        const head = json.state === "ok" ? readStreamHead(json.value) : json;
        if (head.state === "bad") return head;
        stream.gotHead(head.value);
        return fine;
      }
      case "streamData":
        return stream.gotData(body);
      case "streamEnd":
        stream.gotEnd();
        return fine;
      case "streamReset":
        stream.gotReset(new TextDecoder().decode(body));
        return fine;
      default:
        return { state: "bad", reason: `${type} is not a stream frame` };
    }
  }

  /** The session is over: every stream fails with `reason`. */
  close(reason: string): void {
    this.#closed = reason;
    for (const stream of [...this.#streams.values()]) stream.gotReset(reason);
    this.#streams.clear();
    this.#ready.clear();
  }

  #accept(id: number, body: Uint8Array): StreamsResult {
    if (!this.#options.opened) {
      return { state: "bad", reason: "a stream was opened by the side that may not" };
    }
    if (this.#streams.has(id)) return { state: "bad", reason: `stream ${id} was opened twice` };
    const json = decodeJson(body);
    const open = json.state === "ok" ? readStreamOpen(json.value) : json;
    if (open.state === "bad") return open;
    if (this.#streams.size >= streamsMax) {
      this.#options.transmit(encodeFrame("streamReset", id, new TextEncoder().encode("too many streams")));
      return fine;
    }
    const stream = new WireStream(id, this.#host);
    this.#streams.set(id, stream);
    this.#options.opened(stream, open.value);
    return fine;
  }

  #credit(id: number, body: Uint8Array): StreamsResult {
    if (body.length !== 4) return { state: "bad", reason: "stream credit is not 4 bytes" };
    const bytes = new DataView(body.buffer, body.byteOffset, 4).getUint32(0);
    if (id === 0) {
      this.#sessionCredit += bytes;
      if (this.#sessionCredit > sessionWindowBytes) {
        return { state: "bad", reason: "more session credit than was used" };
      }
    } else if (this.#streams.get(id)?.gotCredit(bytes) === false) {
      return { state: "bad", reason: `stream ${id} got more credit than it used` };
    }
    this.#pump();
    return fine;
  }

  #countArrived(bytes: number): void {
    this.#receivedUncredited += bytes;
    if (this.#receivedUncredited < sessionWindowBytes / 4) return;
    this.#sendCredit(0, this.#receivedUncredited);
    this.#receivedUncredited = 0;
  }

  #sendCredit(id: number, bytes: number): void {
    const body = new Uint8Array(4);
    new DataView(body.buffer).setUint32(0, bytes);
    this.#options.transmit(encodeFrame("streamCredit", id, body));
  }

  /** Sends one chunk of each ready stream in turn for as long as the session's credit lasts. */
  #pump(): void {
    while (this.#sessionCredit > 0 && this.#ready.size > 0) {
      for (const stream of this.#ready) {
        this.#ready.delete(stream);
        if (this.#sessionCredit <= 0) {
          this.#ready.add(stream);
          break;
        }
        const chunk = stream.takeChunk(Math.min(streamChunkBytesMax, this.#sessionCredit));
        if (chunk) {
          this.#sessionCredit -= chunk.length;
          this.#options.transmit(encodeFrame("streamData", stream.id, chunk));
        }
        if (stream.sendable) this.#ready.add(stream);
      }
    }
  }

  readonly #host: StreamHost = {
    transmit: (message) => {
      if (this.#closed === undefined) this.#options.transmit(message);
    },
    ready: (stream) => {
      this.#ready.add(stream);
      this.#pump();
    },
    consumed: (stream, bytes) => {
      if (this.#closed === undefined) this.#sendCredit(stream.id, bytes);
    },
    over: (stream) => {
      this.#streams.delete(stream.id);
      this.#ready.delete(stream);
    },
  };
}

/** What a stream asks of the session that carries it. */
interface StreamHost {
  transmit(message: Uint8Array): void;
  ready(stream: WireStream): void;
  consumed(stream: WireStream, bytes: number): void;
  over(stream: WireStream): void;
}

/** One stream: a head to send or to await, a readable and a writable side, each with backpressure. */
export class WireStream {
  readonly id: number;
  /** Bytes from the peer; errors with StreamReset. */
  readonly readable: ReadableStream<Uint8Array>;
  /** Bytes to the peer; closing it half-closes the stream. */
  readonly writable: WritableStream<Uint8Array>;
  /** The edge's answer, at the hub. Rejects with StreamReset. */
  readonly head: Promise<StreamHead>;

  readonly #host: StreamHost;
  readonly #headResolvers = Promise.withResolvers<StreamHead>();
  #reader: ReadableStreamDefaultController<Uint8Array> | undefined;
  #writer: WritableStreamDefaultController | undefined;
  /** What the peer may still send. */
  #receiveCredit = streamWindowBytes;
  #consumedUncredited = 0;
  readonly #arrived: Uint8Array[] = [];
  #sendCredit = streamWindowBytes;
  #queue: Uint8Array | undefined;
  #queueTaken: (() => void) | undefined;
  #endSent = false;
  #endReceived = false;
  #over = false;

  constructor(id: number, host: StreamHost) {
    this.id = id;
    this.#host = host;
    this.head = this.#headResolvers.promise;
    this.head.catch(() => {}); // the edge's side never asks for it
    this.readable = new ReadableStream<Uint8Array>({
      start: (controller) => {
        this.#reader = controller;
      },
      pull: (controller) => this.#pull(controller),
      cancel: () => this.reset("the reader went away"),
    }, { highWaterMark: 0 });
    this.writable = new WritableStream<Uint8Array>({
      start: (controller) => {
        this.#writer = controller;
      },
      write: (chunk) => this.#write(chunk),
      close: () => this.#sendEnd(),
      abort: (reason) => this.reset(reason instanceof Error ? reason.message : "the writer went away"),
    });
  }

  /** Answers the stream (edge). Once only. */
  sendHead(head: StreamHead): void {
    if (!this.#over) this.#host.transmit(encodeFrame("streamHead", this.id, encodeJson(head)));
  }

  /** Gives the stream up; the peer's reader fails with `reason`. */
  reset(reason: string): void {
    if (this.#over) return;
    this.#host.transmit(encodeFrame("streamReset", this.id, new TextEncoder().encode(reason.slice(0, 500))));
    this.gotReset(reason);
  }

  // ---- called by Streams

  gotHead(head: StreamHead): void {
    this.#headResolvers.resolve(head);
  }

  gotData(bytes: Uint8Array): StreamsResult {
    if (this.#endReceived) return { state: "bad", reason: `stream ${this.id} got data after its end` };
    this.#receiveCredit -= bytes.length;
    if (this.#receiveCredit < 0) {
      return { state: "bad", reason: `stream ${this.id} got more data than it had credit for` };
    }
    this.#arrived.push(bytes);
    if (this.#wanting) this.#deliver();
    return fine;
  }

  gotEnd(): void {
    this.#endReceived = true;
    if (this.#wanting) this.#deliver();
    this.#finishIfDone();
  }

  gotReset(reason: string): void {
    if (this.#over) return;
    this.#over = true;
    const error = new StreamReset(reason);
    this.#headResolvers.reject(error);
    this.#arrived.length = 0;
    try {
      this.#reader?.error(error);
    } catch { /* closed already */ }
    this.#writer?.error(error);
    this.#wake();
    this.#queue = undefined;
    this.#queueTaken?.();
    this.#host.over(this);
  }

  /** False when the peer grants more than was used. */
  gotCredit(bytes: number): boolean {
    this.#sendCredit += bytes;
    if (this.#sendCredit > streamWindowBytes) return false;
    if (this.sendable) this.#host.ready(this);
    return true;
  }

  get sendable(): boolean {
    return this.#queue !== undefined && this.#sendCredit > 0 && !this.#over;
  }

  takeChunk(bytesMax: number): Uint8Array | undefined {
    const queue = this.#queue;
    if (!queue || this.#over) return undefined;
    const bytes = Math.min(bytesMax, this.#sendCredit, queue.length);
    if (bytes <= 0) return undefined;
    this.#sendCredit -= bytes;
    const chunk = queue.subarray(0, bytes);
    if (bytes < queue.length) this.#queue = queue.subarray(bytes);
    else {
      this.#queue = undefined;
      this.#queueTaken?.();
    }
    return chunk;
  }

  // ---- the two sides

  #wanting: (() => void) | undefined;

  /** The reader wants bytes: resolves when some were given (or the end was), so that nothing is read ahead. */
  #pull(_controller: ReadableStreamDefaultController<Uint8Array>): Promise<void> {
    return new Promise((resolve) => {
      this.#wanting = resolve;
      if (this.#arrived.length > 0 || this.#endReceived || this.#over) this.#deliver();
    });
  }

  #deliver(): void {
    const bytes = this.#arrived.shift();
    if (bytes) {
      this.#reader?.enqueue(bytes);
      this.#consumedUncredited += bytes.length;
      if (this.#consumedUncredited >= streamWindowBytes / 4 && !this.#endReceived) {
        this.#receiveCredit += this.#consumedUncredited;
        this.#host.consumed(this, this.#consumedUncredited);
        this.#consumedUncredited = 0;
      }
    } else if (this.#endReceived && !this.#over) {
      try {
        this.#reader?.close();
      } catch { /* cancelled */ }
    }
    this.#wake();
  }

  #wake(): void {
    const resolve = this.#wanting;
    this.#wanting = undefined;
    resolve?.();
  }

  #write(chunk: Uint8Array): Promise<void> | void {
    if (chunk.length === 0) return;
    if (this.#over) throw new StreamReset("the stream is over");
    this.#queue = chunk;
    return new Promise((resolve) => {
      this.#queueTaken = () => {
        this.#queueTaken = undefined;
        resolve();
      };
      this.#host.ready(this);
    });
  }

  #sendEnd(): void {
    if (this.#over || this.#endSent) return;
    this.#endSent = true;
    this.#host.transmit(encodeFrame("streamEnd", this.id));
    this.#finishIfDone();
  }

  /** Both directions ended: the id is free; what has arrived can still be read. */
  #finishIfDone(): void {
    if (this.#endSent && this.#endReceived) this.#host.over(this);
  }
}
