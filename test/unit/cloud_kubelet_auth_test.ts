import assert from "node:assert/strict";
import { attributesOf, KubeletAuth } from "../../lib/cloud/kubelet_auth.ts";
import { makeWorld } from "../fake/world.ts";

Deno.test("requests have the kubelet's attributes", () => {
  const table: [string, string, string][] = [
    ["GET", "/stats/summary", "get nodes/stats"],
    ["GET", "/metrics/resource", "get nodes/metrics"],
    ["GET", "/metrics", "get nodes/metrics"],
    ["GET", "/logs/x", "get nodes/log"],
    ["GET", "/containerLogs/ns/p/c", "get nodes/proxy"],
    ["POST", "/exec/ns/p/c", "create nodes/proxy"],
    ["GET", "/exec/ns/p/c", "get nodes/proxy"],
    ["POST", "/portForward/ns/p", "create nodes/proxy"],
    ["GET", "/pods", "get nodes/pods nodes/proxy"],
    ["GET", "/runningpods/", "get nodes/pods nodes/proxy"],
    ["GET", "/healthz", "get nodes/healthz nodes/proxy"],
    ["POST", "/checkpoint/ns/p/c", "create nodes/checkpoint"],
    ["GET", "/metricsx", "get nodes/proxy"],
    ["GET", "/statsx/summary", "get nodes/proxy"],
    ["GET", "/", "get nodes/proxy"],
    ["BREW", "/pods", " nodes/pods nodes/proxy"],
  ];
  for (const [method, path, want] of table) {
    const attributes = attributesOf(method, path, "n1");
    assert.ok(attributes.every(({ name }) => name === "n1"));
    assert.equal(
      [attributes[0]?.verb, ...attributes.map(({ subresource }) => `nodes/${subresource}`)].join(" "),
      want,
      `${method} ${path}`,
    );
  }
});

Deno.test("Kubernetes is asked for exactly this node, and its answer is kept for a while", async () => {
  const { api, client, clock } = makeWorld(), auth = new KubeletAuth({ client, clock });
  const asked: string[] = [];
  api.access = ({ user, groups, resourceAttributes: { verb, resource, subresource, name } }) => {
    asked.push(`${user} ${groups} ${verb} ${resource}/${subresource} ${name}`);
    return user === "prometheus" && subresource === "metrics";
  };
  const user = { username: "prometheus", groups: ["g"] };
  assert.equal(await auth.allowed(user, "GET", "/metrics", "n1"), true);
  assert.equal(await auth.allowed(user, "GET", "/metrics/resource", "n1"), true);
  assert.deepEqual(asked, ["prometheus g get nodes/metrics n1"]);
  assert.equal(await auth.allowed(user, "GET", "/metrics", "n2"), true, "another node is another question");
  assert.equal(await auth.allowed(user, "POST", "/exec/ns/p/c", "n1"), false);
  assert.equal(
    await auth.allowed({ username: "prometheus", groups: [] }, "GET", "/metrics", "n1"),
    true,
    "other groups are another question",
  );
  assert.equal(asked.length, 4);
  await clock.advance(31_000);
  await auth.allowed(user, "POST", "/exec/ns/p/c", "n1");
  await auth.allowed(user, "GET", "/metrics", "n1");
  assert.equal(asked.length, 5, "a refusal is asked again after 30 s, a permission is not");
  await clock.advance(90_000);
  await auth.allowed(user, "GET", "/metrics", "n1");
  assert.equal(asked.length, 6);
});

Deno.test("either of two subresources opens the door", async () => {
  const { api, client, clock } = makeWorld(), auth = new KubeletAuth({ client, clock });
  api.access = ({ resourceAttributes }) => resourceAttributes.subresource === "proxy";
  assert.equal(await auth.allowed({ username: "u" }, "GET", "/pods", "n1"), true);
  assert.equal(await auth.allowed({ username: "u" }, "GET", "/stats/summary", "n1"), false);
});

Deno.test("bearer tokens are reviewed, not believed, and not kept in the clear", async () => {
  const { api, client, clock } = makeWorld(), auth = new KubeletAuth({ client, clock });
  api.tokens.set("good", { username: "system:serviceaccount:m:s", groups: ["a"] });
  assert.deepEqual(await auth.token("good"), { username: "system:serviceaccount:m:s", groups: ["a"] });
  assert.equal(await auth.token("bad"), undefined);
  assert.equal(await auth.token("bad"), undefined);
  await auth.token("good");
  assert.equal(api.requests.length, 2);
  api.tokens.delete("good");
  await clock.advance(121_000);
  assert.equal(await auth.token("good"), undefined, "a token that was withdrawn stops working");
});

Deno.test("an API server that does not answer lets nobody in", async () => {
  const { api, client, clock } = makeWorld(), auth = new KubeletAuth({ client, clock });
  api.intercept = () => ({ status: 500 });
  await assert.rejects(auth.token("good"));
  await assert.rejects(auth.allowed({ username: "u" }, "GET", "/metrics", "n1"));
  api.intercept = undefined;
  assert.equal(
    await auth.allowed({ username: "u" }, "GET", "/metrics", "n1"),
    false,
    "the fault was not kept",
  );
});
