/** Leases of connected nodes, renewed as the node (kube-node-lease), as the kubelet does for itself. */
import type { Clock } from "../core/clock.ts";
import { errorText } from "../core/errors.ts";
import { leaseDurationSeconds } from "../core/limits.ts";
import type { Logger } from "../core/log.ts";
import { KubeApiError, type KubeClient, objectPath } from "../kube/client.ts";
import type { Lease, Node } from "../kube/types.ts";

const group = "/apis/coordination.k8s.io/v1";

export class Leases {
  constructor(readonly ports: { client: KubeClient; clock: Clock; log: Logger; renewed: () => void }) {}

  /** Renews, or creates; failures are left to the next time. */
  async renew(node: string): Promise<void> {
    const { client, clock, log, renewed } = this.ports;
    const renewTime = new Date(clock.now()).toISOString().replace("Z", "000Z"); // MicroTime
    const path = objectPath(group, "leases", "kube-node-lease", node);
    const options = { as: { node }, timeoutMs: 8000 };
    try {
      try {
        await client.patch<Lease>(path, "merge", { spec: { renewTime } }, options);
      } catch (error) {
        if (!(error instanceof KubeApiError && error.status === 404)) throw error;
        const owner = await client.get<Node>(objectPath("/api/v1", "nodes", undefined, node), {
          as: { node },
        });
        const lease: Lease = {
          apiVersion: "coordination.k8s.io/v1",
          kind: "Lease",
          metadata: {
            name: node,
            namespace: "kube-node-lease",
            ownerReferences: [{ apiVersion: "v1", kind: "Node", name: node, uid: owner.metadata.uid ?? "" }],
          },
          spec: { holderIdentity: node, leaseDurationSeconds, renewTime },
        };
        await client.create(objectPath(group, "leases", "kube-node-lease"), lease, options);
      }
      renewed();
    } catch (error) {
      log.warn("Cannot renew the lease of a node", { node, error: errorText(error) });
    }
  }
}
