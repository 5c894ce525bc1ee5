/** A clock that stands still until told to go on, and a seeded random source. */
import type { Clock, Random, Timer } from "../../lib/core/clock.ts";

export class FakeClock implements Clock {
  #nowMs: number;
  #monotonicMs = 0;
  #nextId = 0;
  readonly #timers = new Map<number, { at: number; run: () => void }>();

  constructor(startMs = Date.UTC(2026, 0, 1)) {
    this.#nowMs = startMs;
  }
  now(): number {
    return this.#nowMs;
  }
  monotonic(): number {
    return this.#monotonicMs;
  }
  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason);
      const timer = this.timer(ms, () => {
        signal?.removeEventListener("abort", abort);
        resolve();
      });
      const abort = () => {
        timer.cancel();
        reject(signal?.reason);
      };
      signal?.addEventListener("abort", abort, { once: true });
    });
  }
  timer(ms: number, run: () => void): Timer {
    const id = this.#nextId++;
    this.#timers.set(id, { at: this.#monotonicMs + Math.max(0, ms), run });
    return { cancel: () => this.#timers.delete(id) };
  }
  /** Moves the wall clock alone, as NTP or a person does. */
  jump(ms: number): void {
    this.#nowMs += ms;
  }
  /** Lets time pass; runs due timers in order, with promises settled after each. */
  async advance(ms: number): Promise<void> {
    const end = this.#monotonicMs + ms;
    await settle();
    for (;;) {
      let due: [number, { at: number; run: () => void }] | undefined;
      for (const entry of this.#timers) {
        if (entry[1].at <= end && (!due || entry[1].at < due[1].at)) due = entry;
      }
      if (!due) break;
      this.#timers.delete(due[0]);
      this.#nowMs += due[1].at - this.#monotonicMs;
      this.#monotonicMs = due[1].at;
      due[1].run();
      await settle();
    }
    this.#nowMs += end - this.#monotonicMs;
    this.#monotonicMs = end;
  }
  get pendingTimers(): number {
    return this.#timers.size;
  }
}

/** Lets promise callbacks run until they have nothing more to do, as far as that can be told. */
export async function settle(): Promise<void> {
  for (let i = 0; i < 50; i++) await Promise.resolve();
}

/** mulberry32: small, good enough to drive simulations, the same on every machine. */
export class SeededRandom implements Random {
  #state: number;
  constructor(seed: number) {
    this.#state = seed >>> 0;
  }
  float(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  }
  /** Uniform in [0, n). */
  below(n: number): number {
    return Math.floor(this.float() * n);
  }
  bytes(length: number): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(length);
    for (let i = 0; i < length; i++) bytes[i] = this.below(256);
    return bytes;
  }
  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)] as T;
  }
}
