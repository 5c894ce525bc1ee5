/** From a pod to CRI's sandbox and container configurations. Numbers and defaults as pkg/kubelet/kuberuntime. */
import { utf8 } from "../../core/bytes.ts";
import type { ContainerConfig, LinuxContainerResources, PodSandboxConfig } from "../../cri/runtime.ts";
import { milliValue, wholeValue } from "../../kube/quantity.ts";
import type { Container, Pod, SeccompProfile } from "../../kube/types.ts";
import { expand } from "./env.ts";
import type { NodeFacts, PodOptions } from "./ports.ts";
import {
  agentAnnotation,
  containerNameLabel,
  graceAnnotation,
  imageAnnotation,
  podNameLabel,
  podNamespaceLabel,
  podUid,
  podUidLabel,
  terminationFileAnnotation,
  terminationPathAnnotation,
  terminationPolicyAnnotation,
} from "./state.ts";

/** CRI's NamespaceMode; set explicitly, its default is POD. */
const namespaceMode = { pod: 0, container: 1, node: 2 } as const;
/** resolv.conf limits of glibc before 2.26 and of Kubernetes. */
const nameserversMax = 3;
const searchesMax = 32;

export interface SandboxContext {
  options: PodOptions;
  cgroupParent: string;
  nodeName: string;
}

export function sandboxConfig(
  pod: Pod,
  attempt: number,
  { options, cgroupParent, nodeName }: SandboxContext,
): PodSandboxConfig {
  const { metadata, spec } = pod;
  const namespace = metadata.namespace ?? "default";
  const security = spec.securityContext ?? {};
  const privileged = [...spec.containers, ...(spec.initContainers ?? [])].some((c) =>
    c.securityContext?.privileged
  );
  const ports = [...spec.containers, ...(spec.initContainers ?? [])].flatMap((container) =>
    container.ports ?? []
  );
  return {
    metadata: { name: metadata.name, namespace, uid: podUid(pod), attempt },
    hostname: spec.hostNetwork ? "" : hostnameOf(pod, nodeName, options.clusterDomain),
    logDirectory: logDirectory(pod, options),
    dnsConfig: dnsConfig(pod, options),
    portMappings: spec.hostNetwork ? [] : ports.filter((port) => port.hostPort).map((port) => ({
      protocol: { TCP: 0, UDP: 1, SCTP: 2 }[port.protocol ?? "TCP"],
      containerPort: port.containerPort,
      hostPort: port.hostPort ?? 0,
      hostIp: port.hostIP ?? "",
    })),
    labels: { ...metadata.labels, ...identity(pod) },
    annotations: { ...metadata.annotations, [agentAnnotation]: options.rootDir },
    linux: {
      cgroupParent,
      sysctls: Object.fromEntries((security.sysctls ?? []).map(({ name, value }) => [name, value])),
      securityContext: {
        privileged,
        namespaceOptions: namespaceOptions(pod),
        ...(security.runAsUser !== undefined ? { runAsUser: { value: BigInt(security.runAsUser) } } : {}),
        ...(security.runAsGroup !== undefined ? { runAsGroup: { value: BigInt(security.runAsGroup) } } : {}),
        supplementalGroups: groups(pod),
        ...(security.seLinuxOptions ? { selinuxOptions: selinux(security.seLinuxOptions) } : {}),
        seccomp: seccomp(security.seccompProfile) ?? { profileType: 0 },
      },
    },
  };
}

export interface ContainerContext {
  options: PodOptions;
  node: NodeFacts;
  attempt: number;
  env: ReadonlyMap<string, string>;
  imageReference: string;
  mounts: { containerPath: string; hostPath: string; readonly: boolean; propagation: 0 | 1 | 2 }[];
  terminationFile: string;
  sandboxConfig: PodSandboxConfig;
}

