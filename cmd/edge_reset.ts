/** `kubeedge edge reset`: undoes `edge join` and removes this agent's pods from the machine. Safe to repeat. */
import { errorText, ExitCode, UserError } from "../lib/core/errors.ts";
import { Cri } from "../lib/cri/client.ts";
import type { ContainerRuntime, Sandbox } from "../lib/cri/runtime.ts";
import { grpcUnix } from "../lib/sys/grpc_unix.ts";
import { isRoot, removeCgroups, unmountBelow } from "../lib/sys/machine.ts";
import { installedUnit, removeUnit, unitIsOf, unitName } from "../lib/sys/systemd.ts";

export interface ResetOptions {
  rootDir: string;
  runtimeEndpoint: string;
  cgroupRoot: string;
  podLogDir: string;
  /** Do not ask. */
  yes: boolean;
}

const uidLabel = "io.kubernetes.pod.uid";
/** Root directory of the agent that made a sandbox. */
const agentAnnotation = "kubeedge.io/agent";
/** What containers get between the stop signal and the kill, s. */
const stopGraceSeconds = 10;

/** By one of these a directory is known to be an agent's; a kubelet's own has none of them. They go last. */
const marks = ["edge.json", "edge.yaml", "pki/node.key"];
/** What an agent keeps in its root directory; the rest is not ours. */
const ownFiles = /^(pki(\.new|\.old)?|edge\.(json|yaml|env)(\.new)?|edge\.sock|store.*|pods)$/;

export async function resetNode(o: ResetOptions): Promise<void> {
  if (!isRoot()) {
    throw new UserError("Cannot reset this node: not root; run it with sudo", ExitCode.precondition);
  }
  if (o.rootDir === "/") {
    throw new UserError(
      "Cannot reset the root directory /: name the agent's own with --root-dir",
      ExitCode.usage,
    );
  }
  const node = nodeOf(o.rootDir);
  if (!o.yes) confirmReset(node, o.rootDir);
  await stopAgent(o.rootDir);
  const joined = marks.some((name) => exists(`${o.rootDir}/${name}`));
  const uids = new Set(joined ? names(`${o.rootDir}/pods`) : []);
  for (const uid of await removePods(o, uids)) uids.add(uid);
  removeLogs(o.podLogDir, uids);
  if (joined) await removeFiles(o.rootDir);
  await removeAgentCgroups(o.cgroupRoot);
  if (!joined) return say(`No agent in ${o.rootDir}: nothing more to reset`);
  say(
    `This machine is no node any more. The cluster keeps its Node object until you run: kubectl delete node ${
      node ?? "NAME"
    }`,
  );
}

/** Undefined when it cannot be told. */
function nodeOf(rootDir: string): string | undefined {
  try {
    const { node } = JSON.parse(Deno.readTextFileSync(`${rootDir}/edge.json`)) as { node?: unknown };
    return typeof node === "string" ? node : undefined;
  } catch {
    return undefined;
  }
}

function confirmReset(node: string | undefined, rootDir: string): void {
  if (!Deno.stdin.isTerminal()) {
    throw new UserError(
      "Cannot ask whether to reset this node: there is no terminal; add --yes",
      ExitCode.usage,
    );
  }
  const what = node === undefined ? `the agent in ${rootDir}` : `node "${node}" (${rootDir})`;
  if (
    !confirm(`This stops all pods of ${what} and deletes their data, its key and its certificate. Go on?`)
  ) {
    throw new UserError("Nothing was changed");
  }
}

/** A service of another root directory stays. An agent in the foreground is for the person who started it to end. */
async function stopAgent(rootDir: string): Promise<void> {
  const unit = installedUnit();
  if (unit !== undefined && unitIsOf(unit, rootDir) && await removeUnit()) {
    say(`✓ Stopped and removed ${unitName}`);
  }
  if (!(await answers(`${rootDir}/edge.sock`))) return;
  throw new UserError(
    `Cannot reset ${rootDir}: an agent still runs there (it answers on edge.sock); stop it and run the command again`,
  );
}

async function answers(path: string): Promise<boolean> {
  try {
    (await Deno.connect({ transport: "unix", path })).close();
    return true;
  } catch {
    return false;
  }
}

