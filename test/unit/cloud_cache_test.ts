import assert from "node:assert/strict";
import { text, utf8 } from "../../lib/core/bytes.ts";
import { Cache, viewKinds } from "../../lib/cloud/cache.ts";
import { References } from "../../lib/cloud/references.ts";
import type { RawObject } from "../../lib/kube/reflector.ts";
import type { Json } from "../fake/kube_api.ts";
import { makeWorld, pod } from "../fake/world.ts";

let revision = 0;
const raw = (object: Json): RawObject => {
  const metadata = {
    uid: `uid-${object.metadata.name}`,
    resourceVersion: String(++revision),
    ...object.metadata,
  };
  return {
    bytes: utf8(JSON.stringify({ ...object, metadata })),
    namespace: metadata.namespace ?? "",
    name: metadata.name,
    uid: metadata.uid,
    resourceVersion: metadata.resourceVersion,
  };
};

function setUp(edge: (node: string) => boolean = (node) => node.startsWith("n")) {
  const world = makeWorld(), told: string[] = [], deleted: string[] = [];
  const changed = (node: string, kind: string, key: string) => told.push(`${node} ${kind} ${key}`);
  const references = new References({ ...world, changed: () => {}, watchFailed: () => {} });
  const cache = new Cache({ references, changed, nodeDeleted: (node) => deleted.push(node), isEdge: edge });
  const take = () => told.splice(0);
  const keys = (node: string, kind: string) => [...cache.view(node).keys(kind)].sort();
  return { cache, take, keys, deleted, references };
}

Deno.test("a pod's change is told to its node alone", () => {
  const { cache, take, keys } = setUp();
  cache.podHandler.upserted(raw(pod("ns", "a", "n1")));
  cache.podHandler.upserted(raw(pod("ns", "b", "n2")));
  cache.podHandler.upserted(raw(pod("ns", "c", "core")));
  cache.podHandler.upserted(raw(pod("ns", "d", "")));
  assert.deepEqual(take(), ["n1 pods ns/a", "n2 pods ns/b"]);
  assert.deepEqual([keys("n1", "pods"), keys("n2", "pods"), keys("core", "pods")], [["ns/a"], ["ns/b"], []]);
  assert.equal(cache.podOnNode("n1", "ns", "a"), true);
  assert.equal(cache.podOnNode("n2", "ns", "a"), false);
  cache.podHandler.deleted(raw(pod("ns", "a", "n1")));
  assert.deepEqual(take(), ["n1 pods ns/a"]);
  assert.deepEqual(keys("n1", "pods"), []);
});

Deno.test("a change of status alone is told to nobody", () => {
  const { cache, take } = setUp();
  const object = pod("ns", "a", "n1");
  cache.podHandler.upserted(raw(object));
  take();
  const version = cache.view("n1").get("pods", "ns/a")?.version;
  cache.podHandler.upserted(raw({ ...object, status: { phase: "Running" } }));
  cache.podHandler.upserted(
    raw({ ...object, metadata: { ...object.metadata, managedFields: [{ manager: "x" }] } }),
  );
  assert.deepEqual(take(), []);
  assert.equal(cache.view("n1").get("pods", "ns/a")?.version, version);
  cache.podHandler.upserted(
    raw({ ...object, metadata: { ...object.metadata, deletionTimestamp: "2026-01-01T00:00:00Z" } }),
  );
  assert.deepEqual(take(), ["n1 pods ns/a"]);
  const node = { metadata: { name: "n1", labels: { a: "b" } }, status: { conditions: [1] } };
  cache.nodeHandler.upserted(raw(node));
  cache.nodeHandler.upserted(raw({ ...node, status: { conditions: [2] } }));
  assert.deepEqual(take(), ["n1 nodes n1"]);
  assert.doesNotMatch(text(cache.view("n1").get("nodes", "n1")!.json!), /conditions/);
});

Deno.test("a pod of the same name made anew is another object", () => {
  const { cache, take } = setUp();
  cache.podHandler.upserted(
    raw({ ...pod("ns", "a", "n1"), metadata: { namespace: "ns", name: "a", uid: "one" } }),
  );
  const before = cache.view("n1").get("pods", "ns/a");
  cache.podHandler.upserted(
    raw({ ...pod("ns", "a", "n1"), metadata: { namespace: "ns", name: "a", uid: "two" } }),
  );
  const after = cache.view("n1").get("pods", "ns/a");
  assert.notEqual(before?.version, after?.version);
  assert.deepEqual([before?.uid, after?.uid], ["one", "two"]);
  assert.equal(take().length, 2);
  cache.podHandler.upserted(
    raw({ ...pod("ns", "a", "n2"), metadata: { namespace: "ns", name: "a", uid: "three" } }),
  );
  assert.deepEqual(take(), ["n1 pods ns/a", "n2 pods ns/a"], "made anew on another node");
});

