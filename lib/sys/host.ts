/** Facts of this machine for the Node object, read from /proc, /sys and /etc. */
import { statfsSync } from "node:fs";

export interface HostFacts {
  machineId: string;
  systemUuid: string;
  bootId: string;
  kernelVersion: string;
  osImage: string;
  architecture: string;
  cpuCount: number;
  memoryBytes: number;
  /** Primary first. */
  ips: string[];
}

function read(path: string): string {
  try {
    return Deno.readTextFileSync(path).trim();
  } catch {
    return "";
  }
}

/** What never changes while the machine runs is read once. */
let fixed: Omit<HostFacts, "ips"> | undefined;

export function hostFacts(): HostFacts {
  fixed ??= {
    machineId: read("/etc/machine-id") || read("/var/lib/dbus/machine-id"),
    systemUuid: read("/sys/class/dmi/id/product_uuid") || read("/etc/machine-id"),
    bootId: read("/proc/sys/kernel/random/boot_id"),
    kernelVersion: read("/proc/sys/kernel/osrelease"),
    osImage: /^PRETTY_NAME="?([^"\n]*)/m.exec(read("/etc/os-release"))?.[1] ?? "Linux",
    architecture: Deno.build.arch === "aarch64" ? "arm64" : "amd64",
    cpuCount: navigator.hardwareConcurrency,
    memoryBytes: Number(/^MemTotal:\s+(\d+)/m.exec(read("/proc/meminfo"))?.[1] ?? 0) * 1024,
  };
  return { ...fixed, ips: addresses() };
}

/** Free memory, bytes: what the kernel could give without swapping. */
export function memoryAvailable(): number {
  return Number(/^MemAvailable:\s+(\d+)/m.exec(read("/proc/meminfo"))?.[1] ?? 0) * 1024;
}

/** Of the file system that holds `path`, or the nearest directory above that exists. */
export function diskFree(path: string): { totalBytes: number; freeBytes: number } {
  for (let at = path;; at = at.slice(0, at.lastIndexOf("/"))) {
    try {
      const { blocks, bavail, bsize } = statfsSync(at || "/");
      return { totalBytes: blocks * bsize, freeBytes: bavail * bsize };
    } catch (error) {
      if (at === "") throw error;
    }
  }
}

/** Address of the interface with the default route, else the first global one. */
export function primaryIp(): string | undefined {
  return addresses()[0];
}

/** Global addresses: those of the default route's interface first, IPv4 before IPv6; bridges of containers left out. */
function addresses(): string[] {
  const route = read("/proc/net/route").split("\n").slice(1).map((line) => line.split("\t"))
    .filter(([, destination]) => destination === "00000000").sort((a, b) => Number(a[6]) - Number(b[6]))[0]
    ?.[0];
  const all = Deno.networkInterfaces().filter(({ name, address }) =>
    !/^(lo|cni|docker|veth|br-)/.test(name) && !address.startsWith("fe80:") && !address.startsWith("169.254.")
  );
  const rank = ({ name, family }: Deno.NetworkInterfaceInfo) =>
    (name === route ? 0 : 2) + (family === "IPv4" ? 0 : 1);
  const sorted = all.sort((a, b) => rank(a) - rank(b)).map(({ address }) => address);
  // One address a family is what Kubernetes takes.
  const v4 = sorted.find((address) => !address.includes(":")),
    v6 = sorted.find((address) => address.includes(":"));
  return [v4, v6].filter((address): address is string => address !== undefined);
}
