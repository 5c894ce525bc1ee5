/** The store's SQLite file as a port, over its Worker. */
import { UserError } from "../core/errors.ts";
import type { StoreContents, StorePort } from "../edge/store/port.ts";
import type { StoreAnswer, StoreRequest } from "./store_worker.ts";
import { workerUrl } from "./worker_url.ts";

type Ask = StoreRequest extends infer R ? R extends { id: number } ? Omit<R, "id"> : never : never;
type Ok = { damaged?: string; bytes?: number; contents?: StoreContents };

/** Opens (or makes) the file. A damaged one is put aside. Throws UserError when it cannot be opened. */
export async function openStore(path: string): Promise<StorePort> {
  const worker = new Worker(workerUrl("store_worker"), { type: "module", name: "store" });
  const waiting = new Map<number, { resolve: (ok: Ok) => void; reject: (error: Error) => void }>();
  let next = 1, bytes = 0;
  worker.onmessage = ({ data }: MessageEvent<StoreAnswer>) => {
    const request = waiting.get(data.id);
    waiting.delete(data.id);
    if ("error" in data) return request?.reject(new Error(data.error));
    bytes = data.ok.bytes ?? bytes;
    request?.resolve(data.ok);
  };
  worker.onerror = (event) => {
    event.preventDefault();
    for (const request of waiting.values()) {
      request.reject(new Error(`the store's worker failed: ${event.message}`));
    }
    waiting.clear();
  };
  const ask = (request: Ask): Promise<Ok> =>
    new Promise((resolve, reject) => {
      const id = next++;
      waiting.set(id, { resolve, reject });
      worker.postMessage({ id, ...request });
    });
  let opened: Ok;
  try {
    opened = await ask({ open: path });
  } catch (error) {
    worker.terminate();
    throw new UserError(
      `Cannot open the store ${path}: ${error instanceof Error ? error.message : String(error)}`,
    );
  }
  return {
    damaged: opened.damaged,
    bytes: () => bytes,
    load: async () => (await ask({ load: true })).contents ?? { meta: {}, objects: [], reports: [] },
    commit: async (writes) => void await ask({ commit: writes }),
    close: async () => {
      await ask({ close: true }).catch(() => {});
      worker.terminate();
    },
  };
}
