/**
 * A pod's volumes on the host: made before its containers, written again when a configMap, secret or token changes,
 * removed with the pod. Secrets, tokens and memory emptyDirs lie on tmpfs only.
 */
import { utf8 } from "../../core/bytes.ts";
import { parseQuantity } from "../../kube/quantity.ts";
import type {
  DownwardAPIFile,
  KeyToPath,
  Pod,
  ProjectedSource,
  Volume,
  VolumeMount,
} from "../../kube/types.ts";
import { dataOf, expand, fieldValue, type Resolved, resourceValue } from "./env.ts";
import type { BoundToken, PathKind, PayloadFile, PodPorts } from "./ports.ts";
import { podUid } from "./state.ts";

export type MountableVolume = { hostPath: string; readOnly: boolean };
export type VolumesResult =
  | { state: "ok"; volumes: Map<string, MountableVolume> }
  /** A reference is missing or a path is wrong; `volume` names it. */
  | { state: "wait" | "bad"; message: string; volume: string };

/** A token is refreshed when 80 % of its life, or a day, is over (kubelet's token manager). */
const tokenLifeShare = 0.8;
const tokenDefaultSeconds = 3607;

type VolumePorts = Pick<PodPorts, "objects" | "requestToken" | "files" | "node" | "clock" | "options">;

interface HeldToken {
  token: BoundToken;
  refreshAtMs: number;
}

export class PodVolumes {
  readonly #ports: VolumePorts;
  readonly #tokens = new Map<string, HeldToken>();
  readonly #made = new Set<string>();

  constructor(ports: VolumePorts) {
    this.#ports = ports;
  }

  directory(pod: Pod): string {
    return `${this.#ports.options.rootDir}/pods/${podUid(pod)}`;
  }

  /** When the next token has to be refreshed (ms since 1970). */
  get refreshAtMs(): number | undefined {
    const times = [...this.#tokens.values()].map((held) => held.refreshAtMs);
    return times.length > 0 ? Math.min(...times) : undefined;
  }

  /** Makes or updates all volumes. Called again it changes only what differs. */
  async prepare(pod: Pod, podIps: string[]): Promise<VolumesResult> {
    const volumes = new Map<string, MountableVolume>();
    const results = await Promise.all((pod.spec.volumes ?? []).map(async (volume) => {
      try {
        return { volume, result: await this.#prepareOne(pod, volume, podIps) };
      } catch (error) {
        return {
          volume,
          result: { state: "bad" as const, message: error instanceof Error ? error.message : String(error) },
        };
      }
    }));
    for (const { volume, result } of results) {
      if (result.state !== "ok") return { ...result, volume: volume.name };
      volumes.set(volume.name, result.value);
    }
    return { state: "ok", volumes };
  }

  async remove(pod: Pod): Promise<void> {
    await this.#ports.files.removeTree(this.directory(pod));
  }

  async #prepareOne(pod: Pod, volume: Volume, podIps: string[]): Promise<Resolved<MountableVolume>> {
    const { files } = this.#ports;
    const gid = pod.spec.securityContext?.fsGroup;
    const at = (kind: string) => `${this.directory(pod)}/volumes/kubernetes.io~${kind}/${volume.name}`;
    if (volume.hostPath) return await this.#hostPath(volume.hostPath);
    if (volume.emptyDir) {
      const path = at("empty-dir");
      if (!this.#made.has(path)) {
        await files.makeDirectory(path, { mode: gid === undefined ? 0o777 : 0o2777, gid });
        if (volume.emptyDir.medium === "Memory") {
          await files.mountTmpfs(path, parseQuantity(volume.emptyDir.sizeLimit));
        }
        if (volume.emptyDir.medium === "Memory") {
          await files.makeDirectory(path, { mode: gid === undefined ? 0o777 : 0o2777, gid });
        }
        this.#made.add(path);
      }
      return { state: "ok", value: { hostPath: path, readOnly: false } };
    }
    const payload = await this.#payload(pod, volume, podIps);
    if (payload.state !== "ok") return payload;
    const kind = volume.configMap
      ? "configmap"
      : volume.secret
      ? "secret"
      : volume.projected
      ? "projected"
      : "downward-api";
    const path = at(kind);
    if (!this.#made.has(path)) {
      await files.makeDirectory(path, { mode: 0o755 });
      if (volume.secret || volume.projected) await files.mountTmpfs(path, undefined);
      this.#made.add(path);
    }
    await files.payload(path, payload.value, gid);
    return { state: "ok", value: { hostPath: path, readOnly: true } };
  }

  async #hostPath({ path, type = "" }: { path: string; type?: string }): Promise<Resolved<MountableVolume>> {
    const { files } = this.#ports;
    const kind = await files.kind(path);
    const wanted: Record<string, PathKind> = {
      Directory: "directory",
      DirectoryOrCreate: "directory",
      File: "file",
      FileOrCreate: "file",
      Socket: "socket",
      CharDevice: "char",
      BlockDevice: "block",
    };
    if (kind === "none") {
      // Without a type the runtime gets the path as it is; the kubelet makes a directory in that case.
      if (type === "" || type === "DirectoryOrCreate") await files.makeDirectory(path, { mode: 0o755 });
      else if (type === "FileOrCreate") await files.write(path, "", 0o644);
      else return { state: "bad", message: `hostPath type check failed: ${path} is not a ${typeText(type)}` };
    } else if (type !== "" && wanted[type] !== kind) {
      return { state: "bad", message: `hostPath type check failed: ${path} is not a ${typeText(type)}` };
    }
    return { state: "ok", value: { hostPath: path, readOnly: false } };
  }

