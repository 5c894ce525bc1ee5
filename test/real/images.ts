/** OCI images made here, without a registry: a layer of static programs each. */
import { createHash } from "node:crypto";

interface Entry {
  path: string;
  mode: number;
  data?: Uint8Array;
  link?: string;
}

/** A tar archive (ustar); directories are entries without data or link. */
function tar(entries: Entry[]): Uint8Array {
  const blocks: Uint8Array[] = [];
  const encoder = new TextEncoder();
  for (const { path, mode, data, link } of entries) {
    const head = new Uint8Array(512);
    const put = (text: string, at: number) => head.set(encoder.encode(text), at);
    const octal = (value: number, width: number) => value.toString(8).padStart(width - 1, "0");
    put(path, 0);
    put(octal(mode, 8), 100);
    put(octal(0, 8), 108);
    put(octal(0, 8), 116);
    put(octal(data?.length ?? 0, 12), 124);
    put(octal(0, 12), 136);
    put(" ".repeat(8), 148);
    put(link !== undefined ? "2" : data ? "0" : "5", 156);
    if (link !== undefined) put(link, 157);
    put("ustar\x0000", 257);
    put(octal(head.reduce((sum, byte) => sum + byte, 0), 7) + "\0 ", 148);
    blocks.push(head);
    if (data) {
      const padded = new Uint8Array(Math.ceil(data.length / 512) * 512);
      padded.set(data);
      blocks.push(padded);
    }
  }
  blocks.push(new Uint8Array(1024));
  const whole = new Uint8Array(blocks.reduce((sum, block) => sum + block.length, 0));
  let at = 0;
  for (const block of blocks) {
    whole.set(block, at);
    at += block.length;
  }
  return whole;
}

const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");
const json = (value: unknown) => new TextEncoder().encode(JSON.stringify(value));

/** An OCI-layout archive, as `ctr images import` takes it. */
function image(name: string, entries: Entry[], config: unknown): Uint8Array {
  const layer = tar([
    ...["tmp/", "etc/", "dev/", "proc/", "sys/"].map((path) => ({
      path,
      mode: path === "tmp/" ? 0o1777 : 0o755,
    })),
    ...entries,
  ]);
  const architecture = Deno.build.arch === "aarch64" ? "arm64" : "amd64";
  const settings = json({
    architecture,
    os: "linux",
    config,
    rootfs: { type: "layers", diff_ids: [`sha256:${sha256(layer)}`] },
  });
  const blob = (type: string, bytes: Uint8Array) => ({
    mediaType: `application/vnd.oci.image.${type}`,
    digest: `sha256:${sha256(bytes)}`,
    size: bytes.length,
  });
  const manifest = json({
    schemaVersion: 2,
    mediaType: "application/vnd.oci.image.manifest.v1+json",
    config: blob("config.v1+json", settings),
    layers: [blob("layer.v1.tar", layer)],
  });
  const index = json({
    schemaVersion: 2,
    manifests: [{
      ...blob("manifest.v1+json", manifest),
      annotations: { "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name },
    }],
  });
  return tar([
    { path: "oci-layout", mode: 0o644, data: json({ imageLayoutVersion: "1.0.0" }) },
    { path: "index.json", mode: 0o644, data: index },
    ...[layer, settings, manifest].map((data) => ({
      path: `blobs/sha256/${sha256(data)}`,
      mode: 0o644,
      data,
    })),
  ]);
}

export const pauseImage = "registry.k8s.io/pause:3.10";
export const busyboxImage = "docker.io/library/busybox:1";
/** Serves a page with the pod's name on port 8080. */
export const webImage = "docker.io/kubeedge/web:1";

/** Archives of the images that every node has, by name. */
export async function nodeImages(): Promise<Map<string, Uint8Array>> {
  return new Map([
    [pauseImage, await pauseArchive()],
    [busyboxImage, await busyboxArchive(busyboxImage, { Cmd: ["sh"] })],
    [
      webImage,
      await busyboxArchive(webImage, { Cmd: ["sh", "-c", webScript], ExposedPorts: { "8080/tcp": {} } }),
    ],
  ]);
}

const webScript =
  `echo "$HOSTNAME serves port 8080"; mkdir -p /www; echo "hello from $HOSTNAME" > /www/index.html; ` +
  "exec httpd -f -v -p 8080 -h /www";

async function pauseArchive(): Promise<Uint8Array> {
  const data = await Deno.readFile("/usr/bin/catatonit");
  return image(pauseImage, [{ path: "pause", mode: 0o755, data }], { Entrypoint: ["/pause", "-P"] });
}

/** busybox with all its applets. */
export async function busyboxArchive(name: string, config: Record<string, unknown>): Promise<Uint8Array> {
  const data = await Deno.readFile("/bin/busybox");
  const { stdout } = await new Deno.Command("/bin/busybox", { args: ["--list"] }).output();
  const applets = new TextDecoder().decode(stdout).trim().split("\n").filter((applet) =>
    applet !== "busybox"
  );
  const passwd = new TextEncoder().encode("root:x:0:0:root:/root:/bin/sh\n");
  const entries = [
    { path: "bin/", mode: 0o755 },
    { path: "bin/busybox", mode: 0o755, data },
    { path: "etc/passwd", mode: 0o644, data: passwd },
    ...applets.map((applet) => ({ path: `bin/${applet}`, mode: 0o777, link: "busybox" })),
  ];
  return image(name, entries, { Env: ["PATH=/bin"], ...config });
}
