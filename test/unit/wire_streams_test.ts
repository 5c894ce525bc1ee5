import assert from "node:assert/strict";
import { concat, text, utf8 } from "../../lib/core/bytes.ts";
import { sessionWindowBytes, streamsMax, streamWindowBytes } from "../../lib/core/limits.ts";
import { decodeFrame, encodeFrame, type Frame } from "../../lib/wire/frame.ts";
import type { StreamOpen } from "../../lib/wire/messages.ts";
import { StreamReset, Streams, type WireStream } from "../../lib/wire/streams.ts";
import { SeededRandom } from "../fake/clock.ts";

const get: StreamOpen = { method: "GET", target: "/containerLogs/a/b/c", headers: [] };

/** A hub and an edge joined by two queues; `held` counts stream bytes in the pipe. */
function pair() {
  const opened: { stream: WireStream; open: StreamOpen }[] = [];
  const faults: string[] = [];
  const counts = { toEdge: 0, toHub: 0 };
  const post = (message: Uint8Array, deliver: (frame: Frame) => void) => {
    const decoded = decodeFrame(message);
    assert.equal(decoded.state, "ok");
    if (decoded.state !== "ok") return;
    const frame = { ...decoded.frame, body: decoded.frame.body.slice() };
    queueMicrotask(() => deliver(frame));
  };
  const check = (result: { state: string; reason?: string }) => {
    if (result.state === "bad") faults.push(result.reason ?? "");
  };
  const hub: Streams = new Streams({
    transmit: (message) => {
      if (message[0] === 66) counts.toEdge += message.length - 8;
      post(message, (frame) => check(edge.frame(frame)));
    },
  });
  const edge: Streams = new Streams({
    transmit: (message) => {
      if (message[0] === 66) counts.toHub += message.length - 8;
      post(message, (frame) => check(hub.frame(frame)));
    },
    opened: (stream, open) => opened.push({ stream, open }),
  });
  return { hub, edge, opened, faults, counts };
}

const turn = () => new Promise((resolve) => setTimeout(resolve, 0));

async function readAll(stream: ReadableStream<Uint8Array>): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  for await (const part of stream) parts.push(part);
  return concat(parts);
}

Deno.test("wire streams: heads and 3 MB each way arrive whole, and the stream is forgotten", async () => {
  const { hub, edge, opened, faults } = pair();
  const random = new SeededRandom(3);
  const up = random.bytes(3_000_001), down = random.bytes(3_000_000);
  const atHub = hub.open({ method: "POST", target: "/exec/x", headers: [["upgrade", "SPDY/3.1"]] });
  assert.ok(atHub);
  await turn();
  const atEdge = opened[0]?.stream;
  assert.ok(atEdge);
  assert.deepEqual(opened[0]?.open.headers, [["upgrade", "SPDY/3.1"]]);
  atEdge.sendHead({ status: 101, headers: [] });
  assert.equal((await atHub.head).status, 101);
  const write = async (stream: WireStream, bytes: Uint8Array) => {
    const writer = stream.writable.getWriter();
    for (let at = 0; at < bytes.length; at += 70_001) await writer.write(bytes.subarray(at, at + 70_001));
    await writer.close();
  };
  const [gotUp, gotDown] = await Promise.all([
    readAll(atEdge.readable),
    readAll(atHub.readable),
    write(atHub, up),
    write(atEdge, down),
  ]);
  assert.deepEqual(gotUp, up);
  assert.deepEqual(gotDown, down);
  await turn();
  assert.deepEqual([hub.size, edge.size, faults], [0, 0, []]);
});

