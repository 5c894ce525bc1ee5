import assert from "node:assert/strict";
import { concat, fromHex, hex, utf8 } from "../../lib/core/bytes.ts";
import { frameBytesMax } from "../../lib/core/limits.ts";
import {
  decodeFrame,
  decodeJson,
  decodeObject,
  encodeFrame,
  encodeObject,
  type FrameType,
  frameTypes,
} from "../../lib/wire/frame.ts";
import {
  commonVersion,
  readHave,
  readHello,
  readProof,
  readRefuse,
  readReport,
  readRequest,
  readResponse,
  readStreamHead,
  readStreamOpen,
  readWelcome,
} from "../../lib/wire/messages.ts";
import { digestOf } from "../../lib/wire/digest.ts";
import { SeededRandom } from "../fake/clock.ts";

Deno.test("wire frame: golden bytes stay as drawn", () => {
  const cases: { name: string; message: Uint8Array; want: string }[] = [
    { name: "an acknowledgement has no body", message: encodeFrame("ack", 7), want: "2000000000000007" },
    {
      name: "stream data follows its header untouched",
      message: encodeFrame("streamData", 3, utf8("hi")),
      want: "42000000000000036869",
    },
    {
      name: "an object carries kind, key, uid and version before its JSON",
      message: encodeFrame(
        "object",
        1,
        encodeObject({
          kind: "pods",
          key: "a/b",
          uid: "u1",
          version: fromHex("0102030405060708"),
          json: utf8("{}"),
        }),
      ),
      want: "1000000000000001" + "04" + "706f6473" + "0003" + "612f62" + "02" + "7531" + "0102030405060708" +
        "7b7d",
    },
  ];
  for (const { name, message, want } of cases) assert.equal(hex(message), want, name);
});

Deno.test("wire frame: what is encoded is decoded, deflated or not", () => {
  const random = new SeededRandom(1);
  for (const type of Object.keys(frameTypes) as FrameType[]) {
    for (const size of [0, 1, 255, 256, 5000, 300_000]) {
      const body = size % 2 === 0 ? new Uint8Array(size).fill(97) : random.bytes(size);
      const decoded = decodeFrame(encodeFrame(type, 0xfffffffe, body));
      assert.equal(decoded.state, "ok");
      if (decoded.state !== "ok") continue;
      assert.equal(decoded.frame.type, type);
      assert.equal(decoded.frame.id, 0xfffffffe);
      assert.deepEqual(new Uint8Array(decoded.frame.body), body);
    }
  }
});

Deno.test("wire frame: bad frames are values with a reason", () => {
  const bomb = encodeFrame("object", 1, new Uint8Array(frameBytesMax - 8).fill(48));
  const cases: { name: string; message: Uint8Array; max?: number; reason: RegExp }[] = [
    { name: "empty", message: new Uint8Array(0), reason: /shorter than its header/ },
    { name: "cut in the header", message: fromHex("10000000000000"), reason: /shorter/ },
    { name: "unknown type", message: fromHex("ff00000000000001"), reason: /unknown frame type 255/ },
    { name: "unknown flag", message: fromHex("1002000000000001"), reason: /reserved/ },
    { name: "reserved field", message: fromHex("1000000100000001"), reason: /reserved/ },
    {
      name: "not deflated though it says so",
      message: fromHex("1001000000000001ffff"),
      reason: /does not inflate/,
    },
    { name: "over the limit", message: new Uint8Array(17), max: 16, reason: /over the limit of 16/ },
    {
      name: "a small frame that inflates beyond the limit",
      message: bomb,
      max: 16 * 1024,
      reason: /does not inflate within 16384/,
    },
  ];
  for (const { name, message, max, reason } of cases) {
    const decoded = decodeFrame(message, max);
    assert.equal(decoded.state, "bad", name);
    if (decoded.state === "bad") assert.match(decoded.reason, reason, name);
  }
  assert.throws(() => encodeFrame("streamData", 1, new Uint8Array(frameBytesMax)), RangeError);
});

Deno.test("wire frame: cut object bodies are refused at every length", () => {
  const body = encodeObject({
    kind: "secrets",
    key: "ns/s",
    uid: "uid",
    version: new Uint8Array(8),
    json: new Uint8Array(0),
  });
  for (let length = 0; length < body.length; length++) {
    assert.equal(decodeObject(body.subarray(0, length)).state, "bad", `${length} bytes`);
  }
  assert.equal(decodeObject(body).state, "ok");
});

Deno.test("wire versions: the highest common one holds", () => {
  const cases: {
    name: string;
    mine: [number, number];
    theirs: [number, number];
    want: number | undefined;
  }[] = [
    { name: "equal", mine: [1, 1], theirs: [1, 1], want: 1 },
    { name: "the newer steps down", mine: [1, 3], theirs: [1, 2], want: 2 },
    { name: "nothing in common", mine: [3, 4], theirs: [1, 2], want: undefined },
  ];
  for (const { name, mine, theirs, want } of cases) {
    const got = commonVersion({ least: mine[0], most: mine[1] }, { least: theirs[0], most: theirs[1] });
    assert.equal(got, want, name);
  }
});

