/**
 * Who this node is. On disk below the root directory (lib/sys/identity_files.ts): `pki/` (0700) with node.key, node.crt
 * and ca.crt (PEM, 0600), and `edge.json` {node, cluster, urls, joinedMs}.
 */
import { authorityHash, checkCertificate, splitPem } from "../crypto/x509.ts";

export interface Identity {
  node: string;
  /** UID of the cluster (its kube-system namespace), as the cloud names it. */
  cluster: string;
  /** Hubs, `wss://host:port` each, best first. */
  urls: string[];
  /** PEM; its subject is system:node:NODE. */
  certificate: string;
  /** PKCS#8 PEM. */
  key: string;
  /** PEM of the cloud's CAs: two while the CA is rolled. */
  caBundle: string;
  /** ms since 1970. */
  joinedMs: number;
}

/** Whether the identity can open a session now; `bad` also when the certificate has expired. */
export function judgeIdentity(
  identity: Identity,
  nowMs: number,
): { state: "ok"; notAfterMs: number } | { state: "bad"; reason: string } {
  const checked = checkCertificate(identity.certificate, identity.caBundle, nowMs);
  if (checked.state === "bad") {
    return { state: "bad", reason: `its certificate cannot be used: ${checked.reason}` };
  }
  if (checked.facts.commonName !== nodeSubject(identity.node)) {
    return { state: "bad", reason: `its certificate is for ${checked.facts.commonName}` };
  }
  return { state: "ok", notAfterMs: checked.facts.notAfterMs };
}

export function nodeSubject(node: string): string {
  return `system:node:${node}`;
}

/** Hex hashes of the CAs' keys; what is no certificate is left out. */
export function authorityHashes(bundle: string): string[] {
  return pinnable(bundle).map(({ hash }) => hash);
}

/** The certificates of a bundle with the hashes of their keys. */
export function pinnable(bundle: string): { hash: string; certificate: string }[] {
  return splitPem(bundle).flatMap((certificate) => {
    try {
      return [{ hash: authorityHash(certificate), certificate }];
    } catch {
      return [];
    }
  });
}
