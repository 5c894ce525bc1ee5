/** `kubeedge edge run`: EdgeCore with the real machine below it, until a signal. Containers outlive it. */
import { ExitCode, UserError } from "../lib/core/errors.ts";
import { Logger, type LogLevel } from "../lib/core/log.ts";
import { Metrics } from "../lib/core/metrics.ts";
import { Cri } from "../lib/cri/client.ts";
import { answerJson } from "../lib/edge/kubelet/exchange.ts";
import { KubeletApi } from "../lib/edge/kubelet/api.ts";
import { LogRotation } from "../lib/edge/kubelet/log_rotation.ts";
import { runningLogs } from "../lib/edge/kubelet/ports.ts";
import { qosClass } from "../lib/edge/pod/config.ts";
import { EdgeCore } from "../lib/edge/loop.ts";
import { serveAdmin } from "../lib/sys/admin_server.ts";
import { systemClock, systemRandom } from "../lib/sys/clock.ts";
import { dial } from "../lib/sys/dial.ts";
import { grpcUnix } from "../lib/sys/grpc_unix.ts";
import { diskFree, hostFacts, memoryAvailable } from "../lib/sys/host.ts";
import { serveStatus } from "../lib/sys/http_status.ts";
import { connectHub } from "../lib/sys/hub_client.ts";
import { loadIdentity, saveIdentity } from "../lib/sys/identity_files.ts";
import { kubeletFiles } from "../lib/sys/kubelet_files.ts";
import { logSink } from "../lib/sys/log_sink.ts";
import { podCgroups } from "../lib/sys/pod_cgroups.ts";
import { podFiles } from "../lib/sys/pod_files.ts";
import { prober } from "../lib/sys/prober.ts";
import { trimMemory } from "../lib/sys/memory.ts";
import { fileSystemStats, nodeStats } from "../lib/sys/node_stats.ts";
import { openStore } from "../lib/sys/store.ts";
import { stopSignal } from "./support/shutdown.ts";

/** After the start, and from then on: memory that is not needed any more goes back. */
const trimFirstMs = 8000;
const trimMs = 20_000;

export interface EdgeRunOptions {
  rootDir: string;
  runtimeEndpoint: string;
  podLogDir: string;
  cgroupRoot: string;
  clusterDns: string[];
  clusterDomain: string;
  nodeIp?: string | undefined;
  statusListen: { host: string; port: number } | undefined;
  maxPods: number;
  logLevel: LogLevel;
  logFormat: "text" | "json";
}

export async function runEdge(options: EdgeRunOptions): Promise<void> {
  const { rootDir, podLogDir, cgroupRoot, clusterDns, clusterDomain, maxPods, nodeIp, statusListen } =
    options;
  const log = new Logger({
    sink: logSink(options.logFormat),
    now: () => Date.now(),
    level: options.logLevel,
  });
  const identity = loadIdentity(rootDir);
  if (!identity) {
    throw new UserError(
      `This machine is no edge node yet (no identity in ${rootDir}): run "kubeedge edge join TOKEN"`,
      ExitCode.precondition,
    );
  }
  const metrics = new Metrics();
  const runtime = new Cri(grpcUnix(options.runtimeEndpoint));
  const storePort = await openStore(`${rootDir}/store.db`);
  const stop = stopSignal();
  const core = await EdgeCore.start({
    identity,
    saveIdentity: (next) => saveIdentity(rootDir, next),
    storePort,
    runtime,
    connect: connectHub,
    files: podFiles,
    cgroups: podCgroups(cgroupRoot, qosClass),
    prober,
    machine: () => ({ ...hostFacts(), diskBytes: diskFree(rootDir).totalBytes }),
    headroom: () => {
      const { freeBytes, totalBytes } = diskFree(rootDir);
      return { memoryFreeBytes: memoryAvailable(), diskFreeShare: freeBytes / totalBytes };
    },
    kubelet: ({ pods, nodeName, health }) => ({
      api: new KubeletApi({
        pods,
        nodeName,
        health,
        runtime,
        files: kubeletFiles,
        dial,
        nodeStats: () => nodeStats(rootDir),
        fileSystem: fileSystemStats,
        metrics: () => metrics.text(),
        config: () => ({ ...options }),
        logDir: podLogDir,
        clock: systemClock,
        log,
      }),
      rotation: new LogRotation({
        files: kubeletFiles,
        running: () => runningLogs(pods, podLogDir),
        reopenLog: (id) => runtime.reopenLog(id),
        clock: systemClock,
        log,
      }),
    }),
    clock: systemClock,
    random: systemRandom,
    log,
    metrics,
  }, { rootDir, logDir: podLogDir, clusterDns, clusterDomain, resolvConf, maxPods, nodeIp });
  const admin = await serveAdmin(`${rootDir}/edge.sock`, (exchange) => {
    switch (exchange.target) {
      case "/v1/status":
        return answerJson(exchange, core.status());
      case "/v1/pods":
        return answerJson(exchange, { kind: "PodList", apiVersion: "v1", items: core.pods() });
      default:
        return core.serve(exchange);
    }
  });
  const status = statusListen && await serveStatus(statusListen, {
    live: () => undefined,
    ready: () => core.ready(),
    metrics: () => metrics.text(),
  });
  const trim = setInterval(trimMemory, trimMs);
  setTimeout(trimMemory, trimFirstMs);
  const signal = await stop;
  clearInterval(trim);
  log.info("Stopping; containers run on", { reason: signal });
  admin.close();
  status?.close();
  await core.close();
}

function resolvConf(): string {
  // systemd-resolved's stub is of no use inside a pod: the file behind it names the real servers.
  for (const path of ["/run/systemd/resolve/resolv.conf", "/etc/resolv.conf"]) {
    try {
      return Deno.readTextFileSync(path);
    } catch { /* the next one */ }
  }
  return "";
}
