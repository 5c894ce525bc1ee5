/** What is refused, on real parts: tokens, names, certificates, proofs, callers of the kubelet port, other nodes' objects. */
import assert from "node:assert/strict";
import { formatJoinToken, type JoinToken, parseJoinToken } from "../../lib/crypto/join_token.ts";
import { issueLeaf, makeAuthority, makeKey, publicKeyOf } from "../../lib/crypto/x509.ts";
import type { Identity } from "../../lib/edge/identity.ts";
import type { Node, Pod } from "../../lib/kube/types.ts";
import { loadIdentity } from "../../lib/sys/identity_files.ts";
import { busyboxImage } from "../real/images.ts";
import { makeLeaf } from "../real/pki.ts";
import { type Output, run } from "../real/processes.ts";
import { type Edge, Realm, sleep, until } from "../real/realm.ts";
import { meetHub, type Outcome } from "../real/stranger.ts";

const refusedCode = 4, usageCode = 2;
const secretText = "sesame-e2e-only-for-the-first";

function refused({ code, stdout, stderr }: Output, why: RegExp, want = refusedCode): void {
  assert.equal(code, want, `exit code ${code}: ${stdout}${stderr}`);
  assert.match(stderr, why);
}
function tokenOf(text: string): JoinToken {
  const parsed = parseJoinToken(text);
  assert.ok(parsed.state === "ok");
  return parsed.token;
}
function identityOf(edge: Edge): Identity {
  const identity = loadIdentity(edge.rootDir);
  assert.ok(identity, `${edge.name} has no identity`);
  return identity;
}
/** The reason for which the hub refused. */
function refusal(outcome: Outcome): string {
  assert.equal(outcome.state, "refused", JSON.stringify(outcome));
  return outcome.state === "refused" ? outcome.refuse.code : "";
}
const podOn = (node: string, name: string, secret?: string) => ({
  apiVersion: "v1",
  kind: "Pod",
  metadata: { name, namespace: "default" },
  spec: {
    nodeName: node,
    terminationGracePeriodSeconds: 1,
    containers: [{
      name: "main",
      image: busyboxImage,
      imagePullPolicy: "IfNotPresent",
      command: ["sh", "-c", "echo started; exec sleep 3600"],
      ...(secret ? { envFrom: [{ secretRef: { name: secret } }] } : {}),
    }],
  },
});

