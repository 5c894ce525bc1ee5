/**
 * Side by side with a real kubelet on the same machine, cluster and containerd: one agent runs, then the other, in turn.
 * Prints medians and ratios (ours / kubelet's); nothing here passes or fails.
 *
 *     deno task bench            BENCH_PODS=20 BENCH_ROUNDS=2 BENCH_STEADY_SECONDS=60
 */
import { KubeClient } from "../../lib/kube/client.ts";
import { lines } from "../../lib/kube/reflector.ts";
import { kubeHttp, loadConnection } from "../../lib/sys/kube_http.ts";
import type { Pod } from "../../lib/kube/types.ts";
import { binaries } from "../real/binaries.ts";
import { busyboxImage } from "../real/images.ts";
import { makeLeaf } from "../real/pki.ts";
import { cleanUp, type Program, run } from "../real/processes.ts";
import { Realm, sleep, until } from "../real/realm.ts";

const number = (name: string, fallback: number) => Number(Deno.env.get(name) ?? fallback);
const podCount = number("BENCH_PODS", 20), rounds = number("BENCH_ROUNDS", 2);
const steadySeconds = number("BENCH_STEADY_SECONDS", 60);

interface Figures {
  /** ms from create to Ready as the watch shows it, one pod at a time. */
  singleMs: number[];
  /** ms until the last of a burst is Ready. */
  burstMs: number[];
  /** ms from delete to gone. */
  deleteMs: number[];
  /** MiB with 10 pods, once a second. */
  residentMiB: number[];
}

const realm = await Realm.start({ addressTypes: "InternalIP,ExternalIP,Hostname" });
const client = new KubeClient(kubeHttp(loadConnection(realm.kubeconfig, undefined)));
await client.connect();
await realm.startCloud();
const edge = await realm.edge("edge1");
await edge.join(await realm.token());
await edge.agent.stop();

/** When each pod was first seen Ready, and gone. */
const ready = new Map<string, number>(), gone = new Map<string, number>();
void (async () => {
  const body = await client.openWatch("/api/v1/namespaces/default/pods", { query: { watch: true } });
  for await (const line of lines(body, 4 * 1024 * 1024)) {
    const { type, object } = JSON.parse(new TextDecoder().decode(line)) as { type: string; object: Pod };
    const { name } = object.metadata;
    if (type === "DELETED") gone.set(name, performance.now());
    else if (
      object.status?.conditions?.some((one) => one.type === "Ready" && one.status === "True") &&
      !ready.has(name)
    ) {
      ready.set(name, performance.now());
    }
  }
})().catch(() => {}); // the cluster ends before the watch

let next = 0;
async function create(node: string): Promise<{ name: string; atMs: number }> {
  const name = `b${next++}`;
  const atMs = performance.now();
  await client.create("/api/v1/namespaces/default/pods", {
    metadata: { name },
    spec: {
      nodeSelector: { "kubernetes.io/hostname": node },
      terminationGracePeriodSeconds: 2,
      containers: [{
        name: "c",
        image: busyboxImage,
        imagePullPolicy: "IfNotPresent",
        command: ["sleep", "36000"],
      }],
    },
  });
  return { name, atMs };
}
async function remove(names: string[]): Promise<number[]> {
  return await Promise.all(names.map(async (name) => {
    const atMs = performance.now();
    await client.delete(`/api/v1/namespaces/default/pods/${name}`);
    await until(`${name} is gone`, 120_000, () => gone.has(name));
    return (gone.get(name) as number) - atMs;
  }));
}
async function seen(name: string, atMs: number): Promise<number> {
  for (const endMs = performance.now() + 120_000; !ready.has(name);) {
    if (performance.now() > endMs) throw new Error(`${name} is not Ready`);
    await sleep(5);
  }
  return (ready.get(name) as number) - atMs;
}

/** Memory of the agent's process, which nsenter has become. */
async function residentMiB(pid: number): Promise<number> {
  const status = await Deno.readTextFile(`/proc/${pid}/status`);
  return Number(/VmRSS:\s+(\d+)/.exec(status)?.[1]) / 1024;
}

async function measure(node: string, agent: Program, figures: Figures): Promise<void> {
  await until(`${node} is Ready`, 60_000, () => realm.ready(node)).catch(async (error: unknown) => {
    throw new Error(
      `${error}: ${await realm.ok("get", "node", node, "-o", "jsonpath={.status.conditions}")}`,
    );
  });
  await sleep(3000);
  await remove([await create(node)].map(({ name }) => name)); // the first one warms up
  for (let i = 0; i < podCount; i++) {
    const { name, atMs } = await create(node);
    figures.singleMs.push(await seen(name, atMs));
    figures.deleteMs.push(...await remove([name]));
  }
  const startedMs = performance.now();
  const burst = await Promise.all(Array.from({ length: 20 }, () => create(node)));
  await Promise.all(burst.map(({ name, atMs }) => seen(name, atMs)));
  figures.burstMs.push(performance.now() - startedMs);
  await remove(burst.slice(10).map(({ name }) => name));
  await sleep(steadySeconds * 500);
  for (let i = 0; i < steadySeconds; i++) {
    figures.residentMiB.push(await residentMiB(agent.pid));
    await sleep(1000);
  }
  await remove(burst.slice(0, 10).map(({ name }) => name));
}

