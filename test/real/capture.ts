/** Bytes on the wire, as tcpdump sees them: whole Ethernet frames. */
import { type Program, sleep, start, until } from "./processes.ts";

export interface Packet {
  /** ms since 1970. */
  timeMs: number;
  /** With all headers, as it was on the wire. */
  bytes: number;
  /** The first of a connection. */
  syn: boolean;
}

/** pcap: 24 bytes of header; each packet {seconds, microseconds, bytes kept, bytes on the wire} and what was kept. */
const fileHeaderBytes = 24, packetHeaderBytes = 16, ethernetBytes = 14;

export class Capture {
  private constructor(readonly file: string, readonly program: Program) {}

  static async start(file: string, device: string, filter: string): Promise<Capture> {
    const command = ["tcpdump", "-i", device, "-Z", "root", "-U", "--immediate-mode", "-s", "96", "-w", file];
    const program = start([...command, ...filter.split(" ")], { log: `${file}.log` });
    await until(
      "tcpdump listens",
      10_000,
      () => Deno.readTextFileSync(program.log).includes("listening on"),
    );
    return new Capture(file, program);
  }

  packets(): Packet[] {
    const file = Deno.readFileSync(this.file), view = new DataView(file.buffer);
    const packets: Packet[] = [];
    for (let at = fileHeaderBytes; at + packetHeaderBytes <= file.length;) {
      const kept = view.getUint32(at + 8, true), bytes = view.getUint32(at + 12, true);
      const timeMs = view.getUint32(at, true) * 1000 + view.getUint32(at + 4, true) / 1000;
      const ip = at + packetHeaderBytes + ethernetBytes;
      if (at + packetHeaderBytes + kept > file.length) break;
      const tcp = ip + ((file[ip] ?? 0) & 15) * 4;
      packets.push({ timeMs, bytes, syn: ((file[tcp + 13] ?? 0) & 0x12) === 0x02 });
      at += packetHeaderBytes + kept;
    }
    return packets;
  }

  /** What came until nothing came for `quietMs`: from the first SYN where one is asked for. */
  async untilQuiet(quietMs: number, from: "first SYN" | "first packet"): Promise<Packet[]> {
    const begun = () => {
      const packets = this.packets();
      const first = from === "first SYN" ? packets.findIndex(({ syn }) => syn) : 0;
      return first < 0 ? [] : packets.slice(first);
    };
    await until("something was sent", 60_000, () => begun().length > 0);
    for (;;) {
      const packets = begun();
      const end = packets.findIndex(({ timeMs }, index) =>
        (packets[index + 1]?.timeMs ?? Date.now()) - timeMs >= quietMs
      );
      if (end >= 0) return packets.slice(0, end + 1);
      await sleep(200);
    }
  }
  async stop(): Promise<void> {
    await this.program.stop("SIGTERM");
  }
}

export function bytesOf(packets: Packet[]): number {
  return packets.reduce((sum, { bytes }) => sum + bytes, 0);
}
