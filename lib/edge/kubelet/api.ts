/**
 * The kubelet's HTTP API (pkg/kubelet/server/server.go), as kube-apiserver, metrics-server and `kubeedge edge logs`
 * use it. Who may call is judged where the caller connects: at the hub, or by the admin socket's mode.
 *
 * Reading order: request.ts (what is asked), this file, then log_reader.ts, tunnel.ts, stats.ts.
 */
import { text } from "../../core/bytes.ts";
import { errorText } from "../../core/errors.ts";
import type { Pod } from "../../kube/types.ts";
import {
  answer,
  answerJson,
  clientGone,
  type Exchange,
  type Found,
  type Refusal,
  refuse,
} from "./exchange.ts";
import { readLog } from "./log_reader.ts";
import { logRun } from "./log_run.ts";
import { allContainers, type KubeletPorts, type PodView, runLogPath } from "./ports.ts";
import {
  type ContainerTarget,
  type KubeletRequest,
  type LogOptions,
  parseRequest,
  type PodTarget,
  type Readable,
  type StreamOptions,
} from "./request.ts";
import { containerMetrics, resourceMetrics } from "./resource_metrics.ts";
import { Stats } from "./stats.ts";
import { tunnel, upgradeHeaders } from "./tunnel.ts";

const metricsType = "text/plain; version=0.0.4; charset=utf-8";

export class KubeletApi {
  readonly #ports: KubeletPorts;
  readonly #stats: Stats;

  constructor(ports: KubeletPorts) {
    this.#ports = ports;
    this.#stats = new Stats(ports);
  }

