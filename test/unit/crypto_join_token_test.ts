import assert from "node:assert/strict";
import { base64url, utf8 } from "../../lib/core/bytes.ts";
import { createHash } from "node:crypto";
import { formatJoinToken, type JoinToken, parseJoinToken, secretHash } from "../../lib/crypto/join_token.ts";

const token: JoinToken = {
  urls: ["wss://hub.example:10443", "wss://[fd00::1]:10443"],
  authorityHash: "ab".repeat(32),
  id: "0011223344",
  secret: "s3cret",
};
const text = formatJoinToken(token);
const reasonOf = (input: string) => {
  const parsed = parseJoinToken(input);
  assert.equal(parsed.state, "bad", input);
  return parsed.state === "bad" ? parsed.reason : "";
};
/** A token with a right checksum over other contents. */
const forged = (contents: unknown) => {
  const payload = base64url(utf8(typeof contents === "string" ? contents : JSON.stringify(contents)));
  return `ke1.${payload}.${base64url(createHash("sha256").update(payload).digest().subarray(0, 4))}`;
};

Deno.test("a token is read as it was written, also with white space around it", () => {
  assert.deepEqual(parseJoinToken(text), { state: "ok", token });
  assert.deepEqual(parseJoinToken(`  ${text}\n`), { state: "ok", token });
  assert.match(text, /^ke1\.[\w-]+\.[\w-]+$/, "nothing that a shell or a line break would touch");
});

Deno.test("every cut and every changed character is told apart from a wrong token", () => {
  for (let end = 4; end < text.length; end++) {
    assert.match(reasonOf(text.slice(0, end)), /incomplete or was changed/, `cut at ${end}`);
  }
  for (let at = 4; at < text.length; at++) {
    if (text[at] === ".") continue;
    const changed = text.slice(0, at) + (text[at] === "A" ? "B" : "A") + text.slice(at + 1);
    // The last character of the checksum carries bits that do not count.
    if (parseJoinToken(changed).state === "ok") assert.equal(at, text.length - 1);
    else assert.match(reasonOf(changed), /incomplete or was changed/, `changed at ${at}`);
  }
});

Deno.test("another prefix says what to copy", () => {
  for (
    const other of ["", "ke2" + text.slice(3), "K10abc::server:xyz", "abcdef.0123456789abcdef", text.slice(1)]
  ) {
    assert.match(reasonOf(other), /does not start with "ke1\."/, other);
  }
  assert.match(reasonOf(text + ".x"), /incomplete or was changed/);
});

Deno.test("contents that lack something are refused", () => {
  const contents = { u: token.urls, c: token.authorityHash, i: token.id, s: token.secret };
  assert.equal(parseJoinToken(forged(contents)).state, "ok");
  for (
    const bad of [
      { u: [] },
      { u: ["http://x"] },
      { u: ["wss://x/path"] },
      { u: "wss://x" },
      { c: "ab" },
      { c: 5 },
      { i: 1 },
      { s: null },
    ]
  ) {
    assert.match(
      reasonOf(forged({ ...contents, ...bad })),
      /lacks a hub URL, CA hash, id or secret/,
      JSON.stringify(bad),
    );
  }
  for (const bad of ["", "no json", "null"]) {
    assert.match(reasonOf(forged(bad)), /incomplete|cannot be decoded/, bad);
  }
});

Deno.test("no reason quotes the token", () => {
  for (const bad of [text.slice(0, -3), forged({ s: token.secret })]) {
    assert.doesNotMatch(reasonOf(bad), /s3cret|ke1\.\w/);
  }
  assert.match(secretHash("x"), /^[0-9a-f]{64}$/);
});
