/**
 * The text of a join token: `ke1.` + base64url of JSON {u: hub URLs, c: hash of the CA's key, i: id, s: secret} + `.` +
 * 4 bytes of checksum, so that a token cut while copying is told apart from a wrong one.
 */
import { createHash } from "node:crypto";
import { base64url, fromBase64url, text, utf8 } from "../core/bytes.ts";

export interface JoinToken {
  /** `wss://host:port` each. */
  urls: string[];
  /** Hex, 32 bytes. */
  authorityHash: string;
  id: string;
  secret: string;
}

function checksum(payload: string): string {
  return base64url(createHash("sha256").update(payload).digest().subarray(0, 4));
}

export function formatJoinToken(token: JoinToken): string {
  const payload = base64url(
    utf8(JSON.stringify({ u: token.urls, c: token.authorityHash, i: token.id, s: token.secret })),
  );
  return `ke1.${payload}.${checksum(payload)}`;
}

export type ParsedToken = { state: "ok"; token: JoinToken } | { state: "bad"; reason: string };

export function parseJoinToken(token: string): ParsedToken {
  const bad = (reason: string): ParsedToken => ({ state: "bad", reason });
  const [version, payload, sum, ...more] = token.trim().split(".");
  if (version !== "ke1") {
    return bad(
      'it does not start with "ke1."; copy the whole line that "kubeedge cloud token create" printed',
    );
  }
  if (!payload || !sum || more.length > 0 || checksum(payload) !== sum) {
    return bad("it is incomplete or was changed; copy the whole line again");
  }
  try {
    const { u, c, i, s } = JSON.parse(text(fromBase64url(payload))) as Record<string, unknown>;
    const urls = Array.isArray(u)
      ? u.filter((url): url is string => typeof url === "string" && /^wss:\/\/[^/\s]+$/.test(url))
      : [];
    if (
      urls.length === 0 || typeof c !== "string" || !/^[0-9a-f]{64}$/.test(c) || typeof i !== "string" ||
      typeof s !== "string"
    ) {
      return bad("it lacks a hub URL, CA hash, id or secret; create another one");
    }
    return { state: "ok", token: { urls, authorityHash: c, id: i, secret: s } };
  } catch {
    return bad("it cannot be decoded; copy the whole line again");
  }
}

/** What is stored of a secret. */
export function secretHash(secret: string): string {
  return createHash("sha256").update(secret).digest("hex");
}