/** Stops and removes the agent's sandboxes; resolves to the UIDs of their pods. */
async function removePods(o: ResetOptions, uids: ReadonlySet<string>): Promise<string[]> {
  const runtime = new Cri(grpcUnix(o.runtimeEndpoint));
  let sandboxes: Sandbox[];
  try {
    sandboxes = await runtime.listSandboxes();
  } catch (error) {
    if (uids.size === 0) {
      say(`! ${o.runtimeEndpoint} does not answer; no pods are known here, so none were looked for`);
      return [];
    }
    throw new UserError(
      `Cannot stop ${counted(uids.size, "pod")} of ${o.rootDir}: ${o.runtimeEndpoint} does not answer (${
        errorText(error)
      }); start the runtime and run the command again`,
    );
  }
  const own = sandboxes.filter((sandbox) => isOwn(sandbox, o.rootDir, uids));
  const containers = (await runtime.listContainers()).filter(({ state }) => state === "running");
  const running = (id: string) => containers.filter(({ sandboxId }) => sandboxId === id).map(({ id }) => id);
  const results = await Promise.allSettled(own.map(({ id }) => removeSandbox(runtime, id, running(id))));
  const failed = results.flatMap((result) => result.status === "rejected" ? [errorText(result.reason)] : []);
  if (failed.length > 0) {
    throw new UserError(
      `Cannot remove ${failed.length} of ${own.length} pods (${failed[0]}); run the command again`,
    );
  }
  if (own.length > 0) say(`✓ Stopped and removed ${counted(own.length, "pod")}`);
  return own.map(({ podUid }) => podUid);
}

/** Other agents may share the runtime. */
export function isOwn(
  { labels, annotations }: Pick<Sandbox, "labels" | "annotations">,
  rootDir: string,
  uids: ReadonlySet<string>,
): boolean {
  const uid = labels[uidLabel], agent = annotations[agentAnnotation];
  if (uid === undefined) return false;
  return agent !== undefined ? agent === rootDir : uids.has(uid);
}

async function removeSandbox(runtime: ContainerRuntime, id: string, running: string[]): Promise<void> {
  // A container that does not stop in time is killed with its sandbox.
  await Promise.allSettled(running.map((container) => runtime.stopContainer(container, stopGraceSeconds)));
  await runtime.stopSandbox(id);
  await runtime.removeSandbox(id);
}

/** Directories are named NAMESPACE_NAME_UID. */
function removeLogs(podLogDir: string, uids: ReadonlySet<string>): void {
  const logs = names(podLogDir).filter((name) => uids.has(name.split("_")[2] ?? ""));
  for (const name of logs) Deno.removeSync(`${podLogDir}/${name}`, { recursive: true });
  if (logs.length > 0) say(`✓ Removed the logs of ${counted(logs.length, "pod")} from ${podLogDir}`);
}

/** The root of the whole hierarchy is not ours to remove. */
async function removeAgentCgroups(cgroupRoot: string): Promise<void> {
  const path = cgroupRoot.replace(/\/+$/, "");
  if (path === "" || path.split("/").includes("..")) return;
  const left = await removeCgroups(path);
  if (left.length > 0) {
    say(`! cgroup ${path} stays in ${left.length} hierarchies: something else runs in it (${left[0]})`);
  }
}

async function removeFiles(rootDir: string): Promise<void> {
  const mounted = await unmountBelow(`${rootDir}/pods`);
  if (mounted.length > 0) {
    throw new UserError(
      `Cannot remove ${rootDir}/pods: ${mounted[0]} is still mounted; end what uses it (fuser -m ${
        mounted[0]
      }) and run the command again`,
    );
  }
  const own = names(rootDir).filter((name) => ownFiles.test(name));
  const last = (name: string) => marks.some((mark) => mark.split("/")[0] === name);
  for (const name of [...own.filter((name) => !last(name)), ...own.filter(last)]) {
    Deno.removeSync(`${rootDir}/${name}`, { recursive: true });
  }
  say(`✓ Removed ${own.join(", ")} from ${rootDir}`);
  const others = names(rootDir);
  if (others.length > 0) {
    return say(`! ${rootDir} keeps what is not the agent's: ${others.slice(0, 5).join(", ")}`);
  }
  try {
    Deno.removeSync(rootDir);
  } catch { /* something is mounted on it */ }
}

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

function names(directory: string): string[] {
  try {
    return [...Deno.readDirSync(directory)].map(({ name }) => name).sort();
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return [];
    throw error;
  }
}

function counted(count: number, noun: string): string {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

function say(line: string): void {
  console.log(line);
}
