import assert from "node:assert/strict";
import { text } from "../../lib/core/bytes.ts";
import { type RawObject, Reflector, type ReflectorOptions } from "../../lib/kube/reflector.ts";
import { configMaps, makeWorld, turns, until, untilPassing, type World } from "../fake/world.ts";

const map = (name: string, value: string, labels: Record<string, string> = {}) => ({
  metadata: { namespace: "ns", name, labels },
  data: { value },
});

class Mirror {
  readonly state = new Map<string, string>();
  readonly events: string[] = [];
  failures = 0;
  readonly reflector: Reflector;

  constructor(readonly world: World, options: Partial<ReflectorOptions> = {}) {
    const value = (object: RawObject) =>
      (JSON.parse(text(object.bytes)) as { data: { value: string } }).data.value;
    this.reflector = new Reflector({
      client: world.client,
      clock: world.clock,
      random: world.random,
      log: world.log,
      path: configMaps,
      apiVersion: "v1",
      kind: "ConfigMap",
      handler: {
        replaced: (objects) => {
          this.events.push(`replaced ${objects.length}`);
          this.state.clear();
          for (const object of objects) this.state.set(object.name, value(object));
        },
        upserted: (object) => {
          this.events.push(`upserted ${object.name}`);
          this.state.set(object.name, value(object));
        },
        deleted: (object) => {
          this.events.push(`deleted ${object.name}`);
          this.state.delete(object.name);
        },
      },
      failed: () => this.failures++,
      ...options,
    });
  }
  get lists(): number {
    return this.world.api.requests.filter(({ verb }) => verb === "list").length;
  }
  get lastWatch(): URL {
    return new URL(this.world.api.requests.findLast(({ verb }) => verb === "watch")!.target, "http://fake");
  }
}

Deno.test("the state is listed, then followed", async () => {
  const world = makeWorld(), mirror = new Mirror(world);
  world.api.put(configMaps, map("a", "1"));
  mirror.reflector.start();
  await mirror.reflector.synced;
  await until(() => world.api.watches === 1, "a watch");
  world.api.put(configMaps, map("b", "2"));
  world.api.put(configMaps, map("a", "3"));
  world.api.remove(configMaps, "ns/b");
  await until(() => mirror.events.length === 4, "three events");
  assert.deepEqual(mirror.events, ["replaced 1", "upserted b", "upserted a", "deleted b"]);
  assert.deepEqual([...mirror.state], [["a", "3"]]);
  await mirror.reflector.stop();
  assert.equal(world.api.watches, 0, "stopping ends the watch");
  assert.equal(world.clock.pendingTimers, 0);
});

