import { deepStrictEqual, match, strictEqual } from "node:assert";
import { KubeletApi } from "../../lib/edge/kubelet/api.ts";
import {
  type KubeletPorts,
  type NodeFigures,
  type PodIndex,
  type PodView,
  runningLogs,
  type RunView,
} from "../../lib/edge/kubelet/ports.ts";
import { RateMeter } from "../../lib/edge/kubelet/stats.ts";
import type { Pods } from "../../lib/edge/pod/pods.ts";
import { dial } from "../../lib/sys/dial.ts";
import { kubeletFiles } from "../../lib/sys/kubelet_files.ts";
import {
  fileSystemStats,
  nodeStats,
  parseDefaultInterface,
  parseInterfaces,
  parseMemory,
  parseStat,
} from "../../lib/sys/node_stats.ts";
import { silentLogger } from "../../lib/core/log.ts";
import { utf8 } from "../../lib/core/bytes.ts";
import type { ContainerStatus, Pod } from "../../lib/kube/types.ts";
import { FakeExchange } from "../fake/exchange.ts";
import { systemClock } from "../../lib/sys/clock.ts";

// The agent's pods are what the API asks for.
((pods: Pods): PodIndex => pods);

const nowMs = Date.UTC(2026, 0, 1, 12);

function run(id: string, attempt: number, state: RunView["state"]): RunView {
  return { id, attempt, state, startedMs: nowMs - 60_000, imageRef: "image@sha256:1", logPath: "" };
}
function pod(
  name: string,
  containers: string[],
  statuses: Partial<ContainerStatus>[],
  runs: Record<string, { current?: RunView; previous?: RunView }>,
): PodView {
  const object: Pod = {
    apiVersion: "v1",
    kind: "Pod",
    metadata: { name, namespace: "default", uid: `uid-${name}` },
    spec: {
      containers: containers.map((container) => ({
        name: container,
        image: "image",
        resources: { limits: { memory: "64Mi" } },
      })),
      initContainers: name === "two" ? [{ name: "setup", image: "image" }] : [],
    },
  };
  return {
    pod: object,
    status: {
      phase: "Running",
      startTime: "2026-01-01T11:00:00Z",
      containerStatuses: statuses as ContainerStatus[],
    },
    state: {
      sandbox: { id: `sandbox-${name}`, ready: true, createdMs: nowMs },
      containers: new Map(
        Object.entries(runs).map(([container, { current, previous }]) => [container, { current, previous }]),
      ),
    },
  };
}
const ended = (id: string) => ({ terminated: { exitCode: 1, containerID: `containerd://${id}` } });
const views = [
  pod("one", ["main"], [{
    name: "main",
    containerID: "containerd://m2",
    state: { running: {} },
    lastState: ended("m1"),
  }], {
    main: { current: run("m2", 1, "running"), previous: run("m1", 0, "exited") },
  }),
  pod("two", ["a", "b"], [
    { name: "a", state: { waiting: { reason: "ContainerCreating" } }, lastState: {} },
    { name: "b", state: { waiting: { reason: "ImagePullBackOff" } }, lastState: {} },
  ], {}),
  pod("crash", ["main"], [{
    name: "main",
    state: { waiting: { reason: "CrashLoopBackOff" } },
    lastState: ended("c1"),
  }], {
    main: { current: run("c1", 0, "exited") },
  }),
];

function figures(): NodeFigures {
  return {
    timeMs: nowMs,
    bootMs: nowMs - 3_600_000,
    cpuCoreNanoSeconds: 5e9,
    memory: {
      availableBytes: 600,
      usageBytes: 500,
      workingSetBytes: 400,
      rssBytes: 300,
      pageFaults: 2,
      majorPageFaults: 1,
    },
    swap: { availableBytes: 10, usageBytes: 5 },
    fileSystem: {
      availableBytes: 1000,
      capacityBytes: 3000,
      usedBytes: 2000,
      inodesFree: 10,
      inodes: 30,
      inodesUsed: 20,
    },
    defaultInterface: "eth0",
    interfaces: [{ name: "eth0", rxBytes: 1, rxErrors: 0, txBytes: 2, txErrors: 0 }],
    processes: { most: 32768, running: 100 },
  };
}

