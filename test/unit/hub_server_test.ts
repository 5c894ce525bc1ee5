/** The hub's listener on real TLS: strangers may come in numbers and say what they like, memory stays bounded. */
import assert from "node:assert/strict";
import { concat, text, utf8 } from "../../lib/core/bytes.ts";
import { unprovedConnectionsMax, unprovedFrameBytesMax } from "../../lib/core/limits.ts";
import { issueLeaf, makeAuthority, makeKey, publicKeyOf } from "../../lib/crypto/x509.ts";
import { encodeWebSocketFrame, WebSocketDecoder } from "../../lib/net/websocket.ts";
import { type HubListener, type HubRoutes, listenHub, type ServerSocket } from "../../lib/sys/hub_server.ts";
import { until } from "../fake/world.ts";

const made = { nowMs: Date.now(), serial: new Uint8Array([1]) };
const authority = await makeAuthority("test", { ...made, days: 1 });
const key = await makeKey();
const certificate = await issueLeaf(authority, {
  ...made,
  subject: { commonName: "hub" },
  publicKey: await publicKeyOf(key),
  usage: "server",
  addresses: ["127.0.0.1"],
  lifeMs: 3_600_000,
});

/** In place of 10 s. */
const handshakeTimeoutMs = 3000;

interface Seen {
  socket: ServerSocket;
  messages: Uint8Array[];
  closed: boolean;
  proved: boolean;
}

class Hub {
  readonly guests: Seen[] = [];
  accept = true;
  readonly #routes: HubRoutes = {
    http: ({ method, path, body }) =>
      Promise.resolve(
        path === "/echo" ? { status: 200, body: `${method} ${text(body)}`, type: "text/plain" } : undefined,
      ),
    connect: (socket) => {
      if (!this.accept) return undefined;
      const seen: Seen = { socket, messages: [], closed: false, proved: false };
      this.guests.push(seen);
      return {
        message: (bytes) => seen.messages.push(bytes),
        closed: () => seen.closed = true,
        get proved() {
          return seen.proved;
        },
      };
    },
  };
  constructor(readonly listening: { listener?: HubListener }) {}

  static async start(): Promise<Hub> {
    const hub = new Hub({});
    hub.listening.listener = await listenHub(
      { hostname: "127.0.0.1", port: 0, certificate, key, handshakeTimeoutMs },
      hub.#routes,
    );
    return hub;
  }
  get listener(): HubListener {
    return this.listening.listener!;
  }

  async dial(): Promise<Deno.TlsConn> {
    return await Deno.connectTls({
      hostname: "127.0.0.1",
      port: this.listener.port,
      caCerts: [authority.certificate],
    });
  }
  /** A client after its upgrade. */
  async webSocket(): Promise<Deno.TlsConn> {
    const conn = await this.dial();
    await conn.write(
      utf8(
        "GET /v1/session HTTP/1.1\r\nhost: h\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
      ),
    );
    const head = await readSome(conn);
    assert.match(text(head), /^HTTP\/1\.1 101 .*s3pPLMBiTxaQ9kYGzzhZRbK\+xOo=/s);
    return conn;
  }
}

const maskKey = new Uint8Array([1, 2, 3, 4]);
const frame = (opcode: 2 | 8 | 9 | 10, payload: Uint8Array) => encodeWebSocketFrame(opcode, payload, maskKey);
/** A frame by hand: what the encoder would never write. */
const rawFrame = (first: number, length: number, payload = new Uint8Array(0)) => {
  const head = new Uint8Array(14);
  const view = new DataView(head.buffer);
  head.set([first, 0x80 | 127]);
  view.setBigUint64(2, BigInt(length));
  return concat([head, payload]); // a mask of zeros
};
async function readSome(conn: Deno.Conn): Promise<Uint8Array> {
  const buffer = new Uint8Array(65536);
  const count = await conn.read(buffer);
  return buffer.slice(0, count ?? 0);
}
async function readToEnd(conn: Deno.Conn): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  try {
    for (let part = await readSome(conn); part.length > 0; part = await readSome(conn)) parts.push(part);
  } catch { /* cut off without a goodbye */ }
  return concat(parts);
}
/** Writes until all is written or the other side has had enough. */
async function flood(conn: Deno.Conn, bytes: Uint8Array, times: number): Promise<number> {
  let sent = 0;
  try {
    for (let i = 0; i < times; i++) {
      for (let at = 0; at < bytes.length;) at += await conn.write(bytes.subarray(at));
      sent += bytes.length;
    }
  } catch { /* the hub hung up */ }
  return sent;
}
function shut(conn: Deno.Conn): void {
  try {
    conn.close();
  } catch { /* closed by the peer */ }
}

/** The listener's timers for slow goodbyes outlive a test by two seconds, so the sanitizers are off. */
function test(name: string, body: (hub: Hub) => Promise<void>): void {
  Deno.test({
    name,
    sanitizeOps: false,
    sanitizeResources: false,
    fn: async () => {
      const hub = await Hub.start();
      try {
        await body(hub);
      } finally {
        hub.listener.stop();
      }
    },
  });
}

