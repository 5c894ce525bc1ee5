/** The commands of `kubeedge edge`. What they need is loaded when they run. */
import { ExitCode, UserError } from "../lib/core/errors.ts";
import { logLevels } from "../lib/core/log.ts";
import type { Pod } from "../lib/kube/types.ts";
import { command, type Group } from "./support/command.ts";
import * as kinds from "./support/kinds.ts";
import { flag, many, option, optional, type Values } from "./support/options.ts";

const rootDir = option(kinds.directory, "/var/lib/kubeedge", "directory of the agent: identity, store, pods");

const runOptions = {
  rootDir,
  runtimeEndpoint: option(
    kinds.unixEndpoint,
    "unix:///run/containerd/containerd.sock",
    "CRI socket of the container runtime",
  ),
  podLogDir: option(kinds.directory, "/var/log/pods", "directory of container logs"),
  cgroupRoot: option(
    kinds.directory,
    "/kubeedge",
    "cgroup under which pods run; each agent of a machine needs its own",
  ),
  clusterDns: many(kinds.ip, "DNS servers of pods with dnsPolicy ClusterFirst"),
  clusterDomain: option(kinds.host, "cluster.local", "DNS domain of the cluster"),
  nodeIp: optional(kinds.ip, "address of the node; the default is that of the default route"),
  statusListen: option(
    kinds.addressOrOff,
    { host: "127.0.0.1", port: 10445 } as kinds.Address | "off",
    "where /healthz, /readyz and /metrics are served",
    { fallbackText: "127.0.0.1:10445" },
  ),
  maxPods: option(kinds.number(1, 1000), 110, "pods that the node takes"),
  logLevel: option(kinds.choice(...logLevels), "info", "how much is logged"),
  logFormat: option(kinds.choice("text", "json"), "text", "lines for people or for machines"),
};
const joinOptions = {
  ...runOptions,
  name: optional(kinds.nodeName, "name of the node; the default is the host's name"),
  labels: option(kinds.labels, {}, "labels of the node; those of kubernetes.io come from the token only"),
  taints: option(kinds.taints, [], "taints of the node"),
  run: flag("stay in the foreground even where systemd runs", { env: null, inFile: false }),
  noStart: flag("join, but leave the start to others", { env: null, inFile: false }),
  dryRun: flag("check this machine and the hub, and change nothing", { env: null, inFile: false }),
};

function runValues({ statusListen, ...rest }: Values<typeof runOptions>) {
  return { ...rest, statusListen: statusListen === "off" ? undefined : statusListen };
}

async function join(values: Values<typeof joinOptions>, [token = ""]: string[]): Promise<void> {
  const { joinNode } = await import("./edge_join.ts");
  const { name, labels, taints, run, noStart, dryRun, ...rest } = values;
  await joinNode({
    token,
    ...(name !== undefined ? { name } : {}),
    labels,
    taints,
    run,
    start: !noStart,
    dryRun,
    ...runValues(rest),
  });
}

interface Status {
  node: string;
  agent: string;
  cloud: { state: string; url: string; sinceMs: number; roundTripMs: number; lastError: string };
  runtime: { name: string; version: string; ready: boolean; message: string };
  pods: { running: number; total: number };
  outbox: { count: number };
  certificate: { notAfterMs: number };
  store: { bytes: number; commits: number };
}

const ask = {
  rootDir,
  output: option(kinds.choice("text", "json"), "text", "form of the answer", { short: "o", env: null }),
};

async function status(values: Values<typeof ask>): Promise<void> {
  const { adminJson } = await import("./support/admin.ts");
  const status = await adminJson<Status>(values.rootDir, "/v1/status");
  if (values.output === "json") return console.log(JSON.stringify(status, undefined, 2));
  const { cloud, runtime, pods, outbox, certificate, store } = status;
  const days = Math.floor((certificate.notAfterMs - Date.now()) / 86_400_000);
  const since = new Date(cloud.sinceMs).toISOString();
  console.log([
    `Node:         ${status.node} (kubeedge ${status.agent})`,
    `Cloud:        ${cloud.state} since ${since}, ${cloud.url}` +
    (cloud.state === "connected"
      ? `, round trip ${cloud.roundTripMs.toFixed(1)} ms`
      : `\n              ${cloud.lastError}`),
    `Runtime:      ${runtime.ready ? "ready" : "not ready"}, ${runtime.name} ${runtime.version}` +
    (runtime.ready ? "" : `\n              ${runtime.message}`),
    `Pods:         ${pods.running} of ${pods.total} running`,
    `Outbox:       ${outbox.count} reports wait for the cloud`,
    `Certificate:  valid for ${days} days`,
    `Store:        ${(store.bytes / 1024).toFixed(0)} KiB, ${store.commits} commits since the start`,
  ].join("\n"));
}

