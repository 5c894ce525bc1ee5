/** The life of pods on a fake runtime and a fake clock: what is started, when, and what is told about it. */
import assert from "node:assert/strict";
import { silentLogger } from "../../lib/core/log.ts";
import { Pods } from "../../lib/edge/pod/pods.ts";
import type { Lookup, PodEvent, PodPorts } from "../../lib/edge/pod/ports.ts";
import { agentAnnotation } from "../../lib/edge/pod/state.ts";
import type { ConfigMap, Container, Pod, PodSpec, PodStatus } from "../../lib/kube/types.ts";
import { FakeClock, SeededRandom } from "../fake/clock.ts";
import { away, FakeRuntime } from "../fake/runtime.ts";

const rootDir = "/fake";

class World {
  readonly clock = new FakeClock();
  readonly runtime: FakeRuntime;
  readonly statuses = new Map<string, PodStatus[]>();
  readonly gone: string[] = [];
  readonly events: PodEvent[] = [];
  readonly configMaps = new Map<string, Record<string, string>>();
  httpOk = true;
  pods: Pods;

  constructor() {
    this.runtime = new FakeRuntime(() => this.clock.now());
    this.pods = this.#agent();
  }

  #agent(): Pods {
    const { clock, runtime } = this;
    const get = <T>(kind: string, _namespace: string, name: string): Lookup<T> => {
      const data = kind === "configmaps" ? this.configMaps.get(name) : undefined;
      return data
        ? { state: "present", object: { metadata: { name }, data } as ConfigMap as T }
        : { state: "absent" };
    };
    const ports: PodPorts = {
      runtime,
      objects: { get, services: () => [] },
      requestToken: () => Promise.resolve({ token: "token", expiresMs: clock.now() + 3_600_000 }),
      report: (pod, status) => {
        const name = pod.metadata.name;
        this.statuses.set(name, [...this.statuses.get(name) ?? [], structuredClone(status)]);
      },
      gone: (pod) => this.gone.push(`${pod.metadata.name} with ${runtime.running().length} running`),
      event: (_pod, event) => this.events.push(event),
      files: {
        makeDirectory: () => Promise.resolve(),
        write: () => Promise.resolve(),
        payload: () => Promise.resolve(),
        readTail: () => Promise.resolve(undefined),
        kind: () => Promise.resolve("directory"),
        realPath: (path) => Promise.resolve(path),
        mountTmpfs: () => Promise.resolve(),
        removeTree: () => Promise.resolve(),
      },
      cgroups: { parent: () => "/fake", remove: () => Promise.resolve() },
      prober: {
        http: () => Promise.resolve({ ok: this.httpOk, output: this.httpOk ? "" : "statuscode: 500" }),
        tcp: () => Promise.resolve({ ok: true, output: "" }),
      },
      node: () => ({
        name: "n1",
        ips: ["10.0.0.1"],
        allocatable: { cpu: "2", memory: "1Gi" },
        memoryBytes: 2 ** 30,
      }),
      clock,
      random: new SeededRandom(1),
      log: silentLogger,
      options: {
        rootDir,
        logDir: "/logs",
        clusterDns: [],
        clusterDomain: "cluster.local",
        resolvConf: () => "",
      },
    };
    return new Pods(ports);
  }

  /** The agent's start: learns what runs, and follows the runtime. */
  async start(): Promise<this> {
    this.runtime.listener = (event) => void this.pods.runtimeEvent(event);
    await this.pods.adopt();
    return this;
  }
  /** As after kill -9: another agent on the same runtime. */
  async restart(...pods: Pod[]): Promise<void> {
    this.pods.stop();
    this.pods = this.#agent();
    await this.start();
    for (const pod of pods) this.pods.setPod(pod);
    await this.clock.advance(2000);
  }
  async run(pod: Pod, ms = 2000): Promise<void> {
    this.pods.setPod(pod);
    await this.clock.advance(ms);
  }
  status(name = "p"): PodStatus {
    const found = this.pods.find("default", name);
    return found?.status ?? this.statuses.get(name)?.at(-1) ?? {};
  }
  condition(type: string, name = "p"): string | undefined {
    return this.status(name).conditions?.find((one) => one.type === type)?.status;
  }
  waiting(): string | undefined {
    return this.status().containerStatuses?.[0]?.state?.waiting?.reason;
  }
  starts(name: string): number {
    return this.runtime.calls.filter((call) => call === `start ${name}`).length;
  }
}

