/** Exponential backoff with jitter, as a value: the caller sleeps. */
import type { Random } from "./clock.ts";

export interface BackoffOptions {
  baseMs: number;
  maxMs: number;
  /** Share of each delay that is random, 0 to 1; keeps a fleet from returning in step. Default 0.5. */
  jitter?: number;
}

export class Backoff {
  #attempt = 0;
  constructor(readonly options: BackoffOptions, readonly random: Pick<Random, "float">) {}

  get attempt(): number {
    return this.#attempt;
  }

  /** The next delay in milliseconds. */
  next(): number {
    const { baseMs, maxMs, jitter = 0.5 } = this.options;
    const full = Math.min(maxMs, baseMs * 2 ** Math.min(this.#attempt, 30));
    this.#attempt++;
    return full * (1 - jitter) + full * jitter * this.random.float();
  }

  reset(): void {
    this.#attempt = 0;
  }
}