Deno.test("a second list drops what is gone", () => {
  const { cache, take, keys, deleted } = setUp();
  const [a, b] = [raw(pod("ns", "a", "n1")), raw(pod("ns", "b", "n1"))];
  cache.podHandler.replaced([a, b]);
  cache.nodeHandler.replaced([raw({ metadata: { name: "n1" } }), raw({ metadata: { name: "n2" } })]);
  take();
  cache.podHandler.replaced([b]);
  assert.deepEqual(take(), ["n1 pods ns/a"]);
  assert.deepEqual(keys("n1", "pods"), ["ns/b"]);
  cache.nodeHandler.replaced([raw({ metadata: { name: "n1" } })]);
  assert.deepEqual(take(), ["n2 nodes n2"]);
  assert.deepEqual(deleted, ["n2"]);
  cache.nodeHandler.deleted(raw({ metadata: { name: "n1" } }));
  cache.nodeHandler.deleted(raw({ metadata: { name: "n1" } }));
  assert.deepEqual(deleted, ["n2", "n1"], "once each");
});

Deno.test("a node sees the services of its pods' namespaces and the API server's", () => {
  const { cache, take, keys } = setUp();
  const service = (namespace: string, name: string, spec: Json = {}) =>
    raw({ metadata: { namespace, name }, spec });
  cache.podHandler.upserted(raw(pod("one", "p", "n1")));
  cache.podHandler.upserted(raw(pod("two", "p", "n2")));
  take();
  cache.serviceHandler.replaced([
    service("default", "kubernetes"),
    service("one", "s"),
    service("two", "t"),
    service("three", "u"),
  ]);
  assert.deepEqual(keys("n1", "services"), ["default/kubernetes", "one/s"]);
  assert.equal(cache.view("n1").get("services", "two/t"), undefined);
  assert.deepEqual(take().sort(), [
    "n1 services default/kubernetes",
    "n1 services one/s",
    "n2 services default/kubernetes",
    "n2 services two/t",
  ]);
  cache.podHandler.upserted(raw(pod("three", "q", "n1")));
  assert.deepEqual(take(), ["n1 services three/u", "n1 pods three/q"]);
  cache.podHandler.deleted(raw(pod("three", "q", "n1")));
  assert.deepEqual(take(), ["n1 services three/u", "n1 pods three/q"]);
  cache.serviceHandler.upserted(service("one", "s"));
  assert.deepEqual(take(), [], "nothing changed");
  cache.serviceHandler.upserted(service("one", "s", { ports: [1] }));
  cache.serviceHandler.deleted(service("one", "s"));
  assert.deepEqual(take(), ["n1 services one/s", "n1 services one/s"]);
});

Deno.test("references follow the pods", async () => {
  const { cache, keys, references } = setUp();
  const using = (name: string) => raw(pod("ns", name, "n1", { imagePullSecrets: [{ name: "pull" }] }));
  cache.podHandler.upserted(using("a"));
  cache.podHandler.upserted(using("b"));
  assert.deepEqual(keys("n1", "secrets"), ["ns/pull"]);
  cache.podHandler.deleted(using("a"));
  assert.deepEqual(keys("n1", "secrets"), ["ns/pull"]);
  cache.podHandler.deleted(using("b"));
  assert.deepEqual(keys("n1", "secrets"), []);
  assert.ok(viewKinds.indexOf("secrets") < viewKinds.indexOf("pods"), "what a pod needs is sent before it");
  await references.stop();
});

Deno.test("one pod's change costs the same with 10 nodes as with 5,000", () => {
  const cost = (count: number) => {
    let asked = 0;
    const { cache, take } = setUp(() => {
      asked++;
      return true;
    });
    for (let i = 0; i < count; i++) cache.podHandler.upserted(raw(pod("ns", `p${i}`, `n${i}`)));
    take();
    asked = 0;
    cache.podHandler.upserted(raw(pod("ns", "p5", "n5", { priority: 1 })));
    return { asked, told: take() };
  };
  assert.deepEqual(cost(10), cost(5000));
});
