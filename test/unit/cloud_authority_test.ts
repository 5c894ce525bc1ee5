import assert from "node:assert/strict";
import { Authority, authoritySecret } from "../../lib/cloud/authority.ts";
import { UserError } from "../../lib/core/errors.ts";
import { checkCertificate, makeKey, publicKeyOf, splitPem } from "../../lib/crypto/x509.ts";
import { KubeApiError } from "../../lib/kube/client.ts";
import { makeWorld, secrets, type World } from "../fake/world.ts";

const namespace = "kubeedge-system";
const load = (world: World) => Authority.load({ ...world, namespace });
const publicKey = await publicKeyOf(await makeKey());

Deno.test("the CA is made once; replicas that race agree on it", async () => {
  const world = makeWorld();
  const all = await Promise.all([load(world), load(world), load(world)]);
  assert.equal(new Set(all.map((authority) => authority.signerHash)).size, 1);
  assert.equal((await load(world)).signerHash, all[0]?.signerHash);
  assert.equal(world.api.all(secrets).length, 1);
});

Deno.test("rolling: at every stage, what was good in the stage before is still good", async () => {
  const world = makeWorld(), authority = await load(world), now = world.clock.now();
  const holds = (certificate: string, bundle: string) =>
    checkCertificate(certificate, bundle, now).state === "ok";
  const old = await authority.issueNode("n1", publicKey),
    oldBundle = authority.bundle,
    oldHash = authority.signerHash;

  assert.equal(await authority.rotate(), "prepared");
  assert.deepEqual([authority.signerHash, authority.hashes.length], [oldHash, 2]);
  const prepared = await authority.issueNode("n1", publicKey);
  assert.ok(holds(prepared, oldBundle), "the old CA signs");
  const bothBundle = authority.bundle;

  assert.equal(await authority.rotate(), "activated");
  assert.notEqual(authority.signerHash, oldHash);
  assert.ok(authority.hashes.includes(oldHash));
  const hub = (await authority.issueHub(["hub.example"])).certificate;
  assert.ok(holds(hub, bothBundle), "an edge of the stage before accepts the new hub");
  assert.ok(holds(old, authority.bundle), "a node of the first stage is let in");
  const next = await authority.issueNode("n1", publicKey);
  assert.equal(holds(next, oldBundle), false);

  assert.equal(await authority.rotate(), "stable");
  assert.equal(splitPem(authority.bundle).length, 1);
  assert.ok(holds(next, authority.bundle));
  assert.equal(holds(old, authority.bundle), false, "the old CA is gone");
  assert.ok(!authority.hashes.includes(oldHash));
});

Deno.test("two who roll at once do not skip a stage", async () => {
  const world = makeWorld(), one = await load(world), two = await load(world);
  await one.rotate();
  await assert.rejects(
    two.rotate(),
    (error: unknown) => error instanceof KubeApiError && error.status === 409,
  );
  assert.equal(await two.reload(), true);
  assert.equal(two.state.stage, "prepared");
  assert.equal(await two.reload(), false);
});

Deno.test("a damaged Secret is named, not replaced", async () => {
  const world = makeWorld();
  await load(world);
  const stored = world.api.find(secrets, `${namespace}/${authoritySecret}`);
  for (const key of ["ca.crt", "ca.key", "stage"]) {
    const { [key]: _gone, ...data } = stored.data;
    world.api.put(secrets, { ...stored, data });
    await assert.rejects(load(world), (error: unknown) => {
      assert.ok(error instanceof UserError);
      assert.match(
        error.message,
        /^Secret kubeedge-system\/kubeedge-ca is damaged.*restore it from a backup$/,
      );
      return true;
    });
  }
});

Deno.test("node certificates name the node and nothing else", async () => {
  const world = makeWorld(), authority = await load(world);
  const checked = checkCertificate(
    await authority.issueNode("n1", publicKey),
    authority.bundle,
    world.clock.now(),
  );
  assert.ok(checked.state === "ok");
  assert.deepEqual([checked.facts.commonName, checked.facts.organizations], ["system:node:n1", [
    "system:nodes",
  ]]);
  assert.equal(checked.facts.notAfterMs - world.clock.now(), 30 * 86_400_000);
});