Deno.test("objects of a list carry their kind", async () => {
  const world = makeWorld();
  world.api.put(configMaps, map("a", "1"));
  let bytes = "";
  const mirror = new Mirror(world, {
    handler: { replaced: ([object]) => bytes = text(object!.bytes), upserted() {}, deleted() {} },
  });
  mirror.reflector.start();
  await mirror.reflector.synced;
  assert.match(bytes, /^\{"kind":"ConfigMap","apiVersion":"v1",/);
  await mirror.reflector.stop();
});

Deno.test("a broken watch resumes where it was, without a list", async () => {
  const world = makeWorld(), mirror = new Mirror(world);
  mirror.reflector.start();
  await until(() => world.api.watches === 1, "a watch");
  world.api.put(configMaps, map("a", "1"));
  await until(() => mirror.state.size === 1, "the event");
  const seen = world.api.revision;
  world.api.endWatches();
  world.api.put(configMaps, map("b", "2"));
  await untilPassing(world.clock, 500, () => mirror.state.has("b"), "the event of the pause");
  assert.equal(mirror.lists, 1);
  assert.equal(mirror.lastWatch.searchParams.get("resourceVersion"), String(seen));
  await mirror.reflector.stop();
});

Deno.test("a bookmark moves the point from which a watch resumes", async () => {
  const world = makeWorld(), mirror = new Mirror(world);
  mirror.reflector.start();
  await until(() => world.api.watches === 1, "a watch");
  for (let i = 0; i < 10; i++) {
    world.api.put("/api/v1/secrets", {
      metadata: { namespace: "ns", name: "other" },
      data: { i: String(i) },
    });
  }
  world.api.bookmark();
  await turns();
  world.api.compact();
  world.api.endWatches();
  await untilPassing(
    world.clock,
    500,
    () => world.api.requests.filter(({ verb }) => verb === "watch").length === 2,
    "the second watch",
  );
  assert.equal(mirror.lastWatch.searchParams.get("resourceVersion"), String(world.api.revision));
  assert.equal(mirror.lists, 1, "no list: the bookmark is not older than the compaction");
  assert.deepEqual(mirror.events, ["replaced 0"], "a bookmark is no object");
  await mirror.reflector.stop();
});

for (const gone of ["event", "status"] as const) {
  Deno.test(`410 Gone as ${gone}: listed again, and what vanished meanwhile is gone`, async () => {
    const world = makeWorld(), mirror = new Mirror(world);
    world.api.gone = gone;
    world.api.put(configMaps, map("a", "1"));
    world.api.put(configMaps, map("b", "1"));
    mirror.reflector.start();
    await until(() => world.api.watches === 1, "a watch");
    world.api.remove(configMaps, "ns/a");
    await until(() => !mirror.state.has("a"), "the deletion");
    world.api.endWatches();
    world.api.remove(configMaps, "ns/b");
    world.api.put(configMaps, map("c", "1"));
    world.api.compact();
    await untilPassing(world.clock, 500, () => mirror.state.has("c"), "the second list");
    assert.deepEqual([...mirror.state.keys()], ["c"]);
    assert.equal(mirror.lists, 2);
    await mirror.reflector.stop();
  });
}

Deno.test("refusals are retried slower and slower, a Retry-After is obeyed", async () => {
  const world = makeWorld(), mirror = new Mirror(world);
  world.api.intercept = () => ({ status: 503 });
  mirror.reflector.start();
  await until(() => world.clock.pendingTimers === 1, "the first pause");
  await world.clock.advance(60_000);
  await until(() => world.clock.pendingTimers === 1, "a pause");
  const inFirstMinute = world.api.requests.length;
  assert.ok(inFirstMinute >= 5 && inFirstMinute < 20, `${inFirstMinute} tries in a minute`);
  assert.equal(mirror.failures, inFirstMinute);
  world.api.intercept = () => ({
    status: 429,
    body: { kind: "Status", reason: "TooManyRequests", details: { retryAfterSeconds: 120 } },
  });
  await untilPassing(world.clock, 1000, () => world.api.requests.length > inFirstMinute, "the next try");
  const count = world.api.requests.length;
  await until(() => world.clock.pendingTimers === 1, "the pause that was asked for");
  await world.clock.advance(119_000);
  assert.equal(world.api.requests.length, count);
  world.api.intercept = undefined;
  await untilPassing(world.clock, 1000, () => mirror.reflector.hasSynced, "the list");
  await mirror.reflector.stop();
});

Deno.test("a server that ends every watch at once is not hammered", async () => {
  const world = makeWorld(), mirror = new Mirror(world);
  mirror.reflector.start();
  for (let second = 0; second < 60; second++) {
    await until(() => world.api.watches === 1 || world.clock.pendingTimers > 0, "a watch or a pause");
    world.api.endWatches();
    await until(() => world.clock.pendingTimers > 0 || world.api.watches === 1, "a pause");
    await world.clock.advance(1000);
  }
  const watches = world.api.requests.filter(({ verb }) => verb === "watch").length;
  assert.ok(watches < 20, `${watches} watches in a minute`);
  await mirror.reflector.stop();
});

Deno.test("rubbish in a watch ends it and loses nothing", async () => {
  for (
    const rubbish of [
      "not json\n",
      '{"type":"ADDED"}\n',
      '{"type":"ADDED","object":{"metadata":{}}}\n',
      "x".repeat(5 * 1024 * 1024),
    ]
  ) {
    const world = makeWorld(), mirror = new Mirror(world);
    mirror.reflector.start();
    await until(() => world.api.watches === 1, "a watch");
    world.api.inject(rubbish);
    await until(() => mirror.failures === 1, `a failure after ${rubbish.slice(0, 20)}`);
    world.api.put(configMaps, map("a", "1"));
    await untilPassing(world.clock, 500, () => mirror.state.has("a"), "the object");
    await mirror.reflector.stop();
  }
});

Deno.test("more objects than a page are one state", async () => {
  const world = makeWorld(), mirror = new Mirror(world);
  for (let i = 0; i < 1201; i++) world.api.put(configMaps, map(`c${i}`, "1"));
  mirror.reflector.start();
  await mirror.reflector.synced;
  assert.deepEqual(mirror.events, ["replaced 1201"]);
  assert.equal(mirror.lists, 3);
  await mirror.reflector.stop();
});

Deno.test("with a selector, an object that no longer matches is deleted", async () => {
  const world = makeWorld(), mirror = new Mirror(world, { labelSelector: "edge=true" });
  world.api.put(configMaps, map("a", "1", { edge: "true" }));
  world.api.put(configMaps, map("b", "1"));
  mirror.reflector.start();
  await until(() => world.api.watches === 1, "a watch");
  assert.deepEqual([...mirror.state.keys()], ["a"]);
  world.api.put(configMaps, map("a", "2"));
  await until(() => mirror.state.size === 0, "the deletion");
  await mirror.reflector.stop();
});

Deno.test("a cluster that was restored from a backup is listed again", async () => {
  const world = makeWorld(), mirror = new Mirror(world);
  world.api.put(configMaps, map("a", "1"));
  const backup = world.api.revision;
  for (let i = 0; i < 5; i++) world.api.put(configMaps, map("b", String(i)));
  mirror.reflector.start();
  await until(() => world.api.watches === 1, "a watch");
  world.api.intercept = () => Promise.reject(new Error("connection refused"));
  world.api.remove(configMaps, "ns/b");
  world.api.rewind(backup);
  world.api.put(configMaps, map("a", "restored"));
  world.api.endWatches();
  await untilPassing(world.clock, 500, () => mirror.failures > 1, "the server is away");
  world.api.intercept = undefined;
  await untilPassing(world.clock, 500, () => mirror.state.get("a") === "restored", "the second list");
  assert.deepEqual([...mirror.state], [["a", "restored"]]);
  world.api.put(configMaps, map("c", "1"));
  await until(() => mirror.state.has("c"), "events go on");
  await mirror.reflector.stop();
});

Deno.test("relist brings what a changed filter lets through", async () => {
  const world = makeWorld(), mirror = new Mirror(world);
  mirror.reflector.start();
  await until(() => world.api.watches === 1, "a watch");
  mirror.reflector.relist();
  await until(() => mirror.lists === 2 && world.api.watches === 1, "the second list and watch");
  world.api.put(configMaps, map("a", "1"));
  await until(() => mirror.state.has("a"), "events go on");
  assert.equal(mirror.failures, 0);
  await mirror.reflector.stop();
});

Deno.test("stopping before the first list rejects synced", async () => {
  const world = makeWorld(), mirror = new Mirror(world);
  world.api.intercept = () => ({ status: 503 });
  mirror.reflector.start();
  await until(() => mirror.failures > 0, "a failure");
  await mirror.reflector.stop();
  await assert.rejects(mirror.reflector.synced, /stopped/);
});
