import assert from "node:assert/strict";
import { text } from "../../lib/core/bytes.ts";
import { type Reference, References, referencesOf } from "../../lib/cloud/references.ts";
import { absentVersion } from "../../lib/wire/hub_session.ts";
import { type Json, nodeAuthorizer } from "../fake/kube_api.ts";
import { configMaps, makeWorld, pod, pods, secrets, turns, until, untilPassing } from "../fake/world.ts";

const secret = (name: string): Reference => ({ kind: "secrets", key: `ns/${name}` });
const using = (namespace: string, name: string, node: string, secretName: string) =>
  pod(namespace, name, node, { volumes: [{ name: "v", secret: { secretName } }] });

function setUp() {
  const world = makeWorld();
  world.api.authorize = nodeAuthorizer(world.api);
  const told: string[] = [];
  let failures = 0;
  const references = new References({
    ...world,
    changed: (node, kind, key) => told.push(`${node} ${kind} ${key}`),
    watchFailed: () => failures++,
  });
  const value = (node: string, name: string): Json => {
    const json = references.get(node, "secrets", `ns/${name}`)?.json;
    return json && JSON.parse(text(json)).data?.v;
  };
  const put = (name: string, v: string) =>
    world.api.put(secrets, { metadata: { namespace: "ns", name, managedFields: [{}] }, data: { v } });
  return { ...world, references, told, value, put, failures: () => failures };
}

Deno.test("everything that a pod may refer to is found, once", () => {
  const spec = {
    imagePullSecrets: [{ name: "pull" }, { name: "pull" }],
    initContainers: [{ name: "i", envFrom: [{ secretRef: { name: "init" } }] }],
    containers: [{
      name: "c",
      envFrom: [{ configMapRef: { name: "from" } }, {}],
      env: [{ name: "A", valueFrom: { secretKeyRef: { name: "key", key: "k" } } }, {
        name: "B",
        valueFrom: { configMapKeyRef: { name: "mapkey", key: "k" } },
      }, { name: "C", value: "x" }],
    }],
    volumes: [
      { name: "1", secret: { secretName: "volume" } },
      { name: "2", configMap: { name: "mapvolume" } },
      { name: "3", emptyDir: {} },
      {
        name: "4",
        projected: {
          sources: [{ secret: { name: "psecret" } }, { configMap: { name: "pmap" } }, {
            serviceAccountToken: { path: "t" },
          }],
        },
      },
    ],
  };
  const found = referencesOf(pod("ns", "p", "n", spec)).map(({ kind, key }) => `${kind} ${key}`).sort();
  assert.deepEqual(found, [
    "configmaps ns/from",
    "configmaps ns/mapkey",
    "configmaps ns/mapvolume",
    "configmaps ns/pmap",
    "secrets ns/init",
    "secrets ns/key",
    "secrets ns/psecret",
    "secrets ns/pull",
    "secrets ns/volume",
  ]);
});

Deno.test("a node is asked about before it is given anything, and a refused one gets nothing", async () => {
  const { api, clock, references, value, put } = setUp();
  put("s", "1");
  api.put(pods, using("ns", "p1", "n1", "s"));
  references.need("n1", [secret("s")]);
  references.need("n2", [secret("s")]); // Kubernetes knows no pod of n2 that refers to it
  assert.equal(references.get("n1", "secrets", "ns/s"), undefined, "not before the answer");
  await references.complete("n1");
  assert.equal(value("n1", "s"), "1");
  let complete = false;
  void references.complete("n2").then(() => complete = true);
  await untilPassing(clock, 100, () => complete, "the refusal is final");
  assert.equal(references.get("n2", "secrets", "ns/s"), undefined);
  put("s", "2");
  await until(() => value("n1", "s") === "2", "the change");
  assert.equal(references.get("n2", "secrets", "ns/s"), undefined, "nor does a change reach it");
  const asked = api.requests.filter(({ user, resource }) =>
    user === "system:node:n2" && resource === "secrets"
  );
  assert.ok(asked.length >= 2 && asked.every(({ status }) => status === 403));
  assert.ok(
    api.requests.filter(({ resource }) => resource === "secrets").every(({ user }) =>
      user.startsWith("system:node:")
    ),
    "never with the cloud's own identity",
  );
  await references.stop();
});

