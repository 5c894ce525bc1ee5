/** `kubeedge edge join TOKEN`: checks the machine, joins the cluster, and starts the agent. */
import { Cri } from "../lib/cri/client.ts";
import { errorText, ExitCode, UserError } from "../lib/core/errors.ts";
import type { Identity } from "../lib/edge/identity.ts";
import {
  holds,
  type HubAuthority,
  join,
  type Joined,
  type JoinPorts,
  pinAuthority,
  readToken,
} from "../lib/edge/join.ts";
import {
  checkLines,
  type HubProbe,
  kubeletPort,
  type MachineFacts,
  preflight,
} from "../lib/edge/preflight.ts";
import type { Taint } from "../lib/kube/types.ts";
import { systemClock } from "../lib/sys/clock.ts";
import { grpcUnix } from "../lib/sys/grpc_unix.ts";
import { diskFree, hostFacts } from "../lib/sys/host.ts";
import {
  loadIdentity,
  loadPendingKey,
  saveIdentity,
  savePendingKey,
  writeAtomically,
} from "../lib/sys/identity_files.ts";
import { cgroups, cniConfigs, isRoot, portTaken, processRuns } from "../lib/sys/machine.ts";
import { installedUnit, installUnit, systemdRuns, unitIsOf, unitName, unitText } from "../lib/sys/systemd.ts";
import { fetchAuthority, pinnedFetch } from "../lib/sys/tls_pin.ts";
import type { EdgeRunOptions } from "./edge_run.ts";
import { nodeName } from "./support/kinds.ts";

export type JoinOptions = {
  token: string;
  /** Undefined: the host's name in lower case. */
  name?: string;
  labels: Record<string, string>;
  taints: Taint[];
  /** Go on in the foreground even where systemd runs. */
  run: boolean;
  /** False: leave the start to others. */
  start: boolean;
  /** Check and stop. */
  dryRun: boolean;
  /** For one request to one hub. */
  hubTimeoutMs?: number;
} & EdgeRunOptions;

