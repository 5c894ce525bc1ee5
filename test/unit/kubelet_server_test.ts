/**
 * The TLS end of a kubelet port on real sockets, and the attack that it must stand: all node:tls servers of one process
 * share a session ticketer, and a resumed TLS 1.3 session skips the client certificate's verification.
 */
import assert from "node:assert/strict";
import { X509Certificate } from "node:crypto";
import https from "node:https";
import type { AddressInfo } from "node:net";
import tls from "node:tls";
import {
  type CertificateAuthority,
  issueLeaf,
  makeAuthority,
  makeKey,
  publicKeyOf,
} from "../../lib/crypto/x509.ts";
import {
  type Caller,
  certificateHolds,
  type KubeletPort,
  listenKubelet,
} from "../../lib/sys/kubelet_server.ts";

const nowMs = Date.now(), serial = new Uint8Array([1]);
/** Two CAs of one name: only their keys tell them apart. */
const cluster = await makeAuthority("kubernetes", { nowMs, days: 1, serial });
const stranger = await makeAuthority("kubernetes", { nowMs, days: 1, serial });

interface Pair {
  key: string;
  certificate: string;
}
async function issue(
  authority: CertificateAuthority,
  usage: "client" | "server",
  commonName: string,
  lifeMs = 3_600_000,
  at = nowMs,
): Promise<Pair> {
  const key = await makeKey();
  const certificate = await issueLeaf(authority, {
    subject: { commonName, organization: "system:masters" },
    publicKey: await publicKeyOf(key),
    usage,
    nowMs: at,
    lifeMs,
    serial,
    ...(usage === "server" ? { addresses: ["127.0.0.1", "localhost"] } : {}),
  });
  return { key, certificate };
}
const serving = await issue(cluster, "server", "kubelet");
const admin = await issue(cluster, "client", "admin");
const forged = await issue(stranger, "client", "admin");
const expired = await issue(cluster, "client", "admin", 3_600_000, nowMs - 7_200_000);

const rawOf = (pair: Pair) => new Uint8Array(new X509Certificate(pair.certificate).raw);
const authorities = [new X509Certificate(cluster.certificate)];

Deno.test("certificateHolds: issued by the CA, by its key, and in force", () => {
  assert.equal(certificateHolds(rawOf(admin), authorities, nowMs), true);
  assert.equal(
    certificateHolds(rawOf(admin), [new X509Certificate(stranger.certificate), ...authorities], nowMs),
    true,
  );
  assert.equal(certificateHolds(undefined, authorities, nowMs), false);
  assert.equal(certificateHolds(rawOf(forged), authorities, nowMs), false);
  assert.equal(certificateHolds(rawOf(admin), [], nowMs), false);
  assert.equal(certificateHolds(rawOf(expired), authorities, nowMs), false);
  assert.equal(certificateHolds(rawOf(admin), authorities, nowMs - 3_600_000), false);
  assert.equal(certificateHolds(rawOf(admin), authorities, nowMs + 7_200_000), false);
});

/** A port that says who it takes its caller for. */
async function openPort(seen: (Caller | undefined)[]): Promise<{ port: number; listener: KubeletPort }> {
  const probe = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const { port } = probe.addr;
  probe.close();
  const listener = await listenKubelet(
    {
      hostname: "127.0.0.1",
      port,
      certificate: serving.certificate,
      key: serving.key,
      clientCa: cluster.certificate,
    },
    {
      judge: ({ certificate, bearer }) => {
        seen.push(certificate);
        const user = certificate?.username ?? (bearer === "good" ? "bearer" : undefined);
        return Promise.resolve({ status: user ? 403 : 401, message: user ?? "nobody" });
      },
      open: () => ({ status: 500, message: "not reached" }),
    },
  );
  return { port, listener };
}

/** One request on a connection of its own. */
function ask(port: number, client: Pair | undefined, bearer?: string): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = "";
    const identity = client ? { cert: client.certificate, key: client.key } : {};
    const socket = tls.connect({
      host: "127.0.0.1",
      port,
      servername: "localhost",
      ca: [cluster.certificate],
      ...identity,
    });
    socket.on("secureConnect", () => {
      const authorization = bearer ? `authorization: Bearer ${bearer}\r\n` : "";
      socket.write(`GET /pods HTTP/1.1\r\nhost: x\r\n${authorization}connection: close\r\n\r\n`);
    });
    socket.on("data", (chunk) => text += new TextDecoder().decode(chunk as unknown as Uint8Array));
    socket.on("error", reject);
    socket.on("close", () => resolve(text));
  });
}

Deno.test({
  name: "callers are told apart by their certificates alone",
  sanitizeOps: false,
  sanitizeResources: false,
  fn: async () => {
    const seen: (Caller | undefined)[] = [];
    const { port, listener } = await openPort(seen);
    try {
      assert.match(await ask(port, admin), /^HTTP\/1\.1 403 .*\nadmin\n/s);
      assert.deepEqual(seen.pop(), { username: "admin", groups: ["system:masters", "system:authenticated"] });
      for (
        const [name, pair] of [["none", undefined], ["another CA's of the same name", forged], [
          "expired",
          expired,
        ]] as const
      ) {
        assert.match(await ask(port, pair), /^HTTP\/1\.1 401 /, name);
        assert.equal(seen.pop(), undefined, name);
      }
      assert.match(await ask(port, undefined, "good"), /\nbearer\n/);
      assert.match(await ask(port, forged, "bad"), /^HTTP\/1\.1 401 /);
    } finally {
      listener.close();
    }
  },
});

Deno.test({
  name: "a session that a lenient server of the same process gave opens nothing here",
  sanitizeOps: false,
  sanitizeResources: false,
  fn: async () => {
    const seen: (Caller | undefined)[] = [];
    const { port, listener } = await openPort(seen);
    // Both ask for certificates and let everybody in; the second one even trusts the stranger's CA.
    const lenient = [cluster, stranger].map((authority) =>
      https.createServer(
        {
          key: serving.key,
          cert: serving.certificate,
          ca: [authority.certificate],
          requestCert: true,
          rejectUnauthorized: false,
        },
        (_request, response) => response.end("in"),
      )
    );
    try {
      for (const server of lenient) {
        await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", () => resolve()));
        const { port: lenientPort } = server.address() as AddressInfo;
        for (const client of [forged, undefined, expired]) {
          // One client for both: it resumes at the second server, by its host name, what the first one gave it.
          const identity = client ? { cert: client.certificate, key: client.key } : {};
          using http = Deno.createHttpClient({ caCerts: [cluster.certificate], ...identity });
          const get = async (to: number) => {
            const answer = await fetch(`https://localhost:${to}/pods`, {
              client: http,
              headers: { connection: "close" },
            });
            return await answer.text();
          };
          assert.equal(await get(lenientPort), "in");
          // Without certificateHolds the second answer is "admin": the attack is real.
          for (let time = 0; time < 2; time++) assert.equal(await get(port), "nobody\n");
          assert.deepEqual(seen.splice(0), [undefined, undefined]);
        }
      }
      assert.match(await ask(port, admin), /\nadmin\n/, "the right caller still gets in");
    } finally {
      listener.close();
      for (const server of lenient) server.close();
    }
  },
});