  async #payload(pod: Pod, volume: Volume, podIps: string[]): Promise<Resolved<PayloadFile[]>> {
    const { configMap, secret, downwardAPI, projected } = volume;
    if (configMap) return this.#keys("configmaps", pod, configMap, configMap.defaultMode ?? 0o644);
    if (secret) {
      const { secretName, ...rest } = secret;
      return this.#keys(
        "secrets",
        pod,
        { ...rest, ...(secretName ? { name: secretName } : {}) },
        secret.defaultMode ?? 0o644,
      );
    }
    if (downwardAPI) {
      return this.#downward(pod, downwardAPI.items ?? [], downwardAPI.defaultMode ?? 0o644, podIps);
    }
    if (projected) {
      return await this.#projected(
        pod,
        projected.sources ?? [],
        projected.defaultMode ?? 0o644,
        podIps,
        volume.name,
      );
    }
    const type = Object.keys(volume).find((member) => member !== "name") ?? "none";
    return { state: "bad", message: `volume type ${type} is not supported on this edge node` };
  }

  #keys(
    kind: "configmaps" | "secrets",
    pod: Pod,
    source: { name?: string; items?: KeyToPath[]; optional?: boolean },
    defaultMode: number,
  ): Resolved<PayloadFile[]> {
    const namespace = pod.metadata.namespace ?? "default", name = source.name ?? "";
    const found = dataOf(this.#ports.objects, kind, namespace, name, source.optional ?? false);
    if (found.state !== "ok") return found;
    const data = found.value ?? {};
    const items = source.items ?? Object.keys(data).map((key): KeyToPath => ({ key, path: key }));
    const files: PayloadFile[] = [];
    for (const item of items) {
      const bytes = data[item.key];
      if (!bytes) {
        if (source.optional) continue;
        const noun = kind === "secrets" ? "secret" : "configmap";
        return { state: "bad", message: `references non-existent ${noun} key: ${item.key}` };
      }
      if (!isInside(item.path)) return { state: "bad", message: `path "${item.path}" leaves its volume` };
      files.push({ path: item.path, data: bytes, mode: item.mode ?? defaultMode });
    }
    return { state: "ok", value: files };
  }

  #downward(
    pod: Pod,
    items: DownwardAPIFile[],
    defaultMode: number,
    podIps: string[],
  ): Resolved<PayloadFile[]> {
    const node = this.#ports.node();
    const files: PayloadFile[] = [];
    for (const item of items) {
      if (!isInside(item.path)) return { state: "bad", message: `path "${item.path}" leaves its volume` };
      const value = item.fieldRef
        ? fieldValue(item.fieldRef.fieldPath, { pod, node, podIps })
        : item.resourceFieldRef
        ? resourceValue(item.resourceFieldRef, pod, undefined, node)
        : { state: "bad" as const, message: `downwardAPI item ${item.path} has no source` };
      if (value.state !== "ok") return value;
      files.push({ path: item.path, data: utf8(value.value ?? ""), mode: item.mode ?? defaultMode });
    }
    return { state: "ok", value: files };
  }

  async #projected(
    pod: Pod,
    sources: ProjectedSource[],
    defaultMode: number,
    podIps: string[],
    volume: string,
  ): Promise<Resolved<PayloadFile[]>> {
    const files: PayloadFile[] = [];
    for (const source of sources) {
      const part = source.configMap
        ? this.#keys("configmaps", pod, source.configMap, defaultMode)
        : source.secret
        ? this.#keys("secrets", pod, source.secret, defaultMode)
        : source.downwardAPI
        ? this.#downward(pod, source.downwardAPI.items ?? [], defaultMode, podIps)
        : source.serviceAccountToken
        ? await this.#token(pod, source.serviceAccountToken, defaultMode, volume)
        : {
          state: "bad" as const,
          message: `projected source ${Object.keys(source)[0] ?? ""} is not supported on this edge node`,
        };
      if (part.state !== "ok") return part;
      files.push(...part.value);
    }
    return { state: "ok", value: files };
  }

  async #token(
    pod: Pod,
    source: { audience?: string; expirationSeconds?: number; path: string },
    defaultMode: number,
    volume: string,
  ): Promise<Resolved<PayloadFile[]>> {
    const key = `${volume}\0${source.path}\0${source.audience ?? ""}`;
    const nowMs = this.#ports.clock.now();
    let held = this.#tokens.get(key);
    if (!held || nowMs >= held.refreshAtMs) {
      try {
        const token = await this.#ports.requestToken(
          pod.metadata.namespace ?? "default",
          pod.spec.serviceAccountName ?? "default",
          {
            audiences: source.audience ? [source.audience] : [],
            expirationSeconds: source.expirationSeconds ?? tokenDefaultSeconds,
            boundObjectRef: { kind: "Pod", apiVersion: "v1", name: pod.metadata.name, uid: podUid(pod) },
          },
        );
        const lifeMs = token.expiresMs - nowMs;
        held = { token, refreshAtMs: nowMs + Math.min(lifeMs * tokenLifeShare, 24 * 3_600_000) };
        this.#tokens.set(key, held);
      } catch (error) {
        const message = `failed to fetch token: ${error instanceof Error ? error.message : String(error)}`;
        if (!held) return { state: "wait", message };
        held.refreshAtMs = nowMs + 60_000; // cut off: keep the last token, try again in a minute
      }
    }
    // The kubelet's modes: with fsGroup the group may read, with one user for all containers the file is that user's.
    const users = new Set([...pod.spec.containers, ...(pod.spec.initContainers ?? [])]
      .map((container) => container.securityContext?.runAsUser ?? pod.spec.securityContext?.runAsUser));
    const user = users.size === 1 ? [...users][0] : undefined;
    const mode = pod.spec.securityContext?.fsGroup !== undefined || user !== undefined ? 0o600 : defaultMode;
    return { state: "ok", value: [{ path: source.path, data: utf8(held.token.token), mode, uid: user }] };
  }
}

