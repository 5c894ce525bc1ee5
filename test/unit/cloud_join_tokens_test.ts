import assert from "node:assert/strict";
import {
  createToken,
  deleteToken,
  listTokens,
  matchesGlob,
  redeemToken,
  removeSpentTokens,
  type TokenGrant,
} from "../../lib/cloud/join_tokens.ts";
import { parseJoinToken } from "../../lib/crypto/join_token.ts";
import { KubeUnreachable } from "../../lib/kube/client.ts";
import { makeWorld, secrets, type World } from "../fake/world.ts";

const namespace = "kubeedge-system", hub = { urls: ["wss://h:1"], authorityHash: "ab".repeat(32) };

async function make(world: World, grant: Partial<TokenGrant> = {}) {
  const ports = { ...world, namespace };
  const full: TokenGrant = {
    description: "d",
    expiresMs: world.clock.now() + 60_000,
    usesLeft: undefined,
    nodeNames: "*",
    labels: {},
    taints: [],
    takeover: false,
    ...grant,
  };
  const { token } = await createToken(full, hub, ports);
  const parsed = parseJoinToken(token);
  assert.ok(parsed.state === "ok");
  const { id, secret } = parsed.token;
  return {
    ports,
    id,
    secret,
    token,
    redeem: (node = "n1", other: { id?: string; secret?: string } = {}) =>
      redeemToken({ id, secret, node, repeats: false, ...other }, ports),
  };
}
const reasonOf = async (outcome: ReturnType<typeof redeemToken>) => {
  const redeemed = await outcome;
  return redeemed.state === "ok" ? "ok" : redeemed.reason;
};

Deno.test("what is stored of a token would not let anybody join", async () => {
  const world = makeWorld();
  const { secret, token, id } = await make(world);
  const [stored] = world.api.all(secrets);
  const text = JSON.stringify(stored) + atob(stored.data.hash) + atob(stored.data.grant);
  for (const part of [secret, token, token.slice(4, 60)]) assert.ok(!text.includes(part));
  assert.equal(stored.type, "kubeedge.io/join-token");
  assert.deepEqual((await listTokens({ ...world, namespace })).map((info) => [info.id, info.description]), [[
    id,
    "d",
  ]]);
});

Deno.test("wrong, expired, used-up, misnamed and deleted tokens are refused", async () => {
  const world = makeWorld();
  const token = await make(world, { usesLeft: 2, nodeNames: "edge-*.site" });
  assert.equal(
    await reasonOf(token.redeem("edge-1.site", { secret: token.secret.slice(0, -1) + "_" })),
    "unknown",
  );
  assert.equal(await reasonOf(token.redeem("edge-1.site", { secret: "" })), "unknown");
  assert.equal(await reasonOf(token.redeem("edge-1.site", { id: "0000000000" })), "unknown");
  for (const id of ["", "../x", "ABCDEF0123", token.id + "0"]) {
    assert.equal(await reasonOf(token.redeem("edge-1.site", { id })), "unknown", id);
  }
  assert.equal(await reasonOf(token.redeem("core-1.site")), "name");
  assert.equal(await reasonOf(token.redeem("edge-1.site")), "ok");
  assert.equal(await reasonOf(token.redeem("edge-2.site")), "ok");
  assert.equal(await reasonOf(token.redeem("edge-3.site")), "used up", "a refusal above took no use");
  world.clock.jump(60_001);
  const expired = await token.redeem("edge-1.site");
  assert.ok(expired.state === "refused");
  assert.equal(expired.message, "the token expired at 2026-01-01T00:01:00.000Z");
  assert.equal(await deleteToken(token.id, token.ports), true);
  assert.equal(await deleteToken(token.id, token.ports), false);
  assert.equal(await reasonOf(token.redeem("edge-1.site")), "unknown");
});

Deno.test("an unknown id and a wrong secret cannot be told apart", async () => {
  const token = await make(makeWorld());
  assert.deepEqual(
    await token.redeem("n1", { id: "0123456789" }),
    await token.redeem("n1", { secret: "wrong" }),
  );
});

Deno.test("one use is given to one of many who race for it", async () => {
  const world = makeWorld();
  const token = await make(world, { usesLeft: 3 });
  const outcomes = await Promise.all(Array.from({ length: 10 }, (_, i) => reasonOf(token.redeem(`n${i}`))));
  assert.deepEqual(outcomes.sort(), ["ok", "ok", "ok", ...Array(7).fill("used up")]);
  assert.ok(world.api.requests.some(({ status }) => status === 409), "they did race");
  assert.equal((await listTokens(token.ports))[0]?.usesLeft, 0);
});

Deno.test("a Secret of another type or with damaged contents is no token", async () => {
  const world = makeWorld(), token = await make(world);
  const key = `${namespace}/kubeedge-token-${token.id}`, good = world.api.find(secrets, key);
  for (
    const bad of [{ type: "Opaque" }, { data: {} }, { data: { ...good.data, grant: "%%%" } }, {
      data: { ...good.data, grant: btoa("no json") },
    }]
  ) {
    world.api.put(secrets, { ...good, ...bad });
    assert.equal(await reasonOf(token.redeem()), "unknown");
    assert.deepEqual(await listTokens(token.ports), []);
  }
});

Deno.test("an unreachable API server is no refusal", async () => {
  const world = makeWorld(), token = await make(world);
  world.api.intercept = () => Promise.reject(new Error("connection refused"));
  await assert.rejects(token.redeem(), KubeUnreachable);
});

Deno.test("tokens are removed a day after their end", async () => {
  const world = makeWorld(), token = await make(world);
  const lasting = await make(world, { expiresMs: world.clock.now() + 100 * 86_400_000 });
  world.clock.jump(60_000 + 86_400_001);
  await removeSpentTokens(token.ports);
  assert.deepEqual((await listTokens(token.ports)).map((info) => info.id), [lasting.id]);
});

Deno.test("globs have no other magic", () => {
  const table: [string, string, boolean][] = [
    ["*", "anything", true],
    ["n1", "n1", true],
    ["n1", "n10", false],
    ["n*", "n", true],
    ["*-a", "x-a", true],
    ["*-a", "x-ab", false],
    ["n.1", "nx1", false],
    ["n[12]", "n1", false],
    ["a*b*c", "a--b--c", true],
    ["", "n", false],
    ["(", "(", true],
  ];
  for (const [pattern, name, want] of table) {
    assert.equal(matchesGlob(pattern, name), want, `${pattern} ${name}`);
  }
});
