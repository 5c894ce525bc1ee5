/** What this program is; `built` is set by the build (deno task build). */
export const version = "0.1.0";
/** The Kubernetes whose kubelet's behaviour is followed. */
export const kubernetesVersion = "v1.37.2";
/** What a node reports as its kubelet's version: Kubernetes' version, as tools parse it, with ours as build metadata. */
export const kubeletVersion = `${kubernetesVersion}+kubeedge-${version}`;
