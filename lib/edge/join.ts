/**
 * Joining a cluster: token → the hub's CA, checked against the token's hash → key and request → certificate. Nothing
 * secret leaves the node before the hub has shown a certificate of that CA.
 */
import { createHash } from "node:crypto";
import { hex } from "../core/bytes.ts";
import type { Clock } from "../core/clock.ts";
import { errorText, ExitCode, UserError } from "../core/errors.ts";
import { type JoinToken, parseJoinToken } from "../crypto/join_token.ts";
import { makeKey, makeRequest, publicKeyOf, readCertificate } from "../crypto/x509.ts";
import type { Taint } from "../kube/types.ts";
import { authorityHashes, type Identity, judgeIdentity, nodeSubject, pinnable } from "./identity.ts";

/** What a hub says of itself before it is proved. */
export interface HubAuthority {
  /** PEM. */
  bundle: string;
  /** This machine's clock minus the hub's, exact to a second; undefined when the hub did not say. */
  skewMs: number | undefined;
}

/** `unreachable`: nothing was sent. `lost`: the request may have been granted. */
export type JoinReply =
  | { state: "answered"; status: number; body: string }
  | { state: "unreachable"; reason: string }
  | { state: "lost"; reason: string };

export interface JoinPorts {
  /** GET /v1/ca over a connection that nobody vouches for. Throws with what failed. */
  authority(url: string): Promise<HubAuthority>;
  /** POST /v1/join over a connection pinned to `certificate` (PEM). */
  post(certificate: string, url: string, json: string): Promise<JoinReply>;
  /** The key of an earlier try whose answer was lost: with another one the name would count as taken. */
  pendingKey(): string | undefined;
  /** Durable when it resolves, because the cloud binds the name to the key. */
  keepKey(key: string): void;
  clock: Clock;
  /** One line for the person who waits. */
  progress(line: string): void;
}

export interface JoinWish {
  token: JoinToken;
  /** Undefined: the name that the machine has, else `fallbackNode`. */
  node: string | undefined;
  fallbackNode: string;
  labels: Record<string, string>;
  taints: Taint[];
  /** As Kubernetes names it: amd64, arm64. */
  architecture: string;
}

/** `kept`: the machine is a node of this cluster already. */
export type Joined = { state: "joined" | "kept"; identity: Identity };

export function readToken(token: string): JoinToken {
  const parsed = parseJoinToken(token);
  if (parsed.state === "bad") {
    throw new UserError(`Cannot use the join token: ${parsed.reason}`, ExitCode.usage);
  }
  return parsed.token;
}

/** Whether `identity` is in force and of the token's cluster: then no hub is needed. */
export function holds(identity: Identity | undefined, token: JoinToken, nowMs: number): boolean {
  return identity !== undefined && authorityHashes(identity.caBundle).includes(token.authorityHash) &&
    judgeIdentity(identity, nowMs).state === "ok";
}

/** Throws UserError; 4 where the hub or its CA refuses, 1 where no hub can be asked. */
export async function join(wish: JoinWish, current: Identity | undefined, ports: JoinPorts): Promise<Joined> {
  const { token } = wish;
  const node = wish.node ?? current?.node ?? wish.fallbackNode;
  if (current && holds(current, token, ports.clock.now())) {
    refuseOtherName(current, node);
    return { state: "kept", identity: { ...current, urls: unique([...token.urls, ...current.urls]) } };
  }
  const authority = await pinAuthority(token, ports);
  if (current) {
    const known = authorityHashes(current.caBundle);
    if (!authorityHashes(authority.bundle).some((hash) => known.includes(hash))) {
      throw otherCluster(current);
    }
    refuseOtherName(current, node);
  }
  const key = current?.key ?? await pendingKey(ports) ?? await newKey(ports);
  const csr = await makeRequest(key, { commonName: nodeSubject(node), organization: "system:nodes" });
  const { labels, taints, architecture } = wish;
  const request = JSON.stringify({
    tokenId: token.id,
    secret: token.secret,
    node,
    csr,
    architecture,
    labels,
    taints,
  });
  const { url, body } = await ask(node, request, authority, ports);
  const identity = await readIdentity(body, { node, key, token, url, nowMs: ports.clock.now() });
  if (current && identity.cluster !== current.cluster) throw otherCluster(current);
  return { state: "joined", identity };
}

function otherCluster(current: Identity): UserError {
  return new UserError(
    `Cannot join another cluster: this machine is node "${current.node}" of cluster ${current.cluster}; run "kubeedge edge reset" first`,
    ExitCode.refused,
  );
}

function refuseOtherName(current: Identity, node: string): void {
  if (current.node === node) return;
  throw new UserError(
    `Cannot join as "${node}": this machine is node "${current.node}" of the same cluster already; run "kubeedge edge reset" first to change the name`,
    ExitCode.refused,
  );
}

/** A key that was damaged on disk gives way to a new one. */
async function pendingKey(ports: JoinPorts): Promise<string | undefined> {
  const key = ports.pendingKey();
  return key === undefined ? undefined : await publicKeyOf(key).then(() => key, () => undefined);
}

