/**
 * The container runtime as EdgeCore uses it: the port that lib/cri/client.ts (containerd) and test/fake/runtime.ts
 * implement. Configurations are CRI's own messages; what comes back is reduced to what the agent reads.
 * Times are ms since 1970, 0 where unknown. Every call throws CriError.
 */
import type { MessageInitShape } from "@bufbuild/protobuf";
import type {
  AuthConfigSchema,
  ContainerConfigSchema,
  LinuxContainerResourcesSchema,
  PodSandboxConfigSchema,
} from "./gen/cri_pb.ts";

export type PodSandboxConfig = MessageInitShape<typeof PodSandboxConfigSchema>;
export type ContainerConfig = MessageInitShape<typeof ContainerConfigSchema>;
export type LinuxContainerResources = MessageInitShape<typeof LinuxContainerResourcesSchema>;
export type AuthConfig = MessageInitShape<typeof AuthConfigSchema>;

export interface Sandbox {
  id: string;
  podUid: string;
  podName: string;
  podNamespace: string;
  attempt: number;
  ready: boolean;
  createdMs: number;
  labels: Record<string, string>;
  annotations: Record<string, string>;
}

export interface SandboxStatus extends Sandbox {
  /** First is the primary one; empty with hostNetwork. */
  ips: string[];
}

export type ContainerState = "created" | "running" | "exited" | "unknown";

export interface RuntimeContainer {
  id: string;
  sandboxId: string;
  name: string;
  attempt: number;
  state: ContainerState;
  createdMs: number;
  labels: Record<string, string>;
  annotations: Record<string, string>;
}

export interface RuntimeContainerStatus extends RuntimeContainer {
  startedMs: number;
  finishedMs: number;
  exitCode: number;
  /** `OOMKilled`, `Completed`, `Error`, or what the runtime says. */
  reason: string;
  message: string;
  /** As the pod names it. */
  image: string;
  /** Digest reference. */
  imageRef: string;
  logPath: string;
}

export interface RuntimeImage {
  id: string;
  repoTags: string[];
  repoDigests: string[];
  bytes: number;
  /** User of the image's config, when numeric. */
  uid: number | undefined;
  username: string;
}

export interface ContainerStats {
  containerId: string;
  labels: Record<string, string>;
  name: string;
  timestampMs: number;
  cpuCoreNanoSeconds: number | undefined;
  memoryWorkingSetBytes: number | undefined;
  writableLayerBytes: number | undefined;
  writableLayerInodes: number | undefined;
}

export interface ExecSyncResult {
  exitCode: number;
  stdout: Uint8Array;
  stderr: Uint8Array;
}

export interface RuntimeInfo {
  name: string;
  version: string;
  ready: boolean;
  networkReady: boolean;
  /** Why not, for the node's condition. */
  message: string;
}

export interface CriEvent {
  type: "start" | "exit" | "oom";
  containerId: string;
  exitCode?: number;
}

export interface StreamRequest {
  containerId: string;
  command?: string[];
  stdin: boolean;
  stdout: boolean;
  stderr: boolean;
  tty: boolean;
}

export interface ContainerRuntime {
  info(): Promise<RuntimeInfo>;
  listSandboxes(): Promise<Sandbox[]>;
  listContainers(): Promise<RuntimeContainer[]>;
  sandboxStatus(id: string): Promise<SandboxStatus>;
  containerStatus(id: string): Promise<RuntimeContainerStatus>;

  runSandbox(config: PodSandboxConfig, runtimeHandler: string): Promise<string>;
  stopSandbox(id: string): Promise<void>;
  removeSandbox(id: string): Promise<void>;
  createContainer(
    sandboxId: string,
    config: ContainerConfig,
    sandboxConfig: PodSandboxConfig,
  ): Promise<string>;
  startContainer(id: string): Promise<void>;
  /** Sends the stop signal, waits up to the grace, kills. */
  stopContainer(id: string, graceSeconds: number): Promise<void>;
  removeContainer(id: string): Promise<void>;
  reopenLog(id: string): Promise<void>;
  execSync(id: string, command: string[], timeoutSeconds: number): Promise<ExecSyncResult>;

  /** URLs of the runtime's streaming server. */
  exec(request: StreamRequest): Promise<string>;
  attach(request: StreamRequest): Promise<string>;
  portForward(sandboxId: string, ports: number[]): Promise<string>;

  imageStatus(image: string): Promise<RuntimeImage | undefined>;
  listImages(): Promise<RuntimeImage[]>;
  /** Resolves to the image's reference by digest. */
  pullImage(image: string, auth: AuthConfig | undefined): Promise<string>;
  removeImage(image: string): Promise<void>;
  imageFsPath(): Promise<string | undefined>;
  stats(): Promise<ContainerStats[]>;

  /** Ends (without an error) when the runtime goes away: subscribe again and list. */
  events(signal: AbortSignal): AsyncIterable<CriEvent>;
}