function ports(logDir: string, more: Partial<KubeletPorts> = {}): KubeletPorts {
  let sample = 0;
  return {
    nodeName: () => "edge-1",
    pods: {
      find: (namespace, name) =>
        views.find(({ pod: { metadata } }) => metadata.namespace === namespace && metadata.name === name),
      list: () => views,
    },
    runtime: {
      stats: () => {
        sample++;
        const labels = (container: string, name: string) => ({
          "io.kubernetes.pod.namespace": "default",
          "io.kubernetes.pod.name": name,
          "io.kubernetes.container.name": container,
        });
        const common = {
          timestampMs: nowMs + sample * 1000,
          cpuCoreNanoSeconds: sample * 250_000_000,
          memoryWorkingSetBytes: 1024,
          writableLayerBytes: 4096,
          writableLayerInodes: 3,
        };
        return Promise.resolve([
          { containerId: "m2", name: "main", labels: labels("main", "one"), ...common },
          { containerId: "m1", name: "main", labels: labels("main", "one"), ...common },
          { containerId: "x", name: "main", labels: labels("main", "stranger"), ...common },
        ]);
      },
      imageFsPath: () => Promise.resolve("/"),
      exec: () => Promise.reject(new Error("not here")),
      attach: () => Promise.reject(new Error("not here")),
      portForward: () => Promise.reject(new Error("not here")),
      execSync: (_id, command) =>
        Promise.resolve({
          exitCode: command[0] === "false" ? 1 : 0,
          stdout: utf8(`ran ${command.join(",")}`),
          stderr: utf8(""),
        }),
    },
    nodeStats: () =>
      Promise.resolve({ ...figures(), timeMs: nowMs + sample * 1000, cpuCoreNanoSeconds: sample * 1e9 }),
    fileSystem: () => Promise.resolve({ ...figures().fileSystem, availableBytes: 7 }),
    files: kubeletFiles,
    dial,
    clock: { ...systemClock, now: () => nowMs },
    log: silentLogger,
    logDir,
    metrics: () => "kubeedge_up 1\n",
    health: () => undefined,
    config: () => ({ maxPods: 110 }),
    ...more,
  };
}

async function ask(api: KubeletApi, target: string, method = "GET") {
  const exchange = new FakeExchange(method, target);
  const served = api.serve(exchange);
  const answer = await exchange.answer();
  await served;
  return answer;
}