let uid = 1;
function pod(spec: Partial<PodSpec> = {}, name = "p"): Pod {
  return {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name, namespace: "default", uid: `uid-${uid++}`, generation: 1 },
    spec: { containers: [container("main")], ...spec },
  };
}
function container(name: string, more: Partial<Container> = {}): Container {
  return { name, image: "busybox", imagePullPolicy: "IfNotPresent", ...more };
}
function deleted(pod: Pod, graceSeconds = 5): Pod {
  return {
    ...pod,
    metadata: {
      ...pod.metadata,
      deletionTimestamp: "2026-01-01T00:00:00Z",
      deletionGracePeriodSeconds: graceSeconds,
    },
  };
}
const test = (name: string, body: (world: World) => Promise<void>) =>
  Deno.test(name, async () => {
    const world = await new World().start();
    await body(world);
    world.pods.stop();
    await world.clock.advance(1);
  });

test("pod: runs, is Ready, and is told once it is", async (world) => {
  await world.run(pod());
  assert.equal(world.status().phase, "Running");
  for (
    const type of ["Ready", "ContainersReady", "Initialized", "PodScheduled", "PodReadyToStartContainers"]
  ) {
    assert.equal(world.condition(type), "True", type);
  }
  assert.equal(world.status().podIP, "10.0.0.9");
  assert.deepEqual(world.events.map(({ reason }) => reason), ["Pulled", "Created", "Started"]);
  assert.equal(world.statuses.get("p")?.at(-1)?.observedGeneration, 1);
  assert.ok((world.statuses.get("p")?.length ?? 0) <= 3, "no chatter on the way");
});

test("pod: a crash is answered at once, then after 10 s, 20 s, 40 s", async (world) => {
  await world.run(pod());
  const gaps: number[] = [];
  for (let crash = 0; crash < 4; crash++) {
    const before = world.starts("main");
    world.runtime.exit("main", 1);
    let waited = 0;
    for (; world.starts("main") === before; waited++) await world.clock.advance(500);
    gaps.push(waited / 2);
    if (crash > 0) assert.ok(world.events.some(({ reason }) => reason === "BackOff"));
  }
  assert.ok((gaps[0] ?? 99) <= 1, `first restart after ${gaps[0]} s`);
  for (const [i, seconds] of [10, 20, 40].entries()) {
    assert.ok(Math.abs((gaps[i + 1] ?? 0) - seconds) <= 1, `${gaps}`);
  }
  assert.equal(world.status().containerStatuses?.[0]?.restartCount, 4);
});

test("pod: CrashLoopBackOff is shown with the last end", async (world) => {
  await world.run(pod());
  world.runtime.exit("main", 1);
  await world.clock.advance(1000);
  world.runtime.exit("main", 3);
  await world.clock.advance(1000);
  assert.equal(world.waiting(), "CrashLoopBackOff");
  assert.equal(world.status().containerStatuses?.[0]?.lastState?.terminated?.exitCode, 3);
  assert.equal(world.condition("Ready"), "False");
});

for (
  const { policy, exitCode, phase, starts } of [
    { policy: "Never", exitCode: 0, phase: "Succeeded", starts: 1 },
    { policy: "Never", exitCode: 2, phase: "Failed", starts: 1 },
    { policy: "OnFailure", exitCode: 0, phase: "Succeeded", starts: 1 },
    { policy: "OnFailure", exitCode: 2, phase: "Running", starts: 2 },
    { policy: "Always", exitCode: 0, phase: "Running", starts: 2 },
  ] as const
) {
  test(`pod: restartPolicy ${policy} after exit code ${exitCode} gives ${phase}`, async (world) => {
    await world.run(pod({ restartPolicy: policy }));
    world.runtime.exit("main", exitCode);
    await world.clock.advance(2000);
    assert.equal(world.status().phase, phase);
    assert.equal(world.starts("main"), starts);
  });
}