test("plain requests are answered one to a connection", async (hub) => {
  for (
    const [request, want] of [
      ["POST /echo?x=1 HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello", /^HTTP\/1\.1 200 .*POST hello$/s],
      ["GET /nothing HTTP/1.1\r\n\r\n", /^HTTP\/1\.1 404 /],
      ["POST /echo HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n", /^$/],
      ["POST /echo HTTP/1.1\r\ncontent-length: -5\r\n\r\n", /^$/],
      ["POST /echo HTTP/1.1\r\ncontent-length: x\r\n\r\n", /^$/],
      [`GET /${"x".repeat(20_000)} HTTP/1.1\r\n\r\n`, /^$/],
    ] as const
  ) {
    const conn = await hub.dial();
    await flood(conn, utf8(request), 1);
    assert.match(text(await readToEnd(conn)), want, request.slice(0, 40));
    shut(conn);
  }
});

test("messages arrive whole whatever the pieces, pings are answered", async (hub) => {
  const conn = await hub.webSocket();
  const bytes = concat([
    frame(2, utf8("one")),
    frame(9, utf8("hi")),
    rawFrame(0x02, 3, utf8("two")),
    rawFrame(0x80, 3, utf8("too")),
    frame(2, new Uint8Array(5000)),
  ]);
  for (let at = 0; at < bytes.length; at += 7) await conn.write(bytes.subarray(at, at + 7));
  await until(() => hub.guests[0]?.messages.length === 3, "three messages");
  assert.deepEqual(hub.guests[0]?.messages.slice(0, 2).map(text), ["one", "twotoo"]);
  const decoder = new WebSocketDecoder("server");
  assert.deepEqual(new Uint8Array(await readSome(conn)), new Uint8Array([0x8a, 2, 104, 105]));
  hub.guests[0]?.socket.send(utf8("answer"));
  const [event] = decoder.push(await readSome(conn), 1000);
  assert.ok(event?.event === "message" && text(event.bytes) === "answer");
  conn.close();
  await until(() => hub.guests[0]?.closed, "the end is noticed");
});

test("200 strangers with the largest messages leave the memory bounded", async (hub) => {
  // Each sends the most that is kept for it: a message that never ends, then goes on and on (16 MB each on offer).
  const most = rawFrame(0x02, unprovedFrameBytesMax - 1, new Uint8Array(unprovedFrameBytesMax - 1));
  const more = rawFrame(0x00, unprovedFrameBytesMax, new Uint8Array(unprovedFrameBytesMax));
  const wave = async () => {
    hub.guests.length = 0;
    const conns = await Promise.all(Array.from({ length: 200 }, () => hub.webSocket()));
    await Promise.all(conns.map((conn) => flood(conn, most, 1)));
    assert.equal(hub.guests.filter((guest) => guest.closed).length, 0, "so much is allowed");
    const sent = await Promise.all(conns.map((conn) => flood(conn, more, 1000)));
    await until(() => hub.guests.every((guest) => guest.closed), "all are thrown out");
    assert.equal(hub.guests.length, 200);
    assert.ok(hub.guests.every((guest) => guest.messages.length === 0));
    // What the kernel's sockets take in passing is not the hub's memory.
    assert.ok(Math.max(...sent) < 16 * 1024 * 1024, `${Math.max(...sent)} bytes of one stranger were read`);
    conns.forEach(shut);
    return Deno.memoryUsage().rss / 1048576;
  };
  const before = Deno.memoryUsage().rss / 1048576;
  const after: number[] = [];
  for (let round = 0; round < 4; round++) after.push(Math.round(await wave()));
  // Both ends live in this process. 3.2 GB are on offer in each wave; what stays is the buffers of one wave.
  const grown = Math.max(...after) - before;
  assert.ok(grown < 256, `grew by ${grown} MiB over waves ${after}, both ends`);
  assert.ok((after[3] ?? 0) - (after[1] ?? 0) < 48, `grows with every wave: ${after} MiB`);
});

test("a message that is announced too long is refused before its bytes", async (hub) => {
  for (const length of [unprovedFrameBytesMax + 1, 2 ** 31, 2 ** 40]) {
    const conn = await hub.webSocket();
    await conn.write(rawFrame(0x82, length));
    await readToEnd(conn);
    shut(conn);
  }
  await until(() => hub.guests.every((guest) => guest.closed), "thrown out");
});

test("a message in countless small pieces is refused", async (hub) => {
  for (const piece of [new Uint8Array(0), new Uint8Array(1)]) {
    const conn = await hub.webSocket();
    const pieces = concat([
      new Uint8Array([0x02, 0x80, 0, 0, 0, 0]),
      ...Array.from(
        { length: 2000 },
        () => concat([new Uint8Array([0x00, 0x80 | piece.length, 0, 0, 0, 0]), piece]),
      ),
    ]);
    await flood(conn, pieces, 1);
    await until(() => hub.guests.at(-1)?.closed, `thrown out for pieces of ${piece.length} bytes`);
    shut(conn);
  }
});

