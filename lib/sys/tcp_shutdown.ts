/**
 * Ends TCP connections of this process by their addresses. For one purpose: a Deno.TlsConn that is closed before its
 * handshake has ended stays open until its peer speaks or goes, so that strangers who connect and say nothing would
 * keep a file each for as long as they like. Linux: /proc names the sockets, shutdown(2) ends them.
 */
export interface TcpConnection {
  localAddr: Deno.Addr;
  remoteAddr: Deno.Addr;
}

const shutBoth = 2; // SHUT_RDWR
let libc: Deno.DynamicLibrary<{ shutdown: { parameters: ["i32", "i32"]; result: "i32" } }> | undefined;

/** How many were found and ended; those that are gone already are none. */
export function shutdownConnections(connections: Iterable<TcpConnection>): number {
  const wanted = new Set<string>();
  for (const { localAddr, remoteAddr } of connections) {
    if (localAddr.transport === "tcp" && remoteAddr.transport === "tcp") {
      wanted.add(endsOf(localAddr, remoteAddr));
    }
  }
  if (wanted.size === 0) return 0;
  const inodes = new Set<string>();
  for (const table of ["/proc/self/net/tcp", "/proc/self/net/tcp6"]) {
    for (const line of readLines(table)) {
      //   sl  local_address rem_address   st tx_queue:rx_queue tr:tm->when retrnsmt   uid  timeout inode …
      const [, local = "", remote = "", , , , , , , inode = ""] = line.trim().split(/\s+/);
      if (wanted.has(`${kernelEnd(local)} ${kernelEnd(remote)}`)) inodes.add(`socket:[${inode}]`);
    }
  }
  if (inodes.size === 0) return 0;
  libc ??= Deno.dlopen("libc.so.6", { shutdown: { parameters: ["i32", "i32"], result: "i32" } });
  let ended = 0;
  for (const { name } of Deno.readDirSync("/proc/self/fd")) {
    if (inodes.has(linkOf(`/proc/self/fd/${name}`)) && libc.symbols.shutdown(Number(name), shutBoth) === 0) {
      ended++;
    }
  }
  return ended;
}

function endsOf(local: Deno.NetAddr, remote: Deno.NetAddr): string {
  return `${hexOf(local.hostname)}:${local.port} ${hexOf(remote.hostname)}:${remote.port}`;
}

/** `0100007F:1F90`: 32-bit words in the machine's (little-endian) order, then the port. */
function kernelEnd(end: string): string {
  const [address = "", port = ""] = end.split(":");
  const words = address.match(/.{8}/g) ?? [];
  const bytes = words.map((word) => (word.match(/../g) ?? []).reverse().join("")).join("").toLowerCase();
  return `${unmapped(bytes)}:${Number.parseInt(port, 16)}`;
}

/** An IP address as hex digits in network order. */
function hexOf(address: string): string {
  if (!address.includes(":")) {
    return address.split(".").map((part) => Number(part).toString(16).padStart(2, "0")).join("");
  }
  const plain = address.replace(/%.*$/, "").replace(/(\d+)\.(\d+)\.(\d+)\.(\d+)$/, (quad) => {
    const digits = hexOf(quad);
    return `${digits.slice(0, 4)}:${digits.slice(4)}`;
  });
  const [head = "", tail] = plain.split("::");
  const groups = (text: string) =>
    text === "" ? [] : text.split(":").map((group) => group.padStart(4, "0").toLowerCase());
  const [before, after] = [groups(head), groups(tail ?? "")];
  return unmapped([...before, ...Array(8 - before.length - after.length).fill("0000"), ...after].join(""));
}

/** ::ffff:a.b.c.d is a.b.c.d. */
function unmapped(hex: string): string {
  return hex.length === 32 && hex.startsWith("00000000000000000000ffff") ? hex.slice(24) : hex;
}

function readLines(path: string): string[] {
  try {
    return Deno.readTextFileSync(path).split("\n").slice(1);
  } catch {
    return []; // a kernel without IPv6
  }
}
function linkOf(path: string): string {
  try {
    return Deno.readLinkSync(path);
  } catch {
    return ""; // closed meanwhile
  }
}
