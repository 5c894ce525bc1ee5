import assert from "node:assert/strict";
import { abortable } from "../../lib/core/abortable.ts";
import { Backoff } from "../../lib/core/backoff.ts";
import {
  base64,
  base64url,
  concat,
  equal,
  fromBase64,
  fromBase64url,
  fromHex,
  hex,
  text,
  utf8,
} from "../../lib/core/bytes.ts";
import { errorText, ExitCode, UserError } from "../../lib/core/errors.ts";
import { jsonLine, Logger, type LogRecord, textLine } from "../../lib/core/log.ts";
import { Metrics } from "../../lib/core/metrics.ts";
import { KeyedLock, Semaphore, Signal } from "../../lib/core/queue.ts";
import { FakeClock, SeededRandom, settle } from "../fake/clock.ts";

Deno.test("bytes survive each way of writing them", () => {
  const random = new SeededRandom(5);
  for (const length of [0, 1, 2, 3, 63, 64, 65, 0x8000, 0x8001, 100_000]) {
    const bytes = random.bytes(length);
    assert.deepEqual(fromHex(hex(bytes)), bytes);
    assert.deepEqual(fromBase64(base64(bytes)), bytes);
    assert.deepEqual(fromBase64url(base64url(bytes)), bytes);
    assert.doesNotMatch(base64url(bytes.subarray(0, 100)), /[+/=]/);
    const cut = random.below(length + 1);
    assert.deepEqual(concat([bytes.subarray(0, cut), bytes.subarray(cut)]), bytes);
  }
  for (const bad of ["a", "xy", "0 ", "0x01"]) assert.throws(() => fromHex(bad), RangeError, bad);
  assert.throws(() => fromBase64("%"));
  assert.equal(text(utf8("é😀")), "é😀");
  assert.equal(text(new Uint8Array([0xff, 0x41])), "\ufffdA");
});

Deno.test("equal compares all of both", () => {
  assert.ok(equal(utf8("abc"), utf8("abc")));
  for (const [a, b] of [["abc", "abd"], ["abc", "ab"], ["", "a"]] as const) {
    assert.equal(equal(utf8(a), utf8(b)), false);
  }
});

Deno.test("a backoff doubles up to its most, spread by its jitter, and starts anew", () => {
  const full = new Backoff({ baseMs: 100, maxMs: 1000, jitter: 0 }, { float: () => 0.5 });
  assert.deepEqual([1, 2, 3, 4, 5, 6].map(() => full.next()), [100, 200, 400, 800, 1000, 1000]);
  for (let i = 0; i < 2000; i++) assert.equal(full.next(), 1000, "no overflow, however long it lasts");
  full.reset();
  assert.equal(full.next(), 100);
  const spread = new Backoff({ baseMs: 100, maxMs: 100 }, new SeededRandom(1));
  const delays = Array.from({ length: 200 }, () => spread.next());
  assert.ok(Math.min(...delays) >= 50 && Math.max(...delays) <= 100);
  assert.ok(new Set(delays).size > 100);
});

Deno.test("one key's tasks run one after another, others' side by side, and a failure stops nobody", async () => {
  const lock = new KeyedLock(), order: string[] = [];
  const gate = Promise.withResolvers<void>();
  const first = lock.run("a", async () => {
    await gate.promise;
    order.push("a1");
    throw new Error("a1 failed");
  });
  const second = lock.run("a", () => Promise.resolve(order.push("a2")));
  const other = lock.run("b", () => Promise.resolve(order.push("b1")));
  await other;
  assert.deepEqual(order, ["b1"]);
  gate.resolve();
  await assert.rejects(first, /a1 failed/);
  await second;
  assert.deepEqual(order, ["b1", "a1", "a2"]);
  await settle();
  assert.equal(lock.size, 0, "nothing is kept of a key without tasks");
});

Deno.test("a semaphore lets so many in, in order, whatever becomes of them", async () => {
  const semaphore = new Semaphore(2), gates = Array.from({ length: 5 }, () => Promise.withResolvers<void>());
  let inside = 0, most = 0;
  const entered: number[] = [];
  const tasks = gates.map((gate, i) =>
    semaphore.run(async () => {
      most = Math.max(most, ++inside);
      entered.push(i);
      await gate.promise.finally(() => inside--);
    })
  );
  await settle();
  assert.deepEqual(entered, [0, 1]);
  gates[1]?.reject(new Error("x"));
  await assert.rejects(tasks[1]!);
  for (const gate of gates) gate.resolve();
  await Promise.allSettled(tasks);
  assert.deepEqual([entered, most], [[0, 1, 2, 3, 4], 2]);
});

Deno.test("a signal is not lost when nobody waits, and wakes all who do", async () => {
  const signal = new Signal();
  signal.notify();
  signal.notify();
  await signal.wait();
  let woken = 0;
  for (let i = 0; i < 3; i++) void signal.wait().then(() => woken++);
  await settle();
  assert.equal(woken, 0, "two notes before one wait are one");
  signal.notify();
  await settle();
  assert.equal(woken, 3);
  const abort = new AbortController();
  const aborted = signal.wait(abort.signal);
  abort.abort();
  await aborted;
});