export function containerConfig(pod: Pod, container: Container, context: ContainerContext): ContainerConfig {
  const lookup = (name: string) => context.env.get(name);
  const security = container.securityContext ?? {}, podSecurity = pod.spec.securityContext ?? {};
  const user = security.runAsUser ?? podSecurity.runAsUser;
  const group = security.runAsGroup ?? podSecurity.runAsGroup;
  const selinuxOptions = security.seLinuxOptions ?? podSecurity.seLinuxOptions;
  const privileged = security.privileged ?? false;
  const unmasked = security.procMount === "Unmasked" || privileged;
  return {
    metadata: { name: container.name, attempt: context.attempt },
    image: { image: context.imageReference, userSpecifiedImage: container.image ?? "" },
    command: (container.command ?? []).map((part) => expand(part, lookup)),
    args: (container.args ?? []).map((part) => expand(part, lookup)),
    workingDir: container.workingDir ?? "",
    envs: Array.from(context.env, ([key, value]) => ({ key, value: utf8(value) })),
    mounts: context.mounts,
    labels: { ...identity(pod), [containerNameLabel]: container.name },
    annotations: {
      [imageAnnotation]: container.image ?? "",
      [terminationPathAnnotation]: container.terminationMessagePath ?? "/dev/termination-log",
      [terminationPolicyAnnotation]: container.terminationMessagePolicy ?? "File",
      [terminationFileAnnotation]: context.terminationFile,
      [graceAnnotation]: String(pod.spec.terminationGracePeriodSeconds ?? 30),
    },
    logPath: `${container.name}/${context.attempt}.log`,
    stdin: container.stdin ?? false,
    stdinOnce: container.stdinOnce ?? false,
    tty: container.tty ?? false,
    linux: {
      resources: linuxResources(pod, container, context.node),
      securityContext: {
        privileged,
        capabilities: {
          addCapabilities: security.capabilities?.add ?? [],
          dropCapabilities: security.capabilities?.drop ?? [],
        },
        namespaceOptions: namespaceOptions(pod),
        ...(user !== undefined ? { runAsUser: { value: BigInt(user) } } : {}),
        ...(group !== undefined ? { runAsGroup: { value: BigInt(group) } } : {}),
        supplementalGroups: groups(pod),
        readonlyRootfs: security.readOnlyRootFilesystem ?? false,
        noNewPrivs: security.allowPrivilegeEscalation === false && !privileged,
        ...(selinuxOptions ? { selinuxOptions: selinux(selinuxOptions) } : {}),
        seccomp: seccomp(security.seccompProfile ?? podSecurity.seccompProfile) ?? { profileType: 1 },
        maskedPaths: unmasked ? [] : maskedPaths,
        readonlyPaths: unmasked ? [] : readonlyPaths,
      },
    },
  };
}

/** pkg/securitycontext/util.go */
const maskedPaths = [
  "/proc/asound",
  "/proc/acpi",
  "/proc/interrupts",
  "/proc/kcore",
  "/proc/keys",
  "/proc/latency_stats",
  "/proc/timer_list",
  "/proc/timer_stats",
  "/proc/sched_debug",
  "/proc/scsi",
  "/sys/firmware",
  "/sys/devices/virtual/powercap",
];
const readonlyPaths = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

export function logDirectory(pod: Pod, options: PodOptions): string {
  return `${options.logDir}/${pod.metadata.namespace ?? "default"}_${pod.metadata.name}_${podUid(pod)}`;
}

function identity(pod: Pod): Record<string, string> {
  return {
    [podNameLabel]: pod.metadata.name,
    [podNamespaceLabel]: pod.metadata.namespace ?? "default",
    [podUidLabel]: podUid(pod),
  };
}

function namespaceOptions(pod: Pod) {
  const { hostNetwork, hostPID, hostIPC, shareProcessNamespace } = pod.spec;
  return {
    network: hostNetwork ? namespaceMode.node : namespaceMode.pod,
    pid: hostPID ? namespaceMode.node : shareProcessNamespace ? namespaceMode.pod : namespaceMode.container,
    ipc: hostIPC ? namespaceMode.node : namespaceMode.pod,
  };
}

function groups(pod: Pod): bigint[] {
  const { fsGroup, supplementalGroups = [] } = pod.spec.securityContext ?? {};
  return [...supplementalGroups, ...(fsGroup !== undefined ? [fsGroup] : [])].map(BigInt);
}

function selinux(options: { user?: string; role?: string; type?: string; level?: string }) {
  return {
    user: options.user ?? "",
    role: options.role ?? "",
    type: options.type ?? "",
    level: options.level ?? "",
  };
}

/** SecurityProfile.ProfileType: 0 RuntimeDefault, 1 Unconfined, 2 Localhost. */
function seccomp(profile: SeccompProfile | undefined) {
  if (!profile) return undefined;
  if (profile.type === "RuntimeDefault") return { profileType: 0 as const };
  if (profile.type === "Localhost") {
    return {
      profileType: 2 as const,
      localhostRef: `/var/lib/kubelet/seccomp/${profile.localhostProfile ?? ""}`,
    };
  }
  return { profileType: 1 as const };
}

export type QosClass = "Guaranteed" | "Burstable" | "BestEffort";

export function qosClass(pod: Pod): QosClass {
  let any = false, guaranteed = true;
  for (const container of [...pod.spec.containers, ...(pod.spec.initContainers ?? [])]) {
    for (const resource of ["cpu", "memory"]) {
      const limit = milliValue(container.resources?.limits?.[resource]);
      const request = milliValue(
        container.resources?.requests?.[resource] ?? container.resources?.limits?.[resource],
      );
      any ||= limit > 0 || request > 0;
      guaranteed &&= limit > 0 && limit === request;
    }
  }
  return !any ? "BestEffort" : guaranteed ? "Guaranteed" : "Burstable";
}

