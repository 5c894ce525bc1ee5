import assert from "node:assert/strict";
import { utf8 } from "../../lib/core/bytes.ts";
import { deliveryVersion } from "../../lib/kube/object_hash.ts";
import { milliValue, parseQuantity, wholeValue } from "../../lib/kube/quantity.ts";

Deno.test("quantities as Kubernetes reads them", () => {
  const table: [string | number | undefined, number | undefined][] = [
    ["0", 0],
    ["1", 1],
    ["100m", 0.1],
    ["1.5", 1.5],
    [".5", 0.5],
    ["5.", 5],
    ["64Mi", 64 * 2 ** 20],
    ["1Gi", 2 ** 30],
    ["1k", 1000],
    ["2M", 2e6],
    ["1e3", 1000],
    ["1E3", 1000],
    ["12E", 12e18],
    ["-1", -1],
    ["+1", 1],
    [3, 3],
    ["250u", 250e-6],
    ["", undefined],
    ["x", undefined],
    ["1 Gi", undefined],
    ["1GiB", undefined],
    ["--1", undefined],
    ["0x10", undefined],
    [undefined, undefined],
  ];
  for (const [input, want] of table) {
    const got = parseQuantity(input);
    if (want === undefined) assert.equal(got, undefined, String(input));
    else {assert.ok(
        got !== undefined && Math.abs(got - want) <= Math.abs(want) * 1e-12,
        `${input} gave ${got}`,
      );}
  }
});

Deno.test("milli and whole values round up, without the noise of binary fractions", () => {
  assert.equal(milliValue("100m"), 100);
  assert.equal(milliValue("0.1"), 100);
  assert.equal(milliValue("1.1"), 1100);
  assert.equal(milliValue("0.0001"), 1);
  assert.equal(milliValue("1100u"), 2);
  assert.equal(wholeValue("1.2"), 2);
  assert.equal(wholeValue("1Mi"), 1048576);
  assert.equal(wholeValue(undefined), 0);
});

Deno.test("an object's version follows what is delivered", () => {
  const version = (object: unknown) => deliveryVersion(utf8(JSON.stringify(object)));
  const object = {
    metadata: { name: "a", managedFields: [1], resourceVersion: "7" },
    spec: { x: 1 },
    status: { y: 1 },
  };
  const base = version(object);
  assert.match(base, /^[0-9a-f]{16}$/);
  assert.notEqual(base, "0000000000000000");
  assert.equal(version({ ...object, status: { y: 2 } }), base, "a status is the edge's own");
  assert.equal(
    version({
      metadata: { name: "a", managedFields: [2, 3], resourceVersion: "8" },
      spec: { x: 1 },
      status: { y: 1 },
    }),
    base,
  );
  assert.notEqual(version({ ...object, spec: { x: 2 } }), base);
  assert.notEqual(version({ ...object, metadata: { ...object.metadata, labels: { a: "b" } } }), base);
});