Deno.test({
  name: "security on real parts",
  sanitizeOps: false,
  sanitizeResources: false,
  fn: async (t) => {
    await using realm = await Realm.start();
    await realm.startCloud();
    const [first, second, third] = [
      await realm.edge("first"),
      await realm.edge("second"),
      await realm.edge("third"),
    ];
    const tokens: string[] = [];
    const token = async (...flags: string[]) => {
      const text = await realm.token(...flags);
      tokens.push(text);
      return text;
    };
    const good = await token();

    await t.step("a token that is garbage, cut or of another secret", async () => {
      refused(await first.joinOnly("garbage"), /does not start with "ke1\."/, usageCode);
      refused(await first.joinOnly(good.slice(0, -9)), /incomplete or was changed/, usageCode);
      const forged = formatJoinToken({ ...tokenOf(good), secret: "A".repeat(32) });
      refused(await first.joinOnly(forged), /the token is not known/);
    });
    await t.step("a token that has expired, was deleted, is used up, or is for other names", async () => {
      const short = await token("--ttl", "1s");
      await sleep(1500);
      refused(await first.joinOnly(short), /the token expired at 20/);
      const deleted = await token();
      assert.equal((await realm.cloudCommand("token", "delete", tokenOf(deleted).id)).code, 0);
      refused(await first.joinOnly(deleted), /the token is not known/);
      refused(await first.joinOnly(await token("--node-names", "shop-*")), /shop-\*/);
      const single = await token("--uses", "1");
      await first.join(single);
      refused(await second.joinOnly(single), /the token is used up/);
    });
    await t.step("a hub whose CA is not the token's is told nothing", async () => {
      const other = formatJoinToken({ ...tokenOf(good), authorityHash: "0".repeat(64) });
      const joins = () => (realm.log("cloud").match(/Join refused|Node joined/g) ?? []).length;
      const before = joins();
      refused(await second.joinOnly(other), /its CA is not the one of the token, so nothing secret was sent/);
      assert.equal(joins(), before);
    });
    await t.step("the name of another machine", async () => {
      refused(
        await second.joinOnly(good, "--name", "first"),
        /the name "first" belongs to another machine since 20/,
      );
    });
    await second.join(good);
    await realm.ok("create", "secret", "generic", "only-first", `--from-literal=WORD=${secretText}`);
    await realm.apply(podOn("first", "on-first", "only-first"), podOn("second", "on-second"));
    await realm.ok("wait", "--for=condition=Ready", "pod/on-first", "pod/on-second", "--timeout=30s");

    await t.step("a second agent with the key of a node that is connected", async () => {
      const identity = identityOf(first), url = identity.urls[0] ?? "";
      const outcome = await meetHub({ url, authorities: identity.caBundle, identity });
      assert.equal(refusal(outcome), "duplicate");
    });
    await t.step("certificates of another CA, and of no node", async () => {
      const identity = identityOf(second), url = identity.urls[0] ?? "";
      const now = { nowMs: Date.now(), serial: crypto.getRandomValues(new Uint8Array(16)) };
      const authority = await makeAuthority("kubeedge", { ...now, days: 1 });
      const key = await makeKey();
      const subject = { commonName: "system:node:second", organization: "system:nodes" };
      const certificate = await issueLeaf(authority, {
        ...now,
        subject,
        publicKey: await publicKeyOf(key),
        usage: "client",
        lifeMs: 3_600_000,
      });
      const meet = (identity: { certificate: string; key: string }) =>
        meetHub({ url, authorities: identityOf(second).caBundle, identity });
      assert.equal(refusal(await meet({ certificate, key })), "certificate");
      assert.equal(refusal(await meet({ certificate: "no certificate", key })), "certificate");
      // One's own certificate with another's key.
      assert.equal(refusal(await meet({ certificate: identity.certificate, key })), "proof");
    });
    await second.agent.stop();
    await t.step("a proof that is replayed or was changed", async () => {
      const identity = identityOf(second), url = identity.urls[0] ?? "";
      const common = { url, authorities: identity.caBundle, identity };
      const outcome = await until("the stranger is let in", 20_000, async () => {
        const met = await meetHub(common);
        return met.state === "welcome" ? met : undefined;
      });
      const { proof } = outcome;
      outcome.close();
      await sleep(500);
      assert.equal(refusal(await meetHub({ ...common, replay: proof })), "proof");
      const tamper = (sent: typeof proof) => ({ ...sent, instance: "another" });
      assert.equal(refusal(await meetHub({ ...common, tamper })), "proof");
    });
    await t.step("a token for the service account of another node's pod", async () => {
      const identity = identityOf(second), url = identity.urls[0] ?? "";
      const outcome = await meetHub({ url, authorities: identity.caBundle, identity });
      assert.ok(outcome.state === "welcome");
      const ask = async (pod: string) => {
        const { metadata } = await realm.json<Pod>("get", "pod", pod);
        const boundObjectRef = { kind: "Pod", apiVersion: "v1", name: pod, uid: metadata.uid };
        const answer = await outcome.request({
          request: "token",
          namespace: "default",
          serviceAccount: "default",
          spec: { audiences: [], expirationSeconds: 3600, boundObjectRef },
        });
        return "status" in answer ? answer.status : answer.failed;
      };
      assert.equal(await ask("on-second"), 201);
      assert.equal(await ask("on-first"), 403);
      outcome.close();
    });
    second.start();
    await until("the second node is back", 40_000, () => second.connected());

    await t.step("another node's Secret, for a node and for the cloud itself", async () => {
      const cloud = ["--kubeconfig", `${realm.dir}/pki/cloud.conf`];
      const get = (...as: string[]) => realm.kubectl(...cloud, ...as, "get", "secret", "only-first");
      assert.equal((await get("--as=system:node:first")).code, 0);
      refused(await get("--as=system:node:second"), /forbidden/i, 1);
      refused(await get("--as=admin"), /forbidden/i, 1);
      refused(await get(), /forbidden/i, 1);
      const holds = async (edge: Edge) =>
        (await run(["grep", "-rqa", secretText, edge.rootDir])).code === 0 ||
        (await run(["grep", "-rqa", btoa(secretText).replace(/=+$/, "").slice(0, 30), edge.rootDir])).code ===
          0;
      assert.equal(await holds(first), true, "the first node holds what its pod needs");
      assert.equal(await holds(second), false, "the second node holds another's Secret");
    });

    await t.step(
      "the kubelet port: callers are authenticated and authorized as at a kubelet",
      () => kubeletPort(realm),
    );
    await t.step("a node that is offline answers with an error that says so", async () => {
      await second.link("down");
      await until("the hub has noticed", 40_000, async () => {
        const { stdout } = await realm.cloudCommand(
          "nodes",
          "--status-listen",
          `127.0.0.1:${realm.statusPort}`,
        );
        return /second +lost/.test(stdout);
      });
      refused(await realm.kubectl("logs", "on-second"), /is not connected to the cloud/, 1);
      await second.link("up");
      await until("the second node is back", 40_000, () => second.connected());
    });

    await t.step(
      "a revoked node: its session ends, its certificate and its name are worth nothing",
      async () => {
        assert.equal((await realm.cloudCommand("nodes", "revoke", "first", "--reason", "stolen")).code, 0);
        const link = async () => {
          const { stdout } = await first.command("status", "-o", "json");
          return (JSON.parse(stdout) as { cloud: { state: string; lastError: string } }).cloud;
        };
        await until("the session has ended", 10_000, async () => (await link()).state === "refused");
        assert.match((await link()).lastError, /revoked.*stolen/);
        const identity = identityOf(first), url = identity.urls[0] ?? "";
        assert.equal(refusal(await meetHub({ url, authorities: identity.caBundle, identity })), "revoked");
        refused(await third.joinOnly(good, "--name", "first"), /is revoked/);
        assert.equal((await realm.cloudCommand("nodes", "restore", "first")).code, 0);
        await first.agent.stop();
        first.start();
        await until("the restored node is back", 30_000, () => first.connected());
      },
    );

    await t.step("replaced hardware takes the name over, and the old machine is sent away", async () => {
      const identity = identityOf(second), url = identity.urls[0] ?? "";
      const takeover = await token("--takeover", "--node-names", "second");
      const { code, stderr } = await third.joinOnly(takeover, "--name", "second");
      assert.equal(code, 0, stderr);
      await until("the old machine's pods are gone", 30_000, async () => {
        const { stdout } = await second.command("pods", "-o", "json");
        return (JSON.parse(stdout) as { items: unknown[] }).items.length === 0;
      });
      assert.equal(refusal(await meetHub({ url, authorities: identity.caBundle, identity })), "replaced");
      third.start();
      await until("the new machine serves the name", 60_000, () => third.connected());
    });

    await t.step("kubectl delete node frees the name; after edge reset the machine joins again", async () => {
      const identity = identityOf(first), url = identity.urls[0] ?? "";
      await realm.ok("delete", "node", "first");
      await until(
        "its pods are gone",
        30_000,
        async () => (await first.runtime.listSandboxes()).length === 0,
      );
      assert.equal(refusal(await meetHub({ url, authorities: identity.caBundle, identity })), "deleted");
      await first.agent.stop();
      const reset = await first.reset();
      assert.equal(reset.code, 0, reset.stderr);
      assert.equal(loadIdentity(first.rootDir), undefined);
      await first.join(good);
    });

    await t.step("no secret is in any log", () => {
      const secrets = [secretText, btoa(secretText), ...tokens.map((text) => tokenOf(text).secret)];
      for (const name of ["cloud", "first", "second", "third"]) {
        const log = realm.log(name);
        assert.ok(log.length > 0, `${name} logged nothing`);
        for (const secret of secrets) assert.ok(!log.includes(secret), `a secret is in the log of ${name}`);
        assert.doesNotMatch(log, /PRIVATE KEY|eyJhbGciOi|ke1\.ey/, `a key or token is in the log of ${name}`);
      }
    });
  },
});

