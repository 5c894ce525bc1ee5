/**
 * The frame codec of the session between hub and edge. One WebSocket message carries exactly one frame.
 *
 *      0        1        2        3        4                    8
 *     +--------+--------+-----------------+--------------------+---------------- …
 *     | type   | flags  | reserved (0)    | id (big endian)    | body
 *     +--------+--------+-----------------+--------------------+---------------- …
 *       u8       u8       u16               u32                  0 to frameBytesMax - 8 bytes
 *
 * id     sync frames: sequence number, from 1, one count per direction; stream frames: the stream; requests: the request.
 * flags  bit 0: the body is deflated (RFC 1951, no header). Other bits must be 0.
 *
 * Object body (types object, absent, drop), so that the JSON bytes follow untouched:
 *
 *      0          1              +2           …            +1         …        8 bytes     rest
 *     +----------+-------- …    +-----------+------- …    +---------+--- …    +---------+---------- …
 *     | kind len | kind         | key len   | key         | uid len | uid     | version | JSON bytes
 *     +----------+-------- …    +-----------+------- …    +---------+--- …    +---------+---------- …
 *       u8         "pods"         u16         "ns/name"     u8                  opaque    (object only)
 *
 * Version rule: `protocolVersion` goes up when a peer of the version before could misunderstand a frame; both sides
 * name the lowest and highest they speak in hello and proof, the highest common one holds. Unknown types are an error
 * within a version.
 */
import { constants, deflateRawSync, inflateRawSync } from "node:zlib";
import { type Bytes, text, utf8 } from "../core/bytes.ts";
import { compressFromBytes, frameBytesMax } from "../core/limits.ts";

export const protocolVersion = 1;
export const protocolVersionLeast = 1;
export const frameHeaderBytes = 8;
export const versionBytes = 8;

/** Wire numbers of the frame types; never reused. */
export const frameTypes = {
  // before proof, JSON bodies
  hello: 1,
  proof: 2,
  welcome: 3,
  refuse: 4,
  // sync, hub to edge
  object: 16,
  absent: 17,
  drop: 18,
  synced: 19,
  // sync, edge to hub
  have: 24,
  report: 25,
  // sync, both ways
  ack: 32,
  refused: 33,
  ping: 34,
  pong: 35,
  goaway: 36,
  // requests of the edge
  request: 48,
  response: 49,
  // streams, opened by the hub
  streamOpen: 64,
  streamHead: 65,
  streamData: 66,
  streamEnd: 67,
  streamReset: 68,
  streamCredit: 69,
} as const;
export type FrameType = keyof typeof frameTypes;

const typeByNumber = new Map<number, FrameType>(
  (Object.entries(frameTypes) as [FrameType, number][]).map(([name, number]) => [number, name]),
);
const deflatedFlag = 1;

export interface Frame {
  type: FrameType;
  id: number;
  /** A view into the message when it was not deflated: valid as long as the message is. */
  body: Uint8Array;
}

export type DecodedFrame = { state: "ok"; frame: Frame } | { state: "bad"; reason: string };

const empty = new Uint8Array(0);

/** Encodes one frame; throws a RangeError on bodies over the limit (the caller made it, so it is a fault of ours). */
export function encodeFrame(type: FrameType, id: number, body: Uint8Array = empty): Bytes {
  let flags = 0;
  let payload: Uint8Array = body;
  // Stream data is left alone: it is often compressed already, and deflate would cost the hub more than the link.
  if (body.length >= compressFromBytes && type !== "streamData") {
    const deflated = deflateRawSync(body, { level: constants.Z_BEST_SPEED + 5 });
    if (deflated.length < body.length - 16) {
      payload = deflated;
      flags = deflatedFlag;
    }
  }
  if (frameHeaderBytes + payload.length > frameBytesMax) {
    throw new RangeError(`Cannot encode ${type} frame: ${body.length} bytes, limit ${frameBytesMax}`);
  }
  const message = new Uint8Array(frameHeaderBytes + payload.length);
  const view = new DataView(message.buffer);
  message[0] = frameTypes[type];
  message[1] = flags;
  view.setUint32(4, id);
  message.set(payload, frameHeaderBytes);
  return message;
}

