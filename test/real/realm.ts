/**
 * A world of real parts for tests: etcd, kube-apiserver, kube-controller-manager and kube-scheduler on this machine's
 * side; edge machines in network namespaces of their own behind a NAT namespace, so that nothing can dial them, each
 * with its own containerd. Everything has a number in its names, addresses and ports, so that realms do not collide.
 *
 *     realm bridge 10.99.N.1 ── .2 NAT namespace (masquerade) 192.168.100.1 ── .10+ edge namespaces
 */
import { binaries } from "./binaries.ts";
import { atEnd, cleanUp, must, type Output, type Program, run, sleep, start, until } from "./processes.ts";
import { nodeImages, pauseImage } from "./images.ts";
import { containerdConfig, networkConfig } from "./containerd.ts";
import { makePki } from "./pki.ts";

const root = new URL("../..", import.meta.url).pathname;

/** The program under test: the built one where KUBEEDGE_BIN names it. */
export function kubeedge(): string[] {
  const built = Deno.env.get("KUBEEDGE_BIN");
  return built
    ? [built]
    : [Deno.execPath(), "run", "-A", "--no-check", "--config", `${root}deno.json`, `${root}main.ts`];
}

export interface RealmOptions {
  /** kube-apiserver's --kubelet-preferred-address-types; undefined: its own default (Hostname first). */
  addressTypes?: string;
  /** node-monitor-grace-period of the controller manager. */
  gracePeriodSeconds?: number;
}

export class Realm {
  readonly edges: Edge[] = [];
  #cloud: Program | undefined;
  private constructor(readonly number: number, readonly dir: string, readonly options: RealmOptions) {}

  get address(): string {
    return `10.99.${this.number}.1`;
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
  get kubeconfig(): string {
    return `${this.dir}/pki/admin.conf`;
  }
  get bridge(): string {
    return `ke${this.number}br`;
  }
  get nat(): string {
    return `ke${this.number}nat`;
  }

  static async start(options: RealmOptions = {}): Promise<Realm> {
    const number = await takeNumber();
    const dir = `/tmp/kubeedge-realm-${number}`;
    await Deno.remove(dir, { recursive: true }).catch(() => {});
    await Deno.mkdir(`${dir}/log`, { recursive: true });
    atEnd(async () => {
      if (Deno.env.get("KEEP") !== "1") await Deno.remove(dir, { recursive: true }).catch(() => {});
    });
    const realm = new Realm(number, dir, options);
    try {
      await realm.#network();
      await realm.#controlPlane();
    } catch (error) {
      await cleanUp();
      throw error;
    }
    return realm;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const edge of this.edges) await edge.end();
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

  kubectl(...args: string[]): Promise<Output> {
    return this.kubectlWith({}, ...args);
  }
  kubectlWith(options: { stdin?: Uint8Array; timeoutMs?: number }, ...args: string[]): Promise<Output> {
    return run([`${binaries}/kubectl`, "--kubeconfig", this.kubeconfig, ...args], {
      timeoutMs: 60_000,
      ...options,
    });
  }
  /** Throws when kubectl fails. */
  async ok(...args: string[]): Promise<string> {
    return await must([`${binaries}/kubectl`, "--kubeconfig", this.kubeconfig, ...args], {
      timeoutMs: 120_000,
    });
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

  // ---- kubeedge cloud

  get cloud(): Program {
    if (!this.#cloud) throw new Error("the cloud was not started");
    return this.#cloud;
  }
  async startCloud(...flags: string[]): Promise<void> {
    this.#cloud = this.program("cloud", [
      ...kubeedge(),
      "cloud",
      "--kubeconfig",
      this.kubeconfig,
      "--listen",
      `0.0.0.0:${this.hubPort}`,
      "--advertise-address",
      this.address,
      "--kubelet-ports",
      this.kubeletPorts,
      "--status-listen",
      `127.0.0.1:${this.statusPort}`,
      "--log-level",
      "debug",
      ...flags,
    ]);
    const program = this.#cloud;
    await until("the cloud is ready", 60_000, async () => {
      if (!program.running()) throw new Error(`it ended: ${this.log("cloud").slice(-500)}`);
      const answer = await fetch(`http://127.0.0.1:${this.statusPort}/readyz`);
      await answer.body?.cancel();
      return answer.ok;
    });
  }
  /** A sub-command of `kubeedge cloud`. */
  async cloudCommand(...args: string[]): Promise<Output> {
    return await run([...kubeedge(), "cloud", ...args, "--kubeconfig", this.kubeconfig]);
  }
  async token(...flags: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.cloudCommand("token", "create", "--uses", "0", ...flags);
    if (code !== 0) throw new Error(`token create: ${stderr}`);
    return stdout.trim();
  }

  async edge(name: string): Promise<Edge> {
    const edge = new Edge(this, name, this.edges.length);
    this.edges.push(edge);
    await edge.prepare();
    return edge;
  }

  // ---- the world

  async #network(): Promise<void> {
    const { bridge, nat } = this;
    await removeNetwork(this.number);
    atEnd(() => removeNetwork(this.number));
    const ip = (...args: string[]) => must(["ip", ...args]);
    await ip("link", "add", bridge, "type", "bridge");
    await ip("addr", "add", `${this.address}/24`, "dev", bridge);
    await ip("link", "set", bridge, "up");
    await ip("netns", "add", nat);
    await ip("link", "add", `${nat}o`, "type", "veth", "peer", "name", "out", "netns", nat);
    await ip("link", "set", `${nat}o`, "master", bridge, "up");
    await ip("-n", nat, "addr", "add", `10.99.${this.number}.2/24`, "dev", "out");
    await ip("-n", nat, "link", "set", "out", "up");
    await ip("-n", nat, "link", "set", "lo", "up");
    await ip("-n", nat, "link", "add", "in", "type", "bridge");
    await ip("-n", nat, "addr", "add", "192.168.100.1/24", "dev", "in");
    await ip("-n", nat, "link", "set", "in", "up");
    await must(["ip", "netns", "exec", nat, "sysctl", "-qw", "net.ipv4.ip_forward=1"]);
    const rules =
      `table ip nat {\n chain post {\n  type nat hook postrouting priority 100;\n  oifname "out" masquerade\n }\n}\n`;
    await must(["ip", "netns", "exec", nat, "nft", "-f", "-"], { stdin: new TextEncoder().encode(rules) });
  }

