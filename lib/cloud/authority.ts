/**
 * The cloud's own CA, in the Secret `kubeedge-ca`. It signs node certificates and the hub's serving certificates; the
 * cluster's CA has no part in it, so an edge key is worth nothing at the kube-apiserver.
 *
 * Rolling goes in three stages, each one call of `rotate`, each safe to stay in:
 *   stable --prepare--> the new CA is in the bundle that nodes are given, the old one signs
 *          --activate-> the new CA signs, the old one is still trusted
 *          --finish---> the old one is gone; certificates of it are worth nothing
 */
import type { Clock, Random } from "../core/clock.ts";
import { base64, fromBase64, text, utf8 } from "../core/bytes.ts";
import { UserError } from "../core/errors.ts";
import {
  authorityHash,
  type CertificateAuthority,
  issueLeaf,
  makeAuthority,
  makeKey,
  publicKeyOf,
} from "../crypto/x509.ts";
import { KubeApiError, type KubeClient, objectPath } from "../kube/client.ts";
import type { Secret } from "../kube/types.ts";

export const authoritySecret = "kubeedge-ca";
const authorityDays = 3650;
/** Node certificates live this long; nodes renew after two thirds. */
export const nodeCertificateMs = 30 * 86_400_000;
/** Hub serving certificates; made anew at every start and after two thirds. */
export const hubCertificateMs = 30 * 86_400_000;

export type Stage = "stable" | "prepared" | "activated";

export interface AuthorityState {
  stage: Stage;
  signer: CertificateAuthority;
  /** The CA that comes (prepared) or goes (activated). */
  other: CertificateAuthority | undefined;
  /** PEM of all CAs in force, signer first. */
  bundle: string;
  resourceVersion: string;
}

export class Authority {
  #state: AuthorityState;
  constructor(
    state: AuthorityState,
    readonly ports: { client: KubeClient; namespace: string; clock: Clock; random: Random },
  ) {
    this.#state = state;
  }

  get state(): AuthorityState {
    return this.#state;
  }
  get bundle(): string {
    return this.#state.bundle;
  }
  /** Hashes of the keys of all CAs in force. */
  get hashes(): string[] {
    return [this.#state.signer, ...(this.#state.other ? [this.#state.other] : [])].map((ca) =>
      authorityHash(ca.certificate)
    );
  }
  get signerHash(): string {
    return authorityHash(this.#state.signer.certificate);
  }

  /** Loads the CA, or makes it; replicas that race agree on the first. */
  static async load(
    ports: { client: KubeClient; namespace: string; clock: Clock; random: Random },
  ): Promise<Authority> {
    const { client, namespace, clock, random } = ports;
    const path = objectPath("/api/v1", "secrets", namespace, authoritySecret);
    let secret = await client.find<Secret>(path);
    if (!secret) {
      const signer = await makeAuthority("kubeedge edge CA", {
        nowMs: clock.now(),
        days: authorityDays,
        serial: random.bytes(8),
      });
      const object = secretOf(namespace, { stage: "stable", signer, other: undefined });
      try {
        secret = await client.create<Secret>(objectPath("/api/v1", "secrets", namespace), object);
      } catch (error) {
        if (!(error instanceof KubeApiError) || error.reason !== "AlreadyExists") throw error;
        secret = await client.get<Secret>(path);
      }
    }
    return new Authority(readSecret(secret), ports);
  }

  /** Reads the Secret again (another replica or the CLI may have rolled the CA). True when something changed. */
  async reload(): Promise<boolean> {
    const secret = await this.ports.client.get<Secret>(
      objectPath("/api/v1", "secrets", this.ports.namespace, authoritySecret),
    );
    if (secret.metadata.resourceVersion === this.#state.resourceVersion) return false;
    this.#state = readSecret(secret);
    return true;
  }

  /** One stage on; see above. */
  async rotate(): Promise<Stage> {
    const { client, namespace, clock, random } = this.ports;
    const { stage, signer, other, resourceVersion } = this.#state;
    const make = () =>
      makeAuthority("kubeedge edge CA", { nowMs: clock.now(), days: authorityDays, serial: random.bytes(8) });
    const next = stage === "stable"
      ? { stage: "prepared" as const, signer, other: await make() }
      : stage === "prepared" && other
      ? { stage: "activated" as const, signer: other, other: signer }
      : { stage: "stable" as const, signer, other: undefined };
    const object = secretOf(namespace, next);
    object.metadata.resourceVersion = resourceVersion;
    this.#state = readSecret(
      await client.replace<Secret>(objectPath("/api/v1", "secrets", namespace, authoritySecret), object),
    );
    return next.stage;
  }

  /** A certificate for a node's key. */
  async issueNode(node: string, publicKey: Uint8Array<ArrayBuffer>): Promise<string> {
    const { clock, random } = this.ports;
    return await issueLeaf(this.#state.signer, {
      subject: { commonName: `system:node:${node}`, organization: "system:nodes" },
      publicKey,
      usage: "client",
      nowMs: clock.now(),
      lifeMs: nodeCertificateMs,
      serial: random.bytes(8),
    });
  }

  /** Key and certificate of the hub's listener for the hosts of its URLs. */
  async issueHub(addresses: string[]): Promise<{ certificate: string; key: string }> {
    const { clock, random } = this.ports;
    const key = await makeKey();
    const certificate = await issueLeaf(this.#state.signer, {
      subject: { commonName: "kubeedge hub" },
      publicKey: await publicKeyOf(key),
      usage: "server",
      addresses,
      nowMs: clock.now(),
      lifeMs: hubCertificateMs,
      serial: random.bytes(8),
    });
    return { certificate, key };
  }
}

function secretOf(namespace: string, state: Pick<AuthorityState, "stage" | "signer" | "other">): Secret {
  const data: Record<string, string> = {
    stage: base64(utf8(state.stage)),
    "ca.crt": base64(utf8(state.signer.certificate)),
    "ca.key": base64(utf8(state.signer.key)),
  };
  if (state.other) {
    data["other.crt"] = base64(utf8(state.other.certificate));
    data["other.key"] = base64(utf8(state.other.key));
  }
  return {
    apiVersion: "v1",
    kind: "Secret",
    metadata: { name: authoritySecret, namespace },
    type: "kubeedge.io/ca",
    data,
  };
}

function readSecret(secret: Secret): AuthorityState {
  const read = (key: string) =>
    secret.data?.[key] === undefined ? undefined : text(fromBase64(secret.data[key] ?? ""));
  const certificate = read("ca.crt"), key = read("ca.key");
  const stage = (["stable", "prepared", "activated"] as const).find((known) => known === read("stage"));
  if (!certificate || !key || !stage) {
    throw new UserError(
      `Secret ${secret.metadata.namespace}/${authoritySecret} is damaged: it lacks ca.crt, ca.key or stage; restore it from a backup`,
    );
  }
  const otherCertificate = read("other.crt"), otherKey = read("other.key");
  const other = otherCertificate && otherKey ? { certificate: otherCertificate, key: otherKey } : undefined;
  return {
    stage,
    signer: { certificate, key },
    other,
    bundle: certificate.trim() + "\n" + (other ? other.certificate.trim() + "\n" : ""),
    resourceVersion: secret.metadata.resourceVersion ?? "",
  };
}
