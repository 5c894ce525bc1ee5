import assert from "node:assert/strict";
import { fromHex } from "../../lib/core/bytes.ts";
import { type ProofInput, signProof, verifyProof } from "../../lib/crypto/proof.ts";
import { authorityHash, issueLeaf, makeAuthority, makeKey, publicKeyOf } from "../../lib/crypto/x509.ts";
import { proofParameters } from "../../lib/wire/messages.ts";
import { SeededRandom } from "../fake/clock.ts";

const random = new SeededRandom(3), nowMs = Date.UTC(2026, 0, 1), serial = fromHex("01");
const [authority, other] = [
  await makeAuthority("a", { nowMs, days: 1, serial }),
  await makeAuthority("b", { nowMs, days: 1, serial }),
];
const key = await makeKey(), otherKey = await makeKey();
const certify = async (keyPem: string) =>
  await issueLeaf(authority, {
    subject: { commonName: "n" },
    publicKey: await publicKeyOf(keyPem),
    usage: "client",
    nowMs,
    lifeMs: 1000,
    serial,
  });
const certificate = await certify(key);
const claims = {
  versionLeast: 1,
  versionMost: 1,
  agent: "1.0",
  instance: "i",
  digests: { pods: "ab", secrets: "" },
};
const input: ProofInput = {
  nonce: random.bytes(32),
  authorityHash: authorityHash(authority.certificate),
  parameters: proofParameters(claims),
};

Deno.test("a proof holds for what was signed", async () => {
  assert.ok(verifyProof(certificate, input, await signProof(key, input)));
});

Deno.test("a proof is worthless anywhere else", async () => {
  const signature = await signProof(key, input);
  const table: [string, string, ProofInput, Uint8Array][] = [
    ["replayed at another connection's nonce", certificate, { ...input, nonce: random.bytes(32) }, signature],
    ["passed on to a hub of another CA", certificate, {
      ...input,
      authorityHash: authorityHash(other.certificate),
    }, signature],
    ["with another instance", certificate, {
      ...input,
      parameters: proofParameters({ ...claims, instance: "j" }),
    }, signature],
    ["with other digests", certificate, {
      ...input,
      parameters: proofParameters({ ...claims, digests: { pods: "ac", secrets: "" } }),
    }, signature],
    ["with a lowered version", certificate, {
      ...input,
      parameters: proofParameters({ ...claims, versionLeast: 0 }),
    }, signature],
    ["beside another node's certificate", await certify(otherKey), input, signature],
    ["by another key", certificate, input, await signProof(otherKey, input)],
    ["empty", certificate, input, new Uint8Array(0)],
    ["cut", certificate, input, signature.subarray(0, 63)],
    ["all zero", certificate, input, new Uint8Array(64)],
    ["beside no certificate", "x", input, signature],
  ];
  for (const [name, pem, asked, proof] of table) assert.equal(verifyProof(pem, asked, proof), false, name);
  for (let bit = 0; bit < 8 * 64; bit += 37) {
    const changed = signature.slice();
    changed[bit >> 3] = (changed[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    assert.equal(verifyProof(certificate, input, changed), false, `bit ${bit}`);
  }
});

Deno.test("the order of digests does not matter, their kinds do", () => {
  assert.equal(proofParameters(claims), proofParameters({ ...claims, digests: { secrets: "", pods: "ab" } }));
  assert.notEqual(
    proofParameters(claims),
    proofParameters({ ...claims, digests: { pods: "", secrets: "ab" } }),
  );
});
