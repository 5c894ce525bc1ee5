/** The Worker that owns the store's SQLite file: its calls are synchronous, and an fsync on bad flash takes 50 ms. */
/// <reference lib="deno.worker" />
import { DatabaseSync } from "node:sqlite";
import type { StoreContents, StoreWrite } from "../edge/store/port.ts";

export type StoreRequest =
  & { id: number }
  & ({ open: string } | { commit: StoreWrite[] } | { load: true } | { close: true });
export type StoreAnswer =
  & { id: number }
  & (
    | { ok: { damaged?: string; bytes?: number; contents?: StoreContents } }
    | { error: string }
  );

/** Layout of the file; a newer one is refused rather than misread. */
const schemaVersion = 1;
/** The log is folded into the file at this many pages of 4 KiB: few writes, a small file. */
const checkpointPages = 256;

let database: DatabaseSync | undefined;
let path = "";

function open(file: string): string | undefined {
  path = file;
  try {
    database = prepare(file);
    return undefined;
  } catch (error) {
    if (error instanceof SchemaError) throw error;
    try {
      database?.close();
    } catch { /* it is damaged */ }
    const message = String(error);
    // Only a damaged file is put aside: a full disk or a missing right is no reason to forget.
    if (!/malformed|not a database|corrupt|quick_check/i.test(message)) throw error;
    const aside = `${file}.damaged-${new Date().toISOString().replaceAll(/[:.]/g, "-")}`;
    Deno.renameSync(file, aside);
    for (const suffix of ["-wal", "-shm"]) {
      try {
        Deno.renameSync(file + suffix, aside + suffix);
      } catch { /* there is none */ }
    }
    database = prepare(file);
    return aside;
  }
}

class SchemaError extends Error {}

function prepare(file: string): DatabaseSync {
  const db = database = new DatabaseSync(file);
  db.exec("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA busy_timeout=2000;");
  db.exec(`PRAGMA wal_autocheckpoint=${checkpointPages}; PRAGMA cache_size=-256`);
  const check = db.prepare("PRAGMA quick_check(1)").get() as { quick_check: string };
  if (check.quick_check !== "ok") throw new Error(`quick_check: ${check.quick_check}`);
  const { user_version: version } = db.prepare("PRAGMA user_version").get() as { user_version: number };
  if (version > schemaVersion) {
    throw new SchemaError(
      `the store ${file} was written by a newer kubeedge (layout ${version}, this one knows ${schemaVersion}); upgrade this one`,
    );
  }
  db.exec(`
    CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS objects (kind TEXT NOT NULL, key TEXT NOT NULL, uid TEXT NOT NULL, version TEXT NOT NULL, json BLOB,
      PRIMARY KEY (kind, key));
    CREATE TABLE IF NOT EXISTS reports (slot TEXT PRIMARY KEY, id INTEGER NOT NULL, acknowledged INTEGER NOT NULL, report TEXT NOT NULL);
    PRAGMA user_version=${schemaVersion};`);
  return db;
}

function commit(db: DatabaseSync, writes: StoreWrite[]): void {
  db.exec("BEGIN IMMEDIATE");
  try {
    for (const write of writes) apply(db, write);
    db.exec("COMMIT");
  } catch (error) {
    try {
      db.exec("ROLLBACK");
    } catch { /* SQLite rolled back by itself */ }
    throw error;
  }
}

function apply(db: DatabaseSync, write: StoreWrite): void {
  switch (write.write) {
    case "object": {
      const { kind, key, uid, version, json } = write.row;
      db.prepare("INSERT OR REPLACE INTO objects (kind, key, uid, version, json) VALUES (?, ?, ?, ?, ?)").run(
        kind,
        key,
        uid,
        version,
        json ?? null,
      );
      return;
    }
    case "drop":
      db.prepare("DELETE FROM objects WHERE kind = ? AND key = ?").run(write.kind, write.key);
      return;
    case "report": {
      const { slot, id, acknowledged, report } = write.row;
      db.prepare("INSERT OR REPLACE INTO reports (slot, id, acknowledged, report) VALUES (?, ?, ?, ?)").run(
        slot,
        id,
        acknowledged ? 1 : 0,
        report,
      );
      return;
    }
    case "acknowledged":
      db.prepare("UPDATE reports SET acknowledged = 1 WHERE slot = ? AND id = ?").run(write.slot, write.id);
      return;
    case "forget":
      db.prepare("DELETE FROM reports WHERE slot = ?").run(write.slot);
      return;
    case "meta":
      db.prepare("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)").run(write.key, write.value);
      return;
  }
}

function load(db: DatabaseSync): StoreContents {
  const rows = <T>(sql: string) => db.prepare(sql).all() as T[];
  const objects = rows<{ kind: string; key: string; uid: string; version: string; json: Uint8Array | null }>(
    "SELECT * FROM objects",
  );
  const reports = rows<{ slot: string; id: number; acknowledged: number; report: string }>(
    "SELECT * FROM reports ORDER BY id",
  );
  return {
    meta: Object.fromEntries(
      rows<{ key: string; value: string }>("SELECT * FROM meta").map(({ key, value }) => [key, value]),
    ),
    objects: objects.map(({ json, ...row }) => ({ ...row, json: json ?? undefined })),
    reports: reports.map(({ acknowledged, ...row }) => ({ ...row, acknowledged: acknowledged !== 0 })),
  };
}

function bytes(): number {
  try {
    return Deno.statSync(path).size;
  } catch {
    return 0;
  }
}

self.onmessage = ({ data }: MessageEvent<StoreRequest>) => {
  const answer = (ok: { damaged?: string; bytes?: number; contents?: StoreContents }) =>
    self.postMessage({ id: data.id, ok } satisfies StoreAnswer);
  try {
    if ("open" in data) {
      const damaged = open(data.open);
      return answer({ bytes: bytes(), ...(damaged !== undefined ? { damaged } : {}) });
    }
    if (!database) throw new Error("the store is not open");
    if ("commit" in data) {
      commit(database, data.commit);
      return answer({ bytes: bytes() });
    }
    if ("load" in data) return answer({ contents: load(database) });
    database.close();
    answer({});
  } catch (error) {
    self.postMessage(
      { id: data.id, error: error instanceof Error ? error.message : String(error) } satisfies StoreAnswer,
    );
  }
};
