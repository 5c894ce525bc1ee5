/**
 * One node's kubelet port: node:https with client certificates, the caller judged, then everything piped over a stream
 * of the session.
 *
 * All node:tls servers of one process share a session ticketer, and a resumed TLS 1.3 session skips the client
 * certificate's verification: a client that another port let in (with any CA) arrives here as "authorized". So the
 * certificate is checked again for each connection, by `certificateHolds`.
 */
import { X509Certificate } from "node:crypto";
import https from "node:https";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Buffer } from "node:buffer";
import type { TLSSocket } from "node:tls";
import type { Duplex } from "node:stream";

const connectionsMax = 200;

export interface Caller {
  username: string;
  groups?: string[];
}
/** A stream to the node. */
export interface NodeStream {
  readable: ReadableStream<Uint8Array>;
  writable: WritableStream<Uint8Array>;
  head: Promise<{ status: number; headers: [string, string][] }>;
  reset(reason: string): void;
}
export interface KubeletPortHandlers {
  /** The caller's right: a refusal is {status, message}. */
  judge(
    request: { method: string; path: string; certificate: Caller | undefined; bearer: string | undefined },
  ): Promise<{ status: number; message: string } | undefined>;
  open(
    request: { method: string; target: string; headers: [string, string][] },
  ): NodeStream | { status: number; message: string };
}

export interface KubeletPort {
  close(): void;
}

/** Whether the certificate is of one of the CAs and in force; exported for the test with the resumption attack. */
export function certificateHolds(
  raw: Uint8Array | undefined,
  authorities: X509Certificate[],
  nowMs: number,
): boolean {
  if (!raw) return false;
  const certificate = new X509Certificate(raw);
  return authorities.some((ca) => certificate.checkIssued(ca) && certificate.verify(ca.publicKey)) &&
    nowMs >= Date.parse(certificate.validFrom) && nowMs <= Date.parse(certificate.validTo);
}

export function listenKubelet(
  options: { hostname: string; port: number; certificate: string; key: string; clientCa: string },
  handlers: KubeletPortHandlers,
): Promise<KubeletPort> {
  const pems = options.clientCa.match(/-----BEGIN CERTIFICATE-----[\s\S]*?-----END CERTIFICATE-----/g) ?? [];
  const authorities = pems.map((pem) => new X509Certificate(pem));
  const server = https.createServer({
    key: options.key,
    cert: options.certificate,
    ca: pems,
    requestCert: true,
    rejectUnauthorized: false,
  });
  server.maxConnections = connectionsMax;
  const sockets = new Set<Duplex>();
  const callers = new WeakMap<object, Caller | undefined>();
  server.on("secureConnection", (socket: TLSSocket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    socket.on("error", () => {});
    const peer = socket.getPeerCertificate();
    const raw = peer?.raw as Uint8Array | undefined;
    callers.set(
      socket,
      socket.authorized && certificateHolds(raw, authorities, Date.now()) && raw
        ? callerOf(new X509Certificate(raw))
        : undefined,
    );
  });
  const judge = (request: IncomingMessage) => {
    const bearer = /^Bearer (.+)$/.exec(request.headers.authorization ?? "")?.[1];
    const path = (request.url ?? "/").split("?")[0] ?? "/";
    return handlers.judge({
      method: request.method ?? "GET",
      path,
      certificate: callers.get(request.socket),
      bearer,
    });
  };
  server.on("request", (request: IncomingMessage, response: ServerResponse) => {
    plain(request, response, judge, handlers).catch((error: unknown) => {
      if (!response.headersSent) response.writeHead(502, { "content-type": "text/plain" });
      response.end(`${error instanceof Error ? error.message : String(error)}\n`);
    });
  });
  server.on("upgrade", (request: IncomingMessage, socket: Duplex, head: Buffer) => {
    upgrade(request, socket, head, judge, handlers).catch((error: unknown) => {
      refuse(socket, 502, error instanceof Error ? error.message : String(error));
    });
  });
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(options.port, options.hostname, () => {
      resolve({
        close: () => {
          server.close();
          for (const socket of sockets) socket.destroy();
        },
      });
    });
  });
}

type Judge = (request: IncomingMessage) => Promise<{ status: number; message: string } | undefined>;

