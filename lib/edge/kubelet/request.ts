/** What a request to the kubelet's API asks for: paths and queries of pkg/kubelet/server/server.go. Pure. */
import type { Refusal } from "./exchange.ts";

export interface LogOptions {
  previous: boolean;
  follow: boolean;
  timestamps: boolean;
  tailLines: number | undefined;
  limitBytes: number | undefined;
  sinceSeconds: number | undefined;
  /** ms since 1970. */
  sinceMs: number | undefined;
  stream: "all" | "stdout" | "stderr";
}

export interface StreamOptions {
  stdin: boolean;
  stdout: boolean;
  stderr: boolean;
  tty: boolean;
}

/** A pod by name; the uid, where given, must be its own. */
export interface PodTarget {
  namespace: string;
  pod: string;
  uid: string | undefined;
}
export interface ContainerTarget extends PodTarget {
  /** Undefined: the pod's only one. */
  container: string | undefined;
}

export type KubeletRequest =
  | { kind: "logs"; target: ContainerTarget; options: LogOptions }
  | { kind: "exec"; target: ContainerTarget; options: StreamOptions; command: string[] }
  | { kind: "attach"; target: ContainerTarget; options: StreamOptions }
  | { kind: "portForward"; target: PodTarget; ports: number[] }
  | { kind: "run"; target: ContainerTarget; command: string[] }
  | { kind: "read"; what: Readable }
  | { kind: "refused"; refusal: Refusal };

/** What is simply read, by path. */
const readables = new Map(
  Object.entries(
    {
      "healthz": "health",
      "healthz/ping": "health",
      "healthz/log": "health",
      "healthz/syncloop": "health",
      "pods": "pods",
      "runningpods": "runningPods",
      "stats/summary": "summary",
      "metrics": "metrics",
      "metrics/resource": "resourceMetrics",
      "metrics/cadvisor": "containerMetrics",
      "configz": "config",
    } as const,
  ),
);
export type Readable = typeof readables extends Map<string, infer What> ? What : never;

/** Path segments after namespace and pod, at most. */
const verbs = new Map([["containerLogs", 1], ["exec", 2], ["attach", 2], ["run", 2], ["portForward", 1]]);

export function parseRequest(method: string, target: string): KubeletRequest {
  const mark = target.indexOf("?");
  const path = mark < 0 ? target : target.slice(0, mark);
  const query = new URLSearchParams(mark < 0 ? "" : target.slice(mark + 1));
  let parts: string[];
  try {
    parts = path.replace(/^\/+|\/+$/g, "").split("/").map(decodeURIComponent);
  } catch {
    return refused(400, "the path is not well encoded");
  }
  const what = readables.get(parts.join("/"));
  if (what) return method === "GET" ? { kind: "read", what } : notAllowed("GET");
  const [verb, namespace, pod, ...rest] = parts;
  const most = verbs.get(verb ?? "");
  if (most === undefined || rest.length > most || parts.includes("")) {
    return refused(404, "404 page not found");
  }
  if (!namespace) return refused(400, "Missing podNamespace.");
  if (!pod) return refused(400, "Missing podID.");
  const uid = rest.length === 2 ? rest[0] : undefined;
  const place: ContainerTarget = { namespace, pod, uid, container: rest.at(-1) };
  switch (verb) {
    case "containerLogs": {
      if (method !== "GET") return notAllowed("GET");
      const options = logOptions(query);
      return "status" in options
        ? { kind: "refused", refusal: options }
        : { kind: "logs", target: place, options };
    }
    case "run":
      if (method !== "POST") return notAllowed("POST");
      return { kind: "run", target: place, command: (query.get("cmd") ?? "").split(" ") };
    case "portForward": {
      if (method !== "POST" && method !== "GET") return notAllowed("GET, POST");
      const ports = query.getAll("port").flatMap((list) => list.split(",")).map(Number);
      if (!ports.every((port) => Number.isInteger(port) && port > 0 && port < 65536)) {
        return refused(400, `port is "${query.getAll("port").join(",")}": expected numbers from 1 to 65535`);
      }
      return { kind: "portForward", target: { namespace, pod, uid: rest[0] }, ports };
    }
    default: {
      if (method !== "POST" && method !== "GET") return notAllowed("GET, POST");
      const options = streamOptions(query);
      if (!options.stdin && !options.stdout && !options.stderr) {
        return refused(400, "you must specify at least 1 of stdin, stdout, stderr");
      }
      if (verb === "attach") return { kind: "attach", target: place, options };
      const command = query.getAll("command");
      return command.length > 0
        ? { kind: "exec", target: place, options, command }
        : refused(400, "you must specify at least one command for the container");
    }
  }
}

const streams = new Map<string, LogOptions["stream"]>([["", "all"], ["All", "all"], ["Stdout", "stdout"], [
  "Stderr",
  "stderr",
]]);

function streamOptions(query: URLSearchParams): StreamOptions {
  const tty = flag(query, "tty");
  return {
    stdin: flag(query, "input") || flag(query, "stdin"),
    stdout: flag(query, "output") || flag(query, "stdout"),
    stderr: (flag(query, "error") || flag(query, "stderr")) && !tty, // a terminal has one output only
    tty,
  };
}

/** PodLogOptions from the query, with the rules of ValidatePodLogOptions. */
function logOptions(query: URLSearchParams): LogOptions | Refusal {
  const wrong: string[] = [];
  const count = (name: string, least: number): number | undefined => {
    const value = query.get(name);
    if (value === null || value === "") return undefined;
    if (!/^-?\d+$/.test(value)) return wrong.push(`${name} is "${value}", not a number`), undefined;
    if (Number(value) < least) wrong.push(`${name} is ${value}, less than ${least}`);
    return Number(value);
  };
  const tail = query.get("tail"); // what tailLines was called once
  if (tail) query.set("tailLines", tail === "all" ? "" : tail);
  const tailLines = count("tailLines", 0),
    limitBytes = count("limitBytes", 1),
    sinceSeconds = count("sinceSeconds", 1);
  const sinceTime = query.get("sinceTime") || undefined;
  const sinceMs = sinceTime === undefined ? undefined : Date.parse(sinceTime);
  if (Number.isNaN(sinceMs)) wrong.push(`sinceTime is "${sinceTime}", not an RFC 3339 time`);
  if (sinceMs !== undefined && sinceSeconds !== undefined) {
    wrong.push("at most one of sinceTime and sinceSeconds may be specified");
  }
  const stream = streams.get(query.get("stream") ?? "");
  if (!stream) wrong.push(`stream is "${query.get("stream")}", expected All, Stdout or Stderr`);
  if (stream !== "all" && tailLines !== undefined) {
    wrong.push("tailLines and a specific stream are mutually exclusive for now");
  }
  if (wrong.length > 0 || !stream) return { status: 422, message: `Invalid request: ${wrong.join("; ")}` };
  return {
    previous: flag(query, "previous"),
    follow: flag(query, "follow"),
    timestamps: flag(query, "timestamps"),
    tailLines,
    limitBytes,
    sinceSeconds,
    sinceMs,
    stream,
  };
}

/** Present is true, unless it says otherwise. */
function flag(query: URLSearchParams, name: string): boolean {
  const value = query.get(name);
  return value !== null && value !== "0" && value.toLowerCase() !== "false";
}

function refused(status: number, message: string): KubeletRequest {
  return { kind: "refused", refusal: { status, message } };
}

function notAllowed(allow: string): KubeletRequest {
  return {
    kind: "refused",
    refusal: { status: 405, message: "Method Not Allowed", headers: [["allow", allow]] },
  };
}
