/**
 * What the JSON bodies say, and the checks on what arrives. The order of a session:
 *
 *     hub                                            edge
 *      | hello {nonce, cluster, versions}              |     the hub speaks first; the socket is TLS with a pinned CA
 *      |---------------------------------------------->|
 *      |      proof {certificate, signature, versions, |     signature: lib/crypto/proof.ts
 *      |             agent, digests}                   |     digests: one per kind of what the edge's store holds
 *      |<----------------------------------------------|
 *      | welcome {session, version, want, time, …}     |     or refuse {code, message} and close
 *      |---------------------------------------------->|     want: the kinds whose digests differ; nothing is sent for the others
 *      |      have {kind, entries}                     |
 *      |<----------------------------------------------|
 *      | object / absent / drop …, synced {kind}       |     numbered; the edge acks what its store has committed
 *      |---------------------------------------------->|
 *      |      ack {up to}, report …, ping              |     reports are numbered by the edge; the hub acks what
 *      |<----------------------------------------------|     Kubernetes has accepted or refused for good
 */

/** The hub's first frame. */
export interface Hello {
  /** 32 bytes, hex. */
  nonce: string;
  /** UID of the kube-system namespace: an edge refuses a hub of another cluster. */
  cluster: string;
  versionLeast: number;
  versionMost: number;
}

export interface Proof {
  /** PEM chain of the node's certificate. */
  certificate: string;
  /** Hex. */
  signature: string;
  versionLeast: number;
  versionMost: number;
  /** Version of the edge program. */
  agent: string;
  /** Random per process start: tells a reconnect of one agent from a second agent with a copied key. */
  instance: string;
  /** Digest (hex) per kind of what the edge holds; a kind that is not named is held empty. */
  digests: Record<string, string>;
}

export interface Welcome {
  session: string;
  version: number;
  node: string;
  /** Kinds of which the edge is to say what it has; the kinds that are not named are in step already. */
  want: string[];
  /** PEM bundle of the CAs in force, when it differs from what the edge named; lets a CA roll. */
  caBundle?: string;
  /** Hub URLs in force. */
  urls?: string[];
  /** The hub's clock, ms since 1970. */
  timeMs: number;
}

/** Why a session is not to be. `retry`: come back with backoff; the others need a person or a new join. */
export const refuseCodes = [
  "retry",
  "version",
  "cluster",
  "certificate",
  "proof",
  "revoked",
  "deleted",
  "replaced",
  "duplicate",
] as const;
export type RefuseCode = typeof refuseCodes[number];

export interface Refuse {
  code: RefuseCode;
  message: string;
}

/** `key`, uid and version (hex) of one held object; version all zero: known to be absent. */
export type HaveEntry = [key: string, uid: string, version: string];
export interface Have {
  kind: string;
  entries: HaveEntry[];
}

/**
 * One report of the edge. `podStatus`: strategic merge patch of the status with the uid as precondition; `podGone`:
 * delete with grace 0 and the uid as precondition; `nodeStatus`: merge patch of the node's status; `event`: create.
 */
export type Report =
  | { report: "podStatus"; namespace: string; name: string; uid: string; status: unknown }
  | { report: "podGone"; namespace: string; name: string; uid: string }
  | { report: "nodeStatus"; status: unknown }
  | { report: "event"; namespace: string; event: unknown };

/** A request of the edge, answered in one response {status, body}. */
export type Request =
  | { request: "token"; namespace: string; serviceAccount: string; spec: unknown }
  | { request: "renew"; csr: string };

export interface Response {
  /** HTTP status as Kubernetes gave it. */
  status: number;
  body: unknown;
}

/** Head of a stream opened by the hub: an HTTP request; an `upgrade` header makes the rest opaque both ways. */
export interface StreamOpen {
  method: string;
  /** Path and query. */
  target: string;
  headers: [string, string][];
}
export interface StreamHead {
  status: number;
  headers: [string, string][];
}

/** The highest version that both speak, or undefined. */
export function commonVersion(
  mine: { least: number; most: number },
  theirs: { least: number; most: number },
): number | undefined {
  const version = Math.min(mine.most, theirs.most);
  return version >= Math.max(mine.least, theirs.least) ? version : undefined;
}

type Json = Record<string, unknown>;
export type Checked<T> = { state: "ok"; value: T } | { state: "bad"; reason: string };

export function readHello(json: Json): Checked<Hello> {
  if (!isHex(json.nonce, 32)) return bad("hello without a nonce of 32 bytes");
  if (typeof json.cluster !== "string" || json.cluster === "") return bad("hello without a cluster");
  if (!isVersion(json.versionLeast) || !isVersion(json.versionMost)) return bad("hello without versions");
  return ok({
    nonce: json.nonce,
    cluster: json.cluster,
    versionLeast: json.versionLeast,
    versionMost: json.versionMost,
  });
}

export function readProof(json: Json): Checked<Proof> {
  if (typeof json.certificate !== "string") return bad("proof without a certificate");
  if (!isHex(json.signature)) return bad("proof without a signature");
  if (!isVersion(json.versionLeast) || !isVersion(json.versionMost)) return bad("proof without versions");
  if (typeof json.agent !== "string" || json.agent.length > 100) return bad("proof without an agent version");
  if (typeof json.instance !== "string" || json.instance.length > 100) {
    return bad("proof without an instance");
  }
  const digests = json.digests;
  if (typeof digests !== "object" || digests === null || Object.keys(digests).length > 100) {
    return bad("proof without digests");
  }
  for (const digest of Object.values(digests)) {
    if (!isHex(digest)) return bad("proof with a digest that is not hex");
  }
  return ok({
    certificate: json.certificate,
    signature: json.signature,
    versionLeast: json.versionLeast,
    versionMost: json.versionMost,
    agent: json.agent,
    instance: json.instance,
    digests: digests as Record<string, string>,
  });
}

