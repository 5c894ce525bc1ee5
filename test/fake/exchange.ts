/** One HTTP exchange in memory: what the server answers is at hand, and the client can go away at any moment. */
import type { Exchange } from "../../lib/edge/kubelet/exchange.ts";
import { concat, text } from "../../lib/core/bytes.ts";

export class FakeExchange implements Exchange {
  readonly readable: ReadableStream<Uint8Array>;
  readonly writable: WritableStream<Uint8Array>;
  readonly head = Promise.withResolvers<{ status: number; headers: [string, string][] }>();
  /** The client's side: to write the request's body, and to read the answer. */
  readonly client: {
    writer: WritableStreamDefaultWriter<Uint8Array>;
    reader: ReadableStreamDefaultReader<Uint8Array>;
  };
  resetReason: string | undefined;
  readonly #up: TransformStream<Uint8Array, Uint8Array> = new TransformStream();
  readonly #down: TransformStream<Uint8Array, Uint8Array> = new TransformStream();

  constructor(readonly method: string, readonly target: string, readonly headers: [string, string][] = []) {
    this.readable = this.#up.readable;
    this.writable = this.#down.writable;
    this.client = { writer: this.#up.writable.getWriter(), reader: this.#down.readable.getReader() };
    this.client.writer.closed.catch(() => {});
    this.client.reader.closed.catch(() => {});
  }
  sendHead(head: { status: number; headers: [string, string][] }): void {
    this.head.resolve(head);
  }
  reset(reason: string): void {
    this.resetReason ??= reason;
    this.goAway();
  }
  /** The connection breaks. */
  goAway(): void {
    this.client.writer.abort(new Error("gone")).catch(() => {});
    this.client.reader.cancel(new Error("gone")).catch(() => {});
  }
  /** Ends the request and collects the whole answer. */
  async answer(): Promise<{ status: number; headers: Record<string, string>; body: string }> {
    this.client.writer.close().catch(() => {});
    const { status, headers } = await this.head.promise;
    const chunks: Uint8Array[] = [];
    for (;;) {
      const { done, value } = await this.client.reader.read();
      if (done) break;
      chunks.push(value);
    }
    return { status, headers: Object.fromEntries(headers), body: text(concat(chunks)) };
  }
}