Deno.test("wire digest: order does not matter, everything else does", () => {
  const a = ["ns/a", "u1", "01"] as const, b = ["ns/b", "u2", "02"] as const;
  assert.equal(digestOf([a, b]), digestOf([b, a]));
  assert.equal(digestOf([]), "");
  assert.notEqual(digestOf([a]), digestOf([["ns/a", "u1", "02"]]));
  assert.notEqual(digestOf([a]), digestOf([["ns/a", "u2", "01"]]));
  assert.notEqual(digestOf([a]), digestOf([a, b]));
});

/** Every reader of what a peer sends, fed with `value`; none may throw. */
function feedReaders(value: Record<string, unknown>): void {
  for (
    const read of [
      readHello,
      readProof,
      readWelcome,
      readRefuse,
      readHave,
      readReport,
      readRequest,
      readResponse,
      readStreamOpen,
      readStreamHead,
    ]
  ) {
    read(value);
  }
}

Deno.test("wire fuzz: a million cut, long, bent and random frames are decoded or refused, never thrown", () => {
  const inputs = 1_000_000;
  const random = new SeededRandom(20261123);
  const json = utf8(
    JSON.stringify({
      report: "podStatus",
      namespace: "n",
      name: "p",
      uid: "u",
      status: { phase: "Running" },
      entries: [],
      kind: "pods",
    }),
  );
  const object = encodeObject({
    kind: "pods",
    key: "default/web",
    uid: "3b",
    version: random.bytes(8),
    json,
  });
  const seeds = (Object.keys(frameTypes) as FrameType[]).flatMap((type) => [
    encodeFrame(type, 1),
    encodeFrame(type, 2, json),
    encodeFrame(type, 3, object),
  ]);
  // One deflated frame among them: inflating is most of the cost of an input.
  seeds.push(encodeFrame("object", 4, concat([object, new Uint8Array(600).fill(32)])));
  const counts = { ok: 0, bad: 0 };
  for (let i = 0; i < inputs; i++) {
    const seed = seeds[i % seeds.length] as Uint8Array;
    let message: Uint8Array;
    switch (i % 4) {
      case 0: // bent: up to four bytes changed
        message = seed.slice();
        for (let k = random.below(4); k >= 0 && message.length > 0; k--) {
          message[random.below(message.length)] = random.below(256);
        }
        break;
      case 1: // cut
        message = seed.subarray(0, random.below(seed.length + 1));
        break;
      case 2: // too long
        message = concat([seed, random.bytes(random.below(24))]);
        break;
      default: // random behind a valid type
        message = random.bytes(random.below(48));
        if (message.length > 2) {
          message[0] = seed[0] as number;
          message[1] = random.below(16) === 0 ? 1 : 0;
          message[2] = message[3] = 0;
        }
    }
    const decoded = decodeFrame(message, i % 5 === 0 ? 64 : frameBytesMax);
    counts[decoded.state]++;
    if (decoded.state === "bad") continue;
    assert.ok(decoded.frame.body.length <= frameBytesMax);
    decodeObject(decoded.frame.body);
    if (i % 3 === 0) {
      const value = decodeJson(decoded.frame.body);
      if (value.state === "ok") feedReaders(value.value);
    }
  }
  assert.ok(
    counts.ok > inputs / 10 && counts.bad > inputs / 10,
    `the inputs are of both sorts: ${JSON.stringify(counts)}`,
  );
});

Deno.test("wire fuzz: readers survive members of every wrong type", () => {
  const random = new SeededRandom(7);
  const members = [
    "nonce",
    "cluster",
    "versionLeast",
    "versionMost",
    "certificate",
    "signature",
    "agent",
    "instance",
    "digests",
    "session",
    "node",
    "want",
    "version",
    "timeMs",
    "code",
    "message",
    "kind",
    "entries",
    "report",
    "namespace",
    "name",
    "uid",
    "status",
    "event",
    "request",
    "serviceAccount",
    "spec",
    "csr",
    "method",
    "target",
    "headers",
  ];
  const values = [
    null,
    true,
    0,
    -1,
    1e308,
    "",
    "00",
    "podStatus",
    "token",
    [],
    [[]],
    [["a", "b", "0000000000000000"]],
    {},
    { a: { b: [] } },
    "retry",
  ];
  for (let i = 0; i < 20_000; i++) {
    const value: Record<string, unknown> = {};
    for (const member of members) if (random.float() < 0.5) value[member] = random.pick(values);
    feedReaders(value);
  }
});
