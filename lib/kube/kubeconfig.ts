/**
 * Reads a kubeconfig (client.config/v1) into what a connection needs, or the service account of the pod that we run in.
 * Files and programs are ports: lib/sys/kube_files.ts has the real ones.
 */
import { parse } from "yaml";
import { base64, fromBase64, text, utf8 } from "../core/bytes.ts";
import { errorText, ExitCode, UserError } from "../core/errors.ts";

export interface ExecPlugin {
  apiVersion: string;
  command: string;
  args: string[];
  env: Record<string, string>;
  provideClusterInfo: boolean;
  installHint: string | undefined;
}

/** Everything needed to talk to one API server. */
export interface KubeConnection {
  /** `https://host:port`, no trailing slash, maybe with a path prefix. */
  server: string;
  /** PEM; undefined: the system's roots. */
  certificateAuthority: string | undefined;
  clientCertificate: string | undefined;
  clientKey: string | undefined;
  token: string | undefined;
  /** Read again as it rotates. */
  tokenFile: string | undefined;
  basic: { username: string; password: string } | undefined;
  exec: ExecPlugin | undefined;
  proxyUrl: string | undefined;
  /** For messages. */
  source: string;
}

/** What is read besides the kubeconfig itself. Throws on what cannot be read. */
export type ReadFile = (path: string) => string;

/** Reads `path` (already in hand as `yaml`); `context` in place of current-context. Throws UserError (usage). */
export function readKubeconfig(
  path: string,
  yaml: string,
  context: string | undefined,
  readFile: ReadFile,
): KubeConnection {
  const fail = (problem: string): never => {
    throw new UserError(`Cannot use kubeconfig ${path}: ${problem}`, ExitCode.usage);
  };
  let document: unknown;
  try {
    document = parse(yaml);
  } catch (error) {
    return fail(`it is not YAML: ${errorText(error).slice(0, 200)}`);
  }
  const config = record(document) ?? fail("it is not a mapping with clusters, users and contexts");
  const named = (list: string, member: string, name: string): Record<string, unknown> => {
    const items = Array.isArray(config[list]) ? config[list] : fail(`${list} is not a list`);
    const item = items.map(record).find((candidate) => candidate?.name === name);
    return record(item?.[member]) ?? fail(`it has no ${member} named "${name}"`);
  };
  const contextName = context ??
    (string(config["current-context"]) || fail("it has no current-context; name one with --context"));
  const chosen = named("contexts", "context", contextName);
  const cluster = named(
    "clusters",
    "cluster",
    string(chosen.cluster) || fail(`context "${contextName}" names no cluster`),
  );
  const userName = string(chosen.user);
  const user = userName ? named("users", "user", userName) : {};

  const directory = path.includes("/") ? path.slice(0, path.lastIndexOf("/")) : ".";
  const at = (file: string) => file.startsWith("/") ? file : `${directory}/${file}`;
  const pem = (source: Record<string, unknown>, member: string): string | undefined => {
    const data = string(source[`${member}-data`]), file = string(source[member]);
    if (data) {
      try {
        return text(fromBase64(data.replaceAll(/\s/g, "")));
      } catch {
        return fail(`${member}-data is not base64`);
      }
    }
    if (!file) return undefined;
    try {
      return readFile(at(file));
    } catch (error) {
      return fail(`${member} ${at(file)} cannot be read: ${errorText(error)}`);
    }
  };

  const server = string(cluster.server) ?? "";
  if (!/^https?:\/\/[^\s/]+/.test(server)) {
    fail(`server of its cluster is "${server}", expected https://HOST:PORT`);
  }
  if (cluster["insecure-skip-tls-verify"] === true) {
    fail("insecure-skip-tls-verify is not supported; give the cluster's certificate-authority instead");
  }
  if (string(cluster["tls-server-name"])) {
    fail("tls-server-name is not supported; use a server name that is in its certificate");
  }
  const clientCertificate = pem(user, "client-certificate"), clientKey = pem(user, "client-key");
  if ((clientCertificate === undefined) !== (clientKey === undefined)) {
    fail(`user "${userName}" has only one of client-certificate and client-key`);
  }
  if (user["auth-provider"] !== undefined) fail("auth-provider is gone from Kubernetes; use an exec plug-in");
  const username = string(user.username), tokenFile = string(user.tokenFile);
  return {
    server: server.replace(/\/+$/, ""),
    certificateAuthority: pem(cluster, "certificate-authority"),
    clientCertificate,
    clientKey,
    token: string(user.token),
    tokenFile: tokenFile ? at(tokenFile) : undefined,
    basic: username ? { username, password: string(user.password) ?? "" } : undefined,
    exec: user.exec === undefined ? undefined : readExec(user.exec, fail),
    proxyUrl: string(cluster["proxy-url"]),
    source: `${path} (context ${contextName})`,
  };
}

