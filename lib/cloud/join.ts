/**
 * The join endpoint's logic: a token and a certificate request in, a certificate out. The Node object is made here, by
 * the cloud's own identity, because NodeRestriction rightly forbids a node to give itself role labels or taints.
 */
import { createHash } from "node:crypto";
import type { Clock, Random } from "../core/clock.ts";
import { hex } from "../core/bytes.ts";
import type { Logger } from "../core/log.ts";
import { checkRequest } from "../crypto/x509.ts";
import { KubeApiError, type KubeClient, objectPath } from "../kube/client.ts";
import type { Node } from "../kube/types.ts";
import type { Authority } from "./authority.ts";
import { redeemToken, returnUse, type TokenGrant } from "./join_tokens.ts";
import type { NodeRecords } from "./node_records.ts";

export interface JoinRequest {
  tokenId: string;
  secret: string;
  node: string;
  csr: string;
  architecture: string;
  labels: Record<string, string>;
  taints: { key: string; value?: string; effect: "NoSchedule" | "PreferNoSchedule" | "NoExecute" }[];
}
export interface JoinAnswer {
  certificate: string;
  caBundle: string;
  cluster: string;
  node: string;
  urls: string[];
}
export type JoinOutcome = { status: 200; answer: JoinAnswer } | {
  status: 400 | 403 | 409 | 503;
  message: string;
};

export interface JoinPorts {
  client: KubeClient;
  namespace: string;
  authority: Authority;
  records: NodeRecords;
  cluster: string;
  urls: string[];
  clock: Clock;
  random: Random;
  log: Logger;
}

export function readJoinRequest(json: unknown): JoinRequest | string {
  if (typeof json !== "object" || json === null) return "the body is not a JSON object";
  const { tokenId, secret, node, csr, architecture, labels, taints } = json as Record<string, unknown>;
  if (typeof tokenId !== "string" || typeof secret !== "string" || typeof csr !== "string") {
    return "tokenId, secret or csr is missing";
  }
  if (
    typeof node !== "string" || node.length > 253 ||
    !/^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/.test(node)
  ) {
    return `"${String(node).slice(0, 80)}" is no node name: expected lower case letters, digits, "-" and "."`;
  }
  const texts = typeof labels === "object" && labels !== null &&
    Object.values(labels).every((value) => typeof value === "string");
  return {
    tokenId,
    secret,
    node,
    csr,
    architecture: typeof architecture === "string" ? architecture : "",
    labels: texts ? labels as Record<string, string> : {},
    taints: Array.isArray(taints) ? taints as JoinRequest["taints"] : [],
  };
}

export async function join(request: JoinRequest, ports: JoinPorts): Promise<JoinOutcome> {
  const { authority, records, log } = ports;
  const { node } = request;
  const checked = await checkRequest(request.csr);
  if (checked.state === "bad") {
    return { status: 400, message: `the certificate request cannot be used: ${checked.reason}` };
  }
  const keyHash = hex(createHash("sha256").update(checked.publicKey).digest());
  const repeats = records.get(node)?.keyHash === keyHash;
  const redeemed = await redeemToken(
    { id: request.tokenId, secret: request.secret, node, repeats },
    ports,
  );
  if (redeemed.state === "refused") {
    log.warn("Join refused", { node, reason: redeemed.reason });
    return { status: 403, message: redeemed.message };
  }
  const refused = async (status: 403 | 409, reason: string, message: string): Promise<JoinOutcome> => {
    log.warn("Join refused", { node, reason });
    if (!repeats) await returnUse(request.tokenId, ports);
    return { status, message };
  };
  const existing = await ports.client.find<Node>(objectPath("/api/v1", "nodes", undefined, node));
  if (
    existing && !records.get(node) && existing.metadata.labels?.["node-role.kubernetes.io/edge"] === undefined
  ) {
    return await refused(
      409,
      "no edge node",
      `a node "${node}" that is no edge node exists in the cluster; choose another name with --name`,
    );
  }
  const claim = await records.claim(node, keyHash, { takeover: redeemed.grant.takeover });
  if (claim.state === "refused") {
    return await refused(claim.reason === "taken" ? 409 : 403, claim.reason, claim.message);
  }
  await ensureNode(request, redeemed.grant, ports);
  const certificate = await authority.issueNode(node, checked.publicKey);
  log.info("Node joined", { node, key: keyHash.slice(0, 16) });
  return {
    status: 200,
    answer: { certificate, caBundle: authority.bundle, cluster: ports.cluster, node, urls: ports.urls },
  };
}

/** Labels and taints that the machine asked for count where the token does not say otherwise. */
async function ensureNode(request: JoinRequest, grant: TokenGrant, { client }: JoinPorts): Promise<void> {
  const labels: Record<string, string> = {
    ...ownLabels(request.labels),
    ...grant.labels,
    "kubernetes.io/hostname": request.node,
    "kubernetes.io/os": "linux",
    "node-role.kubernetes.io/edge": "",
  };
  if (request.architecture) labels["kubernetes.io/arch"] = request.architecture;
  const taints = [
    ...grant.taints,
    ...request.taints.filter((taint) => !grant.taints.some((own) => own.key === taint.key)),
  ];
  const node: Node = {
    apiVersion: "v1",
    kind: "Node",
    metadata: { name: request.node, labels },
    spec: taints.length > 0 ? { taints } : {},
  };
  try {
    await client.create(objectPath("/api/v1", "nodes", undefined), node);
  } catch (error) {
    if (!(error instanceof KubeApiError && error.reason === "AlreadyExists")) throw error;
    await client.patch(objectPath("/api/v1", "nodes", undefined, request.node), "strategic", {
      metadata: { labels },
      spec: { taints },
    });
  }
}

/** A machine may name itself, not its role: labels of kubernetes.io are for the admin's token. */
function ownLabels(labels: Record<string, string>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(labels).filter(([key]) => !/(^|\.)(kubernetes|k8s)\.io\//.test(key)),
  );
}
