import assert from "node:assert/strict";
import { type Bytes, text, utf8 } from "../../lib/core/bytes.ts";
import { sessionTimeoutMs, unprovedTimeoutMs } from "../../lib/core/limits.ts";
import { digestOf } from "../../lib/wire/digest.ts";
import { type Change, EdgeSession, type EdgeSessionHandlers } from "../../lib/wire/edge_session.ts";
import { encodeFrame, encodeJson } from "../../lib/wire/frame.ts";
import {
  absentVersion,
  HubSession,
  type HubSessionHandlers,
  type NodeView,
  type ViewObject,
} from "../../lib/wire/hub_session.ts";
import type { Refuse, Report } from "../../lib/wire/messages.ts";
import { SeededRandom } from "../fake/clock.ts";

/** The cloud's side of the model: what the node is to hold. */
class View implements NodeView {
  readonly objects = new Map<string, Map<string, ViewObject>>([["pods", new Map()], ["secrets", new Map()]]);
  kinds(): string[] {
    return [...this.objects.keys()];
  }
  keys(kind: string): Iterable<string> {
    return this.objects.get(kind)?.keys() ?? [];
  }
  get(kind: string, key: string): ViewObject | undefined {
    return this.objects.get(kind)?.get(key);
  }
  put(kind: string, key: string, revision: number | "absent"): void {
    const version = revision === "absent" ? absentVersion : revision.toString(16).padStart(16, "0");
    const json = revision === "absent" ? undefined : utf8(JSON.stringify({ revision }));
    this.objects.get(kind)?.set(key, { uid: "u", version, json });
  }
}

/** The edge's store: committed changes only. */
class Store {
  readonly objects = new Map<string, Map<string, { uid: string; version: string; json: string }>>();
  readonly applied: string[] = [];
  of(kind: string) {
    let objects = this.objects.get(kind);
    if (!objects) this.objects.set(kind, objects = new Map());
    return objects;
  }
  commit(change: Change): void {
    const { kind, key, uid, version } = change;
    if (change.change === "drop") this.of(kind).delete(key);
    else this.of(kind).set(key, { uid, version, json: text(change.json) });
    this.applied.push(`${change.change} ${kind} ${key} ${version}`);
  }
  entries(kind: string): [string, string, string][] {
    return [...this.of(kind)].map(([key, { uid, version }]) => [key, uid, version]);
  }
  digests(): Record<string, string> {
    return Object.fromEntries([...this.objects.keys()].map((kind) => [kind, digestOf(this.entries(kind))]));
  }
}

/** A hub and an edge joined by two in-memory queues that are pumped by hand, and can be cut at any message. */
class Link {
  readonly toEdge: Bytes[] = [];
  readonly toHub: Bytes[] = [];
  readonly hub: HubSession;
  readonly edge: EdgeSession;
  readonly uncommitted: { seq: number; change: Change | undefined }[] = [];
  readonly failures: string[] = [];
  readonly refusals: Refuse[] = [];
  synced: string[] = [];
  bytes = 0;

  constructor(
    readonly view: View,
    readonly store: Store,
    readonly reports: { id: number; report: Report }[],
    readonly received: Report[],
  ) {
    const hubHandlers: HubSessionHandlers = {
      transmit: (message) => this.toEdge.push(message),
      proof: (proof) =>
        this.hub.accept({ session: "s", version: 1, node: "n1", timeMs: 0 }, view, proof.digests),
      report: (seq, report) => {
        this.received.push(report);
        this.hub.reported(seq, report.report === "podGone" ? "no such pod" : undefined);
      },
      request: (id, request) => this.hub.respond(id, { status: 201, body: { asked: request.request } }),
      heartbeat: () => {},
      failed: (reason) => this.failures.push("hub: " + reason),
    };
    const edgeHandlers: EdgeSessionHandlers = {
      transmit: (message) => this.toHub.push(message),
      hello: () =>
        this.edge.prove({
          certificate: "c",
          signature: "00",
          versionLeast: 1,
          versionMost: 1,
          agent: "t",
          instance: "i",
          digests: store.digests(),
        }),
      welcome: (welcome) => {
        for (const kind of welcome.want) this.edge.have(kind, store.entries(kind));
      },
      refused: (refuse) => this.refusals.push(refuse),
      change: (seq, change) =>
        this.uncommitted.push({ seq, change: { ...change, json: change.json.slice() } }),
      synced: (seq, kind) => {
        this.synced.push(kind);
        this.uncommitted.push({ seq, change: undefined });
      },
      reported: (ids) => {
        for (const id of ids) reports.splice(reports.findIndex((item) => item.id === id), 1);
      },
      reportRefused: () => {},
      streamOpened: () => {},
      goaway: () => {},
      failed: (reason) => this.failures.push("edge: " + reason),
    };
    this.hub = new HubSession(hubHandlers, 0);
    this.edge = new EdgeSession(edgeHandlers, 0);
    this.hub.greet("00".repeat(32), "cluster");
  }

