/**
 * The table that drives a command: each option once, with its kind, default and help. Parsing, the precedence of
 * flags > environment > config file > default, validation, help, completion and `config print` are all read from it.
 *
 * The key of an option in its table is its config key (`statusListen`); the flag (`--status-listen`) and the
 * environment name (`KUBEEDGE_STATUS_LISTEN`) follow from it.
 */

/** How the text of a value is read. */
export interface Kind<T> {
  /** In help: `--listen HOST:PORT`. */
  placeholder: string;
  /** Completes "must be …". */
  expected: string;
  /** Undefined when the text is not what was expected. */
  read(text: string): T | undefined;
  /** All values, where they can be counted. */
  values?: readonly string[];
  /** What a shell offers in completion. */
  completes?: "file" | "directory";
  /** A flag of this kind stands without a value. */
  bare?: boolean;
  /** A list or mapping of the config file becomes one text joined by commas. */
  joined?: boolean;
}

/** One option; `V` is what the command gets. */
export interface Option<V> {
  kind: Kind<unknown>;
  help: string;
  /** Given more than once, or as a list in the config file. */
  many: boolean;
  /** Used when nobody says anything. */
  fallback: V;
  /** In help, where the fallback is not plain text. */
  fallbackText?: string;
  /** One letter, for commands used by hand. */
  short?: string;
  /** Another name in the environment; null: none. */
  env?: string | null;
  /** False: no config key (what is said to one run only). */
  inFile?: boolean;
}

// deno-lint-ignore no-explicit-any -- a table holds options of all value types; Values<> gives each its own back
export type OptionTable = Record<string, Option<any>>;
export type Values<T extends OptionTable> = { [K in keyof T]: T[K] extends Option<infer V> ? V : never };

type Extra = { short?: string; env?: string | null; inFile?: boolean; fallbackText?: string };

/** An option that always has a value. */
export function option<T>(kind: Kind<T>, fallback: T, help: string, extra: Extra = {}): Option<T> {
  return { kind, help, many: false, fallback, ...extra };
}
/** An option that may be absent. */
export function optional<T>(kind: Kind<T>, help: string, extra: Extra = {}): Option<T | undefined> {
  return { kind, help, many: false, fallback: undefined, ...extra };
}
/** An option that may be repeated. */
export function many<T>(kind: Kind<T>, help: string, extra: Extra = {}): Option<T[]> {
  return { kind, help, many: true, fallback: [], ...extra };
}
/** A switch, off unless said. */
export function flag(help: string, extra: Extra = {}): Option<boolean> {
  return { kind: boolean, help, many: false, fallback: false, ...extra };
}

/** `statusListen` → `--status-listen`. */
export function flagName(key: string): string {
  return "--" + kebab(key);
}
/** `statusListen` → `KUBEEDGE_STATUS_LISTEN`; undefined where the environment does not count. */
export function envName(key: string, option: Pick<Option<unknown>, "env">): string | undefined {
  if (option.env === null) return undefined;
  return option.env ?? "KUBEEDGE_" + kebab(key).replaceAll("-", "_").toUpperCase();
}
function kebab(key: string): string {
  return key.replaceAll(/[A-Z]/g, (letter) => "-" + letter.toLowerCase());
}

export const boolean: Kind<boolean> = {
  placeholder: "",
  expected: "true or false",
  values: ["true", "false"],
  bare: true,
  read: (text) => text === "true" ? true : text === "false" ? false : undefined,
};