  async #controlPlane(): Promise<void> {
    const { dir, address, apiPort } = this;
    const pki = `${dir}/pki`, etcdPort = apiPort - 10, server = `https://${address}:${apiPort}`;
    await makePki(pki, { address, server });
    this.program("etcd", [
      `${binaries}/etcd`,
      "--data-dir",
      `${dir}/etcd`,
      "--unsafe-no-fsync",
      "--log-level",
      "warn",
      "--listen-client-urls",
      `http://127.0.0.1:${etcdPort}`,
      "--advertise-client-urls",
      `http://127.0.0.1:${etcdPort}`,
      "--listen-peer-urls",
      `http://127.0.0.1:${etcdPort + 1}`,
    ]);
    this.program("kube-apiserver", [
      `${binaries}/kube-apiserver`,
      `--etcd-servers=http://127.0.0.1:${etcdPort}`,
      `--secure-port=${apiPort}`,
      `--bind-address=${address}`,
      `--advertise-address=${address}`,
      `--tls-cert-file=${pki}/apiserver.crt`,
      `--tls-private-key-file=${pki}/apiserver.key`,
      `--client-ca-file=${pki}/ca.crt`,
      "--authorization-mode=Node,RBAC",
      "--enable-admission-plugins=NodeRestriction",
      "--allow-privileged",
      `--kubelet-client-certificate=${pki}/apiserver-kubelet.crt`,
      `--kubelet-client-key=${pki}/apiserver-kubelet.key`,
      `--kubelet-certificate-authority=${pki}/ca.crt`,
      `--service-account-key-file=${pki}/sa.pub`,
      `--service-account-signing-key-file=${pki}/sa.key`,
      "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
      "--service-cluster-ip-range=10.96.0.0/16",
      `--requestheader-client-ca-file=${pki}/front.crt`,
      "--requestheader-allowed-names=front-proxy-client",
      "--requestheader-username-headers=X-Remote-User",
      "--requestheader-group-headers=X-Remote-Group",
      "--requestheader-extra-headers-prefix=X-Remote-Extra-",
      ...(this.options.addressTypes
        ? [`--kubelet-preferred-address-types=${this.options.addressTypes}`]
        : []),
    ]);
    await until(
      "kube-apiserver is ready",
      60_000,
      async () => (await this.kubectl("get", "--raw", "/readyz")).stdout === "ok",
    );
    const common = (
      name: string,
    ) => [
      `--kubeconfig=${pki}/${name}.conf`,
      `--authentication-kubeconfig=${pki}/${name}.conf`,
      `--authorization-kubeconfig=${pki}/${name}.conf`,
      "--bind-address=127.0.0.1",
      "--leader-elect=false",
    ];
    this.program("kube-controller-manager", [
      `${binaries}/kube-controller-manager`,
      ...common("controller-manager"),
      `--secure-port=${apiPort - 7}`,
      `--client-ca-file=${pki}/ca.crt`,
      "--use-service-account-credentials",
      `--service-account-private-key-file=${pki}/sa.key`,
      `--root-ca-file=${pki}/ca.crt`,
      `--cluster-signing-cert-file=${pki}/ca.crt`,
      `--cluster-signing-key-file=${pki}/ca.key`,
      "--service-cluster-ip-range=10.96.0.0/16",
      ...(this.options.gracePeriodSeconds
        ? [`--node-monitor-grace-period=${this.options.gracePeriodSeconds}s`]
        : []),
    ]);
    this.program("kube-scheduler", [
      `${binaries}/kube-scheduler`,
      ...common("scheduler"),
      `--secure-port=${apiPort - 6}`,
    ]);
    await until(
      "service accounts are made",
      60_000,
      async () => (await this.kubectl("get", "serviceaccount", "default")).code === 0,
    );
  }
}