const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount";

/** The connection of a pod, or undefined outside of one. */
export function inClusterConnection(
  env: (name: string) => string | undefined,
  readFile: ReadFile,
): KubeConnection | undefined {
  const host = env("KUBERNETES_SERVICE_HOST"), port = env("KUBERNETES_SERVICE_PORT");
  if (!host || !port) return undefined;
  let certificateAuthority: string;
  try {
    certificateAuthority = readFile(`${serviceAccount}/ca.crt`);
  } catch (error) {
    throw new UserError(`Cannot use the pod's service account: ${errorText(error)}`, ExitCode.usage);
  }
  return {
    server: `https://${host.includes(":") ? `[${host}]` : host}:${port}`,
    certificateAuthority,
    clientCertificate: undefined,
    clientKey: undefined,
    token: undefined,
    tokenFile: `${serviceAccount}/token`,
    basic: undefined,
    exec: undefined,
    proxyUrl: undefined,
    source: "the pod's service account",
  };
}

/** What an exec plug-in gave. */
export interface ExecCredential {
  token: string | undefined;
  clientCertificate: string | undefined;
  clientKey: string | undefined;
  /** ms since 1970; undefined: good until refused. */
  expiresMs: number | undefined;
}

/** The KUBERNETES_EXEC_INFO of a plug-in (client.authentication.k8s.io). */
export function execInfo(connection: KubeConnection, plugin: ExecPlugin): string {
  const spec: Record<string, unknown> = { interactive: false };
  if (plugin.provideClusterInfo) {
    const authority = connection.certificateAuthority;
    spec.cluster = {
      server: connection.server,
      ...(authority ? { "certificate-authority-data": base64(utf8(authority)) } : {}),
    };
  }
  return JSON.stringify({ kind: "ExecCredential", apiVersion: plugin.apiVersion, spec });
}

/** Reads what a plug-in printed. Throws UserError without quoting the output, which may hold a credential. */
export function readExecCredential(plugin: ExecPlugin, stdout: string): ExecCredential {
  const fail = (problem: string): never => {
    throw new UserError(`Cannot use credential plug-in ${plugin.command}: ${problem}`);
  };
  let output: unknown;
  try {
    output = JSON.parse(stdout);
  } catch {
    return fail("it printed no JSON");
  }
  const credential = record(output) ?? fail("it printed no ExecCredential");
  if (credential.kind !== "ExecCredential" || credential.apiVersion !== plugin.apiVersion) {
    fail(
      `it printed ${String(credential.kind)} ${
        String(credential.apiVersion)
      }, expected ExecCredential ${plugin.apiVersion}`,
    );
  }
  const status = record(credential.status) ?? fail("its ExecCredential has no status");
  const token = string(status.token), clientCertificate = string(status.clientCertificateData);
  const clientKey = string(status.clientKeyData), expiry = string(status.expirationTimestamp);
  if (!token && !(clientCertificate && clientKey)) {
    fail("its status has neither a token nor a client certificate with key");
  }
  return { token, clientCertificate, clientKey, expiresMs: expiry ? Date.parse(expiry) : undefined };
}

function readExec(value: unknown, fail: (problem: string) => never): ExecPlugin {
  const exec = record(value) ?? fail("exec of its user is not a mapping");
  const apiVersion = string(exec.apiVersion) ?? "";
  if (!/^client\.authentication\.k8s\.io\/v1(beta1)?$/.test(apiVersion)) {
    fail(`exec.apiVersion is "${apiVersion}", expected client.authentication.k8s.io/v1`);
  }
  const command = string(exec.command) || fail("exec.command is missing");
  const args = Array.isArray(exec.args) ? exec.args.map(String) : [];
  const env: Record<string, string> = {};
  for (const item of Array.isArray(exec.env) ? exec.env.map(record) : []) {
    if (item) env[String(item.name)] = String(item.value);
  }
  const provideClusterInfo = exec.provideClusterInfo === true;
  return { apiVersion, command, args, env, provideClusterInfo, installHint: string(exec.installHint) };
}

function record(value: unknown): Record<string, unknown> | undefined {
  return typeof value === "object" && value !== null && !Array.isArray(value)
    ? value as Record<string, unknown>
    : undefined;
}
function string(value: unknown): string | undefined {
  return typeof value === "string" && value !== "" ? value : undefined;
}
