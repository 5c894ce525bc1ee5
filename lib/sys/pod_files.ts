/** Pod directories and volumes on the real file system. Mounts by libc where FFI can load it (a program costs 3 ms). */
import { errorText } from "../core/errors.ts";
import { equal, utf8 } from "../core/bytes.ts";
import type { PathKind, PayloadFile, PodFiles } from "../edge/pod/ports.ts";
import { mounts } from "./machine.ts";

export const podFiles: PodFiles = {
  async makeDirectory(path, { mode, gid }) {
    await Deno.mkdir(path, { recursive: true, mode: 0o755 });
    await Deno.chmod(path, mode); // mkdir's mode is cut by the umask
    if (gid !== undefined) await Deno.chown(path, null, gid);
  },

  async write(path, data, mode) {
    await Deno.mkdir(path.slice(0, path.lastIndexOf("/")), { recursive: true, mode: 0o755 });
    await Deno.writeFile(path, typeof data === "string" ? utf8(data) : data, { mode });
    await Deno.chmod(path, mode);
  },

  payload,

  async readTail(path, bytesMax) {
    try {
      using file = await Deno.open(path, { read: true });
      const { size } = await file.stat();
      await file.seek(Math.max(0, size - bytesMax), Deno.SeekMode.Start);
      const bytes = new Uint8Array(Math.min(size, bytesMax));
      let filled = 0;
      for (let count; filled < bytes.length && (count = await file.read(bytes.subarray(filled))) !== null;) {
        filled += count;
      }
      return new TextDecoder().decode(bytes.subarray(0, filled));
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return undefined;
      throw error;
    }
  },

  async kind(path): Promise<PathKind> {
    try {
      const info = await Deno.stat(path);
      if (info.isDirectory) return "directory";
      if (info.isFile) return "file";
      if (info.isSocket) return "socket";
      if (info.isCharDevice) return "char";
      return info.isBlockDevice ? "block" : "file";
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return "none";
      throw error;
    }
  },

  realPath: (path) => Deno.realPath(path),

  mountTmpfs(path, bytes) {
    if (mounts().some((mount) => mount.path === path)) return Promise.resolve();
    return mount("tmpfs", path, bytes === undefined ? "" : `size=${bytes}`);
  },

  async removeTree(path) {
    const below = mounts().filter((mount) => mount.path === path || mount.path.startsWith(path + "/"));
    for (const { path: mounted } of below.reverse()) await unmount(mounted);
    try {
      await Deno.remove(path, { recursive: true });
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw error;
    }
  },
};

/**
 * The kubelet's AtomicWriter (pkg/volume/util/atomic_writer.go): the files lie in a directory `..TIME`, the symlink
 * `..data` points to it and is swapped at once, and each visible name is a symlink into `..data`.
 */
async function payload(directory: string, files: PayloadFile[], gid: number | undefined): Promise<void> {
  const data = `${directory}/..data`;
  const before = await Deno.readLink(data).catch(() => undefined);
  if (before !== undefined && await holds(`${directory}/${before}`, files)) return;
  const next = `..${new Date().toISOString().replaceAll(/[-:TZ.]/g, "_")}${crypto.randomUUID().slice(0, 8)}`;
  const made = new Set<string>();
  const make = async (path: string) => {
    if (made.has(path)) return;
    made.add(path);
    await Deno.mkdir(path, { recursive: true });
    await Deno.chmod(path, gid === undefined ? 0o755 : 0o2755);
    if (gid !== undefined) await Deno.chown(path, null, gid);
  };
  await make(`${directory}/${next}`);
  for (const file of files) {
    const path = `${directory}/${next}/${file.path}`;
    const parts = file.path.split("/").slice(0, -1);
    for (let depth = 1; depth <= parts.length; depth++) {
      await make(`${directory}/${next}/${parts.slice(0, depth).join("/")}`);
    }
    // With an fsGroup its members may read (pkg/volume: SetVolumeOwnership).
    const mode = gid === undefined ? file.mode : file.mode | 0o040 | ((file.mode & 0o100) >> 3);
    await Deno.writeFile(path, file.data, { mode });
    await Deno.chmod(path, mode);
    if (gid !== undefined || file.uid !== undefined) await Deno.chown(path, file.uid ?? null, gid ?? null);
  }
  await Deno.remove(`${directory}/..data_tmp`).catch(() => {});
  await Deno.symlink(next, `${directory}/..data_tmp`);
  await Deno.rename(`${directory}/..data_tmp`, data);
  const visible = new Set(files.map((file) => file.path.split("/")[0] ?? ""));
  for (const name of visible) {
    await Deno.symlink(`..data/${name}`, `${directory}/${name}`).catch((error: unknown) => {
      if (!(error instanceof Deno.errors.AlreadyExists)) throw error;
    });
  }
  for await (const { name } of Deno.readDir(directory)) {
    if (name === "..data" || name === next || visible.has(name)) continue;
    await Deno.remove(`${directory}/${name}`, { recursive: true });
  }
}

async function holds(directory: string, files: PayloadFile[]): Promise<boolean> {
  const names: string[] = [];
  const walk = async (below: string) => {
    for await (const entry of Deno.readDir(`${directory}/${below}`)) {
      const path = below === "" ? entry.name : `${below}/${entry.name}`;
      if (entry.isDirectory) await walk(path);
      else names.push(path);
    }
  };
  try {
    await walk("");
    if (names.length !== files.length) return false;
    for (const file of files) {
      if (!names.includes(file.path) || !equal(await Deno.readFile(`${directory}/${file.path}`), file.data)) {
        return false;
      }
    }
    return true;
  } catch {
    return false;
  }
}

// ---- mounts

type Libc = { mount(type: string, path: string, options: string): number; unmount(path: string): number };
let libc: Libc | null | undefined;

function loadLibc(): Libc | null {
  if (libc !== undefined) return libc;
  try {
    const library = Deno.dlopen("libc.so.6", {
      mount: { parameters: ["buffer", "buffer", "buffer", "u64", "buffer"], result: "i32" },
      umount2: { parameters: ["buffer", "i32"], result: "i32" },
    });
    const c = (text: string) => utf8(text + "\0");
    const lazy = 2; // MNT_DETACH
    libc = {
      mount: (type, path, options) => library.symbols.mount(c(type), c(path), c(type), 0n, c(options)),
      unmount: (path) => library.symbols.umount2(c(path), lazy),
    };
  } catch {
    libc = null; // musl, or FFI is not allowed: the programs do it
  }
  return libc;
}

async function mount(type: string, path: string, options: string): Promise<void> {
  if (loadLibc()?.mount(type, path, options) === 0) return;
  await run("mount", ["-t", type, ...(options ? ["-o", options] : []), type, path]);
}
async function unmount(path: string): Promise<void> {
  if (loadLibc()?.unmount(path) === 0) return;
  await run("umount", ["-l", path]);
}
async function run(program: string, args: string[]): Promise<void> {
  const { success, stderr } = await new Deno.Command(program, {
    args,
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).output()
    .catch((error: unknown) => {
      throw new Error(`cannot run ${program}: ${errorText(error)}`);
    });
  if (!success) throw new Error(`${program} ${args.at(-1)}: ${new TextDecoder().decode(stderr).trim()}`);
}
