/**
 * Holds the architecture of ARCHITECTURE.md: which folder may import which, where effects may stand, and what no file of
 * the tree may name. Each rule and each exception says why.
 */
import assert from "node:assert/strict";
import { dirname, join, normalize, relative } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));

interface Layer {
  /** Files of the layer: path prefixes. */
  files: string[];
  /** Path prefixes that it may import, besides its own. */
  may: string[];
  /** Path prefixes from which only types may come. */
  mayTypes?: string[];
  reason: string;
}

/** Kubernetes' own object types: plain data that everyone speaks of. */
const common = ["lib/core/", "lib/kube/types.ts"];
const languages = ["lib/wire/", "lib/kube/", "lib/cri/", "lib/net/", "lib/crypto/"];

/** First match wins. */
const layers: Layer[] = [
  { files: ["test/"], may: [""], reason: "tests look at everything" },
  { files: ["build/"], may: ["lib/core/"], reason: "the build runs before there is a program" },
  {
    files: ["main.ts"],
    may: ["cmd/", "lib/core/"],
    reason: "main.ts only chooses a command, so that each start loads one role",
  },
  { files: ["cmd/"], may: ["lib/"], reason: "commands compose: they alone hand effects to roles" },
  {
    files: ["lib/sys/"],
    may: [...common, ...languages],
    mayTypes: ["lib/cloud/", "lib/edge/", "lib/bus/"],
    reason:
      "effects implement the ports that others declare; they decide nothing, so they run no role's code",
  },
  {
    files: ["lib/cloud/"],
    may: [...common, ...languages],
    reason: "roles meet only on the wire, and get their effects from cmd",
  },
  {
    files: ["lib/edge/"],
    may: [...common, ...languages],
    reason: "roles meet only on the wire, and get their effects from cmd",
  },
  {
    files: ["lib/bus/"],
    may: [...common, ...languages],
    reason: "roles meet only on the wire, and get their effects from cmd",
  },
  ...languages.map((files) => ({
    files: [files],
    may: common,
    reason: "a language is learned, tested and replaced alone",
  })),
  { files: ["lib/core/"], may: [], reason: "core is what all others stand on" },
];

/** Imports that break a rule for a reason. */
const importExceptions: Record<string, { imports: string; reason: string }[]> = {};