async function pods(values: Values<typeof ask>): Promise<void> {
  const { adminJson } = await import("./support/admin.ts");
  const list = await adminJson<{ items: Pod[] }>(values.rootDir, "/v1/pods");
  if (values.output === "json") return console.log(JSON.stringify(list, undefined, 2));
  const rows = [["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "IP"], ...list.items.map(podRow)];
  const widths = rows[0]?.map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0))) ?? [];
  for (const row of rows) {
    console.log(row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join("   ").trimEnd());
  }
}

function podRow({ metadata, status }: Pod): string[] {
  const containers = status?.containerStatuses ?? [];
  const waiting = containers.find(({ state }) => state?.waiting)?.state?.waiting?.reason;
  const phase = metadata.deletionTimestamp
    ? "Terminating"
    : status?.reason ?? waiting ?? status?.phase ?? "Pending";
  return [
    metadata.namespace ?? "default",
    metadata.name,
    `${containers.filter(({ ready }) => ready).length}/${containers.length}`,
    phase,
    String(containers.reduce((sum, { restartCount }) => sum + restartCount, 0)),
    status?.podIP ?? "<none>",
  ];
}

/** `[NAMESPACE/]POD` and the container that is meant. */
async function find(
  root: string,
  name: string,
  container: string | undefined,
): Promise<{ path: string; first: string }> {
  const { adminJson } = await import("./support/admin.ts");
  const [namespace, pod] = name.includes("/") ? name.split("/") as [string, string] : [undefined, name];
  const { items } = await adminJson<{ items: Pod[] }>(root, "/v1/pods");
  const found = items.filter(({ metadata }) =>
    metadata.name === pod && (namespace === undefined || metadata.namespace === namespace)
  );
  if (found.length > 1) {
    throw new UserError(`Pod "${pod}" is in several namespaces: say NAMESPACE/${pod}`, ExitCode.usage);
  }
  const only = found[0];
  if (!only) throw new UserError(`Pod "${name}" is not on this node; kubeedge edge pods lists them`);
  const first = container ?? only.spec.containers[0]?.name ?? "";
  return {
    path: [only.metadata.namespace ?? "default", only.metadata.name, first].map(encodeURIComponent).join("/"),
    first,
  };
}

const podArgument = { name: "[NAMESPACE/]POD", help: "the pod", required: true };
const container = optional(kinds.text, "the container; the default is the first", { short: "c", env: null });

const logOptions = {
  rootDir,
  container,
  follow: flag("go on with what comes", { short: "f", env: null }),
  previous: flag("the run before the last restart", { short: "p", env: null }),
  tail: optional(kinds.number(0, Number.MAX_SAFE_INTEGER), "only the last lines", { env: null }),
  since: optional(kinds.duration, "only what is newer than this", { env: null }),
  timestamps: flag("with the time of each line", { env: null }),
};

async function logs(values: Values<typeof logOptions>, [name = ""]: string[]): Promise<void> {
  const { adminGet } = await import("./support/admin.ts");
  const { path } = await find(values.rootDir, name, values.container);
  const query = new URLSearchParams();
  if (values.follow) query.set("follow", "true");
  if (values.previous) query.set("previous", "true");
  if (values.timestamps) query.set("timestamps", "true");
  if (values.tail !== undefined) query.set("tailLines", String(values.tail));
  if (values.since !== undefined) query.set("sinceSeconds", String(Math.ceil(values.since / 1000)));
  await adminGet(values.rootDir, `/containerLogs/${path}?${query}`, (bytes) => Deno.stdout.writeSync(bytes));
}

