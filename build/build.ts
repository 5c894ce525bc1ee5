/**
 * One executable for each platform, in dist/: by `deno compile` where its runtime can be fetched, otherwise a shell stub
 * with the Deno binary and the bundled program behind it, which unpacks itself once into a cache and runs from there.
 *
 *     deno task build [x64] [arm64]      default: both; arm64 is left out when its Deno cannot be had
 */
import { createHash } from "node:crypto";
import { gzipSync } from "node:zlib";
import { version } from "../lib/core/version.ts";

const denoVersion = Deno.version.deno;
const targets = {
  x64: {
    triple: "x86_64-unknown-linux-gnu",
    archs: ["x86_64"],
    packages: [`@deno/linux-x64-glibc@${denoVersion}`],
  },
  arm64: {
    triple: "aarch64-unknown-linux-gnu",
    archs: ["aarch64"],
    packages: [`@deno/linux-arm64-glibc@${denoVersion}`, "@deno/linux-arm64-glibc@2.9.5"],
  },
} as const;
type Target = keyof typeof targets;

const root = new URL("..", import.meta.url).pathname;
const dist = `${root}dist`;
/** New-space of 1 MiB: an idle agent keeps less memory, and throughput hardly differs. */
const v8Flags = "--max-semi-space-size=1,--expose-gc";

async function run(command: string[], options: { cwd?: string; quiet?: boolean } = {}): Promise<boolean> {
  const [program = "", ...args] = command;
  try {
    const { success, stderr } = await new Deno.Command(program, {
      args,
      cwd: options.cwd ?? root,
      env: { DENO_NO_UPDATE_CHECK: "1", NO_COLOR: "1" },
      stdout: "null",
      stderr: "piped",
      signal: AbortSignal.timeout(300_000),
    }).output();
    if (!success && !options.quiet) console.error(new TextDecoder().decode(stderr));
    return success;
  } catch (error) {
    if (!options.quiet) console.error(`${program}: ${error}`);
    return false;
  }
}

/** `deno compile`: only where its runtime is to be had, which is not on a package registry. */
async function compile(target: Target, file: string): Promise<boolean> {
  const { triple } = targets[target];
  return await run([
    Deno.execPath(),
    "compile",
    "-A",
    "--no-check",
    `--v8-flags=${v8Flags}`,
    "--target",
    triple,
    "--include",
    "lib/sys/store_worker.ts",
    "--output",
    file,
    "main.ts",
  ], { quiet: true });
}

/** main.js and store_worker.js. */
async function bundle(): Promise<string> {
  const out = `${dist}/bundle`;
  await Deno.remove(out, { recursive: true }).catch(() => {});
  const command = [
    Deno.execPath(),
    "bundle",
    "--platform",
    "deno",
    "--minify",
    "--outdir",
    out,
    "main.ts",
    "lib/sys/store_worker.ts",
  ];
  if (!await run(command)) throw new Error("deno bundle failed");
  // Entry points keep their folders in the output; the program looks for its Worker beside itself.
  for (const [name, from] of [["store_worker.js", `${out}/lib/sys/store_worker.js`]] as const) {
    await Deno.rename(from, `${out}/${name}`).catch(() => {});
  }
  await Deno.stat(`${out}/main.js`);
  await Deno.stat(`${out}/store_worker.js`);
  return out;
}