const cniDirectory = "/etc/cni/net.d";
const hubTimeoutMs = 30_000;
/** What the agent's service inherits of this shell: how to reach the hub, and where Deno keeps its cache. */
const inherited = ["HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "DENO_DIR", "DENO_NO_UPDATE_CHECK"];

export async function joinNode(o: JoinOptions): Promise<void> {
  const token = readToken(o.token);
  const current = isRoot() ? loadIdentity(o.rootDir) : undefined;
  const fallbackNode = current?.node ?? defaultName(o);
  const hubNeeded = !holds(current, token, Date.now());
  const ports = joinPorts(o);
  await checkMachine(o, { urls: token.urls, hubNeeded, ports });
  const asService = !o.run && systemdRuns();
  if (asService) refuseOtherUnit(o.rootDir);
  if (o.dryRun) {
    if (hubNeeded) await pinAuthority(token, ports);
    return say("Dry run: nothing was changed");
  }
  const { labels, taints, name: node } = o;
  const joined = await join(
    { token, node, fallbackNode, labels, taints, architecture: hostFacts().architecture },
    current,
    ports,
  );
  report(joined, current, o);
  if (joined.state === "joined" || joined.identity.urls.join() !== current?.urls.join()) {
    saveIdentity(o.rootDir, joined.identity);
  }
  const runOptions = edgeRunOptions(o);
  const newConfig = await writeConfig(runOptions);
  if (asService) return await startService(o, newConfig || joined.state === "joined");
  if (!o.run && !o.start) {
    return say(`Start the agent with: kubeedge edge run --config ${configPath(o.rootDir)}`);
  }
  say("Running the agent in the foreground; Ctrl-C ends it, pods go on");
  const { runEdge } = await import("./edge_run.ts");
  await runEdge(runOptions);
}

function defaultName({ name }: JoinOptions): string {
  if (name !== undefined) return name;
  const host = Deno.hostname().toLowerCase();
  if (nodeName.read(host) !== undefined) return host;
  throw new UserError(
    `Cannot name the node after the host "${host}": expected ${nodeName.expected}; give one with --name`,
    ExitCode.usage,
  );
}

/** One question to each hub serves both the checks and the join. */
function joinPorts(o: JoinOptions): JoinPorts {
  const timeoutMs = o.hubTimeoutMs ?? hubTimeoutMs;
  const asked = new Map<string, Promise<HubAuthority>>();
  return {
    authority(url) {
      const answer = asked.get(url) ?? within(timeoutMs, fetchAuthority(url, timeoutMs));
      asked.set(url, answer);
      return answer;
    },
    post: (certificate, url, json) => pinnedFetch(certificate)(url, json, timeoutMs),
    pendingKey: () => loadPendingKey(o.rootDir),
    keepKey: (key) => savePendingKey(o.rootDir, key),
    clock: systemClock,
    progress: (line) => say(`✓ ${line}`),
  };
}

async function within<T>(timeoutMs: number, work: Promise<T>): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${timeoutMs} ms`)), timeoutMs);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

async function checkMachine(
  o: JoinOptions,
  { urls, hubNeeded, ports }: { urls: string[]; hubNeeded: boolean; ports: JoinPorts },
): Promise<void> {
  say("Checking this machine");
  const [runtime, hubs] = await Promise.all([
    probeRuntime(o.runtimeEndpoint),
    Promise.all(urls.map((url) => probeHub(url, ports))),
  ]);
  const checks = preflight({
    root: isRoot(),
    cgroups: cgroups(),
    runtimeEndpoint: o.runtimeEndpoint,
    runtime,
    cniDirectory,
    cniConfigs: cniConfigs(cniDirectory),
    rootDir: o.rootDir,
    freeBytes: freeBytes(o.rootDir),
    hubs,
    hubNeeded,
    kubelet: { running: processRuns("kubelet"), portTaken: portTaken(kubeletPort) },
  });
  for (const line of checks.flatMap(checkLines)) say(line);
  const failed = checks.filter(({ level }) => level === "error");
  if (failed.length === 0) return;
  const names = failed.map(({ name }) => name).join(", ");
  throw new UserError(
    `Cannot join: ${failed.length} of ${checks.length} checks failed (${names}); nothing was changed. Do what stands at → above and run the command again`,
    ExitCode.precondition,
  );
}

function freeBytes(path: string): number | undefined {
  try {
    return diskFree(path).freeBytes;
  } catch {
    return undefined;
  }
}

async function probeRuntime(endpoint: string): Promise<MachineFacts["runtime"]> {
  try {
    return { state: "ok", info: await new Cri(grpcUnix(endpoint)).info() };
  } catch (error) {
    return { state: "failed", reason: errorText(error) };
  }
}

async function probeHub(url: string, ports: JoinPorts): Promise<HubProbe> {
  try {
    return { url, state: "ok", skewMs: (await ports.authority(url)).skewMs };
  } catch (error) {
    return { url, state: "failed", reason: errorText(error) };
  }
}

function refuseOtherUnit(rootDir: string): void {
  const unit = installedUnit();
  if (unit === undefined || unitIsOf(unit, rootDir)) return;
  throw new UserError(
    `Cannot install ${unitName}: it belongs to an agent with another root directory than ${rootDir}; reset that one first, or use --run`,
    ExitCode.precondition,
  );
}

function report({ state, identity }: Joined, current: Identity | undefined, o: JoinOptions): void {
  const { node, cluster } = identity;
  if (state === "joined") {
    return say(`✓ ${current ? "Renewed" : "Joined"} node "${node}" of cluster ${cluster}`);
  }
  const asked = Object.keys(o.labels).length > 0 || o.taints.length > 0;
  const unsent = asked ? "; labels and taints were not sent, use kubectl for them" : "";
  say(
    `✓ This machine is node "${node}" of that cluster already, nothing to do${unsent}. To join anew: kubeedge edge reset`,
  );
}

function edgeRunOptions(o: JoinOptions): EdgeRunOptions {
  const {
    rootDir,
    runtimeEndpoint,
    podLogDir,
    cgroupRoot,
    clusterDns,
    clusterDomain,
    nodeIp,
    statusListen,
    maxPods,
    logLevel,
    logFormat,
  } = o;
  const common = {
    rootDir,
    runtimeEndpoint,
    podLogDir,
    cgroupRoot,
    clusterDns,
    clusterDomain,
    statusListen,
    maxPods,
    logLevel,
    logFormat,
  };
  return nodeIp === undefined ? common : { ...common, nodeIp };
}

function configPath(rootDir: string): string {
  return `${rootDir}/edge.yaml`;
}

/** True when the file changed. */
async function writeConfig({ statusListen, ...options }: EdgeRunOptions): Promise<boolean> {
  const { stringify } = await import("yaml");
  const host = statusListen?.host.includes(":") ? `[${statusListen.host}]` : statusListen?.host;
  const listen = { statusListen: statusListen ? `${host}:${statusListen.port}` : "off" };
  const text = `# Written by "kubeedge edge join"; every key is an option of "kubeedge edge run".\n${
    stringify({ ...options, ...listen })
  }`;
  return writeChanged(configPath(options.rootDir), text);
}

function writeChanged(path: string, text: string): boolean {
  try {
    if (Deno.readTextFileSync(path) === text) return false;
  } catch { /* it is not there yet */ }
  writeAtomically(path, text);
  return true;
}

async function startService(o: JoinOptions, changed: boolean): Promise<void> {
  const environmentFile = `${o.rootDir}/edge.env`;
  const newEnvironment = writeChanged(environmentFile, environment());
  const unit = unitText({
    command: [...program(), "edge", "run", "--config", configPath(o.rootDir)],
    rootDir: o.rootDir,
    environmentFile,
  });
  const restart = changed || newEnvironment || installedUnit() !== unit;
  await installUnit(unit, !o.start ? "no" : restart ? "restart" : "start");
  if (!o.start) return say(`✓ Installed ${unitName}; start it with: systemctl start ${unitName}`);
  say(`✓ Started ${unitName}; see "kubeedge edge status" and journalctl -u ${unitName}`);
}

/** systemd.exec(5), EnvironmentFile: values in double quotes. */
function environment(): string {
  return inherited.flatMap((name) => {
    const value = Deno.env.get(name);
    return value === undefined || /[\n\0]/.test(value)
      ? []
      : [`${name}="${value.replaceAll(/["\\$`]/g, "\\$&")}"\n`];
  }).join("");
}

/**
 * How to start this program again: one executable by itself (a self-extracting one names itself in
 * KUBEEDGE_EXECUTABLE), sources by the Deno that runs them.
 */
function program(): string[] {
  const executable = Deno.env.get("KUBEEDGE_EXECUTABLE");
  if (executable) return [executable];
  return Deno.build.standalone
    ? [Deno.execPath()]
    : [Deno.execPath(), "run", "-A", new URL(Deno.mainModule).pathname];
}

function say(line: string): void {
  console.log(line);
}