  /** Answers one exchange to its end; never rejects. */
  async serve(exchange: Exchange): Promise<void> {
    let answered = false;
    const watched: Exchange = {
      ...pick(exchange),
      sendHead: (head) => {
        answered = true;
        exchange.sendHead(head);
      },
      reset: (reason) => exchange.reset(reason),
    };
    try {
      await this.#serve(watched);
    } catch (error) {
      const message = errorText(error);
      this.#ports.log.debug("Kubelet request failed", {
        path: exchange.target.split("?")[0],
        error: message,
      });
      if (answered) exchange.reset(message);
      else await refuse(exchange, { status: 500, message }).catch(() => exchange.reset(message));
    }
  }

  async #serve(exchange: Exchange): Promise<void> {
    const request = parseRequest(exchange.method, exchange.target);
    if (request.kind === "exec" || request.kind === "attach" || request.kind === "portForward") {
      if (!upgradeHeaders(exchange.headers)) {
        return await refuse(exchange, { status: 400, message: "Upgrade request required" });
      }
      const url = await this.#streamUrl(request);
      if (url.state === "ok") return await tunnel(exchange, url.value, this.#ports);
      return await refuse(exchange, url.refusal);
    }
    const gone = clientGone(exchange);
    switch (request.kind) {
      case "refused":
        return await refuse(exchange, request.refusal);
      case "read":
        return await this.#read(exchange, request.what);
      case "logs":
        return await this.#logs(exchange, request, gone);
      case "run":
        return await this.#run(exchange, request);
    }
  }

  // ---- logs

  async #logs(
    exchange: Exchange,
    { target, options }: { target: ContainerTarget; options: LogOptions },
    gone: AbortController,
  ): Promise<void> {
    const { files, clock, pods, logDir } = this.#ports;
    const found = this.#container(target);
    if (found.state === "refused") return await refuse(exchange, found.refusal);
    const { view, container } = found.value;
    const chosen = logRun(view, container, options.previous);
    if (chosen.state === "refused") return await refuse(exchange, chosen.refusal);
    const run = chosen.value;
    const path = runLogPath(view.pod, container, run, logDir);
    const running = () => {
      const current = view.state.containers.get(container)?.current;
      return current?.id === run.id && (current.state === "running" || current.state === "created") &&
        pods.find(target.namespace, target.pod) === view;
    };
    if (!await files.stat(path) && !(options.follow && running())) {
      const message = `failed to open log file "${path}": it does not exist`;
      return await refuse(exchange, { status: 400, message });
    }
    exchange.sendHead({ status: 200, headers: [["content-type", "text/plain; charset=utf-8"]] });
    const writer = exchange.writable.getWriter();
    writer.closed.catch((error) => gone.abort(error));
    const sinceMs = options.sinceSeconds === undefined
      ? options.sinceMs
      : clock.now() - options.sinceSeconds * 1000;
    const { tailLines, limitBytes, timestamps, stream, follow } = options;
    const request = { path, tailLines, limitBytes, sinceMs, timestamps, stream, follow };
    for await (const chunk of readLog(request, { files, clock, running, signal: gone.signal })) {
      await writer.write(chunk);
    }
    await writer.close();
  }

  // ---- exec, attach, port-forward, run

  async #streamUrl(
    request: KubeletRequest & { kind: "exec" | "attach" | "portForward" },
  ): Promise<Found<string>> {
    const { runtime } = this.#ports;
    if (request.kind === "portForward") {
      const found = this.#pod(request.target);
      if (found.state === "refused") return found;
      const sandbox = found.value.state.sandbox;
      if (!sandbox?.ready) {
        return notFound(`pod not found ("${request.target.pod}_${request.target.namespace}")`);
      }
      return { state: "ok", value: await runtime.portForward(sandbox.id, request.ports) };
    }
    const found = this.#runningContainer(request.target);
    if (found.state === "refused") return found;
    const { containerId, tty } = found.value;
    if (request.kind === "exec") {
      const { options, command } = request;
      return { state: "ok", value: await runtime.exec({ containerId, command, ...options }) };
    }
    // Whether the process has a terminal was settled when it was started.
    const options: StreamOptions = { ...request.options, tty, stderr: request.options.stderr && !tty };
    return { state: "ok", value: await runtime.attach({ containerId, ...options }) };
  }

  async #run(
    exchange: Exchange,
    { target, command }: { target: ContainerTarget; command: string[] },
  ): Promise<void> {
    const found = this.#runningContainer(target);
    if (found.state === "refused") return await refuse(exchange, found.refusal);
    const { exitCode, stdout, stderr } = await this.#ports.runtime.execSync(
      found.value.containerId,
      command,
      0,
    );
    const output = text(stdout) + text(stderr);
    if (exitCode === 0) return await answer(exchange, { type: "application/json", body: output });
    await refuse(exchange, {
      status: 500,
      message: `command '${command.join(" ")}' exited with ${exitCode}: ${output}`,
    });
  }

  // ---- reading

  async #read(exchange: Exchange, what: Readable): Promise<void> {
    const { pods, metrics, health, config } = this.#ports;
    switch (what) {
      case "health": {
        const reason = health();
        if (reason !== undefined) {
          return await refuse(exchange, { status: 500, message: `unhealthy: ${reason}` });
        }
        return await answer(exchange, { type: "text/plain; charset=utf-8", body: "ok" });
      }
      case "pods":
        return await answerJson(
          exchange,
          podList(pods.list().map(({ pod, status }) => ({ ...pod, status }))),
        );
      case "runningPods":
        return await answerJson(exchange, podList(this.#runningPods()));
      case "summary":
        return await answerJson(exchange, await this.#stats.summary());
      case "metrics":
        return await answer(exchange, { type: metricsType, body: metrics() });
      case "resourceMetrics":
        return await answer(exchange, {
          type: metricsType,
          body: resourceMetrics(await this.#stats.counters()),
        });
      case "containerMetrics":
        return await answer(exchange, {
          type: metricsType,
          body: containerMetrics(await this.#stats.counters()),
        });
      case "config":
        return await answerJson(exchange, { kubeletconfig: config() });
    }
  }

  #runningPods(): object[] {
    const { pods } = this.#ports;
    return pods.list().flatMap(({ pod }) => {
      const { name, namespace = "default", uid } = pod.metadata;
      const view = pods.find(namespace, name);
      const containers = [...view?.state.containers ?? []].flatMap(([container, { current }]) =>
        current?.state === "running" ? [{ name: container, image: current.imageRef, resources: {} }] : []
      );
      if (!view?.state.sandbox?.ready && containers.length === 0) return [];
      return [{
        metadata: { name, namespace, uid, creationTimestamp: null },
        spec: { containers },
        status: {},
      }];
    });
  }

  // ---- finding

  #pod({ namespace, pod, uid }: PodTarget): Found<PodView> {
    const view = this.#ports.pods.find(namespace, pod);
    if (!view || (uid !== undefined && view.pod.metadata.uid !== uid)) {
      return notFound(`pod "${pod}" does not exist`);
    }
    return { state: "ok", value: view };
  }

  #container(target: ContainerTarget): Found<{ view: PodView; container: string; tty: boolean }> {
    const found = this.#pod(target);
    if (found.state === "refused") return found;
    const view = found.value;
    const { containers } = view.pod.spec;
    const name = target.container ?? (containers.length === 1 ? containers[0]?.name : undefined);
    if (name === undefined) {
      const names = allContainers(view.pod).map((container) => container.name).join(" ");
      const message = `a container name must be specified for pod ${target.pod}, choose one of: [${names}]`;
      return { state: "refused", refusal: { status: 400, message } };
    }
    const container = allContainers(view.pod).find((candidate) => candidate.name === name);
    if (!container) return notFound(`container "${name}" not found in pod "${target.pod}"`);
    return { state: "ok", value: { view, container: name, tty: container.tty === true } };
  }

  #runningContainer(target: ContainerTarget): Found<{ containerId: string; tty: boolean }> {
    const found = this.#container(target);
    if (found.state === "refused") return found;
    const { view, container, tty } = found.value;
    const run = view.state.containers.get(container)?.current;
    if (run?.state !== "running") return notFound(`container not found ("${container}")`);
    return { state: "ok", value: { containerId: run.id, tty } };
  }
}

function podList(items: Pod[] | object[]): object {
  return { kind: "PodList", apiVersion: "v1", metadata: {}, items };
}

function notFound(message: string): { state: "refused"; refusal: Refusal } {
  return { state: "refused", refusal: { status: 404, message } };
}

/** The parts of an exchange that may be getters of a class. */
function pick(
  { method, target, headers, readable, writable }: Exchange,
): Omit<Exchange, "sendHead" | "reset"> {
  return { method, target, headers, readable, writable };
}
