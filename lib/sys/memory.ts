/**
 * Gives back memory that only a start or a burst needed. V8 collects when it needs room, glibc keeps what was freed, and
 * the pages of the program's file that were read once count for ever: on a small machine each of them is somebody's.
 */

/** From this resident size on it is worth the trouble, bytes. */
const trimFromBytes = 56 * 1024 * 1024;
/** And when so much has gathered since the last time, bytes: a trim costs a collection and some page faults. */
const worthBytes = 6 * 1024 * 1024;
/** MADV_PAGEOUT (Linux 5.4): clean pages of a file are dropped, and come back from the page cache when they are used. */
const pageOut = 21;

interface Libc {
  trim(): void;
  pageOut(address: bigint, bytes: bigint): void;
}
let libc: Libc | null | undefined;

function loadLibc(): Libc | null {
  if (libc !== undefined) return libc;
  try {
    const { symbols } = Deno.dlopen("libc.so.6", {
      malloc_trim: { parameters: ["usize"], result: "i32" },
      madvise: { parameters: ["usize", "usize", "i32"], result: "i32" },
    });
    libc = {
      trim: () => void symbols.malloc_trim(0n),
      pageOut: (address, bytes) => void symbols.madvise(address, bytes, pageOut),
    };
  } catch {
    libc = null; // another libc: what V8 does is enough
  }
  return libc;
}

/** Resident size after the last trim, bytes. */
let trimmedBytes = 0;

/** Does nothing while little has gathered since the last time. `gc` is there with `--expose-gc`. */
export function trimMemory(): void {
  if (Deno.memoryUsage().rss < Math.max(trimFromBytes, trimmedBytes + worthBytes)) return;
  (globalThis as { gc?: () => void }).gc?.();
  const system = loadLibc();
  if (!system) return;
  system.trim();
  const program = Deno.execPath();
  for (const line of Deno.readTextFileSync("/proc/self/maps").split("\n")) {
    // Code and constants of the program itself: never written, so always clean.
    const [, start, end] = /^([0-9a-f]+)-([0-9a-f]+) r-[x-]p .*\s(\/.*)$/.exec(line) ?? [];
    if (start === undefined || end === undefined || !line.endsWith(program)) continue;
    const from = BigInt(`0x${start}`);
    system.pageOut(from, BigInt(`0x${end}`) - from);
  }
  trimmedBytes = Deno.memoryUsage().rss;
}
