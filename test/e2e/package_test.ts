/** The built executable on its own: it starts, unpacks itself safely, and install.sh puts it in place and takes it away. */
import assert from "node:assert/strict";
import { version } from "../../lib/core/version.ts";

const root = new URL("../..", import.meta.url).pathname;
const machine = Deno.build.arch === "aarch64" ? "arm64" : "x64";
const file = Deno.env.get("KUBEEDGE_BIN") ?? `${root}dist/kubeedge-linux-${machine}`;
const built = await Deno.stat(file).then(() => true, () => false);
const selfExtracting = built && (await readHead(file)).startsWith("#!/bin/sh");
const isRoot = Deno.uid() === 0;

interface Ran {
  code: number;
  out: string;
  error: string;
}
async function run(command: string[], env: Record<string, string> = {}): Promise<Ran> {
  const [program = "", ...args] = command;
  const { code, stdout, stderr } = await new Deno.Command(program, {
    args,
    env,
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, out: text(stdout), error: text(stderr) };
}

/** A test in a directory of its own. */
function test(name: string, needs: boolean, body: (dir: string) => Promise<void>): void {
  Deno.test({
    name,
    ignore: !needs,
    fn: async () => {
      const dir = await Deno.makeTempDir({ prefix: "kubeedge-package-" });
      try {
        await body(dir);
      } finally {
        await Deno.remove(dir, { recursive: true });
      }
    },
  });
}
const starts = async (dir: string, program = file) => {
  const ran = await run([program, "--version"], { KUBEEDGE_UNPACK: dir });
  assert.equal(ran.code, 0, ran.error);
  assert.match(ran.out, new RegExp(`^kubeedge ${version.replaceAll(".", "\\.")} \\(`));
};
const unpacked = (dir: string) => [...Deno.readDirSync(dir)].map((entry) => entry.name);

test("the built program says its version and how it was built", built, async (dir) => {
  await starts(dir);
  const ran = await run([file, "--nonsense"], { KUBEEDGE_UNPACK: dir });
  assert.equal(ran.code, 2, "usage");
  assert.equal(ran.out, "");
});

test("several that start at once share one unpacking", selfExtracting, async (dir) => {
  await Promise.all(Array.from({ length: 4 }, () => starts(dir)));
  assert.equal(unpacked(dir).length, 1, `nothing half-made is left: ${unpacked(dir)}`);
});

test("what was unpacked only in part is made anew", selfExtracting, async (dir) => {
  await starts(dir);
  const place = `${dir}/${unpacked(dir)[0]}`;
  for (
    const damage of [
      () => Deno.remove(`${place}/main.js`),
      () => Deno.truncate(`${place}/store_worker.js`, 0),
      () => Deno.remove(`${place}/deno`),
    ]
  ) {
    await damage();
    await starts(dir);
    assert.equal(unpacked(dir).length, 1);
  }
});

test(
  "older programs and half-made ones are cleared away, what else is there is not",
  selfExtracting,
  async (dir) => {
    const old = ["0123456789abcdef", "fedcba9876543210", "00112233445566aa"];
    for (const [i, name] of [...old, "mine", ".0123456789abcdef.999999999"].entries()) {
      await Deno.mkdir(`${dir}/${name}`);
      await Deno.utime(`${dir}/${name}`, 1_700_000_000 + i, 1_700_000_000 + i);
    }
    await starts(dir);
    const [own] = unpacked(dir).filter((name) => name !== "mine" && !old.includes(name));
    assert.deepEqual(unpacked(dir).sort(), ["mine", "00112233445566aa", own].sort());
  },
);

test("a start that is killed while unpacking harms nobody", selfExtracting, async (dir) => {
  const child = new Deno.Command(file, {
    args: ["--version"],
    env: { KUBEEDGE_UNPACK: dir },
    stdout: "null",
    stderr: "null",
  }).spawn();
  await new Promise((resolve) => setTimeout(resolve, 150));
  try {
    child.kill("SIGKILL");
  } catch { /* it was faster */ }
  await child.status;
  await starts(dir);
});

test(
  "a full disk is said in one line, leaves nothing behind, and is no lasting fault",
  selfExtracting && isRoot,
  async (dir) => {
    const mounted = await run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", dir]);
    assert.equal(mounted.code, 0, mounted.error);
    try {
      const ran = await run([file, "--version"], { KUBEEDGE_UNPACK: dir });
      assert.equal(ran.code, 1);
      assert.match(
        ran.error.trimEnd().split("\n").at(-1) ?? "",
        /^kubeedge: cannot unpack into .*: is the disk full\?$/,
      );
      assert.deepEqual(unpacked(dir), []);
      await run(["mount", "-o", "remount,size=300m", dir]);
      await starts(dir);
    } finally {
      await run(["umount", dir]);
    }
  },
);

test("a place that cannot be written is said in one line", selfExtracting, async (dir) => {
  await Deno.writeTextFile(`${dir}/file`, "");
  const ran = await run([file, "--version"], { KUBEEDGE_UNPACK: `${dir}/file/below` });
  assert.equal(ran.code, 1);
  assert.match(ran.error, /kubeedge: cannot unpack into .*: no such directory, and it cannot be made\n$/);
});

test("install.sh installs what has the right sum, and nothing else", built, async (dir) => {
  const env = { KUBEEDGE_UNPACK: `${dir}/unpacked` };
  const from = `${dir}/from`, to = `${dir}/bin`, name = `kubeedge-linux-${machine}`;
  const install = (...args: string[]) => run(["sh", `${root}install.sh`, ...args], env);
  await Deno.mkdir(from);
  await Deno.copyFile(file, `${from}/${name}`);
  const [sum = ""] = (await run(["sha256sum", file])).out.split(" ");
  const missing = await install("--from", from, "--to", to);
  assert.equal(missing.code, 1);
  assert.match(missing.error, /cannot get .*\.sha256/);
  await Deno.writeTextFile(`${from}/${name}.sha256`, `${sum}  ${name}\n`);
  const done = await install("--from", from, "--to", to);
  assert.equal(done.code, 0, done.error);
  await starts(env.KUBEEDGE_UNPACK, `${to}/kubeedge`);
  const before = (await Deno.stat(`${to}/kubeedge`)).ino;

  const changed = await Deno.open(`${from}/${name}`, { append: true });
  await changed.write(new Uint8Array([1]));
  changed.close();
  const refused = await install("--from", from, "--to", to);
  assert.equal(refused.code, 1);
  assert.match(refused.error, /has the SHA-256 sum .*, expected .*: nothing was installed/);
  assert.equal((await install("--from", from, "--to", to, "--sha256", "xyz")).code, 1);
  assert.equal((await install("--from", "http://127.0.0.1:1", "--to", to)).code, 2, "no plain HTTP");
  assert.equal((await install("--frm")).code, 2);
  assert.equal((await Deno.stat(`${to}/kubeedge`)).ino, before, "the former program is untouched");
  assert.deepEqual(
    [...Deno.readDirSync(to)].map((entry) => entry.name),
    ["kubeedge"],
    "nothing is left beside it",
  );
  assert.match((await install("--help")).out, /^Usage: install\.sh /);
});

async function readHead(path: string): Promise<string> {
  using opened = await Deno.open(path);
  const head = new Uint8Array(16);
  await opened.read(head);
  return new TextDecoder().decode(head);
}
