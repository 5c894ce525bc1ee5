/**
 * The server's half of RFC 6455 as a pure decoder and encoder. A message's length is judged from its frame headers,
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

export class WebSocketDecoder {
  #rest: Uint8Array = new Uint8Array(0);
  #parts: Bytes[] = [];
  #partsBytes = 0;
  #inMessage = false;

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
    if ((second & 0x80) === 0) return fault(1002, "a client's frame is not masked");
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
    if (control && (!fin || length > controlBytesMax)) return fault(1002, "a control frame is fragmented or too long");
    if (!control && this.#partsBytes + length > bytesMax) return fault(1009, `the message is longer than ${bytesMax} bytes`);
    if (data.length < at + 4 + length) return "more";
    const payload = unmask(data.subarray(at + 4, at + 4 + length), data.subarray(at, at + 4));
    this.#rest = data.subarray(at + 4 + length);
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

/** An unmasked frame, as servers send them. */
export function encodeWebSocketFrame(opcode: 2 | 8 | 10, payload: Uint8Array): Bytes {
  const long = payload.length > 65535, middle = !long && payload.length > 125;
  const head = long ? 10 : middle ? 4 : 2;
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
  frame.set(payload, head);
  return frame;
}

function unmask(masked: Uint8Array, mask: Uint8Array): Bytes {
  const plain = new Uint8Array(masked.length);
  const [a = 0, b = 0, c = 0, d = 0] = mask;
  for (let i = 0; i < masked.length; i += 4) {
    plain[i] = (masked[i] ?? 0) ^ a;
    plain[i + 1] = (masked[i + 1] ?? 0) ^ b;
    plain[i + 2] = (masked[i + 2] ?? 0) ^ c;
    plain[i + 3] = (masked[i + 3] ?? 0) ^ d;
  }
  return plain;
}

function fault(code: 1002 | 1009, reason: string): WebSocketEvent {
  return { event: "fault", code, reason };
}
