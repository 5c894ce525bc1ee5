/** What a machine must have before it joins: facts in, checks with remedies out. lib/sys/machine.ts gathers the facts. */
import type { RuntimeInfo } from "../cri/runtime.ts";

export interface MachineFacts {
  root: boolean;
  /** Undefined: no cgroup file system is mounted. Controllers that can be used, by their kernel names. */
  cgroups: { version: 1 | 2; controllers: string[] } | undefined;
  runtimeEndpoint: string;
  runtime: { state: "ok"; info: RuntimeInfo } | { state: "failed"; reason: string };
  cniDirectory: string;
  /** Names of the configurations in it. */
  cniConfigs: string[];
  rootDir: string;
  /** Of the file system that holds (or will hold) the root directory. */
  freeBytes: number | undefined;
  hubs: HubProbe[];
  /** False: the machine holds a valid identity of this cluster, and can go on without a hub. */
  hubNeeded: boolean;
  kubelet: { running: boolean; portTaken: boolean };
}

/** `skewMs`: this machine's clock minus the hub's. */
export type HubProbe =
  | { url: string; state: "ok"; skewMs: number | undefined }
  | { url: string; state: "failed"; reason: string };

export interface Check {
  level: "ok" | "warn" | "error";
  name: string;
  text: string;
  remedy?: string;
}

const neededControllers = ["cpu", "cpuset", "memory", "pids"];
/** CRI v1 came with containerd 1.6. */
const containerdLeast = [1, 6] as const;
const freeBytesWarn = 1024 ** 3;
const freeBytesLeast = 100 * 1024 ** 2;
/** A certificate is valid from 5 min before it is made (clockSkewMs of lib/crypto/x509.ts). */
const skewErrorMs = 5 * 60_000;
/** Beyond it times in events and logs mislead. */
const skewWarnMs = 5_000;
export const kubeletPort = 10250;

export function preflight(facts: MachineFacts): Check[] {
  return [
    root(facts),
    cgroups(facts),
    runtime(facts),
    network(facts),
    disk(facts),
    ...hubs(facts),
    clock(facts),
    kubelet(facts),
  ].filter((check) => check !== undefined);
}

/** `✓ disk: 12.0 GiB free`, and the remedy on a line of its own. */
export function checkLines(check: Check): string[] {
  const mark = { ok: "✓", warn: "!", error: "✗" }[check.level];
  return [`${mark} ${check.name}: ${check.text}`, ...(check.remedy ? [`    → ${check.remedy}`] : [])];
}

function root(facts: MachineFacts): Check {
  const name = "user";
  if (facts.root) return { level: "ok", name, text: "root" };
  return {
    level: "error",
    name,
    text: "not root; pods need mounts, cgroups and the runtime's socket",
    remedy: "run it with sudo",
  };
}

function cgroups({ cgroups }: MachineFacts): Check {
  const name = "cgroups";
  if (!cgroups) {
    return {
      level: "error",
      name,
      text: "none mounted at /sys/fs/cgroup",
      remedy: "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
    };
  }
  const missing = neededControllers.filter((controller) => !cgroups.controllers.includes(controller));
  if (missing.length === 0) {
    return { level: "ok", name, text: `v${cgroups.version} with ${neededControllers.join(", ")}` };
  }
  const remedy = missing.includes("memory")
    ? `add "cgroup_enable=memory cgroup_memory=1" to the kernel's command line (Raspberry Pi: cmdline.txt of the boot partition) and reboot`
    : "enable them in the kernel, or on the host of this container";
  return { level: "error", name, text: `v${cgroups.version} lacks ${missing.join(", ")}`, remedy };
}

function runtime({ runtime, runtimeEndpoint }: MachineFacts): Check {
  const name = "runtime";
  if (runtime.state === "failed") {
    return {
      level: "error",
      name,
      text: `${runtimeEndpoint} does not answer: ${runtime.reason}`,
      remedy:
        `install and start containerd 1.6 or newer (apt install containerd), take "cri" out of disabled_plugins in its config.toml, or name another socket with --runtime-endpoint`,
    };
  }
  const { name: runtimeName, version, ready, message } = runtime.info;
  const what = `${runtimeName} ${version}`;
  if (runtimeName !== "containerd") {
    return {
      level: "warn",
      name,
      text: `${what} at ${runtimeEndpoint} is not tested`,
      remedy: "containerd 1.6 or newer is",
    };
  }
  const [major = 0, minor = 0] = version.split(".").map((part) => Number.parseInt(part));
  if (!(major > containerdLeast[0] || (major === containerdLeast[0] && minor >= containerdLeast[1]))) {
    return {
      level: "error",
      name,
      text: `${what} is too old`,
      remedy: `install containerd ${containerdLeast.join(".")} or newer`,
    };
  }
  if (!ready) {
    return {
      level: "error",
      name,
      text: `${what} says that it is not ready: ${message}`,
      remedy: "see its log: journalctl -u containerd",
    };
  }
  return { level: "ok", name, text: `${what} at ${runtimeEndpoint}` };
}

