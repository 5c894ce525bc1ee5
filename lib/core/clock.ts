/** Time and randomness as arguments: the only way that code outside lib/sys learns either. */

/** A started timer; cancelling twice is harmless. */
export interface Timer {
  cancel(): void;
}

/** Wall and monotonic time. `lib/sys/clock.ts` is the real one, `test/fake/clock.ts` the simulated one. */
export interface Clock {
  /** Wall time, milliseconds since 1970; may jump. */
  now(): number;
  /** Milliseconds since an arbitrary start; never goes back. Measure durations with this one. */
  monotonic(): number;
  /** Resolves after `ms`; rejects with the signal's reason when aborted first. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
  /** Calls `run` once after `ms` unless cancelled. */
  timer(ms: number, run: () => void): Timer;
}

/** A source of randomness: cryptographic in lib/sys, seeded in simulations. */
export interface Random {
  bytes(length: number): Uint8Array<ArrayBuffer>;
  /** Uniform in [0, 1). */
  float(): number;
}
