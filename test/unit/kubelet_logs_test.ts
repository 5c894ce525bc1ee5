import { deepStrictEqual, rejects, strictEqual } from "node:assert";
import {
  fixedTime,
  LogFormatter,
  type LogSelection,
  parseRecord,
} from "../../lib/edge/kubelet/log_format.ts";
import { type LogContext, type LogRequest, readLog, tailOffset } from "../../lib/edge/kubelet/log_reader.ts";
import { LogRotation, sortRotated, timeSuffix } from "../../lib/edge/kubelet/log_rotation.ts";
import { systemClock } from "../../lib/sys/clock.ts";
import { kubeletFiles } from "../../lib/sys/kubelet_files.ts";
import { silentLogger } from "../../lib/core/log.ts";
import { concat, text, utf8 } from "../../lib/core/bytes.ts";

const sample = [
  "2026-01-01T10:00:00.1Z stdout F one\n",
  "2026-01-01T10:00:01.123456789Z stderr F two\n",
  "2026-01-01T10:00:02Z stdout P thr\n",
  "2026-01-01T10:00:03+00:00 stdout F ee\n",
  "2026-01-01T10:00:04Z stdout F \n",
];

Deno.test("a record is read as the runtime wrote it", () => {
  const cases: { name: string; line: string; want: [string, string, string] | undefined }[] = [
    { name: "a whole line", line: sample[0]!, want: ["2026-01-01T10:00:00.1Z", "stdout", "one\n"] },
    { name: "a part loses its newline", line: sample[2]!, want: ["2026-01-01T10:00:02Z", "stdout", "thr"] },
    { name: "an empty line", line: sample[4]!, want: ["2026-01-01T10:00:04Z", "stdout", "\n"] },
    {
      name: "more tags",
      line: "2026-01-01T10:00:02Z stdout P:x a b\n",
      want: ["2026-01-01T10:00:02Z", "stdout", "a b"],
    },
    { name: "cut short", line: "2026-01-01T10:00:02Z stdout F", want: undefined },
    { name: "no time", line: "yesterday stdout F a\n", want: undefined },
    { name: "no such stream", line: "2026-01-01T10:00:02Z stdlog F a\n", want: undefined },
    { name: "nothing", line: "\n", want: undefined },
  ];
  for (const { name, line, want } of cases) {
    const record = parseRecord(utf8(line));
    deepStrictEqual(record && [record.time, record.stream, text(record.content)], want, name);
  }
  strictEqual(fixedTime("2026-01-01T10:00:00.1+02:00"), "2026-01-01T10:00:00.100000000+02:00");
  strictEqual(fixedTime("2026-01-01T10:00:00Z"), "2026-01-01T10:00:00.000000000Z");
});

Deno.test("the formatter selects, whole or byte by byte", () => {
  const all: LogSelection = { timestamps: false, stream: "all" };
  const cases: { name: string; selection: LogSelection; want: string }[] = [
    { name: "everything", selection: all, want: "one\ntwo\nthree\n\n" },
    { name: "stdout", selection: { ...all, stream: "stdout" }, want: "one\nthree\n\n" },
    { name: "stderr", selection: { ...all, stream: "stderr" }, want: "two\n" },
    { name: "since", selection: { ...all, sinceMs: Date.UTC(2026, 0, 1, 10, 0, 2) }, want: "three\n\n" },
    { name: "a limit of bytes", selection: { ...all, limitBytes: 6 }, want: "one\ntw" },
    { name: "a limit of records", selection: { ...all, records: 2 }, want: "one\ntwo\n" },
    {
      name: "times, one for a line in parts",
      selection: { ...all, timestamps: true },
      want: "2026-01-01T10:00:00.100000000Z one\n2026-01-01T10:00:01.123456789Z two\n" +
        "2026-01-01T10:00:02.000000000Z three\n2026-01-01T10:00:04.000000000Z \n",
    },
    {
      name: "a limit that falls into a time",
      selection: { ...all, timestamps: true, limitBytes: 4 },
      want: "2026",
    },
  ];
  const bytes = utf8(sample.slice(0, 2).join("") + "garbage\n" + sample.slice(2).join(""));
  for (const { name, selection, want } of cases) {
    const whole = new LogFormatter(selection);
    strictEqual(text(whole.push(bytes)), want, name);
    const slow = new LogFormatter(selection);
    let out = "";
    for (let i = 0; i < bytes.length && !slow.done; i++) out += text(slow.push(bytes.subarray(i, i + 1)));
    strictEqual(out + text(slow.finish()), want, `${name}, byte by byte`);
  }
});