function network({ runtime, cniDirectory, cniConfigs }: MachineFacts): Check {
  const name = "pod network";
  const found = cniConfigs.length > 0 ? `${cniDirectory}/${cniConfigs[0]}` : "";
  if (runtime.state === "ok" && runtime.info.networkReady) {
    return { level: "ok", name, text: `CNI ready${found && ` (${found})`}` };
  }
  const remedy =
    `install CNI plug-ins (apt install containernetworking-plugins) and put a configuration into ${cniDirectory}`;
  // A runtime that does not answer has its own check.
  if (found && runtime.state === "failed") return { level: "ok", name, text: found };
  if (found && runtime.state === "ok") {
    const reason = runtime.info.message && `: ${runtime.info.message}`;
    return {
      level: "warn",
      name,
      text: `${found} is there, but the runtime does not say that its network is ready${reason}`,
      remedy,
    };
  }
  return {
    level: "error",
    name,
    text: `no CNI configuration in ${cniDirectory}; only pods with hostNetwork would run`,
    remedy,
  };
}

function disk({ rootDir, freeBytes }: MachineFacts): Check {
  const name = "disk";
  if (freeBytes === undefined) {
    return { level: "warn", name, text: `the free space for ${rootDir} cannot be read` };
  }
  const text = `${size(freeBytes)} free for ${rootDir}`;
  if (freeBytes >= freeBytesWarn) return { level: "ok", name, text };
  const remedy = "make room, or name another place with --root-dir";
  return {
    level: freeBytes < freeBytesLeast ? "error" : "warn",
    name,
    text: `${text}, expected at least ${size(freeBytesWarn)}`,
    remedy,
  };
}

function hubs({ hubs, hubNeeded }: MachineFacts): Check[] {
  const reached = hubs.some((hub) => hub.state === "ok");
  return hubs.map((hub) => {
    const name = "hub";
    if (hub.state === "ok") return { level: "ok", name, text: `${hub.url} answers` };
    const remedy = "check network, firewall and HTTPS_PROXY, and that kubeedge cloud runs";
    return {
      level: reached || !hubNeeded ? "warn" : "error",
      name,
      text: `${hub.url} does not answer: ${hub.reason}`,
      remedy,
    };
  });
}

/** The hub with the least difference counts: one whose own clock is wrong is not this machine's fault. */
function clock({ hubs, hubNeeded }: MachineFacts): Check | undefined {
  const name = "clock";
  const skews = hubs.flatMap((hub) => hub.state === "ok" && hub.skewMs !== undefined ? [hub.skewMs] : []);
  const skewMs = skews.sort((a, b) => Math.abs(a) - Math.abs(b))[0];
  if (skewMs === undefined) return undefined;
  if (Math.abs(skewMs) <= skewWarnMs) return { level: "ok", name, text: "within 5 s of the hub's" };
  const text = `${(Math.abs(skewMs) / 1000).toFixed(0)} s ${skewMs > 0 ? "ahead of" : "behind"} the hub's`;
  const level = Math.abs(skewMs) > skewErrorMs && hubNeeded ? "error" : "warn";
  return { level, name, text, remedy: "set it: timedatectl set-ntp true, or run chrony" };
}

function kubelet({ kubelet }: MachineFacts): Check {
  const name = "kubelet";
  if (kubelet.running) {
    const text = "a kubelet runs on this machine; two agents may get in each other's way";
    return {
      level: "warn",
      name,
      text,
      remedy:
        "stop it (systemctl disable --now kubelet), or keep --root-dir and --cgroup-root apart from its own",
    };
  }
  if (kubelet.portTaken) {
    return {
      level: "warn",
      name,
      text: `something listens on its port ${kubeletPort}`,
      remedy: "see what: ss -ltnp",
    };
  }
  return { level: "ok", name, text: "no other one" };
}

function size(bytes: number): string {
  return bytes >= 1024 ** 3
    ? `${(bytes / 1024 ** 3).toFixed(1)} GiB`
    : `${Math.round(bytes / 1024 ** 2)} MiB`;
}
