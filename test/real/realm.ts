/**
 * A world of real parts for tests: etcd, kube-apiserver, kube-controller-manager and kube-scheduler on this machine's
 * side; edge machines in network namespaces of their own behind a NAT namespace, so that nothing can dial them, each
 * with its own containerd. Everything has a number in its names, addresses and ports, so that realms do not collide.
 *
 * Start here: `await using realm = await Realm.start()`, then startCloud, edge, token, join. KEEP=1 keeps its directory.
 */
import { parseAllDocuments } from "yaml";
import { binaries } from "./binaries.ts";
import { type ControlPlaneOptions, startControlPlane } from "./control_plane.ts";
import { Edge, sweepPods } from "./edge.ts";
import { Network } from "./network.ts";
import {
  atEnd,
  cleanUp,
  entries,
  killRecorded,
  must,
  type Output,
  type Program,
  run,
  sleep,
  start,
  until,
} from "./processes.ts";
import { kubeedge } from "./program.ts";
import { push, startRegistry } from "./registry.ts";

export { Edge, kubeedge, sleep, until };

export type RealmOptions = ControlPlaneOptions & { progress?: (line: string) => void };

const cloudNamespace = "kubeedge-system";

export class Realm {
  readonly edges: Edge[] = [];
  readonly network: Network;
  #cloud: Program | undefined;
  #progress: (line: string) => void;

  private constructor(readonly number: number, readonly dir: string, options: RealmOptions) {
    this.network = new Network(number);
    this.#progress = options.progress ?? (() => {});
  }

  /** Of everything on the cloud's side, as edges and kube-apiserver dial it. */
  get address(): string {
    return this.network.address;
  }
  get hubPort(): number {
    return 20000 + this.number * 100 + 43;
  }
  get statusPort(): number {
    return this.hubPort + 1;
  }
  get kubeletPorts(): string {
    return `${this.hubPort + 5}-${this.hubPort + 35}`;
  }
  get apiPort(): number {
    return this.hubPort - 1;
  }
  /** HOST:PORT; started with the first push. */
  get registry(): string {
    return `${this.address}:${this.hubPort + 36}`;
  }
  /** Of the cluster's admin. */
  get kubeconfig(): string {
    return `${this.dir}/pki/admin.conf`;
  }
  /** kubectl, for programs that a test starts itself. */
  get kubectlCommand(): string[] {
    return [`${binaries}/kubectl`, "--kubeconfig", this.kubeconfig];
  }

  static async start(options: RealmOptions = {}): Promise<Realm> {
    const number = await takeNumber();
    const realm = new Realm(number, directory(number), options);
    const { dir, network, address, apiPort } = realm;
    try {
      await sweep(number);
      await Deno.mkdir(`${dir}/log`, { recursive: true });
      atEnd(async () => {
        if (Deno.env.get("KEEP") !== "1") await Deno.remove(dir, { recursive: true });
      });
      atEnd(() => sweepPods(dir, number));
      realm.#progress("network: a NAT that nothing can dial through");
      atEnd(() => network.remove());
      await network.make();
      realm.#progress("control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler");
      const program = realm.program.bind(realm);
      await startControlPlane(options, { dir, address, apiPort, program });
    } catch (error) {
      await cleanUp();
      throw error;
    }
    return realm;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await cleanUp();
  }

  program(name: string, command: string[], env: Record<string, string> = {}): Program {
    return start(command, { log: `${this.dir}/log/${name}.log`, env });
  }
  log(name: string): string {
    try {
      return Deno.readTextFileSync(`${this.dir}/log/${name}.log`);
    } catch {
      return "";
    }
  }

  // ---- kubectl as the admin

  kubectl(...args: string[]): Promise<Output> {
    return this.kubectlWith({}, ...args);
  }
  kubectlWith(options: { stdin?: Uint8Array; timeoutMs?: number }, ...args: string[]): Promise<Output> {
    return run([...this.kubectlCommand, ...args], { timeoutMs: 60_000, ...options });
  }
  /** Throws when kubectl fails. */
  async ok(...args: string[]): Promise<string> {
    return await must([...this.kubectlCommand, ...args], { timeoutMs: 120_000 });
  }
  async json<T>(...args: string[]): Promise<T> {
    return JSON.parse(await this.ok(...args, "-o", "json")) as T;
  }
  async apply(...objects: unknown[]): Promise<void> {
    const stdin = new TextEncoder().encode(
      JSON.stringify({ apiVersion: "v1", kind: "List", items: objects }),
    );
    const { code, stderr } = await this.kubectlWith({ stdin }, "apply", "-f", "-");
    if (code !== 0) throw new Error(`kubectl apply: ${stderr}`);
  }
  async ready(node: string): Promise<boolean> {
    type Node = { status: { conditions?: { type: string; status: string }[] } };
    const { status } = await this.json<Node>("get", "node", node);
    return status.conditions?.some(({ type, status }) => type === "Ready" && status === "True") ?? false;
  }

