/** Pods' cgroups (cgroupfs driver): runc makes them below the parent named here, the agent removes them. */
import type { Pod } from "../kube/types.ts";
import type { PodCgroups } from "../edge/pod/ports.ts";
import { cgroupHierarchies } from "./machine.ts";

/** The kernel takes a moment to let the last process go. */
const removeAttempts = 20;
const removeRetryMs = 50;

/** `root`: path below each hierarchy, like `/kubeedge`; `qosClass`: Guaranteed, Burstable or BestEffort. */
export function podCgroups(root: string, qosClass: (pod: Pod) => string): PodCgroups {
  return {
    parent(pod) {
      const uid = `pod${pod.metadata.uid ?? ""}`;
      const qos = qosClass(pod);
      return qos === "Guaranteed" ? `${root}/${uid}` : `${root}/${qos.toLowerCase()}/${uid}`;
    },
    async remove({ uid }) {
      if (!/^[\w-]+$/.test(uid)) return;
      for (const hierarchy of cgroupHierarchies()) {
        for (const qos of ["", "/burstable", "/besteffort"]) {
          await removeCgroup(`${hierarchy}${root}${qos}/pod${uid}`);
        }
      }
    },
  };
}

/** Children first; a cgroup that is not there is removed already. */
async function removeCgroup(path: string): Promise<void> {
  try {
    for (const { name, isDirectory } of Deno.readDirSync(path)) {
      if (isDirectory) await removeCgroup(`${path}/${name}`);
    }
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return;
    throw error;
  }
  for (let attempt = 1;; attempt++) {
    try {
      return Deno.removeSync(path);
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return;
      if (attempt >= removeAttempts) throw error;
      await new Promise((resolve) => setTimeout(resolve, removeRetryMs));
    }
  }
}
