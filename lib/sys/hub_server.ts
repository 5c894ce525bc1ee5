/**
 * The hub's listener: TLS, three HTTP/1.1 routes, and WebSockets read by our own codec so that a guest's bytes are
 * bounded before they are kept (lib/net/websocket.ts). Reading pauses while a message is being handled.
 */
import { concat, text, utf8 } from "../core/bytes.ts";
import {
  frameBytesMax,
  unprovedConnectionsMax,
  unprovedFrameBytesMax,
  unprovedTimeoutMs,
} from "../core/limits.ts";
import { acceptKey, encodeWebSocketFrame, WebSocketDecoder } from "../net/websocket.ts";
import { shutdownConnections } from "./tcp_shutdown.ts";

const headBytesMax = 8 * 1024;
/** For what the first listener's queue holds to be accepted, while the second one is there already. */
const takeoverMs = 500;
/** Connections after their TLS handshake that have not proved themselves. */
const guestsMax = 2 * unprovedConnectionsMax;
/** Connections at their TLS handshake; beyond it the oldest go, who had the most time for it. */
const handshakesMax = 1024;
/** How often those who take too long are looked for. */
const sweepMs = 250;
const bodyBytesMax = 32 * 1024;
const chunkBytes = 16 * 1024;
/** What may wait to be sent to one edge; beyond it the edge is too slow and reconnects. */
const unsentBytesMax = 32 * 1024 * 1024;
/**
 * Everything that is ever sent to one guest: a greeting and a few pongs. It always fits the kernel's buffer, so that no
 * write to a guest who does not read stays open: Deno cannot close a connection below one.
 */
const guestBytesMax = 16 * 1024;

export interface ServerSocket {
  send(message: Uint8Array<ArrayBuffer>): void;
  close(reason: string): void;
  remote: string;
}
export interface ServerGuest {
  message(bytes: Uint8Array): void;
  closed(): void;
  readonly proved: boolean;
}
export interface HubRoutes {
  /** Answers a plain request; undefined: 404. */
  http(
    request: { method: string; path: string; body: Uint8Array; remote: string },
  ): Promise<{ status: number; body: string; type: string } | undefined>;
  /** Takes a WebSocket; undefined: too many guests. */
  connect(socket: ServerSocket): ServerGuest | undefined;
}

export interface ServerIdentity {
  certificate: string;
  key: string;
}
export interface HubListener {
  port: number;
  /** Connections that come from now on are given this certificate. */
  certify(identity: ServerIdentity): void;
  /** Stops accepting; what is connected goes on. */
  stop(): void;
}

/** Rejects when the address cannot be listened on. */
export function listenHub(
  options: { hostname: string; port: number; handshakeTimeoutMs?: number } & ServerIdentity,
  routes: HubRoutes,
): Promise<HubListener> {
  const { hostname, handshakeTimeoutMs = unprovedTimeoutMs } = options;
  const door: Door = { handshakes: new Map(), guests: 0 };
  const sweeping = setInterval(() => sweep(door, handshakeTimeoutMs), sweepMs);
  const open = (port: number, { certificate, key }: ServerIdentity) => {
    const tls = { cert: certificate, key, alpnProtocols: ["http/1.1"] };
    const listener = Deno.listenTls({ hostname, port, ...tls, reusePort: true });
    void accept(listener, routes, door);
    return listener;
  };
  return new Promise((resolve) => {
    let listener = open(options.port, options);
    const { port } = listener.addr;
    resolve({
      port,
      // A second listener on the same port takes over, then the first one goes: no moment without an open door.
      certify: (identity) => {
        const before = listener;
        listener = open(port, identity);
        setTimeout(() => before.close(), takeoverMs);
      },
      stop: () => {
        listener.close();
        clearInterval(sweeping);
      },
    });
  });
}

/** Who stands at the door, counted. */
interface Door {
  /** Since when, oldest first. */
  handshakes: Map<Deno.TlsConn, number>;
  guests: number;
}

async function accept(listener: Deno.TlsListener, routes: HubRoutes, door: Door): Promise<void> {
  for (;;) {
    let conn: Deno.TlsConn;
    try {
      conn = await listener.accept();
    } catch (error) {
      if (error instanceof Deno.errors.BadResource || error instanceof Deno.errors.Interrupted) return;
      continue; // one failed handshake is no reason to stop
    }
    door.handshakes.set(conn, performance.now());
    conn.handshake().finally(() => door.handshakes.delete(conn)).then(() => {
      if (door.guests >= guestsMax) return;
      door.guests++;
      let counted = true;
      const settled = () => {
        if (counted) door.guests--;
        counted = false;
      };
      return serve(conn, routes, settled).finally(settled);
    }).catch(() => {}).finally(() => close(conn));
    // The next sweep makes room.
    while (door.handshakes.size >= 2 * handshakesMax) {
      await new Promise((resolve) => setTimeout(resolve, sweepMs));
    }
  }
}

/** Ends handshakes that take too long or are too many: closing would not, see tcp_shutdown.ts. */
function sweep({ handshakes }: Door, timeoutMs: number): void {
  const dueMs = performance.now() - timeoutMs;
  const due: Deno.TlsConn[] = [];
  for (const [conn, sinceMs] of handshakes) {
    if (sinceMs > dueMs && handshakes.size - due.length <= handshakesMax) break;
    due.push(conn);
  }
  shutdownConnections(due);
}