const execOptions = {
  rootDir,
  container,
  stdin: flag("pass standard input", { short: "i", env: null }),
  tty: flag("with a terminal", { short: "t", env: null }),
};

async function exec(values: Values<typeof execOptions>, [name = "", ...words]: string[]): Promise<void> {
  if (words.length === 0) {
    throw new UserError("Cannot exec: no command; kubeedge edge exec POD -- COMMAND", ExitCode.usage);
  }
  const { adminExec } = await import("./support/admin.ts");
  const { path } = await find(values.rootDir, name, values.container);
  const { stdin, tty } = values;
  const query = new URLSearchParams([
    ...words.map((word): [string, string] => ["command", word]),
    ["output", "1"],
    ...(tty ? [["tty", "1"] as [string, string]] : [["error", "1"] as [string, string]]),
    ...(stdin ? [["input", "1"] as [string, string]] : []),
  ]);
  const code = await adminExec(values.rootDir, `/exec/${path}?${query}`, { stdin, tty });
  if (code !== 0) Deno.exit(code);
}

export const edge: Group = {
  summary: "EdgeCore: the node agent of an edge machine",
  description:
    "Runs the node's pods through containerd and keeps what it needs in a store of its own, so that they run on, and start " +
    "again after a reboot, while the cloud cannot be reached.",
  commands: {
    join: command({
      summary: "check this machine, join it to a cluster, and start the agent",
      description:
        "The hub's CA is checked against the token before anything secret is sent; the machine's key never leaves it.\n\n" +
        "Where systemd runs, the agent becomes the service kubeedge-edge; elsewhere this command goes on as the agent. Safe to repeat. " +
        "HTTPS_PROXY and NO_PROXY are honoured.",
      arguments: [{ name: "TOKEN", help: "as kubeedge cloud token create printed it", required: true }],
      options: joinOptions,
      config: true,
      examples: [
        "kubeedge edge join ke1.…",
        "kubeedge edge join ke1.… --name shop-17 --labels zone=shop --taints edge=true:NoSchedule",
        "kubeedge edge join ke1.… --dry-run",
      ],
      run: join,
    }),
    run: command({
      summary: "run the agent until SIGTERM; containers outlive it",
      options: runOptions,
      config: true,
      examples: ["kubeedge edge run --config /var/lib/kubeedge/edge.yaml"],
      run: async (values) => await (await import("./edge_run.ts")).runEdge(runValues(values)),
    }),
    reset: command({
      summary: "undo join: stop the agent, remove its pods, identity and store",
      options: { ...pick(runOptions), yes: flag("do not ask", { short: "y", env: null, inFile: false }) },
      config: true,
      run: async (values) => await (await import("./edge_reset.ts")).resetNode(values),
    }),
    config: {
      summary: "check or print the configuration",
      commands: {
        check: command({
          summary: "check flags, environment and config file, and touch nothing",
          options: runOptions,
          config: true,
          examples: ["kubeedge edge config check --config /var/lib/kubeedge/edge.yaml"],
          run: () => console.log("The configuration is valid"),
        }),
        print: command({
          summary: "print what would be used",
          options: runOptions,
          config: true,
          run: async (values) => (await import("./support/checked.ts")).printOptions(values),
        }),
      },
    },
    status: command({
      summary: "show the node, its link to the cloud and its runtime",
      options: ask,
      run: status,
    }),
    pods: command({ summary: "list the pods of this node", options: ask, run: pods }),
    logs: command({
      summary: "print a container's log",
      arguments: [podArgument],
      options: logOptions,
      examples: [
        "kubeedge edge logs -f web-5d9d8d97c6-7v5cz",
        "kubeedge edge logs kube-system/dns --tail 20",
      ],
      run: logs,
    }),
    exec: command({
      summary: "run a command in a container",
      arguments: [podArgument, {
        name: "COMMAND",
        help: "and its arguments, after --",
        required: false,
        rest: true,
      }],
      options: execOptions,
      examples: ["kubeedge edge exec -it web-5d9d8d97c6-7v5cz -- sh"],
      run: exec,
    }),
  },
};

function pick({ rootDir, runtimeEndpoint, podLogDir, cgroupRoot }: typeof runOptions) {
  return { rootDir, runtimeEndpoint, podLogDir, cgroupRoot };
}
