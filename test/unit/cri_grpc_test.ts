/** gRPC and the CRI client against a runtime that answers, refuses, breaks off and talks rubbish. */
import assert from "node:assert/strict";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { concat } from "../../lib/core/bytes.ts";
import { Cri } from "../../lib/cri/client.ts";
import {
  Events,
  TaskExitSchema,
  TaskOOMSchema,
  TaskStartSchema,
} from "../../lib/cri/gen/containerd_events_pb.ts";
import { RuntimeService } from "../../lib/cri/gen/cri_pb.ts";
import { CriError, type GrpcSend, stream, unary } from "../../lib/cri/grpc.ts";

const method = RuntimeService.method.version;
const message = (payload: Uint8Array) => {
  const head = new Uint8Array(5);
  new DataView(head.buffer).setUint32(1, payload.length);
  return concat([head, payload]);
};
const versionBytes = (runtimeName: string) =>
  message(toBinary(method.output, create(method.output, { runtimeName })));

/** Answers with `bytes` in pieces of `size`. */
function answering(
  bytes: Uint8Array,
  options: { size?: number; headers?: Record<string, string>; status?: number; breaks?: boolean } = {},
): GrpcSend {
  return () => {
    let at = 0;
    const body = new ReadableStream<Uint8Array>({
      pull(controller) {
        if (at < bytes.length) controller.enqueue(bytes.slice(at, at += options.size ?? 1000));
        else if (options.breaks) controller.error(new Error("reset"));
        else controller.close();
      },
    });
    return Promise.resolve({ status: options.status ?? 200, headers: new Headers(options.headers), body });
  };
}
const failsWith = (code: string, want: RegExp) => (error: unknown) => {
  assert.ok(error instanceof CriError, String(error));
  assert.equal(error.code, code);
  assert.match(error.message, want);
  return true;
};

Deno.test("an answer is put together whatever its pieces", async () => {
  for (const size of [1, 2, 5, 6, 1000]) {
    const { runtimeName } = await unary(answering(versionBytes("containerd"), { size }), method, {});
    assert.equal(runtimeName, "containerd", `pieces of ${size}`);
  }
  const names: string[] = [];
  const three = concat(["a", "b", "c"].map(versionBytes));
  for await (const { runtimeName } of stream(answering(three, { size: 7 }), method, {})) {
    names.push(runtimeName);
  }
  assert.deepEqual(names, ["a", "b", "c"]);
});

Deno.test("the request is one message on the method's path", async () => {
  const sent: { path: string; body: Uint8Array }[] = [];
  const send: GrpcSend = (path, body, options) => {
    sent.push({ path, body });
    return answering(versionBytes("x"))(path, body, options);
  };
  await unary(send, method, { version: "v1" });
  assert.equal(sent[0]?.path, "/runtime.v1.RuntimeService/Version");
  assert.equal(sent[0]?.body[0], 0);
  assert.equal(new DataView(sent[0]!.body.buffer).getUint32(1), sent[0]!.body.length - 5);
  assert.equal(fromBinary(method.input, sent[0]!.body.subarray(5)).version, "v1");
});

