import assert from "node:assert/strict";
import { shutdownConnections } from "../../lib/sys/tcp_shutdown.ts";

const hasIpv6 = (() => {
  try {
    Deno.listen({ hostname: "::1", port: 0 }).close();
    return true;
  } catch {
    return false;
  }
})();

async function pair(listenOn: string, dial: string): Promise<{ near: Deno.TcpConn; far: Deno.TcpConn }> {
  using listener = Deno.listen({ hostname: listenOn, port: 0 });
  const [near, far] = await Promise.all([
    listener.accept(),
    Deno.connect({ hostname: dial, port: listener.addr.port }),
  ]);
  return { near, far };
}

for (
  const [listenOn, dial] of [["0.0.0.0", "127.0.0.1"], ["127.0.0.1", "127.0.0.1"], ["::", "::1"], [
    "::",
    "127.0.0.1",
  ]] as const
) {
  Deno.test({
    name: `a connection from ${dial} to ${listenOn} is ended, its neighbours are not`,
    ignore: listenOn === "::" && !hasIpv6,
    fn: async () => {
      const pairs = await Promise.all([1, 2, 3].map(() => pair(listenOn, dial)));
      const [first, second, third] = pairs as [typeof pairs[0], typeof pairs[0], typeof pairs[0]];
      const buffer = new Uint8Array(10);
      assert.equal(shutdownConnections([]), 0);
      assert.equal(shutdownConnections([second.near]), 1);
      assert.equal(await second.far.read(buffer), null, "the other side sees the end");
      for (const { near, far } of [first, third]) {
        await far.write(new Uint8Array([1, 2, 3]));
        assert.equal(await near.read(buffer), 3);
      }
      for (const { near, far } of pairs) for (const conn of [near, far]) conn.close();
      const gone = { localAddr: first.near.localAddr, remoteAddr: first.near.remoteAddr };
      assert.equal(shutdownConnections([gone]), 0, "what is gone already is none");
    },
  });
}