Deno.test("logs are found by the pod's status, and errors are worded as the kubelet words them", async () => {
  const logDir = await Deno.makeTempDir();
  try {
    for (const [name, attempt] of [["one", 0], ["one", 1], ["crash", 0]] as const) {
      await Deno.mkdir(`${logDir}/default_${name}_uid-${name}/main`, { recursive: true });
      await Deno.writeTextFile(
        `${logDir}/default_${name}_uid-${name}/main/${attempt}.log`,
        `2026-01-01T11:59:00Z stdout F ${name} ${attempt}\n2026-01-01T11:59:50.5Z stderr F more\n`,
      );
    }
    const api = new KubeletApi(ports(logDir));
    const cases: { name: string; target: string; status?: number; body: string }[] = [
      { name: "running", target: "default/one/main", body: "one 1\nmore\n" },
      { name: "the only container", target: "default/one", body: "one 1\nmore\n" },
      { name: "the run before", target: "default/one/main?previous=true", body: "one 0\nmore\n" },
      { name: "since", target: "default/one/main?sinceSeconds=30", body: "more\n" },
      {
        name: "times",
        target: "default/one/main?tailLines=1&timestamps=true",
        body: "2026-01-01T11:59:50.500000000Z more\n",
      },
      { name: "one stream", target: "default/one/main?stream=Stdout", body: "one 1\n" },
      { name: "waiting to be restarted", target: "default/crash/main", body: "crash 0\nmore\n" },
      {
        name: "followed to its end",
        target: "default/crash/main?follow=true&previous=true",
        body: "crash 0\nmore\n",
      },
      { name: "no pod", target: "default/none/main", status: 404, body: 'pod "none" does not exist' },
      {
        name: "no such container",
        target: "default/one/x",
        status: 404,
        body: 'container "x" not found in pod "one"',
      },
      {
        name: "which container",
        target: "default/two",
        status: 400,
        body: "a container name must be specified for pod two, choose one of: [setup a b]",
      },
      {
        name: "waiting",
        target: "default/two/a",
        status: 400,
        body: 'container "a" in pod "two" is waiting to start: ContainerCreating',
      },
      {
        name: "pulling",
        target: "default/two/b",
        status: 400,
        body: 'container "b" in pod "two" is waiting to start: trying and failing to pull image',
      },
      {
        name: "no run before",
        target: "default/two/a?previous=true",
        status: 400,
        body: 'previous terminated container "a" in pod "two" not found',
      },
      {
        name: "not begun",
        target: "default/two/setup",
        status: 400,
        body: 'container "setup" in pod "two" is not available',
      },
      {
        name: "bad options",
        target: "default/one/main?tailLines=x",
        status: 422,
        body: 'Invalid request: tailLines is "x", not a number',
      },
    ];
    for (const { name, target, status = 200, body } of cases) {
      const answer = await ask(api, `/containerLogs/${target}`);
      deepStrictEqual([answer.status, answer.body], [status, body], name);
    }
    await Deno.remove(`${logDir}/default_crash_uid-crash`, { recursive: true });
    const missing = await ask(api, "/containerLogs/default/crash/main");
    strictEqual(missing.status, 400);
    match(missing.body, /failed to open log file/);
    deepStrictEqual([...runningLogs(ports(logDir).pods, "/logs")], [{
      id: "m2",
      logPath: "/logs/default_one_uid-one/main/1.log",
    }]);
  } finally {
    await Deno.remove(logDir, { recursive: true });
  }
});

Deno.test("a follower who goes away ends the reading", async () => {
  const logDir = await Deno.makeTempDir();
  try {
    await Deno.mkdir(`${logDir}/default_one_uid-one/main`, { recursive: true });
    await Deno.writeTextFile(
      `${logDir}/default_one_uid-one/main/1.log`,
      "2026-01-01T11:59:00Z stdout F hello\n",
    );
    const api = new KubeletApi(ports(logDir));
    for (const halfClosed of [false, true]) {
      const exchange = new FakeExchange("GET", "/containerLogs/default/one/main?follow=true");
      const served = api.serve(exchange);
      if (halfClosed) exchange.client.writer.close().catch(() => {});
      strictEqual((await exchange.head.promise).status, 200);
      const { value } = await exchange.client.reader.read();
      deepStrictEqual(value, utf8("hello\n"));
      exchange.goAway();
      await served;
    }
  } finally {
    await Deno.remove(logDir, { recursive: true });
  }
});

