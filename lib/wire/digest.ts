/**
 * What a side holds of one kind, in 16 bytes. Equal digests mean that a reconnect has nothing to say about the kind.
 *
 * The digest covers (key, uid, version) of each object in order of key. A version is the hash of what the edge is
 * given, not the resourceVersion: an object whose status alone changed counts as unchanged, and a cluster restored
 * from a backup, whose revisions went back, is noticed by its contents.
 */
import { createHash } from "node:crypto";
import { hex } from "../core/bytes.ts";

export const digestBytes = 16;

/** Hex of the digest of `entries`, in any order; versions as hex. No entries give the empty string. */
export function digestOf(entries: Iterable<readonly [key: string, uid: string, version: string]>): string {
  const lines = [...entries].map(([key, uid, version]) => `${key}\0${uid}\0${version}\n`).sort();
  if (lines.length === 0) return "";
  const hash = createHash("sha256");
  for (const line of lines) hash.update(line);
  return hex(hash.digest().subarray(0, digestBytes));
}
