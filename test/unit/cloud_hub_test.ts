/** The hub as an edge meets it: who is let in, what they are given, and how it ends. */
import assert from "node:assert/strict";
import { unprovedConnectionsMax, unprovedTimeoutMs } from "../../lib/core/limits.ts";
import { signProof } from "../../lib/crypto/proof.ts";
import {
  authorityHash,
  issueLeaf,
  makeAuthority,
  makeKey,
  makeRequest,
  publicKeyOf,
} from "../../lib/crypto/x509.ts";
import { proofParameters } from "../../lib/wire/messages.ts";
import { type Cloud, EdgeLink, EdgeStore, joinEdge, namespace, startCloud, tryJoin } from "../fake/cloud.ts";
import { configMaps, nodes, pod, pods, secrets, turns, until, untilPassing } from "../fake/world.ts";

/** A cloud for one test, closed afterwards; nothing secret may have been logged. */
function test(name: string, body: (cloud: Cloud) => Promise<void>): void {
  Deno.test(name, async () => {
    const cloud = await startCloud();
    try {
      await body(cloud);
      const logs = JSON.stringify(cloud.logged);
      assert.doesNotMatch(logs, /PRIVATE KEY|BEGIN CERT|super-secret/, "no secret in the log");
    } finally {
      await cloud.close();
    }
  });
}

const revoke = (cloud: Cloud, node: string) => {
  const object = cloud.api.find(configMaps, `${namespace}/edge-node.${node}`);
  object.data.record = JSON.stringify({ ...JSON.parse(object.data.record), revoked: "stolen" });
  cloud.api.put(configMaps, object);
};

test("a good proof is welcomed and gets what its node is to hold, and nothing of another's", async (cloud) => {
  const one = await joinEdge(cloud, "n1"), two = await joinEdge(cloud, "n2");
  const { api } = cloud;
  for (const name of ["s1", "s2"]) {
    api.put(secrets, { metadata: { namespace: "ns", name }, data: { v: btoa(`super-secret of ${name}`) } });
  }
  api.put(pods, pod("ns", "p1", "n1", { volumes: [{ name: "v", secret: { secretName: "s1" } }] }));
  api.put(pods, pod("ns", "p2", "n2", { volumes: [{ name: "v", secret: { secretName: "s2" } }] }));
  await until(() => cloud.controller.nodes().length === 2, "both records");
  const stores = [new EdgeStore(), new EdgeStore()] as const;
  const links = [
    await new EdgeLink(cloud, one, { store: stores[0] }).live(),
    await new EdgeLink(cloud, two, { store: stores[1], instance: "b" }).live(),
  ];
  await until(
    () => links.every((link) => link.synced.has("pods") && link.synced.has("secrets")),
    "all kinds",
  );
  assert.deepEqual([...stores[0].of("pods").keys()], ["ns/p1"]);
  assert.deepEqual([...stores[0].of("secrets").keys()], ["ns/s1"]);
  assert.deepEqual([...stores[0].of("nodes").keys()], ["n1"]);
  assert.deepEqual([...stores[1].of("pods").keys()], ["ns/p2"]);
  assert.equal(
    stores[0].object("pods", "ns/p1").metadata.managedFields,
    undefined,
    "managedFields are cut out",
  );
  assert.equal(links[0]?.welcome?.node, "n1");
  for (const link of links) link.close();
});

