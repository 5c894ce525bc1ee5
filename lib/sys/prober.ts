/** Network probes as the kubelet does them (pkg/probe/{http,tcp}). */
import http from "node:http";
import https from "node:https";
import type { Prober, ProbeResult } from "../edge/pod/ports.ts";

/** Read of an answer for the event's message (pkg/probe/http: maxRespBodyLength). */
const bodyBytesMax = 10 * 1024;

export const prober: Prober = {
  http(url, { headers, timeoutMs }) {
    return new Promise((resolve) => {
      const secure = url.startsWith("https:");
      const done = (result: ProbeResult) => {
        clearTimeout(timer);
        request.destroy();
        resolve(result);
      };
      // A probe asks whether the container serves, not who it is: the kubelet does not check certificates here.
      const options = {
        method: "GET",
        headers: grouped(headers),
        agent: false,
        ...(secure ? { rejectUnauthorized: false } : {}),
      };
      const request = (secure ? https : http).request(url, options, (response) => {
        let body = "";
        response.on("data", (chunk: Uint8Array) => {
          if (body.length < bodyBytesMax) body += new TextDecoder().decode(chunk);
          else finish();
        });
        const finish = () => {
          const status = response.statusCode ?? 0;
          if (status >= 200 && status < 400) done({ ok: true, output: body });
          else done({ ok: false, output: `HTTP probe failed with statuscode: ${status}` });
        };
        response.on("end", finish);
      });
      request.on("error", (error: Error) => done({ ok: false, output: `Get "${url}": ${error.message}` }));
      const timer = setTimeout(
        () => done({ ok: false, output: `Get "${url}": context deadline exceeded` }),
        timeoutMs,
      );
      request.end();
    });
  },

  async tcp(host, port, timeoutMs) {
    try {
      (await Deno.connect(
        { hostname: host, port, signal: AbortSignal.timeout(timeoutMs) } as Deno.ConnectOptions,
      )).close();
      return { ok: true, output: "" };
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      return { ok: false, output: `dial tcp ${host}:${port}: ${message}` };
    }
  },
};

function grouped(headers: [string, string][]): Record<string, string[]> {
  const out: Record<string, string[]> = {};
  for (const [name, value] of headers) (out[name] ??= []).push(value);
  return out;
}
