import assert from "node:assert/strict";
import { stringify } from "yaml";
import { ExitCode, UserError } from "../../lib/core/errors.ts";
import {
  execInfo,
  inClusterConnection,
  readExecCredential,
  readKubeconfig,
} from "../../lib/kube/kubeconfig.ts";
import type { Json } from "../fake/kube_api.ts";

const good = (): Json => ({
  apiVersion: "v1",
  kind: "Config",
  "current-context": "one",
  contexts: [
    { name: "one", context: { cluster: "c1", user: "u1" } },
    { name: "two", context: { cluster: "c2", user: "u2" } },
    { name: "three", context: { cluster: "c1", user: "u3" } },
    { name: "bare", context: { cluster: "c1" } },
  ],
  clusters: [
    { name: "c1", cluster: { server: "https://one:6443/", "certificate-authority-data": btoa("CA ONE") } },
    {
      name: "c2",
      cluster: {
        server: "https://two/prefix",
        "certificate-authority": "pki/ca.crt",
        "proxy-url": "http://proxy:3128",
      },
    },
  ],
  users: [
    { name: "u1", user: { "client-certificate-data": btoa("CERT"), "client-key-data": btoa("KEY") } },
    {
      name: "u2",
      user: { "client-certificate": "/abs/cert", "client-key": "key", username: "joe", password: "secret" },
    },
    {
      name: "u3",
      user: {
        exec: {
          apiVersion: "client.authentication.k8s.io/v1",
          command: "login",
          args: ["a", 1],
          env: [{ name: "A", value: "b" }],
          provideClusterInfo: true,
          installHint: "get it",
        },
      },
    },
    { name: "u4", user: { tokenFile: "token" } },
  ],
});
const files: Record<string, string> = {
  "/home/x/pki/ca.crt": "CA TWO",
  "/abs/cert": "CERT TWO",
  "/home/x/key": "KEY TWO",
};
const readFile = (path: string): string => {
  const found = files[path];
  if (found === undefined) throw new Error(`${path}: no such file`);
  return found;
};
const read = (config: Json, context?: string) =>
  readKubeconfig(
    "/home/x/config",
    typeof config === "string" ? config : stringify(config),
    context,
    readFile,
  );

Deno.test("the current context, with data in the file", () => {
  const connection = read(good());
  assert.equal(connection.server, "https://one:6443");
  assert.deepEqual([connection.certificateAuthority, connection.clientCertificate, connection.clientKey], [
    "CA ONE",
    "CERT",
    "KEY",
  ]);
  assert.equal(connection.source, "/home/x/config (context one)");
});

Deno.test("a named context, with files beside the kubeconfig", () => {
  const connection = read(good(), "two");
  assert.equal(connection.server, "https://two/prefix");
  assert.deepEqual([connection.certificateAuthority, connection.clientCertificate, connection.clientKey], [
    "CA TWO",
    "CERT TWO",
    "KEY TWO",
  ]);
  assert.deepEqual(connection.basic, { username: "joe", password: "secret" });
  assert.equal(connection.proxyUrl, "http://proxy:3128");
});

Deno.test("an exec plug-in, no user at all, and JSON in place of YAML", () => {
  const exec = read(good(), "three").exec;
  assert.deepEqual(exec, {
    apiVersion: "client.authentication.k8s.io/v1",
    command: "login",
    args: ["a", "1"],
    env: { A: "b" },
    provideClusterInfo: true,
    installHint: "get it",
  });
  assert.equal(read(good(), "bare").clientCertificate, undefined);
  assert.equal(read(JSON.stringify(good())).server, "https://one:6443");
});