test("changes follow, each once, and a reconnect with nothing changed sends no object", async (cloud) => {
  const identity = await joinEdge(cloud, "n1");
  const { api } = cloud;
  const store = new EdgeStore();
  for (let i = 0; i < 30; i++) api.put(pods, pod("ns", `p${i}`, "n1"));
  const first = await new EdgeLink(cloud, identity, { store }).live();
  await until(() => store.of("pods").size === 30 && first.synced.has("pods"), "30 pods");
  api.put(pods, pod("ns", "p0", "n1", { priority: 1 }));
  api.remove(pods, "ns/p1");
  await until(
    () => store.of("pods").size === 29 && store.object("pods", "ns/p0").spec.priority === 1,
    "two changes",
  );
  const before = first.changes.length;
  const updated = api.find(pods, "ns/p0");
  api.put(pods, { ...updated, status: { phase: "Running" } });
  await turns();
  assert.equal(first.changes.length, before, "a status is not echoed");
  first.close();
  const second = await new EdgeLink(cloud, identity, { store }).live();
  await turns();
  assert.deepEqual(second.changes, []);
  assert.deepEqual(second.welcome?.want, []);
  assert.ok(
    second.bytesReceived + second.bytesSent < 4000,
    `${second.bytesReceived} bytes down, ${second.bytesSent} up`,
  );
  second.close();
  api.put(pods, pod("ns", "p2", "n1", { priority: 2 }));
  api.remove(pods, "ns/p3");
  const third = await new EdgeLink(cloud, identity, { store }).live();
  await until(() => third.synced.has("pods"), "pods in step");
  assert.deepEqual(third.changes.sort(), ["drop pods ns/p3", "object pods ns/p2"]);
  third.close();
});

test("a cluster restored from a backup is noticed, although its revisions went back", async (cloud) => {
  const identity = await joinEdge(cloud, "n1"), store = new EdgeStore();
  cloud.api.put(pods, pod("ns", "p", "n1", { priority: 1 }));
  const first = await new EdgeLink(cloud, identity, { store }).live();
  await until(() => first.synced.has("pods"), "the pod");
  first.close();
  await cloud.close();
  const restored = await startCloud(({ api }) => {
    for (const collection of [configMaps, nodes, secrets]) {
      for (const object of cloud.api.all(collection)) api.put(collection, object);
    }
    api.put(pods, {
      ...pod("ns", "p", "n1", { priority: 0 }),
      metadata: { ...pod("ns", "p", "n1").metadata, uid: cloud.api.find(pods, "ns/p").metadata.uid },
    });
  });
  const second = await new EdgeLink(restored, identity, { store }).live();
  await until(() => store.object("pods", "ns/p").spec.priority === 0, "the older pod");
  second.close();
  await restored.close();
});

