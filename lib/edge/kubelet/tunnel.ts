/**
 * exec, attach and port-forward: the client's upgrade goes on to the runtime's streaming server as it came, but for
 * the path; after the runtime's `101` the bytes of both are theirs alone (SPDY or WebSocket).
 *
 *     client ── Exchange ── this ── TCP on loopback ── runtime
 */
import { concat, text, utf8 } from "../../core/bytes.ts";
import type { Clock } from "../../core/clock.ts";
import { errorText } from "../../core/errors.ts";
import { type Exchange, refuse } from "./exchange.ts";

/** Answer of the runtime to the upgrade, bytes: its head is a few lines, its errors one. */
const answerBytesMax = 64 * 1024;
/** The runtime answers at once; it may have to be fetched from swap. */
const answerTimeoutMs = 30_000;
/** From the end of the runtime's side to the client's: the last bytes may have a slow way. */
const lingerMs = 30_000;

export interface Connection {
  readable: ReadableStream<Uint8Array>;
  /** Closing it ends this direction only. */
  writable: WritableStream<Uint8Array>;
  /** Ends both directions; more than once is harmless. */
  close(): void;
}

export interface TunnelPorts {
  dial(host: string, port: number): Promise<Connection>;
  clock: Clock;
}

/** Undefined when the request asks for no upgrade. */
export function upgradeHeaders(headers: Exchange["headers"]): [string, string][] | undefined {
  const kept = headers.filter(([name, value]) => upgradeHeader.test(name) && !/[\r\n\0]/.test(value));
  const upgrading = kept.some(([name, value]) => /^connection$/i.test(name) && /\bupgrade\b/i.test(value)) &&
    kept.some(([name]) => /^upgrade$/i.test(name));
  return upgrading ? kept : undefined;
}
const upgradeHeader = /^(connection|upgrade|x-stream-protocol-version|sec-websocket-[a-z]+)$/i;

/** Serves the exchange from the runtime's `url` (http, as ContainerRuntime.exec and its kin give it). */
export async function tunnel(exchange: Exchange, url: string, ports: TunnelPorts): Promise<void> {
  const headers = upgradeHeaders(exchange.headers);
  if (!headers) return await refuse(exchange, { status: 400, message: "Upgrade request required" });
  const server = new URL(url);
  if (server.protocol !== "http:") {
    return await refuse(exchange, {
      status: 502,
      message: `the container runtime streams over ${
        server.protocol.slice(0, -1)
      }: only http on loopback is spoken`,
    });
  }
  let connection: Connection;
  try {
    connection = await ports.dial(server.hostname.replace(/^\[|\]$/g, ""), Number(server.port || 80));
  } catch (error) {
    const message = `the container runtime's streaming server does not answer: ${errorText(error)}`;
    return await refuse(exchange, { status: 502, message });
  }
  const late = ports.clock.timer(answerTimeoutMs, () => connection.close());
  try {
    const toRuntime = connection.writable.getWriter();
    const lines = headers.map(([name, value]) => `${name}: ${value}\r\n`).join("");
    const path = server.pathname + server.search;
    const length = exchange.method === "POST" ? "Content-Length: 0\r\n" : "";
    await toRuntime.write(
      utf8(`${exchange.method} ${path} HTTP/1.1\r\nHost: ${server.host}\r\n${length}${lines}\r\n`),
    );
    const fromRuntime = connection.readable.getReader();
    const head = await readHead(fromRuntime);
    late.cancel();
    if (head.state === "bad") return await refuse(exchange, { status: 502, message: head.reason });
    if (head.status !== 101) {
      const message = await readMessage(head, fromRuntime);
      return await refuse(exchange, {
        status: head.status,
        message: message || "the container runtime refused to upgrade",
      });
    }
    exchange.sendHead({ status: 101, headers: head.headers });
    fromRuntime.releaseLock();
    await pump(exchange, { ...connection, toRuntime, first: head.rest }, ports.clock);
  } finally {
    late.cancel();
    connection.close();
  }
}

interface Upgraded extends Connection {
  toRuntime: WritableStreamDefaultWriter<Uint8Array>;
  /** What came with the head. */
  first: Uint8Array;
}

/** Both ways until both ends are reached; throws nothing: the failure of one side ends the other. */
async function pump(
  exchange: Exchange,
  { toRuntime, first, readable, close }: Upgraded,
  clock: Clock,
): Promise<void> {
  const backlog = new Backlog(clock);
  const up = upwards(exchange, toRuntime, backlog).catch(() => close()); // the client has gone
  try {
    const writer = exchange.writable.getWriter();
    if (first.length > 0) await writer.write(first);
    for await (const chunk of readable) await backlog.during(writer.write(chunk));
    await writer.close();
  } catch (error) {
    exchange.reset(`the container runtime's stream broke: ${errorText(error)}`);
  }
  close();
  const linger = clock.timer(lingerMs, () => exchange.reset("the stream is over"));
  await up;
  linger.cancel();
}

