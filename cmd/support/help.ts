/** Help in the form of a man page, and shell completion: both read from the command tree. */
import { type Command, type Group, isGroup } from "./command.ts";
import { envName, flagName, type Option } from "./options.ts";

const widthMax = 100;

export const exitCodesText = [
  "0  done",
  "1  the work was tried and failed",
  "2  flags, environment or config file are wrong; nothing was touched",
  "3  the machine lacks something (the line above says what to do)",
  "4  the other side refused: token, certificate, revoked node, version",
];

export function helpText(path: string[], node: Command | Group): string {
  const name = ["kubeedge", ...path].join(" ");
  const out: string[] = [];
  const section = (title: string, lines: string[]) => {
    if (lines.length > 0) out.push(title, ...lines.map((line) => line === "" ? "" : `    ${line}`), "");
  };
  section("NAME", [`${name} - ${node.summary}`]);
  if (isGroup(node)) {
    section("SYNOPSIS", [
      `${name} COMMAND [options]`,
      ...(node.fallback ? [`${name} [options]        the same as ${name} ${node.fallback}`] : []),
    ]);
    section("DESCRIPTION", paragraphs(node.description));
    const width = Math.max(...Object.keys(node.commands).map((word) => word.length)) + 2;
    section(
      "COMMANDS",
      Object.entries(node.commands).map(([word, { summary }]) => word.padEnd(width) + summary),
    );
    section("EXAMPLES", node.examples ?? []);
    if (path.length === 0) section("EXIT CODES", exitCodesText);
    out.push(`Each command has its own help: ${name} COMMAND --help`);
    return out.join("\n") + "\n";
  }
  const args = (node.arguments ?? []).map((argument) => {
    const word = argument.rest ? `${argument.name}…` : argument.name;
    return argument.required ? ` ${word}` : ` [${word}]`;
  });
  section("SYNOPSIS", [`${name} [options]${args.join("")}`]);
  section("DESCRIPTION", paragraphs(node.description));
  section("ARGUMENTS", (node.arguments ?? []).map((argument) => `${argument.name}  ${argument.help}`));
  const options = Object.entries(node.options).flatMap(([key, option]) => optionLines(key, option));
  if (node.config) {
    options.push(
      "--config FILE",
      "    YAML file with these options by their keys (camelCase); flags and environment come first",
      "",
    );
  }
  section("OPTIONS", [...options, "-h, --help", "    this text"]);
  section("EXAMPLES", node.examples ?? []);
  section("EXIT CODES", exitCodesText);
  return out.join("\n").trimEnd() + "\n";
}

function optionLines(key: string, option: Option<unknown>): string[] {
  const { kind, short, many, fallback, fallbackText } = option;
  const flag = `${short ? `-${short}, ` : ""}${flagName(key)}${kind.bare ? "" : ` ${kind.placeholder}`}${
    many ? " …" : ""
  }`;
  const plain = typeof fallback === "string" || typeof fallback === "number" ? String(fallback) : undefined;
  const shown = fallbackText ?? plain;
  const notes = [
    shown !== undefined && shown !== "" ? `default ${shown}` : "",
    envName(key, option) ?? "",
    many ? "may be repeated" : "",
  ].filter(Boolean);
  return [
    flag,
    ...wrap(option.help + (notes.length > 0 ? ` (${notes.join("; ")})` : ""), widthMax - 8).map((line) =>
      `    ${line}`
    ),
    "",
  ];
}

function paragraphs(text: string | undefined): string[] {
  return (text ?? "").split("\n\n").filter(Boolean).flatMap((
    paragraph,
    i,
  ) => [...(i > 0 ? [""] : []), ...wrap(paragraph, widthMax - 4)]);
}
function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(/\s+/)) {
    if (line !== "" && line.length + 1 + word.length > width) {
      lines.push(line);
      line = word;
    } else line = line === "" ? word : `${line} ${word}`;
  }
  return line === "" ? lines : [...lines, line];
}

/** The words of every place in the tree, for the shells below. */
function places(node: Command | Group, path: string[] = []): { path: string[]; words: string[] }[] {
  if (!isGroup(node)) {
    const words = Object.keys(node.options).map(flagName);
    return [{ path, words: [...words, ...(node.config ? ["--config"] : []), "--help"] }];
  }
  const below = Object.entries(node.commands).flatMap(([word, next]) => places(next, [...path, word]));
  return [{ path, words: [...Object.keys(node.commands), "--help"] }, ...below];
}

export const shells = ["bash", "zsh", "fish"] as const;

export function completionText(shell: typeof shells[number], root: Group): string {
  const all = places(root);
  if (shell === "fish") {
    return all.map(({ path, words }) => {
      const seen = path.length === 0
        ? "__fish_use_subcommand"
        : path.map((word) => `__fish_seen_subcommand_from ${word}`).join("; and ");
      return `complete -c kubeedge -n '${seen}' -a '${words.join(" ")}'`;
    }).join("\n") + "\n";
  }
  const cases = all.map(({ path, words }) => `    "${path.join(" ")}") words="${words.join(" ")}" ;;`).join(
    "\n",
  );
  const bash = `_kubeedge() {
  local path="" word words="" i
  for ((i = 1; i < COMP_CWORD; i++)); do
    word="\${COMP_WORDS[i]}"
    case "$word" in -*) break ;; esac
    path="\${path:+$path }$word"
  done
  case "$path" in
${cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "\${COMP_WORDS[COMP_CWORD]}"))
  [ \${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- "\${COMP_WORDS[COMP_CWORD]}"))
}
complete -o filenames -F _kubeedge kubeedge
`;
  return shell === "bash" ? bash : `autoload -U +X bashcompinit && bashcompinit\n${bash}`;
}