test("a certificate of another CA is refused", async (cloud) => {
  const identity = await joinEdge(cloud, "n1");
  const nowMs = cloud.clock.now(), serial = new Uint8Array([1]);
  const other = await makeAuthority("kubeedge edge CA", { nowMs, days: 1, serial });
  const certificate = await issueLeaf(other, {
    subject: { commonName: "system:node:n1", organization: "system:nodes" },
    publicKey: await publicKeyOf(identity.key),
    usage: "client",
    nowMs,
    lifeMs: 60_000,
    serial,
  });
  const refuse = await new EdgeLink(cloud, { ...identity, certificate }).refusal();
  assert.equal(refuse.code, "certificate");
  assert.match(refuse.message, /not issued by this cluster's edge CA.*join again with a token/);
});

test("an expired certificate is refused", async (cloud) => {
  const identity = await joinEdge(cloud, "n1");
  cloud.clock.jump(31 * 86_400_000);
  const refuse = await new EdgeLink(cloud, identity).refusal();
  assert.equal(refuse.code, "certificate");
  assert.match(refuse.message, /expired at 2026-01-31/);
});

test("another node's certificate without its key is refused", async (cloud) => {
  const one = await joinEdge(cloud, "n1"), two = await joinEdge(cloud, "n2");
  const refuse = await new EdgeLink(cloud, { ...one, certificate: two.certificate }).refusal();
  assert.equal(refuse.code, "proof");
  assert.equal(cloud.controller.nodes().some((node) => node.connected), false);
});

test("a certificate of our CA that is no node's is refused", async (cloud) => {
  const identity = await joinEdge(cloud, "n1");
  const authority = cloud.api.find(secrets, `${namespace}/kubeedge-ca`).data;
  const signer = { certificate: atob(authority["ca.crt"]), key: atob(authority["ca.key"]) };
  for (
    const subject of [{ commonName: "kubeedge hub" }, { commonName: "system:node:n1" }, {
      commonName: "system:node:",
      organization: "system:nodes",
    }]
  ) {
    const certificate = await issueLeaf(signer, {
      subject,
      publicKey: await publicKeyOf(identity.key),
      usage: "client",
      nowMs: cloud.clock.now(),
      lifeMs: 60_000,
      serial: new Uint8Array([9]),
    });
    const refuse = await new EdgeLink(cloud, { ...identity, certificate }).refusal();
    assert.equal(refuse.code, "certificate", subject.commonName);
  }
});

test("a recorded proof is worthless on another connection", async (cloud) => {
  const identity = await joinEdge(cloud, "n1");
  const first = await new EdgeLink(cloud, identity).live();
  const recorded = first.proof!;
  first.close();
  await turns();
  const refuse = await new EdgeLink(cloud, identity, { forge: () => recorded }).refusal();
  assert.equal(refuse.code, "proof");
  assert.match(refuse.message, /not for this connection/);
});

test("a proof whose claims were changed on the way is refused", async (cloud) => {
  const identity = await joinEdge(cloud, "n1");
  for (const change of [{ instance: "other" }, { agent: "9" }, { digests: { pods: "ff" } }]) {
    const refuse = await new EdgeLink(cloud, identity, { forge: (proof) => ({ ...proof, ...change }) })
      .refusal();
    assert.equal(refuse.code, "proof", JSON.stringify(change));
  }
});

test("a proof that was made for a hub of another CA is refused", async (cloud) => {
  const identity = await joinEdge(cloud, "n1");
  const other = await makeAuthority("other", {
    nowMs: cloud.clock.now(),
    days: 1,
    serial: new Uint8Array([1]),
  });
  // The victim pins another hub; that hub passes our nonce on to it.
  const refuse = await new EdgeLink(cloud, { ...identity, caBundle: other.certificate }).refusal();
  assert.equal(refuse.code, "proof");
});

test("revoking a node ends its live session and keeps it out", async (cloud) => {
  const identity = await joinEdge(cloud, "n1");
  const link = await new EdgeLink(cloud, identity).live();
  revoke(cloud, "n1");
  await until(() => link.closed !== undefined, "the end of the session");
  assert.equal(link.refused?.code, "revoked");
  assert.match(link.refused?.message ?? "", /"n1" is revoked: stolen/);
  assert.equal((await new EdgeLink(cloud, identity).refusal()).code, "revoked");
  const again = await tryJoin(cloud, "n1", { key: identity.key });
  assert.equal(again.status, 403);
  assert.match(again.body.message, /nodes restore n1/);
});

test("a node that is revoked while its proof is being judged does not get in", async (cloud) => {
  const identity = await joinEdge(cloud, "n1");
  // Its view is not complete: the proof waits for the Secret.
  const { api } = cloud;
  const before = api.intercept!;
  const gate = Promise.withResolvers<void>();
  api.intercept = async (request, attributes) => {
    if (attributes?.resource === "secrets" && attributes.name === "slow") await gate.promise;
    return await before(request, attributes);
  };
  api.put(secrets, { metadata: { namespace: "ns", name: "slow" } });
  api.put(pods, pod("ns", "p", "n1", { volumes: [{ name: "v", secret: { secretName: "slow" } }] }));
  await until(() => api.requests.some((request) => request.name === "slow"), "the question");
  const link = new EdgeLink(cloud, identity);
  await until(() => link.proof, "the proof");
  await turns();
  assert.equal(link.welcome, undefined);
  revoke(cloud, "n1");
  await turns();
  gate.resolve();
  assert.equal((await link.refusal()).code, "revoked");
});

test("kubectl delete node ends the session; the record and the certificate are worth nothing afterwards", async (cloud) => {
  const identity = await joinEdge(cloud, "n1");
  const link = await new EdgeLink(cloud, identity).live();
  await until(() => link.synced.has("nodes"), "the node");
  cloud.api.remove(nodes, "n1");
  await until(() => link.closed !== undefined, "the end of the session");
  assert.equal(link.refused?.code, "deleted");
  assert.equal(cloud.api.find(configMaps, `${namespace}/edge-node.n1`), undefined);
  const refuse = await new EdgeLink(cloud, identity).refusal();
  assert.equal(refuse.code, "deleted");
  assert.match(refuse.message, /join again with a token/);
  const other = await joinEdge(cloud, "n1");
  await (await new EdgeLink(cloud, other).live()).close();
});

test("a second agent with a copied key is refused while the first is heard", async (cloud) => {
  const identity = await joinEdge(cloud, "n1");
  const first = await new EdgeLink(cloud, identity, { instance: "a", remote: "192.0.2.7:1" }).live();
  const refuse = await new EdgeLink(cloud, identity, { instance: "b" }).refusal();
  assert.equal(refuse.code, "duplicate");
  assert.match(refuse.message, /connected from 192\.0\.2\.7:1 already/);
  assert.equal(first.over, false, "the first one goes on");
  const again = await new EdgeLink(cloud, identity, { instance: "a" }).live();
  await until(() => first.closed !== undefined, "the older session of the same agent ends");
  again.close();
  await turns();
  await (await new EdgeLink(cloud, identity, { instance: "b" }).live()).close();
});

test("a new agent gets in when the former one has not been heard for a while", async (cloud) => {
  const identity = await joinEdge(cloud, "n1");
  const first = await new EdgeLink(cloud, identity, { instance: "a" }).live();
  first.beating = false;
  await cloud.clock.advance(16_000);
  const second = await new EdgeLink(cloud, identity, { instance: "b" }).live();
  await until(() => first.closed !== undefined, "the older session ends");
  second.close();
});

test("another machine's name is refused, a takeover is not, and ends the former machine's session", async (cloud) => {
  const former = await joinEdge(cloud, "n1");
  const link = await new EdgeLink(cloud, former, { instance: "a" }).live();
  const refused = await tryJoin(cloud, "n1");
  assert.equal(refused.status, 409);
  assert.match(refused.body.message, /belongs to another machine since .*--takeover/s);
  assert.equal(link.over, false);
  const next = await joinEdge(cloud, "n1", { token: await cloud.token({ takeover: true }) });
  await until(() => link.closed !== undefined, "the end of the former machine's session");
  assert.equal(link.refused?.code, "replaced");
  const taken = await new EdgeLink(cloud, next, { instance: "b" }).live();
  assert.equal((await new EdgeLink(cloud, former, { instance: "a" }).refusal()).code, "replaced");
  assert.equal(taken.over, false);
  taken.close();
});

test("joining again with the same key is no takeover", async (cloud) => {
  const identity = await joinEdge(cloud, "n1");
  const link = await new EdgeLink(cloud, identity).live();
  const again = await joinEdge(cloud, "n1", { key: identity.key });
  await turns();
  assert.equal(link.over, false);
  link.close();
  await turns();
  await (await new EdgeLink(cloud, again).live()).close();
});

test("a certificate is renewed over the session; the old key counts until the new one was used", async (cloud) => {
  const identity = await joinEdge(cloud, "n1");
  const link = await new EdgeLink(cloud, identity).live();
  const key = await makeKey();
  const csr = await makeRequest(key, { commonName: "whatever" });
  const answer = await link.session.request({ request: "renew", csr });
  assert.ok("status" in answer && answer.status === 200, JSON.stringify(answer));
  const { certificate, caBundle } = answer.body as { certificate: string; caBundle: string };
  const bad = await link.session.request({ request: "renew", csr: "x" });
  assert.ok("status" in bad && bad.status === 400);
  link.close();
  await turns();
  const old = await new EdgeLink(cloud, identity).live();
  old.close();
  await turns();
  const renewed = { node: "n1", key, certificate, caBundle };
  (await new EdgeLink(cloud, renewed).live()).close();
  await turns();
  assert.equal((await new EdgeLink(cloud, identity).refusal()).code, "replaced");
  (await new EdgeLink(cloud, renewed).live()).close();
});

test("a node that asks for another node's things gets nothing", async (cloud) => {
  const one = await joinEdge(cloud, "n1");
  await joinEdge(cloud, "n2");
  const { api } = cloud;
  api.put(secrets, { metadata: { namespace: "ns", name: "s2" }, data: { v: btoa("super-secret") } });
  api.put(
    pods,
    pod("ns", "p2", "n2", {
      serviceAccountName: "sa2",
      volumes: [{ name: "v", secret: { secretName: "s2" } }],
    }),
  );
  const store = new EdgeStore();
  // It claims to hold the Secret already, under a false version.
  store.of("secrets").set("ns/s2", { uid: "", version: "0123456789abcdef", json: "" });
  const link = await new EdgeLink(cloud, one, { store }).live();
  await until(() => link.synced.has("secrets"), "secrets in step");
  assert.deepEqual([...store.of("secrets").keys()], [], "it is told to drop it");
  const token = await link.session.request({
    request: "token",
    namespace: "ns",
    serviceAccount: "sa2",
    spec: {},
  });
  assert.ok("status" in token && token.status === 403, JSON.stringify(token));
  link.session.report(1, {
    report: "podStatus",
    namespace: "ns",
    name: "p2",
    uid: api.find(pods, "ns/p2").metadata.uid,
    status: { phase: "Failed" },
  });
  link.session.report(2, {
    report: "podGone",
    namespace: "ns",
    name: "p2",
    uid: api.find(pods, "ns/p2").metadata.uid,
  });
  await until(() => link.reported.length === 2, "both reports answered");
  assert.equal(link.reportRefusals.length, 2);
  assert.equal(api.find(pods, "ns/p2").status.phase, "Pending");
  assert.doesNotMatch(JSON.stringify(link.changes), /p2/);
  link.close();
});

test("an object that a pod refers to and that does not exist is known to be absent, and comes when it is made", async (cloud) => {
  const identity = await joinEdge(cloud, "n1"), store = new EdgeStore();
  cloud.api.put(
    pods,
    pod("ns", "p", "n1", {
      containers: [{ name: "c", image: "i", envFrom: [{ configMapRef: { name: "later" } }] }],
    }),
  );
  const link = await new EdgeLink(cloud, identity, { store }).live();
  await until(() => link.synced.has("configmaps"), "configmaps in step");
  assert.deepEqual(store.of("configmaps").get("ns/later"), {
    uid: "",
    version: "0000000000000000",
    json: "",
  });
  cloud.api.put(configMaps, { metadata: { namespace: "ns", name: "later" }, data: { a: "1" } });
  await until(() => store.object("configmaps", "ns/later")?.data.a === "1", "the ConfigMap");
  cloud.api.remove(configMaps, "ns/later");
  await until(() => store.of("configmaps").get("ns/later")?.json === "", "its absence");
  link.close();
});

test("guests are few and short-lived", async (cloud) => {
  const identity = await joinEdge(cloud, "n1");
  const guests = Array.from(
    { length: unprovedConnectionsMax },
    () => new EdgeLink(cloud, identity, { silent: true }),
  );
  assert.equal(new EdgeLink(cloud, identity, { silent: true }).closed, "too many guests");
  assert.match(
    cloud.metrics.text(),
    new RegExp(`kubeedge_cloud_unproved_connections ${unprovedConnectionsMax}\\n`),
  );
  await untilPassing(
    cloud.clock,
    1000,
    () => guests.every((guest) => guest.closed !== undefined),
    "all guests gone",
  );
  assert.ok(cloud.clock.monotonic() <= unprovedTimeoutMs + 3000, `${cloud.clock.monotonic()} ms`);
  assert.match(cloud.metrics.text(), /kubeedge_cloud_unproved_connections 0\n/);
  (await new EdgeLink(cloud, identity).live()).close();
});

test("a guest that says anything but a proof is thrown out", async (cloud) => {
  const identity = await joinEdge(cloud, "n1");
  const sayings: [string, (link: EdgeLink) => void][] = [
    ["a report", (link) => link.raw("report", 1, { report: "nodeStatus", status: {} })],
    ["a request", (link) => link.raw("request", 1, { request: "renew", csr: "x" })],
    ["a stream", (link) => link.raw("streamHead", 1, { status: 200, headers: [] })],
    ["a proof without anything", (link) => link.raw("proof", 0, {})],
    [
      "a proof that is too long",
      (link) =>
        link.raw("proof", 0, { certificate: crypto.getRandomValues(new Uint8Array(20_000)).join("") }),
    ],
  ];
  for (const [name, say] of sayings) {
    const link = new EdgeLink(cloud, identity, { silent: true });
    say(link);
    await until(() => link.closed !== undefined, name);
    assert.equal(link.welcome, undefined, name);
  }
  const eager = new EdgeLink(cloud, identity, { silent: true });
  const claims = { versionLeast: 9, versionMost: 9, agent: "future", instance: "i", digests: {} };
  const signature = await signProof(identity.key, {
    nonce: new Uint8Array(32),
    authorityHash: authorityHash(identity.caBundle),
    parameters: proofParameters(claims),
  });
  eager.raw("proof", 0, {
    ...claims,
    certificate: identity.certificate,
    signature: "00".repeat(signature.length),
  });
  await until(() => eager.closed !== undefined, "another version");
  assert.match(eager.closed ?? "", /upgrade the older of the two/);
});

test("a silent session ends, its lease is not renewed any more, and what it lost it gets on return", async (cloud) => {
  const identity = await joinEdge(cloud, "n1"), store = new EdgeStore();
  const link = await new EdgeLink(cloud, identity, { store }).live();
  const leases = () =>
    cloud.api.requests.filter(({ resource, method }) => resource === "leases" && method !== "GET").length;
  await untilPassing(cloud.clock, 1000, () => leases() >= 1, "the first lease");
  await untilPassing(cloud.clock, 1000, () => leases() >= 4, "renewals while heartbeats come");
  link.beating = false;
  const count = leases(), from = cloud.clock.monotonic();
  await untilPassing(cloud.clock, 1000, () => link.closed !== undefined, "the end of the silent session");
  assert.ok(leases() - count <= 1, `${leases() - count} renewals in silence`);
  assert.ok(cloud.clock.monotonic() - from <= 40_000, `ended after ${cloud.clock.monotonic() - from} ms`);
  cloud.api.put(pods, pod("ns", "p", "n1"));
  await turns();
  const again = await new EdgeLink(cloud, identity, { store }).live();
  await until(() => store.of("pods").size === 1, "the pod");
  again.close();
});

test("everything for a node is written as the node", async (cloud) => {
  const identity = await joinEdge(cloud, "n1");
  const link = await new EdgeLink(cloud, identity).live();
  cloud.api.put(pods, pod("ns", "p", "n1"));
  await until(() => link.changes.includes("object pods ns/p"), "the pod");
  const uid = cloud.api.find(pods, "ns/p").metadata.uid;
  const mark = cloud.api.requests.length;
  link.session.report(1, {
    report: "podStatus",
    namespace: "ns",
    name: "p",
    uid,
    status: { phase: "Running" },
  });
  link.session.report(2, {
    report: "nodeStatus",
    status: {
      conditions: [{ type: "Ready", status: "True" }],
      addresses: [{ type: "InternalIP", address: "10.9.9.9" }],
    },
  });
  link.session.report(3, {
    report: "event",
    namespace: "ns",
    event: { metadata: { namespace: "ns", name: "e1" }, reason: "Started" },
  });
  await link.session.request({ request: "token", namespace: "ns", serviceAccount: "default", spec: {} });
  await until(() => link.reported.length === 3, "three reports");
  await untilPassing(
    cloud.clock,
    1000,
    () => cloud.api.requests.some(({ resource }) => resource === "leases"),
    "a lease",
  );
  const writes = cloud.api.requests.slice(mark).filter(({ method, resource, namespace: of }) =>
    method !== "GET" && of !== namespace && resource !== "certificatesigningrequests"
  );
  assert.ok(writes.length >= 5);
  for (const write of writes) assert.equal(write.user, "system:node:n1", `${write.method} ${write.target}`);
  const { status } = cloud.api.find(nodes, "n1");
  assert.deepEqual(status.addresses, [{ type: "InternalIP", address: "10.0.0.1" }, {
    type: "Hostname",
    address: "10.0.0.1",
  }], "the hub's address, the edge's own is not echoed");
  assert.equal(status.daemonEndpoints.kubeletEndpoint.Port, 11000);
  link.close();
});

test("the CA is rolled without losing a node", async (cloud) => {
  const { Authority } = await import("../../lib/cloud/authority.ts");
  const identity = await joinEdge(cloud, "n1");
  const { client, clock, random } = cloud;
  const admin = () => Authority.load({ client, namespace, clock, random });
  let link = await new EdgeLink(cloud, identity).live();
  for (const stage of ["prepared", "activated"] as const) {
    assert.equal(await (await admin()).rotate(), stage);
    await untilPassing(clock, 1000, () => link.goaway !== undefined, "the hub asks for a reconnect");
    link.close();
    await turns();
    link = await new EdgeLink(cloud, identity).live();
    identity.caBundle = link.welcome?.caBundle ?? "";
    assert.equal(identity.caBundle.match(/BEGIN CERT/g)?.length, 2, stage);
  }
  const key = await makeKey();
  const answer = await link.session.request({
    request: "renew",
    csr: await makeRequest(key, { commonName: "n1" }),
  });
  assert.ok("status" in answer && answer.status === 200);
  const renewed = { node: "n1", key, ...(answer.body as { certificate: string; caBundle: string }) };
  link.close();
  await turns();
  link = await new EdgeLink(cloud, renewed).live();
  assert.equal(await (await admin()).rotate(), "stable");
  await untilPassing(clock, 1000, () => link.goaway !== undefined, "the hub asks for a reconnect");
  link.close();
  await turns();
  (await new EdgeLink(cloud, renewed).live()).close();
  await turns();
  assert.equal(
    (await new EdgeLink(cloud, identity).refusal()).code,
    "certificate",
    "the old CA's certificate is worth nothing",
  );
});

test("streams reach the node that they are for, and end with its session", async (cloud) => {
  const identity = await joinEdge(cloud, "n1");
  cloud.api.put(pods, pod("ns", "p", "n1"));
  cloud.api.put(pods, pod("ns", "elsewhere", "n2"));
  await untilPassing(cloud.clock, 200, () => cloud.kubeletPorts.has(11000), "the kubelet port");
  const port = cloud.kubeletPorts.get(11000)!;
  const open = { method: "GET", target: "/containerLogs/ns/p/c", headers: [] };
  assert.equal((port.open(open) as { status: number }).status, 502, "not connected");
  const link = await new EdgeLink(cloud, identity).live();
  const stream = port.open(open);
  assert.ok("readable" in stream);
  await until(() => link.streams.length === 1, "the stream at the edge");
  assert.deepEqual(link.streams[0]?.open, open);
  const head = assert.rejects(stream.head);
  link.close();
  await head;
  // Who may call.
  const { api } = cloud;
  api.access = (spec) => spec.user === "admin" && spec.resourceAttributes.name === "n1";
  api.tokens.set("good", { username: "admin", groups: [] });
  const judge = (request: Partial<Parameters<typeof port.judge>[0]>) =>
    port.judge({
      method: "GET",
      path: "/containerLogs/ns/p/c",
      certificate: undefined,
      bearer: undefined,
      ...request,
    });
  assert.equal((await judge({}))?.status, 401);
  assert.equal((await judge({ bearer: "bad" }))?.status, 401);
  assert.equal(
    (await judge({ certificate: { username: "system:node:n2", groups: ["system:nodes"] } }))?.status,
    403,
  );
  assert.equal(await judge({ bearer: "good" }), undefined);
  assert.equal(await judge({ certificate: { username: "admin" } }), undefined);
  assert.equal(
    (await judge({ certificate: { username: "admin" }, path: "/containerLogs/ns/elsewhere/c" }))?.status,
    404,
  );
  assert.equal((await judge({ certificate: { username: "admin" }, path: "/exec/ns/%2e%2e/c" }))?.status, 404);
});

test("a join that is refused, or repeated by the same machine, takes no use of its token", async (cloud) => {
  const first = await joinEdge(cloud, "n1");
  const token = await cloud.token({ usesLeft: 1 });
  const taken = await tryJoin(cloud, "n1", { token });
  assert.equal(taken.status, 409, JSON.stringify(taken.body));
  const second = await joinEdge(cloud, "n2", { token });
  assert.equal((await tryJoin(cloud, "n3", { token })).status, 403, "the use is taken");
  const again = await joinEdge(cloud, "n2", { token, key: second.key });
  assert.notEqual(again.certificate, second.certificate);
  assert.equal(
    (await tryJoin(cloud, "n1", { token, key: first.key })).status,
    200,
    "its holder may come again, with any token that fits",
  );
});