  /** Delivers one message or commits one batch; false when there was nothing to do. */
  step(random?: SeededRandom): boolean {
    const choices: (() => void)[] = [];
    if (this.toEdge.length > 0) choices.push(() => this.deliver(this.toEdge, (m) => this.edge.message(m, 0)));
    if (this.toHub.length > 0) choices.push(() => this.deliver(this.toHub, (m) => this.hub.message(m, 0)));
    if (this.uncommitted.length > 0) {
      choices.push(() =>
        this.commit(random ? 1 + random.below(this.uncommitted.length) : this.uncommitted.length)
      );
    }
    const choice = random ? choices[random.below(Math.max(1, choices.length))] : choices[0];
    choice?.();
    return choice !== undefined;
  }
  settle(): void {
    for (let i = 0; i < 100_000 && this.step(); i++);
    assert.deepEqual(this.failures, []);
  }
  cut(): void {
    this.hub.closed("cut");
    this.edge.closed("cut");
  }
  private deliver(queue: Bytes[], take: (message: Bytes) => void): void {
    const message = queue.shift() as Bytes;
    this.bytes += message.length;
    take(message);
  }
  private commit(count: number): void {
    for (const { seq, change } of this.uncommitted.splice(0, count)) {
      if (change) this.store.commit(change);
      this.edge.committed(seq);
    }
  }
}

function same(view: View, store: Store): void {
  for (const kind of view.kinds()) {
    const want = [...view.keys(kind)].sort().map((key) => [key, view.get(kind, key)?.version]);
    const got = store.entries(kind).map(([key, , version]) => [key, version]).sort();
    assert.deepEqual(got, want, kind);
  }
}

Deno.test("wire session: first sync, live changes, and a reconnect that has nothing to say", () => {
  const view = new View(), store = new Store();
  for (let i = 0; i < 30; i++) view.put("pods", `default/p${i}`, i + 1);
  view.put("secrets", "default/missing", "absent");
  const first = new Link(view, store, [], []);
  first.settle();
  same(view, store);
  assert.deepEqual(first.synced.sort(), ["pods", "secrets"]);
  view.put("pods", "default/p3", 99);
  first.hub.changed("pods", "default/p3");
  view.objects.get("pods")?.delete("default/p4");
  first.hub.changed("pods", "default/p4");
  first.hub.changed("pods", "default/p5"); // nothing changed: nothing is sent
  first.settle();
  same(view, store);
  assert.equal(store.applied.length, 33);
  first.cut();

  const second = new Link(view, store, [], []);
  second.settle();
  assert.equal(store.applied.length, 33, "nothing is applied again");
  assert.ok(second.bytes < 1000, `${second.bytes} bytes for a reconnect without differences`);
  second.cut();

  view.put("pods", "default/p7", 100);
  view.objects.get("pods")?.delete("default/p8");
  const third = new Link(view, store, [], []);
  third.settle();
  same(view, store);
  assert.equal(store.applied.length, 35, "only the differences are applied");
});

Deno.test("wire session: reports are acknowledged in order, refusals are told", () => {
  const view = new View(), store = new Store();
  const reports: { id: number; report: Report }[] = [];
  const received: Report[] = [];
  const link = new Link(view, store, reports, received);
  link.settle();
  for (let id = 1; id <= 5; id++) {
    const report: Report = id === 3
      ? { report: "podGone", namespace: "a", name: "b", uid: "u" }
      : { report: "event", namespace: "a", event: { id } };
    reports.push({ id, report });
    assert.ok(link.edge.report(id, report));
  }
  link.settle();
  assert.deepEqual([reports.length, received.length], [0, 5]);
});

Deno.test("wire session: requests are answered, and fail when the link goes", async () => {
  const link = new Link(new View(), new Store(), [], []);
  link.settle();
  const answer = link.edge.request({ request: "token", namespace: "a", serviceAccount: "b", spec: {} });
  link.settle();
  assert.deepEqual(await answer, { status: 201, body: { asked: "token" } });
  const lost = link.edge.request({ request: "renew", csr: "x" });
  link.cut();
  assert.deepEqual(await lost, { failed: "cut" });
});

