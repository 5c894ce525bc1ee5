/**
 * Reads one container's log: from the start or the last lines, to the end or on and on until the container ends,
 * across rotation. Like the kubelet's, it begins with the newest file; rotated ones are not gone back to.
 */
import type { Clock } from "../../core/clock.ts";
import { LogFormatter, type LogSelection } from "./log_format.ts";

/** Bytes of a file read at once: a few hundred lines, and what one `write` to the client carries. */
const readBytes = 64 * 1024;
/** Look at the file again, should no notice of a change come. */
const pollMs = 250;
/** The runtime may still be writing what the container said last, or what it said during a rotation. */
const settleMs = 100;

/** An open file; it stays the same file when it is renamed. */
export interface LogFile {
  /** Device and inode. */
  readonly id: string;
  /** Bytes read into `buffer` from `offset`; 0 at the end. */
  read(buffer: Uint8Array, offset: number): Promise<number>;
  /** Its length now. */
  bytes(): Promise<number>;
  close(): void;
}

export interface LogWatch {
  /** Resolves when something has happened since the last call; now and then without a cause. */
  changed(): Promise<void>;
  close(): void;
}

/** The file system as logs need it (lib/sys/kubelet_files.ts). */
export interface LogFiles {
  /** Undefined when there is no such file. */
  open(path: string): Promise<LogFile | undefined>;
  stat(path: string): Promise<{ id: string; bytes: number } | undefined>;
  /** Notices of changes to the file or another of its name; undefined where the system gives none. */
  watch(path: string): LogWatch | undefined;
}

export interface LogRequest extends Omit<LogSelection, "records"> {
  path: string;
  tailLines?: number | undefined;
  follow: boolean;
}

export interface LogContext {
  files: LogFiles;
  clock: Clock;
  /** Whether the container may still write. */
  running: () => boolean;
  /** The reader has gone. */
  signal: AbortSignal;
}

/** The log's bytes; throws when there is no log, or it cannot be read. */
export async function* readLog(request: LogRequest, context: LogContext): AsyncGenerator<Uint8Array> {
  const { files, signal } = context;
  let file = await firstFile(request, context);
  let watch: LogWatch | undefined;
  try {
    const { follow, tailLines } = request;
    let offset = await tailOffset(file, tailLines);
    // A log that grows while its last lines are read ends with them.
    const formatter = new LogFormatter({ ...request, records: follow ? undefined : tailLines });
    const buffer = new Uint8Array(readBytes);
    let settled = false;
    while (!formatter.done && !signal.aborted) {
      const count = await file.read(buffer, offset);
      if (count > 0) {
        offset += count;
        const out = formatter.push(buffer.subarray(0, count));
        if (out.length > 0) yield out;
        continue;
      }
      if (!follow) break;
      if (!watch) {
        watch = files.watch(request.path) ?? silentWatch;
        continue; // what came before the watch
      }
      const newest = await files.stat(request.path);
      if (newest && newest.id !== file.id) {
        if (!settled) {
          settled = true;
          await pause(context, settleMs);
          continue;
        }
        const next = await files.open(request.path);
        if (next) {
          const out = formatter.finish();
          if (out.length > 0) yield out;
          file.close();
          file = next;
          offset = 0;
          settled = false;
        }
        continue;
      }
      if (newest && newest.bytes < offset) offset = 0; // cut off by somebody
      else if (context.running()) await change(watch, context);
      else if (settled) break;
      else {
        settled = true;
        await pause(context, settleMs);
      }
    }
    const out = formatter.finish();
    if (out.length > 0 && !signal.aborted) yield out;
  } finally {
    watch?.close();
    file.close();
  }
}

/** A container that has just been started gets its file in a moment. */
async function firstFile(request: LogRequest, context: LogContext): Promise<LogFile> {
  for (;;) {
    const file = await context.files.open(request.path);
    if (file) return file;
    if (!request.follow || !context.running() || context.signal.aborted) {
      throw new Error(`failed to open log file ${JSON.stringify(request.path)}: it does not exist`);
    }
    await pause(context, pollMs);
  }
}

/** Where the last `lines` lines begin, found from the end backwards. */
export async function tailOffset(file: LogFile, lines: number | undefined): Promise<number> {
  if (lines === undefined) return 0;
  const buffer = new Uint8Array(readBytes);
  let newlines = 0;
  for (let right = await file.bytes(); right > 0;) {
    const left = Math.max(0, right - readBytes);
    const chunk = buffer.subarray(0, right - left);
    for (let filled = 0; filled < chunk.length;) {
      const count = await file.read(chunk.subarray(filled), left + filled);
      if (count === 0) return left + filled; // cut off meanwhile
      filled += count;
    }
    for (let at = chunk.lastIndexOf(0x0a); at >= 0; at = at > 0 ? chunk.lastIndexOf(0x0a, at - 1) : -1) {
      if (newlines++ === lines) return left + at + 1;
    }
    right = left;
  }
  return 0;
}

const silentWatch: LogWatch = { changed: () => new Promise(() => {}), close: () => {} };

async function change(watch: LogWatch, context: LogContext): Promise<void> {
  const over = new AbortController();
  await Promise.race([watch.changed(), pause(context, pollMs, over.signal)]);
  over.abort();
}

/** Ends early, without an error, when the reader goes. */
async function pause({ clock, signal }: LogContext, ms: number, over?: AbortSignal): Promise<void> {
  await clock.sleep(ms, over ? AbortSignal.any([signal, over]) : signal).catch(() => {});
}
