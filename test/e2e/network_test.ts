/** The link between edge and hub: what it costs in bytes, and the way through an HTTP proxy. */
import assert from "node:assert/strict";
import type { KubeList, Pod } from "../../lib/kube/types.ts";
import { bytesOf, Capture } from "../real/capture.ts";
import { busyboxImage } from "../real/images.ts";
import { must } from "../real/processes.ts";
import { Realm, until } from "../real/realm.ts";

const pod = (name: string, node: string) => ({
  apiVersion: "v1",
  kind: "Pod",
  metadata: { name, namespace: "default" },
  spec: {
    nodeName: node,
    terminationGracePeriodSeconds: 0,
    containers: [{
      name: "main",
      image: busyboxImage,
      imagePullPolicy: "IfNotPresent",
      command: ["sleep", "36000"],
    }],
  },
});
/** Frames of a session are compressed, so a figure differs a little from run to run; these are the bounds of the issue. */
const reconnectBytesMax = 6 * 1024, podBytesMax = 10 * 1024;
/** Below the heartbeat's interval. */
const quietMs = 10_000;
const podsHeld = 30;

Deno.test({
  name: "bytes on the wire, and the way through a proxy",
  sanitizeOps: false,
  sanitizeResources: false,
  fn: async (t) => {
    await using realm = await Realm.start();
    await realm.startCloud();
    const edge = await realm.edge("edge1");
    const token = await realm.token();
    await edge.join(token);
    await realm.apply(...Array.from({ length: podsHeld }, (_, index) => pod(`held-${index}`, "edge1")));
    await until("all pods run", 90_000, async () => {
      const { items } = await realm.json<KubeList<Pod>>("get", "pods");
      return items.length === podsHeld && items.every(({ status }) => status?.phase === "Running");
    });
    const capture = async (name: string) =>
      await Capture.start(`${realm.dir}/${name}.pcap`, realm.network.bridge, `tcp port ${realm.hubPort}`);

    await t.step(`a reconnect with ${podsHeld} pods and nothing changed`, async () => {
      await edge.link("down");
      await until("the session is over on both sides", 60_000, async () => {
        const { stdout } = await realm.cloudCommand(
          "nodes",
          "--status-listen",
          `127.0.0.1:${realm.statusPort}`,
        );
        return /edge1 +lost/.test(stdout) && !await edge.connected();
      });
      const wire = await capture("reconnect");
      await edge.link("up");
      const packets = await wire.untilQuiet(quietMs, "first SYN");
      await wire.stop();
      assert.ok(await edge.connected());
      const bytes = bytesOf(packets);
      console.log(`    reconnect with ${podsHeld} pods: ${bytes} bytes in ${packets.length} packets`);
      assert.ok(bytes < reconnectBytesMax, `${bytes} bytes, ${reconnectBytesMax} are allowed`);
    });

    await t.step("the creation of one pod with all its status reports", async () => {
      const wire = await capture("pod");
      await realm.apply(pod("one-more", "edge1"));
      await realm.ok("wait", "--for=condition=Ready", "pod/one-more", "--timeout=30s");
      const packets = await wire.untilQuiet(quietMs, "first packet");
      await wire.stop();
      const bytes = bytesOf(packets);
      console.log(`    one pod: ${bytes} bytes in ${packets.length} packets`);
      assert.ok(bytes < podBytesMax, `${bytes} bytes, ${podBytesMax} are allowed`);
    });

    await t.step("join and session through an HTTP CONNECT proxy, where there is no other way", async () => {
      const port = realm.hubPort + 37;
      const config = `${realm.dir}/tinyproxy.conf`;
      await Deno.writeTextFile(
        config,
        `Port ${port}\nListen ${realm.address}\nMaxClients 20\nAllow 10.0.0.0/8\nConnectPort ${realm.hubPort}\nLogLevel Connect\n`,
      );
      realm.program("tinyproxy", ["tinyproxy", "-d", "-c", config]);
      const behind = await realm.edge("behind");
      const rules =
        `table inet only { chain out { type filter hook output priority 0; tcp dport ${realm.hubPort} reject; }; }`;
      await must(behind.inside(["nft", rules]));
      const direct = await behind.joinOnly(token);
      assert.notEqual(direct.code, 0, "it came through without the proxy");
      const env = { HTTPS_PROXY: `http://${realm.address}:${port}` };
      const { code, stdout, stderr } = await behind.joinWith(env, token);
      assert.equal(code, 0, stdout + stderr);
      behind.start(env);
      await until("the session is live", 30_000, () => behind.connected());
      await realm.apply(pod("behind-proxy", "behind"));
      await realm.ok("wait", "--for=condition=Ready", "pod/behind-proxy", "--timeout=30s");
      assert.equal(await realm.ok("exec", "behind-proxy", "--", "echo", "through"), "through\n");
      assert.match(realm.log("tinyproxy"), new RegExp(`CONNECT ${realm.address}:${realm.hubPort}`));
    });
  },
});