/** cpu.shares, CFS quota (period 100 ms), memory limit, OOM score (pkg/kubelet/qos/policy.go). */
export function linuxResources(pod: Pod, container: Container, node: NodeFacts): LinuxContainerResources {
  const { limits = {}, requests = {} } = container.resources ?? {};
  const cpuRequest = milliValue(requests.cpu ?? limits.cpu), cpuLimit = milliValue(limits.cpu);
  const memoryLimit = wholeValue(limits.memory), memoryRequest = wholeValue(requests.memory ?? limits.memory);
  return {
    cpuShares: BigInt(Math.min(262_144, Math.max(2, Math.floor((cpuRequest * 1024) / 1000)))),
    cpuPeriod: 100_000n,
    cpuQuota: cpuLimit > 0 ? BigInt(Math.max(1000, cpuLimit * 100)) : 0n,
    memoryLimitInBytes: BigInt(memoryLimit),
    oomScoreAdj: BigInt(oomScore(qosClass(pod), memoryRequest, node.memoryBytes)),
  };
}

function oomScore(qos: QosClass, memoryRequest: number, memoryBytes: number): number {
  if (qos === "Guaranteed") return -997;
  if (qos === "BestEffort") return 1000;
  const score = 1000 - Math.floor((1000 * memoryRequest) / Math.max(1, memoryBytes));
  return Math.min(999, Math.max(3, score));
}

export function hostnameOf(pod: Pod, _nodeName: string, clusterDomain: string): string {
  const { hostname, subdomain, setHostnameAsFQDN } = pod.spec;
  const name = (hostname || pod.metadata.name).slice(0, 63).replace(/[-.]+$/, "");
  return setHostnameAsFQDN && subdomain
    ? `${name}.${subdomain}.${pod.metadata.namespace ?? "default"}.svc.${clusterDomain}`
    : name;
}

function dnsConfig(pod: Pod, options: PodOptions) {
  const { dnsPolicy = "ClusterFirst", dnsConfig, hostNetwork } = pod.spec;
  const host = parseResolvConf(options.resolvConf());
  const cluster = options.clusterDns.length > 0 &&
    (dnsPolicy === "ClusterFirstWithHostNet" || (dnsPolicy === "ClusterFirst" && !hostNetwork));
  let servers = host.servers, searches = host.searches, dnsOptions = host.options;
  if (dnsPolicy === "None") servers = searches = dnsOptions = [];
  else if (cluster) {
    const domain = options.clusterDomain, namespace = pod.metadata.namespace ?? "default";
    servers = options.clusterDns;
    searches = [...new Set([`${namespace}.svc.${domain}`, `svc.${domain}`, domain, ...host.searches])];
    dnsOptions = ["ndots:5"];
  }
  if (dnsConfig) {
    servers = [...new Set([...servers, ...(dnsConfig.nameservers ?? [])])];
    searches = [...new Set([...searches, ...(dnsConfig.searches ?? [])])];
    const own = new Map(
      (dnsConfig.options ?? []).map((
        { name, value },
      ) => [name, value === undefined ? name : `${name}:${value}`]),
    );
    dnsOptions = [...dnsOptions.filter((option) => !own.has(option.split(":")[0] ?? "")), ...own.values()];
  }
  return {
    servers: servers.slice(0, nameserversMax),
    searches: searches.slice(0, searchesMax),
    options: dnsOptions,
  };
}

export function parseResolvConf(text: string): { servers: string[]; searches: string[]; options: string[] } {
  const result = { servers: [] as string[], searches: [] as string[], options: [] as string[] };
  for (const line of text.split("\n")) {
    const [word, ...rest] = line.replace(/[#;].*$/, "").trim().split(/\s+/);
    if (word === "nameserver" && rest[0]) result.servers.push(rest[0]);
    else if (word === "search") result.searches = rest.filter((domain) => domain !== ".");
    else if (word === "options") result.options.push(...rest);
  }
  return result;
}

/** The managed /etc/hosts of a pod (pkg/kubelet/kubelet_pods.go). */
export function hostsFile(pod: Pod, podIps: string[], clusterDomain: string): string {
  const lines = [
    "# Kubernetes-managed hosts file.",
    "127.0.0.1\tlocalhost",
    "::1\tlocalhost ip6-localhost ip6-loopback",
    "fe00::0\tip6-localnet",
    "fe00::0\tip6-mcastprefix",
    "fe00::1\tip6-allnodes",
    "fe00::2\tip6-allrouters",
  ];
  const { hostname, subdomain } = pod.spec;
  const name = (hostname || pod.metadata.name).slice(0, 63);
  for (const ip of podIps) {
    const fqdn = subdomain
      ? `${name}.${subdomain}.${pod.metadata.namespace ?? "default"}.svc.${clusterDomain}\t`
      : "";
    lines.push(`${ip}\t${fqdn}${name}`);
  }
  const aliases = pod.spec.hostAliases ?? [];
  if (aliases.length > 0) lines.push("", "# Entries added by HostAliases.");
  for (const { ip, hostnames = [] } of aliases) lines.push(`${ip}\t${hostnames.join("\t")}`);
  return lines.join("\n") + "\n";
}
