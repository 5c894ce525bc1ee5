/** Probes: the counting is pure (`ProbeCounter`), the timing and asking is `ContainerProbes`. */
import { text } from "../../core/bytes.ts";
import { errorText } from "../../core/errors.ts";
import type { Timer } from "../../core/clock.ts";
import type {
  Container,
  HttpGetAction,
  IntOrString,
  LifecycleHandler,
  Pod,
  Probe,
} from "../../kube/types.ts";
import type { PodPorts, ProbeResult } from "./ports.ts";

/** Counts results against the thresholds. */
export class ProbeCounter {
  #successes = 0;
  #failures = 0;
  constructor(readonly probe: Probe) {}

  /** `undefined`: nothing is decided by this result. */
  add(ok: boolean): "success" | "failure" | undefined {
    if (ok) {
      this.#failures = 0;
      return ++this.#successes >= (this.probe.successThreshold ?? 1) ? "success" : undefined;
    }
    this.#successes = 0;
    return ++this.#failures >= (this.probe.failureThreshold ?? 3) ? "failure" : undefined;
  }
}

type Kind = "startup" | "readiness" | "liveness";
export interface ProbeHandlers {
  started(): void;
  ready(ready: boolean): void;
  /** The container is to be restarted. */
  kill(message: string): void;
}

/** The probes of one run of a container; stopped with it. */
export class ContainerProbes {
  readonly #timers = new Map<Kind, Timer>();
  #stopped = false;

  constructor(
    readonly context: { pod: Pod; container: Container; containerId: string; podIp: string },
    readonly ports: Pick<PodPorts, "runtime" | "prober" | "clock" | "random" | "event">,
    readonly handlers: ProbeHandlers,
  ) {
    const { startupProbe } = context.container;
    if (startupProbe) {
      this.#schedule(
        "startup",
        startupProbe,
        new ProbeCounter(startupProbe),
        (startupProbe.initialDelaySeconds ?? 0) * 1000,
      );
    } else this.#started();
  }

  stop(): void {
    this.#stopped = true;
    for (const timer of this.#timers.values()) timer.cancel();
    this.#timers.clear();
  }

  #started(): void {
    const { livenessProbe, readinessProbe } = this.context.container;
    this.handlers.started();
    if (!readinessProbe) this.handlers.ready(true);
    else {this.#schedule(
        "readiness",
        readinessProbe,
        new ProbeCounter(readinessProbe),
        (readinessProbe.initialDelaySeconds ?? 0) * 1000,
      );}
    if (livenessProbe) {
      this.#schedule(
        "liveness",
        livenessProbe,
        new ProbeCounter(livenessProbe),
        (livenessProbe.initialDelaySeconds ?? 0) * 1000,
      );
    }
  }

  #schedule(kind: Kind, probe: Probe, counter: ProbeCounter, delayMs: number): void {
    if (this.#stopped) return;
    this.#timers.set(kind, this.ports.clock.timer(delayMs, () => void this.#probe(kind, probe, counter)));
  }

  async #probe(kind: Kind, probe: Probe, counter: ProbeCounter): Promise<void> {
    const result = await runHandler(
      probe,
      { ...this.context, timeoutSeconds: probe.timeoutSeconds ?? 1 },
      this.ports,
    );
    if (this.#stopped) return;
    if (!result.ok) {
      const name = kind === "startup" ? "Startup" : kind === "liveness" ? "Liveness" : "Readiness";
      const fieldPath = `spec.containers{${this.context.container.name}}`;
      this.ports.event(this.context.pod, {
        type: "Warning",
        reason: "Unhealthy",
        message: `${name} probe failed: ${result.output}`,
        fieldPath,
      });
    }
    const verdict = counter.add(result.ok);
    if (kind === "startup" && verdict === "success") return this.#started();
    if (kind === "readiness" && verdict) this.handlers.ready(verdict === "success");
    if (kind !== "readiness" && verdict === "failure") {
      return this.handlers.kill(
        `Container ${this.context.container.name} failed ${kind} probe, will be restarted`,
      );
    }
    this.#schedule(kind, probe, counter, (probe.periodSeconds ?? 10) * 1000);
  }
}

/** Runs a probe or hook handler once. */
export async function runHandler(
  handler: LifecycleHandler,
  context: { pod: Pod; container: Container; containerId: string; podIp: string; timeoutSeconds: number },
  ports: Pick<PodPorts, "runtime" | "prober" | "clock">,
): Promise<ProbeResult> {
  const { container, containerId, podIp, timeoutSeconds } = context;
  try {
    if (handler.exec) {
      const result = await ports.runtime.execSync(containerId, handler.exec.command ?? [], timeoutSeconds);
      const output = text(
        result.exitCode === 0 ? result.stdout : result.stderr.length > 0 ? result.stderr : result.stdout,
      );
      return { ok: result.exitCode === 0, output: output.slice(0, 1024) };
    }
    if (handler.httpGet) {
      const url = urlOf(handler.httpGet, container, podIp);
      const headers = (handler.httpGet.httpHeaders ?? []).map((
        { name, value },
      ): [string, string] => [name, value]);
      return await ports.prober.http(url, { headers, timeoutMs: timeoutSeconds * 1000 });
    }
    if (handler.tcpSocket) {
      const port = portOf(handler.tcpSocket.port, container);
      return await ports.prober.tcp(handler.tcpSocket.host ?? podIp, port, timeoutSeconds * 1000);
    }
    if (handler.sleep) {
      await ports.clock.sleep(handler.sleep.seconds * 1000);
      return { ok: true, output: "" };
    }
    return { ok: false, output: "this sort of probe is not supported on this edge node" };
  } catch (error) {
    return { ok: false, output: errorText(error) };
  }
}

function urlOf(action: HttpGetAction, container: Container, podIp: string): string {
  const host = action.host || podIp;
  const path = action.path ?? "/";
  const scheme = (action.scheme ?? "HTTP").toLowerCase();
  return `${scheme}://${host.includes(":") ? `[${host}]` : host}:${portOf(action.port, container)}${
    path.startsWith("/") ? "" : "/"
  }${path}`;
}

function portOf(port: IntOrString, container: Container): number {
  if (typeof port === "number") return port;
  const named = container.ports?.find((candidate) => candidate.name === port)?.containerPort;
  return named ?? (/^\d+$/.test(port) ? Number(port) : 0);
}