async function serve(conn: Deno.TlsConn, routes: HubRoutes, settled: () => void): Promise<void> {
  const remote = `${conn.remoteAddr.hostname}:${conn.remoteAddr.port}`;
  const deadline = setTimeout(() => close(conn), unprovedTimeoutMs);
  let counted = true;
  const settle = () => {
    if (counted) settled();
    counted = false;
  };
  try {
    for (;;) {
      const request = await readRequest(conn);
      if (!request) return;
      const { method, path, headers, body, rest } = request;
      if (path === "/v1/session" && headers.get("upgrade")?.toLowerCase() === "websocket") {
        clearTimeout(deadline);
        return await webSocket(conn, headers.get("sec-websocket-key") ?? "", rest, remote, routes, settle);
      }
      const answer = await routes.http({ method, path, body, remote }) ??
        { status: 404, body: "not found\n", type: "text/plain" };
      const content = utf8(answer.body);
      const head =
        `HTTP/1.1 ${answer.status} ${
          answer.status === 200 ? "OK" : "Refused"
        }\r\ncontent-type: ${answer.type}\r\n` +
        `content-length: ${content.length}\r\ndate: ${new Date().toUTCString()}\r\nconnection: close\r\n\r\n`;
      await writeAll(conn, concat([utf8(head), content]));
      return;
    }
  } finally {
    clearTimeout(deadline);
    settle();
  }
}

interface Request {
  method: string;
  path: string;
  headers: Map<string, string>;
  body: Uint8Array;
  rest: Uint8Array;
}

async function readRequest(conn: Deno.TlsConn): Promise<Request | undefined> {
  let data: Uint8Array = new Uint8Array(0);
  const buffer = new Uint8Array(4096);
  const more = async () => {
    const count = await conn.read(buffer);
    if (count === null) return false;
    data = concat([data, buffer.subarray(0, count)]);
    return true;
  };
  let end = -1;
  while ((end = text(data).indexOf("\r\n\r\n")) < 0) {
    if (data.length > headBytesMax || !(await more())) return undefined;
  }
  const [line = "", ...lines] = text(data.subarray(0, end)).split("\r\n");
  const [method = "", path = ""] = line.split(" ");
  const headers = new Map(lines.map((header): [string, string] => {
    const colon = header.indexOf(":");
    return [header.slice(0, colon).toLowerCase(), header.slice(colon + 1).trim()];
  }));
  data = data.subarray(end + 4);
  const length = Number(headers.get("content-length") ?? 0);
  if (!(length >= 0 && length <= bodyBytesMax)) return undefined;
  while (data.length < length) if (!(await more())) return undefined;
  return {
    method,
    path: path.split("?")[0] ?? "",
    headers,
    body: data.subarray(0, length),
    rest: data.subarray(length),
  };
}

async function webSocket(
  conn: Deno.TlsConn,
  key: string,
  first: Uint8Array,
  remote: string,
  routes: HubRoutes,
  settle: () => void,
): Promise<void> {
  const queue: Uint8Array<ArrayBuffer>[] = [];
  let unsent = 0, toGuest = 0, closing = false, writing = false;
  // deno-lint-ignore prefer-const -- `post` reads it before it is there
  let guest: ServerGuest | undefined;
  const flush = async () => {
    if (writing) return;
    writing = true;
    try {
      while (queue.length > 0) {
        // What has gathered goes out together: one TLS record, one segment.
        const batch = queue.length === 1 ? queue[0] as Uint8Array<ArrayBuffer> : concat(queue);
        queue.length = 0;
        await writeAll(conn, batch);
        unsent -= batch.length;
      }
      if (closing) close(conn);
    } catch {
      close(conn);
    } finally {
      writing = false;
    }
  };
  const post = (bytes: Uint8Array<ArrayBuffer>) => {
    if (closing) return;
    queue.push(bytes);
    unsent += bytes.length;
    toGuest += guest?.proved ? 0 : bytes.length;
    if (unsent > unsentBytesMax || toGuest > guestBytesMax) {
      closing = true;
      queue.length = 0;
      return close(conn);
    }
    queueMicrotask(flush);
  };
  const socket: ServerSocket = {
    remote,
    send: (message) => post(encodeWebSocketFrame(2, message)),
    close: (reason) => {
      post(encodeWebSocketFrame(8, concat([new Uint8Array([0x03, 0xe8]), utf8(reason.slice(0, 100))])));
      closing = true;
      queueMicrotask(flush);
      setTimeout(() => close(conn), 2000);
    },
  };
  post(
    utf8(
      `HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: ${
        acceptKey(key)
      }\r\n\r\n`,
    ),
  );
  guest = routes.connect(socket);
  if (!guest) return socket.close("too many connections without proof, try again");
  const decoder = new WebSocketDecoder();
  const buffer = new Uint8Array(chunkBytes);
  let chunk: Uint8Array = first;
  try {
    for (;;) {
      for (const event of decoder.push(chunk, guest.proved ? frameBytesMax : unprovedFrameBytesMax)) {
        if (event.event === "message") guest.message(event.bytes);
        else if (event.event === "ping") post(encodeWebSocketFrame(10, event.bytes));
        else if (event.event === "close") return;
        else return socket.close(event.reason);
      }
      if (guest.proved) settle();
      const count = await conn.read(buffer);
      if (count === null) return;
      chunk = buffer.slice(0, count);
    }
  } finally {
    guest.closed();
  }
}

async function writeAll(conn: Deno.TlsConn, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length;) at += await conn.write(bytes.subarray(at));
}
function close(conn: Deno.Conn): void {
  try {
    conn.close();
  } catch { /* closed already */ }
}