async function plain(
  request: IncomingMessage,
  response: ServerResponse,
  judge: Judge,
  handlers: KubeletPortHandlers,
): Promise<void> {
  const refusal = await judge(request);
  const stream = refusal ??
    handlers.open({
      method: request.method ?? "GET",
      target: request.url ?? "/",
      headers: headersOf(request, false),
    });
  if (!("readable" in stream)) {
    response.writeHead(stream.status, { "content-type": "text/plain; charset=utf-8" });
    response.end(stream.message + "\n");
    return;
  }
  response.on("close", () => stream.reset("the client went away"));
  const writer = stream.writable.getWriter();
  (async () => {
    for await (const chunk of request) await writer.write(chunk as Uint8Array);
    await writer.close();
  })().catch(() => {});
  const head = await stream.head;
  response.writeHead(head.status, head.headers.filter(([name]) => !hopByHop.has(name.toLowerCase())).flat());
  response.flushHeaders();
  for await (const chunk of stream.readable) {
    if (!response.write(chunk)) await drained(response);
  }
  response.end();
}

async function upgrade(
  request: IncomingMessage,
  socket: Duplex,
  first: Buffer,
  judge: Judge,
  handlers: KubeletPortHandlers,
): Promise<void> {
  socket.on("error", () => {});
  socket.pause();
  const refusal = await judge(request);
  const stream = refusal ??
    handlers.open({
      method: request.method ?? "GET",
      target: request.url ?? "/",
      headers: headersOf(request, true),
    });
  if (!("readable" in stream)) return refuse(socket, stream.status, stream.message);
  const head = await stream.head;
  const lines = head.headers.map(([name, value]) => `${name}: ${value}\r\n`).join("");
  socket.write(
    `HTTP/1.1 ${head.status} ${head.status === 101 ? "Switching Protocols" : "Refused"}\r\n${lines}\r\n`,
  );
  socket.on("close", () => stream.reset("the client went away"));
  const writer = stream.writable.getWriter();
  if (first.length > 0) await writer.write(new Uint8Array(first));
  socket.on("data", (chunk: Buffer) => {
    socket.pause();
    writer.write(new Uint8Array(chunk)).then(() => socket.resume(), () => socket.destroy());
  });
  socket.on("end", () => void writer.close().catch(() => {}));
  socket.resume();
  try {
    for await (const chunk of stream.readable) {
      if (!socket.write(chunk)) await drained(socket);
    }
    socket.end();
  } catch {
    socket.destroy();
  }
}

/** Resolves when more can be written, or nobody reads any more. */
function drained(to: Duplex | ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      to.off("drain", done);
      to.off("close", done);
      resolve();
    };
    to.on("drain", done);
    to.on("close", done);
  });
}

const hopByHop = new Set([
  "connection",
  "keep-alive",
  "transfer-encoding",
  "te",
  "trailer",
  "proxy-authorization",
  "authorization",
  "upgrade",
]);

/** The caller's credentials stay here: the edge is given the request, not who may make it. */
function headersOf(request: IncomingMessage, upgrading: boolean): [string, string][] {
  const headers: [string, string][] = [];
  for (let i = 0; i + 1 < request.rawHeaders.length; i += 2) {
    const name = (request.rawHeaders[i] ?? "").toLowerCase(), value = request.rawHeaders[i + 1] ?? "";
    const keep = upgrading && (name === "connection" || name === "upgrade");
    if (name !== "host" && name !== "cookie" && (keep || !hopByHop.has(name))) headers.push([name, value]);
  }
  return headers;
}

function refuse(socket: Duplex, status: number, message: string): void {
  const reason =
    { 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 503: "Service Unavailable" }[status] ??
      "Error";
  socket.end(
    `HTTP/1.1 ${status} ${reason}\r\ncontent-type: text/plain\r\ncontent-length: ${
      new TextEncoder().encode(message).length
    }\r\nconnection: close\r\n\r\n${message}`,
  );
}

function callerOf(certificate: X509Certificate): Caller {
  const names = certificate.subject.split("\n");
  const groups = names.filter((name) => name.startsWith("O=")).map((name) => name.slice(2));
  return {
    username: names.find((name) => name.startsWith("CN="))?.slice(3) ?? "",
    groups: [...groups, "system:authenticated"],
  };
}
