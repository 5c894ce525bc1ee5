import { deepStrictEqual, match, strictEqual } from "node:assert";
import { KubeletApi } from "../../lib/edge/kubelet/api.ts";
import type { Exchange } from "../../lib/edge/kubelet/exchange.ts";
import type { KubeletPorts, PodView } from "../../lib/edge/kubelet/ports.ts";
import { tunnel, upgradeHeaders } from "../../lib/edge/kubelet/tunnel.ts";
import { dial } from "../../lib/sys/dial.ts";
import { systemClock } from "../../lib/sys/clock.ts";
import { concat, text, utf8 } from "../../lib/core/bytes.ts";
import { decodeFrame, type Frame } from "../../lib/wire/frame.ts";
import { Streams, type WireStream } from "../../lib/wire/streams.ts";
import type { StreamRequest } from "../../lib/cri/runtime.ts";
import { silentLogger } from "../../lib/core/log.ts";
import { FakeExchange } from "../fake/exchange.ts";

const upgrade: [string, string][] = [
  ["connection", "Upgrade"],
  ["upgrade", "SPDY/3.1"],
  ["X-Stream-Protocol-Version", "v4.channel.k8s.io"],
  ["Authorization", "Bearer secret"],
  ["sec-websocket-key", "a\r\nX-Injected: 1"],
];

/** A runtime's streaming server: gives what it was asked, then what `talk` does with the connection. */
function runtime(answer: string, talk: (socket: Deno.TcpConn) => Promise<void> = () => Promise.resolve()) {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const asked = Promise.withResolvers<string>();
  const done = (async () => {
    using socket = await listener.accept();
    let head = "";
    const buffer = new Uint8Array(4096);
    while (!head.includes("\r\n\r\n")) head += text(buffer.subarray(0, await socket.read(buffer) ?? 0));
    asked.resolve(head);
    await socket.write(utf8(answer));
    await talk(socket);
  })();
  const url = `http://127.0.0.1:${listener.addr.port}/exec/TOKEN`;
  return {
    url,
    asked: asked.promise,
    [Symbol.asyncDispose]: async () => {
      await done;
      listener.close();
    },
  };
}
const switching =
  "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n";
const ports = { dial, clock: systemClock };

function readFrame(message: Uint8Array): Frame {
  const decoded = decodeFrame(message.slice());
  if (decoded.state === "bad") throw new Error(decoded.reason);
  return decoded.frame;
}

async function echo(socket: Deno.TcpConn): Promise<void> {
  const buffer = new Uint8Array(65_536);
  for (;;) {
    const count = await socket.read(buffer);
    if (count === null) return;
    for (let sent = 0; sent < count;) sent += await socket.write(buffer.subarray(sent, count));
  }
}

Deno.test("only headers of an upgrade go on, and none with a line break", () => {
  deepStrictEqual(upgradeHeaders(upgrade), upgrade.slice(0, 3));
  strictEqual(upgradeHeaders([["connection", "keep-alive"], ["upgrade", "websocket"]]), undefined);
  strictEqual(upgradeHeaders([["connection", "Upgrade"]]), undefined);
});

Deno.test("an upgrade reaches the runtime, and bytes flow both ways until the client ends", async () => {
  await using server = runtime(switching + "early", echo);
  const exchange = new FakeExchange("POST", "/exec/n/p/c?command=sh&output=1", upgrade);
  const served = tunnel(exchange, server.url, ports);
  const head = await exchange.head.promise;
  strictEqual(head.status, 101);
  deepStrictEqual(head.headers[2], ["X-Stream-Protocol-Version", "v4.channel.k8s.io"]);
  const asked = await server.asked;
  match(
    asked,
    /^POST \/exec\/TOKEN HTTP\/1\.1\r\nHost: 127\.0\.0\.1:\d+\r\nContent-Length: 0\r\nconnection: Upgrade\r\nupgrade: SPDY\/3\.1\r\n/,
  );
  strictEqual(/secret|Injected/.test(asked), false);
  strictEqual(text((await exchange.client.reader.read()).value!), "early", "what came with the head");
  await exchange.client.writer.write(utf8("ping"));
  strictEqual(text((await exchange.client.reader.read()).value!), "ping");
  const { body } = await exchange.answer();
  strictEqual(body, "");
  await served;
  strictEqual(exchange.resetReason, undefined);
});

