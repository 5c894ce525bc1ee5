/** Where a Worker's entry file is: beside this module in the source tree, beside the bundle when built. */
export function workerUrl(name: string): URL {
  return new URL(import.meta.url.endsWith(".ts") ? `./${name}.ts` : `./${name}.js`, import.meta.url);
}
