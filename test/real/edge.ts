/** One edge machine of a realm: a network namespace behind the NAT, a containerd of its own, and the agent. */
import { Cri } from "../../lib/cri/client.ts";
import { grpcUnix } from "../../lib/sys/grpc_unix.ts";
import { binaries } from "./binaries.ts";
import { containerdConfig, networkConfig, registryConfig } from "./containerd.ts";
import { nodeImages, pauseImage } from "./images.ts";
import type { Network } from "./network.ts";
import { entries, must, type Output, type Program, run, start, until } from "./processes.ts";
import { kubeedge } from "./program.ts";

/** What an edge wants of the world around it. */
export interface EdgePorts {
  network: Network;
  /** Directory of the realm. */
  dir: string;
  /** HOST:PORT of the realm's registry. */
  registry: string;
  ready(node: string): Promise<boolean>;
}

export class Edge {
  #containerd: Program | undefined;
  #agent: Program | undefined;
  constructor(readonly name: string, readonly index: number, readonly ports: EdgePorts) {}

  get namespace(): string {
    return this.ports.network.namespace(this.index);
  }
  get dir(): string {
    return `${this.ports.dir}/${this.name}`;
  }
  get rootDir(): string {
    return `${this.dir}/kubeedge`;
  }
  get socket(): string {
    return `${this.dir}/containerd.sock`;
  }
  get runtime(): Cri {
    return new Cri(grpcUnix(this.socket));
  }
  get agent(): Program {
    if (!this.#agent) throw new Error(`the agent of ${this.name} was not started`);
    return this.#agent;
  }
  get containerd(): Program {
    if (!this.#containerd) throw new Error(`containerd of ${this.name} was not started`);
    return this.#containerd;
  }
  /** Not `ip netns exec`: that hides the cgroup mounts. */
  inside(command: string[]): string[] {
    return ["nsenter", `--net=/run/netns/${this.namespace}`, ...command];
  }
  log(): string {
    return read(`${this.ports.dir}/log/${this.name}.log`);
  }

  async prepare(): Promise<void> {
    const { dir, ports: { network, registry } } = this;
    await Deno.mkdir(`${dir}/cni`, { recursive: true });
    await network.attach(this.index);
    await Deno.writeTextFile(`${dir}/cni/10-edge.conflist`, networkConfig(dir));
    await Deno.writeTextFile(`${dir}/containerd.toml`, containerdConfig(dir, pauseImage));
    await Deno.mkdir(`${dir}/certs.d/${registry}`, { recursive: true });
    await Deno.writeTextFile(`${dir}/certs.d/${registry}/hosts.toml`, registryConfig(registry));
    await this.startContainerd();
    for (const archive of (await nodeImages()).values()) await this.importImage(archive);
  }

  async importImage(archive: Uint8Array): Promise<void> {
    const file = `${this.dir}/image.tar`;
    await Deno.writeFile(file, archive);
    await must(`${binaries}/ctr -a ${this.socket} -n k8s.io images import --local ${file}`);
    await Deno.remove(file);
  }

  async startContainerd(): Promise<void> {
    this.#containerd = this.#start(
      `${this.name}-containerd`,
      [`${binaries}/containerd`, "-c", `${this.dir}/containerd.toml`],
      { PATH: `${binaries}:${Deno.env.get("PATH")}` },
    );
    await until(
      "containerd answers",
      30_000,
      async () => (await run([`${binaries}/ctr`, "-a", this.socket, "version"])).code === 0,
    );
  }

  get flags(): string[] {
    return [
      `--root-dir=${this.rootDir}`,
      `--runtime-endpoint=unix://${this.socket}`,
      `--pod-log-dir=${this.dir}/logs`,
      `--cgroup-root=/${this.namespace}`,
      "--status-listen=127.0.0.1:10445",
      "--log-level=debug",
    ];
  }
  /** Joins, goes on as the agent, and waits until the node is Ready. */
  async join(token: string, ...flags: string[]): Promise<void> {
    const { code, stdout, stderr } = await this.joinOnly(token, ...flags);
    if (code !== 0) throw new Error(`edge join ended with ${code}: ${stdout}${stderr}`);
    this.start();
    await until(`node ${this.name} is Ready`, 60_000, () => this.ports.ready(this.name));
  }
  /** `edge join --no-start`: its words and its exit code. */
  joinOnly(token: string, ...flags: string[]): Promise<Output> {
    return this.joinWith({}, token, ...flags);
  }
  joinWith(env: Record<string, string>, token: string, ...flags: string[]): Promise<Output> {
    const named = flags.includes("--name") ? [] : ["--name", this.name];
    return run(
      this.inside([...kubeedge(), "edge", "join", token, ...named, "--no-start", ...this.flags, ...flags]),
      { env },
    );
  }
  start(env: Record<string, string> = {}): void {
    this.#agent = this.#start(this.name, [...kubeedge(), "edge", "run", ...this.flags], env);
  }
  /** One of the node's own commands: status, pods, logs, exec. */
  command(name: string, ...args: string[]): Promise<Output> {
    return run(this.inside([...kubeedge(), "edge", name, "--root-dir", this.rootDir, ...args]));
  }
  /** `edge reset`; the agent is to be stopped before. */
  reset(): Promise<Output> {
    const flags = this.flags.filter((flag) =>
      /^--(root-dir|runtime-endpoint|pod-log-dir|cgroup-root)=/.test(flag)
    );
    return run(this.inside([...kubeedge(), "edge", "reset", "--yes", ...flags]));
  }
  /** PEM of the CAs that the node trusts. */
  readCa(): Promise<string> {
    return Deno.readTextFile(`${this.rootDir}/pki/ca.crt`);
  }
  async connected(): Promise<boolean> {
    const { stdout } = await this.command("status", "-o", "json");
    return (JSON.parse(stdout) as { cloud: { state: string } }).cloud.state === "connected";
  }
  link(state: "up" | "down"): Promise<void> {
    return this.ports.network.link(this.index, state);
  }

  /** Ends all pods, which outlive agent and containerd. */
  async end(): Promise<void> {
    await this.#agent?.stop();
    if (!this.#containerd) return;
    if (!this.#containerd.running()) await this.startContainerd();
    const { runtime } = this;
    const removed = await Promise.allSettled((await runtime.listSandboxes()).map(async ({ id }) => {
      await runtime.stopSandbox(id);
      await runtime.removeSandbox(id);
    }));
    for (const { reason } of removed.filter((one) => one.status === "rejected")) {
      console.error(`a pod of ${this.name} was not removed: ${reason}`);
    }
    await this.#containerd.stop();
  }

  #start(name: string, command: string[], env: Record<string, string>): Program {
    return start(this.inside(command), { log: `${this.ports.dir}/log/${name}.log`, env });
  }
}

/** What libcni remembers of each pod's network. */
const cniResults = "/var/lib/cni/results";

/**
 * Ends what outlives the containerds of realm `number` in `dir`: shims and containers, pod networks, mounts and cgroups.
 * Nothing of it is left after `end`, unless that failed or the realm's process was killed.
 */
export async function sweepPods(dir: string, number: number): Promise<void> {
  const own = new RegExp(`^ke${number}\\D`);
  for (const { name: pid } of entries("/proc").filter(({ name }) => /^\d+$/.test(name))) {
    const [program = "", ...flags] = read(`/proc/${pid}/cmdline`).split("\0");
    const shim = program.endsWith("/containerd-shim-runc-v2") &&
      flags.some((flag) => flag.startsWith(`${dir}/`));
    const groups = read(`/proc/${pid}/cgroup`).split("\n").map((line) => line.split(":/")[1] ?? "");
    if (shim || groups.some((group) => own.test(group))) kill(pid);
  }
  for (const { name } of entries(cniResults)) {
    const text = read(`${cniResults}/${name}`);
    if (!own.test(/"cgroupPath":"\/([^"]*)/.exec(text)?.[1] ?? "")) continue;
    const { netns } = JSON.parse(text) as { netns: string };
    await run(["ip", "netns", "delete", netns.replace(/^.*\//, "")]);
    await Deno.remove(`${cniResults}/${name}`).catch(() => {});
  }
  await unmountBelow(dir);
  const root = "/sys/fs/cgroup";
  for (const hierarchy of [root, ...entries(root).map(({ name }) => `${root}/${name}`)]) {
    for (const { name } of entries(hierarchy)) {
      if (own.test(name)) {
        await run(["find", `${hierarchy}/${name}`, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+"]);
      }
    }
  }
}

export async function unmountBelow(dir: string): Promise<void> {
  const paths = read("/proc/self/mountinfo").split("\n").map((line) => line.split(" ")[4] ?? "")
    .filter((path) => path.startsWith(dir + "/"));
  for (const path of paths.reverse()) await run(["umount", "-l", path]);
}

function kill(pid: string): void {
  try {
    Deno.kill(Number(pid), "SIGKILL");
  } catch { /* it has ended */ }
}

function read(path: string): string {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return "";
  }
}
