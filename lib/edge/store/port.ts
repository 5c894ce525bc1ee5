/** The durable part of the metadata store: SQLite in a Worker (lib/sys/store.ts), or memory in tests. */

export interface ObjectRow {
  kind: string;
  /** namespace/name, or the name of cluster-scoped kinds. */
  key: string;
  uid: string;
  /** Hex of 8 bytes. */
  version: string;
  /** Undefined: known not to exist. */
  json: Uint8Array | undefined;
}
/** A report of the outbox. States of one pod share a slot: the newest wins, and stays as the last that was told. */
export interface ReportRow {
  slot: string;
  id: number;
  acknowledged: boolean;
  report: string;
}
export type StoreWrite =
  | { write: "object"; row: ObjectRow }
  | { write: "drop"; kind: string; key: string }
  | { write: "report"; row: ReportRow }
  | { write: "acknowledged"; slot: string; id: number }
  | { write: "forget"; slot: string }
  | { write: "meta"; key: string; value: string };

export interface StoreContents {
  meta: Record<string, string>;
  objects: ObjectRow[];
  reports: ReportRow[];
}

export interface StorePort {
  load(): Promise<StoreContents>;
  /** One transaction; resolves when it is on the disk (synchronous=FULL). Rejects when nothing of it was written. */
  commit(writes: StoreWrite[]): Promise<void>;
  /** Where a damaged file was put aside at the start. */
  readonly damaged: string | undefined;
  bytes(): number;
  close(): Promise<void>;
}
