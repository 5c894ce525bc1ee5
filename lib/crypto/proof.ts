/**
 * The in-band proof of a node's key. The node signs
 *
 *     "kubeedge session proof v1\0" | nonce (32 bytes, the hub's, fresh per connection) |
 *     SHA-256 of the hub CA's public key | SHA-256 of the session parameters
 *
 * with the key of its certificate (ECDSA P-256, SHA-256). The nonce makes a recorded proof worthless; the CA's hash
 * binds it to the one cluster whose CA the node pinned, so that another hub cannot pass it on; TLS with that pinned CA
 * has authenticated the hub itself.
 */
import { createHash, createPublicKey, verify, X509Certificate } from "node:crypto";
import { concat, fromHex, utf8 } from "../core/bytes.ts";
import { importKeys } from "./x509.ts";

export interface ProofInput {
  nonce: Uint8Array;
  /** Hex, see authorityHash. */
  authorityHash: string;
  parameters: string;
}

function message(input: ProofInput): Uint8Array<ArrayBuffer> {
  const parameters = createHash("sha256").update(input.parameters).digest();
  return concat([utf8("kubeedge session proof v1\0"), input.nonce, fromHex(input.authorityHash), parameters]);
}

/** The signature, IEEE P1363 form (64 bytes). */
export async function signProof(keyPem: string, input: ProofInput): Promise<Uint8Array> {
  const { privateKey } = await importKeys(keyPem);
  return new Uint8Array(
    await crypto.subtle.sign({ name: "ECDSA", hash: "SHA-256" }, privateKey, message(input)),
  );
}

export function verifyProof(certificatePem: string, input: ProofInput, signature: Uint8Array): boolean {
  try {
    const spki = new X509Certificate(certificatePem).publicKey.export({ type: "spki", format: "pem" });
    const key = createPublicKey(spki);
    return verify("sha256", message(input), { key, dsaEncoding: "ieee-p1363" }, signature);
  } catch {
    return false;
  }
}
