/** Joining: the decisions against a complete fake hub, the files on disk, and the two requests over real TLS. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { hex } from "../../lib/core/bytes.ts";
import { UserError } from "../../lib/core/errors.ts";
import {
  authorityHash,
  type CertificateAuthority,
  checkRequest,
  issueLeaf,
  makeAuthority,
  makeKey,
  publicKeyOf,
} from "../../lib/crypto/x509.ts";
import { formatJoinToken, type JoinToken } from "../../lib/crypto/join_token.ts";
import type { Identity } from "../../lib/edge/identity.ts";
import { join, type JoinPorts, type JoinReply, type JoinWish, readToken } from "../../lib/edge/join.ts";
import { checkLines, type MachineFacts, preflight } from "../../lib/edge/preflight.ts";
import { loadIdentity, loadPendingKey, saveIdentity, savePendingKey } from "../../lib/sys/identity_files.ts";
import { mounts } from "../../lib/sys/machine.ts";
import { unitIsOf, unitText } from "../../lib/sys/systemd.ts";
import { fetchAuthority, pinnedFetch } from "../../lib/sys/tls_pin.ts";
import { isOwn } from "../../cmd/edge_reset.ts";
import { FakeClock } from "../fake/clock.ts";

const nowMs = Date.UTC(2026, 5, 1);
let serial = 1;
const newAuthority = (name: string, atMs = nowMs) =>
  makeAuthority(name, { nowMs: atMs, days: 3650, serial: new Uint8Array([1, serial++]) });
const [own, other] = await Promise.all([newAuthority("kubeedge"), newAuthority("other")]);
const secret = "c2VjcmV0LW9mLXRoZS10b2tlbg";
const urlA = "wss://a.example:10443", urlB = "wss://b.example:10443";
const token: JoinToken = {
  urls: [urlA, urlB],
  authorityHash: authorityHash(own.certificate),
  id: "0123456789",
  secret,
};

/** A cloud with one CA and one token, that binds each name to the key that first took it. */
class FakeHub {
  authorityOf = own;
  bundle = own.certificate;
  cluster = "cluster-1";
  down = new Set<string>();
  /** Replies that get lost on the way back. */
  lose = 0;
  change: (answer: Record<string, unknown>) => Record<string, unknown> = (answer) => answer;
  fail: { status: number; message: string } | undefined;
  readonly names = new Map<string, string>();
  readonly posts: { certificate: string; url: string; body: Record<string, unknown> }[] = [];
  readonly asked: string[] = [];

  authority(url: string) {
    this.asked.push(url);
    if (this.down.has(url)) return Promise.reject(new Error("connection refused"));
    return Promise.resolve({ bundle: this.bundle, skewMs: 0 });
  }
  async post(certificate: string, url: string, json: string): Promise<JoinReply> {
    if (this.down.has(url)) return { state: "unreachable", reason: "connection refused" };
    const body = JSON.parse(json) as Record<string, unknown>;
    this.posts.push({ certificate, url, body });
    const reply = await this.#judge(body);
    return this.lose-- > 0 ? { state: "lost", reason: "reset by peer" } : reply;
  }
  async #judge(body: Record<string, unknown>): Promise<JoinReply> {
    const refused = (status: number, message: string): JoinReply => ({
      state: "answered",
      status,
      body: JSON.stringify({ message }),
    });
    if (this.fail) return refused(this.fail.status, this.fail.message);
    if (body.tokenId !== token.id || body.secret !== secret) return refused(403, "the token is not known");
    const checked = await checkRequest(String(body.csr));
    assert.equal(checked.state, "ok");
    const publicKey = (checked as { publicKey: Uint8Array<ArrayBuffer> }).publicKey;
    const keyHash = hex(createHash("sha256").update(publicKey).digest()), node = String(body.node);
    if ((this.names.get(node) ?? keyHash) !== keyHash) {
      return refused(409, `the name "${node}" belongs to another machine`);
    }
    this.names.set(node, keyHash);
    const certificate = await leaf(this.authorityOf, publicKey, node);
    const answer = this.change({
      certificate,
      caBundle: this.bundle,
      cluster: this.cluster,
      node,
      urls: [urlA, urlB],
    });
    return { state: "answered", status: 200, body: JSON.stringify(answer) };
  }
}

