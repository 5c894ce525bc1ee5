import assert from "node:assert/strict";
import { text } from "../../lib/core/bytes.ts";
import {
  type HttpRequest,
  KubeApiError,
  KubeClient,
  KubeUnreachable,
  objectPath,
  segment,
} from "../../lib/kube/client.ts";
import { lines } from "../../lib/kube/reflector.ts";
import type { ConfigMap, Pod } from "../../lib/kube/types.ts";
import { nodeAuthorizer } from "../fake/kube_api.ts";
import { configMaps, makeWorld, pod, pods, secrets } from "../fake/world.ts";

const refusedWith = (status: number, reason: string) => (error: unknown) => {
  assert.ok(error instanceof KubeApiError, String(error));
  assert.deepEqual([error.status, error.reason], [status, reason]);
  return true;
};

Deno.test("objects are created, read, replaced, patched and deleted", async () => {
  const { client } = makeWorld();
  const collection = objectPath("/api/v1", "configmaps", "ns"),
    path = objectPath("/api/v1", "configmaps", "ns", "c");
  const made = await client.create<ConfigMap>(collection, {
    metadata: { name: "c" },
    data: { a: "1", b: "2" },
  });
  assert.ok(made.metadata.uid);
  await assert.rejects(
    client.create(collection, { metadata: { name: "c" } }),
    refusedWith(409, "AlreadyExists"),
  );
  const changed = await client.patch<ConfigMap>(path, "merge", { data: { a: null, c: "3" } });
  assert.deepEqual(changed.data, { b: "2", c: "3" });
  await assert.rejects(client.replace(path, made), refusedWith(409, "Conflict"));
  const replaced = await client.replace<ConfigMap>(path, { ...changed, data: { z: "9" } });
  assert.deepEqual((await client.get<ConfigMap>(path)).data, { z: "9" });
  await assert.rejects(client.delete(path, { uid: "another" }), refusedWith(409, "Conflict"));
  await client.delete(path, { uid: replaced.metadata.uid! });
  assert.equal(await client.find(path), undefined);
  await assert.rejects(client.get(path), refusedWith(404, "NotFound"));
});

Deno.test("a status patch replaces lists that say so and leaves the rest of the object alone", async () => {
  const { api, client } = makeWorld();
  const object = api.put(pods, {
    ...pod("ns", "p", "n1"),
    status: {
      podIPs: [{ ip: "10.0.0.1" }],
      conditions: [{ type: "Ready", status: "False" }, { type: "X", status: "True" }],
    },
  });
  const patch = {
    metadata: { uid: object.metadata.uid },
    spec: { nodeName: "elsewhere" },
    status: {
      podIPs: [{ $patch: "replace" }, { ip: "10.0.0.2" }],
      conditions: [{ type: "Ready", status: "True" }],
    },
  };
  await client.patch(objectPath("/api/v1", "pods", "ns", "p", "status"), "strategic", patch);
  const after = api.find(pods, "ns/p") as Pod;
  assert.equal(after.spec.nodeName, "n1");
  assert.deepEqual(after.status?.podIPs, [{ ip: "10.0.0.2" }]);
  assert.deepEqual(after.status?.conditions, [{ type: "Ready", status: "True" }, {
    type: "X",
    status: "True",
  }]);
});

Deno.test("a pod on a node is deleted in two steps", async () => {
  const { api, client } = makeWorld();
  api.put(pods, pod("ns", "p", "n1", { terminationGracePeriodSeconds: 7 }));
  const path = objectPath("/api/v1", "pods", "ns", "p");
  await client.delete(path);
  assert.equal((await client.get<Pod>(path)).metadata.deletionGracePeriodSeconds, 7);
  await client.delete(path, { gracePeriodSeconds: 0 });
  assert.equal(await client.find(path), undefined);
});

Deno.test("lists come in pages of one moment, with selectors", async () => {
  const { api, client } = makeWorld();
  for (let i = 0; i < 5; i++) {
    api.put(configMaps, { metadata: { namespace: "ns", name: `c${i}`, labels: { odd: String(i % 2) } } });
  }
  const first = await client.list<ConfigMap>("/api/v1/configmaps", { query: { limit: 2 } });
  api.remove(configMaps, "ns/c4");
  const second = await client.list<ConfigMap>("/api/v1/configmaps", {
    query: { limit: 10, continue: first.metadata.continue },
  });
  assert.deepEqual([...first.items, ...second.items].map((item) => item.metadata.name), [
    "c0",
    "c1",
    "c2",
    "c3",
    "c4",
  ]);
  assert.equal(first.metadata.resourceVersion, second.metadata.resourceVersion);
  const names = async (query: Record<string, string>) =>
    (await client.list<ConfigMap>("/api/v1/configmaps", { query })).items.map((item) => item.metadata.name);
  assert.deepEqual(await names({ labelSelector: "odd=1" }), ["c1", "c3"]);
  assert.deepEqual(await names({ labelSelector: "odd in (0,2)" }), ["c0", "c2"]);
  assert.deepEqual(await names({ labelSelector: "!odd" }), []);
  assert.deepEqual(await names({ fieldSelector: "metadata.name=c2" }), ["c2"]);
  assert.deepEqual(await names({ fieldSelector: "metadata.name!=c2" }), ["c0", "c1", "c3"]);
  const third = await client.list<ConfigMap>("/api/v1/configmaps", { query: { limit: 1 } });
  api.compact();
  await assert.rejects(
    client.list("/api/v1/configmaps", { query: { continue: third.metadata.continue } }),
    refusedWith(410, "Expired"),
  );
});