test("pod: init containers run one after another before the others", async (world) => {
  await world.run(pod({ initContainers: [container("one"), container("two")] }));
  assert.deepEqual(world.runtime.running(), ["one"]);
  assert.equal(world.condition("Initialized"), "False");
  assert.equal(world.waiting(), "PodInitializing");
  world.runtime.exit("one", 0);
  await world.clock.advance(1000);
  assert.deepEqual(world.runtime.running(), ["two"]);
  world.runtime.exit("two", 0);
  await world.clock.advance(1000);
  assert.deepEqual(world.runtime.running(), ["main"]);
  assert.equal(world.condition("Initialized"), "True");
});

test("pod: a sidecar starts before and runs beside the main container, and stops after it", async (world) => {
  const one = pod({ initContainers: [container("side", { restartPolicy: "Always" })] });
  await world.run(one);
  assert.deepEqual(world.runtime.running(), ["main", "side"]);
  assert.ok(world.runtime.calls.indexOf("start side") < world.runtime.calls.indexOf("start main"));
  await world.run(deleted(one), 10_000);
  const stops = world.runtime.calls.filter((call) => call.startsWith("stop ")).map((call) =>
    call.split(" ")[1]
  );
  assert.deepEqual(stops, ["main", "side"]);
});

test("pod: deletion stops with the grace, and the pod is given up only then", async (world) => {
  const one = pod();
  await world.run(one);
  await world.run(deleted(one, 5), 10_000);
  assert.ok(world.runtime.calls.includes("stop main 5"));
  assert.deepEqual(world.gone, ["p with 0 running"]);
  assert.equal(world.pods.size, 0);
  assert.equal(world.runtime.sandboxes.size, 0);
  assert.ok(world.events.some(({ reason }) => reason === "Killing"));
});

test("pod: an object that is gone from the API ends without a word", async (world) => {
  const one = pod();
  await world.run(one);
  world.pods.removePod(one.metadata.uid ?? "");
  await world.clock.advance(10_000);
  assert.deepEqual(world.gone, []);
  assert.equal(world.runtime.sandboxes.size, 0);
});

test("pod: two of one name, the second waits for the first to be gone", async (world) => {
  const first = pod(), second = pod();
  await world.run(first);
  world.pods.setPod(deleted(first));
  world.pods.setPod(second);
  await world.clock.advance(10_000);
  assert.deepEqual(world.runtime.running(), ["main"]);
  assert.equal(world.runtime.find("main")?.labels["io.kubernetes.pod.uid"], second.metadata.uid);
});

test("pod: a restarted agent adopts what runs and starts nothing twice", async (world) => {
  const one = pod();
  await world.run(one);
  world.runtime.exit("main", 1);
  await world.clock.advance(2000);
  const starts = world.starts("main"), id = world.runtime.find("main")?.id;
  await world.restart({ ...one, status: world.status() });
  assert.equal(world.starts("main"), starts);
  assert.equal(world.runtime.find("main")?.id, id);
  assert.equal(world.status().containerStatuses?.[0]?.restartCount, 1);
  assert.equal(world.condition("Ready"), "True");
});

test("pod: what ended while the agent was away is noticed", async (world) => {
  const one = pod({ restartPolicy: "Never" });
  await world.run(one);
  world.pods.stop();
  world.runtime.listener = undefined;
  world.runtime.exit("main", 0);
  await world.restart(one);
  assert.equal(world.status().phase, "Succeeded");
});

