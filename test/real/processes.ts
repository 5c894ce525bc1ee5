/**
 * Programs that a test starts: each with its log and its recorded pid, ended by pid in reverse order, also when the test
 * run is broken off.
 */

export interface Program {
  readonly pid: number;
  readonly log: string;
  running(): boolean;
  /** Waits for its end; the signal goes to it alone. */
  stop(signal?: Deno.Signal, patienceMs?: number): Promise<void>;
}

const undos: (() => Promise<void> | void)[] = [];
let broken = false;

/** Runs at the end, last added first; also on SIGINT and SIGTERM. */
export function atEnd(undo: () => Promise<void> | void): void {
  if (undos.length === 0 && !broken) {
    for (const signal of ["SIGINT", "SIGTERM"] as const) {
      Deno.addSignalListener(signal, async () => {
        if (broken) return;
        broken = true;
        await cleanUp();
        Deno.exit(130);
      });
    }
  }
  undos.push(undo);
}

export async function cleanUp(): Promise<void> {
  for (let undo; (undo = undos.pop());) {
    try {
      await undo();
    } catch (error) {
      console.error(`clean up: ${error}`);
    }
  }
}

/** Starts a program with standard output and error in `log`, appended; its pid stands in `log` + ".pid". */
export function start(command: string[], options: { log: string; env?: Record<string, string> }): Program {
  const [program = "", ...args] = command;
  const file = Deno.openSync(options.log, { append: true, create: true });
  const child = new Deno.Command(program, {
    args,
    env: options.env ?? {},
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  Deno.writeTextFileSync(`${options.log}.pid`, `${child.pid} ${startTime(child.pid)}`);
  let alive = true;
  let left = 2;
  for (const stream of [child.stdout, child.stderr]) {
    (async () => {
      for await (const chunk of stream) file.writeSync(chunk);
    })().catch(() => {}).finally(() => --left === 0 && file.close());
  }
  const ended = child.status.finally(() => alive = false);
  const stop = async (signal: Deno.Signal = "SIGTERM", patienceMs = 10_000) => {
    if (!alive) return;
    child.kill(signal);
    const timer = setTimeout(() => alive && child.kill("SIGKILL"), patienceMs);
    await ended;
    clearTimeout(timer);
  };
  atEnd(() => stop());
  return { pid: child.pid, log: options.log, running: () => alive, stop };
}

/** Ends what `start` recorded below `dir` and nobody ended: its owner was killed. */
export function killRecorded(dir: string): void {
  for (const { name } of entries(dir)) {
    if (!name.endsWith(".pid")) continue;
    const [pid = "", since] = Deno.readTextFileSync(`${dir}/${name}`).split(" ");
    if (since && startTime(Number(pid)) === since) Deno.kill(Number(pid), "SIGKILL");
  }
}

/** Field 22 of /proc/PID/stat tells a process from a later one of the same number; empty when there is none. */
function startTime(pid: number): string {
  try {
    return Deno.readTextFileSync(`/proc/${pid}/stat`).replace(/^.*\) /, "").split(" ")[19] ?? "";
  } catch {
    return "";
  }
}

/** The entries of a directory, none where it is missing. */
export function entries(dir: string): Deno.DirEntry[] {
  try {
    return [...Deno.readDirSync(dir)];
  } catch {
    return [];
  }
}

export interface Output {
  code: number;
  stdout: string;
  stderr: string;
}

/** Runs a program to its end. */
export async function run(
  command: string[],
  options: { env?: Record<string, string>; stdin?: Uint8Array; timeoutMs?: number } = {},
): Promise<Output> {
  const [program = "", ...args] = command;
  const child = new Deno.Command(program, {
    args,
    env: options.env ?? {},
    stdin: options.stdin ? "piped" : "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const timer = setTimeout(() => child.kill("SIGKILL"), options.timeoutMs ?? 120_000);
  if (options.stdin) {
    const writer = child.stdin.getWriter();
    await writer.write(options.stdin).then(() => writer.close()).catch(() => {});
  }
  const { code, stdout, stderr } = await child.output();
  clearTimeout(timer);
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, stdout: text(stdout), stderr: text(stderr) };
}

/** Throws with everything that it said when it fails. A string is split at spaces, and no shell sees it. */
export async function must(
  command: string | string[],
  options: Parameters<typeof run>[1] = {},
): Promise<string> {
  const words = typeof command === "string" ? command.split(" ") : command;
  const { code, stdout, stderr } = await run(words, options);
  if (code !== 0) {
    throw new Error(
      `${words.join(" ").slice(0, 200)} ended with ${code}: ${stderr.trim() || stdout.trim()}`,
    );
  }
  return stdout;
}

export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Asks again until it is true (or returns a value); throws with the last error after `timeoutMs`. */
export async function until<T>(
  what: string,
  timeoutMs: number,
  ask: () => Promise<T | false | undefined> | T | false | undefined,
): Promise<T> {
  const endMs = performance.now() + timeoutMs;
  let last = "";
  for (;;) {
    try {
      const value = await ask();
      if (value !== false && value !== undefined) return value;
      last = "";
    } catch (error) {
      last = error instanceof Error ? error.message : String(error);
    }
    if (performance.now() > endMs) {
      throw new Error(`not within ${timeoutMs} ms: ${what}${last ? ` (${last})` : ""}`);
    }
    await sleep(100);
  }
}