Deno.test("the runtime's end is the client's, with all bytes", async () => {
  const big = new Uint8Array(3_000_000).map((_, i) => i * 7);
  await using server = runtime(switching, async (socket) => {
    for (let sent = 0; sent < big.length;) sent += await socket.write(big.subarray(sent));
  });
  const exchange = new FakeExchange("GET", "/exec", upgrade);
  const served = tunnel(exchange, server.url, ports);
  const chunks: Uint8Array[] = [];
  for (;;) {
    const { done, value } = await exchange.client.reader.read();
    if (done) break;
    chunks.push(value);
  }
  deepStrictEqual(concat(chunks), big);
  await exchange.client.writer.write(utf8("too late")); // dropped: nobody reads it
  await exchange.client.writer.close();
  await served;
});

Deno.test("a runtime that resets its connection takes nothing of what it said with it", async () => {
  await using server = runtime(switching, async (socket) => {
    await socket.write(utf8("last words"));
    await systemClock.sleep(50); // the client's bytes come and stay unread: the close becomes a reset
  });
  const exchange = new FakeExchange("GET", "/exec", upgrade);
  const served = tunnel(exchange, server.url, ports);
  await exchange.head.promise;
  await exchange.client.writer.write(utf8("never read"));
  strictEqual((await exchange.answer()).body, "last words");
  await served;
  strictEqual(exchange.resetReason, undefined);
});

Deno.test("a client that goes away closes the runtime's connection", async () => {
  const ended = Promise.withResolvers<string>();
  await using server = runtime(switching, async (socket) => {
    ended.resolve(String(await socket.read(new Uint8Array(10)).catch((error: Error) => error.name)));
  });
  const exchange = new FakeExchange("GET", "/exec", upgrade);
  const served = tunnel(exchange, server.url, ports);
  await exchange.head.promise;
  exchange.goAway();
  await served;
  match(await ended.promise, /null|ConnectionReset/);
});

Deno.test("a client that does not read holds the runtime back", async () => {
  let sent = 0;
  await using server = runtime(switching, async (socket) => {
    const chunk = new Uint8Array(65_536);
    try {
      for (;;) sent += await socket.write(chunk);
    } catch { /* closed by the client at last */ }
  });
  const exchange = new FakeExchange("GET", "/exec", upgrade);
  const served = tunnel(exchange, server.url, ports);
  await exchange.head.promise;
  await systemClock.sleep(300);
  const standing = sent;
  await systemClock.sleep(200);
  strictEqual(sent, standing, "the kernel's buffers are full");
  exchange.goAway();
  await served;
});

Deno.test("what the runtime or the network refuse", async () => {
  const cases: { name: string; answer: string; status: number; body: RegExp }[] = [
    {
      name: "a refusal",
      answer: "HTTP/1.1 404 Not Found\r\nContent-Length: 11\r\n\r\nno such id\n",
      status: 404,
      body: /^no such id$/,
    },
    {
      name: "a refusal without words",
      answer: "HTTP/1.1 403 Forbidden\r\n\r\n",
      status: 403,
      body: /refused to upgrade/,
    },
    { name: "not HTTP", answer: "SSH-2.0-OpenSSH\r\n\r\n", status: 502, body: /did not answer in HTTP/ },
    { name: "nothing", answer: "", status: 502, body: /without an answer/ },
    {
      name: "half a head",
      answer: "HTTP/1.1 101 Switching Protocols\r\n",
      status: 502,
      body: /without an answer/,
    },
    {
      name: "too much",
      answer: "HTTP/1.1 101 Switching Protocols\r\n" + "X: 1\r\n".repeat(40_000),
      status: 502,
      body: /too long/,
    },
  ];
  for (const { name, answer, status, body } of cases) {
    const server = runtime(answer);
    const exchange = new FakeExchange("POST", "/exec", upgrade);
    const served = tunnel(exchange, server.url, ports);
    const got = await exchange.answer();
    strictEqual(got.status, status, name);
    match(got.body, body, name);
    await served;
    await server[Symbol.asyncDispose]().catch(() => {});
  }
  for (
    const [url, body] of [["http://127.0.0.1:1/exec/T", /does not answer/], [
      "https://127.0.0.1:1/exec/T",
      /over https/,
    ]] as const
  ) {
    const exchange = new FakeExchange("POST", "/exec", upgrade);
    const served = tunnel(exchange, url, ports);
    const got = await exchange.answer();
    strictEqual(got.status, 502);
    match(got.body, body);
    await served;
  }
  const plain = new FakeExchange("POST", "/exec", []);
  void tunnel(plain, "http://127.0.0.1:1/", ports);
  deepStrictEqual((await plain.answer()).body, "Upgrade request required");
});

