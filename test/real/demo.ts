/**
 * The main job, kept running: a control plane, `kubeedge cloud`, an edge machine behind NAT, and a Deployment on it.
 * Ends with SIGTERM. test/demo.sh starts it in the background and waits for the last line.
 */
import { webImage } from "./images.ts";
import { cleanUp } from "./processes.ts";
import { Realm, until } from "./realm.ts";

const beginMs = performance.now();
const say = (line: string) =>
  console.log(`\x1b[2m[${((performance.now() - beginMs) / 1000).toFixed(1).padStart(6)}s]\x1b[0m ${line}`);

const web = {
  apiVersion: "apps/v1",
  kind: "Deployment",
  metadata: { name: "web", namespace: "default" },
  spec: {
    replicas: 3,
    selector: { matchLabels: { app: "web" } },
    template: {
      metadata: { labels: { app: "web" } },
      spec: {
        terminationGracePeriodSeconds: 1,
        containers: [{
          name: "web",
          image: webImage,
          imagePullPolicy: "IfNotPresent",
          ports: [{ containerPort: 8080 }],
          readinessProbe: { httpGet: { path: "/", port: 8080 }, periodSeconds: 1 },
        }],
      },
    },
  },
};

try {
  const realm = await Realm.start({ addressTypes: "InternalIP,ExternalIP,Hostname", progress: say });
  await realm.startCloud();
  const edge = await realm.edge("edge1");
  say("kubeedge edge join TOKEN, behind the NAT");
  await edge.join(await realm.token());
  say("kubectl apply: Deployment web of 3 replicas");
  await realm.apply(web);
  await realm.ok("rollout", "status", "deployment/web", "--timeout=60s");
  say("all replicas are ready");
  const kubectl = realm.kubectlCommand.join(" ");
  const show = async (...args: string[]) =>
    console.log(`\n$ kubectl ${args.join(" ")}\n${await realm.ok(...args)}`);
  await show("get", "nodes,pods", "-o", "wide");
  const pod = (await realm.ok("get", "pods", "-l", "app=web", "-o", "name")).split("\n")[0] ?? "";
  await until("the pod has served", 10_000, async () => (await realm.ok("logs", pod)).includes("serves"));
  await show("logs", pod, "--tail=3");
  console.log(`It keeps running. Try, for example:

  alias k='${kubectl}'
  k exec -it ${pod} -- sh
  k port-forward ${pod} 8080:8080      # then: curl localhost:8080
  k scale deployment web --replicas=10

Logs: ${realm.dir}/log   Stop: test/demo.sh stop
demo: ready`);
} catch (error) {
  console.log(`The demo failed: ${error instanceof Error ? error.message : error}`);
  await cleanUp();
  Deno.exit(1);
}