Deno.test("refusals and faults have codes that callers can tell apart", async () => {
  const table: { name: string; send: GrpcSend; code: string; want: RegExp }[] = [
    {
      name: "a refusal",
      send: answering(new Uint8Array(0), {
        headers: { "grpc-status": "5", "grpc-message": "no%20such: %E2%82%AC 100%" },
      }),
      code: "NotFound",
      want: /^no such: € 100%$/,
    },
    {
      name: "a message that is no UTF-8",
      send: answering(new Uint8Array(0), { headers: { "grpc-status": "5", "grpc-message": "%FF%FE" } }),
      code: "NotFound",
      want: /./,
    },
    {
      name: "a code from the future",
      send: answering(new Uint8Array(0), { headers: { "grpc-status": "99" } }),
      code: "Unknown",
      want: /Version failed/,
    },
    {
      name: "no gRPC at all",
      send: answering(new Uint8Array(0), { status: 404 }),
      code: "Unavailable",
      want: /HTTP 404/,
    },
    {
      name: "an end without an answer",
      send: answering(new Uint8Array(0)),
      code: "Unavailable",
      want: /without an answer/,
    },
    {
      name: "an end inside the answer",
      send: answering(versionBytes("containerd").subarray(0, 9)),
      code: "Unavailable",
      want: /ended inside a message/,
    },
    {
      name: "a break",
      send: answering(versionBytes("containerd").subarray(0, 9), { breaks: true }),
      code: "Unavailable",
      want: /broke off/,
    },
    {
      name: "a compressed message",
      send: answering(new Uint8Array([1, 0, 0, 0, 0])),
      code: "Internal",
      want: /unexpected message/,
    },
    {
      name: "a message of 4 GiB",
      send: answering(new Uint8Array([0, 255, 255, 255, 255, 1])),
      code: "Internal",
      want: /unexpected message/,
    },
    {
      name: "no socket",
      send: () => Promise.reject(new Error("connect: no such file")),
      code: "Unavailable",
      want: /cannot be reached/,
    },
    {
      name: "no answer in time",
      send: () => Promise.reject(new DOMException("late", "TimeoutError")),
      code: "DeadlineExceeded",
      want: /no answer within 7 ms/,
    },
  ];
  for (const { name, send, code, want } of table) {
    await assert.rejects(unary(send, method, {}, { timeoutMs: 7 }), failsWith(code, want), name);
  }
  const abort = new AbortController();
  abort.abort(new Error("enough"));
  await assert.rejects(
    unary(() => Promise.reject(new Error("aborted")), method, {}, { signal: abort.signal }),
    /^Error: enough$/,
  );
});

Deno.test("a large answer costs time in proportion to its size", async () => {
  const name = "x".repeat(8 * 1024 * 1024);
  const started = performance.now();
  const { runtimeName } = await unary(answering(versionBytes(name), { size: 4096 }), method, {});
  assert.equal(runtimeName.length, name.length);
  // Copying what there is with every piece would be 8 GiB.
  assert.ok(performance.now() - started < 3000, `${performance.now() - started} ms`);
});

Deno.test("containerd's events: starts, exits of containers but not of execs, and the end of the stream", async () => {
  const envelope = (topic: string, typeUrl: string, value: Uint8Array) =>
    message(
      toBinary(
        Events.method.subscribe.output,
        create(Events.method.subscribe.output, { topic, event: { typeUrl, value } }),
      ),
    );
  const exit = (containerId: string, id: string, exitStatus: number) =>
    envelope(
      "/tasks/exit",
      "containerd.events.TaskExit",
      toBinary(TaskExitSchema, create(TaskExitSchema, { containerId, id, exitStatus })),
    );
  const bytes = concat([
    envelope(
      "/tasks/start",
      "containerd.events.TaskStart",
      toBinary(TaskStartSchema, create(TaskStartSchema, { containerId: "c1" })),
    ),
    exit("c1", "an-exec", 0),
    envelope(
      "/tasks/oom",
      "containerd.events.TaskOOM",
      toBinary(TaskOOMSchema, create(TaskOOMSchema, { containerId: "c1" })),
    ),
    exit("c1", "c1", 137),
  ]);
  const events: unknown[] = [];
  for await (
    const event of new Cri(answering(bytes, { size: 11, breaks: true })).events(new AbortController().signal)
  ) events.push(event);
  assert.deepEqual(events, [
    { type: "start", containerId: "c1" },
    { type: "oom", containerId: "c1" },
    { type: "exit", containerId: "c1", exitCode: 137 },
  ]);
});

Deno.test("the runtime's readiness is its own word, with its reasons", async () => {
  const answers = (ready: boolean): GrpcSend => (path, body, options) => {
    const status = RuntimeService.method.status.output;
    const bytes = path.endsWith("/Version")
      ? toBinary(
        method.output,
        create(method.output, { runtimeName: "containerd", runtimeVersion: "v1.6.20" }),
      )
      : toBinary(
        status,
        create(status, {
          status: {
            conditions: [{ type: "RuntimeReady", status: true }, {
              type: "NetworkReady",
              status: ready,
              reason: "NetworkPluginNotReady",
              message: ready ? "" : "cni not initialized",
            }],
          },
        }),
      );
    return answering(message(bytes))(path, body, options);
  };
  assert.deepEqual(await new Cri(answers(true)).info(), {
    name: "containerd",
    version: "1.6.20",
    ready: true,
    networkReady: true,
    message: "",
  });
  const cut = await new Cri(answers(false)).info();
  assert.deepEqual([cut.networkReady, cut.message], [false, "cni not initialized"]);
});
