/** Join tokens as Secrets that hold only the hash of the secret; redeemed with optimistic concurrency. */
import type { Clock, Random } from "../core/clock.ts";
import { base64, base64url, equal, fromBase64, hex, text, utf8 } from "../core/bytes.ts";
import { formatJoinToken, secretHash } from "../crypto/join_token.ts";
import { KubeApiError, type KubeClient, objectPath } from "../kube/client.ts";
import type { KubeList, Secret, Taint } from "../kube/types.ts";

export const tokenType = "kubeedge.io/join-token";
const tokenLabel = "kubeedge.io/join-token";
const secretBytes = 24;

/** What a token allows. */
export interface TokenGrant {
  description: string;
  /** ms since 1970. */
  expiresMs: number;
  /** Undefined: as often as wanted. */
  usesLeft: number | undefined;
  /** Glob over node names. */
  nodeNames: string;
  labels: Record<string, string>;
  taints: Taint[];
  /** The node may take over a name that another machine holds. */
  takeover: boolean;
}
export interface TokenInfo extends TokenGrant {
  id: string;
}

export type Redeemed =
  | { state: "ok"; grant: TokenGrant }
  | { state: "refused"; reason: "unknown" | "expired" | "used up" | "name"; message: string };

type Ports = { client: KubeClient; namespace: string; clock: Clock; random: Random };

export async function createToken(
  grant: TokenGrant,
  hub: { urls: string[]; authorityHash: string },
  ports: Ports,
): Promise<{ id: string; token: string }> {
  const { client, namespace, random } = ports;
  const id = hex(random.bytes(5)), secret = base64url(random.bytes(secretBytes));
  await client.create(objectPath("/api/v1", "secrets", namespace), {
    apiVersion: "v1",
    kind: "Secret",
    metadata: { name: nameOf(id), namespace, labels: { [tokenLabel]: "true" } },
    type: tokenType,
    data: { hash: base64(utf8(secretHash(secret))), grant: base64(utf8(JSON.stringify(grant))) },
  });
  return { id, token: formatJoinToken({ urls: hub.urls, authorityHash: hub.authorityHash, id, secret }) };
}

export async function listTokens(
  { client, namespace }: Pick<Ports, "client" | "namespace">,
): Promise<TokenInfo[]> {
  const query = { labelSelector: `${tokenLabel}=true` };
  const list = await client.list<Secret>(objectPath("/api/v1", "secrets", namespace), { query }) as KubeList<
    Secret
  >;
  return list.items.flatMap((secret) => {
    const read = readToken(secret);
    return read ? [{ id: secret.metadata.name.replace(/^kubeedge-token-/, ""), ...read.grant }] : [];
  });
}

/** False when there is no such token. */
export async function deleteToken(
  id: string,
  { client, namespace }: Pick<Ports, "client" | "namespace">,
): Promise<boolean> {
  try {
    await client.delete(objectPath("/api/v1", "secrets", namespace, nameOf(id)));
    return true;
  } catch (error) {
    if (error instanceof KubeApiError && error.status === 404) return false;
    throw error;
  }
}

/**
 * Takes one use of a token; a machine that repeats its join (its answer was lost) takes none. A wrong secret and an
 * unknown id give the same answer.
 */
export async function redeemToken(
  { id, secret, node, repeats }: { id: string; secret: string; node: string; repeats: boolean },
  ports: Ports,
): Promise<Redeemed> {
  const { client, namespace, clock } = ports;
  const refused = (reason: "unknown" | "expired" | "used up" | "name", message: string): Redeemed => ({
    state: "refused",
    reason,
    message,
  });
  const unknown = refused(
    "unknown",
    "the token is not known; it may have been deleted. Create another: kubeedge cloud token create",
  );
  if (!/^[0-9a-f]{10}$/.test(id)) return unknown;
  const path = objectPath("/api/v1", "secrets", namespace, nameOf(id));
  for (;;) {
    const object = await client.find<Secret>(path);
    const token = object && readToken(object);
    if (!object || !token || !equal(utf8(token.hash), utf8(secretHash(secret)))) return unknown;
    const { grant } = token;
    if (clock.now() > grant.expiresMs) {
      return refused("expired", `the token expired at ${new Date(grant.expiresMs).toISOString()}`);
    }
    if (grant.usesLeft !== undefined && grant.usesLeft <= 0 && !repeats) {
      return refused("used up", "the token is used up");
    }
    if (!matchesGlob(grant.nodeNames, node)) {
      return refused("name", `the token is for nodes named ${grant.nodeNames}, not "${node}"`);
    }
    if (grant.usesLeft === undefined || repeats) return { state: "ok", grant };
    const left = { ...grant, usesLeft: grant.usesLeft - 1 };
    if (await writeGrant(object, left, ports)) return { state: "ok", grant: left };
  }
}

/** Gives a use back: the join was refused for another reason. */
export async function returnUse(id: string, ports: Ports): Promise<void> {
  const path = objectPath("/api/v1", "secrets", ports.namespace, nameOf(id));
  for (;;) {
    const object = await ports.client.find<Secret>(path);
    const grant = object && readToken(object)?.grant;
    if (grant?.usesLeft === undefined) return;
    if (await writeGrant(object as Secret, { ...grant, usesLeft: grant.usesLeft + 1 }, ports)) return;
  }
}

/** False when another join was faster: look again. */
async function writeGrant(token: Secret, grant: TokenGrant, { client, namespace }: Ports): Promise<boolean> {
  try {
    await client.replace(objectPath("/api/v1", "secrets", namespace, token.metadata.name), {
      ...token,
      data: { ...token.data, grant: base64(utf8(JSON.stringify(grant))) },
    });
    return true;
  } catch (error) {
    if (error instanceof KubeApiError && error.status === 409) return false;
    throw error;
  }
}

/** Removes tokens that nobody can use any more. */
export async function removeSpentTokens(ports: Ports): Promise<void> {
  for (const token of await listTokens(ports)) {
    if (token.expiresMs < ports.clock.now() - 86_400_000) await deleteToken(token.id, ports);
  }
}

export function matchesGlob(pattern: string, name: string): boolean {
  const expression = pattern.split("*").map((part) => part.replaceAll(/[.+?^${}()|[\]\\]/g, "\\$&")).join(
    ".*",
  );
  return new RegExp(`^${expression}$`).test(name);
}

function nameOf(id: string): string {
  return `kubeedge-token-${id}`;
}
function readToken(secret: Secret): { hash: string; grant: TokenGrant } | undefined {
  try {
    const data = secret.data ?? {};
    if (secret.type !== tokenType || !data.hash || !data.grant) return undefined;
    return {
      hash: text(fromBase64(data.hash)),
      grant: JSON.parse(text(fromBase64(data.grant))) as TokenGrant,
    };
  } catch {
    return undefined;
  }
}
