/** Bad input on real parts: the program lives, says what is wrong, and loses nothing. */
import assert from "node:assert/strict";
import type { Event, KubeList, Pod } from "../../lib/kube/types.ts";
import { busyboxArchive, busyboxImage } from "../real/images.ts";
import { must, type Output, run } from "../real/processes.ts";
import { Realm, until } from "../real/realm.ts";
import { registryPassword, registryUser } from "../real/registry.ts";
import { kubeedge } from "../real/program.ts";

const usageCode = 2;
const pod = (name: string, container: Record<string, unknown> = {}, spec: Record<string, unknown> = {}) => ({
  apiVersion: "v1",
  kind: "Pod",
  metadata: { name, namespace: "default" },
  spec: {
    terminationGracePeriodSeconds: 0,
    containers: [{
      name: "main",
      image: busyboxImage,
      imagePullPolicy: "IfNotPresent",
      command: ["sleep", "36000"],
      ...container,
    }],
    ...spec,
  },
});

/** One line that says what is wrong, and no stack. */
function oneLine({ code, stdout, stderr }: Output, why: RegExp, want: number): void {
  assert.match(stderr, why);
  assert.equal(code, want, stdout + stderr);
  assert.doesNotMatch(stderr, /^ +at /m);
  const lines = stderr.split("\n").filter((line) => line.trim() !== "");
  assert.equal(lines.length, 1, `more than one line: ${stderr}`);
}