Deno.test("exec through a session's stream: 5 MB there and back, larger than every window", async () => {
  await using server = runtime(switching, echo);
  const requests: StreamRequest[] = [];
  const view = {
    pod: {
      metadata: { name: "p", namespace: "n", uid: "u" },
      spec: { containers: [{ name: "c", tty: true }] },
    },
    status: {},
    state: {
      sandbox: { id: "s", ready: true, createdMs: 0 },
      containers: new Map([["c", { current: { id: "c1", state: "running" } }]]),
    },
  } as unknown as PodView;
  const ask = (request: StreamRequest) => {
    requests.push(request);
    return Promise.resolve(server.url);
  };
  const api = new KubeletApi({
    pods: {
      find: (namespace: string, name: string) => namespace === "n" && name === "p" ? view : undefined,
      list: () => [],
    },
    runtime: { exec: ask, attach: ask, portForward: () => Promise.reject(new Error("not asked")) },
    log: silentLogger,
    ...ports,
  } as unknown as KubeletPorts);
  const served: Promise<void>[] = [];
  let edge: Streams | undefined = undefined;
  const hub: Streams = new Streams({
    transmit: (message) => void queueMicrotask(() => edge?.frame(readFrame(message))),
  });
  edge = new Streams({
    transmit: (message) => void queueMicrotask(() => hub.frame(readFrame(message))),
    opened: (stream: WireStream, open) => {
      const exchange: Exchange = {
        ...open,
        readable: stream.readable,
        writable: stream.writable,
        sendHead: (head) => stream.sendHead(head),
        reset: (reason) => stream.reset(reason),
      };
      served.push(api.serve(exchange));
    },
  });
  const stream = hub.open({
    method: "POST",
    target: "/exec/n/p/u/c?command=cat&input=1&output=1",
    headers: upgrade,
  })!;
  strictEqual((await stream.head).status, 101);
  deepStrictEqual(requests, [{
    containerId: "c1",
    command: ["cat"],
    stdin: true,
    stdout: true,
    stderr: false,
    tty: false,
  }]);
  const sent = new Uint8Array(5_000_000).map((_, i) => i * 13);
  const writing = (async () => {
    const writer = stream.writable.getWriter();
    for (let at = 0; at < sent.length; at += 50_000) await writer.write(sent.subarray(at, at + 50_000));
    await writer.close();
  })();
  const chunks: Uint8Array[] = [];
  for await (const chunk of stream.readable) chunks.push(chunk);
  await writing;
  deepStrictEqual(concat(chunks), sent);
  await Promise.all(served);
  strictEqual(hub.size + edge.size, 0);

  const refused: [string, number, RegExp][] = [
    ["/exec/n/p/other-uid/c?command=cat&output=1", 404, /pod "p" does not exist/],
    ["/exec/n/p/x?command=cat&output=1", 404, /container "x" not found/],
    ["/portForward/n/p", 500, /not asked/],
    ["/attach/n/p/c?tty=1", 400, /at least 1/],
  ];
  for (const [target, status, body] of refused) {
    const stream = hub.open({ method: "POST", target, headers: upgrade })!;
    await stream.writable.close();
    strictEqual((await stream.head).status, status, target);
    match(await new Response(stream.readable).text(), body);
  }
  strictEqual(hub.size + edge.size, 0);
});
