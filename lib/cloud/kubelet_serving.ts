/**
 * The serving certificate of a node's kubelet port, from the cluster's own signer `kubernetes.io/kubelet-serving`: asked
 * for as the node (the signer insists), approved by the cloud. Kept in memory: a restart asks again, one request a node.
 */
import type { Clock, Random } from "../core/clock.ts";
import { base64, fromBase64, hex, text, utf8 } from "../core/bytes.ts";
import { makeKey, makeRequest, readCertificate } from "../crypto/x509.ts";
import { type KubeClient, objectPath } from "../kube/client.ts";
import type { KubeObject } from "../kube/types.ts";

const group = "/apis/certificates.k8s.io/v1";
/** A cluster that signs does so within seconds. */
const signTimeoutMs = 30_000;

interface SigningRequest extends KubeObject {
  spec?: unknown;
  status?: {
    conditions?: { type: string; status: string; reason?: string; message?: string }[];
    certificate?: string;
  };
}
export interface ServingCertificate {
  certificate: string;
  key: string;
  notAfterMs: number;
}

export async function requestServingCertificate(
  node: string,
  addresses: string[],
  { client, clock, random }: { client: KubeClient; clock: Clock; random: Random },
): Promise<ServingCertificate> {
  const key = await makeKey();
  const request = await makeRequest(
    key,
    { commonName: `system:node:${node}`, organization: "system:nodes" },
    addresses,
  );
  const name = `kubeedge-${hex(random.bytes(8))}`;
  const created = await client.create<SigningRequest>(
    objectPath(group, "certificatesigningrequests", undefined),
    {
      apiVersion: "certificates.k8s.io/v1",
      kind: "CertificateSigningRequest",
      metadata: { name },
      spec: {
        request: base64(utf8(request)),
        signerName: "kubernetes.io/kubelet-serving",
        usages: ["digital signature", "server auth"],
      },
    },
    { as: { node } },
  );
  created.status = {
    conditions: [{
      type: "Approved",
      status: "True",
      reason: "KubeEdge",
      message: "serving certificate of an edge node's kubelet port",
    }],
  };
  const path = objectPath(group, "certificatesigningrequests", undefined, name);
  await client.replace(`${path}/approval`, created);
  const untilMs = clock.monotonic() + signTimeoutMs;
  while (clock.monotonic() < untilMs) {
    const { status } = await client.get<SigningRequest>(path);
    if (status?.certificate) {
      const certificate = text(fromBase64(status.certificate));
      return { certificate, key, notAfterMs: readCertificate(certificate).notAfterMs };
    }
    const failed = status?.conditions?.find((condition) =>
      condition.type === "Failed" || condition.type === "Denied"
    );
    if (failed) {
      throw new Error(`the cluster refused to sign: ${failed.reason ?? ""} ${failed.message ?? ""}`);
    }
    await clock.sleep(200);
  }
  throw new Error("nobody signed it: is the csrsigning controller of kube-controller-manager on?");
}