Deno.test("what is simply read", async () => {
  const api = new KubeletApi(ports("/nowhere"));
  deepStrictEqual(await ask(api, "/healthz"), {
    status: 200,
    headers: { "content-type": "text/plain; charset=utf-8", "content-length": "2" },
    body: "ok",
  });
  const ill = new KubeletApi(ports("/nowhere", { health: () => "the runtime is away" }));
  strictEqual((await ask(ill, "/healthz")).body, "unhealthy: the runtime is away");
  const list = JSON.parse((await ask(api, "/pods")).body);
  deepStrictEqual([list.kind, list.items.length, list.items[0].status.phase], ["PodList", 3, "Running"]);
  const running = JSON.parse((await ask(api, "/runningpods/")).body);
  deepStrictEqual(running.items[0].spec.containers, [{
    name: "main",
    image: "image@sha256:1",
    resources: {},
  }]);
  deepStrictEqual(JSON.parse((await ask(api, "/configz")).body), { kubeletconfig: { maxPods: 110 } });
  strictEqual((await ask(api, "/metrics")).body, "kubeedge_up 1\n");
  strictEqual((await ask(api, "/logs/")).status, 404);
  deepStrictEqual((await ask(api, "/pods", "PUT")).headers["allow"], "GET");
  strictEqual((await ask(api, "/run/default/one/main?cmd=ls%20-l", "POST")).body, "ran ls,-l");
  const failed = await ask(api, "/run/default/one/main?cmd=false", "POST");
  deepStrictEqual([failed.status, failed.body], [500, "command 'false' exited with 1: ran false"]);
  strictEqual((await ask(api, "/run/default/one/wrong-uid/main?cmd=ls", "POST")).status, 404);
  strictEqual(
    (await ask(api, "/run/default/crash/main?cmd=ls", "POST")).body,
    'container not found ("main")',
  );
});

Deno.test("the summary has rates from the first call on", async () => {
  const logDir = await Deno.makeTempDir();
  try {
    await Deno.mkdir(`${logDir}/default_one_uid-one/main`, { recursive: true });
    await Deno.writeTextFile(`${logDir}/default_one_uid-one/main/1.log`, "12345");
    const { node, pods } = JSON.parse((await ask(new KubeletApi(ports(logDir)), "/stats/summary")).body);
    strictEqual(node.nodeName, "edge-1");
    strictEqual(node.startTime, "2026-01-01T11:00:00Z");
    deepStrictEqual([node.cpu.usageNanoCores, node.cpu.usageCoreNanoSeconds], [1e9, 1e9]);
    deepStrictEqual([node.memory.workingSetBytes, node.memory.availableBytes], [400, 600]);
    deepStrictEqual([node.network.name, node.network.txBytes, node.network.interfaces.length], [
      "eth0",
      2,
      1,
    ]);
    deepStrictEqual([node.fs.usedBytes, node.runtime.imageFs.availableBytes], [2000, 7]);
    strictEqual(pods.length, 1, "exited runs and strangers are left out");
    const [one] = pods;
    deepStrictEqual(one.podRef, { name: "one", namespace: "default", uid: "uid-one" });
    strictEqual(one.startTime, "2026-01-01T11:00:00Z");
    deepStrictEqual(one.cpu, {
      time: "2026-01-01T12:00:02Z",
      usageNanoCores: 250_000_000,
      usageCoreNanoSeconds: 500_000_000,
    });
    deepStrictEqual(one.containers[0].memory, {
      time: "2026-01-01T12:00:02Z",
      availableBytes: 64 * 1024 * 1024 - 1024,
      workingSetBytes: 1024,
    });
    deepStrictEqual([one.containers[0].logs.usedBytes, one.containers[0].rootfs.usedBytes], [5, 4096]);
    deepStrictEqual([one["ephemeral-storage"].usedBytes, one["ephemeral-storage"].inodesUsed], [4101, 4]);
  } finally {
    await Deno.remove(logDir, { recursive: true });
  }
});