Deno.test("the last lines are found from the end", async () => {
  await using temporary = await directory();
  const cases = [
    { content: "", lines: 3, want: 0 },
    { content: "a\nb\nc\n", lines: 0, want: 6 },
    { content: "a\nb\nc\n", lines: 1, want: 4 },
    { content: "a\nb\nc\n", lines: 3, want: 0 },
    { content: "a\nb\nc\n", lines: 9, want: 0 },
    { content: "\n\n\n", lines: 2, want: 1 },
    { content: "a\nb", lines: 1, want: 0 },
    { content: `${"x".repeat(200_000)}\n${"y".repeat(200_000)}\nz\n`, lines: 2, want: 200_001 },
    { content: `${"x".repeat(65_535)}\nz\n`, lines: 1, want: 65_536 },
    { content: `${"x".repeat(65_533)}\nz\n`, lines: 1, want: 65_534 },
  ];
  for (const { content, lines, want } of cases) {
    const path = `${temporary.path}/log`;
    await Deno.writeTextFile(path, content);
    const file = (await kubeletFiles.open(path))!;
    strictEqual(await tailOffset(file, lines), want, `${lines} of ${JSON.stringify(content.slice(0, 20))}`);
    file.close();
  }
});

Deno.test("a log is read: whole, tail, half a line, nothing there", async () => {
  await using temporary = await directory();
  const path = `${temporary.path}/0.log`;
  await rejects(() => collect({ path }), /does not exist/);
  await Deno.writeTextFile(path, sample.join(""));
  strictEqual(await collect({ path }), "one\ntwo\nthree\n\n");
  strictEqual(await collect({ path, tailLines: 2 }), "ee\n\n");
  strictEqual(await collect({ path, tailLines: 0 }), "");
  strictEqual(await collect({ path, follow: true }), "one\ntwo\nthree\n\n", "the container has ended");
  await Deno.writeTextFile(path, line("half").trimEnd(), { append: true });
  strictEqual(await collect({ path, tailLines: 0 }), "", "an unfinished line is none of the last");
  strictEqual(await collect({ path }), "one\ntwo\nthree\n\nhalf");
});

Deno.test("a big log comes in chunks, and the tail of it without the rest", async () => {
  await using temporary = await directory();
  const path = `${temporary.path}/0.log`;
  const records: string[] = [];
  for (let i = 0; i < 50_000; i++) records.push(line(`line ${i}`));
  await Deno.writeTextFile(path, records.join(""));
  const chunks: Uint8Array[] = [];
  for await (const chunk of readLog(request({ path }), context())) chunks.push(chunk);
  const lines = text(concat(chunks)).trimEnd().split("\n");
  strictEqual(lines.length, 50_000);
  strictEqual(lines[49_999], "line 49999");
  strictEqual(chunks.every((chunk) => chunk.length <= 65_536), true);
  strictEqual(await collect({ path, tailLines: 1 }), "line 49999\n");
});

for (const notices of [true, false]) {
  Deno.test(`following goes on until the container ends, across rotation (${notices ? "watch" : "poll"})`, async () => {
    await using temporary = await directory();
    const path = `${temporary.path}/0.log`;
    await Deno.writeTextFile(path, line("old") + line("first"));
    let running = true;
    const files = notices ? kubeletFiles : { ...kubeletFiles, watch: () => undefined };
    const log = readLog(request({ path, follow: true, tailLines: 1 }), {
      ...context(),
      files,
      running: () => running,
    });
    const next = async () => text((await log.next()).value ?? new Uint8Array());
    strictEqual(await next(), "first\n");
    let pending = next();
    await systemClock.sleep(50);
    await append(path, line("second"));
    strictEqual(await pending, "second\n");
    // The runtime goes on with the old file until it is told to open the new one, and a little longer.
    pending = next();
    await systemClock.sleep(20);
    const old = await Deno.open(path, { append: true });
    await Deno.rename(path, `${path}.20260101-000000`);
    await old.write(utf8(line("third")));
    strictEqual(await pending, "third\n");
    pending = next();
    await Deno.writeTextFile(path, line("fifth"));
    await old.write(utf8(line("fourth")));
    old.close();
    strictEqual(await pending, "fourth\n");
    strictEqual(await next(), "fifth\n");
    pending = next();
    running = false;
    await append(path, line("last"));
    strictEqual(await pending, "last\n");
    deepStrictEqual(await log.next(), { done: true, value: undefined });
  });
}

