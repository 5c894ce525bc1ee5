/** `kubeedge cloud`: the EdgeController with its real listeners, until a signal. */
import { UserError } from "../lib/core/errors.ts";
import { Logger, type LogLevel } from "../lib/core/log.ts";
import { Metrics } from "../lib/core/metrics.ts";
import { EdgeController } from "../lib/cloud/loop.ts";
import { KubeClient } from "../lib/kube/client.ts";
import { systemClock, systemRandom } from "../lib/sys/clock.ts";
import { primaryIp } from "../lib/sys/host.ts";
import { serveStatus } from "../lib/sys/http_status.ts";
import { listenHub } from "../lib/sys/hub_server.ts";
import { kubeHttp, loadConnection } from "../lib/sys/kube_http.ts";
import { listenKubelet } from "../lib/sys/kubelet_server.ts";
import { logSink } from "../lib/sys/log_sink.ts";
import { stopSignal } from "./support/shutdown.ts";

export interface CloudRunOptions {
  kubeconfig?: string | undefined;
  context?: string | undefined;
  namespace: string;
  listen: { host: string; port: number };
  /** `wss://host:port` each; empty: the advertised address and the listening port. */
  hubUrls: string[];
  /** Where the API server reaches the kubelet ports; undefined: this machine's primary address. */
  advertiseAddress?: string | undefined;
  kubeletListen: string;
  kubeletPorts: [number, number];
  nodeAddresses: "hub" | "edge";
  statusListen: { host: string; port: number } | undefined;
  logLevel: LogLevel;
  logFormat: "text" | "json";
}

export async function runCloud(options: CloudRunOptions): Promise<void> {
  const { namespace, listen, kubeletListen, kubeletPorts, nodeAddresses, statusListen } = options;
  const log = new Logger({
    sink: logSink(options.logFormat),
    now: () => Date.now(),
    level: options.logLevel,
  });
  const metrics = new Metrics();
  const client = new KubeClient(kubeHttp(loadConnection(options.kubeconfig, options.context)));
  const advertiseAddress = options.advertiseAddress ?? primaryIp();
  if (advertiseAddress === undefined) {
    throw new UserError(
      "This machine has no address that edges could dial: name one with --advertise-address",
      2,
    );
  }
  const host = advertiseAddress.includes(":") ? `[${advertiseAddress}]` : advertiseAddress;
  const hubUrls = options.hubUrls.length > 0 ? options.hubUrls : [`wss://${host}:${listen.port}`];
  const stop = stopSignal();
  let controller: EdgeController | undefined;
  const status = statusListen && await serveStatus(statusListen, {
    live: () => undefined,
    ready: () => controller ? controller.ready() : "the cluster has not been read yet",
    metrics: () => metrics.text(),
    extra: {
      "/v1/nodes": () => ({
        status: 200,
        body: JSON.stringify(controller?.nodes() ?? []),
        type: "application/json",
      }),
    },
  });
  try {
    controller = await Promise.race([
      EdgeController.start(
        { client, clock: systemClock, random: systemRandom, log, metrics, listenHub, listenKubelet },
        { namespace, listen, hubUrls, advertiseAddress, kubeletListen, kubeletPorts, nodeAddresses },
      ),
      stop.then(() => undefined),
    ]);
    if (!controller) return;
    const signal = await stop;
    log.info("Stopping; edges go on by themselves", { reason: signal });
    await controller.close();
  } finally {
    status?.close();
  }
}
