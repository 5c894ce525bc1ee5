/** A registry on the cloud's side that wants a password; images are pushed by skopeo. */
import { must, type Program, until } from "./processes.ts";

export const registryUser = "puller", registryPassword = "let-me-pull";
/** bcrypt of the password. */
const htpasswd = `${registryUser}:$2b$05$abcdefghijklmnopqrstuucCZeJdrAgCPNDV0D5WMVlxjAoEEY.vu\n`;

export async function startRegistry(
  dir: string,
  address: string,
  program: (name: string, command: string[]) => Program,
): Promise<void> {
  const home = `${dir}/registry`;
  await Deno.mkdir(home, { recursive: true });
  await Deno.writeTextFile(`${home}/htpasswd`, htpasswd);
  await Deno.writeTextFile(
    `${home}/config.yml`,
    JSON.stringify({
      version: "0.1",
      log: { level: "warn" },
      storage: { filesystem: { rootdirectory: `${home}/data` } },
      http: { addr: address },
      auth: { htpasswd: { realm: "test", path: `${home}/htpasswd` } },
    }),
  );
  program("registry", ["docker-registry", "serve", `${home}/config.yml`]);
  await until("the registry answers", 15_000, async () => {
    const answer = await fetch(`http://${address}/v2/`);
    await answer.body?.cancel();
    return answer.status === 401;
  });
}

/** `archive`: an OCI-layout archive; `name`: with the registry's address. */
export async function push(dir: string, name: string, archive: Uint8Array): Promise<void> {
  const file = `${dir}/registry/image.tar`;
  await Deno.writeFile(file, archive);
  const credentials = `${registryUser}:${registryPassword}`;
  await must(
    `skopeo copy -q --dest-tls-verify=false --dest-creds ${credentials} oci-archive:${file} docker://${name}`,
  );
  await Deno.remove(file);
}