/** The client's bytes to the runtime. What comes when the runtime wants none any more is dropped: the answer's end is what counts. */
async function upwards(
  exchange: Exchange,
  toRuntime: WritableStreamDefaultWriter<Uint8Array>,
  backlog: Backlog,
): Promise<void> {
  let wanted = true;
  const unwanted = () => {
    wanted = false;
  };
  let begun: Uint8Array = new Uint8Array(0);
  for await (const chunk of exchange.readable.values({ preventCancel: true })) {
    const bytes = begun.length > 0 ? concat([begun, chunk]) : chunk;
    const ping = startsPing(bytes);
    begun = ping && bytes.length < pingBytes ? bytes : new Uint8Array(0);
    if (begun.length > 0) continue;
    await backlog.drained(ping ? Infinity : holdMs);
    if (wanted) await toRuntime.write(bytes).catch(unwanted);
  }
  if (wanted) await toRuntime.close().catch(unwanted);
}

/**
 * The runtime closes its connection as soon as the process has ended and the kernel has taken its last output. Bytes
 * that reach it after that are answered with a reset, and a reset throws away what lies unread in our receive buffer:
 * megabytes, when the client is slower than the process. So the client's bytes wait while there is a backlog: its SPDY
 * pings (every 5 s from kube-apiserver) as long as it takes, a person's keys for a moment.
 */
class Backlog {
  #writing = false;
  #lastMs = -Infinity;
  constructor(readonly clock: Clock) {}

  async during(write: Promise<void>): Promise<void> {
    this.#writing = true;
    await write;
    this.#writing = false;
    this.#lastMs = this.clock.monotonic();
  }

  async drained(patienceMs: number): Promise<void> {
    const untilMs = this.clock.monotonic() + patienceMs;
    for (;;) {
      const nowMs = this.clock.monotonic();
      if ((!this.#writing && nowMs - this.#lastMs > quietMs) || nowMs >= untilMs) return;
      await this.clock.sleep(quietMs);
    }
  }
}
/** Nothing came from the runtime for so long: its output was read to its end for now. */
const quietMs = 10;
const holdMs = 300;

/** An SPDY/3.1 PING is a control frame of type 6, 4 bytes long: the head, then an id. */
const pingHead = [0x80, 0x03, 0x00, 0x06, 0x00, 0x00, 0x00, 0x04];
const pingBytes = 12;

/** Whether the bytes are a PING or the beginning of one. */
function startsPing(bytes: Uint8Array): boolean {
  return bytes.length <= pingBytes &&
    bytes.every((byte, at) => at >= pingHead.length || byte === pingHead[at]);
}

type Head =
  | { state: "ok"; status: number; headers: [string, string][]; rest: Uint8Array }
  | { state: "bad"; reason: string };
type Reader = ReadableStreamDefaultReader<Uint8Array>;

async function readHead(reader: Reader): Promise<Head> {
  let bytes: Uint8Array = new Uint8Array(0);
  for (;;) {
    const end = headEnd(bytes);
    if (end >= 0) return parseHead(text(bytes.subarray(0, end)), bytes.subarray(end + 4));
    if (bytes.length > answerBytesMax) {
      return { state: "bad", reason: "the container runtime's answer is too long" };
    }
    const { done, value } = await reader.read();
    if (done) {
      return {
        state: "bad",
        reason: "the container runtime closed its streaming connection without an answer",
      };
    }
    bytes = concat([bytes, value]);
  }
}

function headEnd(bytes: Uint8Array): number {
  for (let at = bytes.indexOf(0x0d); at >= 0; at = bytes.indexOf(0x0d, at + 1)) {
    if (bytes[at + 1] === 0x0a && bytes[at + 2] === 0x0d && bytes[at + 3] === 0x0a) return at;
  }
  return -1;
}

function parseHead(head: string, rest: Uint8Array): Head {
  const [first = "", ...lines] = head.split("\r\n");
  const status = Number(/^HTTP\/1\.[01] (\d{3})(?: |$)/.exec(first)?.[1]);
  if (!(status >= 101 && status <= 599)) {
    return { state: "bad", reason: "the container runtime did not answer in HTTP" };
  }
  const headers: [string, string][] = [];
  for (const line of lines) {
    const colon = line.indexOf(":");
    if (colon > 0) headers.push([line.slice(0, colon), line.slice(colon + 1).trim()]);
  }
  return { state: "ok", status, headers, rest };
}

/** The body of a refusal: Go's servers give short ones a length. */
async function readMessage(head: Head & { state: "ok" }, reader: Reader): Promise<string> {
  const length = Number(head.headers.find(([name]) => name.toLowerCase() === "content-length")?.[1] ?? 0);
  const wanted = Math.min(length, answerBytesMax);
  let bytes = head.rest;
  while (bytes.length < wanted) {
    const { done, value } = await reader.read();
    if (done) break;
    bytes = concat([bytes, value]);
  }
  return text(bytes.subarray(0, wanted)).trim();
}
