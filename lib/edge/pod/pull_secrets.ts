/** Registry credentials from imagePullSecrets (kubernetes.io/dockerconfigjson and dockercfg). */
import { fromBase64, text } from "../../core/bytes.ts";
import type { AuthConfig } from "../../cri/runtime.ts";
import type { Pod, Secret } from "../../kube/types.ts";
import type { PodObjects } from "./ports.ts";

/** Host and path of an image reference: `docker.io/library/busybox`. */
export function imageRepository(image: string): string {
  const name = image.replace(/@.*$/, "").replace(/:[^/:]*$/, "");
  const first = name.split("/")[0] ?? "";
  const hasHost = name.includes("/") && (first.includes(".") || first.includes(":") || first === "localhost");
  if (hasHost) return name;
  return name.includes("/") ? `docker.io/${name}` : `docker.io/library/${name}`;
}

/** Credentials for the image, the most specific entry first; undefined in the list: try without any. */
export function pullCredentials(image: string, pod: Pod, objects: PodObjects): (AuthConfig | undefined)[] {
  const repository = imageRepository(image);
  const found: { length: number; auth: AuthConfig }[] = [];
  for (const { name } of pod.spec.imagePullSecrets ?? []) {
    const secret = name
      ? objects.get<Secret>("secrets", pod.metadata.namespace ?? "default", name)
      : undefined;
    if (secret?.state !== "present") continue;
    for (const [registry, auth] of Object.entries(entriesOf(secret.object))) {
      const prefix = registry.replace(/^https?:\/\//, "").replace(/\/(v1|v2)?\/?$/, "").replace(
        /^(index\.|registry-1\.)docker\.io/,
        "docker.io",
      );
      if (matches(prefix, repository)) found.push({ length: prefix.length, auth });
    }
  }
  found.sort((a, b) => b.length - a.length);
  return found.length > 0 ? found.map(({ auth }) => auth) : [undefined];
}

/** `*.example.com` matches one label of the host; a path matches as a prefix of whole segments. */
function matches(pattern: string, repository: string): boolean {
  const [host = "", ...path] = pattern.split("/");
  const [wantHost = "", ...wantPath] = repository.split("/");
  const expression = host.split("*").map((part) => part.replaceAll(/[.+?^${}()|[\]\\]/g, "\\$&")).join(
    "[^.]*",
  );
  return new RegExp(`^${expression}$`).test(wantHost) && path.every((segment, i) => segment === wantPath[i]);
}

function entriesOf(secret: Secret): Record<string, AuthConfig> {
  try {
    const json = secret.data?.[".dockerconfigjson"], old = secret.data?.[".dockercfg"];
    const entries = json
      ? (JSON.parse(text(fromBase64(json))) as { auths?: Record<string, Entry> }).auths ?? {}
      : old
      ? JSON.parse(text(fromBase64(old))) as Record<string, Entry>
      : {};
    return Object.fromEntries(Object.entries(entries).map(([registry, entry]) => [registry, authOf(entry)]));
  } catch {
    return {};
  }
}

interface Entry {
  username?: string;
  password?: string;
  auth?: string;
  identitytoken?: string;
}
function authOf(entry: Entry): AuthConfig {
  let { username = "", password = "" } = entry;
  if (!username && entry.auth) {
    const pair = text(fromBase64(entry.auth));
    username = pair.slice(0, pair.indexOf(":"));
    password = pair.slice(pair.indexOf(":") + 1).replace(/\0+$/, "");
  }
  return entry.identitytoken ? { username, identityToken: entry.identitytoken } : { username, password };
}
