/** Container logs on disk: reading, notices of change, rotation. */
import { createReadStream, createWriteStream } from "node:fs";
import { pipeline } from "node:stream/promises";
import { createGzip } from "node:zlib";
import type { LogFile, LogFiles, LogWatch } from "../edge/kubelet/log_reader.ts";
import type { RotationFiles } from "../edge/kubelet/log_rotation.ts";

export const kubeletFiles: LogFiles & RotationFiles = {
  async open(path) {
    try {
      return logFile(await Deno.open(path, { read: true }));
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return undefined;
      throw error;
    }
  },
  async stat(path) {
    try {
      const info = await Deno.stat(path);
      return { id: identity(info), bytes: info.size };
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return undefined;
      throw error;
    }
  },
  watch(path) {
    try {
      return fileWatch(path);
    } catch {
      return undefined; // no inotify instances left: the reader polls
    }
  },
  async list(directory) {
    const names: string[] = [];
    try {
      for await (const entry of Deno.readDir(directory)) if (entry.isFile) names.push(entry.name);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
    return names;
  },
  rename: (from, to) => Deno.rename(from, to),
  async remove(path) {
    try {
      await Deno.remove(path);
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  },
  async compress(from, to) {
    const mode = (await Deno.stat(from)).mode ?? 0o640;
    await pipeline(createReadStream(from), createGzip(), createWriteStream(to, { mode: mode & 0o777 }));
  },
};

function identity(info: Deno.FileInfo): string {
  return `${info.dev}:${info.ino}`;
}

async function logFile(file: Deno.FsFile): Promise<LogFile> {
  try {
    return {
      id: identity(await file.stat()),
      async read(buffer, offset) {
        await file.seek(offset, Deno.SeekMode.Start);
        return await file.read(buffer) ?? 0;
      },
      bytes: async () => (await file.stat()).size,
      close: () => file.close(),
    };
  } catch (error) {
    file.close();
    throw error;
  }
}

/** Watches the directory: a file's own watch would follow it when it is renamed. */
function fileWatch(path: string): LogWatch {
  const watcher = Deno.watchFs(path.slice(0, path.lastIndexOf("/")) || "/", { recursive: false });
  let seen = false, ended = false;
  let wake: (() => void) | undefined;
  const notify = () => {
    seen = true;
    wake?.();
    wake = undefined;
  };
  (async () => {
    for await (const event of watcher) if (event.kind !== "access" && event.paths.includes(path)) notify();
  })().catch(() => {}).finally(() => ended = true);
  return {
    // `seen` is taken back at the call, not at the waking: the one who waits may have given up meanwhile.
    async changed() {
      if (!seen) await new Promise<void>((resolve) => wake = resolve);
      else seen = false;
    },
    close: () => {
      if (!ended) watcher.close();
    },
  };
}