/** One edge machine. */
export class Edge {
  #containerd: Program | undefined;
  #agent: Program | undefined;
  constructor(readonly realm: Realm, readonly name: string, readonly index: number) {}

  get namespace(): string {
    return `ke${this.realm.number}e${this.index}`;
  }
  get dir(): string {
    return `${this.realm.dir}/${this.name}`;
  }
  get rootDir(): string {
    return `${this.dir}/kubeedge`;
  }
  get socket(): string {
    return `${this.dir}/containerd.sock`;
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
    return this.realm.log(this.name);
  }

  async prepare(): Promise<void> {
    const { namespace } = this, { nat } = this.realm;
    const ip = (...args: string[]) => must(["ip", ...args]);
    await Deno.mkdir(`${this.dir}/cni`, { recursive: true });
    await ip("netns", "add", namespace);
    await ip(
      "-n",
      nat,
      "link",
      "add",
      `e${this.index}`,
      "type",
      "veth",
      "peer",
      "name",
      "eth0",
      "netns",
      namespace,
    );
    await ip("-n", nat, "link", "set", `e${this.index}`, "master", "in", "up");
    await ip("-n", namespace, "addr", "add", `192.168.100.${10 + this.index}/24`, "dev", "eth0");
    await ip("-n", namespace, "link", "set", "eth0", "up");
    await ip("-n", namespace, "link", "set", "lo", "up");
    await ip("-n", namespace, "route", "add", "default", "via", "192.168.100.1");
    await Deno.writeTextFile(`${this.dir}/cni/10-edge.conflist`, networkConfig(this.dir));
    await Deno.writeTextFile(`${this.dir}/containerd.toml`, containerdConfig(this.dir, pauseImage));
    await this.startContainerd();
    const ctr = (...args: string[]) => must([`${binaries}/ctr`, "-a", this.socket, "-n", "k8s.io", ...args]);
    for (const [name, archive] of await nodeImages()) {
      const file = `${this.dir}/image.tar`;
      await Deno.writeFile(file, archive);
      await ctr("images", "import", "--local", file).catch((error: unknown) => {
        throw new Error(`import of ${name}: ${error}`);
      });
      await Deno.remove(file);
    }
  }