test("pod: an adopted sandbox that is gone when it is looked at is looked for again", async (world) => {
  const one = pod();
  await world.run(one);
  await world.restart(); // the pod is not wanted yet, its sandbox is known
  const [sandbox] = world.runtime.sandboxes.values();
  world.runtime.sandboxes.delete(sandbox?.id ?? "");
  for (const id of [...world.runtime.containers.keys()]) world.runtime.containers.delete(id);
  await world.run(one, 5000);
  assert.deepEqual(world.runtime.running(), ["main"]);
});

test("pod: sandboxes of nobody are removed, those of another agent are left alone", async (world) => {
  await world.run(pod());
  await world.run(pod({}, "other"));
  const other = [...world.runtime.sandboxes.values()].find(({ podName }) => podName === "other");
  if (other) other.annotations[agentAnnotation] = "/another";
  await world.restart();
  await world.pods.removeOrphans();
  assert.deepEqual([...world.runtime.sandboxes.values()].map(({ podName }) => podName), ["other"]);
});

test("pod: a lost sandbox is made again, with its containers", async (world) => {
  await world.run(pod());
  const [sandbox] = world.runtime.sandboxes.values();
  if (sandbox) sandbox.ready = false;
  world.runtime.exit("main", 137);
  await world.pods.relist();
  await world.clock.advance(15_000);
  assert.deepEqual(world.runtime.running(), ["main"]);
  assert.equal(
    world.runtime.find("main")?.sandboxId,
    [...world.runtime.sandboxes.values()].find(({ ready }) => ready)?.id,
  );
});

test("pod: a missing ConfigMap keeps a container waiting until it is there", async (world) => {
  const env = [{ name: "X", valueFrom: { configMapKeyRef: { name: "settings", key: "x" } } }];
  await world.run(pod({ containers: [container("main", { env })] }), 5000);
  assert.equal(world.waiting(), "CreateContainerConfigError");
  world.configMaps.set("settings", { x: "blue" });
  world.pods.referenceChanged("configmaps", "default", "settings");
  await world.clock.advance(2000);
  assert.equal(world.runtime.find("main")?.environment.X, "blue");
});

test("pod: an image that cannot be pulled is tried again after 10 s and more", async (world) => {
  world.runtime.faults.set("pull", new Error("not found"));
  await world.run(pod({ containers: [container("main", { image: "missing:1" })] }));
  assert.ok(["ErrImagePull", "ImagePullBackOff"].includes(world.waiting() ?? ""), world.waiting());
  await world.clock.advance(60_000);
  const pulls = world.runtime.calls.filter((call) => call === "pull missing:1").length;
  assert.ok(pulls >= 2 && pulls <= 5, `${pulls} pulls in a minute`);
  world.runtime.faults.delete("pull");
  await world.clock.advance(300_000);
  assert.deepEqual(world.runtime.running(), ["main"]);
});

test("pod: imagePullPolicy Never does not pull", async (world) => {
  await world.run(pod({ containers: [container("main", { image: "missing:1", imagePullPolicy: "Never" })] }));
  assert.equal(world.waiting(), "ErrImageNeverPull");
  assert.ok(!world.runtime.calls.some((call) => call.startsWith("pull")));
});

test("pod: readiness follows its probe", async (world) => {
  world.httpOk = false;
  await world.run(
    pod({ containers: [container("main", { readinessProbe: { httpGet: { port: 80 }, periodSeconds: 1 } })] }),
    5000,
  );
  assert.equal(world.condition("Ready"), "False");
  world.httpOk = true;
  await world.clock.advance(3000);
  assert.equal(world.condition("Ready"), "True");
  world.httpOk = false;
  await world.clock.advance(10_000);
  assert.equal(world.condition("Ready"), "False");
  assert.equal(world.starts("main"), 1, "a readiness probe restarts nothing");
});

test("pod: a failing liveness probe restarts the container", async (world) => {
  await world.run(
    pod({
      containers: [
        container("main", {
          livenessProbe: { httpGet: { port: 80 }, periodSeconds: 1, failureThreshold: 2 },
        }),
      ],
    }),
    5000,
  );
  world.httpOk = false;
  await world.clock.advance(2500);
  world.httpOk = true;
  await world.clock.advance(15_000);
  assert.equal(world.starts("main"), 2);
  assert.ok(world.events.some(({ reason }) => reason === "Unhealthy"));
});