/** Where a mount's source lies; subPath must stay inside the volume once all symlinks are resolved. */
export async function mountSource(
  mount: VolumeMount,
  volume: MountableVolume,
  env: ReadonlyMap<string, string>,
  files: PodPorts["files"],
): Promise<Resolved<string>> {
  const subPath = mount.subPathExpr !== undefined
    ? expand(mount.subPathExpr, (name) => env.get(name))
    : mount.subPath;
  if (!subPath) return { state: "ok", value: volume.hostPath };
  if (!isInside(subPath)) {
    return { state: "bad", message: `subPath "${subPath}" must be relative and must not contain ".."` };
  }
  const path = `${volume.hostPath}/${subPath}`;
  const kind = await files.kind(path);
  if (kind === "none") {
    if (volume.readOnly) {
      return {
        state: "bad",
        message: `failed to prepare subPath for volumeMount "${mount.name}": ${subPath} does not exist`,
      };
    }
    await files.makeDirectory(path, { mode: 0o750 });
  }
  const [real, root] = await Promise.all([files.realPath(path), files.realPath(volume.hostPath)]);
  if (real !== root && !real.startsWith(root + "/")) {
    return {
      state: "bad",
      message: `failed to prepare subPath for volumeMount "${mount.name}": it leads out of the volume`,
    };
  }
  return { state: "ok", value: real };
}

function isInside(path: string): boolean {
  return path !== "" && !path.startsWith("/") && !path.split("/").includes("..") && !path.includes("\0");
}
function typeText(type: string): string {
  return {
    Directory: "directory",
    DirectoryOrCreate: "directory",
    File: "file",
    FileOrCreate: "file",
    Socket: "socket file",
  }[type] ??
    type.replace("CharDevice", "character device").replace("BlockDevice", "block device");
}
