/** etcd, kube-apiserver, kube-controller-manager and kube-scheduler of one realm, as kubeadm would set them up. */
import { binaries } from "./binaries.ts";
import { makePki } from "./pki.ts";
import { type Program, run, until } from "./processes.ts";

export interface ControlPlaneOptions {
  /** kube-apiserver's --kubelet-preferred-address-types; undefined: its own default (Hostname first). */
  addressTypes?: string;
  /** node-monitor-grace-period of the controller manager. */
  gracePeriodSeconds?: number;
}

export interface ControlPlanePorts {
  dir: string;
  address: string;
  apiPort: number;
  program(name: string, command: string[]): Program;
}

/** Resolves when the default service account is there, so that pods can be made. */
export async function startControlPlane(
  options: ControlPlaneOptions,
  { dir, address, apiPort, program }: ControlPlanePorts,
): Promise<void> {
  const pki = `${dir}/pki`;
  await makePki(pki, { address, server: `https://${address}:${apiPort}` });
  const start = (name: string, flags: Flags) => program(name, [`${binaries}/${name}`, ...words(flags)]);
  const etcd = `http://127.0.0.1:${apiPort - 10}`;
  start("etcd", {
    "data-dir": `${dir}/etcd`,
    "unsafe-no-fsync": true,
    "log-level": "warn",
    "listen-client-urls": etcd,
    "advertise-client-urls": etcd,
    "listen-peer-urls": `http://127.0.0.1:${apiPort - 9}`,
  });
  const services = "10.96.0.0/16";
  start("kube-apiserver", {
    "etcd-servers": etcd,
    "secure-port": apiPort,
    "bind-address": address,
    "advertise-address": address,
    "tls-cert-file": `${pki}/apiserver.crt`,
    "tls-private-key-file": `${pki}/apiserver.key`,
    "client-ca-file": `${pki}/ca.crt`,
    "authorization-mode": "Node,RBAC",
    "enable-admission-plugins": "NodeRestriction",
    "allow-privileged": true,
    "kubelet-client-certificate": `${pki}/apiserver-kubelet.crt`,
    "kubelet-client-key": `${pki}/apiserver-kubelet.key`,
    "kubelet-certificate-authority": `${pki}/ca.crt`,
    "kubelet-preferred-address-types": options.addressTypes,
    "service-account-key-file": `${pki}/sa.pub`,
    "service-account-signing-key-file": `${pki}/sa.key`,
    "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
    "service-cluster-ip-range": services,
    "requestheader-client-ca-file": `${pki}/front.crt`,
    "requestheader-allowed-names": "front-proxy-client",
    "requestheader-username-headers": "X-Remote-User",
    "requestheader-group-headers": "X-Remote-Group",
    "requestheader-extra-headers-prefix": "X-Remote-Extra-",
  });
  const kubectl = (...args: string[]) =>
    run([`${binaries}/kubectl`, "--kubeconfig", `${pki}/admin.conf`, ...args]);
  await until(
    "kube-apiserver is ready",
    60_000,
    async () => (await kubectl("get", "--raw", "/readyz")).stdout === "ok",
  );
  const client = (name: string): Flags => ({
    "kubeconfig": `${pki}/${name}.conf`,
    "authentication-kubeconfig": `${pki}/${name}.conf`,
    "authorization-kubeconfig": `${pki}/${name}.conf`,
    "bind-address": "127.0.0.1",
    "leader-elect": false,
  });
  start("kube-controller-manager", {
    ...client("controller-manager"),
    "secure-port": apiPort - 7,
    "client-ca-file": `${pki}/ca.crt`,
    "use-service-account-credentials": true,
    "service-account-private-key-file": `${pki}/sa.key`,
    "root-ca-file": `${pki}/ca.crt`,
    "cluster-signing-cert-file": `${pki}/ca.crt`,
    "cluster-signing-key-file": `${pki}/ca.key`,
    "service-cluster-ip-range": services,
    "node-monitor-grace-period": options.gracePeriodSeconds && `${options.gracePeriodSeconds}s`,
  });
  start("kube-scheduler", { ...client("scheduler"), "secure-port": apiPort - 6 });
  await until(
    "service accounts are made",
    60_000,
    async () => (await kubectl("get", "serviceaccount", "default")).code === 0,
  );
}

/** Undefined: not given. */
type Flags = Record<string, string | number | boolean | undefined>;

function words(flags: Flags): string[] {
  return Object.entries(flags).flatMap(([name, value]) => value === undefined ? [] : [`--${name}=${value}`]);
}
