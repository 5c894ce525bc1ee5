/** Where test/real/setup.sh puts the programs that it builds. */
export const binaries = `${Deno.env.get("KUBEEDGE_CACHE") ?? `${Deno.env.get("HOME")}/.cache/kubeedge`}/bin`;
