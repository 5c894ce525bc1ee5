/** /healthz, /readyz and /metrics of a role, for kubelets, systemd watchdogs and Prometheus. */
import { errorText, UserError } from "../core/errors.ts";

export interface StatusAnswer {
  status: number;
  body: string;
  type: string;
}
export interface StatusSources {
  /** Why it is not alive, not ready; undefined: it is. */
  live(): string | undefined;
  ready(): string | undefined;
  /** Prometheus text. */
  metrics(): string;
  /** More paths. */
  extra?: Record<string, () => StatusAnswer | Promise<StatusAnswer>>;
}

export function serveStatus(
  listen: { host: string; port: number },
  sources: StatusSources,
): { port: number; close(): void } {
  const check = (why: string | undefined): StatusAnswer => ({
    status: why === undefined ? 200 : 503,
    body: `${why ?? "ok"}\n`,
    type: "text/plain",
  });
  const answers: Record<string, () => StatusAnswer | Promise<StatusAnswer>> = {
    "/healthz": () => check(sources.live()),
    "/livez": () => check(sources.live()),
    "/readyz": () => check(sources.ready()),
    "/metrics": () => ({
      status: 200,
      body: sources.metrics(),
      type: "text/plain; version=0.0.4; charset=utf-8",
    }),
    ...sources.extra,
  };
  try {
    const server = Deno.serve(
      { hostname: listen.host, port: listen.port, onListen: () => {} },
      async (request) => {
        const { status, body, type } = await answers[new URL(request.url).pathname]?.() ??
          { status: 404, body: "not found\n", type: "text/plain" };
        return new Response(body, { status, headers: { "content-type": type } });
      },
    );
    return { port: server.addr.port, close: () => void server.shutdown() };
  } catch (error) {
    throw new UserError(
      `Cannot serve status on ${listen.host}:${listen.port}: ${
        errorText(error)
      }; choose another --status-listen`,
    );
  }
}