Deno.test("wire session: silence and unproved guests are ended", () => {
  const link = new Link(new View(), new Store(), [], []);
  link.hub.tick(unprovedTimeoutMs + 1);
  assert.match(link.failures[0] ?? "", /no proof within/);
  const live = new Link(new View(), new Store(), [], []);
  live.settle();
  live.edge.tick(sessionTimeoutMs + 1);
  live.hub.tick(sessionTimeoutMs + 1);
  assert.deepEqual(live.failures.length, 2);
});

Deno.test("wire session: frames out of turn are faults, on both sides", () => {
  const cases: { name: string; message: Bytes; live: boolean; to: "hub" | "edge" }[] = [
    {
      name: "report before proof",
      message: encodeFrame("report", 1, encodeJson({})),
      live: false,
      to: "hub",
    },
    { name: "object to a hub", message: encodeFrame("object", 1), live: true, to: "hub" },
    {
      name: "a report out of order",
      message: encodeFrame("report", 5, encodeJson({ report: "nodeStatus", status: {} })),
      live: true,
      to: "hub",
    },
    { name: "an ack of what was never sent", message: encodeFrame("ack", 1000), live: true, to: "hub" },
    {
      name: "have that nobody wanted",
      message: encodeFrame("have", 0, encodeJson({ kind: "x", entries: [["k", "u", "0000000000000001"]] })),
      live: true,
      to: "hub",
    },
    { name: "a gap in the sequence", message: encodeFrame("synced", 9), live: true, to: "edge" },
    { name: "report to an edge", message: encodeFrame("report", 1), live: true, to: "edge" },
    { name: "an ack of a report never sent", message: encodeFrame("ack", 3), live: true, to: "edge" },
  ];
  for (const { name, message, live, to } of cases) {
    const link = new Link(new View(), new Store(), [], []);
    if (live) link.settle();
    if (to === "hub") link.hub.message(message, 0);
    else link.edge.message(message, 0);
    assert.equal(link.failures.length, 1, name);
  }
});

Deno.test("wire simulation: random edits, cuts, slow commits and restarts converge, with nothing lost or applied twice", () => {
  const seeds = Number(Deno.env.get("SIM_SEEDS") ?? 200);
  for (let seed = 1; seed <= seeds; seed++) {
    const random = new SeededRandom(seed);
    const view = new View(), store = new Store();
    const reports: { id: number; report: Report }[] = [], received: Report[] = [];
    let link = new Link(view, store, reports, received), revision = 1, reportId = 0, sent = 0;
    const newest = new Map<string, number>();
    for (let i = 0; i < 400; i++) {
      const dice = random.float();
      if (dice < 0.15) {
        const kind = random.pick(["pods", "secrets"]), key = `ns/${random.below(12)}`;
        if (random.float() < 0.3) view.objects.get(kind)?.delete(key);
        else view.put(kind, key, kind === "secrets" && random.float() < 0.2 ? "absent" : ++revision);
        link.hub.changed(kind, key);
      } else if (dice < 0.22) {
        const pod = `p${random.below(4)}`, id = ++reportId;
        const report: Report = { report: "podStatus", namespace: "ns", name: pod, uid: "u", status: { id } };
        reports.push({ id, report });
        newest.set(pod, id);
        if (link.edge.report(id, report)) sent = id;
      } else if (dice < 0.24) {
        link.cut();
        link = new Link(view, store, reports, received);
        sent = 0;
      } else link.step(random);
      if (link.edge.live && sent === 0) {
        for (const { id, report } of reports) if (link.edge.report(id, report)) sent = id;
        sent = Math.max(sent, reportId);
      }
      assert.deepEqual(link.failures, [], `seed ${seed}`);
    }
    link.cut();
    link = new Link(view, store, reports, received);
    link.settle();
    for (const { id, report } of [...reports]) link.edge.report(id, report);
    link.settle();
    try {
      same(view, store);
      assert.equal(reports.length, 0, "all reports acknowledged");
      for (const [pod, id] of newest) {
        const last = received.findLast((report) => report.report === "podStatus" && report.name === pod);
        assert.deepEqual(
          last && "status" in last ? last.status : undefined,
          { id },
          "the newest status came last",
        );
      }
      const twice = store.applied.filter((line, i) =>
        i > 0 && store.applied[i - 1] === line && line.startsWith("object")
      );
      assert.deepEqual(twice, [], "no version of an object is applied twice in a row");
    } catch (error) {
      throw new Error(`seed ${seed}`, { cause: error });
    }
  }
});
