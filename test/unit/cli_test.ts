/** The command line: what is read, in which precedence, and what is said about mistakes. */
import assert from "node:assert/strict";
import { UserError } from "../../lib/core/errors.ts";
import { bus } from "../../cmd/bus.ts";
import { cloud } from "../../cmd/cloud.ts";
import { edge } from "../../cmd/edge.ts";
import { type Command, type Group, isGroup, parseCommand } from "../../cmd/support/command.ts";
import { completionText, helpText, shells } from "../../cmd/support/help.ts";

const root: Group = { summary: "all of it together", commands: { cloud, edge, bus } };

function parse(words: string, env: Record<string, string> = {}, files: Record<string, string> = {}) {
  return parseCommand(root, words.split(" ").filter(Boolean), {
    env: (name) => env[name],
    readFile: (path) => {
      const text = files[path];
      if (text === undefined) throw new Error("No such file or directory");
      return text;
    },
  });
}
function values(
  words: string,
  env: Record<string, string> = {},
  files: Record<string, string> = {},
): Record<string, unknown> {
  const parsed = parse(words, env, files);
  assert.equal(parsed.parsed, "run");
  return parsed.parsed === "run" ? parsed.values : {};
}

Deno.test("flags come before the environment, the environment before the file, the file before the default", () => {
  const files = { "/c.yaml": "namespace: file\nlogLevel: warn\nhubUrl: [wss://a:1, wss://b:2]\n" };
  const command = "cloud --config /c.yaml";
  assert.equal(values("cloud").namespace, "kubeedge-system");
  assert.equal(values(command, {}, files).namespace, "file");
  assert.equal(values(command, { KUBEEDGE_NAMESPACE: "env" }, files).namespace, "env");
  assert.equal(values(`${command} --namespace flag`, { KUBEEDGE_NAMESPACE: "env" }, files).namespace, "flag");
  assert.equal(values(command, {}, files).logLevel, "warn");
  assert.deepEqual(values(command, {}, files).hubUrl, ["wss://a:1", "wss://b:2"]);
  assert.equal(values("cloud", { KUBECONFIG: "/k" }).kubeconfig, "/k");
});

Deno.test("values are read by their kinds", () => {
  const run = values(
    "cloud run --listen [::]:443 --kubelet-ports 1000-2000 --hub-url wss://h --node-addresses edge --status-listen off",
  );
  assert.deepEqual(run.listen, { host: "::", port: 443 });
  assert.deepEqual(run.kubeletPorts, [1000, 2000]);
  assert.equal(run.statusListen, "off");
  const token = values(
    "cloud token create --ttl 1h30m --labels a=b,c= --taints edge=true:NoSchedule --uses 0 --takeover",
  );
  assert.equal(token.ttl, 5_400_000);
  assert.deepEqual(token.labels, { a: "b", c: "" });
  assert.deepEqual(token.taints, [{ key: "edge", value: "true", effect: "NoSchedule" }]);
  assert.equal(token.takeover, true);
});

Deno.test("short flags stand together, and what follows -- is the command's own", () => {
  const parsed = parse("edge exec -it web -- ls --all -l");
  assert.ok(parsed.parsed === "run" && parsed.values.stdin === true && parsed.values.tty === true);
  assert.ok(parsed.parsed === "run");
  assert.deepEqual(parsed.args, ["web", "ls", "--all", "-l"]);
});

for (
  const [words, want] of [
    ["clod", /Unknown command "clod"; did you mean cloud\? See: kubeedge --help/],
    ["cloud tokn create", /Unknown command "tokn"; did you mean token\?/],
    ["cloud --lisen x", /Unknown flag --lisen; did you mean --listen\? See: kubeedge cloud --help/],
    ["cloud --listen nowhere", /--listen is "nowhere": expected host:port/],
    ["cloud --listen", /--listen needs a value: expected host:port/],
    ["cloud --kubelet-ports 5-3", /--kubelet-ports is "5-3": expected two ports/],
    ["cloud --log-level loud", /--log-level is "loud": expected one of debug, info, warn, error/],
    ["cloud --namespace a --namespace b", /--namespace was given 2 times/],
    ["cloud extra", /Unknown command "extra"/],
    ["cloud token delete", /ID is missing/],
    ["edge join", /TOKEN is missing/],
    ["edge join T U", /Unexpected argument "U"/],
    ["edge join T --name Shop", /--name is "Shop": expected a node name/],
    ["edge run --root-dir relative", /--root-dir is "relative": expected an absolute path/],
    ["edge run --config /missing.yaml", /Cannot use config file \/missing\.yaml: No such file/],
    ["edge run --config /bad.yaml", /unknown key "maxPod"; did you mean maxPods\?/],
    ["edge run --config /list.yaml", /it is not a mapping/],
  ] as const
) {
  Deno.test(`"kubeedge ${words}" is answered in one line`, () => {
    const files = { "/bad.yaml": "maxPod: 5\n", "/list.yaml": "- a\n" };
    assert.throws(() => parse(words, {}, files), (error: unknown) => {
      assert.ok(error instanceof UserError && error.exitCode === 2);
      assert.match(error.message, want);
      assert.ok(!error.message.includes("\n"));
      return true;
    });
  });
}

Deno.test("a wrong environment variable is named", () => {
  assert.throws(
    () => parse("edge run", { KUBEEDGE_MAX_PODS: "many" }),
    /KUBEEDGE_MAX_PODS is "many": expected a number/,
  );
});

Deno.test("every command has help with its options, a summary and the exit codes", () => {
  let commands = 0;
  const walk = (path: string[], node: Command | Group) => {
    const text = helpText(path, node);
    assert.ok(text.includes(`kubeedge ${path.join(" ")}`.trim()));
    assert.ok(node.summary.length > 10);
    if (isGroup(node)) {
      return Object.entries(node.commands).forEach(([word, next]) => walk([...path, word], next));
    }
    commands++;
    assert.match(text, /EXIT CODES\n {4}0 {2}done/);
    for (const [key, option] of Object.entries(node.options)) {
      assert.ok(option.help.length > 5, key);
      assert.ok(text.includes(`--${key.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`), key);
    }
  };
  walk([], root);
  assert.ok(commands > 20);
});

Deno.test("--help stands anywhere", () => {
  for (const words of ["--help", "cloud --help", "cloud token create --ttl 1h --help", "edge exec web -h"]) {
    assert.equal(parse(words).parsed, "help", words);
  }
});

for (const shell of shells) {
  Deno.test(`completion for ${shell} knows the commands and flags`, () => {
    const text = completionText(shell, root);
    for (const word of ["token", "--kubelet-ports", "join", "--taints"]) assert.ok(text.includes(word), word);
  });
}
