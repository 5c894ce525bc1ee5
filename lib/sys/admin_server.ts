/**
 * The agent's admin socket: HTTP/1.1 over a unix socket that only root may open, one request a connection, with raw
 * upgrades (exec, attach) that Deno.serve does not give.
 */
import { concat, text, utf8 } from "../core/bytes.ts";
import type { Exchange } from "../edge/kubelet/exchange.ts";

const headBytesMax = 16 * 1024;

export interface AdminServer {
  close(): void;
}

/** Serves until closed. A socket that a dead agent left behind is replaced; one that answers is not. */
export async function serveAdmin(
  path: string,
  serve: (exchange: Exchange) => Promise<void>,
): Promise<AdminServer> {
  try {
    (await Deno.connect({ transport: "unix", path })).close();
    throw new Deno.errors.AddrInUse(`another agent serves ${path}`);
  } catch (error) {
    if (error instanceof Deno.errors.AddrInUse) throw error;
  }
  await Deno.remove(path).catch(() => {});
  const umask = Deno.umask(0o177);
  let listener: Deno.UnixListener;
  try {
    listener = Deno.listen({ transport: "unix", path });
  } finally {
    Deno.umask(umask);
  }
  (async () => {
    for await (const conn of listener) {
      handle(conn, serve).catch(() => {
        try {
          conn.close();
        } catch { /* closed already */ }
      });
    }
  })().catch(() => {});
  return {
    close: () => {
      listener.close();
      Deno.remove(path).catch(() => {});
    },
  };
}

async function handle(conn: Deno.UnixConn, serve: (exchange: Exchange) => Promise<void>): Promise<void> {
  let data: Uint8Array = new Uint8Array(0), end = -1;
  const buffer = new Uint8Array(4096);
  while ((end = text(data).indexOf("\r\n\r\n")) < 0) {
    const count = await conn.read(buffer);
    if (count === null || data.length > headBytesMax) return conn.close();
    data = concat([data, buffer.subarray(0, count)]);
  }
  const [line = "", ...lines] = text(data.subarray(0, end)).split("\r\n");
  const [method = "GET", target = "/"] = line.split(" ");
  const headers = lines.map((header): [string, string] => {
    const colon = header.indexOf(":");
    return [header.slice(0, colon).trim().toLowerCase(), header.slice(colon + 1).trim()];
  });
  const rest = data.slice(end + 4);
  const upgrading = headers.some(([name]) => name === "upgrade");
  const length = Number(headers.find(([name]) => name === "content-length")?.[1] ?? 0);
  let headSent = false, open = true;
  const writable = new WritableStream<Uint8Array>({
    write: async (chunk) => {
      for (let at = 0; at < chunk.length;) at += await conn.write(chunk.subarray(at));
    },
    close: async () => {
      if (upgrading) await conn.closeWrite();
      else shut();
    },
    abort: () => shut(),
  });
  const shut = () => {
    if (!open) return;
    open = false;
    try {
      conn.close();
    } catch { /* closed already */ }
  };
  let left = upgrading ? Infinity : length;
  const readable = new ReadableStream<Uint8Array>({
    start: (controller) => {
      if (rest.length > 0) controller.enqueue(rest);
      left -= rest.length;
      if (left <= 0) controller.close();
    },
    pull: async (controller) => {
      const chunk = new Uint8Array(16 * 1024);
      const count = await conn.read(chunk).catch(() => null);
      if (count === null) return controller.close();
      controller.enqueue(chunk.subarray(0, count));
      left -= count;
      if (left <= 0) controller.close();
    },
    cancel: () => shut(),
  });
  await serve({
    method,
    target,
    headers,
    readable,
    writable,
    sendHead: ({ status, headers: answer }) => {
      if (headSent) return;
      headSent = true;
      const lines = answer.map(([name, value]) => `${name}: ${value}\r\n`).join("");
      const closing = status === 101 ? "" : "connection: close\r\n";
      // Written ahead of the body: nothing else writes before the head is out.
      void conn.write(
        utf8(`HTTP/1.1 ${status} ${status === 101 ? "Switching Protocols" : "-"}\r\n${lines}${closing}\r\n`),
      ).catch(() => shut());
    },
    reset: () => shut(),
  });
}