/** The Deno binary of a platform: this one, or from npm. */
async function denoBinary(target: Target): Promise<Uint8Array | undefined> {
  if ((targets[target].archs as readonly string[]).includes(Deno.build.arch)) {
    return await Deno.readFile(await realDeno());
  }
  const dir = await Deno.makeTempDir();
  try {
    for (const name of targets[target].packages) {
      if (!await run(["npm", "pack", "--silent", name], { cwd: dir, quiet: true })) continue;
      const archive = [...Deno.readDirSync(dir)].find((entry) => entry.name.endsWith(".tgz"));
      if (!archive || !await run(["tar", "-xzf", archive.name], { cwd: dir })) continue;
      return await Deno.readFile(`${dir}/package/deno`).catch(() => undefined);
    }
    return undefined;
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

async function realDeno(): Promise<string> {
  return await Deno.realPath(Deno.execPath());
}

/** Deno, main.js and store_worker.js as a gzip'd tar behind a stub. */
async function selfExtracting(target: Target, file: string, bundled: string): Promise<boolean> {
  const deno = await denoBinary(target);
  if (!deno) return false;
  const dir = await Deno.makeTempDir();
  try {
    await Deno.writeFile(`${dir}/deno`, deno, { mode: 0o755 });
    for (const name of ["main.js", "store_worker.js"]) {
      await Deno.copyFile(`${bundled}/${name}`, `${dir}/${name}`);
    }
    const tar = await new Deno.Command("tar", {
      args: ["--owner=0", "--group=0", "--mtime=@0", "-cf", "-", "deno", "main.js", "store_worker.js"],
      cwd: dir,
    }).output();
    const payload = gzipSync(tar.stdout, { level: 6 });
    const hash = createHash("sha256").update(payload).digest("hex").slice(0, 16);
    const stub = stubText(hash);
    await Deno.writeFile(file, new TextEncoder().encode(stub), { mode: 0o755 });
    const out = await Deno.open(file, { append: true });
    for (let at = 0; at < payload.length;) at += await out.write(payload.subarray(at));
    out.close();
    return true;
  } finally {
    await Deno.remove(dir, { recursive: true });
  }
}

/**
 * Unpacks into a directory named after the contents, made whole under another name and then renamed: two that start at
 * once, a full disk or a kill in between never leave half a program to be run.
 */
function stubText(hash: string): string {
  const make = (skip: number) =>
    `#!/bin/sh
# kubeedge ${version}: unpacks itself once (needs gzip and tar) and runs from there. KUBEEDGE_UNPACK names another place.
home="\${KUBEEDGE_UNPACK:-}" part=""
fail() { rm -rf "$part"; echo "kubeedge: cannot unpack into $home: $1" >&2; exit 1; }
if [ -z "$home" ]; then
  if [ "$(id -u)" = 0 ]; then home=/var/cache/kubeedge
  elif [ -n "\${XDG_CACHE_HOME:-\${HOME:-}}" ]; then home="\${XDG_CACHE_HOME:-$HOME/.cache}/kubeedge/program"
  else fail "HOME is not set; name a directory of yours with KUBEEDGE_UNPACK"; fi
fi
dir="$home/${hash}" part="$home/.${hash}.$$"
whole() { [ -x "$dir/deno" ] && [ -s "$dir/main.js" ] && [ -s "$dir/store_worker.js" ]; }
if ! whole; then
  mask=$(umask)
  umask 022
  trap 'rm -rf "$part"; exit 1' HUP INT TERM
  mkdir -p "$part" || fail "no such directory, and it cannot be made"
  tail -c +${skip} "$0" | gzip -dc | tar -xf - -C "$part" && [ -s "$part/store_worker.js" ] || fail "is the disk full?"
  sync -f "$part" 2>/dev/null || sync # a power cut must not leave the new name with empty files
  mv -T "$part" "$dir" 2>/dev/null || whole || { rm -rf "$dir" && mv -T "$part" "$dir"; } || fail "it cannot be renamed"
  rm -rf "$part"
  # Kept: this program and the one before it. What killed starts left half-made goes.
  ls -1dt "$home"/*/ | grep -E '/[0-9a-f]{16}/$' | tail -n +3 | while read -r old; do rm -rf "$old"; done
  for old in "$home"/.*.*; do
    case "\${old##*.}" in "" | *[!0-9]*) ;; *) kill -0 "\${old##*.}" 2>/dev/null || rm -rf "$old" ;; esac
  done
  trap - HUP INT TERM
  umask "$mask"
fi
self="$0"; case "$self" in /*) ;; */*) self="$PWD/$self" ;; *) self="$(command -v "$self")" ;; esac
export KUBEEDGE_BUILT="self-extracting" KUBEEDGE_EXECUTABLE="$self" DENO_NO_UPDATE_CHECK=1
exec "$dir/deno" run -A --no-config --no-lock --no-remote --no-npm --unstable-net --v8-flags=${v8Flags} "$dir/main.js" "$@"
exit
`;
  let skip = 0;
  // The stub names its own length, whose digits count too.
  while (make(skip).length + 1 !== skip) skip = make(skip).length + 1;
  return make(skip);
}

const wanted = (Deno.args.length > 0 ? Deno.args : Object.keys(targets)) as Target[];
await Deno.mkdir(dist, { recursive: true });
let bundled: string | undefined;
for (const target of wanted) {
  if (!(target in targets)) {
    throw new Error(`unknown target ${target}: expected ${Object.keys(targets).join(" or ")}`);
  }
  const file = `${dist}/kubeedge-linux-${target}`;
  const startedMs = performance.now();
  await Deno.remove(file).catch(() => {});
  let how = "deno compile";
  if (!await compile(target, file)) {
    how = "self-extracting";
    bundled ??= await bundle();
    if (!await selfExtracting(target, file, bundled)) {
      console.log(`${file}: left out, the Deno of this platform cannot be fetched`);
      continue;
    }
  }
  const bytes = await Deno.readFile(file);
  const sum = createHash("sha256").update(bytes).digest("hex");
  await Deno.writeTextFile(`${file}.sha256`, `${sum}  kubeedge-linux-${target}\n`);
  console.log(
    `${file}: ${how}, ${(bytes.length / 1e6).toFixed(1)} MB, ${
      ((performance.now() - startedMs) / 1000).toFixed(1)
    } s`,
  );
}