function leaf(
  authority: CertificateAuthority,
  publicKey: Uint8Array<ArrayBuffer>,
  node: string,
  options: { atMs?: number } = {},
) {
  return issueLeaf(authority, {
    subject: { commonName: `system:node:${node}`, organization: "system:nodes" },
    publicKey,
    usage: "client",
    nowMs: options.atMs ?? nowMs,
    lifeMs: 30 * 86_400_000,
    serial: new Uint8Array([2, serial++]),
  });
}

function setUp() {
  const hub = new FakeHub(), clock = new FakeClock(nowMs);
  const state: { pending: string | undefined } = { pending: undefined };
  const lines: string[] = [];
  const ports: JoinPorts = {
    authority: (url) => hub.authority(url),
    post: (certificate, url, json) => hub.post(certificate, url, json),
    pendingKey: () => state.pending,
    keepKey: (key) => state.pending = key,
    clock,
    progress: (line) => lines.push(line),
  };
  const wish: JoinWish = {
    token,
    node: undefined,
    fallbackNode: "n1",
    labels: { zone: "shop" },
    taints: [],
    architecture: "arm64",
  };
  return { hub, clock, ports, wish, state, lines };
}

async function refusal(work: Promise<unknown>): Promise<UserError> {
  const error = await work.then(() => assert.fail("it was accepted"), (error: unknown) => error);
  assert.ok(error instanceof UserError, String(error));
  assert.ok(!error.message.includes(secret) && !error.message.includes("PRIVATE"), "no secret in a message");
  return error;
}

Deno.test("a machine joins and holds a certificate of its own key", async () => {
  const { hub, ports, wish, state, lines } = setUp();
  const { state: outcome, identity } = await join(wish, undefined, ports);
  assert.equal(outcome, "joined");
  assert.deepEqual({ ...identity, certificate: "", key: "", caBundle: "" }, {
    node: "n1",
    cluster: "cluster-1",
    urls: [urlA, urlB],
    joinedMs: nowMs,
    certificate: "",
    key: "",
    caBundle: "",
  });
  assert.equal(identity.key, state.pending, "the key was kept before it was used");
  const { certificate, body } = hub.posts[0]!;
  assert.equal(certificate, own.certificate.trim());
  assert.deepEqual({ ...body, csr: "" }, {
    tokenId: token.id,
    secret,
    node: "n1",
    csr: "",
    architecture: "arm64",
    labels: { zone: "shop" },
    taints: [],
  });
  assert.ok(!lines.join().includes(secret));
});

Deno.test("a hub with another CA gets no secret", async () => {
  const { hub, ports, wish, state } = setUp();
  hub.bundle = other.certificate;
  const error = await refusal(join(wish, undefined, ports));
  assert.equal(error.exitCode, 4);
  assert.match(error.message, /its CA is not the one of the token.*intercepts/);
  assert.deepEqual([hub.posts, state.pending], [[], undefined]);
});

Deno.test("a CA that is slipped in beside the right one is not trusted", async () => {
  const { hub, ports, wish } = setUp();
  hub.bundle = other.certificate + own.certificate;
  await join(wish, undefined, ports);
  assert.equal(hub.posts[0]!.certificate, own.certificate.trim());
});

for (
  const bundle of ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
) {
  Deno.test(`a CA that cannot be read is refused: ${JSON.stringify(bundle.slice(0, 20))}`, async () => {
    const { hub, ports, wish } = setUp();
    hub.bundle = bundle;
    assert.equal((await refusal(join(wish, undefined, ports))).exitCode, 4);
    assert.deepEqual(hub.posts, []);
  });
}

