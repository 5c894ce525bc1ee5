/** What the pod workers ask of the rest of the agent and of the machine. */
import type { ContainerRuntime } from "../../cri/runtime.ts";
import type { Clock, Random } from "../../core/clock.ts";
import type { Logger } from "../../core/log.ts";
import type { KubeObject, Pod, PodStatus, ResourceList, Service } from "../../kube/types.ts";

/** An object that a pod refers to. `unknown`: the cloud has not said yet; `absent`: it does not exist. */
export type Lookup<T> = { state: "present"; object: T } | { state: "absent" } | { state: "unknown" };

export interface PodObjects {
  get<T extends KubeObject>(kind: "secrets" | "configmaps", namespace: string, name: string): Lookup<T>;
  /** Services of the namespace, and `default/kubernetes`. */
  services(namespace: string): Service[];
}

export interface TokenSpec {
  audiences: string[];
  expirationSeconds: number;
  boundObjectRef: { kind: string; apiVersion: string; name: string; uid: string };
}
export interface BoundToken {
  token: string;
  /** ms since 1970. */
  expiresMs: number;
}

/** One file of a configMap, secret, projected or downwardAPI volume. */
export interface PayloadFile {
  path: string;
  data: Uint8Array;
  mode: number;
  /** Owner, where it is not root. */
  uid?: number | undefined;
}

export type PathKind = "directory" | "file" | "socket" | "char" | "block" | "none";

/** The file system as volumes need it (lib/sys/pod_files.ts). All paths are absolute. */
export interface PodFiles {
  makeDirectory(path: string, options: { mode: number; gid?: number | undefined }): Promise<void>;
  /** Parents are made. */
  write(path: string, data: Uint8Array | string, mode: number): Promise<void>;
  /** Replaces the files of the volume at once (kubelet's AtomicWriter: `..data` symlink swap). No change, no write. */
  payload(directory: string, files: PayloadFile[], gid: number | undefined): Promise<void>;
  /** The last bytes of a file; undefined when there is none. */
  readTail(path: string, bytesMax: number): Promise<string | undefined>;
  kind(path: string): Promise<PathKind>;
  /** Resolves all symlinks; throws when the path does not exist. */
  realPath(path: string): Promise<string>;
  mountTmpfs(path: string, bytes: number | undefined): Promise<void>;
  /** Unmounts what is mounted below, then removes the tree; never follows symlinks or crosses mounts. */
  removeTree(path: string): Promise<void>;
}

export interface PodCgroups {
  /** CRI's cgroup_parent of the pod, in the form of the driver in use. */
  parent(pod: Pod): string;
  /** Removes what is left of the pod's cgroups; they are empty. */
  remove(pod: { uid: string }): Promise<void>;
}

export type ProbeResult = { ok: boolean; output: string };
/** Network probes and hooks, from the node's network namespace. */
export interface Prober {
  http(url: string, options: { headers: [string, string][]; timeoutMs: number }): Promise<ProbeResult>;
  tcp(host: string, port: number, timeoutMs: number): Promise<ProbeResult>;
}

export interface PodEvent {
  type: "Normal" | "Warning";
  reason: string;
  message: string;
  /** `spec.containers{web}`; undefined: the pod itself. */
  fieldPath?: string | undefined;
}

export interface NodeFacts {
  name: string;
  ips: string[];
  allocatable: ResourceList;
  memoryBytes: number;
}

export interface PodOptions {
  /** Directory for `pods/UID`, absolute. */
  rootDir: string;
  /** `/var/log/pods`. */
  logDir: string;
  clusterDns: string[];
  clusterDomain: string;
  /** Text of the node's resolv.conf. */
  resolvConf: () => string;
}

export interface PodPorts {
  runtime: ContainerRuntime;
  objects: PodObjects;
  requestToken(namespace: string, serviceAccount: string, spec: TokenSpec): Promise<BoundToken>;
  /** A status that differs from the one before. */
  report(pod: Pod, status: PodStatus): void;
  /** A deleted pod has stopped and is cleaned up: the cloud may forget it. */
  gone(pod: Pod): void;
  event(pod: Pod, event: PodEvent): void;
  files: PodFiles;
  cgroups: PodCgroups;
  prober: Prober;
  node: () => NodeFacts;
  clock: Clock;
  random: Random;
  log: Logger;
  options: PodOptions;
}
