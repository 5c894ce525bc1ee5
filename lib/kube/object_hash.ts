/**
 * The version of an object as an edge is given it: the first 8 bytes of the SHA-256 of its bytes without what changes
 * while nothing changes for the edge (managedFields, resourceVersion, status). See lib/wire/digest.ts for its use.
 */
import { createHash } from "node:crypto";
import { hex } from "../core/bytes.ts";
import { cutMembers } from "./slice.ts";

const unversioned = [["metadata", "managedFields"], ["metadata", "resourceVersion"], ["status"]] as const;

/** Hex of 8 bytes, never all zero (that stands for an object known to be absent). */
export function deliveryVersion(json: Uint8Array): string {
  const version = hex(
    createHash("sha256").update(cutMembers(json, unversioned) ?? json).digest().subarray(0, 8),
  );
  return version === "0000000000000000" ? "0000000000000001" : version;
}