Deno.test("what the hub refuses is said in its words", async () => {
  for (
    const [fail, exitCode, said] of [
      [
        { status: 403, message: "the token expired at 2026-01-01T00:00:00.000Z" },
        4,
        /Cannot join node "n1": the token expired at 2026-01/,
      ],
      [{ status: 403, message: "the token is used up" }, 4, /used up/],
      [{ status: 409, message: 'the name "n1" belongs to another machine' }, 4, /belongs to another machine/],
      [{ status: 400, message: "no" }, 4, /no/],
      [
        { status: 503, message: "the Kubernetes API does not answer" },
        1,
        /does not answer; run the command again later/,
      ],
      [{ status: 403, message: "red \x1b[31malert\n" }, 4, /red {2}\[31malert /],
    ] as const
  ) {
    const { hub, ports, wish } = setUp();
    hub.fail = fail;
    const error = await refusal(join(wish, undefined, ports));
    assert.equal(error.exitCode, exitCode);
    assert.match(error.message, said);
    assert.ok(!error.message.includes("\x1b"), "no control characters from the network");
  }
});

Deno.test("a wrong secret and a taken name are refused", async () => {
  const { hub, ports, wish } = setUp();
  const wrong = await refusal(join({ ...wish, token: { ...token, secret: "wrong" } }, undefined, ports));
  assert.deepEqual([wrong.exitCode, /not known/.test(wrong.message)], [4, true]);
  hub.names.set("n1", "another key");
  assert.equal((await refusal(join(wish, undefined, ports))).exitCode, 4);
});

Deno.test("an answer that does not fit is refused", async () => {
  const strange = await publicKeyOf(await makeKey());
  const table: [string, Record<string, unknown>, RegExp][] = [
    ["another key", { certificate: await leaf(own, strange, "n1") }, /of another key/],
    ["another node", { certificate: await leaf(own, strange, "n2") }, /for system:node:n2/],
    ["another node's answer", { node: "n2" }, /for node "n2"/],
    ["another CA's certificate", { certificate: await leaf(other, strange, "n1") }, /not issued by/],
    ["another CA", { caBundle: other.certificate }, /CA is not the one of the token/],
    [
      "expired",
      { certificate: await leaf(own, strange, "n1", { atMs: nowMs - 90 * 86_400_000 }) },
      /expired/,
    ],
    ["no certificate", { certificate: "hello" }, /it is no certificate/],
    ["nothing", { certificate: undefined }, /lacks certificate/],
  ];
  for (const [name, changed, said] of table) {
    const { hub, ports, wish } = setUp();
    hub.change = (answer) => ({ ...answer, ...changed });
    const error = await refusal(join(wish, undefined, ports));
    assert.equal(error.exitCode, 4, name);
    assert.match(error.message, said, name);
  }
});

Deno.test("the next hub is asked when one is down, and stands first afterwards", async () => {
  const { hub, ports, wish } = setUp();
  hub.down.add(urlA);
  const { identity } = await join(wish, undefined, ports);
  assert.deepEqual([hub.asked, identity.urls], [[urlA, urlB], [urlB, urlA]]);
  hub.down.add(urlB);
  const error = await refusal(join(wish, undefined, ports));
  assert.equal(error.exitCode, 1);
  assert.match(error.message, /a\.example:10443: connection refused; .*b\.example.*HTTPS_PROXY/);
});

Deno.test("a lost answer costs a second try, not the name", async () => {
  const { hub, ports, wish, state } = setUp();
  hub.lose = 1;
  const error = await refusal(join(wish, undefined, ports));
  assert.deepEqual([error.exitCode, hub.posts.length], [1, 1]);
  const { identity } = await join(wish, undefined, ports);
  assert.equal(identity.key, state.pending);
});

Deno.test("a damaged key of an earlier try gives way", async () => {
  const { ports, wish, state } = setUp();
  state.pending = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
  const { identity } = await join(wish, undefined, ports);
  assert.equal(identity.key, state.pending);
});

Deno.test("joining twice asks nobody, and takes new hub URLs", async () => {
  const { hub, ports, wish } = setUp();
  const { identity } = await join(wish, undefined, ports);
  hub.asked.length = hub.posts.length = 0;
  const again = await join({ ...wish, fallbackNode: "host" }, identity, ports);
  assert.deepEqual(again, { state: "kept", identity });
  const moved = await join({ ...wish, token: { ...token, urls: ["wss://c.example"] } }, identity, ports);
  assert.deepEqual(moved.identity.urls, ["wss://c.example", urlA, urlB]);
  assert.deepEqual([hub.asked, hub.posts], [[], []]);
  assert.match(
    (await refusal(join({ ...wish, node: "n2" }, identity, ports))).message,
    /Cannot join as "n2".*node "n1".*reset/,
  );
});

Deno.test("an expired certificate is replaced for the same key", async () => {
  const { hub, clock, ports, wish } = setUp();
  const { identity } = await join(wish, undefined, ports);
  clock.jump(60 * 86_400_000);
  hub.change = (answer) => answer;
  const fresh = await leaf(own, await publicKeyOf(identity.key), "n1", { atMs: clock.now() });
  hub.change = (answer) => ({ ...answer, certificate: fresh });
  const again = await join(wish, identity, ports);
  assert.deepEqual([again.state, again.identity.key, again.identity.certificate], [
    "joined",
    identity.key,
    fresh,
  ]);
});

Deno.test("a rolled CA is taken over when the hub names both, another cluster is not", async () => {
  const { hub, ports, wish } = setUp();
  const { identity } = await join(wish, undefined, ports);
  const rolled = { ...wish, token: { ...token, authorityHash: authorityHash(other.certificate) } };
  hub.authorityOf = other;
  hub.bundle = own.certificate + other.certificate;
  const again = await join(rolled, identity, ports);
  assert.deepEqual([again.state, again.identity.key], ["joined", identity.key]);
  hub.cluster = "cluster-2";
  assert.match((await refusal(join(rolled, identity, ports))).message, /another cluster.*reset/);
  hub.bundle = other.certificate;
  hub.posts.length = 0;
  const error = await refusal(join(rolled, identity, ports));
  assert.match(error.message, /another cluster: this machine is node "n1" of cluster cluster-1; .*reset/);
  assert.deepEqual([error.exitCode, hub.posts], [4, []]);
});

Deno.test("a token that was cut is told apart before anything happens", () => {
  const whole = formatJoinToken(token);
  assert.deepEqual(readToken(whole), token);
  assert.throws(
    () => readToken(whole.slice(0, -1)),
    (error: UserError) => error.exitCode === 2 && /incomplete/.test(error.message),
  );
});

// ---- files

async function inDirectory(run: (directory: string) => Promise<void> | void): Promise<void> {
  const directory = Deno.makeTempDirSync();
  try {
    await run(directory);
  } finally {
    Deno.removeSync(directory, { recursive: true });
  }
}
const identity: Identity = {
  node: "n1",
  cluster: "c",
  urls: [urlA],
  certificate: "CERT\n",
  key: "KEY\n",
  caBundle: "CA\n",
  joinedMs: 5,
};

Deno.test("an identity comes back from disk, readable by root alone", () =>
  inDirectory((directory) => {
    const root = `${directory}/edge`, umask = Deno.umask(0);
    try {
      assert.equal(loadIdentity(root), undefined);
      savePendingKey(root, "KEY\n");
      assert.deepEqual([loadPendingKey(root), loadIdentity(root)], ["KEY\n", undefined]);
      saveIdentity(root, identity);
    } finally {
      Deno.umask(umask);
    }
    assert.deepEqual(loadIdentity(root), identity);
    saveIdentity(root, { ...identity, certificate: "CERT2\n", key: "KEY2\n" });
    assert.deepEqual(loadIdentity(root), { ...identity, certificate: "CERT2\n", key: "KEY2\n" });
    const mode = (path: string) => ((Deno.statSync(`${root}/${path}`).mode ?? 0) & 0o777).toString(8);
    const files = ["edge.json", "pki/node.key", "pki/node.crt", "pki/ca.crt"];
    assert.deepEqual(["", "pki", ...files].map(mode), ["700", "700", "600", "600", "600", "600"]);
    assert.deepEqual([...Deno.readDirSync(root)].map(({ name }) => name).sort(), ["edge.json", "pki"]);
  }));

Deno.test("a change that was cut off is finished or undone, never mixed", () =>
  inDirectory((root) => {
    saveIdentity(root, identity);
    const put = (directory: string, key: string, names = ["node.key", "node.crt", "ca.crt"]) => {
      Deno.mkdirSync(`${root}/${directory}`);
      for (const name of names) Deno.writeTextFileSync(`${root}/${directory}/${name}`, key);
    };
    put("pki.new", "NEW", ["node.key"]); // cut off while writing
    assert.deepEqual(loadIdentity(root), identity);
    Deno.removeSync(`${root}/pki.new`, { recursive: true });
    put("pki.new", "NEW"); // cut off between the renames
    Deno.renameSync(`${root}/pki`, `${root}/pki.old`);
    assert.deepEqual(loadIdentity(root), { ...identity, key: "NEW", certificate: "NEW", caBundle: "NEW" });
    saveIdentity(root, identity); // what is left over is in nobody's way
    assert.deepEqual(loadIdentity(root), identity);
  }));

Deno.test("a damaged identity is said to be so", () =>
  inDirectory((root) => {
    for (
      const [path, content, said] of [["edge.json", "{", /no JSON/], ["edge.json", "{}", /lacks node/], [
        "pki/ca.crt",
        undefined,
        /pki\/ca\.crt is missing/,
      ]] as const
    ) {
      saveIdentity(root, identity);
      if (content === undefined) Deno.removeSync(`${root}/${path}`);
      else Deno.writeTextFileSync(`${root}/${path}`, content);
      assert.throws(() => loadIdentity(root), (error: UserError) =>
        said.test(error.message) && /edge reset/.test(error.message));
    }
  }));

// ---- checks

const good: MachineFacts = {
  root: true,
  cgroups: { version: 1, controllers: ["cpu", "cpuset", "memory", "pids", "freezer"] },
  runtimeEndpoint: "unix:///run/containerd/containerd.sock",
  runtime: {
    state: "ok",
    info: { name: "containerd", version: "1.6.20~ds1", ready: true, networkReady: true, message: "" },
  },
  cniDirectory: "/etc/cni/net.d",
  cniConfigs: ["10-bridge.conflist"],
  rootDir: "/var/lib/kubeedge",
  freeBytes: 20 * 1024 ** 3,
  hubs: [{ url: urlA, state: "ok", skewMs: 400 }],
  hubNeeded: true,
  kubelet: { running: false, portTaken: false },
};

Deno.test("each check finds its fault and names a remedy", () => {
  assert.deepEqual(preflight(good).filter(({ level }) => level !== "ok"), []);
  const info = { name: "containerd", version: "2.4.2", ready: true, networkReady: true, message: "" };
  const runtime = (changed: Partial<typeof info>): Partial<MachineFacts> => ({
    runtime: { state: "ok", info: { ...info, ...changed } },
  });
  const table: [Partial<MachineFacts>, string, RegExp][] = [
    [{ root: false }, "error user", /not root/],
    [{ cgroups: undefined }, "error cgroups", /none mounted/],
    [{ cgroups: { version: 2, controllers: ["cpu", "cpuset", "pids"] } }, "error cgroups", /v2 lacks memory/],
    [
      { runtime: { state: "failed", reason: "no such file" } },
      "error runtime",
      /does not answer: no such file/,
    ],
    [runtime({ version: "1.5.18" }), "error runtime", /1\.5\.18 is too old/],
    [runtime({ version: "v2" }), "error runtime", /too old/],
    [runtime({ ready: false, message: "starting" }), "error runtime", /not ready: starting/],
    [runtime({ name: "cri-o" }), "warn runtime", /not tested/],
    [{ ...runtime({ networkReady: false }), cniConfigs: [] }, "error pod network", /no CNI configuration/],
    [
      runtime({ networkReady: false, message: "cni plugin not initialized" }),
      "warn pod network",
      /not initialized/,
    ],
    [{ freeBytes: 500 * 1024 ** 2 }, "warn disk", /500 MiB free/],
    [{ freeBytes: 50 * 1024 ** 2 }, "error disk", /50 MiB free/],
    [{ freeBytes: undefined }, "warn disk", /cannot be read/],
    [{ hubs: [{ url: urlA, state: "failed", reason: "timeout" }] }, "error hub", /does not answer: timeout/],
    [{ hubs: [{ url: urlA, state: "failed", reason: "timeout" }], hubNeeded: false }, "warn hub", /timeout/],
    [{ hubs: [...good.hubs, { url: urlB, state: "failed", reason: "timeout" }] }, "warn hub", /b\.example/],
    [{ hubs: [{ url: urlA, state: "ok", skewMs: -6_000 }] }, "warn clock", /6 s behind/],
    [{ hubs: [{ url: urlA, state: "ok", skewMs: 301_000 }] }, "error clock", /301 s ahead of/],
    [{ kubelet: { running: true, portTaken: true } }, "warn kubelet", /a kubelet runs/],
    [{ kubelet: { running: false, portTaken: true } }, "warn kubelet", /10250/],
  ];
  for (const [changed, want, said] of table) {
    const faults = preflight({ ...good, ...changed }).filter(({ level }) => level !== "ok");
    assert.deepEqual(faults.map(({ level, name }) => `${level} ${name}`), [want]);
    assert.match(faults[0]!.text, said);
  }
  assert.deepEqual(checkLines({ level: "error", name: "disk", text: "full", remedy: "make room" }), [
    "✗ disk: full",
    "    → make room",
  ]);
});

Deno.test("the unit quotes what systemd would read otherwise", () => {
  const text = unitText({
    command: ['/opt/a b/kube"edge', "edge", "run", "--config", "/srv/100%/$HOME/e.yaml"],
    rootDir: "/srv/my edge",
    environmentFile: "/srv/my edge/edge.env",
  });
  assert.ok(
    text.includes('ExecStart="/opt/a b/kube\\"edge" edge run --config /srv/100%%/$$HOME/e.yaml\n'),
    text,
  );
  assert.ok(text.includes("KillMode=process\n"));
  assert.deepEqual([unitIsOf(text, "/srv/my edge"), unitIsOf(text, "/srv/my")], [true, false]);
});

Deno.test("reset takes its own pods only", () => {
  const pod = (uid: string | undefined, agent?: string) => ({
    labels: uid === undefined ? {} : { "io.kubernetes.pod.uid": uid } as Record<string, string>,
    annotations: agent === undefined ? {} : { "kubeedge.io/agent": agent } as Record<string, string>,
  });
  const uids = new Set(["u1"]);
  const table: [string, ReturnType<typeof pod>, boolean][] = [
    ["no pod", pod(undefined), false],
    ["known by its directory", pod("u1"), true],
    ["of somebody else", pod("u2"), false],
    ["marked as ours", pod("u2", "/var/lib/kubeedge"), true],
    ["marked as another agent's", pod("u1", "/srv/other"), false],
  ];
  for (const [name, sandbox, want] of table) {
    assert.equal(isOwn(sandbox, "/var/lib/kubeedge", uids), want, name);
  }
});

Deno.test("mounts are read from the kernel", () =>
  assert.ok(mounts().some(({ path, type }) => path === "/proc" && type === "proc")));

// ---- the two requests over real TLS

async function withHub(
  authority: CertificateAuthority,
  run: (url: string, seen: string[]) => Promise<void>,
  answer = "bundle",
): Promise<void> {
  const key = await makeKey();
  const certificate = await issueLeaf(authority, {
    subject: { commonName: "hub" },
    publicKey: await publicKeyOf(key),
    usage: "server",
    addresses: ["127.0.0.1", "localhost"],
    nowMs: Date.now(),
    lifeMs: 3_600_000,
    serial: new Uint8Array([3, serial++]),
  });
  const seen: string[] = [];
  const over = Promise.withResolvers<void>();
  const hub = Deno.serve(
    { hostname: "127.0.0.1", port: 0, cert: certificate, key, onListen: () => {} },
    async (request) => {
      const { pathname } = new URL(request.url);
      seen.push(`${request.method} ${pathname} ${await request.text()}`);
      if (pathname === "/v1/ca") {
        if (answer === "mute") await over.promise;
        return new Response(answer);
      }
      return Response.json({ message: "no" }, { status: 403 });
    },
  );
  try {
    await run(`wss://127.0.0.1:${hub.addr.port}`, seen);
  } finally {
    over.resolve();
    await hub.shutdown();
  }
}
async function withEnvironment(values: Record<string, string>, run: () => Promise<void>): Promise<void> {
  const names = ["HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"];
  const before = names.map((name): [string, string | undefined] => [name, Deno.env.get(name)]);
  for (const name of names) Deno.env.delete(name);
  for (const [name, value] of Object.entries(values)) Deno.env.set(name, value);
  try {
    await run();
  } finally {
    for (const [name, value] of before) {
      value === undefined ? Deno.env.delete(name) : Deno.env.set(name, value);
    }
  }
}
const [tlsOwn, tlsOther] = await Promise.all([
  newAuthority("kubeedge", Date.now()),
  newAuthority("kubeedge", Date.now()),
]);

Deno.test("the CA is fetched from anyone, a secret goes to the pinned hub alone", () =>
  withEnvironment({}, () =>
    withHub(tlsOwn, async (url, seen) => {
      const { bundle, skewMs } = await fetchAuthority(url);
      assert.equal(bundle, "bundle");
      assert.ok(skewMs !== undefined && Math.abs(skewMs) < 2_000, `skew ${skewMs}`);
      assert.deepEqual(await pinnedFetch(tlsOwn.certificate)(url, '{"a":1}'), {
        state: "answered",
        status: 403,
        body: '{"message":"no"}',
      });
      const refused = await pinnedFetch(tlsOther.certificate)(url, '{"secret":1}');
      assert.equal(refused.state, "unreachable");
      assert.deepEqual(seen, ["GET /v1/ca ", 'POST /v1/join {"a":1}']);
    })));

Deno.test("a hub that is away, mute or endless is an error in time", () =>
  withEnvironment({}, async () => {
    const mute = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const port = mute.addr.port;
    mute.close();
    await assert.rejects(fetchAuthority(`wss://127.0.0.1:${port}`), /connecting to 127\.0\.0\.1/);
    assert.equal(
      (await pinnedFetch(tlsOwn.certificate)(`wss://127.0.0.1:${port}`, "{}")).state,
      "unreachable",
    );
    await withHub(
      tlsOwn,
      (url) => assert.rejects(fetchAuthority(url), /longer than 65536 bytes/),
      "x".repeat(200_000),
    );
    await withHub(
      tlsOwn,
      (url) => assert.rejects(fetchAuthority(url, 100), /did not answer within 100 ms/),
      "mute",
    );
  }));

const tinyproxy = ["/usr/bin/tinyproxy", "/usr/sbin/tinyproxy"].find((path) => {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
});

Deno.test({
  name: `both requests pass a real HTTP CONNECT proxy${
    tinyproxy ? "" : " (skipped: tinyproxy is not installed)"
  }`,
  ignore: tinyproxy === undefined,
  fn: () =>
    inDirectory(async (directory) => {
      const free = Deno.listen({ hostname: "127.0.0.1", port: 0 });
      const port = free.addr.port;
      free.close();
      const log = `${directory}/log`;
      Deno.writeTextFileSync(
        `${directory}/conf`,
        `Port ${port}\nListen 127.0.0.1\nAllow 127.0.0.1\nBasicAuth edge pass\nLogFile "${log}"\nLogLevel Connect\nMaxClients 10\n`,
      );
      Deno.chmodSync(directory, 0o777); // it drops its privileges
      const proxy = new Deno.Command(tinyproxy!, {
        args: ["-d", "-c", `${directory}/conf`],
        stdin: "null",
        stdout: "null",
        stderr: "null",
      }).spawn();
      try {
        await listening(port);
        await withHub(tlsOwn, async (url, seen) => {
          const proxied = { HTTPS_PROXY: `http://edge:pass@127.0.0.1:${port}` };
          await withEnvironment(proxied, async () => {
            assert.equal((await fetchAuthority(url)).bundle, "bundle");
            assert.equal((await pinnedFetch(tlsOwn.certificate)(url, "{}")).state, "answered");
          });
          const connects = () => Deno.readTextFileSync(log).split(`CONNECT ${url.slice(6)}`).length - 1;
          const before = connects();
          assert.ok(before >= 2, "the proxy has seen both");
          await withEnvironment({ ...proxied, NO_PROXY: "example.com,127.0.0.1" }, async () => {
            assert.equal((await fetchAuthority(url)).bundle, "bundle");
          });
          assert.equal(connects(), before, "NO_PROXY leads around it");
          await withEnvironment({ HTTPS_PROXY: `http://edge:wrong@127.0.0.1:${port}` }, () =>
            assert.rejects(fetchAuthority(url), /the proxy 127\.0\.0\.1:\d+ refused/));
          assert.equal(seen.length, 3);
        });
      } finally {
        proxy.kill("SIGTERM");
        await proxy.status;
      }
    }),
});

async function listening(port: number): Promise<void> {
  for (let tries = 0;; tries++) {
    try {
      return (await Deno.connect({ hostname: "127.0.0.1", port })).close();
    } catch (error) {
      if (tries > 100) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}