Deno.test("wire streams: a reader that stalls holds at most its window, and other streams go on", async () => {
  const { hub, opened, counts, faults } = pair();
  const stalled = hub.open(get), lively = hub.open(get);
  assert.ok(stalled && lively);
  await turn();
  const writer = opened[0]?.stream.writable.getWriter();
  let written = 0;
  (async () => {
    for (;;) {
      await writer?.write(new Uint8Array(10_000));
      written += 10_000;
    }
  })().catch(() => {});
  for (let i = 0; i < 50; i++) await turn();
  assert.ok(
    written <= streamWindowBytes && counts.toHub <= streamWindowBytes,
    `${counts.toHub} bytes were sent`,
  );
  assert.ok(counts.toHub > streamWindowBytes - 40_000);
  const other = opened[1]?.stream.writable.getWriter();
  const reading = readAll(lively.readable);
  for (let i = 0; i < 100; i++) await other?.write(new Uint8Array(10_000));
  await other?.close();
  assert.equal((await reading).length, 1_000_000);
  stalled.reset("enough");
  assert.deepEqual(faults, []);
});

Deno.test("wire streams: all streams together leave at most the session's window in the pipe", async () => {
  let sentBytes = 0;
  const direct = new Streams({
    transmit: (message) => (sentBytes += message[0] === 66 ? message.length - 8 : 0),
  });
  for (let i = 0; i < 10; i++) {
    direct.open(get)?.writable.getWriter().write(new Uint8Array(streamWindowBytes)).catch(() => {});
  }
  await turn();
  assert.equal(sentBytes, sessionWindowBytes);
});

Deno.test("wire streams: resets, ends and the session's end are told to readers, writers and heads", async () => {
  const { hub, opened, edge } = pair();
  const one = hub.open(get), two = hub.open(get);
  assert.ok(one && two);
  await turn();
  opened[0]?.stream.reset("container is gone");
  await assert.rejects(
    one.head,
    (error) => error instanceof StreamReset && error.message === "container is gone",
  );
  await assert.rejects(readAll(one.readable), StreamReset);
  const reading = readAll(two.readable);
  hub.close("the link broke");
  edge.close("the link broke");
  await assert.rejects(reading, /the link broke/);
  assert.equal(hub.open(get), undefined);
});

Deno.test("wire streams: a half-closed stream still flows the other way", async () => {
  const { hub, opened } = pair();
  const atHub = hub.open(get);
  assert.ok(atHub);
  await turn();
  const atEdge = opened[0]?.stream;
  assert.ok(atEdge);
  await atHub.writable.getWriter().close();
  assert.equal((await readAll(atEdge.readable)).length, 0);
  const writer = atEdge.writable.getWriter();
  await writer.write(utf8("later"));
  await writer.close();
  assert.equal(text(await readAll(atHub.readable)), "later");
});

Deno.test("wire streams: a peer beyond its rights is at fault", () => {
  const sent: Uint8Array[] = [];
  const hub = new Streams({ transmit: (message) => sent.push(message) });
  const stream = hub.open(get);
  assert.ok(stream);
  const feed = (message: Uint8Array) => {
    const decoded = decodeFrame(message);
    return decoded.state === "ok" ? hub.frame(decoded.frame) : decoded;
  };
  const credit = (bytes: number) => {
    const body = new Uint8Array(4);
    new DataView(body.buffer).setUint32(0, bytes);
    return body;
  };
  assert.equal(feed(encodeFrame("streamOpen", 9, utf8("{}"))).state, "bad", "an edge opens no streams");
  assert.equal(feed(encodeFrame("streamCredit", 1, credit(1))).state, "bad", "credit that was not used");
  assert.equal(
    feed(encodeFrame("streamCredit", 0, credit(1))).state,
    "bad",
    "session credit that was not used",
  );
  assert.equal(feed(encodeFrame("streamCredit", 1, new Uint8Array(3))).state, "bad", "credit of three bytes");
  assert.equal(
    feed(encodeFrame("streamData", 77, new Uint8Array(9))).state,
    "ok",
    "data of a stream that is over is dropped",
  );
  let state = "ok";
  for (let sentBytes = 0; state === "ok" && sentBytes <= 2 * streamWindowBytes; sentBytes += 32_768) {
    state = feed(encodeFrame("streamData", stream.id, new Uint8Array(32_768))).state;
  }
  assert.equal(state, "bad", "data beyond the credit");
  for (let i = 0; i < streamsMax + 5; i++) hub.open(get);
  assert.equal(hub.open(get), undefined, "streams are counted");
});