Deno.test("each bad kubeconfig gets one line that says what is wrong", () => {
  const change = (edit: (config: Json) => void): Json => {
    const config = good();
    edit(config);
    return config;
  };
  const table: { name: string; config: Json; context?: string; want: RegExp }[] = [
    { name: "no YAML", config: "a: [1, 2\nb: {", want: /it is not YAML/ },
    { name: "empty", config: "", want: /not a mapping/ },
    { name: "a list", config: "- a", want: /not a mapping/ },
    { name: "binary", config: "\u0000\u0001\u0002", want: /not YAML|not a mapping/ },
    {
      name: "no current context",
      config: change((c) => delete c["current-context"]),
      want: /no current-context; name one with --context/,
    },
    { name: "an unknown context", config: good(), context: "nine", want: /no context named "nine"/ },
    { name: "contexts is no list", config: change((c) => c.contexts = {}), want: /contexts is not a list/ },
    {
      name: "context without a cluster",
      config: change((c) => c.contexts[0].context = { user: "u1" }),
      want: /context "one" names no cluster/,
    },
    {
      name: "unknown cluster",
      config: change((c) => c.contexts[0].context.cluster = "c9"),
      want: /no cluster named "c9"/,
    },
    {
      name: "unknown user",
      config: change((c) => c.contexts[0].context.user = "u9"),
      want: /no user named "u9"/,
    },
    {
      name: "no server",
      config: change((c) => delete c.clusters[0].cluster.server),
      want: /server of its cluster is "", expected https:/,
    },
    {
      name: "server that is no URL",
      config: change((c) => c.clusters[0].cluster.server = "one:6443"),
      want: /is "one:6443", expected https:/,
    },
    {
      name: "CA that is no base64",
      config: change((c) => c.clusters[0].cluster["certificate-authority-data"] = "%%%"),
      want: /certificate-authority-data is not base64/,
    },
    {
      name: "CA file that is not there",
      config: change((c) => c.clusters[1].cluster["certificate-authority"] = "gone"),
      context: "two",
      want: /certificate-authority \/home\/x\/gone cannot be read: .*no such file/,
    },
    {
      name: "unverified TLS",
      config: change((c) => c.clusters[0].cluster["insecure-skip-tls-verify"] = true),
      want: /insecure-skip-tls-verify is not supported/,
    },
    {
      name: "another server name",
      config: change((c) => c.clusters[0].cluster["tls-server-name"] = "x"),
      want: /tls-server-name is not supported/,
    },
    {
      name: "certificate without key",
      config: change((c) => delete c.users[0].user["client-key-data"]),
      want: /only one of client-certificate and client-key/,
    },
    {
      name: "auth-provider",
      config: change((c) => c.users[0].user["auth-provider"] = { name: "gcp" }),
      want: /auth-provider is gone/,
    },
    {
      name: "exec of an old version",
      config: change((c) => c.users[2].user.exec.apiVersion = "client.authentication.k8s.io/v1alpha1"),
      context: "three",
      want: /exec.apiVersion is/,
    },
    {
      name: "exec without a command",
      config: change((c) => delete c.users[2].user.exec.command),
      context: "three",
      want: /exec.command is missing/,
    },
    {
      name: "exec that is text",
      config: change((c) => c.users[2].user.exec = "login"),
      context: "three",
      want: /exec of its user is not a mapping/,
    },
  ];
  for (const { name, config, context, want } of table) {
    assert.throws(() => read(config, context), (error: unknown) => {
      assert.ok(error instanceof UserError, `${name}: ${String(error)}`);
      assert.equal(error.exitCode, ExitCode.usage, name);
      assert.match(error.message, want, name);
      assert.match(error.message, /^Cannot use kubeconfig \/home\/x\/config: /, name);
      assert.doesNotMatch(error.message, /\n/, `${name}: one line`);
      assert.doesNotMatch(error.message, /KEY|secret/, `${name}: no secret`);
      return true;
    });
  }
});

Deno.test("the pod's own service account", () => {
  const env = (values: Record<string, string>) => (name: string) => values[name];
  const ca = (path: string) => path.endsWith("/ca.crt") ? "CA" : assert.fail(path);
  assert.equal(inClusterConnection(env({}), ca), undefined);
  const connection = inClusterConnection(
    env({ KUBERNETES_SERVICE_HOST: "fd00::1", KUBERNETES_SERVICE_PORT: "443" }),
    ca,
  );
  assert.equal(connection?.server, "https://[fd00::1]:443");
  assert.match(connection?.tokenFile ?? "", /serviceaccount\/token$/);
  assert.throws(
    () => inClusterConnection(env({ KUBERNETES_SERVICE_HOST: "h", KUBERNETES_SERVICE_PORT: "1" }), readFile),
    UserError,
  );
});

Deno.test("what an exec plug-in prints is read, and never quoted", () => {
  const plugin = read(good(), "three").exec!;
  const output = (status: Json, more: Json = {}) =>
    JSON.stringify({ kind: "ExecCredential", apiVersion: plugin.apiVersion, status, ...more });
  assert.deepEqual(
    readExecCredential(plugin, output({ token: "t", expirationTimestamp: "2026-01-01T00:00:00Z" })),
    {
      token: "t",
      clientCertificate: undefined,
      clientKey: undefined,
      expiresMs: Date.UTC(2026, 0, 1),
    },
  );
  assert.equal(
    readExecCredential(plugin, output({ clientCertificateData: "c", clientKeyData: "k" })).clientKey,
    "k",
  );
  const bad: [string, RegExp][] = [
    ["token-secret", /printed no JSON/],
    ["null", /printed no ExecCredential/],
    [output({ token: "secret" }, { kind: "Other" }), /expected ExecCredential/],
    [
      output({ token: "secret" }, { apiVersion: "client.authentication.k8s.io/v1beta1" }),
      /expected ExecCredential client.authentication.k8s.io\/v1/,
    ],
    [output(undefined), /has no status/],
    [output({ clientCertificateData: "secret" }), /neither a token nor/],
  ];
  for (const [stdout, want] of bad) {
    assert.throws(() => readExecCredential(plugin, stdout), (error: unknown) => {
      assert.ok(error instanceof UserError);
      assert.match(error.message, want);
      assert.doesNotMatch(error.message, /secret|\n/);
      return true;
    });
  }
  const info = JSON.parse(execInfo(read(good(), "three"), plugin));
  assert.equal(info.spec.cluster.server, "https://one:6443");
  assert.equal(atob(info.spec.cluster["certificate-authority-data"]), "CA ONE");
});
