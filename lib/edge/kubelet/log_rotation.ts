/**
 * Keeps container logs small: `0.log` grows to 10 MiB, becomes `0.log.20261101-100000`, the runtime opens a new
 * `0.log`; the round after, the rotated file is packed to `.gz`, so that readers can finish it meanwhile. As the
 * kubelet's container_log_manager.go does, so that log collectors find what they know.
 */
import { errorText } from "../../core/errors.ts";
import type { Clock } from "../../core/clock.ts";
import type { Logger } from "../../core/log.ts";

const intervalMs = 10_000;
/** containerLogMaxSize of the kubelet. */
const fileBytesMax = 10 * 1024 * 1024;
/** containerLogMaxFiles of the kubelet, the one being written included. */
const filesMax = 5;

export interface RotationFiles {
  stat(path: string): Promise<{ bytes: number } | undefined>;
  /** Names of the files in a directory; empty when there is none. */
  list(directory: string): Promise<string[]>;
  rename(from: string, to: string): Promise<void>;
  /** A file that is not there is removed already. */
  remove(path: string): Promise<void>;
  /** gzip of `from`, to a new file `to`. */
  compress(from: string, to: string): Promise<void>;
}

export interface RotationPorts {
  files: RotationFiles;
  clock: Clock;
  log: Logger;
  /** The running containers and the files they write to now. */
  running: () => Iterable<{ id: string; logPath: string }>;
  reopenLog(id: string): Promise<void>;
}

export interface RotationLimits {
  fileBytesMax?: number;
  filesMax?: number;
}

export class LogRotation {
  readonly #ports: RotationPorts;
  readonly #fileBytesMax: number;
  readonly #filesMax: number;

  constructor(ports: RotationPorts, limits: RotationLimits = {}) {
    this.#ports = ports;
    this.#fileBytesMax = limits.fileBytesMax ?? fileBytesMax;
    this.#filesMax = limits.filesMax ?? filesMax;
  }

  /** Looks every 10 s until aborted. */
  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      await this.rotate();
      await this.#ports.clock.sleep(intervalMs, signal).catch(() => {});
    }
  }

  /** One round. A log that cannot be rotated does not hold up the others; it is tried again in the next round. */
  async rotate(): Promise<void> {
    const { files, log, reopenLog } = this.#ports;
    for (const { id, logPath } of [...this.#ports.running()]) {
      try {
        const file = await files.stat(logPath);
        // Somebody took the file away: the runtime writes to nowhere until it opens it again.
        if (!file) await reopenLog(id);
        else if (file.bytes >= this.#fileBytesMax) await this.#rotateOne(id, logPath);
      } catch (error) {
        log.warn("Cannot rotate container log", { path: logPath, error: errorText(error) });
      }
    }
  }

  async #rotateOne(id: string, path: string): Promise<void> {
    const { files, clock, log, reopenLog } = this.#ports;
    const slash = path.lastIndexOf("/");
    const directory = path.slice(0, slash), prefix = `${path.slice(slash + 1)}.`;
    const names = (await files.list(directory)).filter((name) => name.startsWith(prefix)).sort();
    const { kept, superfluous } = sortRotated(names, this.#filesMax - 2);
    for (const name of superfluous) await files.remove(`${directory}/${name}`);
    for (const name of kept.filter((name) => !name.endsWith(".gz"))) {
      const plain = `${directory}/${name}`;
      await files.compress(plain, `${plain}.tmp`);
      await files.rename(`${plain}.tmp`, `${plain}.gz`);
      await files.remove(plain);
    }
    const rotated = `${path}.${timeSuffix(clock.now())}`;
    await files.rename(path, rotated);
    try {
      await reopenLog(id);
    } catch (error) {
      await files.rename(rotated, path); // the runtime still writes to it
      throw error;
    }
    log.debug("Rotated container log", { path: rotated });
  }
}

/**
 * Of the rotated files of one log, oldest first, the newest `count` are kept. What an interrupted packing left (`.tmp`,
 * or a plain file beside its `.gz`) is superfluous.
 */
export function sortRotated(names: string[], count: number): { kept: string[]; superfluous: string[] } {
  const whole = names.filter((name) => !name.endsWith(".tmp") && !names.includes(`${name}.gz`));
  const kept = whole.slice(Math.max(0, whole.length - Math.max(0, count)));
  return { kept, superfluous: names.filter((name) => !kept.includes(name)) };
}

/** `20261101-100000`, UTC. */
export function timeSuffix(ms: number): string {
  return new Date(ms).toISOString().slice(0, 19).replaceAll(/[-:]/g, "").replace("T", "-");
}