  // ---- kubeedge cloud

  get cloud(): Program {
    if (!this.#cloud) throw new Error("the cloud was not started");
    return this.#cloud;
  }
  /** With the rights that `kubeedge cloud manifests` gives, no more. */
  async startCloud(...flags: string[]): Promise<void> {
    this.#progress("kubeedge cloud");
    const program = this.#cloud = this.program("cloud", [
      ...kubeedge(),
      "cloud",
      `--kubeconfig=${await this.#cloudKubeconfig()}`,
      `--listen=0.0.0.0:${this.hubPort}`,
      `--advertise-address=${this.address}`,
      `--kubelet-ports=${this.kubeletPorts}`,
      `--status-listen=127.0.0.1:${this.statusPort}`,
      "--log-level=debug",
      ...flags,
    ]);
    await until("the cloud is ready", 60_000, async () => {
      if (!program.running()) throw new Error(`it ended: ${this.log("cloud").slice(-500)}`);
      const answer = await fetch(`http://127.0.0.1:${this.statusPort}/readyz`);
      await answer.body?.cancel();
      return answer.ok;
    });
  }
  /** A sub-command of `kubeedge cloud`, as the admin. */
  async cloudCommand(...args: string[]): Promise<Output> {
    return await run([...kubeedge(), "cloud", ...args, "--kubeconfig", this.kubeconfig]);
  }
  async token(...flags: string[]): Promise<string> {
    const uses = flags.includes("--uses") ? [] : ["--uses", "0"];
    const { code, stdout, stderr } = await this.cloudCommand("token", "create", ...uses, ...flags);
    if (code !== 0) throw new Error(`token create: ${stderr}`);
    return stdout.trim();
  }

  /** A kubeconfig of the service account of the manifests, which are applied but for what would run in the cluster. */
  async #cloudKubeconfig(): Promise<string> {
    const path = `${this.dir}/pki/cloud.conf`;
    if (entries(`${this.dir}/pki`).some(({ name }) => name === "cloud.conf")) return path;
    const manifests = parseAllDocuments(await must([...kubeedge(), "cloud", "manifests"]))
      .map((document) => document.toJS() as { kind: string })
      .filter(({ kind }) => kind !== "Deployment" && kind !== "Service");
    await this.apply(...manifests);
    const token = await this.ok("create", "token", "kubeedge-cloud", "-n", cloudNamespace, "--duration=24h");
    const config = JSON.parse(await Deno.readTextFile(this.kubeconfig)) as { users: { user: unknown }[] };
    for (const entry of config.users) entry.user = { token: token.trim() };
    await Deno.writeTextFile(path, JSON.stringify(config), { mode: 0o600 });
    return path;
  }

  // ---- edge machines, and what they pull from

  async edge(name: string): Promise<Edge> {
    this.#progress(`edge machine ${name}: network namespace, containerd, images`);
    const { network, dir, registry } = this;
    const edge = new Edge(name, this.edges.length, {
      network,
      dir,
      registry,
      ready: (node) => this.ready(node),
    });
    this.edges.push(edge);
    await edge.prepare();
    atEnd(() => edge.end());
    return edge;
  }

  /** Puts an image into the realm's registry, which wants registryUser and registryPassword; returns its name. */
  async push(name: string, archive: Uint8Array): Promise<string> {
    if (!this.log("registry.log.pid")) {
      await startRegistry(this.dir, this.registry, this.program.bind(this));
    }
    await push(this.dir, `${this.registry}/${name}`, archive);
    return `${this.registry}/${name}`;
  }
}

const directory = (number: number) => `/tmp/kubeedge-realm-${number}`;

/** The first number that no living process has locked. */
async function takeNumber(): Promise<number> {
  for (let number = 1; number < 50; number++) {
    const lock = await Deno.open(`${directory(number)}.lock`, { create: true, write: true });
    if (await lock.tryLock(true)) {
      atEnd(() => lock.close());
      return number;
    }
    lock.close();
  }
  throw new Error("no realm number is free");
}

/** Ends and removes what a realm whose owner was killed left behind. */
export async function sweep(number: number): Promise<void> {
  const dir = directory(number);
  killRecorded(`${dir}/log`);
  await sweepPods(dir, number);
  await new Network(number).remove();
  await Deno.remove(dir, { recursive: true }).catch(() => {});
}