/** Decodes one message; bounds are checked before anything is read or inflated. */
export function decodeFrame(message: Uint8Array, bytesMax = frameBytesMax): DecodedFrame {
  if (message.length < frameHeaderBytes) {
    return bad(`frame of ${message.length} bytes is shorter than its header`);
  }
  if (message.length > bytesMax) {
    return bad(`frame of ${message.length} bytes is over the limit of ${bytesMax}`);
  }
  const view = new DataView(message.buffer, message.byteOffset, message.byteLength);
  const type = typeByNumber.get(view.getUint8(0));
  if (type === undefined) return bad(`unknown frame type ${view.getUint8(0)}`);
  const flags = view.getUint8(1);
  if ((flags & ~deflatedFlag) !== 0 || view.getUint16(2) !== 0) {
    return bad(`${type} frame with reserved bits set`);
  }
  let body: Uint8Array = message.subarray(frameHeaderBytes);
  if ((flags & deflatedFlag) !== 0) {
    try {
      body = inflateRawSync(body, { maxOutputLength: bytesMax });
    } catch {
      return bad(`${type} frame whose body does not inflate within ${bytesMax} bytes`);
    }
  }
  return { state: "ok", frame: { type, id: view.getUint32(4), body } };
}

/** What an object, absent or drop frame says. */
export interface ObjectBody {
  /** Resource name, group-qualified where there is a group: `pods`, `discovery.k8s.io/endpointslices`. */
  kind: string;
  /** `namespace/name`, or `name` for kinds without namespace. */
  key: string;
  uid: string;
  /** What the bytes are worth comparing by (see lib/kube/object_hash.ts); all zero in absent and drop. */
  version: Uint8Array;
  /** Raw JSON of the object; empty in absent and drop. A view. */
  json: Uint8Array;
}

export const noVersion: Uint8Array = new Uint8Array(versionBytes);

export function encodeObject(object: ObjectBody): Bytes {
  const kind = utf8(object.kind), key = utf8(object.key), uid = utf8(object.uid);
  if (kind.length > 255 || key.length > 65535 || uid.length > 255 || object.version.length !== versionBytes) {
    throw new RangeError(`Cannot encode object ${object.kind} ${object.key}: a member is too long`);
  }
  const head = 1 + kind.length + 2 + key.length + 1 + uid.length + versionBytes;
  const body = new Uint8Array(head + object.json.length);
  const view = new DataView(body.buffer);
  let at = 0;
  view.setUint8(at++, kind.length);
  body.set(kind, at);
  at += kind.length;
  view.setUint16(at, key.length);
  at += 2;
  body.set(key, at);
  at += key.length;
  view.setUint8(at++, uid.length);
  body.set(uid, at);
  at += uid.length;
  body.set(object.version, at);
  body.set(object.json, head);
  return body;
}

export type DecodedObject = { state: "ok"; object: ObjectBody } | { state: "bad"; reason: string };

export function decodeObject(body: Uint8Array): DecodedObject {
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  let at = 0;
  const take = (lengthBytes: 1 | 2): Uint8Array | undefined => {
    if (at + lengthBytes > body.length) return undefined;
    const length = lengthBytes === 1 ? view.getUint8(at) : view.getUint16(at);
    at += lengthBytes;
    if (at + length > body.length) return undefined;
    at += length;
    return body.subarray(at - length, at);
  };
  const kind = take(1), key = take(2), uid = take(1);
  if (!kind || !key || !uid || at + versionBytes > body.length) return bad("object frame is cut short");
  if (kind.length === 0 || key.length === 0) return bad("object frame without kind or key");
  const version = body.subarray(at, at + versionBytes);
  const json = body.subarray(at + versionBytes);
  return { state: "ok", object: { kind: text(kind), key: text(key), uid: text(uid), version, json } };
}

/** A JSON body (hello, proof, have, report heads, requests, stream heads). */
export function encodeJson(value: unknown): Bytes {
  return utf8(JSON.stringify(value));
}

export type DecodedJson = { state: "ok"; value: Record<string, unknown> } | { state: "bad"; reason: string };

/** Only JSON objects are accepted; what is in them is for the caller to check. */
export function decodeJson(body: Uint8Array): DecodedJson {
  let value: unknown;
  try {
    value = JSON.parse(text(body));
  } catch {
    return bad("body is not JSON");
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    return bad("body is not a JSON object");
  }
  return { state: "ok", value: value as Record<string, unknown> };
}

function bad(reason: string): { state: "bad"; reason: string } {
  return { state: "bad", reason };
}