test("a stranger who asks and never reads is thrown out", async (hub) => {
  const conn = await hub.webSocket();
  const pings = concat(Array.from({ length: 500 }, () => frame(9, new Uint8Array(125))));
  const before = Deno.memoryUsage().rss;
  const sent = await flood(conn, pings, 500);
  await until(() => hub.guests[0]?.closed, "thrown out");
  assert.ok(sent < 500 * pings.length, "before it had said all");
  assert.ok(Deno.memoryUsage().rss - before < 32 * 1024 * 1024);
  shut(conn);
});

test("a proved peer may send what a stranger may not", async (hub) => {
  const conn = await hub.webSocket();
  hub.guests[0]!.proved = true;
  const message = new Uint8Array(1024 * 1024).fill(7);
  await flood(conn, frame(2, message), 1);
  await until(() => hub.guests[0]?.messages.length === 1, "the message");
  assert.deepEqual(hub.guests[0]?.messages[0], message);
  shut(conn);
});

test("connections that never say anything do not stand in the way of others", async (hub) => {
  const dial = () => Deno.connect({ hostname: "127.0.0.1", port: hub.listener.port });
  const silent = await Promise.all(Array.from({ length: 2 * unprovedConnectionsMax + 10 }, dial));
  const conn = await hub.webSocket();
  await until(() => hub.guests.length === 1, "served at once");
  silent.forEach(shut);
  shut(conn);
});

test("strangers who connect and say nothing are shown the door, and others come in meanwhile", async (hub) => {
  const dial = () => Deno.connect({ hostname: "127.0.0.1", port: hub.listener.port });
  const strangers: Deno.TcpConn[] = [];
  let ended = 0;
  // More than may wait at once: the oldest are sent away before their time.
  for (let wave = 0; wave < 12; wave++) {
    for (const conn of await Promise.all(Array.from({ length: 100 }, dial))) {
      strangers.push(conn);
      void readToEnd(conn).then(() => ended++);
    }
  }
  const conn = await hub.webSocket();
  await until(() => ended >= 1200 - 1024, "the oldest are gone");
  assert.ok(ended < 600, `${ended}: the others have their time`);
  const files = [...Deno.readDirSync("/proc/self/fd")].length;
  await new Promise((resolve) => setTimeout(resolve, handshakeTimeoutMs));
  await until(() => ended === strangers.length, "all are gone");
  strangers.forEach(shut);
  const left = [...Deno.readDirSync("/proc/self/fd")].length;
  assert.ok(left < files - 2000, `both ends are closed: ${files} files before, ${left} after`);
  await flood(conn, frame(2, utf8("still here")), 1);
  await until(() => hub.guests[0]?.messages.length === 1, "who proves itself in time is not touched");
  shut(conn);
});

test("a new certificate is given to those who come after it", async (hub) => {
  const before = await hub.webSocket();
  const other = await makeAuthority("other", {
    nowMs: Date.now(),
    days: 1,
    serial: crypto.getRandomValues(new Uint8Array(8)),
  });
  const otherKey = await makeKey();
  const otherCertificate = await issueLeaf(other, {
    subject: { commonName: "hub" },
    publicKey: await publicKeyOf(otherKey),
    usage: "server",
    addresses: ["127.0.0.1"],
    nowMs: Date.now(),
    lifeMs: 3_600_000,
    serial: crypto.getRandomValues(new Uint8Array(8)),
  });
  hub.listener.certify({ certificate: otherCertificate, key: otherKey });
  for (let attempt = 0;; attempt++) {
    // What stands in the first listener's queue as it closes is reset; an edge dials again.
    const shown = await (async () => {
      const late = await Deno.connectTls({
        hostname: "127.0.0.1",
        port: hub.listener.port,
        caCerts: [other.certificate],
      });
      await late.handshake();
      shut(late);
      return true;
    })().catch(() => false);
    if (shown && attempt > 50) break; // and goes on to be, once the first listener has gone
    assert.ok(attempt < 500, "the new one is shown");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  await flood(before, frame(2, utf8("still here")), 1);
  await until(() => hub.guests[0]?.messages.length === 1, "the former session goes on");
  shut(before);
});

test("a hub that takes no more guests says so", async (hub) => {
  hub.accept = false;
  const conn = await hub.dial();
  await conn.write(utf8("GET /v1/session HTTP/1.1\r\nupgrade: websocket\r\nsec-websocket-key: a\r\n\r\n"));
  assert.match(text(await readToEnd(conn)), /too many connections without proof, try again/);
  shut(conn);
});

test("what the hub says last arrives before the end", async (hub) => {
  const conn = await hub.webSocket();
  const { socket } = hub.guests[0]!;
  socket.send(utf8("refused"));
  socket.close("proof");
  const said = await readToEnd(conn);
  const events = new WebSocketDecoder("server").push(said, 1000);
  assert.ok(events[0]?.event === "message" && text(events[0].bytes) === "refused");
  assert.equal(events[1]?.event, "close");
  shut(conn);
});
