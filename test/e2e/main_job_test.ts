/** The main job on real parts: a cluster's pods run on an edge node behind NAT, and kubectl works on them. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { binaries } from "../real/binaries.ts";
import { busyboxImage } from "../real/images.ts";
import { Realm, sleep, until } from "../real/realm.ts";
import { start } from "../real/processes.ts";
import type { Event, KubeList, Pod } from "../../lib/kube/types.ts";

const container = (script: string, more: Record<string, unknown> = {}) => ({
  name: "main",
  image: busyboxImage,
  imagePullPolicy: "IfNotPresent",
  command: ["sh", "-c", script],
  ...more,
});
const pod = (
  name: string,
  script: string,
  spec: Record<string, unknown> = {},
  more: Record<string, unknown> = {},
) => ({
  apiVersion: "v1",
  kind: "Pod",
  metadata: { name, namespace: "default" },
  spec: { terminationGracePeriodSeconds: 1, containers: [container(script, more)], ...spec },
});
const deployment = (replicas: number) => ({
  apiVersion: "apps/v1",
  kind: "Deployment",
  metadata: { name: "web", namespace: "default" },
  spec: {
    replicas,
    selector: { matchLabels: { app: "web" } },
    template: {
      metadata: { labels: { app: "web" } },
      spec: {
        terminationGracePeriodSeconds: 1,
        containers: [container("i=0; while true; do echo line $i; i=$((i+1)); sleep 1; done")],
      },
    },
  },
});

async function pods(realm: Realm, selector = "app=web"): Promise<Pod[]> {
  return (await realm.json<KubeList<Pod>>("get", "pods", "-l", selector)).items;
}
async function running(realm: Realm, name: string, timeoutMs = 30_000): Promise<Pod> {
  await realm.ok("wait", "--for=condition=Ready", `pod/${name}`, `--timeout=${timeoutMs / 1000}s`);
  return await realm.json<Pod>("get", "pod", name);
}
const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

/** kube-apiserver's own order of addresses, and kubeadm's. */
for (const addressTypes of [undefined, "InternalIP,ExternalIP,Hostname"]) {
  Deno.test({
    name: `main job, kubelet addresses by ${addressTypes ?? "kube-apiserver's default order"}`,
    sanitizeOps: false,
    sanitizeResources: false,
    fn: async (t) => {
      await using realm = await Realm.start(addressTypes ? { addressTypes } : {});
      await realm.startCloud();
      const [edge, second] = [await realm.edge("edge1"), await realm.edge("edge2")];
      const token = await realm.token();
      await Promise.all([edge.join(token), second.join(token)]);
      await realm.ok("cordon", "edge2");

      await t.step(
        "the node carries its role, and a second address is not needed: two nodes share one",
        async () => {
          const nodes = await realm.ok("get", "nodes", "-o", "wide");
          assert.match(nodes, /edge1 +Ready +edge .*containerd:\/\/2\.4\.2/);
          assert.equal(nodes.split("\n").filter((line) => line.includes(realm.address)).length, 2);
        },
      );

      await t.step("a Deployment of 10 runs, scales, restarts and goes", async () => {
        await realm.apply(deployment(10));
        await realm.ok("rollout", "status", "deployment/web", "--timeout=60s");
        assert.ok(
          (await pods(realm)).every((one) =>
            one.spec.nodeName === "edge1" && one.status?.phase === "Running"
          ),
        );
        await realm.ok("scale", "deployment/web", "--replicas=3");
        await until("three pods are left", 30_000, async () => (await pods(realm)).length === 3);
        const before = new Set((await pods(realm)).map(({ metadata }) => metadata.uid));
        await realm.ok("rollout", "restart", "deployment/web");
        await realm.ok("rollout", "status", "deployment/web", "--timeout=60s");
        await until("only new pods are left", 30_000, async () => {
          const now = await pods(realm);
          return now.length === 3 && now.every(({ metadata }) => !before.has(metadata.uid));
        });
      });
      if (addressTypes === undefined) {
        await t.step("logs and exec on each of two nodes behind one address", async () => {
          await realm.apply(pod("on-second", "echo second; sleep 3600", { nodeName: "edge2" }));
          await running(realm, "on-second");
          assert.equal(await realm.ok("logs", "on-second"), "second\n");
          const [first] = await pods(realm);
          assert.equal(await realm.ok("exec", first?.metadata.name ?? "", "--", "echo", "first"), "first\n");
        });
        return;
      }

      await t.step("logs: -f, --tail, --since, -p", async () => {
        const name = (await pods(realm))[0]?.metadata.name ?? "";
        await sleep(3000);
        assert.match(await realm.ok("logs", name, "--tail=1"), /^line \d+\n$/);
        assert.ok((await realm.ok("logs", name, "--since=2s")).split("\n").length <= 4);
        const follow = start([...kubectl(realm), "logs", "-f", name, "--tail=1"], {
          log: `${realm.dir}/follow.txt`,
        });
        await until(
          "three lines were followed",
          15_000,
          () => (Deno.readTextFileSync(follow.log).match(/line/g) ?? []).length >= 3,
        );
        await follow.stop();
        await realm.apply(pod("crashing", "echo run $RANDOM; exit 3"));
        await until(
          "it has crashed twice",
          40_000,
          async () =>
            ((await realm.json<Pod>("get", "pod", "crashing")).status?.containerStatuses?.[0]?.restartCount ??
              0) >= 1,
        );
        assert.match(await realm.ok("logs", "-p", "crashing"), /^run/);
        await until("CrashLoopBackOff", 20_000, async () => {
          const { status } = await realm.json<Pod>("get", "pod", "crashing");
          const state = status?.containerStatuses?.[0];
          return state?.state?.waiting?.reason === "CrashLoopBackOff" &&
            state.lastState?.terminated?.exitCode === 3;
        });
        await realm.ok("delete", "pod", "crashing");
      });

      await t.step("exec: stdin, exit code, terminal with its size", async () => {
        const name = (await pods(realm))[0]?.metadata.name ?? "";
        const echoed = await realm.kubectlWith(
          { stdin: new TextEncoder().encode("hello") },
          "exec",
          "-i",
          name,
          "--",
          "cat",
        );
        assert.equal(echoed.stdout, "hello");
        assert.equal((await realm.kubectl("exec", name, "--", "sh", "-c", "exit 7")).code, 7);
        const inside = "sh -c 'sleep 1; stty size'";
        const script = `stty rows 33 cols 101; exec ${
          kubectl(realm).join(" ")
        } exec -it ${name} -- ${inside}`;
        const log = `${realm.dir}/terminal.txt`;
        const terminal = start(["script", "-qec", script, "/dev/null"], { log });
        await until("the terminal's size arrived", 15_000, () => /33 101/.test(Deno.readTextFileSync(log)));
        await terminal.stop();
      });

      await t.step("attach and port-forward", async () => {
        await realm.apply({
          ...pod("serving", ""),
          spec: {
            terminationGracePeriodSeconds: 1,
            containers: [
              container("mkdir /www; echo index > /www/index.html; exec httpd -f -p 8080 -h /www", {
                readinessProbe: { httpGet: { path: "/", port: 8080 }, periodSeconds: 1 },
              }),
              { ...container("exec cat"), name: "echo", stdin: true },
            ],
          },
        });
        await running(realm, "serving");
        const port = realm.hubPort + 40;
        const forward = start([...kubectl(realm), "port-forward", "pod/serving", `${port}:8080`], {
          log: `${realm.dir}/forward.txt`,
        });
        await until(
          "the port answers",
          15_000,
          async () => (await (await fetch(`http://127.0.0.1:${port}/`)).text()) === "index\n",
        );
        await Promise.all(
          Array.from(
            { length: 20 },
            async () => assert.equal(await (await fetch(`http://127.0.0.1:${port}/`)).text(), "index\n"),
          ),
        );
        await forward.stop();
        // script keeps standard input open, as a person at a terminal does.
        const attach = start([
          "sh",
          "-c",
          `(echo attached; sleep 3) | ${kubectl(realm).join(" ")} attach -i serving -c echo`,
        ], { log: `${realm.dir}/attach.txt` });
        await until(
          "the echo came back",
          15_000,
          () => Deno.readTextFileSync(attach.log).includes("attached\n"),
        );
        await attach.stop();
      });

      await t.step("cp of 50 MB there and back", async () => {
        const name = (await pods(realm))[0]?.metadata.name ?? "";
        const bytes = new Uint8Array(50 * 1024 * 1024);
        for (let at = 0; at < bytes.length; at += 65_536) {
          crypto.getRandomValues(bytes.subarray(at, at + 65_536));
        }
        await Deno.writeFile(`${realm.dir}/there`, bytes);
        await realm.ok("cp", `${realm.dir}/there`, `${name}:/tmp/file`);
        assert.equal(
          (await realm.ok("exec", name, "--", "sha256sum", "/tmp/file")).split(" ")[0],
          sha256(bytes),
        );
        await realm.ok("cp", `${name}:/tmp/file`, `${realm.dir}/back`);
        assert.equal(sha256(await Deno.readFile(`${realm.dir}/back`)), sha256(bytes));
      });

      await t.step("figures for kubectl top: stats/summary and metrics/resource", async () => {
        await sleep(2000);
        type Summary = {
          node: { nodeName: string; memory: { workingSetBytes: number } };
          pods: { podRef: { name: string }; memory: { workingSetBytes: number } }[];
        };
        const summary = JSON.parse(
          await realm.ok("get", "--raw", "/api/v1/nodes/edge1/proxy/stats/summary"),
        ) as Summary;
        assert.equal(summary.node.nodeName, "edge1");
        assert.ok(summary.node.memory.workingSetBytes > 0);
        assert.ok(
          summary.pods.some(({ podRef, memory }) => podRef.name === "serving" && memory.workingSetBytes > 0),
        );
        const metrics = await realm.ok("get", "--raw", "/api/v1/nodes/edge1/proxy/metrics/resource");
        assert.match(metrics, /container_memory_working_set_bytes\{[^}]*pod="serving"[^}]*\} \d+/);
        assert.match(metrics, /node_cpu_usage_seconds_total \d+/);
      });

      await t.step("environment, volumes and tokens", async () => {
        await realm.ok(
          "create",
          "configmap",
          "settings",
          "--from-literal=color=blue",
          "--from-literal=shape=round",
        );
        await realm.ok("create", "secret", "generic", "password", "--from-literal=word=xyzzy-e2e");
        await realm.apply(pod("inputs", "sleep 3600", {
          volumes: [
            { name: "config", configMap: { name: "settings" } },
            { name: "secret", secret: { secretName: "password", defaultMode: 0o400 } },
            {
              name: "about",
              downwardAPI: { items: [{ path: "name", fieldRef: { fieldPath: "metadata.name" } }] },
            },
            { name: "space", emptyDir: {} },
          ],
        }, {
          env: [
            { name: "COLOR", valueFrom: { configMapKeyRef: { name: "settings", key: "color" } } },
            { name: "WORD", valueFrom: { secretKeyRef: { name: "password", key: "word" } } },
            { name: "NODE", valueFrom: { fieldRef: { fieldPath: "spec.nodeName" } } },
            { name: "LIMIT", valueFrom: { resourceFieldRef: { resource: "limits.memory" } } },
            { name: "BOTH", value: "$(COLOR)-$(NODE)" },
          ],
          envFrom: [{ configMapRef: { name: "settings" } }],
          resources: { limits: { memory: "32Mi", cpu: "200m" } },
          volumeMounts: [{ name: "config", mountPath: "/config" }, { name: "secret", mountPath: "/secret" }, {
            name: "about",
            mountPath: "/about",
          }, { name: "space", mountPath: "/space" }],
        }));
        await running(realm, "inputs");
        const inside = (script: string) => realm.ok("exec", "inputs", "--", "sh", "-c", script);
        assert.equal(
          await inside('echo "$COLOR $WORD $NODE $LIMIT $BOTH $shape"'),
          "blue xyzzy-e2e edge1 33554432 blue-edge1 round\n",
        );
        assert.equal(
          await inside("cat /config/color /secret/word /about/name; touch /space/x && echo"),
          "bluexyzzy-e2einputs\n",
        );
        assert.equal(await inside("stat -c %a -L /secret/word"), "400\n");
        assert.match(await inside("mount | grep ' /secret '"), /tmpfs/);
        const token = await inside("cat /var/run/secrets/kubernetes.io/serviceaccount/token");
        assert.match(token, /^eyJ/);
        assert.equal(
          await inside(
            "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max",
          ),
          "33554432\n",
        );
        await realm.ok("patch", "configmap", "settings", "-p", '{"data":{"color":"green"}}');
        await until(
          "the mounted file follows the ConfigMap",
          15_000,
          async () => await inside("cat /config/color") === "green",
        );
      });

      await t.step("init containers, restart policies, and events as kubectl shows them", async () => {
        await realm.apply(
          pod("once", "cat /work/first /work/second", {
            restartPolicy: "Never",
            volumes: [{ name: "work", emptyDir: {} }],
            initContainers: ["first", "second"].map((name) => ({
              ...container(`echo ${name} > /work/${name}`),
              name,
              volumeMounts: [{ name: "work", mountPath: "/work" }],
            })),
          }, { volumeMounts: [{ name: "work", mountPath: "/work" }] }),
          pod("failing", "exit 4", { restartPolicy: "Never" }),
          pod("missing-image", "true", {}, {
            image: "127.0.0.1:1/none:1",
            imagePullPolicy: "IfNotPresent",
          }),
          pod("missing-config", "true", {}, {
            env: [{ name: "X", valueFrom: { configMapKeyRef: { name: "nowhere", key: "x" } } }],
          }),
        );
        const status = async (name: string) => (await realm.json<Pod>("get", "pod", name)).status;
        await until("once has succeeded", 30_000, async () => (await status("once"))?.phase === "Succeeded");
        assert.equal(await realm.ok("logs", "once"), "first\nsecond\n");
        await until("failing has failed", 30_000, async () => (await status("failing"))?.phase === "Failed");
        const waiting = async (name: string) =>
          (await status(name))?.containerStatuses?.[0]?.state?.waiting?.reason ?? "";
        await until(
          "the image cannot be pulled",
          40_000,
          async () => /ErrImagePull|ImagePullBackOff/.test(await waiting("missing-image")),
        );
        await until(
          "the ConfigMap is missed",
          30_000,
          async () => await waiting("missing-config") === "CreateContainerConfigError",
        );
        const { items } = await realm.json<KubeList<Event>>("get", "events");
        const reasons = new Set(items.map(({ reason }) => reason));
        for (const reason of ["Pulled", "Created", "Started", "Killing", "Failed", "BackOff"]) {
          assert.ok(reasons.has(reason), `no event ${reason} among ${[...reasons]}`);
        }
        await realm.ok("delete", "pod", "once", "failing", "missing-image", "missing-config");
      });

      await t.step("a restart of the agent and of containerd restarts no container", async () => {
        const ids = async () =>
          (await pods(realm)).map(({ status }) => status?.containerStatuses?.[0]?.containerID).sort().join();
        const before = await ids();
        await edge.agent.stop("SIGKILL");
        edge.start();
        await until(
          "the agent is back",
          30_000,
          async () =>
            JSON.parse((await edge.command("status", "-o", "json")).stdout).cloud.state === "connected",
        );
        await edge.containerd.stop("SIGKILL");
        await edge.startContainerd();
        await sleep(3000);
        assert.equal(await ids(), before);
        assert.ok(
          (await pods(realm)).every(({ status }) => status?.containerStatuses?.[0]?.restartCount === 0),
        );
      });

      await t.step("what was changed while the link was cut is there after it", async () => {
        await edge.link("down");
        await realm.ok("scale", "deployment/web", "--replicas=5");
        await realm.ok("delete", "pod", "inputs", "--wait=false");
        await sleep(3000);
        await edge.link("up");
        await realm.ok("rollout", "status", "deployment/web", "--timeout=90s");
        await until(
          "the deleted pod is gone",
          60_000,
          async () => (await realm.kubectl("get", "pod", "inputs")).code !== 0,
        );
      });

      await t.step("the node's own commands", async () => {
        const name = (await pods(realm))[0]?.metadata.name ?? "";
        assert.match((await edge.command("pods")).stdout, new RegExp(`${name} +1/1 +Running`));
        assert.match((await edge.command("logs", name, "--tail", "1")).stdout, /^line \d+\n$/);
        assert.equal((await edge.command("exec", name, "--", "sh", "-c", "echo hi; exit 5")).code, 5);
        assert.match(
          (await realm.cloudCommand("nodes", "--status-listen", `127.0.0.1:${realm.statusPort}`)).stdout,
          /edge1 +connected +\d/,
        );
      });

      await t.step("no secret is in any log", () => {
        for (const log of ["cloud", "edge1", "edge2"]) {
          const text = realm.log(log);
          assert.ok(text.length > 0);
          assert.ok(
            !text.includes("xyzzy-e2e") && !text.includes(token.split(".")[1] ?? "") &&
              !/eyJhbGciOi/.test(text) && !text.includes("PRIVATE KEY"),
          );
        }
      });

      await t.step(
        "kubectl delete ends everything, and the node leaves no cgroup or mount behind",
        async () => {
          await realm.ok("delete", "deployment", "web");
          await realm.ok("delete", "pods", "--all");
          await until(
            "no pod is left on the node",
            30_000,
            async () => JSON.parse((await edge.command("pods", "-o", "json")).stdout).items.length === 0,
          );
          await until(
            "its mounts are gone",
            10_000,
            () => !Deno.readTextFileSync("/proc/self/mountinfo").includes(`${edge.rootDir}/pods`),
          );
        },
      );
    },
  });
}

function kubectl(realm: Realm): string[] {
  return [`${binaries}/kubectl`, "--kubeconfig", realm.kubeconfig];
}