Deno.test({
  name: "bad input",
  sanitizeOps: false,
  sanitizeResources: false,
  fn: async (t) => {
    await using realm = await Realm.start();

    await t.step("a kubeconfig that is missing, broken, of another cluster, or without rights", async () => {
      const good = JSON.parse(await Deno.readTextFile(realm.kubeconfig)) as Config;
      const cloud = (file: string, ...flags: string[]) =>
        run([...kubeedge(), "cloud", "--dry-run", "--kubeconfig", file, ...flags], { timeoutMs: 30_000 });
      const made = async (text: string) => {
        const file = `${realm.dir}/pki/broken.conf`;
        await Deno.writeTextFile(file, text);
        return file;
      };
      const changed = async (change: (config: Config) => void) => {
        const config = structuredClone(good);
        change(config);
        return await made(JSON.stringify(config));
      };
      oneLine(
        await cloud("/nowhere/config"),
        /Cannot read kubeconfig \/nowhere\/config: no such file/,
        usageCode,
      );
      oneLine(await cloud(await made("a: [1")), /broken\.conf/, usageCode);
      oneLine(await cloud(await made("")), /broken\.conf/, usageCode);
      oneLine(await cloud(await made("[]")), /broken\.conf/, usageCode);
      oneLine(await cloud(realm.kubeconfig, "--context", "nowhere"), /nowhere/, usageCode);
      const noUser = await changed((config) => config.users = []);
      oneLine(await cloud(noUser), /user/, usageCode);
      const noKey = await changed((config) => config.users[0]!.user["client-key"] = "missing.key");
      oneLine(await cloud(noKey), /missing\.key/, usageCode);
      const down = await changed((config) =>
        config.clusters[0]!.cluster.server = `https://${realm.address}:1`
      );
      oneLine(await cloud(down), /Cannot reach the cluster at https:.*:1/, 1);
      const foreign = await changed((config) =>
        config.clusters[0]!.cluster["certificate-authority"] = "front.crt"
      );
      oneLine(await cloud(foreign), /Cannot reach the cluster.*certificate/i, 1);
      const nobody = await changed((config) => config.users[0]!.user = { token: "nobody" });
      oneLine(await cloud(nobody), /Unauthorized/, 1);
    });

    await realm.startCloud();
    const edge = await realm.edge("edge1");
    await edge.join(await realm.token());
    const agent = edge.agent.pid;
    const status = async (name: string) => (await realm.json<Pod>("get", "pod", name)).status;
    const waiting = async (name: string) => (await status(name))?.containerStatuses?.[0]?.state?.waiting;
    const events = async (name: string) =>
      (await realm.json<KubeList<Event>>("get", "events", `--field-selector=involvedObject.name=${name}`))
        .items
        .map(({ reason, message }) => `${reason}: ${message}`).join("\n");
    const waitsWith = (name: string, reason: RegExp) =>
      until(
        `${name} waits with ${reason}`,
        40_000,
        async () => reason.test((await waiting(name))?.reason ?? ""),
      );

    await t.step("manifests that the runtime refuses; the pods beside them run", async () => {
      await realm.apply(
        pod("no-command", { command: ["/nowhere/program"] }),
        pod("bad-name", { image: "Not/An:Image:Name" }),
        pod("bad-sysctl", {}, { securityContext: { sysctls: [{ name: "kernel.none_such", value: "1" }] } }),
        pod("no-hostpath", { volumeMounts: [{ name: "data", mountPath: "/data" }] }, {
          volumes: [{ name: "data", hostPath: { path: "/nowhere/at/all", type: "File" } }],
        }),
        pod("no-profile", {
          securityContext: { seccompProfile: { type: "Localhost", localhostProfile: "none.json" } },
        }),
        pod("healthy"),
      );
      await realm.ok("wait", "--for=condition=Ready", "pod/healthy", "--timeout=30s");
      await waitsWith("bad-name", /InvalidImageName/);
      await until("no-command is told why", 30_000, async () => {
        const [container] = (await status("no-command"))?.containerStatuses ?? [];
        const { waiting, terminated } = container?.state ?? {};
        const text = JSON.stringify([waiting, terminated, container?.lastState]);
        return /no such file|not found/i.test(text) &&
          /RunContainerError|StartError|CrashLoopBackOff/.test(text);
      });
      for (const name of ["bad-sysctl", "no-hostpath", "no-profile"]) {
        await until(
          `${name} has an event that says why`,
          40_000,
          async () => /none_such|\/nowhere\/at\/all|none\.json/.test(await events(name)),
        );
        assert.notEqual((await status(name))?.phase, "Running");
      }
      await realm.ok("delete", "pods", "--all", "--timeout=60s");
    });

    const name = `${realm.registry}/private/app:1`;
    await t.step("images that do not exist, or want a password", async () => {
      await realm.push("private/app:1", await busyboxArchive(name, { Cmd: ["sleep", "36000"] }));
      const image = (image: string) => ({ image, imagePullPolicy: "Always", command: ["sleep", "36000"] });
      const secret = (password: string) => [
        "create",
        "secret",
        "docker-registry",
        `pull-${password}`,
        `--docker-server=${realm.registry}`,
        `--docker-username=${registryUser}`,
        `--docker-password=${password}`,
      ];
      await realm.ok(...secret(registryPassword));
      await realm.ok(...secret("wrong"));
      const pulls = (password: string) => ({ imagePullSecrets: [{ name: `pull-${password}` }] });
      await realm.apply(
        pod("no-host", image("127.0.0.1:1/none:1")),
        pod("no-image", image(`${realm.registry}/private/none:1`), pulls(registryPassword)),
        pod("no-password", image(name)),
        pod("wrong-password", image(name), pulls("wrong")),
        pod("no-secret", image(name), pulls("missing")),
        pod("allowed", image(name), pulls(registryPassword)),
      );
      await realm.ok("wait", "--for=condition=Ready", "pod/allowed", "--timeout=40s");
      for (const name of ["no-host", "no-image", "no-password", "wrong-password", "no-secret"]) {
        await waitsWith(name, /^(ErrImagePull|ImagePullBackOff)$/);
      }
      await waitsWith("no-host", /ImagePullBackOff/);
      assert.match(await events("no-image"), /not found|manifest unknown/i);
      assert.match(await events("no-password"), /401|unauthorized|no basic auth|authorization/i);
      // What was mended is taken at the next try, without a new pod.
      await realm.push("private/none:1", await busyboxArchive(name, { Cmd: ["sleep", "36000"] }));
      await realm.ok("wait", "--for=condition=Ready", "pod/no-image", "--timeout=90s");
      await realm.ok("delete", "pods", "--all", "--timeout=60s");
    });

    await t.step("noise at the hub and at a kubelet port", async () => {
      const ports = [realm.hubPort, Number(realm.kubeletPorts.split("-")[0])];
      for (const port of ports) {
        for (let round = 0; round < 20; round++) {
          const connection = await Deno.connect({ hostname: realm.address, port });
          await connection.write(crypto.getRandomValues(new Uint8Array(1 + round * 400))).catch(() => {});
          connection.close();
        }
      }
      using client = Deno.createHttpClient({ caCerts: [await edge.readCa()] });
      const send = async (path: string, body: string | Uint8Array<ArrayBuffer>) => {
        const answer = await fetch(`https://${realm.address}:${realm.hubPort}${path}`, {
          client,
          method: "POST",
          body,
        });
        return { status: answer.status, text: await answer.text() };
      };
      assert.equal((await send("/v1/join", "{")).status, 400);
      assert.equal((await send("/v1/join", "null")).status, 400);
      assert.equal(
        (await send("/v1/join", `{"tokenId":"../x","secret":"","csr":"","node":"n"}`)).status,
        400,
      );
      assert.equal(
        (await send("/v1/join", `{"tokenId":"a","secret":"b","csr":"c","node":"../../pods"}`)).status,
        400,
      );
      assert.equal((await send("/v1/none", "x")).status, 404);
      const large = await send("/v1/join", new Uint8Array(4 << 20)).catch(() => ({ status: 413 }));
      assert.ok(large.status >= 400);
      assert.ok(realm.cloud.running());
      await until("the node is still connected", 15_000, () => edge.connected());
    });

    await t.step("a full disk under the store", async () => {
      const small = await realm.edge("small");
      await Deno.mkdir(small.rootDir, { recursive: true });
      await must(`mount -t tmpfs -o size=160m tmpfs ${small.rootDir}`);
      await small.join(await realm.token());
      const on = (name: string) => pod(name, {}, { nodeName: "small" });
      await realm.apply(on("before"));
      await realm.ok("wait", "--for=condition=Ready", "pod/before", "--timeout=30s");
      const filler = `${small.rootDir}/filler`;
      await run(["dd", "if=/dev/zero", `of=${filler}`, "bs=1M", "status=none"]);
      await realm.apply(...Array.from({ length: 20 }, (_, index) => on(`during-${index}`)));
      await realm.ok("delete", "pod", "before", "--wait=false");
      await until(
        "the log says what is wrong",
        60_000,
        () => /Cannot write the store.*full/.test(small.log()),
      );
      assert.ok(small.agent.running(), `the agent ended: ${small.log().slice(-1000)}`);
      await Deno.remove(filler);
      await until("everything is caught up", 120_000, async () => {
        const { items } = await realm.json<KubeList<Pod>>(
          "get",
          "pods",
          "--field-selector=spec.nodeName=small",
        );
        return items.length === 20 && items.every(({ status }) => status?.phase === "Running");
      });
    });

    await t.step("the agent of the first node has lived through it all", () => {
      assert.equal(edge.agent.pid, agent);
      assert.ok(edge.agent.running() && realm.cloud.running());
      for (const log of ["cloud", "edge1", "small"]) {
        assert.doesNotMatch(realm.log(log), /Uncaught|panicked|let-me-pull/);
      }
    });
  },
});

interface Config {
  clusters: { cluster: Record<string, string> }[];
  users: { user: Record<string, string> }[];
}
