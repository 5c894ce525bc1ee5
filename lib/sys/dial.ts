/** A TCP connection as two streams, each with backpressure and an end of its own. */
import type { Connection } from "../edge/kubelet/tunnel.ts";

const readBytes = 32 * 1024;

export async function dial(hostname: string, port: number): Promise<Connection> {
  const socket = await Deno.connect({ hostname, port });
  socket.setNoDelay(true);
  let closed = false;
  const close = () => {
    if (closed) return;
    closed = true;
    socket.close();
  };
  const buffer = new Uint8Array(readBytes);
  return {
    readable: new ReadableStream<Uint8Array>({
      async pull(controller) {
        let count: number | null;
        try {
          count = await socket.read(buffer);
        } catch (error) {
          if (!closed) throw error;
          count = null; // closed by this side
        }
        if (count === null) controller.close();
        else controller.enqueue(buffer.slice(0, count));
      },
      cancel: close,
    }, { highWaterMark: 0 }),
    writable: new WritableStream<Uint8Array>({
      async write(chunk) {
        for (let sent = 0; sent < chunk.length;) sent += await socket.write(chunk.subarray(sent));
      },
      close: () => socket.closeWrite(),
      abort: close,
    }),
    close,
  };
}
