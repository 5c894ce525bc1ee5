/**
 * The node's identity on disk: `pki/` (0700) with node.key, node.crt and ca.crt (0600), and `edge.json` (0600).
 *
 * Key and certificate change together: a new `pki.new` is written and synced whole, then `pki` → `pki.old` and
 * `pki.new` → `pki`. Once `pki` is away `pki.new` is complete, so a reader that finds no `pki` finishes the change.
 */
import { errorText, ExitCode, UserError } from "../core/errors.ts";
import type { Identity } from "../edge/identity.ts";

const directoryMode = 0o700;
const fileMode = 0o600;

/** Undefined when this machine has not joined. Throws UserError when what is there is damaged or cannot be read. */
export function loadIdentity(rootDir: string): Identity | undefined {
  finishChange(rootDir);
  const about = read(`${rootDir}/edge.json`);
  const [key, certificate, caBundle] = ["node.key", "node.crt", "ca.crt"].map((name) =>
    read(`${rootDir}/pki/${name}`)
  );
  if (about === undefined || certificate === undefined) return undefined;
  const damaged = (what: string) =>
    new UserError(
      `Cannot use the identity in ${rootDir}: ${what}; run "kubeedge edge reset" and join again`,
      ExitCode.precondition,
    );
  if (key === undefined || caBundle === undefined) {
    throw damaged(`pki/${key === undefined ? "node.key" : "ca.crt"} is missing`);
  }
  let json: Record<string, unknown>;
  try {
    json = JSON.parse(about) as Record<string, unknown>;
  } catch {
    throw damaged("edge.json is no JSON");
  }
  const { node, cluster, urls, joinedMs } = json ?? {};
  if (
    typeof node !== "string" || typeof cluster !== "string" || !isTexts(urls) || typeof joinedMs !== "number"
  ) {
    throw damaged("edge.json lacks node, cluster, urls or joinedMs");
  }
  return { node, cluster, urls, certificate, key, caBundle, joinedMs };
}

/** Replaces the identity; a crash leaves the old one or the new one. */
export function saveIdentity(rootDir: string, identity: Identity): void {
  const { node, cluster, urls, certificate, key, caBundle, joinedMs } = identity;
  finishChange(rootDir);
  makeDirectory(rootDir);
  const next = `${rootDir}/pki.new`, previous = `${rootDir}/pki.old`;
  removeTree(next);
  removeTree(previous);
  Deno.mkdirSync(next, { mode: directoryMode });
  Deno.chmodSync(next, directoryMode); // mkdir's mode is cut by the umask
  writeSynced(`${next}/node.key`, key);
  writeSynced(`${next}/node.crt`, certificate);
  writeSynced(`${next}/ca.crt`, caBundle);
  syncDirectory(next);
  writeAtomically(
    `${rootDir}/edge.json`,
    JSON.stringify({ node, cluster, urls, joinedMs }, undefined, 2) + "\n",
  );
  if (exists(`${rootDir}/pki`)) Deno.renameSync(`${rootDir}/pki`, previous);
  Deno.renameSync(next, `${rootDir}/pki`);
  syncDirectory(rootDir);
  removeTree(previous);
}

/** The key that a join began with, while there is no identity. */
export function loadPendingKey(rootDir: string): string | undefined {
  return read(`${rootDir}/pki/node.key`);
}
/** Durable when it returns. */
export function savePendingKey(rootDir: string, key: string): void {
  makeDirectory(rootDir);
  makeDirectory(`${rootDir}/pki`);
  Deno.chmodSync(`${rootDir}/pki`, directoryMode);
  writeAtomically(`${rootDir}/pki/node.key`, key);
  syncDirectory(rootDir);
}

/** Write to a temporary file, fsync, rename, fsync the directory. Mode 0600. */
export function writeAtomically(path: string, text: string): void {
  const temporary = `${path}.new`;
  if (exists(temporary)) Deno.removeSync(temporary);
  writeSynced(temporary, text);
  Deno.renameSync(temporary, path);
  syncDirectory(path.slice(0, path.lastIndexOf("/")) || "/");
}

function finishChange(rootDir: string): void {
  if (!exists(`${rootDir}/pki`) && exists(`${rootDir}/pki.new`) && exists(`${rootDir}/pki.old`)) {
    Deno.renameSync(`${rootDir}/pki.new`, `${rootDir}/pki`);
    syncDirectory(rootDir);
  }
}

function read(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw new UserError(`Cannot read ${path}: ${errorText(error)}`, ExitCode.precondition);
  }
}

function writeSynced(path: string, text: string): void {
  using file = Deno.openSync(path, { write: true, createNew: true, mode: fileMode });
  const bytes = new TextEncoder().encode(text);
  for (let at = 0; at < bytes.length;) at += file.writeSync(bytes.subarray(at));
  file.syncSync();
}

function syncDirectory(path: string): void {
  using directory = Deno.openSync(path, { read: true });
  directory.syncSync();
}

/** A directory that others have made keeps its mode. */
function makeDirectory(path: string): void {
  Deno.mkdirSync(path, { recursive: true, mode: directoryMode });
}

function exists(path: string): boolean {
  try {
    Deno.lstatSync(path);
    return true;
  } catch {
    return false;
  }
}

function removeTree(path: string): void {
  if (exists(path)) Deno.removeSync(path, { recursive: true });
}

function isTexts(value: unknown): value is string[] {
  return Array.isArray(value) && value.length > 0 && value.every((item) => typeof item === "string");
}
