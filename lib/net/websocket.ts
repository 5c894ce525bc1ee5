/**
 * RFC 6455 as a pure decoder and encoder, for both ends. A message's length is judged from its frame headers,
 * before any of its bytes are kept: Deno's own WebSocket has no such limit, and a guest must not fill the hub's memory.
 *
 *      0                   1                   2                   3
 *     +-+-+-+-+-------+-+-------------+-------------------------------+
 *     |F|R|R|R| opcode|M| length (7)  | 16 or 64 bits of length, if   |
 *     |I|S|S|S|       |A|             | length is 126 or 127          |
 *     |N|V|V|V|       |S|             +-------------------------------+
 *     | |1|2|3|       |K|             | mask (4 bytes, from clients)  | payload …
 *     +-+-+-+-+-------+-+-------------+-------------------------------+
 */
import { createHash } from "node:crypto";
import { type Bytes, concat } from "../core/bytes.ts";

/** Value of Sec-WebSocket-Accept for a client's key (section 4.2.2). */
export function acceptKey(key: string): string {
  return createHash("sha1").update(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest("base64");
}

export type WebSocketEvent =
  | { event: "message"; bytes: Bytes }
  | { event: "ping"; bytes: Bytes }
  | { event: "close" }
  /** The peer broke the protocol or a limit: close with the code. */
  | { event: "fault"; code: 1002 | 1009; reason: string };

/** Control frames carry at most 125 bytes (section 5.5). */
const controlBytesMax = 125;
/** Pieces of one message: each costs memory even when it is empty. Our own ends send one. */
const piecesMax = 64;

export class WebSocketDecoder {
  #rest: Uint8Array = new Uint8Array(0);
  #parts: Bytes[] = [];
  #partsBytes = 0;
  #inMessage = false;
  readonly #masked: boolean;

  /** Clients mask their frames, servers do not (section 5.1). */
  constructor(from: "client" | "server" = "client") {
    this.#masked = from === "client";
  }

  /** Takes bytes as they arrive; `bytesMax` is the largest message allowed at this moment. */
  push(bytes: Uint8Array, bytesMax: number): WebSocketEvent[] {
    this.#rest = this.#rest.length === 0 ? bytes : concat([this.#rest, bytes]);
    const events: WebSocketEvent[] = [];
    for (;;) {
      const event = this.#next(bytesMax);
      if (event === "more") {
        this.#rest = this.#rest.slice();
        return events;
      }
      if (event) events.push(event);
      if (event?.event === "fault" || event?.event === "close") return events;
    }
  }

  #next(bytesMax: number): WebSocketEvent | undefined | "more" {
    const data = this.#rest;
    if (data.length < 2) return "more";
    const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
    const first = view.getUint8(0), second = view.getUint8(1);
    const fin = (first & 0x80) !== 0, opcode = first & 0x0f;
    if ((first & 0x70) !== 0) return fault(1002, "reserved bits are set");
    if (((second & 0x80) !== 0) !== this.#masked) {
      return fault(1002, `the frame is ${this.#masked ? "not " : ""}masked`);
    }
    let length = second & 0x7f, at = 2;
    if (length === 126) {
      if (data.length < 4) return "more";
      length = view.getUint16(2);
      at = 4;
    } else if (length === 127) {
      if (data.length < 10) return "more";
      if (view.getUint32(2) !== 0) return fault(1009, "the message is too long");
      length = view.getUint32(6);
      at = 10;
    }
    const control = opcode >= 8;
    if (control && (!fin || length > controlBytesMax)) {
      return fault(1002, "a control frame is fragmented or too long");
    }
    if (!control && this.#partsBytes + length > bytesMax) {
      return fault(1009, `the message is longer than ${bytesMax} bytes`);
    }
    const from = at + (this.#masked ? 4 : 0);
    if (data.length < from + length) return "more";
    const payload = this.#masked
      ? mask(data.subarray(from, from + length), data.subarray(at, from))
      : data.slice(from, from + length);
    this.#rest = data.subarray(from + length);
    switch (opcode) {
      case 0:
        if (!this.#inMessage) return fault(1002, "a continuation without a beginning");
        return this.#part(payload, fin);
      case 1:
      case 2:
        if (this.#inMessage) return fault(1002, "a message inside another");
        return this.#part(payload, fin);
      case 8:
        return { event: "close" };
      case 9:
        return { event: "ping", bytes: payload };
      case 10:
        return undefined;
      default:
        return fault(1002, `opcode ${opcode} is not known`);
    }
  }

  #part(payload: Bytes, fin: boolean): WebSocketEvent | undefined {
    this.#inMessage = !fin;
    if (!fin || this.#parts.length > 0) {
      if (this.#parts.length >= piecesMax) {
        return fault(1009, `the message has more than ${piecesMax} pieces`);
      }
      this.#parts.push(payload);
      this.#partsBytes += payload.length;
      if (!fin) return undefined;
      payload = concat(this.#parts);
      this.#parts = [];
      this.#partsBytes = 0;
    }
    return { event: "message", bytes: payload };
  }
}

/** One frame: unmasked as servers send them, or with a client's mask (4 random bytes). */
export function encodeWebSocketFrame(
  opcode: 2 | 8 | 9 | 10,
  payload: Uint8Array,
  maskKey?: Uint8Array,
): Bytes {
  const long = payload.length > 65535, middle = !long && payload.length > 125;
  const head = (long ? 10 : middle ? 4 : 2) + (maskKey ? 4 : 0);
  const frame = new Uint8Array(head + payload.length);
  const view = new DataView(frame.buffer);
  frame[0] = 0x80 | opcode;
  if (long) {
    frame[1] = 127;
    view.setUint32(6, payload.length);
  } else if (middle) {
    frame[1] = 126;
    view.setUint16(2, payload.length);
  } else frame[1] = payload.length;
  if (maskKey) {
    frame[1] = (frame[1] ?? 0) | 0x80;
    frame.set(maskKey, head - 4);
  }
  frame.set(maskKey ? mask(payload, maskKey) : payload, head);
  return frame;
}

/** Masks or unmasks: the same operation (section 5.3). */
function mask(payload: Uint8Array, key: Uint8Array): Bytes {
  const out = new Uint8Array(payload.length);
  const [a = 0, b = 0, c = 0, d = 0] = key;
  for (let i = 0; i < payload.length; i += 4) {
    out[i] = (payload[i] ?? 0) ^ a;
    out[i + 1] = (payload[i + 1] ?? 0) ^ b;
    out[i + 2] = (payload[i + 2] ?? 0) ^ c;
    out[i + 3] = (payload[i + 3] ?? 0) ^ d;
  }
  return out;
}

function fault(code: 1002 | 1009, reason: string): WebSocketEvent {
  return { event: "fault", code, reason };
}
