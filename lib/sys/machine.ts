/** What kind of machine this is: the facts that lib/edge/preflight.ts judges, and mounts and cgroups for `edge reset`. */
const cgroupRoot = "/sys/fs/cgroup";

export interface Mount {
  path: string;
  type: string;
}

/** Mounts of this mount namespace, outermost first. */
export function mounts(): Mount[] {
  return Deno.readTextFileSync("/proc/self/mountinfo").trimEnd().split("\n").flatMap((line) => {
    // proc(5): id parent major:minor root MOUNTPOINT options optional… - TYPE source options
    const [before = "", after = ""] = line.split(" - ");
    const path = before.split(" ")[4], type = after.split(" ")[0];
    return path === undefined || type === undefined ? [] : [{ path: unescape(path), type }];
  });
}

/** `\040` and the like. */
function unescape(path: string): string {
  return path.replaceAll(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8)));
}

/** Version 2 when the controllers are there; on a hybrid machine they are version 1's. */
export function cgroups(): { version: 1 | 2; controllers: string[] } | undefined {
  const mounted = mounts().filter(({ type, path }) =>
    /^cgroup2?$/.test(type) && `${path}/`.startsWith(`${cgroupRoot}/`)
  );
  if (mounted.length === 0) return undefined;
  if (mounted.some(({ type, path }) => type === "cgroup2" && path === cgroupRoot)) {
    const controllers = Deno.readTextFileSync(`${cgroupRoot}/cgroup.controllers`).trim().split(/\s+/);
    return { version: 2, controllers: controllers.filter(Boolean) };
  }
  // Directories are named after their controllers: cpu,cpuacct.
  const controllers = mounted.filter(({ type }) => type === "cgroup").flatMap(({ path }) =>
    path.slice(cgroupRoot.length + 1).split(",")
  );
  return { version: 1, controllers };
}

/** Mount points of the cgroup hierarchies. */
export function cgroupHierarchies(): string[] {
  return mounts().filter(({ type }) => /^cgroup2?$/.test(type)).map(({ path }) => path);
}

/** Names of CNI configurations, in the order in which the runtime takes them. */
export function cniConfigs(directory: string): string[] {
  try {
    return [...Deno.readDirSync(directory)].map(({ name }) => name).filter((name) =>
      /\.(conf|conflist|json)$/.test(name)
    ).sort();
  } catch {
    return [];
  }
}

/** Whether a process of that name runs. */
export function processRuns(name: string): boolean {
  for (const { name: pid } of Deno.readDirSync("/proc")) {
    if (!/^\d+$/.test(pid)) continue;
    try {
      if (Deno.readTextFileSync(`/proc/${pid}/comm`).trimEnd() === name) return true;
    } catch { /* it has ended */ }
  }
  return false;
}

/** Whether something listens on the TCP port in this network namespace. */
export function portTaken(port: number): boolean {
  const wanted = `:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  return ["/proc/net/tcp", "/proc/net/tcp6"].some((path) => {
    try {
      // sl local_address rem_address st: 0A is TCP_LISTEN.
      return Deno.readTextFileSync(path).split("\n").some((line) => {
        const [, local = "", , state] = line.trim().split(/\s+/);
        return state === "0A" && local.endsWith(wanted);
      });
    } catch {
      return false; // no IPv6
    }
  });
}

export function isRoot(): boolean {
  return Deno.uid() === 0;
}

/** The kernel takes a moment to let the last process of a cgroup go. */
const removeAttempts = 20;
const removeRetryMs = 50;

/** Removes a cgroup and its empty children in every hierarchy; what still holds processes stays and is returned. */
export async function removeCgroups(path: string): Promise<string[]> {
  for (let attempt = 1;; attempt++) {
    const left = cgroupHierarchies().map((mount) => `${mount}${path}`).filter((directory) =>
      !removeCgroup(directory)
    );
    if (left.length === 0 || attempt >= removeAttempts) return left;
    await new Promise((resolve) => setTimeout(resolve, removeRetryMs));
  }
}

function removeCgroup(directory: string): boolean {
  try {
    for (const { name, isDirectory } of Deno.readDirSync(directory)) {
      if (isDirectory) removeCgroup(`${directory}/${name}`);
    }
    Deno.removeSync(directory); // its files go with it
    return true;
  } catch (error) {
    return error instanceof Deno.errors.NotFound;
  }
}

/** Unmounts all that is mounted below `directory`, innermost first. Returns what stays mounted. */
export async function unmountBelow(directory: string): Promise<string[]> {
  const below = () => mounts().map(({ path }) => path).filter((path) => path.startsWith(`${directory}/`));
  for (const path of below().reverse()) {
    await new Deno.Command("umount", { args: [path], stdin: "null", stdout: "null", stderr: "null" })
      .output();
  }
  return below();
}
