/**
 * Commands as data: a tree of groups and commands, each command with its option table (options.ts). Parsing,
 * precedence, help and completion are read from the tree; a command's own code gets values that are checked.
 */
import { parse as parseYaml } from "yaml";
import { errorText, ExitCode, UserError } from "../../lib/core/errors.ts";
import { envName, flagName, type Option, type OptionTable, type Values } from "./options.ts";

export interface Argument {
  name: string;
  help: string;
  required: boolean;
  /** Takes all that is left, after `--` too. */
  rest?: boolean;
}
export interface Command<T extends OptionTable = OptionTable> {
  summary: string;
  /** Paragraphs after the summary. */
  description?: string;
  arguments?: Argument[];
  options: T;
  /** `--config FILE` may give the options. */
  config?: boolean;
  examples?: string[];
  run(values: Values<T>, args: string[]): Promise<void> | void;
}
export interface Group {
  summary: string;
  description?: string;
  commands: Record<string, Command | Group>;
  /** Runs when no sub-command is named. */
  fallback?: string;
  examples?: string[];
}

/** A command with its types checked, stored without them. */
export function command<T extends OptionTable>(definition: Command<T>): Command {
  return definition as unknown as Command;
}
export function isGroup(node: Command | Group): node is Group {
  return "commands" in node;
}

export interface Environment {
  env: (name: string) => string | undefined;
  readFile: (path: string) => string;
}
export type Parsed =
  | { parsed: "help"; path: string[]; node: Command | Group }
  | { parsed: "run"; path: string[]; command: Command; values: Record<string, unknown>; args: string[] };

/** Reads the words after the program's name. Throws UserError (usage). */
export function parseCommand(root: Group, words: string[], environment: Environment): Parsed {
  const path: string[] = [];
  let node: Command | Group = root, at = 0;
  while (isGroup(node)) {
    const word: string | undefined = words[at];
    if (word === "--help" || word === "-h" || word === "help") return { parsed: "help", path, node };
    const next: Command | Group | undefined = word === undefined || word.startsWith("-")
      ? undefined
      : node.commands[word];
    if (next && word !== undefined) {
      path.push(word);
      node = next;
      at++;
    } else if (node.fallback !== undefined && (word === undefined || word.startsWith("-"))) {
      node = node.commands[node.fallback] as Command | Group;
    } else if (word === undefined) return { parsed: "help", path, node };
    else throw usage(path, `Unknown command "${word}"${nearest(word, Object.keys(node.commands))}`);
  }
  return parseOptions(path, node, words.slice(at), environment);
}

function parseOptions(path: string[], node: Command, words: string[], environment: Environment): Parsed {
  const given = new Map<string, string[]>();
  const args: string[] = [];
  let configFile: string | undefined;
  const flags = new Map<string, string>();
  for (const [key, option] of Object.entries(node.options)) {
    flags.set(flagName(key), key);
    if (option.short) flags.set(`-${option.short}`, key);
  }
  const takesRest = node.arguments?.some((argument) => argument.rest) ?? false;
  for (let at = 0; at < words.length; at++) {
    const word = words[at] as string;
    if (word === "--") {
      args.push(...words.slice(at + 1));
      break;
    }
    if (!/^-./.test(word)) {
      args.push(word);
      continue;
    }
    if (word === "--help" || word === "-h") return { parsed: "help", path, node };
    const [name = "", inline] = word.startsWith("--") && word.includes("=")
      ? [word.slice(0, word.indexOf("=")), word.slice(word.indexOf("=") + 1)]
      : [word];
    // -it is -i -t.
    if (
      /^-[a-z]{2,}$/.test(name) &&
      [...name.slice(1)].every((letter) => node.options[flags.get(`-${letter}`) ?? ""]?.kind.bare)
    ) {
      words.splice(at, 1, ...[...name.slice(1)].map((letter) => `-${letter}`));
      at--;
      continue;
    }
    const isConfig = name === "--config" && node.config;
    const key = flags.get(name);
    const option = key === undefined ? undefined : node.options[key];
    if (!option && !isConfig) {
      const known = [...flags.keys(), ...(node.config ? ["--config"] : [])];
      throw usage(path, `Unknown flag ${name}${nearest(name, known)}`);
    }
    const value = inline ?? (option?.kind.bare ? "true" : words[++at]);
    if (value === undefined) {
      throw usage(path, `${name} needs a value: expected ${option?.kind.expected ?? "the path of a file"}`);
    }
    if (isConfig) configFile = value;
    else if (key !== undefined) given.set(key, [...given.get(key) ?? [], value]);
  }
  const least = node.arguments?.filter((argument) => argument.required).length ?? 0;
  if (args.length < least) {
    throw usage(path, `${node.arguments?.[args.length]?.name ?? "An argument"} is missing`);
  }
  if (!takesRest && args.length > (node.arguments?.length ?? 0)) {
    throw usage(path, `Unexpected argument "${args[node.arguments?.length ?? 0]}"`);
  }
  const values = resolve(path, node, given, configFile, environment);
  return { parsed: "run", path, command: node, values, args };
}

