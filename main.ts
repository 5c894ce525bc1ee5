/** `kubeedge`: the first word names the role, whose commands alone are loaded. */
import { errorText, ExitCode, UserError } from "./lib/core/errors.ts";
import { version } from "./lib/core/version.ts";
import { type Group, isGroup, parseCommand } from "./cmd/support/command.ts";
import { completionText, helpText, shells } from "./cmd/support/help.ts";

const roles: Record<string, () => Promise<Group>> = {
  cloud: async () => (await import("./cmd/cloud.ts")).cloud,
  edge: async () => (await import("./cmd/edge.ts")).edge,
  bus: async () => (await import("./cmd/bus.ts")).bus,
};

async function rootGroup(only: string | undefined): Promise<Group> {
  const names = only !== undefined && only in roles ? [only] : Object.keys(roles);
  const loaded = await Promise.all(
    names.map(async (name) => [name, await (roles[name] as () => Promise<Group>)()] as const),
  );
  return {
    summary: "Kubernetes at the edge: one program for the cloud, the node and the network between them",
    description:
      "kubeedge cloud joins edge machines to an unmodified Kubernetes cluster. kubeedge edge is the node agent: it runs " +
      "the node's pods through containerd, with or without the cloud. kubeedge bus will be the network.",
    commands: {
      ...Object.fromEntries(loaded),
      completion: {
        summary: "print shell completion (bash, zsh or fish)",
        arguments: [{ name: "SHELL", help: shells.join(", "), required: true }],
        options: {},
        examples: ["source <(kubeedge completion bash)"],
        run: () => {},
      },
      version: { summary: "print the version", options: {}, run: () => {} },
    },
    examples: [
      "kubeedge cloud --kubeconfig ~/.kube/config",
      "kubeedge cloud token create --kubeconfig ~/.kube/config",
      "kubeedge edge join TOKEN",
    ],
  };
}

/** How this program was put together: run from source, or the build's own word. */
function versionText(): string {
  const built = Deno.env.get("KUBEEDGE_BUILT") ?? (Deno.build.standalone ? "deno compile" : "from source");
  return `kubeedge ${version} (${built}, Deno ${Deno.version.deno}, ${Deno.build.arch})`;
}

async function main(words: string[]): Promise<void> {
  const [first] = words;
  if (first === "--version" || first === "-V" || first === "version") return console.log(versionText());
  if (first === "completion" && words[1] !== "--help") {
    const shell = shells.find((known) => known === words[1]);
    if (!shell) {
      throw new UserError(
        `Cannot complete for "${words[1] ?? ""}": expected one of ${shells.join(", ")}`,
        ExitCode.usage,
      );
    }
    return console.log(completionText(shell, await rootGroup(undefined)));
  }
  const parsed = parseCommand(await rootGroup(first), words, {
    env: (name) => Deno.env.get(name),
    readFile: (path) => Deno.readTextFileSync(path),
  });
  if (parsed.parsed === "help") {
    const text = helpText(parsed.path, parsed.node);
    // A group that was named without a command is a question, not a success.
    if (isGroup(parsed.node) && !words.some((word) => /^(-h|--help|help)$/.test(word))) {
      console.error(text);
      Deno.exit(ExitCode.usage);
    }
    return console.log(text);
  }
  await parsed.command.run(parsed.values, parsed.args);
}

if (import.meta.main) {
  try {
    await main(Deno.args);
    Deno.exit(ExitCode.ok);
  } catch (error) {
    console.error(`kubeedge: ${errorText(error)}`);
    Deno.exit(error instanceof UserError ? error.exitCode : ExitCode.failure);
  }
}
