/** The transport of lib/kube/client.ts: Deno's fetch with the credentials of a kubeconfig. */
import { UserError } from "../core/errors.ts";
import { base64, utf8 } from "../core/bytes.ts";
import type { HttpRequest, HttpResponse, HttpSend } from "../kube/client.ts";
import {
  type ExecCredential,
  execInfo,
  inClusterConnection,
  type KubeConnection,
  readExecCredential,
  readKubeconfig,
} from "../kube/kubeconfig.ts";

/** A service account token is read again after this long (kubelets rotate it hourly). */
const tokenFileMs = 60_000;
/** A credential is renewed this long before it ends. */
const credentialEarlyMs = 30_000;

/** The connection that `--kubeconfig` names (several files as in KUBECONFIG: the first that exists), or the pod's own. */
export function loadConnection(path: string | undefined, context: string | undefined): KubeConnection {
  const readFile = (file: string) => Deno.readTextFileSync(file);
  if (path !== undefined) {
    let yaml: string;
    try {
      yaml = Deno.readTextFileSync(path);
    } catch (error) {
      const reason = error instanceof Deno.errors.NotFound ? "no such file" : String(error);
      throw new UserError(`Cannot read kubeconfig ${path}: ${reason}`, 2);
    }
    return readKubeconfig(path, yaml, context, readFile);
  }
  const connection = inClusterConnection((name) => Deno.env.get(name), readFile);
  if (!connection) {
    throw new UserError(
      "No cluster given: name one with --kubeconfig FILE (the embedded API server is not part of this version)",
      2,
    );
  }
  return connection;
}

/** Sends requests over one HTTP/2 connection pool; credentials are renewed as they end or are refused. */
export function kubeHttp(connection: KubeConnection): HttpSend {
  let credential: ExecCredential | undefined;
  let client: Deno.HttpClient | undefined;
  let tokenRead: { token: string; readMs: number } | undefined;

  const prepare = async (): Promise<{ client: Deno.HttpClient; authorization: string | undefined }> => {
    if (
      connection.exec && (!credential || Date.now() > (credential.expiresMs ?? Infinity) - credentialEarlyMs)
    ) {
      const before = credential?.clientCertificate;
      credential = await runExec(connection);
      if (client && credential.clientCertificate !== before) {
        client.close();
        client = undefined;
      }
    }
    client ??= httpClient(connection, credential);
    return { client, authorization: authorization() };
  };
  const authorization = (): string | undefined => {
    if (credential?.token) return `Bearer ${credential.token}`;
    if (connection.tokenFile !== undefined) {
      if (!tokenRead || Date.now() - tokenRead.readMs > tokenFileMs) {
        tokenRead = { token: Deno.readTextFileSync(connection.tokenFile).trim(), readMs: Date.now() };
      }
      return `Bearer ${tokenRead.token}`;
    }
    if (connection.token !== undefined) return `Bearer ${connection.token}`;
    const basic = connection.basic;
    return basic ? `Basic ${base64(utf8(`${basic.username}:${basic.password}`))}` : undefined;
  };
  const once = async (request: HttpRequest): Promise<HttpResponse> => {
    const { client, authorization } = await prepare();
    const headers: [string, string][] = [...request.headers];
    if (authorization !== undefined) headers.push(["authorization", authorization]);
    const signals: AbortSignal[] = [];
    if (request.signal) signals.push(request.signal);
    if (request.timeoutMs !== undefined) signals.push(AbortSignal.timeout(request.timeoutMs));
    const init: RequestInit & { client: Deno.HttpClient } = {
      method: request.method,
      headers,
      client,
      redirect: "manual",
    };
    if (request.body !== undefined) init.body = request.body;
    const [only] = signals;
    if (only) init.signal = signals.length === 1 ? only : AbortSignal.any(signals);
    const response = await fetch(connection.server + request.target, init);
    return { status: response.status, headers: response.headers, body: response.body };
  };
  return async (request) => {
    const response = await once(request);
    if (response.status !== 401 || (!connection.exec && connection.tokenFile === undefined)) return response;
    await response.body?.cancel();
    credential = undefined;
    tokenRead = undefined;
    return await once(request);
  };
}

function httpClient(connection: KubeConnection, credential: ExecCredential | undefined): Deno.HttpClient {
  const cert = credential?.clientCertificate ?? connection.clientCertificate;
  const key = credential?.clientKey ?? connection.clientKey;
  return Deno.createHttpClient({
    ...(connection.certificateAuthority ? { caCerts: [connection.certificateAuthority] } : {}),
    ...(cert !== undefined && key !== undefined ? { cert, key } : {}),
    ...(connection.proxyUrl ? { proxy: { url: connection.proxyUrl } } : {}),
  });
}

async function runExec(connection: KubeConnection): Promise<ExecCredential> {
  const plugin = connection.exec;
  if (!plugin) throw new Error("no exec plug-in");
  let output: Deno.CommandOutput;
  try {
    output = await new Deno.Command(plugin.command, {
      args: plugin.args,
      env: { ...plugin.env, KUBERNETES_EXEC_INFO: execInfo(connection, plugin) },
      stdin: "null",
      stdout: "piped",
      stderr: "inherit",
      signal: AbortSignal.timeout(60_000),
    }).output();
  } catch (error) {
    const hint = plugin.installHint ? `\n${plugin.installHint}` : "";
    throw new UserError(
      `Cannot run credential plug-in ${plugin.command} of ${connection.source}: ${String(error)}${hint}`,
    );
  }
  if (!output.success) {
    throw new UserError(`Credential plug-in ${plugin.command} ended with code ${output.code}`);
  }
  return readExecCredential(plugin, new TextDecoder().decode(output.stdout));
}
