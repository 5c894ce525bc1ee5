/**
 * The network of a realm, N its number; nothing can dial what is behind the NAT:
 *
 *     bridge keNbr 10.99.N.1 ── 10.99.N.2 namespace keNnat (masquerade) 192.168.100.1 ── .10, .11, … namespaces keNe0, keNe1, …
 */
import { must, run } from "./processes.ts";

const ip = (line: string) => must(`ip ${line}`);

export class Network {
  readonly #names: { bridge: string; nat: string };
  constructor(readonly number: number) {
    this.#names = { bridge: `ke${number}br`, nat: `ke${number}nat` };
  }

  /** Of the cloud's side, on the bridge. */
  get address(): string {
    return `10.99.${this.number}.1`;
  }
  /** Where a capture sees all that edges say. */
  get bridge(): string {
    return this.#names.bridge;
  }
  namespace(index: number): string {
    return `ke${this.number}e${index}`;
  }

  async make(): Promise<void> {
    const { bridge, nat } = this.#names;
    await this.remove();
    await ip(`link add ${bridge} type bridge`);
    await ip(`addr add ${this.address}/24 dev ${bridge}`);
    await ip(`link set ${bridge} up`);
    await ip(`netns add ${nat}`);
    await ip(`link add ${nat}o type veth peer name out netns ${nat}`);
    await ip(`link set ${nat}o master ${bridge} up`);
    await ip(`-n ${nat} addr add 10.99.${this.number}.2/24 dev out`);
    await ip(`-n ${nat} link set out up`);
    await ip(`-n ${nat} link set lo up`);
    await ip(`-n ${nat} link add in type bridge`);
    await ip(`-n ${nat} addr add 192.168.100.1/24 dev in`);
    await ip(`-n ${nat} link set in up`);
    await must(`ip netns exec ${nat} sysctl -qw net.ipv4.ip_forward=1`);
    const rules =
      `table ip nat {\n chain post {\n  type nat hook postrouting priority 100;\n  oifname "out" masquerade\n }\n}\n`;
    await must(`ip netns exec ${nat} nft -f -`, { stdin: new TextEncoder().encode(rules) });
  }

  /** An edge machine's namespace. */
  async attach(index: number): Promise<void> {
    const { nat } = this.#names, namespace = this.namespace(index);
    await ip(`netns add ${namespace}`);
    await ip(`-n ${nat} link add e${index} type veth peer name eth0 netns ${namespace}`);
    await ip(`-n ${nat} link set e${index} master in up`);
    await ip(`-n ${namespace} addr add 192.168.100.${10 + index}/24 dev eth0`);
    await ip(`-n ${namespace} link set eth0 up`);
    await ip(`-n ${namespace} link set lo up`);
    await ip(`-n ${namespace} route add default via 192.168.100.1`);
  }

  /** Cuts an edge machine off, or joins it again; its own interface stays up, as behind a dead router. */
  async link(index: number, state: "up" | "down"): Promise<void> {
    await ip(`-n ${this.#names.nat} link set e${index} ${state}`);
  }

  /** Also what a killed run left behind. */
  async remove(): Promise<void> {
    const own = new RegExp(`^ke${this.number}(nat|e\\d+)$`);
    for (const line of (await run(["ip", "netns", "list"])).stdout.split("\n")) {
      const name = line.split(" ")[0] ?? "";
      if (own.test(name)) await run(["ip", "netns", "delete", name]);
    }
    await run(["ip", "link", "delete", this.#names.bridge]);
  }
}
