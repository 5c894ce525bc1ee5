/** The transport of lib/cri: HTTP/2 on a unix socket by Deno's fetch (node:http2 crashes on GOAWAY). */
import type { GrpcSend } from "../cri/grpc.ts";

/** `endpoint` is `unix:///path` or a path. */
export function grpcUnix(endpoint: string): GrpcSend {
  const path = endpoint.replace(/^unix:\/\//, "");
  const client = Deno.createHttpClient({ proxy: { transport: "unix", path }, http1: false, http2: true });
  return async (target, body, { timeoutMs, signal }) => {
    const signals: AbortSignal[] = [];
    if (signal) signals.push(signal);
    if (timeoutMs !== undefined) signals.push(AbortSignal.timeout(timeoutMs));
    const headers = { "content-type": "application/grpc+proto", te: "trailers" };
    const init: RequestInit & { client: Deno.HttpClient } = { method: "POST", headers, body, client };
    if (signals.length > 0) init.signal = AbortSignal.any(signals);
    return await fetch(`http://localhost${target}`, init);
  };
}