async function newKey({ keepKey }: JoinPorts): Promise<string> {
  const key = await makeKey();
  keepKey(key);
  return key;
}

export interface PinnedAuthority {
  /** The one CA that the token vouches for (PEM). */
  certificate: string;
  /** All that the hub named; only `certificate` is proved. */
  bundle: string;
  /** Hubs to ask, the one that answered first. */
  urls: string[];
}

/** Asks the hubs in turn for their CA. A wrong one ends the search: somebody is in between. */
export async function pinAuthority(
  token: JoinToken,
  { authority, progress }: Pick<JoinPorts, "authority" | "progress">,
): Promise<PinnedAuthority> {
  const failures: string[] = [];
  for (const [index, url] of token.urls.entries()) {
    let bundle: string;
    try {
      bundle = (await authority(url)).bundle;
    } catch (error) {
      failures.push(`${url}: ${errorText(error)}`);
      continue;
    }
    const pinned = pinnable(bundle).find(({ hash }) => hash === token.authorityHash);
    if (!pinned) {
      throw new UserError(
        `Cannot trust hub ${url}: its CA is not the one of the token, so nothing secret was sent. Either something between here and the hub ` +
          `intercepts the connection, or the CA was replaced since; create a new token with "kubeedge cloud token create"`,
        ExitCode.refused,
      );
    }
    progress(`Hub ${url}: CA matches the token`);
    return {
      certificate: pinned.certificate,
      bundle,
      urls: unique([...token.urls.slice(index), ...token.urls.slice(0, index)]),
    };
  }
  throw new UserError(
    `Cannot reach a hub (${
      failures.join("; ")
    }); check network, firewall and HTTPS_PROXY, then run the command again`,
  );
}

async function ask(
  node: string,
  request: string,
  authority: PinnedAuthority,
  { post }: JoinPorts,
): Promise<{ url: string; body: string }> {
  const failures: string[] = [];
  for (const url of authority.urls) {
    const reply = await post(authority.certificate, url, request);
    if (reply.state === "unreachable") {
      failures.push(`${url}: ${reply.reason}`);
      continue;
    }
    if (reply.state === "lost") {
      throw new UserError(
        `Cannot join node "${node}": the answer of ${url} was lost (${reply.reason}); run the command again, the key is kept`,
      );
    }
    if (reply.status === 200) return { url, body: reply.body };
    const refused = reply.status >= 400 && reply.status < 500;
    throw new UserError(
      `Cannot join node "${node}": ${messageOf(reply.body) ?? `hub ${url} answered ${reply.status}`}${
        refused ? "" : "; run the command again later"
      }`,
      refused ? ExitCode.refused : ExitCode.failure,
    );
  }
  throw new UserError(`Cannot join node "${node}": no hub can be asked safely (${failures.join("; ")})`);
}

function messageOf(body: string): string | undefined {
  const message = record(body).message;
  // From the network to a terminal: no control characters, no essay.
  return typeof message === "string" && message !== ""
    ? message.replaceAll(/[\p{Cc}\p{Cf}]+/gu, " ").slice(0, 500)
    : undefined;
}

interface Expected {
  node: string;
  key: string;
  token: JoinToken;
  url: string;
  nowMs: number;
}

async function readIdentity(body: string, { node, key, token, url, nowMs }: Expected): Promise<Identity> {
  const wrong = (reason: string) =>
    new UserError(
      `Cannot join node "${node}": the answer of hub ${url} cannot be used: ${reason}`,
      ExitCode.refused,
    );
  const answer = record(body);
  const { certificate, caBundle, cluster } = answer;
  if (
    typeof certificate !== "string" || typeof caBundle !== "string" || typeof cluster !== "string" ||
    cluster === ""
  ) {
    throw wrong("it lacks certificate, CA or cluster; cloud and edge may be of versions that do not fit");
  }
  if (answer.node !== node) throw wrong(`it is for node "${String(answer.node).slice(0, 80)}"`);
  if (!authorityHashes(caBundle).includes(token.authorityHash)) {
    throw wrong("its CA is not the one of the token");
  }
  const urls = Array.isArray(answer.urls)
    ? answer.urls.filter((other): other is string =>
      typeof other === "string" && /^wss:\/\/[^/\s]+$/.test(other)
    )
    : [];
  const identity: Identity = {
    node,
    cluster,
    urls: unique([url, ...urls]),
    certificate,
    key,
    caBundle,
    joinedMs: nowMs,
  };
  const judged = judgeIdentity(identity, nowMs);
  if (judged.state === "bad") throw wrong(judged.reason);
  if (
    readCertificate(certificate).keyHash !== hex(createHash("sha256").update(await publicKeyOf(key)).digest())
  ) throw wrong("its certificate is of another key");
  return identity;
}

/** The members of a JSON object; none of anything else. */
function record(json: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(json);
    return typeof value === "object" && value !== null ? value as Record<string, unknown> : {};
  } catch {
    return {};
  }
}

function unique(urls: string[]): string[] {
  return [...new Set(urls)];
}