  async startContainerd(): Promise<void> {
    this.#containerd = this.realm.program(
      `${this.name}-containerd`,
      this.inside([`${binaries}/containerd`, "-c", `${this.dir}/containerd.toml`]),
      {
        PATH: `${binaries}:${Deno.env.get("PATH")}`,
      },
    );
    await until(
      "containerd answers",
      30_000,
      async () => (await run([`${binaries}/ctr`, "-a", this.socket, "version"])).code === 0,
    );
  }

  get flags(): string[] {
    return [
      "--root-dir",
      this.rootDir,
      "--runtime-endpoint",
      `unix://${this.socket}`,
      "--pod-log-dir",
      `${this.dir}/logs`,
      "--cgroup-root",
      `/${this.namespace}`,
      "--status-listen",
      "127.0.0.1:10445",
      "--log-level",
      "debug",
    ];
  }
  /** Joins, and goes on as the agent. */
  async join(token: string, ...flags: string[]): Promise<void> {
    await this.joinOnly(token, ...flags).then(({ code, stdout, stderr }) => {
      if (code !== 0) throw new Error(`edge join ended with ${code}: ${stdout}${stderr}`);
    });
    this.start();
    await until(`node ${this.name} is Ready`, 60_000, () => this.ready());
  }
  /** `edge join --no-start`: its words and its exit code. */
  joinOnly(token: string, ...flags: string[]): Promise<Output> {
    return run(
      this.inside([
        ...kubeedge(),
        "edge",
        "join",
        token,
        "--name",
        this.name,
        "--no-start",
        ...this.flags,
        ...flags,
      ]),
    );
  }
  start(env: Record<string, string> = {}): void {
    this.#agent = this.realm.program(
      this.name,
      this.inside([...kubeedge(), "edge", "run", ...this.flags]),
      env,
    );
  }
  command(name: string, ...args: string[]): Promise<Output> {
    return run(this.inside([...kubeedge(), "edge", name, "--root-dir", this.rootDir, ...args]));
  }
  async ready(): Promise<boolean> {
    type Node = { status: { conditions?: { type: string; status: string }[] } };
    const { status } = await this.realm.json<Node>("get", "node", this.name);
    return status.conditions?.some(({ type, status }) => type === "Ready" && status === "True") ?? false;
  }
  /** Cuts the machine off, or joins it again. */
  async link(state: "up" | "down"): Promise<void> {
    await must(["ip", "-n", this.realm.nat, "link", "set", `e${this.index}`, state]);
  }

  /** Ends all containers and shims, which outlive containerd. */
  async end(): Promise<void> {
    await this.#agent?.stop();
    if (!this.#containerd) return;
    if (!this.#containerd.running()) await this.startContainerd();
    const ctr = (...args: string[]) =>
      run([`${binaries}/ctr`, "-a", this.socket, "-n", "k8s.io", ...args], { timeoutMs: 20_000 });
    const tasks = (await ctr("tasks", "list", "-q")).stdout.split("\n").filter(Boolean);
    for (const task of tasks) await ctr("tasks", "kill", "-s", "SIGKILL", task);
    await until(
      "tasks are over",
      10_000,
      async () => !(await ctr("tasks", "list")).stdout.includes("RUNNING"),
    ).catch(() => {});
    for (const task of tasks) await ctr("tasks", "delete", "-f", task);
    await this.#containerd.stop();
    await unmountBelow(this.dir);
  }
}

/** The first number whose lock is free; the lock is the network namespace's name. */
async function takeNumber(): Promise<number> {
  for (let number = 1; number < 50; number++) {
    const lock = `/tmp/kubeedge-realm-${number}.pid`;
    const owner = Number(await Deno.readTextFile(lock).catch(() => "0"));
    if (owner !== 0 && await Deno.stat(`/proc/${owner}`).then(() => true, () => false)) continue;
    await Deno.writeTextFile(lock, String(Deno.pid));
    atEnd(() => Deno.remove(lock).catch(() => {}));
    return number;
  }
  throw new Error("no realm number is free");
}

async function removeNetwork(number: number): Promise<void> {
  const { stdout } = await run(["ip", "netns", "list"]);
  for (const line of stdout.split("\n")) {
    const name = line.split(" ")[0] ?? "";
    if (name === `ke${number}nat` || new RegExp(`^ke${number}e\\d+$`).test(name)) {
      await run(["ip", "netns", "delete", name]);
    }
  }
  await run(["ip", "link", "delete", `ke${number}br`]);
}

export async function unmountBelow(dir: string): Promise<void> {
  const paths = (await Deno.readTextFile("/proc/self/mountinfo")).split("\n").map((line) =>
    line.split(" ")[4] ?? ""
  ).filter((path) => path.startsWith(dir + "/"));
  for (const path of paths.reverse()) await run(["umount", "-l", path]);
}

export { sleep, until };
