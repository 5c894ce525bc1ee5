/** The edge's WebSocket to the hub, over a pinned connection (hub_dial.ts). */
import type { TLSSocket } from "node:tls";
import { base64, concat, text, utf8 } from "../core/bytes.ts";
import { frameBytesMax } from "../core/limits.ts";
import { acceptKey, encodeWebSocketFrame, WebSocketDecoder } from "../net/websocket.ts";
import { dialHub, hubAddress } from "./hub_dial.ts";

const headBytesMax = 8 * 1024;
/** What may wait to be sent; the session's own windows keep far below it. */
const unsentBytesMax = 32 * 1024 * 1024;

export interface HubConnection {
  send(message: Uint8Array): void;
  close(): void;
}
export interface HubConnectionHandlers {
  message(bytes: Uint8Array): void;
  /** Once, after `connectHub` has resolved. */
  closed(reason: string): void;
}

/** Resolves when messages can be sent. Throws with what failed. */
export async function connectHub(
  url: string,
  authorities: string,
  handlers: HubConnectionHandlers,
): Promise<HubConnection> {
  const socket = await dialHub(url, authorities);
  try {
    const rest = await upgrade(socket, url);
    return run(socket, rest, handlers);
  } catch (error) {
    socket.destroy();
    throw error;
  }
}

function upgrade(socket: TLSSocket, url: string): Promise<Uint8Array> {
  const { host, port } = hubAddress(url);
  const key = base64(crypto.getRandomValues(new Uint8Array(16)));
  socket.write(
    `GET /v1/session HTTP/1.1\r\nhost: ${
      host.includes(":") ? `[${host}]` : host
    }:${port}\r\nupgrade: websocket\r\nconnection: Upgrade\r\n` +
      `sec-websocket-version: 13\r\nsec-websocket-key: ${key}\r\n\r\n`,
  );
  return new Promise((resolve, reject) => {
    let data: Uint8Array = new Uint8Array(0);
    const done = (outcome: Uint8Array | Error) => {
      clearTimeout(timer);
      socket.off("data", got).off("error", done).off("close", closed);
      if (outcome instanceof Error) reject(outcome);
      else resolve(outcome);
    };
    const got = (chunk: Uint8Array) => {
      data = concat([data, chunk]);
      const head = text(data), end = head.indexOf("\r\n\r\n");
      if (end < 0) {
        return data.length > headBytesMax ? done(new Error("the hub's answer is too long")) : undefined;
      }
      const accept = /^sec-websocket-accept:\s*(\S+)/im.exec(head.slice(0, end))?.[1];
      if (!/^HTTP\/1\.1 101/.test(head) || accept !== acceptKey(key)) {
        return done(new Error(`the hub answered "${head.split("\r\n")[0]}" in place of a session`));
      }
      done(data.slice(end + 4));
    };
    const closed = () => done(new Error("the hub closed the connection"));
    const timer = setTimeout(() => done(new Error("the hub did not answer within 10000 ms")), 10_000);
    socket.on("data", got).on("error", done).on("close", closed);
  });
}

function run(socket: TLSSocket, rest: Uint8Array, handlers: HubConnectionHandlers): HubConnection {
  const decoder = new WebSocketDecoder("server");
  let over = false, queue: Uint8Array[] = [];
  const end = (reason: string) => {
    if (over) return;
    over = true;
    socket.destroy();
    handlers.closed(reason);
  };
  const take = (chunk: Uint8Array) => {
    for (const event of decoder.push(new Uint8Array(chunk), frameBytesMax)) {
      if (over) return;
      if (event.event === "message") handlers.message(event.bytes);
      else if (event.event === "ping") write(encodeWebSocketFrame(10, event.bytes, maskKey()));
      else end(event.event === "close" ? "the hub closed the session" : event.reason);
    }
  };
  const write = (frame: Uint8Array) => {
    if (over) return;
    // What one turn gathers goes out together: one TLS record, one segment.
    if (queue.length === 0) {
      queueMicrotask(() => {
        const batch = queue.length === 1 ? queue[0] as Uint8Array : concat(queue);
        queue = [];
        if (over) return;
        socket.write(batch);
        if (socket.writableLength > unsentBytesMax) end("the link is too slow for what waits to be sent");
      });
    }
    queue.push(frame);
  };
  socket.on("data", take);
  socket.on("error", (error) => end(error.message));
  socket.on("close", () => end("the connection closed"));
  socket.on("end", () => end("the hub closed the connection"));
  if (rest.length > 0) queueMicrotask(() => take(rest));
  return {
    send: (message) => write(encodeWebSocketFrame(2, message, maskKey())),
    close: () => {
      if (over) return;
      over = true;
      socket.end(encodeWebSocketFrame(8, concat([new Uint8Array([0x03, 0xe8]), utf8("")]), maskKey()));
      setTimeout(() => socket.destroy(), 1000);
    },
  };
}

function maskKey(): Uint8Array {
  return crypto.getRandomValues(new Uint8Array(4));
}
