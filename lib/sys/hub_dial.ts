/**
 * A TLS connection to the hub, directly or through the HTTP CONNECT proxy of HTTPS_PROXY. The hub is pinned: its
 * certificate must be of the edge CA. Deno's fetch and WebSocket trust the public CAs besides, so they are not used.
 */
import { X509Certificate } from "node:crypto";
import net from "node:net";
import tls from "node:tls";
import { checkCertificate } from "../crypto/x509.ts";

/** Each of: name look-up and TCP, CONNECT, TLS. A satellite link needs some seconds. */
const stepTimeoutMs = 10_000;
const proxyHeadBytesMax = 8 * 1024;

export interface HubAddress {
  host: string;
  port: number;
}
export function hubAddress(url: string): HubAddress {
  const { hostname, port } = new URL(url.replace(/^wss:/, "https:"));
  return { host: hostname.replace(/^\[|\]$/g, ""), port: port === "" ? 443 : Number(port) };
}

/**
 * Dials `url` (wss://host:port). `authorities`: PEM of the CAs that count; undefined takes any certificate, for the
 * one request that fetches the CA and sends nothing secret. Throws with what failed.
 */
export async function dialHub(url: string, authorities: string | undefined): Promise<tls.TLSSocket> {
  const { host, port } = hubAddress(url);
  const raw = await dialTcp(host, port);
  const socket = tls.connect({
    socket: raw,
    rejectUnauthorized: authorities !== undefined,
    ALPNProtocols: ["http/1.1"],
    ...(net.isIP(host) === 0 ? { servername: host } : { host }),
    ...(authorities !== undefined ? { ca: [authorities] } : {}),
  });
  try {
    await once(socket, "secureConnect", `TLS with ${host}:${port}`);
    if (authorities !== undefined) {
      const der = socket.getPeerCertificate()?.raw as Uint8Array | undefined;
      const checked = der
        ? checkCertificate(new X509Certificate(der).toString(), authorities, Date.now())
        : undefined;
      if (checked?.state !== "ok") {
        throw new Error(
          `the certificate of ${host}:${port} was not accepted: ${
            checked?.reason ?? "it sent none"
          }; is a proxy ending TLS on the way?`,
        );
      }
    }
    return socket;
  } catch (error) {
    socket.destroy();
    raw.destroy();
    throw error;
  }
}

async function dialTcp(host: string, port: number): Promise<net.Socket> {
  const proxy = proxyFor(host);
  if (!proxy) return await connect(host, port, `connecting to ${host}:${port}`);
  const proxyHost = proxy.hostname.replace(/^\[|\]$/g, "");
  const what = `the proxy ${proxyHost}:${proxy.port || "80"}`;
  const socket = await connect(proxyHost, Number(proxy.port || 80), `connecting to ${what}`);
  const target = `${host.includes(":") ? `[${host}]` : host}:${port}`;
  const user = proxy.username
    ? `proxy-authorization: Basic ${
      btoa(`${decodeURIComponent(proxy.username)}:${decodeURIComponent(proxy.password)}`)
    }\r\n`
    : "";
  socket.write(`CONNECT ${target} HTTP/1.1\r\nhost: ${target}\r\n${user}\r\n`);
  const head = await readHead(socket, what);
  if (!/^HTTP\/1\.[01] 200/.test(head)) {
    socket.destroy();
    throw new Error(`${what} refused to connect to ${target}: ${head.split("\r\n")[0] ?? ""}`);
  }
  return socket;
}

/** HTTPS_PROXY, unless NO_PROXY names the host (exactly, as a domain suffix, or `*`). */
export function proxyFor(host: string): URL | undefined {
  const text = Deno.env.get("HTTPS_PROXY") || Deno.env.get("https_proxy");
  if (!text) return undefined;
  const excepted = (Deno.env.get("NO_PROXY") ?? Deno.env.get("no_proxy") ?? "").split(",").map((item) =>
    item.trim()
  ).filter(Boolean);
  if (
    excepted.some((item) =>
      item === "*" || item === host || host.endsWith(item.startsWith(".") ? item : `.${item}`)
    )
  ) return undefined;
  try {
    return new URL(text.includes("://") ? text : `http://${text}`);
  } catch {
    throw new Error(`HTTPS_PROXY is "${text.replace(/\/\/[^@/]*@/, "//")}", expected http://HOST:PORT`);
  }
}

async function connect(host: string, port: number, what: string): Promise<net.Socket> {
  const socket = net.connect({ host, port });
  await once(socket, "connect", what).catch((error: unknown) => {
    socket.destroy();
    throw error;
  });
  socket.setNoDelay(true);
  return socket;
}

function readHead(socket: net.Socket, what: string): Promise<string> {
  return new Promise((resolve, reject) => {
    let head = "";
    const done = (error?: Error) => {
      clearTimeout(timer);
      socket.off("data", data).off("error", done).off("close", closed);
      if (error) reject(error);
      else resolve(head);
    };
    const data = (chunk: Uint8Array) => {
      head += new TextDecoder("latin1").decode(chunk);
      if (head.includes("\r\n\r\n")) {
        socket.pause();
        done();
      } else if (head.length > proxyHeadBytesMax) {
        done(new Error(`${what} answered with a head that is too long`));
      }
    };
    const closed = () => done(new Error(`${what} closed the connection`));
    const timer = setTimeout(
      () => done(new Error(`${what} did not answer within ${stepTimeoutMs} ms`)),
      stepTimeoutMs,
    );
    socket.on("data", data).on("error", done).on("close", closed);
  });
}

function once(socket: net.Socket, event: string, what: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const done = (error?: Error) => {
      clearTimeout(timer);
      socket.off(event, ok).off("error", failed).off("close", closed);
      if (error) reject(error);
      else resolve();
    };
    const ok = () => done();
    const failed = (error: Error) => done(new Error(`${what} failed: ${error.message}`));
    const closed = () => done(new Error(`${what} failed: the connection was closed`));
    const timer = setTimeout(
      () => done(new Error(`${what} took longer than ${stepTimeoutMs} ms`)),
      stepTimeoutMs,
    );
    socket.on(event, ok).on("error", failed).on("close", closed);
  });
}
