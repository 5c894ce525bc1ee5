/** Calls to the agent on this machine, over its admin socket. */
import { base64, concat, text, utf8 } from "../../lib/core/bytes.ts";
import { ExitCode, UserError } from "../../lib/core/errors.ts";
import { frameBytesMax } from "../../lib/core/limits.ts";
import { encodeWebSocketFrame, WebSocketDecoder } from "../../lib/net/websocket.ts";

async function dial(rootDir: string): Promise<Deno.UnixConn> {
  const path = `${rootDir}/edge.sock`;
  try {
    return await Deno.connect({ transport: "unix", path });
  } catch (error) {
    if (error instanceof Deno.errors.PermissionDenied) {
      throw new UserError(`Cannot ask the agent at ${path}: permission denied; run as root`);
    }
    throw new UserError(
      `Cannot ask the agent at ${path}: it does not run (systemctl status kubeedge-edge, or kubeedge edge run)`,
      ExitCode.failure,
    );
  }
}

async function write(conn: Deno.Conn, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length;) at += await conn.write(bytes.subarray(at));
}

/** Sends a head and reads the answer's; what follows it is in `rest` and on the connection. */
async function request(conn: Deno.Conn, head: string): Promise<{ status: number; rest: Uint8Array }> {
  await write(conn, utf8(head));
  let data: Uint8Array = new Uint8Array(0), end = -1;
  const buffer = new Uint8Array(8192);
  while ((end = text(data).indexOf("\r\n\r\n")) < 0) {
    const count = await conn.read(buffer);
    if (count === null) throw new UserError("The agent ended the connection without an answer");
    data = concat([data, buffer.subarray(0, count)]);
  }
  return { status: Number(text(data).slice(9, 12)), rest: data.slice(end + 4) };
}

/** GET, each part of the body as it comes. Throws UserError with the agent's words when it refuses. */
export async function adminGet(
  rootDir: string,
  target: string,
  part: (bytes: Uint8Array) => void,
): Promise<void> {
  using conn = await dial(rootDir);
  const { status, rest } = await request(conn, `GET ${target} HTTP/1.1\r\nhost: edge\r\n\r\n`);
  const refused: Uint8Array[] = [];
  const take = status === 200 ? part : (bytes: Uint8Array) => refused.push(bytes.slice());
  take(rest);
  const buffer = new Uint8Array(32 * 1024);
  for (let count; (count = await conn.read(buffer)) !== null;) take(buffer.subarray(0, count));
  if (status !== 200) throw new UserError(text(concat(refused)).trim() || `the agent answered ${status}`);
}

export async function adminJson<T>(rootDir: string, target: string): Promise<T> {
  const parts: Uint8Array[] = [];
  await adminGet(rootDir, target, (bytes) => parts.push(bytes.slice()));
  return JSON.parse(text(concat(parts))) as T;
}

const channel = { stdin: 0, stdout: 1, stderr: 2, status: 3, resize: 4 } as const;

/** Runs a command in a container with this terminal's streams (v4.channel.k8s.io); resolves to its exit code. */
export async function adminExec(
  rootDir: string,
  target: string,
  options: { stdin: boolean; tty: boolean },
): Promise<number> {
  using conn = await dial(rootDir);
  const key = base64(crypto.getRandomValues(new Uint8Array(16)));
  const { status, rest } = await request(
    conn,
    `GET ${target} HTTP/1.1\r\nhost: edge\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n` +
      `sec-websocket-key: ${key}\r\nsec-websocket-protocol: v4.channel.k8s.io\r\n\r\n`,
  );
  if (status !== 101) {
    const more = new Uint8Array(8192);
    const count = rest.length > 0 ? 0 : await conn.read(more) ?? 0;
    throw new UserError(
      text(concat([rest, more.subarray(0, count)])).trim() || `the agent answered ${status}`,
    );
  }
  const send = (to: number, bytes: Uint8Array) =>
    write(
      conn,
      encodeWebSocketFrame(
        2,
        concat([new Uint8Array([to]), bytes]),
        crypto.getRandomValues(new Uint8Array(4)),
      ),
    );
  const resize = () => {
    try {
      const { columns: Width, rows: Height } = Deno.consoleSize();
      send(channel.resize, utf8(JSON.stringify({ Width, Height }))).catch(() => {});
    } catch { /* no terminal */ }
  };
  const raw = options.tty && Deno.stdin.isTerminal();
  if (raw) Deno.stdin.setRaw(true);
  if (options.tty) {
    resize();
    Deno.addSignalListener("SIGWINCH", resize);
  }
  if (options.stdin) {
    (async () => {
      for await (const chunk of Deno.stdin.readable) await send(channel.stdin, chunk);
    })().catch(() => {});
  }
  let exitCode = 0;
  try {
    const decoder = new WebSocketDecoder("server");
    const buffer = new Uint8Array(64 * 1024);
    for (let chunk: Uint8Array = rest;;) {
      for (const event of decoder.push(chunk.slice(), frameBytesMax)) {
        if (event.event === "message") exitCode = take(event.bytes) ?? exitCode;
        else if (event.event === "close" || event.event === "fault") return exitCode;
      }
      const count = await conn.read(buffer);
      if (count === null) return exitCode;
      chunk = buffer.subarray(0, count);
    }
  } finally {
    if (raw) Deno.stdin.setRaw(false);
    if (options.tty) Deno.removeSignalListener("SIGWINCH", resize);
  }
}

/** One message of the runtime: output, or the end with its exit code. */
function take(message: Uint8Array): number | undefined {
  const bytes = message.subarray(1);
  if (message[0] === channel.stdout) Deno.stdout.writeSync(bytes);
  else if (message[0] === channel.stderr) Deno.stderr.writeSync(bytes);
  else if (message[0] === channel.status && bytes.length > 0) {
    type Status = {
      status?: string;
      message?: string;
      details?: { causes?: { reason: string; message: string }[] };
    };
    const status = JSON.parse(text(bytes)) as Status;
    if (status.status === "Success") return 0;
    const code = Number(status.details?.causes?.find((cause) => cause.reason === "ExitCode")?.message);
    if (Number.isInteger(code)) return code;
    throw new UserError(status.message ?? "the command failed");
  }
  return undefined;
}
