import assert from "node:assert/strict";
import { text, utf8 } from "../../lib/core/bytes.ts";
import { cutMembers, elementsOf, membersOf, readString, spanOf, withTypeMeta } from "../../lib/kube/slice.ts";
import { SeededRandom } from "../fake/clock.ts";

const cut = (json: string, ...paths: string[][]) => {
  const result = cutMembers(utf8(json), paths);
  return result && text(result);
};

Deno.test("cutMembers leaves the rest byte for byte", () => {
  const table: { name: string; json: string; paths: string[][]; want: string }[] = [
    {
      name: "the first member goes with the comma behind it",
      json: '{"a":1,"b":2}',
      paths: [["a"]],
      want: '{"b":2}',
    },
    {
      name: "the last member goes with the comma before it",
      json: '{"a":1,"b":2}',
      paths: [["b"]],
      want: '{"a":1}',
    },
    { name: "the only member leaves an empty object", json: '{"a":1}', paths: [["a"]], want: "{}" },
    {
      name: "neighbours at the end leave no comma",
      json: '{"a":1,"b":2,"c":3}',
      paths: [["b"], ["c"]],
      want: '{"a":1}',
    },
    { name: "all members", json: '{"a":1,"b":2}', paths: [["a"], ["b"]], want: "{}" },
    {
      name: "a nested member",
      json: '{"m":{"x":[1,{"y":2}],"z":3},"n":4}',
      paths: [["m", "x"]],
      want: '{"m":{"z":3},"n":4}',
    },
    {
      name: "a parent and its child",
      json: '{"m":{"x":1,"y":2},"n":4}',
      paths: [["m"], ["m", "x"]],
      want: '{"n":4}',
    },
    {
      name: "braces and quotes in strings are no structure",
      json: '{"a":"}\\"{,","b":"]"}',
      paths: [["b"]],
      want: '{"a":"}\\"{,"}',
    },
    {
      name: "an escaped name is the same name",
      json: '{"\\u0061":1,"b":2}',
      paths: [["a"]],
      want: '{"b":2}',
    },
    {
      name: "only the top level's member of that name",
      json: '{"x":{"status":1},"status":2}',
      paths: [["status"]],
      want: '{"x":{"status":1}}',
    },
    { name: "a missing path changes nothing", json: '{"a":1}', paths: [["b", "c"], ["d"]], want: '{"a":1}' },
    {
      name: "a path through something that is no object",
      json: '{"a":[1]}',
      paths: [["a", "b"]],
      want: '{"a":[1]}',
    },
  ];
  for (const { name, json, paths, want } of table) assert.equal(cut(json, ...paths), want, name);
});

Deno.test("cutMembers gives undefined on malformed text and never throws", () => {
  for (
    const json of [
      "",
      "[]",
      "{",
      '{"a"',
      '{"a":',
      '{"a":1',
      '{"a":"',
      '{"a":"\\',
      "{a:1}",
      '{"a":1 "b":2}',
      '{"m":{"a":}',
      "[".repeat(1000),
    ]
  ) {
    assert.equal(cut(json, ["a"]), undefined, json.slice(0, 20));
  }
});

Deno.test("random objects: cutting agrees with JSON.parse", () => {
  const random = new SeededRandom(7);
  const names = ["a", "b", "status", 'q"uote', "ü", "\\", "metadata"];
  const make = (depth: number): unknown => {
    switch (random.below(depth > 3 ? 4 : 6)) {
      case 0:
        return random.below(1e6) / 7;
      case 1:
        return random.pick(["", '"', "\\", "{}", "]", "é😀", "\n\t", "\\u0041"]);
      case 2:
        return random.pick([true, false, null]);
      case 3:
        return {};
      case 4:
        return Array.from({ length: random.below(4) }, () => make(depth + 1));
      default:
        return Object.fromEntries(
          Array.from({ length: random.below(5) }, () => [random.pick(names), make(depth + 1)]),
        );
    }
  };
  for (let round = 0; round < 3000; round++) {
    const object = Object.fromEntries(
      Array.from({ length: random.below(6) }, () => [random.pick(names), make(0)]),
    );
    const spaced = random.below(2) === 0 ? JSON.stringify(object) : JSON.stringify(object, null, " ");
    const paths = Array.from(
      { length: random.below(4) },
      () => Array.from({ length: 1 + random.below(2) }, () => random.pick(names)),
    );
    // deno-lint-ignore no-explicit-any
    const want = structuredClone(object) as any;
    for (const [first = "", second] of paths) {
      if (second === undefined) delete want[first];
      else if (typeof want[first] === "object" && want[first] !== null && !Array.isArray(want[first])) {
        delete want[first][second];
      }
    }
    const result = cut(spaced, ...paths);
    assert.deepEqual(
      JSON.parse(result ?? ""),
      want,
      `seed 7 round ${round}: ${spaced} without ${JSON.stringify(paths)}`,
    );
  }
});

Deno.test("every prefix of an object is refused, not misread", () => {
  const json = utf8('{"metadata":{"name":"n","labels":{"a":"b"}},"spec":[1,"two",{"x":null}]}');
  for (let end = 0; end < json.length; end++) {
    assert.equal(cutMembers(json.subarray(0, end), [["spec"]]), undefined, `prefix of ${end}`);
  }
});

Deno.test("spans, strings and elements", () => {
  const json = utf8(' {"metadata" : {"name":"n\\u00e9\\"", "n":5}, "items":[ {"a":1} , "x",[2] ] } ');
  assert.equal(readString(json, ["metadata", "name"]), 'né"');
  assert.equal(readString(json, ["metadata", "n"]), undefined);
  assert.equal(readString(json, ["metadata", "missing"]), undefined);
  const items = spanOf(json, ["items"]);
  assert.ok(items);
  const parts = elementsOf(json, items)!.map(({ start, end }) => text(json.subarray(start, end)));
  assert.deepEqual(parts, ['{"a":1}', '"x"', "[2]"]);
  assert.deepEqual(membersOf(utf8("{}")), []);
  assert.deepEqual(elementsOf(utf8("[]"), { start: 0, end: 2 }), []);
});

Deno.test("items of lists are given their kind once", () => {
  assert.equal(
    text(withTypeMeta(utf8('{"metadata":{}}'), "v1", "Pod")),
    '{"kind":"Pod","apiVersion":"v1","metadata":{}}',
  );
  assert.equal(text(withTypeMeta(utf8("{}"), "v1", "Pod")), '{"kind":"Pod","apiVersion":"v1"}');
  assert.equal(text(withTypeMeta(utf8('{"kind":"X"}'), "v1", "Pod")), '{"kind":"X"}');
});
