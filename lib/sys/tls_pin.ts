/**
 * The two requests of a node that is not yet joined. `GET /v1/ca` goes over a connection that nobody vouches for, so it
 * carries nothing secret and its answer counts only where it matches the hash in the token; `POST /v1/join` goes over a
 * connection that is pinned to that CA. Both honour HTTPS_PROXY and NO_PROXY (hub_dial.ts).
 */
import { errorText } from "../core/errors.ts";
import { concat, text, utf8 } from "../core/bytes.ts";
import type { HubAuthority, JoinReply } from "../edge/join.ts";
import { dialHub, hubAddress } from "./hub_dial.ts";

/** A few certificates and a list of URLs; the hub is not proved yet, so what it may send is bounded. */
const answerBytesMax = 64 * 1024;
/** From the last byte of the request to the last of the answer: the hub asks the Kubernetes API some five times. */
const answerTimeoutMs = 30_000;

/** `url` is wss://HOST:PORT. Throws with what failed. The bundle is unproved: check it before use. */
export async function fetchAuthority(
  url: string,
  timeoutMs: number = answerTimeoutMs,
): Promise<HubAuthority> {
  const socket = await dialHub(url, undefined);
  const sentMs = Date.now();
  const { status, headers, body } = await exchange(
    socket,
    `GET /v1/ca HTTP/1.1\r\n${hostLine(url)}`,
    "",
    timeoutMs,
  );
  if (status !== 200) throw new Error(`it answered ${status} to GET /v1/ca; is it a kubeedge hub?`);
  const dateMs = Date.parse(/^date:\s*(.+)$/im.exec(headers)?.[1] ?? "");
  // Date counts whole seconds, so the middle of its second is compared with the middle of the round trip.
  const skewMs = Number.isNaN(dateMs) ? undefined : (sentMs + Date.now()) / 2 - (dateMs + 500);
  return { bundle: body, skewMs };
}

/** `caBundle`: PEM of the CAs that the hub's certificate may be of, and no other. */
export function pinnedFetch(
  caBundle: string,
): (url: string, json: string, timeoutMs?: number) => Promise<JoinReply> {
  return async (url, json, timeoutMs = answerTimeoutMs) => {
    let socket: Socket;
    try {
      socket = await dialHub(url, caBundle);
    } catch (error) {
      return { state: "unreachable", reason: errorText(error) };
    }
    const head = `POST /v1/join HTTP/1.1\r\n${
      hostLine(url)
    }content-type: application/json\r\ncontent-length: ${utf8(json).length}\r\n`;
    try {
      const { status, body } = await exchange(socket, head, json, timeoutMs);
      return { state: "answered", status, body };
    } catch (error) {
      return { state: "lost", reason: errorText(error) };
    }
  };
}

type Socket = Awaited<ReturnType<typeof dialHub>>;

function hostLine(url: string): string {
  const { host, port } = hubAddress(url);
  return `host: ${host.includes(":") ? `[${host}]` : host}:${port}\r\n`;
}

/** One request and its answer; the connection ends with it. */
async function exchange(socket: Socket, head: string, body: string, timeoutMs: number) {
  const answer = readAnswer(socket, timeoutMs);
  socket.write(utf8(`${head}connection: close\r\n\r\n${body}`));
  try {
    return await answer;
  } finally {
    socket.destroy();
  }
}

interface Answer {
  status: number;
  headers: string;
  body: string;
}

function readAnswer(socket: Socket, timeoutMs: number): Promise<Answer> {
  return new Promise((resolve, reject) => {
    let data: Uint8Array = new Uint8Array(0);
    const done = (outcome: Answer | Error) => {
      clearTimeout(timer);
      socket.off("data", got).off("end", ended).off("close", ended);
      if (outcome instanceof Error) reject(outcome);
      else resolve(outcome);
    };
    const got = (chunk: Uint8Array) => {
      data = concat([data, chunk]);
      const answer = parse(data, false);
      if (answer) done(answer);
      else if (data.length > answerBytesMax) {
        done(new Error(`its answer is longer than ${answerBytesMax} bytes`));
      }
    };
    const ended = () =>
      done(parse(data, true) ?? new Error("it closed the connection before it had answered"));
    const timer = setTimeout(() => done(new Error(`it did not answer within ${timeoutMs} ms`)), timeoutMs);
    // The handler stays: an error after the answer has nobody else to take it.
    socket.on("data", got).on("end", ended).on("close", ended).on("error", (error: Error) => done(error));
  });
}

/** Undefined until the answer is whole. */
function parse(data: Uint8Array, ended: boolean): Answer | undefined {
  const [, statusText, headers = ""] =
    /^HTTP\/1\.[01] (\d{3})[^\r\n]*\r\n([\s\S]*?\r\n)\r\n/.exec(text(data)) ?? [];
  if (statusText === undefined) return undefined;
  const start = text(data).indexOf("\r\n\r\n") + 4;
  const length = /^content-length:\s*(\d+)/im.exec(headers)?.[1];
  const body = data.subarray(start, length === undefined ? undefined : start + Number(length));
  if (length === undefined ? !ended : body.length < Number(length)) return undefined;
  return { status: Number(statusText), headers, body: text(body) };
}
