/** The program under test: the built one where KUBEEDGE_BIN names it. */
const root = new URL("../..", import.meta.url).pathname;

export function kubeedge(): string[] {
  const built = Deno.env.get("KUBEEDGE_BIN");
  return built
    ? [built]
    : [Deno.execPath(), "run", "-A", "--no-check", "--config", `${root}deno.json`, `${root}main.ts`];
}