/** Flags before environment before config file before default. */
function resolve(
  path: string[],
  node: Command,
  given: Map<string, string[]>,
  configFile: string | undefined,
  { env, readFile }: Environment,
): Record<string, unknown> {
  const file = configFile === undefined ? {} : readConfig(node, configFile, readFile);
  const values: Record<string, unknown> = {};
  for (const [key, option] of Object.entries(node.options)) {
    const variable = envName(key, option);
    const flag = given.get(key), fromEnv = variable === undefined ? undefined : env(variable);
    if (flag && flag.length > 1 && !option.many) {
      throw usage(path, `${flagName(key)} was given ${flag.length} times`);
    }
    if (flag) values[key] = readValues(option, flag, flagName(key), path);
    else if (fromEnv !== undefined && fromEnv !== "") {
      values[key] = readValues(option, option.many ? fromEnv.split(",") : [fromEnv], variable ?? key, path);
    } else if (key in file) {
      values[key] = readValues(option, file[key] ?? [], `${key} in ${configFile}`, path);
    } else values[key] = option.fallback;
  }
  return values;
}

function readValues(option: Option<unknown>, texts: string[], source: string, path: string[]): unknown {
  const read = texts.map((text) => {
    const value = option.kind.read(text);
    if (value === undefined) throw usage(path, `${source} is "${text}": expected ${option.kind.expected}`);
    return value;
  });
  return option.many ? read : read[0];
}

/** Texts of each key. Throws UserError for what is not a known key or not plain text. */
function readConfig(
  node: Command,
  file: string,
  readFile: (path: string) => string,
): Record<string, string[]> {
  const fail = (problem: string): never => {
    throw new UserError(`Cannot use config file ${file}: ${problem}`, ExitCode.usage);
  };
  let document: unknown;
  try {
    document = parseYaml(readFile(file));
  } catch (error) {
    return fail(errorText(error).slice(0, 300));
  }
  if (document === null || document === undefined) return {};
  if (typeof document !== "object" || Array.isArray(document)) return fail("it is not a mapping of options");
  const out: Record<string, string[]> = {};
  for (const [key, value] of Object.entries(document)) {
    const option = node.options[key];
    if (!option || option.inFile === false) {
      const known = Object.entries(node.options).filter(([, o]) => o.inFile !== false).map(([k]) => k);
      return fail(`it has an unknown key "${key}"${nearest(key, known)}`);
    }
    const texts = Array.isArray(value)
      ? value.map(String)
      : value !== null && typeof value === "object"
      ? Object.entries(value).map(([k, v]) => `${k}=${String(v)}`)
      : [String(value)];
    out[key] = option.kind.joined && texts.length > 0 ? [texts.join(",")] : texts;
    if (!option.many && (out[key]?.length ?? 0) > 1) {
      return fail(`${key} is a list, expected ${option.kind.expected}`);
    }
    if (texts.length === 0) delete out[key];
  }
  return out;
}

function usage(path: string[], problem: string): UserError {
  const name = ["kubeedge", ...path].join(" ");
  return new UserError(`${problem}${problem.endsWith("?") ? "" : "."} See: ${name} --help`, ExitCode.usage);
}

/** `; did you mean …?` where one known word is close. */
function nearest(word: string, known: string[]): string {
  const close = known.map((candidate) => ({ candidate, distance: editDistance(word, candidate) }))
    .filter(({ distance }) => distance <= Math.max(2, word.length / 3)).sort((a, b) =>
      a.distance - b.distance
    )[0];
  return close ? `; did you mean ${close.candidate}?` : "";
}
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      next[j] = Math.min(
        (row[j] ?? 0) + 1,
        (next[j - 1] ?? 0) + 1,
        (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1),
      );
    }
    row = next;
  }
  return row[b.length] ?? 0;
}
