/** One HTTP exchange, whatever carries it: a stream of the cloud session or a connection of the admin socket. */
export interface Exchange {
  readonly method: string;
  /** Path and query. */
  readonly target: string;
  readonly headers: readonly [string, string][];
  /** The request's body; after an upgrade the client's bytes. Errors when the client has gone. */
  readonly readable: ReadableStream<Uint8Array>;
  /** The answer's body; after an upgrade the bytes to the client. Errors when the client has gone. */
  readonly writable: WritableStream<Uint8Array>;
  /** Before the first byte of the body, once. */
  sendHead(head: { status: number; headers: [string, string][] }): void;
  /** Gives the exchange up. */
  reset(reason: string): void;
}

/** A request that cannot be granted, in words for the person behind it. */
export interface Refusal {
  status: number;
  message: string;
  headers?: [string, string][];
}

export type Found<T> = { state: "ok"; value: T } | { state: "refused"; refusal: Refusal };

/** A whole answer of known length. */
export async function answer(
  exchange: Exchange,
  { status = 200, type, body, headers = [] }: {
    status?: number;
    type: string;
    body: string;
    headers?: [string, string][];
  },
): Promise<void> {
  const bytes = new TextEncoder().encode(body);
  exchange.sendHead({
    status,
    headers: [["content-type", type], ["content-length", String(bytes.length)], ...headers],
  });
  const writer = exchange.writable.getWriter();
  if (bytes.length > 0) await writer.write(bytes);
  await writer.close();
}

export function answerJson(exchange: Exchange, value: unknown): Promise<void> {
  return answer(exchange, { type: "application/json", body: JSON.stringify(value) });
}

export function refuse(exchange: Exchange, { status, message, headers = [] }: Refusal): Promise<void> {
  return answer(exchange, { status, type: "text/plain; charset=utf-8", body: message, headers });
}

/**
 * Takes no more interest in what the client says, and tells when it goes away: the request's body is dropped as it
 * comes, and either side's failure aborts.
 */
export function clientGone(exchange: Exchange): AbortController {
  const gone = new AbortController();
  const abort = () => gone.abort(new Error("the client went away"));
  (async () => {
    for await (const _ of exchange.readable);
  })().catch(abort);
  return gone;
}