Deno.test("a node is impersonated by name alone from 1.36 on, with its group before", async () => {
  const headersOf = async (minor: string) => {
    const { api, client } = makeWorld();
    api.version = { ...api.version, minor };
    await client.connect();
    await client.get("/api/v1/pods", { as: { node: "n1" } });
    return api.requests.at(-1)!.headers.filter(([name]) => name.startsWith("impersonate-"));
  };
  assert.deepEqual(await headersOf("36"), [["impersonate-user", "system:node:n1"]]);
  assert.deepEqual(await headersOf("37+"), [["impersonate-user", "system:node:n1"]]);
  assert.deepEqual(await headersOf("28"), [["impersonate-user", "system:node:n1"], [
    "impersonate-group",
    "system:nodes",
  ]]);
});

Deno.test("the fake's Node authorizer lets a node see only what its pods refer to", async () => {
  const { api, client } = makeWorld();
  api.authorize = nodeAuthorizer(api);
  for (const name of ["s1", "s2"]) api.put(secrets, { metadata: { namespace: "ns", name } });
  api.put(pods, pod("ns", "p1", "n1", { volumes: [{ name: "v", secret: { secretName: "s1" } }] }));
  const read = (node: string, name: string) =>
    client.get(objectPath("/api/v1", "secrets", "ns", name), { as: { node } });
  await read("n1", "s1");
  await assert.rejects(read("n1", "s2"), refusedWith(403, "Forbidden"));
  await assert.rejects(read("n2", "s1"), refusedWith(403, "Forbidden"));
  await assert.rejects(
    client.list("/api/v1/namespaces/ns/secrets", { as: { node: "n1" } }),
    refusedWith(403, "Forbidden"),
  );
  await assert.rejects(
    client.delete(objectPath("/api/v1", "pods", "ns", "p1"), {}, { as: { node: "n2" } }),
    refusedWith(403, "Forbidden"),
  );
});

Deno.test("what is no answer of the API server says so", async () => {
  const answering = (status: number, body: string, headers: Record<string, string> = {}) =>
    new KubeClient(() =>
      Promise.resolve({ status, headers: new Headers(headers), body: new Response(body).body })
    );
  await assert.rejects(answering(502, "<html>bad gateway</html>").get("/x"), (error: unknown) => {
    assert.ok(error instanceof KubeApiError);
    assert.match(error.message, /^GET \/x: 502 <html>bad gateway/);
    return true;
  });
  await assert.rejects(
    answering(429, "", { "retry-after": "3" }).get("/x"),
    (error: unknown) => (error as KubeApiError).retryAfterMs === 3000,
  );
  await assert.rejects(answering(200, "not json").get("/x"), SyntaxError);
  const broken = new KubeClient(() => Promise.reject(new Error("connection refused")));
  await assert.rejects(broken.get("/x"), KubeUnreachable);
  const abort = new AbortController();
  const hanging = new KubeClient((request: HttpRequest) =>
    new Promise((_, reject) => request.signal?.addEventListener("abort", () => reject(new Error("aborted"))))
  );
  const asked = hanging.get("/x", { signal: abort.signal });
  abort.abort(new Error("enough"));
  await assert.rejects(asked, /enough/);
});

Deno.test("names cannot change which resource is meant", () => {
  assert.equal(segment("../secrets"), "..%2Fsecrets");
  assert.equal(segment(".."), "%2E%2E");
  assert.equal(segment("a?b#c"), "a%3Fb%23c");
  assert.equal(
    objectPath("/api/v1", "pods", "a/b", "x/log", "status"),
    "/api/v1/namespaces/a%2Fb/pods/x%2Flog/status",
  );
});

Deno.test("lines are put together whatever the chunks, and are bounded", async () => {
  const stream = async function* (whole: string, size: number) {
    const bytes = new TextEncoder().encode(whole);
    for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
    await Promise.resolve();
  };
  for (const size of [1, 2, 3, 100]) {
    const got: string[] = [];
    for await (const line of lines(stream("aé\n\nbb\nunfinished", size), 20)) got.push(text(line));
    assert.deepEqual(got, ["aé", "bb"], `chunks of ${size}`);
  }
  await assert.rejects(async () => {
    for await (const _ of lines(stream("x".repeat(50), 7), 20));
  }, RangeError);
});
