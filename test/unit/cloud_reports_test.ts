import assert from "node:assert/strict";
import { NodeReports } from "../../lib/cloud/reports.ts";
import type { Report } from "../../lib/wire/messages.ts";
import { type Json, nodeAuthorizer } from "../fake/kube_api.ts";
import { makeWorld, nodes, pod, pods, turns, until, untilPassing } from "../fake/world.ts";

function setUp() {
  const world = makeWorld(), outcomes: string[] = [];
  world.api.authorize = nodeAuthorizer(world.api);
  const reports = new NodeReports("n1", {
    ...world,
    nodeStatus: (_node, status) => status,
    wrote: (sort, outcome) => outcomes.push(`${sort} ${outcome}`),
  });
  const abort = new AbortController();
  const object = world.api.put(pods, pod("ns", "p", "n1"));
  world.api.put(nodes, {
    metadata: { name: "n1" },
    status: {
      addresses: [{ type: "InternalIP", address: "1.1.1.1" }, { type: "ExternalIP", address: "2.2.2.2" }],
    },
  });
  const status = (value: Json, uid = object.metadata.uid): Report => ({
    report: "podStatus",
    namespace: "ns",
    name: "p",
    uid,
    status: value,
  });
  return {
    ...world,
    reports,
    outcomes,
    abort,
    uid: object.metadata.uid as string,
    status,
    write: (report: Report) => reports.write(report, abort.signal),
  };
}

Deno.test("a status is written as the node; addresses that are gone are gone", async () => {
  const { api, write, status, outcomes } = setUp();
  assert.equal(
    await write(status({ phase: "Running", podIPs: [{ ip: "10.0.0.1" }, { ip: "10.0.0.2" }] })),
    undefined,
  );
  assert.equal(await write(status({ podIPs: [{ ip: "10.0.0.3" }] })), undefined);
  assert.deepEqual(api.find(pods, "ns/p").status, { phase: "Running", podIPs: [{ ip: "10.0.0.3" }] });
  assert.ok(api.requests.every(({ user }) => user === "system:node:n1"));
  await write({ report: "nodeStatus", status: { addresses: [{ type: "InternalIP", address: "3.3.3.3" }] } });
  assert.deepEqual(api.find(nodes, "n1").status.addresses, [{ type: "InternalIP", address: "3.3.3.3" }]);
  assert.deepEqual(outcomes, ["podStatus ok", "podStatus ok", "nodeStatus ok"]);
});

Deno.test("what is gone is done: there is nothing left to say about it", async () => {
  const { api, write, status, outcomes, uid } = setUp();
  assert.equal(
    await write(status({ phase: "Running" }, "another-uid")),
    undefined,
    "another pod of that name",
  );
  assert.equal(api.find(pods, "ns/p").status.phase, "Pending");
  assert.equal(await write({ report: "podGone", namespace: "ns", name: "p", uid: "another-uid" }), undefined);
  assert.ok(api.find(pods, "ns/p"));
  assert.equal(await write({ report: "podGone", namespace: "ns", name: "p", uid }), undefined);
  assert.equal(api.find(pods, "ns/p"), undefined);
  api.authorize = () => true;
  assert.equal(await write({ report: "podGone", namespace: "ns", name: "p", uid }), undefined, "twice");
  assert.equal(await write(status({ phase: "Failed" })), undefined);
  assert.deepEqual(outcomes, [
    "podStatus gone",
    "podGone gone",
    "podGone ok",
    "podGone gone",
    "podStatus gone",
  ]);
});

Deno.test("a refusal is final and says why", async () => {
  const { api, write, outcomes, clock } = setUp();
  const other = api.put(pods, pod("ns", "other", "n2"));
  const refusal = await write({
    report: "podStatus",
    namespace: "ns",
    name: "other",
    uid: other.metadata.uid,
    status: {},
  });
  assert.match(refusal ?? "", /403 .*cannot patch/);
  api.intercept = () => ({ status: 422, body: { message: "status.phase: Unsupported value" } });
  assert.match(await write({ report: "nodeStatus", status: {} }) ?? "", /Unsupported value/);
  assert.deepEqual(outcomes, ["podStatus refused", "nodeStatus refused"]);
  assert.equal(clock.pendingTimers, 0);
});

Deno.test("faults of the API server are tried again until it answers", async () => {
  const { api, write, status, clock } = setUp();
  const faults: (() => { status: number; body?: Json } | Promise<never>)[] = [
    () => ({ status: 500 }),
    () => ({ status: 503 }),
    () => ({ status: 429, body: { details: { retryAfterSeconds: 3 } } }),
    () => Promise.reject(new Error("connection reset")),
    () => ({ status: 504 }),
  ];
  let tries = 0;
  api.intercept = () => faults[tries++]?.();
  let done = false;
  void write(status({ phase: "Running" })).then(() => done = true);
  await untilPassing(clock, 100, () => done, "the write");
  assert.equal(tries, 6);
  assert.equal(api.find(pods, "ns/p").status.phase, "Running");
  assert.ok(clock.monotonic() >= 3000, "Retry-After is obeyed");
});

Deno.test("order holds for one pod, and one that is stuck does not hold up another", async () => {
  const { api, write, status, clock } = setUp();
  const second = api.put(pods, pod("ns", "q", "n1"));
  let broken = true;
  api.intercept = (_request, attributes) => broken && attributes?.name === "p" ? { status: 500 } : undefined;
  const order: string[] = [];
  for (const phase of ["Pending", "Running", "Succeeded"]) {
    void write(status({ phase })).then(() => order.push(phase));
  }
  void write({
    report: "podStatus",
    namespace: "ns",
    name: "q",
    uid: second.metadata.uid,
    status: { phase: "Running" },
  }).then(() => order.push("q"));
  await until(() => order.includes("q"), "the other pod");
  assert.deepEqual(order, ["q"]);
  broken = false;
  await untilPassing(clock, 100, () => order.length === 4, "the rest");
  assert.deepEqual(order, ["q", "Pending", "Running", "Succeeded"]);
  assert.equal(api.find(pods, "ns/p").status.phase, "Succeeded");
});

Deno.test("a session that ends takes its reports along: the edge sends them again", async () => {
  const { api, write, status, abort, clock } = setUp();
  api.intercept = () => ({ status: 503 });
  const written = write(status({ phase: "Running" }));
  const rejected = assert.rejects(written, /over/);
  await turns();
  abort.abort(new Error("over"));
  await rejected;
  assert.equal(clock.pendingTimers, 0);
});

Deno.test("an event that happened again counts on", async () => {
  const { api, write } = setUp();
  const event = (count: number): Report => ({
    report: "event",
    namespace: "ns",
    event: { metadata: { namespace: "ns", name: "p.1" }, reason: "BackOff", count },
  });
  api.authorize = () => true;
  await write(event(1));
  await write(event(2));
  assert.equal(api.all("/api/v1/events").length, 1);
  assert.equal(api.all("/api/v1/events")[0].count, 2);
});