test("pod: the runtime refuses a container, the pod says so and goes on trying", async (world) => {
  world.runtime.faults.set("create", new Error("invalid mount"));
  await world.run(pod(), 5000);
  assert.equal(world.waiting(), "CreateContainerError");
  world.runtime.faults.delete("create");
  await world.clock.advance(60_000);
  assert.deepEqual(world.runtime.running(), ["main"]);
});

test("pod: the runtime dies between create and start: the container is made again under its number", async (world) => {
  world.runtime.faults.set("start", away());
  await world.run(pod());
  assert.equal(world.runtime.find("main")?.state, "created");
  world.runtime.faults.delete("start");
  await world.clock.advance(5000);
  assert.deepEqual(world.runtime.running(), ["main"]);
  assert.equal(world.runtime.containers.size, 1);
  assert.equal(world.status().containerStatuses?.[0]?.restartCount, 0);
  assert.deepEqual(world.status().containerStatuses?.[0]?.lastState, {});
});

test("pod: a created container that vanishes with the runtime was never started", async (world) => {
  world.runtime.faults.set("start", away());
  await world.run(pod());
  world.runtime.containers.clear();
  await world.pods.relist();
  world.runtime.faults.delete("start");
  await world.clock.advance(5000);
  assert.deepEqual(world.runtime.running(), ["main"]);
  assert.equal(world.status().containerStatuses?.[0]?.restartCount, 0);
});

for (const call of ["sandbox", "create", "start"]) {
  test(`pod: a ${call} whose answer is lost with the runtime is not made twice`, async (world) => {
    world.runtime.unheard.add(call);
    await world.run(pod(), 500);
    world.runtime.unheard.clear();
    await world.clock.advance(5000);
    assert.deepEqual(world.runtime.running(), ["main"]);
    assert.equal(world.runtime.sandboxes.size, 1);
    assert.equal(world.runtime.containers.size, 1);
    assert.equal(world.starts("main"), 1);
    assert.equal(world.status().containerStatuses?.[0]?.restartCount, 0);
    assert.equal(world.condition("Ready"), "True");
    assert.deepEqual(world.events.filter(({ type }) => type === "Warning"), []);
  });
}

test("pod: the agent is killed between create and start: the next one keeps the number", async (world) => {
  const one = pod();
  world.runtime.faults.set("start", away());
  await world.run(one, 500);
  world.runtime.faults.delete("start");
  await world.restart(one);
  assert.deepEqual(world.runtime.running(), ["main"]);
  assert.equal(world.status().containerStatuses?.[0]?.restartCount, 0);
});

test("pod: a start that was broken off with its agent is made again under its number", async (world) => {
  const one = pod();
  world.runtime.faults.set("start", away());
  await world.run(one, 500);
  world.runtime.faults.delete("start");
  Object.assign(world.runtime.find("main") ?? {}, {
    state: "exited",
    exitCode: 128,
    reason: "StartError",
    message: "failed to create containerd task: failed to create shim task: context canceled",
    finishedMs: world.clock.now(),
  });
  await world.restart(one);
  assert.deepEqual(world.runtime.running(), ["main"]);
  assert.equal(world.status().containerStatuses?.[0]?.restartCount, 0);
  assert.deepEqual(world.status().containerStatuses?.[0]?.lastState, {});
});

test("pod: while the runtime is away nothing is said about images", async (world) => {
  world.runtime.faults.set("image", away());
  await world.run(pod(), 30_000);
  assert.equal(world.waiting(), "ContainerCreating");
  assert.deepEqual(world.events, []);
  world.runtime.faults.delete("image");
  await world.clock.advance(2000);
  assert.deepEqual(world.runtime.running(), ["main"]);
});
