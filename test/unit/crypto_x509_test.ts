import assert from "node:assert/strict";
import { X509Certificate } from "node:crypto";
import { fromHex, hex } from "../../lib/core/bytes.ts";
import {
  authorityHash,
  checkCertificate,
  checkRequest,
  clockSkewMs,
  importKeys,
  issueLeaf,
  makeAuthority,
  makeKey,
  makeRequest,
  pem,
  publicKeyOf,
  readCertificate,
  splitPem,
  unpem,
} from "../../lib/crypto/x509.ts";

const nowMs = Date.UTC(2026, 5, 1), hourMs = 3_600_000;
const serial = fromHex("0102030405060708");
const authority = await makeAuthority("ca one", { nowMs, days: 100, serial });
const other = await makeAuthority("ca one", { nowMs, days: 100, serial });
const key = await makeKey();
const leaf = async (options: Partial<Parameters<typeof issueLeaf>[1]> = {}) =>
  await issueLeaf(authority, {
    subject: { commonName: "system:node:n1", organization: "system:nodes" },
    publicKey: await publicKeyOf(key),
    usage: "client",
    nowMs,
    lifeMs: hourMs,
    serial,
    ...options,
  });

Deno.test("a CA's leaf holds, with the facts that were asked for", async () => {
  const checked = checkCertificate(await leaf(), authority.certificate, nowMs);
  assert.equal(checked.state, "ok");
  assert.ok(checked.state === "ok");
  assert.equal(checked.facts.commonName, "system:node:n1");
  assert.deepEqual(checked.facts.organizations, ["system:nodes"]);
  assert.equal(checked.facts.notAfterMs, nowMs + hourMs);
  assert.equal(checked.facts.serial, "102030405060708");
  assert.equal(new X509Certificate(authority.certificate).ca, true);
});

Deno.test("another CA of the same name, a CA, a stale or early certificate and rubbish do not hold", async () => {
  const pemText = await leaf();
  const table: { name: string; leaf: string; bundle?: string; now?: number; want: RegExp }[] = [
    {
      name: "another CA of the same name",
      leaf: pemText,
      bundle: other.certificate,
      want: /not issued by this cluster/,
    },
    { name: "no CA", leaf: pemText, bundle: "", want: /not issued by this cluster/ },
    { name: "the CA's own certificate", leaf: authority.certificate, want: /a CA's certificate/ },
    {
      name: "expired",
      leaf: pemText,
      now: nowMs + hourMs + 1000,
      want: /^it expired at 2026-06-01T01:00:00/,
    },
    {
      name: "not yet in force, beyond the skew of clocks",
      leaf: pemText,
      now: nowMs - 2 * clockSkewMs - 1000,
      want: /not valid before/,
    },
    { name: "text", leaf: "hello", want: /no certificate/ },
    { name: "cut", leaf: pemText.slice(0, 300), want: /no certificate/ },
  ];
  for (const { name, leaf, bundle, now, want } of table) {
    const checked = checkCertificate(leaf, bundle ?? authority.certificate, now ?? nowMs);
    assert.ok(checked.state === "bad", name);
    assert.match(checked.reason, want, name);
  }
  assert.equal(
    checkCertificate(pemText, other.certificate + authority.certificate, nowMs).state,
    "ok",
    "any CA of the bundle counts",
  );
});

Deno.test("a changed certificate does not hold", async () => {
  const der = unpem(await leaf());
  for (let at = 0; at < der.length; at += 7) {
    const changed = der.slice();
    changed[at] = (changed[at] ?? 0) ^ 0x10;
    assert.equal(
      checkCertificate(pem("CERTIFICATE", changed), authority.certificate, nowMs).state,
      "bad",
      `byte ${at}`,
    );
  }
});

Deno.test("a request proves that its maker holds the key", async () => {
  const request = await makeRequest(key, { commonName: "system:node:n1", organization: "system:nodes" }, [
    "10.0.0.1",
    "host.example",
    "fd00::1",
  ]);
  const checked = await checkRequest(request);
  assert.ok(checked.state === "ok");
  assert.deepEqual(checked.publicKey, await publicKeyOf(key));
  const der = unpem(request);
  der[der.length - 1] = (der.at(-1) ?? 0) ^ 1;
  assert.equal((await checkRequest(pem("CERTIFICATE REQUEST", der))).state, "bad");
  for (const rubbish of ["", "x", await leaf(), pem("CERTIFICATE REQUEST", new Uint8Array(10))]) {
    assert.equal((await checkRequest(rubbish)).state, "bad", rubbish.slice(0, 30));
  }
});

Deno.test("only P-256 keys are taken", async () => {
  const pair = await crypto.subtle.generateKey({ name: "ECDSA", namedCurve: "P-384" }, true, [
    "sign",
    "verify",
  ]);
  const p384 = pem("PRIVATE KEY", new Uint8Array(await crypto.subtle.exportKey("pkcs8", pair.privateKey)));
  await assert.rejects(importKeys(p384));
  const { privateKey, publicKey } = await importKeys(key);
  const signature = await crypto.subtle.sign({ name: "ECDSA", hash: "SHA-256" }, privateKey, serial);
  assert.ok(await crypto.subtle.verify({ name: "ECDSA", hash: "SHA-256" }, publicKey, signature, serial));
});

Deno.test("server certificates name their addresses", async () => {
  const issued = await leaf({ usage: "server", addresses: ["127.0.0.1", "hub.example", "fd00::1"] });
  const facts = new X509Certificate(issued);
  assert.match(
    facts.subjectAltName ?? "",
    /IP Address:127\.0\.0\.1, DNS:hub\.example, IP Address:fd00::1/i,
  );
  // serverAuth and nothing else: 1.3.6.1.5.5.7.3.1 in DER, and not clientAuth, which ends in 2.
  const der = hex(unpem(issued));
  assert.ok(der.includes("2b06010505070301") && !der.includes("2b06010505070302"));
});

Deno.test("the hash of a CA is of its key, so a renewed certificate keeps it", () => {
  assert.match(authorityHash(authority.certificate), /^[0-9a-f]{64}$/);
  assert.notEqual(authorityHash(authority.certificate), authorityHash(other.certificate));
  assert.equal(readCertificate(authority.certificate).keyHash, authorityHash(authority.certificate));
  assert.equal(splitPem("x" + authority.certificate + "\ny" + other.certificate).length, 2);
});