Deno.test("the resource metrics are those of the kubelet", async () => {
  const { body } = await ask(new KubeletApi(ports("/nowhere")), "/metrics/resource");
  const samples = body.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  deepStrictEqual(samples, [
    `container_cpu_usage_seconds_total{container="main",namespace="default",pod="one"} 0.25 ${nowMs + 1000}`,
    `container_memory_working_set_bytes{container="main",namespace="default",pod="one"} 1024 ${nowMs + 1000}`,
    `container_start_time_seconds{container="main",namespace="default",pod="one"} ${(nowMs - 60_000) / 1000}`,
    `node_cpu_usage_seconds_total 0 ${nowMs}`,
    `node_memory_working_set_bytes 400 ${nowMs}`,
    `node_swap_usage_bytes 5 ${nowMs}`,
    `pod_cpu_usage_seconds_total{namespace="default",pod="one"} 0.25 ${nowMs + 1000}`,
    `pod_memory_working_set_bytes{namespace="default",pod="one"} 1024 ${nowMs + 1000}`,
    "resource_scrape_error 0",
    "scrape_error 0",
  ]);
  const away = ports("/nowhere");
  away.runtime.stats = () => Promise.reject(new Error("away"));
  match(
    (await ask(new KubeletApi(away), "/metrics/resource")).body,
    /node_memory_working_set_bytes 400[^]*\nscrape_error 1\n/,
  );
  strictEqual((await ask(new KubeletApi(away), "/stats/summary")).status, 500);
  match(
    (await ask(new KubeletApi(ports("/nowhere")), "/metrics/cadvisor")).body,
    /container_cpu_usage_seconds_total\{container="main",cpu="total",id="m2"/,
  );
});

Deno.test("rates: far enough apart, never backwards, forgotten with their container", () => {
  const meter = new RateMeter();
  const sample = (timeMs: number, total: number | undefined) => {
    meter.begin();
    if (total !== undefined) meter.add("c", timeMs, total);
    meter.end();
    return meter.rate("c");
  };
  strictEqual(sample(0, 100), undefined);
  strictEqual(meter.complete, false);
  strictEqual(sample(100, 150), undefined, "too soon");
  strictEqual(sample(1000, 600), 500);
  strictEqual(meter.complete, true);
  strictEqual(sample(1100, 9000), 500, "too soon: the former one");
  strictEqual(sample(2000, 700), 100);
  strictEqual(sample(3000, 10), undefined, "restarted");
  strictEqual(sample(4000, 20), 10);
  strictEqual(sample(100_000, 30), undefined, "too long ago");
  sample(101_000, undefined);
  strictEqual(sample(102_000, 40), undefined);
});

Deno.test("the machine's figures", async () => {
  deepStrictEqual(parseStat("cpu  10 20 30 4000 50 6 7 8 9 0\ncpu0 1 1 1 1\nbtime 1700000000\n"), {
    cpuCoreNanoSeconds: 73 * 10_000_000,
    bootMs: 1_700_000_000_000,
  });
  const { memory, swap } = parseMemory(
    "MemTotal: 100 kB\nMemFree: 40 kB\nInactive(file):  10 kB\nAnonPages: 5 kB\nSwapTotal: 8 kB\nSwapFree: 6 kB\n",
    "pgfault 7\npgmajfault 3\n",
  );
  deepStrictEqual(memory, {
    availableBytes: 51200,
    usageBytes: 61440,
    workingSetBytes: 51200,
    rssBytes: 5120,
    pageFaults: 7,
    majorPageFaults: 3,
  });
  deepStrictEqual(swap, { availableBytes: 6144, usageBytes: 2048 });
  const devices =
    "Inter-|   Receive |  Transmit\n face |bytes    packets errs\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0:100 2 3 0 0 0 0 0 200 4 5 0 0 0 0 0\nveth1: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n";
  deepStrictEqual(parseInterfaces(devices), [{
    name: "eth0",
    rxBytes: 100,
    rxErrors: 3,
    txBytes: 200,
    txErrors: 5,
  }]);
  const routes =
    "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\nwlan0\t00000000\t010200C0\t0003\t0\t0\t600\t00000000\neth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\neth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\n";
  strictEqual(parseDefaultInterface(routes), "eth0");
  strictEqual(parseDefaultInterface(""), undefined);
  const real = await nodeStats("/");
  strictEqual(
    real.cpuCoreNanoSeconds > 0 && real.memory.workingSetBytes > 0 && real.fileSystem.capacityBytes > 0,
    true,
  );
  strictEqual(Math.abs(real.timeMs - real.bootMs) > 1000 && real.processes.running > 0, true);
  strictEqual(await fileSystemStats("/no/such/path"), undefined);
});