Deno.test("the text of an error is one line with its causes, without a stack and without repeating itself", () => {
  const cause = new Error("connection\n  refused");
  assert.equal(errorText(new Error("Cannot join", { cause })), "Cannot join: connection refused");
  assert.equal(
    errorText(new Error("Cannot join: connection\n  refused", { cause })),
    "Cannot join: connection refused",
  );
  assert.equal(errorText(new TypeError("")), "TypeError");
  assert.equal(errorText("plain"), "plain");
  assert.equal(errorText(undefined), "");
  const loop = new Error("a");
  loop.cause = loop;
  assert.equal(errorText(loop), "a");
  assert.equal(new UserError("x").exitCode, ExitCode.failure);
});

Deno.test("log lines: fields of the context, levels, quoting, JSON", () => {
  const records: LogRecord[] = [];
  const log = new Logger({
    sink: (record) => records.push(record),
    now: () => 0,
    level: "info",
    fields: { node: "n1" },
  });
  log.debug("Not seen");
  log.with({ pod: "ns/p" }).warn("It failed", { error: 'say "no"\nnow', ms: 5, reason: undefined });
  assert.equal(records.length, 1);
  assert.equal(
    textLine(records[0]!),
    '1970-01-01T00:00:00.000Z WARN  It failed node=n1 pod=ns/p error="say \\"no\\"\\nnow" ms=5',
  );
  assert.deepEqual(JSON.parse(jsonLine(records[0]!)), {
    time: "1970-01-01T00:00:00.000Z",
    level: "warn",
    message: "It failed",
    node: "n1",
    pod: "ns/p",
    error: 'say "no"\nnow',
    ms: 5,
  });
});

Deno.test("metrics in the text format of Prometheus", () => {
  const metrics = new Metrics();
  metrics.counter("c_total", "Things.").inc({ sort: 'a"\\\n' }, 2);
  metrics.counter("c_total", "Things.").inc({ sort: 'a"\\\n' });
  metrics.counter("none_total", "Nothing yet.");
  metrics.gauge("g", "Now.").from(() => 7);
  const histogram = metrics.histogram("h_seconds", "Time.", [0.1, 1]);
  for (const value of [0.05, 0.1, 0.5, 5]) histogram.observe(value);
  assert.deepEqual(metrics.text().split("\n"), [
    "# HELP c_total Things.",
    "# TYPE c_total counter",
    'c_total{sort="a\\"\\\\\\n"} 3',
    "# HELP none_total Nothing yet.",
    "# TYPE none_total counter",
    "none_total 0",
    "# HELP g Now.",
    "# TYPE g gauge",
    "g 7",
    "# HELP h_seconds Time.",
    "# TYPE h_seconds histogram",
    'h_seconds_bucket{le="0.1"} 2',
    'h_seconds_bucket{le="1"} 3',
    'h_seconds_bucket{le="+Inf"} 4',
    "h_seconds_sum 5.65",
    "h_seconds_count 4",
    "",
  ]);
});

Deno.test("abortable ends with its stream, or when told to, and lets the stream go", async () => {
  let cancelled = 0;
  const stream = (chunks: number) =>
    new ReadableStream<Uint8Array>({
      start(controller) {
        for (let i = 0; i < chunks; i++) controller.enqueue(new Uint8Array([i]));
        if (chunks < 3) controller.close();
      },
      cancel: () => void cancelled++,
    });
  const read = async (chunks: number, signal?: AbortSignal, each = () => {}) => {
    const got: number[] = [];
    for await (const chunk of abortable(stream(chunks), signal)) {
      got.push(chunk[0] ?? -1);
      each();
    }
    return got;
  };
  assert.deepEqual(await read(2), [0, 1]);
  const abort = new AbortController();
  const ended = read(3, abort.signal); // this stream has no end of its own
  await settle();
  abort.abort(new Error("enough"));
  assert.deepEqual(await ended, [0, 1, 2]);
  assert.deepEqual(await read(3, abort.signal), [], "aborted before it began");
  assert.equal(cancelled, 2);
});

Deno.test("the fake clock: order, cancelling, wall time that jumps", async () => {
  const clock = new FakeClock(1000), seen: string[] = [];
  clock.timer(20, () => seen.push("b"));
  clock.timer(10, () => seen.push("a"));
  clock.timer(15, () => seen.push("never")).cancel();
  await clock.advance(15);
  assert.deepEqual([seen, clock.now(), clock.monotonic()], [["a"], 1015, 15]);
  clock.jump(-500);
  await clock.advance(5);
  assert.deepEqual([seen, clock.now(), clock.monotonic(), clock.pendingTimers], [["a", "b"], 520, 20, 0]);
  const abort = new AbortController();
  const slept = assert.rejects(clock.sleep(10, abort.signal), /stop/);
  abort.abort(new Error("stop"));
  await slept;
});