// ---- the kubelet, on the same containerd, with a node of its own
const pki = `${realm.dir}/pki`, kubeletNode = "kubelet1", kubeletDir = `${edge.dir}/kubelet`;
await makeLeaf(pki, { name: "kubelet", subject: `/O=system:nodes/CN=system:node:${kubeletNode}` });
await Deno.mkdir(kubeletDir, { recursive: true });
const admin = JSON.parse(await Deno.readTextFile(realm.kubeconfig)) as { users: { user: unknown }[] };
for (const entry of admin.users) {
  entry.user = { "client-certificate": "kubelet.crt", "client-key": "kubelet.key" };
}
await Deno.writeTextFile(`${pki}/kubelet.conf`, JSON.stringify(admin));
const cgroup = `ke${realm.number}kubelet`;
for (const { name } of Deno.readDirSync("/sys/fs/cgroup")) {
  const dir = `/sys/fs/cgroup/${name}`;
  if (!await Deno.stat(`${dir}/tasks`).then(() => true, () => false)) continue;
  await Deno.mkdir(`${dir}/${cgroup}`, { recursive: true });
  if (!name.includes("cpuset")) continue;
  for (const file of ["cpuset.cpus", "cpuset.mems"]) {
    await Deno.writeTextFile(`${dir}/${cgroup}/${file}`, await Deno.readTextFile(`${dir}/${file}`));
  }
}
await Deno.writeTextFile(
  `${kubeletDir}/config.yaml`,
  JSON.stringify({
    apiVersion: "kubelet.config.k8s.io/v1beta1",
    kind: "KubeletConfiguration",
    authentication: {
      anonymous: { enabled: false },
      webhook: { enabled: true },
      x509: { clientCAFile: `${pki}/ca.crt` },
    },
    authorization: { mode: "Webhook" },
    cgroupDriver: "cgroupfs",
    cgroupRoot: `/${cgroup}`,
    failCgroupV1: false,
    failSwapOn: false,
    oomScoreAdj: 0,
    containerRuntimeEndpoint: `unix://${edge.socket}`,
    evictionHard: { "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
    imageGCHighThresholdPercent: 100,
    imageGCLowThresholdPercent: 99,
    volumePluginDir: `${kubeletDir}/plugins`,
    podLogsDir: `${kubeletDir}/logs`,
    maxOpenFiles: 100_000,
  }),
);
const startKubelet = () =>
  realm.program(
    "kubelet",
    edge.inside([
      `${binaries}/kubelet`,
      `--config=${kubeletDir}/config.yaml`,
      `--kubeconfig=${pki}/kubelet.conf`,
      `--hostname-override=${kubeletNode}`,
      `--root-dir=${kubeletDir}`,
      "--v=1",
    ]),
  );

const empty = (): Figures => ({ singleMs: [], burstMs: [], deleteMs: [], residentMiB: [] });
const ours = empty(), theirs = empty();
try {
  for (let round = 1; round <= rounds; round++) {
    console.log(`round ${round} of ${rounds}: kubelet`);
    const kubelet = startKubelet();
    await measure(kubeletNode, kubelet, theirs);
    await kubelet.stop();
    console.log(`round ${round} of ${rounds}: kubeedge`);
    edge.start();
    await measure("edge1", edge.agent, ours);
    await edge.agent.stop();
  }
} catch (error) {
  console.error(String(error));
  await cleanUp();
  Deno.exit(1);
}

const median = (values: number[]) =>
  [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
const rows: [string, number[], number[], string][] = [
  ["create to Ready", ours.singleMs, theirs.singleMs, "ms"],
  ["burst of 20, all Ready", ours.burstMs, theirs.burstMs, "ms"],
  ["delete to gone (grace 2 s)", ours.deleteMs, theirs.deleteMs, "ms"],
  ["resident memory, 10 pods", ours.residentMiB, theirs.residentMiB, "MiB"],
];
console.log(
  `\n${"median (max)".padEnd(28)}${"kubeedge".padStart(18)}${"kubelet".padStart(18)}${"ratio".padStart(8)}`,
);
for (const [what, mine, other, unit] of rows) {
  const cell = (values: number[]) =>
    `${median(values).toFixed(0)} (${Math.max(...values).toFixed(0)}) ${unit}`;
  console.log(
    `${what.padEnd(28)}${cell(mine).padStart(18)}${cell(other).padStart(18)}${
      (median(mine) / median(other)).toFixed(2).padStart(8)
    }`,
  );
}
await cleanUp();
await run([
  "find",
  "/sys/fs/cgroup",
  "-depth",
  "-type",
  "d",
  "-path",
  `*/${cgroup}*`,
  "-exec",
  "rmdir",
  "{}",
  "+",
]);
Deno.exit(0);
