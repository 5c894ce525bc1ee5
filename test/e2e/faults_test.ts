/**
 * Faults at random moments: the link is cut during changes, processes are killed with SIGKILL. After each, what runs is
 * what is wanted, every container was started exactly once, and none was restarted.
 *
 * FAULT_SEED, FAULT_CUTS, FAULT_CUT_SECONDS, FAULT_KILLS make a soak of it; the seed of a run is printed.
 */
import assert from "node:assert/strict";
import { busyboxImage } from "../real/images.ts";
import { type Edge, Realm, sleep, until } from "../real/realm.ts";
import type { KubeList, Pod } from "../../lib/kube/types.ts";

const number = (name: string, fallback: number) => Number(Deno.env.get(name) ?? fallback);
const seed = number("FAULT_SEED", Date.now() % 1_000_000);
const cuts = number("FAULT_CUTS", 2),
  cutSeconds = number("FAULT_CUT_SECONDS", 8),
  kills = number("FAULT_KILLS", 6);

/** mulberry32 */
function seeded(state: number): () => number {
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

class World {
  #next = 0;
  readonly names = new Set<string>();
  constructor(readonly realm: Realm, readonly edge: Edge, readonly random: () => number) {}

  /** One change: mostly a new pod, sometimes one less. */
  async change(): Promise<void> {
    if (this.names.size > 4 && this.random() < 0.45) {
      const name = [...this.names][Math.floor(this.random() * this.names.size)] as string;
      this.names.delete(name);
      await this.realm.ok("delete", "pod", name, "--wait=false");
      return;
    }
    const name = `p${this.#next++}`;
    this.names.add(name);
    await this.realm.apply({
      apiVersion: "v1",
      kind: "Pod",
      metadata: { name, namespace: "default", labels: { fault: "yes" } },
      spec: {
        nodeName: "edge1",
        terminationGracePeriodSeconds: 0,
        tolerations: [{ operator: "Exists" }],
        containers: [{
          name: "main",
          image: busyboxImage,
          imagePullPolicy: "IfNotPresent",
          command: ["sleep", "36000"],
        }],
      },
    });
  }

  /** Desired and actual state are equal, and nothing was done twice. */
  async settled(): Promise<void> {
    await until("desired and actual state are equal", 90_000, async () => {
      const { items } = await this.realm.json<KubeList<Pod>>("get", "pods", "-l", "fault=yes");
      const wanted = [...this.names].sort();
      assert.deepEqual(items.map(({ metadata }) => metadata.name).sort(), wanted, "pods of the API");
      const containers = await this.edge.runtime.listContainers();
      const running = containers.filter(({ state }) => state === "running");
      assert.deepEqual(
        running.map(({ labels }) => labels["io.kubernetes.pod.name"]).sort(),
        wanted,
        "running containers",
      );
      for (const { metadata, status } of items) {
        const [container] = status?.containerStatuses ?? [];
        assert.equal(status?.phase, "Running", `${metadata.name} is told to be running`);
        assert.equal(container?.restartCount, 0, `${metadata.name} was restarted`);
        const own = containers.filter(({ labels }) => labels["io.kubernetes.pod.uid"] === metadata.uid);
        assert.equal(own.length, 1, `${metadata.name} was started ${own.length} times`);
        assert.equal(container?.containerID, `containerd://${own[0]?.id}`);
      }
      return true;
    });
  }
}

Deno.test({
  name: `cuts and kills, seed ${seed}`,
  sanitizeOps: false,
  sanitizeResources: false,
  fn: async (t) => {
    await using realm = await Realm.start();
    await realm.startCloud();
    const edge = await realm.edge("edge1");
    await edge.join(await realm.token());
    const random = seeded(seed);
    const world = new World(realm, edge, random);

    for (let cut = 0; cut < cuts; cut++) {
      await t.step(
        `the link is cut for ${cutSeconds} s during 20 changes (${cut + 1} of ${cuts})`,
        async () => {
          const cutAfter = Math.floor(random() * 8);
          let restored: Promise<void> | undefined;
          for (let i = 0; i < 20; i++) {
            if (i === cutAfter) {
              await edge.link("down");
              restored = sleep(cutSeconds * 1000).then(() => edge.link("up"));
            }
            await world.change();
            await sleep(random() * cutSeconds * 50);
          }
          await restored;
          await world.settled();
        },
      );
    }

    const victims = {
      cloud: async () => {
        await realm.cloud.stop("SIGKILL");
        await realm.startCloud();
      },
      edge: async () => {
        await edge.agent.stop("SIGKILL");
        edge.start();
      },
      containerd: async () => {
        await edge.containerd.stop("SIGKILL");
        await edge.startContainerd();
      },
    };
    const order = Object.keys(victims) as (keyof typeof victims)[];
    for (let kill = 0; kill < kills; kill++) {
      const victim = order[kill % order.length] as keyof typeof victims;
      await t.step(`${victim} is killed during changes (${kill + 1} of ${kills})`, async () => {
        const changes = (async () => {
          for (let i = 0; i < 6; i++) {
            await world.change();
            await sleep(random() * 300);
          }
        })();
        await sleep(random() * 1500);
        await victims[victim]();
        await changes;
        await world.settled();
      });
    }
  },
});