Deno.test("following waits for the file of a container that has just been started, and ends with its reader", async () => {
  await using temporary = await directory();
  const path = `${temporary.path}/0.log`;
  const reader = new AbortController();
  const log = readLog(request({ path, follow: true }), {
    ...context(),
    running: () => true,
    signal: reader.signal,
  });
  const first = log.next();
  await systemClock.sleep(50);
  await Deno.writeTextFile(path, line("hello"));
  strictEqual(text((await first).value!), "hello\n");
  const second = log.next();
  reader.abort();
  strictEqual((await second).done, true);
});

Deno.test("rotation: renames, reopens, packs, keeps five files", async () => {
  await using temporary = await directory();
  const path = `${temporary.path}/0.log`;
  const reopened: string[] = [];
  let nowMs = Date.UTC(2026, 0, 1), refuse = false;
  const rotation = new LogRotation({
    files: kubeletFiles,
    clock: { ...systemClock, now: () => nowMs },
    log: silentLogger,
    running:
      () => [{ id: "gone", logPath: `${temporary.path}/no/directory.log` }, { id: "c1", logPath: path }],
    reopenLog: async (id) => {
      if (id === "gone" || refuse) throw new Error("not now");
      reopened.push(id);
      await Deno.writeTextFile(path, "");
    },
  }, { fileBytesMax: 100 });
  await Deno.writeTextFile(path, "x".repeat(99));
  await rotation.rotate();
  deepStrictEqual(await names(temporary.path), ["0.log"], "small enough");
  for (let round = 0; round < 7; round++) {
    await Deno.writeTextFile(path, `${round}`.repeat(100));
    await rotation.rotate();
    nowMs += 10_000;
  }
  strictEqual(reopened.length, 7);
  deepStrictEqual(await names(temporary.path), [
    "0.log",
    "0.log.20260101-000030.gz",
    "0.log.20260101-000040.gz",
    "0.log.20260101-000050.gz",
    "0.log.20260101-000100",
  ]);
  const packed = (await Deno.open(`${temporary.path}/0.log.20260101-000030.gz`)).readable;
  strictEqual(
    await new Response(packed.pipeThrough(new DecompressionStream("gzip"))).text(),
    "3".repeat(100),
  );
  refuse = true;
  await Deno.writeTextFile(path, "8".repeat(100));
  await rotation.rotate();
  strictEqual(
    await Deno.readTextFile(path),
    "8".repeat(100),
    "the runtime did not open a new file: the old one is put back",
  );
});

Deno.test("what an interrupted rotation left is taken away", () => {
  deepStrictEqual(sortRotated(["l.1.gz", "l.2", "l.2.gz", "l.3", "l.4.tmp"], 3), {
    kept: ["l.1.gz", "l.2.gz", "l.3"],
    superfluous: ["l.2", "l.4.tmp"],
  });
  deepStrictEqual(sortRotated(["l.1.gz", "l.2"], 0), { kept: [], superfluous: ["l.1.gz", "l.2"] });
  strictEqual(timeSuffix(Date.UTC(2026, 10, 1, 10, 2, 3)), "20261101-100203");
});

function line(content: string): string {
  return `${new Date().toISOString()} stdout F ${content}\n`;
}
function request(options: Partial<LogRequest> & { path: string }): LogRequest {
  return { timestamps: false, stream: "all", follow: false, ...options };
}
function context(): LogContext {
  return {
    files: kubeletFiles,
    clock: systemClock,
    running: () => false,
    signal: new AbortController().signal,
  };
}
async function collect(options: Partial<LogRequest> & { path: string }): Promise<string> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of readLog(request(options), context())) chunks.push(chunk);
  return text(concat(chunks));
}
async function append(path: string, content: string): Promise<void> {
  await Deno.writeTextFile(path, content, { append: true });
}
async function names(path: string): Promise<string[]> {
  return (await kubeletFiles.list(path)).sort();
}
async function directory(): Promise<{ path: string } & AsyncDisposable> {
  const path = await Deno.makeTempDir();
  return { path, [Symbol.asyncDispose]: () => Deno.remove(path, { recursive: true }) };
}
