/** The agent's service where systemd runs the machine. */
import { ExitCode, UserError } from "../core/errors.ts";

export const unitName = "kubeedge-edge.service";
const unitPath = `/etc/systemd/system/${unitName}`;

export function systemdRuns(): boolean {
  return isDirectory("/run/systemd/system");
}

export interface UnitOptions {
  /** Program and arguments. */
  command: string[];
  rootDir: string;
  /** Environment of the service: proxies and the like; may hold a password. */
  environmentFile: string;
}

/**
 * KillMode=process: containers and their shims go on while the agent restarts. Delegate is not set: pods have cgroups
 * of their own outside the service's.
 */
export function unitText({ command, rootDir, environmentFile }: UnitOptions): string {
  return `# Written by "kubeedge edge join"; removed by "kubeedge edge reset".
[Unit]
Description=KubeEdge edge node agent
Wants=network-online.target
After=network-online.target containerd.service
RequiresMountsFor=${quoted(rootDir)}
StartLimitIntervalSec=0

[Service]
Type=simple
ExecStart=${command.map(quoted).join(" ")}
EnvironmentFile=-${escapePercent(environmentFile)}
Restart=always
RestartSec=1
KillMode=process
LimitNOFILE=1048576
TasksMax=infinity
OOMScoreAdjust=-900

[Install]
WantedBy=multi-user.target
`;
}

/** systemd.syntax(7) and systemd.service(5): quotes, then specifiers and variables as themselves. */
function quoted(word: string): string {
  const escaped = escapePercent(word).replaceAll(/["\\]/g, "\\$&").replaceAll("$", () => "$$");
  return /^[\w@%+=:,./$-]+$/.test(escaped) ? escaped : `"${escaped}"`;
}
function escapePercent(word: string): string {
  return word.replaceAll("%", "%%");
}

export function installedUnit(): string | undefined {
  try {
    return Deno.readTextFileSync(unitPath);
  } catch {
    return undefined;
  }
}

/** Whether a unit's text is of the agent with this root directory. */
export function unitIsOf(text: string, rootDir: string): boolean {
  return text.split("\n").includes(`RequiresMountsFor=${quoted(rootDir)}`);
}

/** Writes the unit, enables it, and (re)starts it when asked. */
export async function installUnit(text: string, start: "no" | "start" | "restart"): Promise<void> {
  if (installedUnit() !== text) Deno.writeTextFileSync(unitPath, text, { mode: 0o644 });
  await systemctl("daemon-reload");
  await systemctl("enable", unitName);
  if (start !== "no") await systemctl(start, unitName);
}

/** False when there is none. */
export async function removeUnit(): Promise<boolean> {
  if (installedUnit() === undefined) return false;
  if (systemdRuns()) {
    await systemctl("stop", unitName);
    await systemctl("disable", unitName);
  }
  Deno.removeSync(unitPath);
  if (systemdRuns()) await systemctl("daemon-reload");
  return true;
}

async function systemctl(...args: string[]): Promise<void> {
  const command = new Deno.Command("systemctl", { args, stdin: "null", stdout: "null", stderr: "piped" });
  const { success, code, stderr } = await command.output();
  if (success) return;
  const reason = new TextDecoder().decode(stderr).trim().split("\n").at(-1) || `code ${code}`;
  throw new UserError(
    `systemctl ${args.join(" ")} failed: ${reason}; see journalctl -u ${unitName}`,
    ExitCode.failure,
  );
}

function isDirectory(path: string): boolean {
  try {
    return Deno.statSync(path).isDirectory;
  } catch {
    return false;
  }
}
