/**
 * Structured logs: a constant message plus fields. Levels are defined by who acts on them:
 * error = wake somebody, warn = look at it today, info = what happened, debug = for whoever is looking for a fault.
 *
 * Glossary of fields (one name for one thing, in logs, metrics and documents):
 * node, pod (NAMESPACE/NAME), uid, container, image, kind, key (NAMESPACE/NAME of any object), session, stream,
 * seq, bytes, ms, error, reason, from, to, url, attempt, count, path, address, port, version.
 * Never a field: token, key material, Secret data, Authorization.
 */
export const logLevels = ["debug", "info", "warn", "error"] as const;
export type LogLevel = typeof logLevels[number];
export type LogFields = Record<string, string | number | boolean | undefined>;

export interface LogRecord {
  time: number;
  level: LogLevel;
  message: string;
  fields: LogFields;
}

/** Where records go; cmd/ makes one from `textLine` or `jsonLine` and standard error. */
export type LogSink = (record: LogRecord) => void;

export class Logger {
  readonly #sink: LogSink;
  readonly #now: () => number;
  readonly #least: number;
  readonly #fields: LogFields;

  constructor(options: { sink: LogSink; now: () => number; level?: LogLevel; fields?: LogFields }) {
    this.#sink = options.sink;
    this.#now = options.now;
    this.#least = logLevels.indexOf(options.level ?? "info");
    this.#fields = options.fields ?? {};
  }

  /** A logger that adds `fields` to every record. */
  with(fields: LogFields): Logger {
    const level = logLevels[this.#least] ?? "info";
    return new Logger({ sink: this.#sink, now: this.#now, level, fields: { ...this.#fields, ...fields } });
  }

  enabled(level: LogLevel): boolean {
    return logLevels.indexOf(level) >= this.#least;
  }

  debug(message: string, fields: LogFields = {}): void {
    this.#write("debug", message, fields);
  }
  info(message: string, fields: LogFields = {}): void {
    this.#write("info", message, fields);
  }
  warn(message: string, fields: LogFields = {}): void {
    this.#write("warn", message, fields);
  }
  error(message: string, fields: LogFields = {}): void {
    this.#write("error", message, fields);
  }

  #write(level: LogLevel, message: string, fields: LogFields): void {
    if (!this.enabled(level)) return;
    this.#sink({ time: this.#now(), level, message, fields: { ...this.#fields, ...fields } });
  }
}

/** A logger that drops everything. */
export const silentLogger = new Logger({ sink: () => {}, now: () => 0, level: "error" });

/** `2026-11-01T10:00:00.000Z INFO  Node joined  node=n1 ms=12` */
export function textLine(record: LogRecord): string {
  let line = `${new Date(record.time).toISOString()} ${
    record.level.toUpperCase().padEnd(5)
  } ${record.message}`;
  for (const [name, value] of Object.entries(record.fields)) {
    if (value === undefined) continue;
    const text = String(value);
    line += ` ${name}=${/^[^\s"=]+$/.test(text) ? text : JSON.stringify(text)}`;
  }
  return line;
}

export function jsonLine(record: LogRecord): string {
  const { time, level, message, fields } = record;
  return JSON.stringify({ time: new Date(time).toISOString(), level, message, ...fields });
}