/** What touches the world, as it shows in code without comments and strings. */
const effects: { pattern: RegExp; name: string }[] = [
  { pattern: /\bDeno\s*[.[]/, name: "Deno" },
  { pattern: /(?<![.\w#])fetch\s*\(/, name: "fetch" },
  { pattern: /\bnew\s+WebSocket\b/, name: "WebSocket" },
  { pattern: /\bnew\s+(?:Shared)?Worker\b/, name: "Worker" },
  { pattern: /(?<![.\w#])(?:setTimeout|setInterval|queueMicrotask)\b/, name: "timers" },
  { pattern: /\bAbortSignal\s*\.\s*timeout\b/, name: "timers" },
  { pattern: /\bDate\s*\.\s*now\b/, name: "the clock" },
  { pattern: /\bnew\s+Date\s*(?:\(\s*\)|(?!\s*\())/, name: "the clock" },
  { pattern: /(?<![.\w#]|\bnew\s)Date\s*\(/, name: "the clock" },
  { pattern: /\bperformance\s*\.\s*now\b/, name: "the clock" },
  { pattern: /\bMath\s*\.\s*random\b/, name: "randomness" },
  { pattern: /\b(?:getRandomValues|randomUUID|randomBytes|randomInt)\b/, name: "randomness" },
  { pattern: /\bcrypto\s*\.\s*subtle\s*\.\s*generateKey\b/, name: "randomness" },
  { pattern: /(?<![.\w#])console\s*\./, name: "console" },
  { pattern: /(?<![.\w#])process\s*\.\s*(?:env|exit|stdout|stderr|on)\b/, name: "process" },
];
const effectful = (path: string) =>
  path === "main.ts" || /^(?:cmd|lib\/sys|test|build)\//.test(path) || path.endsWith("_worker.ts");

/** Node's modules that are effects by themselves; the others that are in use compute. */
const effectModules =
  /^node:(?:fs|net|tls|http|https|http2|dgram|dns|child_process|os|process|timers|sqlite|worker_threads)\b/;

/** `path` → effects that it may have, and why. */
const effectExceptions: Record<string, { names: string[]; reason: string }> = {
  "lib/crypto/x509.ts": {
    names: ["randomness"],
    reason: "a private key must never leave the call that draws it except for its owner",
  },
};

/** What would tie the tree to one machine or one mirror. This file names them, so it is left out. */
const machineBound: { pattern: RegExp; reason: string }[] = [
  {
    pattern: /\/(?:work|tmp)\/(?:main|shared|dn|plan|lab)\b/,
    reason: "a path of the machine on which the code was written",
  },
  { pattern: /\/root\/\.cache\b/, reason: "a home directory of one machine" },
  {
    pattern:
      /registry\.npmjs\.org|registry\.yarnpkg|pypi\.org|files\.pythonhosted|proxy\.golang\.org|jsr\.io|deno\.land\/x\//,
    reason: "a package registry's host: clients know theirs, and mirrors must be able to stand in",
  },
];

Deno.test("imports go down only", () => {
  const bad: string[] = [];
  for (const { path, text } of sources()) {
    const layer = layers.find(({ files }) => files.some((prefix) => path.startsWith(prefix)));
    if (!layer) {
      bad.push(`${path} belongs to no layer: add its folder to the table`);
      continue;
    }
    for (const { target, typeOnly } of importsOf(path, text)) {
      const own = layer.files.some((prefix) => target.startsWith(prefix));
      const allowed = own || layer.may.some((prefix) => target.startsWith(prefix)) ||
        (typeOnly && layer.mayTypes?.some((prefix) => target.startsWith(prefix))) ||
        importExceptions[path]?.some((exception) => target.startsWith(exception.imports));
      if (!allowed) bad.push(`${path} imports ${target}: ${layer.reason}`);
    }
  }
  assert.deepEqual(bad, []);
});

Deno.test("effects stand at the rim", () => {
  const bad: string[] = [];
  for (const { path, text } of sources()) {
    if (effectful(path)) continue;
    const excepted = effectExceptions[path]?.names ?? [];
    const code = codeOf(text);
    for (const { pattern, name } of effects) {
      const found = excepted.includes(name) ? null : pattern.exec(code);
      if (found) {
        bad.push(
          `${path}:${lineOf(code, found.index)} touches ${name}; take a port, Clock or Random as an argument`,
        );
      }
    }
    for (const { specifier, typeOnly } of specifiersOf(text)) {
      if (!typeOnly && effectModules.test(specifier)) {
        bad.push(`${path} imports ${specifier}: effects stand in lib/sys`);
      }
    }
  }
  assert.deepEqual(bad, []);
});

Deno.test("every exception is still needed", () => {
  for (const [path, { names }] of Object.entries(effectExceptions)) {
    const code = codeOf(Deno.readTextFileSync(join(root, path)));
    for (const name of names) {
      assert.ok(
        effects.some((effect) => effect.name === name && effect.pattern.test(code)),
        `${path} no longer touches ${name}`,
      );
    }
  }
  for (const [path, exceptions] of Object.entries(importExceptions)) {
    const targets = importsOf(path, Deno.readTextFileSync(join(root, path))).map(({ target }) => target);
    for (const { imports } of exceptions) {
      assert.ok(targets.some((target) => target.startsWith(imports)), `${path} no longer imports ${imports}`);
    }
  }
});

Deno.test("no import cycles", () => {
  const graph = new Map(
    sources().map(({ path, text }) => [
      path,
      importsOf(path, text).filter(({ typeOnly }) => !typeOnly).map(({ target }) => target),
    ]),
  );
  const done = new Set<string>();
  const visit = (path: string, trail: string[]): void => {
    assert.ok(
      !trail.includes(path),
      `import cycle: ${[...trail.slice(trail.indexOf(path)), path].join(" → ")}`,
    );
    if (done.has(path)) return;
    for (const target of graph.get(path) ?? []) visit(target, [...trail, path]);
    done.add(path);
  };
  for (const path of graph.keys()) visit(path, []);
});

Deno.test("no file is bound to one machine or mirror", () => {
  const bad: string[] = [];
  for (const path of files(/\.(?:ts|json|md|sh|yaml|yml|toml|in)$|^\.ci\//)) {
    if (path === "test/arch_test.ts") continue;
    const text = Deno.readTextFileSync(join(root, path));
    for (const { pattern, reason } of machineBound) {
      const found = pattern.exec(text);
      if (found) bad.push(`${path}:${lineOf(text, found.index)} names ${found[0]}: ${reason}`);
    }
  }
  assert.deepEqual(bad, []);
});

Deno.test("the checks see what they are for", () => {
  const code = codeOf(
    'const a = `${Date.now()} Deno.exit`; // fetch(\n/* console.log */ const b = "Math.random"; const r = /"/; new Date();',
  );
  assert.match(code, /Date\.now/);
  assert.match(code, /new Date\(\)/);
  assert.doesNotMatch(code, /Deno|fetch|console|Math/);
  assert.deepEqual(
    importsOf(
      "lib/cloud/hub.ts",
      'import type { A } from "../core/a.ts";\nexport { b } from "./b.ts";\nawait import("../sys/c.ts");',
    ),
    [
      { target: "lib/core/a.ts", typeOnly: true },
      { target: "lib/cloud/b.ts", typeOnly: false },
      { target: "lib/sys/c.ts", typeOnly: false },
    ],
  );
  assert.deepEqual(specifiersOf('import { type A, type B } from "x";\nimport { type A, b } from "y";'), [
    { specifier: "x", typeOnly: true },
    { specifier: "y", typeOnly: false },
  ]);
});

interface Source {
  path: string;
  text: string;
}
let read: Source[] | undefined;
/** All TypeScript of the tree but what tools generated. */
function sources(): Source[] {
  return read ??= files(/\.ts$/).map((path) => ({ path, text: Deno.readTextFileSync(join(root, path)) }));
}

function files(wanted: RegExp, folder = ""): string[] {
  const found: string[] = [];
  for (const entry of Deno.readDirSync(join(root, folder))) {
    const path = folder + entry.name;
    if (entry.isDirectory) {
      if (!/^(?:\.git|\.cache|dist|node_modules|lib\/cri\/gen)$/.test(path)) {
        found.push(...files(wanted, path + "/"));
      }
    } else if (entry.isFile && wanted.test(path)) found.push(path);
  }
  return found.sort();
}

function importsOf(path: string, text: string): { target: string; typeOnly: boolean }[] {
  return specifiersOf(text).filter(({ specifier }) => specifier.startsWith("."))
    .map(({ specifier, typeOnly }) => ({
      target: relative(root, normalize(join(root, dirname(path), specifier))),
      typeOnly,
    }));
}

/** Static imports, re-exports, and dynamic imports of a literal. */
function specifiersOf(text: string): { specifier: string; typeOnly: boolean }[] {
  const found: { at: number; specifier: string; typeOnly: boolean }[] = [];
  const statement =
    /^(?:import|export)\s+(type\s+)?((?:[\w$*\s,]|\{[^}]*\})*?)\s*from\s*"([^"]+)"|^import\s+"([^"]+)"/gm;
  for (const match of text.matchAll(statement)) {
    const names = /^\s*\{([^}]*)\}\s*$/.exec(match[2] ?? "")?.[1];
    const onlyTypes = names?.split(",").every((name) => /^\s*(?:type\s.*)?$/s.test(name)) ?? false;
    found.push({
      at: match.index,
      specifier: match[3] ?? match[4] ?? "",
      typeOnly: match[1] !== undefined || (onlyTypes && names?.trim() !== ""),
    });
  }
  for (const match of text.matchAll(/\bimport\(\s*"([^"]+)"\s*\)/g)) {
    // `typeof import("…")` and `import("…").Name` in types are rare enough to be treated as imports.
    found.push({ at: match.index, specifier: match[1] ?? "", typeOnly: false });
  }
  return found.sort((a, b) => a.at - b.at).map(({ specifier, typeOnly }) => ({ specifier, typeOnly }));
}

/** The code without comments and without the contents of strings and patterns; line breaks stay, template holes too. */
function codeOf(text: string): string {
  let out = "", at = 0;
  /** Depth of braces at which each open template hole ends. */
  const holes: number[] = [];
  let depth = 0;
  const skip = (to: number) => {
    out += text.slice(at, to).replaceAll(/[^\n]/g, "");
    at = to;
  };
  const template = () => {
    let end = at;
    for (; end < text.length; end++) {
      if (text[end] === "\\") end++;
      else if (text[end] === "`") {
        skip(end + 1);
        out += "`";
        return;
      } else if (text.startsWith("${", end)) {
        skip(end + 2);
        out += "${";
        holes.push(depth);
        return;
      }
    }
    skip(end);
  };
  while (at < text.length) {
    const char = text[at] ?? "";
    if (text.startsWith("//", at)) {
      const end = text.indexOf("\n", at);
      skip(end < 0 ? text.length : end);
    } else if (text.startsWith("/*", at)) {
      const end = text.indexOf("*/", at + 2);
      skip(end < 0 ? text.length : end + 2);
    } else if (char === '"' || char === "'") {
      let end = at + 1;
      while (end < text.length && text[end] !== char && text[end] !== "\n") end += text[end] === "\\" ? 2 : 1;
      skip(end + 1);
      out += '""';
    } else if (char === "`") {
      out += "`";
      at++;
      template();
    } else if (
      char === "/" && /(?:^|[=(,:;!&|?{}[+\-<>]|\breturn|\btypeof|\bcase)\s*$/.test(out.slice(-20))
    ) {
      // A pattern: it ends at the first slash that is neither escaped nor in a class.
      let end = at + 1;
      for (let inClass = false; end < text.length && text[end] !== "\n"; end++) {
        if (text[end] === "\\") end++;
        else if (text[end] === "[") inClass = true;
        else if (text[end] === "]") inClass = false;
        else if (text[end] === "/" && !inClass) break;
      }
      skip(end + 1);
      out += "/r/";
    } else {
      if (char === "{") depth++;
      if (char === "}") {
        if (holes.length > 0 && holes.at(-1) === depth) {
          holes.pop();
          out += "}";
          at++;
          template();
          continue;
        }
        depth--;
      }
      out += char;
      at++;
    }
  }
  return out;
}

function lineOf(text: string, at: number): number {
  return text.slice(0, at).split("\n").length;
}
