import { deepStrictEqual, strictEqual } from "node:assert";
import { parseRequest } from "../../lib/edge/kubelet/request.ts";

const plainLogs = {
  previous: false,
  follow: false,
  timestamps: false,
  tailLines: undefined,
  limitBytes: undefined,
  sinceSeconds: undefined,
  sinceMs: undefined,
  stream: "all" as const,
};

Deno.test("log requests", () => {
  const cases: { query: string; want: object }[] = [
    { query: "", want: {} },
    {
      query: "?follow=true&previous=1&timestamps=true&pretty=true",
      want: { follow: true, previous: true, timestamps: true },
    },
    { query: "?follow=false&previous=0&timestamps=False", want: {} },
    { query: "?follow&tailLines=10&limitBytes=100", want: { follow: true, tailLines: 10, limitBytes: 100 } },
    { query: "?tailLines=0", want: { tailLines: 0 } },
    { query: "?tail=7", want: { tailLines: 7 } },
    { query: "?tail=all", want: {} },
    { query: "?sinceSeconds=60", want: { sinceSeconds: 60 } },
    { query: "?sinceTime=2026-01-01T00%3A00%3A00Z", want: { sinceMs: Date.UTC(2026, 0, 1) } },
    { query: "?stream=Stderr", want: { stream: "stderr" } },
    { query: "?stream=All&tailLines=1", want: { tailLines: 1 } },
  ];
  for (const { query, want } of cases) {
    deepStrictEqual(parseRequest("GET", `/containerLogs/default/web/main${query}`), {
      kind: "logs",
      target: { namespace: "default", pod: "web", uid: undefined, container: "main" },
      options: { ...plainLogs, ...want },
    }, query);
  }
});

Deno.test("exec, attach, run and port-forward", () => {
  const target = { namespace: "n", pod: "p", uid: undefined, container: "c" };
  const options = { stdin: false, stdout: true, stderr: false, tty: false };
  const cases: { request: [string, string]; want: object }[] = [
    {
      request: ["POST", "/exec/n/p/c?command=sh&command=-c&command=echo%20%22a+b%22&output=1&error=1"],
      want: {
        kind: "exec",
        target,
        command: ["sh", "-c", 'echo "a b"'],
        options: { ...options, stderr: true },
      },
    },
    {
      request: ["GET", "/exec/n/p/uid-1/c?command=sh&input=1&output=1&error=1&tty=1"],
      want: {
        kind: "exec",
        target: { ...target, uid: "uid-1" },
        command: ["sh"],
        options: { ...options, stdin: true, tty: true },
      },
    },
    {
      request: ["POST", "/exec/n/p?command=sh&stdin&stdout&tty=0"],
      want: {
        kind: "exec",
        target: { ...target, container: undefined },
        command: ["sh"],
        options: { ...options, stdin: true },
      },
    },
    { request: ["POST", "/attach/n/p/c?output=1"], want: { kind: "attach", target, options } },
    { request: ["POST", "/run/n/p/c?cmd=ls%20-l"], want: { kind: "run", target, command: ["ls", "-l"] } },
    {
      request: ["POST", "/portForward/n/p"],
      want: { kind: "portForward", target: { namespace: "n", pod: "p", uid: undefined }, ports: [] },
    },
    {
      request: ["GET", "/portForward/n/p/uid-1?port=80&port=443,8080"],
      want: {
        kind: "portForward",
        target: { namespace: "n", pod: "p", uid: "uid-1" },
        ports: [80, 443, 8080],
      },
    },
    { request: ["GET", "/stats/summary"], want: { kind: "read", what: "summary" } },
    { request: ["GET", "/runningpods/"], want: { kind: "read", what: "runningPods" } },
    { request: ["GET", "/metrics/resource?x=1"], want: { kind: "read", what: "resourceMetrics" } },
  ];
  for (const { request, want } of cases) deepStrictEqual(parseRequest(...request), want, request.join(" "));
});

Deno.test("what is refused", () => {
  const cases: { request: [string, string]; status: number; message: RegExp }[] = [
    { request: ["GET", "/"], status: 404, message: /not found/ },
    { request: ["GET", "/constructor"], status: 404, message: /not found/ },
    { request: ["GET", "/exec/n/p/u/c/more?command=a&output=1"], status: 404, message: /not found/ },
    { request: ["GET", "/containerLogs/n/p/u/c"], status: 404, message: /not found/ },
    { request: ["GET", "/containerLogs/n//c"], status: 404, message: /not found/ },
    { request: ["GET", "/containerLogs/n"], status: 400, message: /podID/ },
    { request: ["GET", "/containerLogs/%ff/p/c"], status: 400, message: /encoded/ },
    { request: ["POST", "/containerLogs/n/p/c"], status: 405, message: /Method/ },
    { request: ["GET", "/run/n/p/c?cmd=ls"], status: 405, message: /Method/ },
    { request: ["DELETE", "/exec/n/p/c?command=a&output=1"], status: 405, message: /Method/ },
    { request: ["POST", "/pods"], status: 405, message: /Method/ },
    { request: ["POST", "/exec/n/p/c?command=a"], status: 400, message: /at least 1 of stdin/ },
    { request: ["POST", "/exec/n/p/c?output=1"], status: 400, message: /at least one command/ },
    { request: ["POST", "/portForward/n/p?port=0"], status: 400, message: /65535/ },
    { request: ["POST", "/portForward/n/p?port=http"], status: 400, message: /65535/ },
    { request: ["GET", "/containerLogs/n/p/c?tailLines=-1"], status: 422, message: /tailLines is -1/ },
    { request: ["GET", "/containerLogs/n/p/c?tailLines=x"], status: 422, message: /not a number/ },
    { request: ["GET", "/containerLogs/n/p/c?limitBytes=0"], status: 422, message: /limitBytes/ },
    { request: ["GET", "/containerLogs/n/p/c?sinceTime=soon"], status: 422, message: /RFC 3339/ },
    {
      request: ["GET", "/containerLogs/n/p/c?sinceTime=2026-01-01T00:00:00Z&sinceSeconds=1"],
      status: 422,
      message: /at most one/,
    },
    { request: ["GET", "/containerLogs/n/p/c?stream=Stdlog"], status: 422, message: /stream/ },
    { request: ["GET", "/containerLogs/n/p/c?stream=Stdout&tailLines=1"], status: 422, message: /exclusive/ },
  ];
  for (const { request, status, message } of cases) {
    const parsed = parseRequest(...request);
    if (parsed.kind !== "refused") throw new Error(`${request.join(" ")} was not refused`);
    strictEqual(parsed.refusal.status, status, request.join(" "));
    strictEqual(
      message.test(parsed.refusal.message),
      true,
      `${request.join(" ")}: ${parsed.refusal.message}`,
    );
  }
});