async function kubeletPort(realm: Realm): Promise<void> {
  const pki = `${realm.dir}/pki`;
  const portOf = async (node: string) =>
    (await realm.json<Node>("get", "node", node)).status?.daemonEndpoints?.kubeletEndpoint?.Port ?? 0;
  const [port, otherPort] = [await portOf("first"), await portOf("second")];
  await makeLeaf(pki, { name: "neighbour", subject: "/O=system:nodes/CN=system:node:second" });
  await makeLeaf(pki, { name: "mallory", subject: "/O=developers/CN=mallory" });
  await makeLeaf(pki, {
    name: "foreign",
    subject: "/O=system:masters/CN=kube-apiserver-kubelet-client",
    ca: "front",
  });
  const read = (name: string) => Deno.readTextFileSync(`${pki}/${name}`);
  const ask = async (
    path: string,
    { certificate, bearer }: { certificate?: string; bearer?: string } = {},
    at = port,
  ) => {
    using client = Deno.createHttpClient({
      caCerts: [read("ca.crt")],
      ...(certificate ? { cert: read(`${certificate}.crt`), key: read(`${certificate}.key`) } : {}),
    });
    const headers: HeadersInit = bearer ? { authorization: `Bearer ${bearer}` } : {};
    const answer = await fetch(`https://${realm.address}:${at}${path}`, { client, headers });
    await answer.body?.cancel();
    return answer.status;
  };
  const logs = "/containerLogs/default/on-first/main";
  const rights = async (name: string, ...resources: string[]) => {
    await realm.ok("create", "serviceaccount", name);
    if (resources.length > 0) {
      await realm.ok("create", "clusterrole", name, "--verb=get", `--resource=${resources.join(",")}`);
      await realm.ok(
        "create",
        "clusterrolebinding",
        name,
        `--clusterrole=${name}`,
        `--serviceaccount=default:${name}`,
      );
    }
    return (await realm.ok("create", "token", name)).trim();
  };
  const metrics = await rights("metrics", "nodes/metrics", "nodes/stats");
  const nobody = await rights("nobody");

  const cases: [name: string, got: Promise<number>, want: number][] = [
    ["kube-apiserver's certificate", ask(logs, { certificate: "apiserver-kubelet" }), 200],
    ["nobody at all", ask(logs), 401],
    ["a forged bearer token", ask(logs, { bearer: "eyJhbGciOiJub25lIn0.e30." }), 401],
    ["a certificate of another CA", ask(logs, { certificate: "foreign" }), 401],
    ["another node's certificate", ask(logs, { certificate: "neighbour" }), 403],
    ["another node's certificate, for figures", ask("/stats/summary", { certificate: "neighbour" }), 403],
    ["a stranger's valid certificate", ask(logs, { certificate: "mallory" }), 403],
    ["a service account without rights", ask("/metrics/resource", { bearer: nobody }), 403],
    ["metrics-server's token, for figures", ask("/metrics/resource", { bearer: metrics }), 200],
    ["metrics-server's token, for the summary", ask("/stats/summary", { bearer: metrics }), 200],
    ["metrics-server's token, for logs", ask(logs, { bearer: metrics }), 403],
    ["a pod of another node", ask(logs, { certificate: "apiserver-kubelet" }, otherPort), 404],
  ];
  for (const [name, got, want] of cases) assert.equal(await got, want, name);

  // All TLS servers of the cloud share their session tickets, and a resumed session skips the client's certificate.
  const session = `${realm.dir}/session.pem`;
  const openssl = async (at: number, flags: string[]) => {
    const script =
      `(printf 'GET /stats/summary HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n'; sleep 1) | ` +
      `openssl s_client -quiet -connect ${realm.address}:${at} ${flags.join(" ")} 2>/dev/null`;
    return (await run(["sh", "-c", script])).stdout.split("\r\n")[0] ?? "";
  };
  const foreign = [`-cert ${pki}/foreign.crt`, `-key ${pki}/foreign.key`];
  const attacks: [name: string, at: number, flags: string[]][] = [
    ["a ticket of the hub, which asks for no certificate", realm.hubPort, []],
    ["a ticket of another node's port", otherPort, foreign],
    ["a ticket of the same port", port, foreign],
  ];
  for (const [name, at, flags] of attacks) {
    await openssl(at, [...flags, `-sess_out ${session}`]);
    assert.ok((await Deno.stat(session)).size > 0, `${name}: no ticket was given`);
    assert.match(await openssl(port, [...foreign, `-sess_in ${session}`]), /^HTTP\/1\.1 401 /, name);
    await Deno.remove(session);
  }
}
