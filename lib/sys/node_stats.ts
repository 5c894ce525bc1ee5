/** The machine's own figures, from /proc and statfs. */
import { statfs } from "node:fs/promises";
import type { FileSystemFigures, InterfaceFigures, NodeFigures } from "../edge/kubelet/ports.ts";

/** USER_HZ is 100 on every Linux: a tick of /proc/stat in ns. */
const tickNanoseconds = 10_000_000;
/** cAdvisor leaves them out: traffic of pods would be counted twice. */
const inner = /^(lo$|veth|docker|nerdctl)/;

/** `rootDir` names the file system that counts as the node's. */
export async function nodeStats(rootDir: string): Promise<NodeFigures> {
  const read = (path: string) => Deno.readTextFile(path).catch(() => "");
  const [stat, memory, vmstat, devices, routes, load, pidMax, fileSystem] = await Promise.all([
    Deno.readTextFile("/proc/stat"),
    Deno.readTextFile("/proc/meminfo"),
    read("/proc/vmstat"),
    read("/proc/net/dev"),
    read("/proc/net/route"),
    read("/proc/loadavg"),
    read("/proc/sys/kernel/pid_max"),
    fileSystemStats(rootDir),
  ]);
  if (!fileSystem) throw new Error(`no file system at ${rootDir}`);
  return {
    timeMs: Date.now(),
    ...parseStat(stat),
    ...parseMemory(memory, vmstat),
    fileSystem,
    defaultInterface: parseDefaultInterface(routes),
    interfaces: parseInterfaces(devices),
    processes: { most: Number(pidMax) || 0, running: Number(/\/(\d+)/.exec(load)?.[1] ?? 0) },
  };
}

export async function fileSystemStats(path: string): Promise<FileSystemFigures | undefined> {
  try {
    const { bsize, blocks, bfree, bavail, files, ffree } = await statfs(path);
    return {
      availableBytes: bavail * bsize,
      capacityBytes: blocks * bsize,
      usedBytes: (blocks - bfree) * bsize,
      inodesFree: ffree,
      inodes: files,
      inodesUsed: files - ffree,
    };
  } catch {
    return undefined;
  }
}

/** Busy time: user, nice, system, irq, softirq; not idle, iowait, steal, and guests are in user already. */
export function parseStat(stat: string): { cpuCoreNanoSeconds: number; bootMs: number } {
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0] =
    /^cpu +(.*)$/m.exec(stat)?.[1]?.split(" ").map(Number) ?? [];
  return {
    cpuCoreNanoSeconds: (user + nice + system + irq + softirq) * tickNanoseconds,
    bootMs: Number(/^btime (\d+)$/m.exec(stat)?.[1] ?? 0) * 1000,
  };
}

export function parseMemory(meminfo: string, vmstat: string): Pick<NodeFigures, "memory" | "swap"> {
  const fields = new Map(
    [...meminfo.matchAll(/^(\S+): +(\d+)/gm)].map(([, name = "", kib]) => [name, Number(kib) * 1024]),
  );
  const bytes = (name: string) => fields.get(name) ?? 0;
  const count = (name: string) => Number(new RegExp(`^${name} (\\d+)$`, "m").exec(vmstat)?.[1] ?? 0);
  const usageBytes = bytes("MemTotal") - bytes("MemFree");
  const workingSetBytes = Math.max(0, usageBytes - bytes("Inactive(file)"));
  return {
    memory: {
      availableBytes: bytes("MemTotal") - workingSetBytes,
      usageBytes,
      workingSetBytes,
      rssBytes: bytes("AnonPages"),
      pageFaults: count("pgfault"),
      majorPageFaults: count("pgmajfault"),
    },
    swap: { availableBytes: bytes("SwapFree"), usageBytes: bytes("SwapTotal") - bytes("SwapFree") },
  };
}

/** /proc/net/dev: `eth0: bytes packets errs drop fifo frame compressed multicast | bytes packets errs …`. */
export function parseInterfaces(devices: string): InterfaceFigures[] {
  return [...devices.matchAll(/^ *(\S+?): *(.+)$/gm)].flatMap(([, name = "", figures = ""]) => {
    const [rxBytes = 0, , rxErrors = 0, , , , , , txBytes = 0, , txErrors = 0] = figures.trim().split(/ +/)
      .map(Number);
    return inner.test(name) ? [] : [{ name, rxBytes, rxErrors, txBytes, txErrors }];
  });
}

/** /proc/net/route: the default route of the least metric. */
export function parseDefaultInterface(routes: string): string | undefined {
  const defaults = routes.split("\n").slice(1).map((line) => line.trim().split(/\s+/))
    .filter(([, destination, , , , , , mask]) => destination === "00000000" && mask === "00000000");
  return defaults.sort((a, b) => Number(a[6]) - Number(b[6]))[0]?.[0];
}
