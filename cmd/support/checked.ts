/** `--dry-run` and `config check`: what would be used, printed by config keys. */
import { stringify } from "yaml";

export function printOptions(values: Record<string, unknown>, without: string[] = ["dryRun"]): void {
  const shown: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(values)) {
    if (value === undefined || without.includes(key)) continue;
    shown[key] = isAddress(value)
      ? `${value.host.includes(":") ? `[${value.host}]` : value.host}:${value.port}`
      : value;
  }
  console.log(stringify(shown).trimEnd());
}

function isAddress(value: unknown): value is { host: string; port: number } {
  return typeof value === "object" && value !== null && "host" in value && "port" in value;
}