Deno.test("a node that gets the right later gets the object later", async () => {
  const { api, clock, references, value, put } = setUp();
  put("s", "1");
  references.need("n1", [secret("s")]);
  await clock.advance(10_000);
  await turns();
  assert.equal(value("n1", "s"), undefined);
  api.put(pods, using("ns", "p1", "n1", "s"));
  await untilPassing(clock, 5000, () => value("n1", "s") === "1", "the object");
  await references.stop();
});

Deno.test("nodes share one watch, which goes on when its node leaves", async () => {
  const { api, clock, references, value, put, told } = setUp();
  put("s", "1");
  for (const node of ["n1", "n2", "n3"]) {
    api.put(pods, using("ns", `p-${node}`, node, "s"));
    references.need(node, [secret("s")]);
    await references.complete(node);
  }
  await until(() => api.watches === 1, "the watch");
  told.length = 0;
  put("s", "2");
  await until(() => told.length === 3, "all three are told");
  assert.equal(value("n3", "s"), "2");
  assert.equal(api.watches, 1);
  // n1, as whom the watch runs, loses its pod; its watch is refused from then on.
  api.remove(pods, "ns/p-n1");
  references.need("n1", []);
  api.endWatches();
  put("s", "3");
  await untilPassing(clock, 500, () => value("n2", "s") === "3", "the change after the handover");
  assert.equal(value("n1", "s"), undefined);
  references.need("n2", []);
  references.need("n3", []);
  await until(() => api.watches === 0, "no watch without a user");
  await references.stop();
});

Deno.test("what does not exist is absent, what is made appears, what is deleted is absent again", async () => {
  const { api, references, value, put, told } = setUp();
  api.put(pods, using("ns", "p", "n1", "s"));
  references.need("n1", [secret("s")]);
  await references.complete("n1");
  assert.deepEqual(references.get("n1", "secrets", "ns/s"), {
    uid: "",
    version: absentVersion,
    json: undefined,
  });
  await until(() => api.watches === 1, "the watch");
  told.length = 0;
  put("s", "1");
  await until(() => value("n1", "s") === "1", "the object");
  api.remove(secrets, "ns/s");
  await until(() => references.get("n1", "secrets", "ns/s")?.version === absentVersion, "its absence");
  assert.equal(told.length, 2);
  await references.stop();
});

Deno.test("a node is complete when what was missing is no longer needed", async () => {
  const { api, references, put } = setUp();
  put("s", "1");
  api.put(pods, using("ns", "p", "n1", "s"));
  api.intercept = (_request, attributes) =>
    attributes?.resource === "secrets" ? new Promise(() => {}) : undefined;
  references.need("n1", [secret("s")]);
  let complete = false;
  const done = references.complete("n1").then(() => complete = true);
  await turns();
  assert.equal(complete, false);
  references.need("n1", []);
  await until(() => complete, "complete");
  await done;
  await references.stop();
});

Deno.test("an unreachable API server is no refusal: it is asked again", async () => {
  const { api, clock, references, value, put } = setUp();
  put("s", "1");
  api.put(pods, using("ns", "p", "n1", "s"));
  api.intercept = (_request, attributes) => attributes?.resource === "secrets" ? { status: 503 } : undefined;
  references.need("n1", [secret("s")]);
  let complete = false;
  void references.complete("n1").then(() => complete = true);
  await clock.advance(20_000);
  await turns();
  assert.equal(complete, false, "the node is not told that it may not have it");
  api.intercept = undefined;
  await untilPassing(clock, 1000, () => value("n1", "s") === "1", "the object");
  assert.equal(complete, true);
  await references.stop();
});

Deno.test("ConfigMaps and Secrets of one name are two objects", async () => {
  const { api, references, value, put } = setUp();
  put("x", "1");
  api.put(configMaps, { metadata: { namespace: "ns", name: "x" }, data: { v: "map" } });
  api.put(
    pods,
    pod("ns", "p", "n1", {
      volumes: [{ name: "a", secret: { secretName: "x" } }, { name: "b", configMap: { name: "x" } }],
    }),
  );
  references.need("n1", [secret("x"), { kind: "configmaps", key: "ns/x" }]);
  await references.complete("n1");
  assert.equal(value("n1", "x"), "1");
  assert.match(text(references.get("n1", "configmaps", "ns/x")!.json!), /"v":"map"/);
  assert.deepEqual([references.keysOf("n1", "secrets"), references.keysOf("n1", "configmaps")], [["ns/x"], [
    "ns/x",
  ]]);
  await references.stop();
});
