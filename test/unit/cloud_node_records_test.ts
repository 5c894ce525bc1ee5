import assert from "node:assert/strict";
import { NodeRecords, recordLabel } from "../../lib/cloud/node_records.ts";
import { Reflector } from "../../lib/kube/reflector.ts";
import { configMaps, makeWorld, until, type World } from "../fake/world.ts";

const namespace = "kubeedge-system";
const recordsOf = (world: World, kubeletPorts: [number, number] = [11000, 11001]) =>
  new NodeRecords({ ...world, namespace, kubeletPorts });

Deno.test("a name belongs to the key that claimed it first", async () => {
  const world = makeWorld(), records = recordsOf(world);
  const first = await records.claim("n1", "key1", { takeover: false });
  assert.deepEqual(first, {
    state: "ok",
    record: { node: "n1", keyHash: "key1", kubeletPort: 11000, joinedMs: world.clock.now() },
  });
  const again = await records.claim("n1", "key1", { takeover: false });
  assert.ok(
    again.state === "ok" && again.record.kubeletPort === 11000,
    "the same key may claim again and keeps its port",
  );
  const other = await records.claim("n1", "key2", { takeover: false });
  assert.ok(other.state === "refused" && other.reason === "taken");
  assert.match(
    other.message,
    /belongs to another machine since 2026-01-01T00:00:00.000Z.*--name.*--takeover.*kubectl delete node n1/,
  );
  const takeover = await records.claim("n1", "key2", { takeover: true });
  assert.ok(
    takeover.state === "ok" && takeover.record.keyHash === "key2" && takeover.record.kubeletPort === 11000,
  );
  assert.equal(records.get("n1")?.keyHash, "key2");
});

Deno.test("a takeover forgets the key that the former machine was about to use", async () => {
  const records = recordsOf(makeWorld());
  await records.claim("n1", "key1", { takeover: false });
  await records.change("n1", (record) => ({ ...record, nextKeyHash: "key1b" }));
  await records.claim("n1", "key2", { takeover: true });
  assert.equal(records.get("n1")?.nextKeyHash, undefined);
});

Deno.test("a revoked name is refused to everybody, takeover or not", async () => {
  const records = recordsOf(makeWorld());
  await records.claim("n1", "key1", { takeover: false });
  await records.change("n1", (record) => ({ ...record, revoked: "stolen" }));
  for (const [key, takeover] of [["key1", false], ["key2", true]] as const) {
    const claim = await records.claim("n1", key, { takeover });
    assert.ok(claim.state === "refused" && claim.reason === "revoked");
    assert.match(claim.message, /\(stolen\); kubeedge cloud nodes restore n1/);
  }
});

Deno.test("each node has a port of its own while there are some", async () => {
  const records = recordsOf(makeWorld());
  const ports = [];
  for (const node of ["a", "b", "c"]) {
    const claim = await records.claim(node, node, { takeover: false });
    ports.push(claim.state === "ok" ? claim.record.kubeletPort : claim.reason);
  }
  assert.deepEqual(ports, [11000, 11001, "ports"]);
  await records.remove("a");
  records.deleted({ bytes: new Uint8Array(), namespace, name: "edge-node.a", uid: "", resourceVersion: "" });
  const claim = await records.claim("c", "c", { takeover: false });
  assert.ok(
    claim.state === "ok" && claim.record.kubeletPort === 11000,
    "a deleted node's port is free again",
  );
});

Deno.test("replicas that race for one name agree", async () => {
  const world = makeWorld();
  const replicas = Array.from({ length: 5 }, () => recordsOf(world, [11000, 11999]));
  const claims = await Promise.all(
    replicas.map((records, i) => records.claim("n1", `key${i}`, { takeover: false })),
  );
  assert.equal(claims.filter((claim) => claim.state === "ok").length, 1);
  assert.equal(claims.filter((claim) => claim.state === "refused" && claim.reason === "taken").length, 4);
});

Deno.test("changes that race are both made", async () => {
  const world = makeWorld(), records = recordsOf(world), other = recordsOf(world);
  await records.claim("n1", "key1", { takeover: false });
  await Promise.all([
    records.change("n1", (record) => ({ ...record, revoked: "x" })),
    other.change("n1", (record) => ({ ...record, nextKeyHash: "key2" })),
  ]);
  const stored = JSON.parse(world.api.find(configMaps, `${namespace}/edge-node.n1`).data.record);
  assert.deepEqual([stored.revoked, stored.nextKeyHash], ["x", "key2"]);
  assert.equal(await records.change("gone", (record) => record), undefined);
});

Deno.test("what others write is seen, what is not ours is passed over", async () => {
  const world = makeWorld(), records = recordsOf(world), writer = recordsOf(world);
  const told: string[] = [];
  records.listen((node, record) =>
    told.push(`${node} ${record === undefined ? "gone" : record.revoked ?? record.keyHash}`)
  );
  world.api.put(configMaps, {
    metadata: { namespace, name: "edge-node.bad", labels: { [recordLabel]: "true" } },
    data: { record: "{}" },
  });
  const reflector = new Reflector({
    ...world,
    path: `/api/v1/namespaces/${namespace}/configmaps`,
    apiVersion: "v1",
    kind: "ConfigMap",
    labelSelector: `${recordLabel}=true`,
    handler: records,
  }).start();
  await until(() => world.api.watches === 1, "the watch");
  await writer.claim("n1", "key1", { takeover: false });
  await until(() => told.length === 1, "the new record");
  await writer.note("n1", {
    connected: true,
    sinceMs: 1,
    lastSeenMs: 2,
    roundTripMs: 3,
    agent: "a",
    address: "b",
  });
  await until(() => records.news("n1")?.roundTripMs === 3, "the news");
  await writer.change("n1", (record) => ({ ...record, revoked: "stolen" }));
  await until(() => told.length === 2, "the revocation");
  await writer.remove("n1");
  await writer.remove("n1");
  await until(() => told.length === 3, "the removal");
  assert.deepEqual(told, ["n1 key1", "n1 stolen", "n1 gone"], "news are no change of a record");
  assert.deepEqual(records.list(), []);
  await reflector.stop();
});