/** The bytes that the proof's signature covers besides nonce and hub identity: everything else that the edge claims. */
export function proofParameters(proof: Omit<Proof, "signature" | "certificate">): string {
  const digests = Object.entries(proof.digests).sort(([a], [b]) => (a < b ? -1 : 1));
  return JSON.stringify([proof.versionLeast, proof.versionMost, proof.agent, proof.instance, digests]);
}

export function readWelcome(json: Json): Checked<Welcome> {
  if (typeof json.session !== "string" || typeof json.node !== "string") {
    return bad("welcome without session or node");
  }
  if (!isVersion(json.version) || typeof json.timeMs !== "number") {
    return bad("welcome without version or time");
  }
  if (!isTexts(json.want)) return bad("welcome without the kinds that it wants");
  const { session, version, node, want, timeMs } = json;
  const welcome: Welcome = { session, version, node, want, timeMs };
  if (typeof json.caBundle === "string") welcome.caBundle = json.caBundle;
  if (isTexts(json.urls)) welcome.urls = json.urls;
  return ok(welcome);
}

export function readRefuse(json: Json): Checked<Refuse> {
  const code = refuseCodes.find((known) => known === json.code);
  if (code === undefined || typeof json.message !== "string") return bad("refuse without a known code");
  return ok({ code, message: json.message.slice(0, 1000) });
}

export function readHave(json: Json): Checked<Have> {
  if (typeof json.kind !== "string" || !Array.isArray(json.entries)) {
    return bad("have without kind or entries");
  }
  for (const entry of json.entries) {
    if (
      !Array.isArray(entry) || entry.length !== 3 || typeof entry[0] !== "string" ||
      typeof entry[1] !== "string" || !isHex(entry[2], 8)
    ) {
      return bad("have with an entry that is not [key, uid, version]");
    }
  }
  return ok({ kind: json.kind, entries: json.entries as HaveEntry[] });
}

export function readReport(json: Json): Checked<Report> {
  const { report, namespace, name, uid, status, event } = json;
  switch (report) {
    case "podStatus":
      if (!isText(namespace) || !isText(name) || !isText(uid) || !isObject(status)) {
        return bad("podStatus report is incomplete");
      }
      return ok({ report, namespace, name, uid, status });
    case "podGone":
      if (!isText(namespace) || !isText(name) || !isText(uid)) return bad("podGone report is incomplete");
      return ok({ report, namespace, name, uid });
    case "nodeStatus":
      return isObject(status) ? ok({ report, status }) : bad("nodeStatus report is incomplete");
    case "event":
      if (!isText(namespace) || !isObject(event)) return bad("event report is incomplete");
      return ok({ report, namespace, event });
    default:
      return bad("report of an unknown sort");
  }
}

export function readRequest(json: Json): Checked<Request> {
  const { request, namespace, serviceAccount, spec, csr } = json;
  switch (request) {
    case "token":
      if (!isText(namespace) || !isText(serviceAccount) || !isObject(spec)) {
        return bad("token request is incomplete");
      }
      return ok({ request, namespace, serviceAccount, spec });
    case "renew":
      return isText(csr) ? ok({ request, csr }) : bad("renew request without a CSR");
    default:
      return bad("request of an unknown sort");
  }
}

export function readResponse(json: Json): Checked<Response> {
  if (typeof json.status !== "number") return bad("response without a status");
  return ok({ status: json.status, body: json.body });
}

export function readStreamOpen(json: Json): Checked<StreamOpen> {
  if (!isText(json.method) || !isText(json.target) || !isHeaders(json.headers)) {
    return bad("stream open is incomplete");
  }
  return ok({ method: json.method, target: json.target, headers: json.headers });
}

export function readStreamHead(json: Json): Checked<StreamHead> {
  if (typeof json.status !== "number" || !isHeaders(json.headers)) return bad("stream head is incomplete");
  return ok({ status: json.status, headers: json.headers });
}

/** Names from a peer become parts of URLs at the hub, so only what Kubernetes allows in names passes. */
function isText(value: unknown): value is string {
  return typeof value === "string" && value !== "" && value.length <= 16_384;
}
function isTexts(value: unknown): value is string[] {
  return Array.isArray(value) && value.every((item) => typeof item === "string");
}
function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
function isHeaders(value: unknown): value is [string, string][] {
  return Array.isArray(value) && value.length <= 200 &&
    value.every((pair) =>
      Array.isArray(pair) && pair.length === 2 && pair.every((part) => typeof part === "string")
    );
}
function isVersion(value: unknown): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= 1 && value < 65536;
}
function isHex(value: unknown, bytes?: number): value is string {
  if (typeof value !== "string" || value.length % 2 !== 0 || !/^[0-9a-f]*$/.test(value)) return false;
  return bytes === undefined || value.length === 2 * bytes;
}
function ok<T>(value: T): { state: "ok"; value: T } {
  return { state: "ok", value };
}
function bad(reason: string): { state: "bad"; reason: string } {
  return { state: "bad", reason };
}
