/**
 * Container logs as the runtime writes them (CRI logging format), and what `kubectl logs` makes of them. Pure.
 *
 *     2016-10-06T00:17:09.669794202Z stdout F a whole line
 *     2016-10-06T00:17:09.669794203Z stderr P the first part of a long line
 *     +---------- RFC 3339 ---------+ stream tag +-------- content
 */
import { concat } from "../../core/bytes.ts";

/** Longest record, bytes: runtimes cut at 16 KiB; without their limit a line may fill a whole log file. */
export const recordBytesMax = 16 * 1024 * 1024;

export interface LogSelection {
  /** Records before it are left out; ms since 1970. */
  sinceMs?: number | undefined;
  /** Bytes put out at most. */
  limitBytes?: number | undefined;
  /** Records taken at most, whether or not they are put out. */
  records?: number | undefined;
  /** Each line begins with its time. */
  timestamps: boolean;
  stream: "all" | "stdout" | "stderr";
}

export interface LogRecord {
  /** RFC 3339 as written, with its own zone and precision. */
  time: string;
  stream: "stdout" | "stderr";
  /** Ends with a newline unless it is a part of a longer line. */
  content: Uint8Array;
}

const newline = 0x0a, space = 0x20, letterP = 0x50;
const decoder = new TextDecoder();
const encoder = new TextEncoder();

/** Undefined when the line is not a record. `line` may lack its newline; the content is a view of it. */
export function parseRecord(line: Uint8Array): LogRecord | undefined {
  const first = line.indexOf(space);
  const second = first < 0 ? -1 : line.indexOf(space, first + 1);
  const third = second < 0 ? -1 : line.indexOf(space, second + 1);
  if (third < 0) return undefined;
  const time = decoder.decode(line.subarray(0, first));
  const stream = decoder.decode(line.subarray(first + 1, second));
  if ((stream !== "stdout" && stream !== "stderr") || !timePattern.test(time)) return undefined;
  // Tags are separated by ":"; only the first is defined.
  const next = line[second + 2];
  const partial = line[second + 1] === letterP && (next === space || next === 0x3a);
  const end = partial && line[line.length - 1] === newline ? line.length - 1 : line.length;
  return { time, stream, content: line.subarray(third + 1, Math.max(end, third + 1)) };
}

const timePattern = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/;

/** Always nine digits of seconds, so that columns line up (`RFC3339NanoFixed` of cri-client). */
export function fixedTime(time: string): string {
  const match = /^(.{19})(?:\.(\d+))?(.*)$/.exec(time);
  if (!match) return time;
  return `${match[1]}.${(match[2] ?? "").slice(0, 9).padEnd(9, "0")}${match[3]}`;
}

/** Turns the bytes of log files into the bytes of the answer, as they come. */
export class LogFormatter {
  readonly #selection: LogSelection;
  #rest: Uint8Array[] = [];
  #restBytes = 0;
  #bytesLeft: number;
  #recordsLeft: number;
  #lineBegins = true;

  constructor(selection: LogSelection) {
    this.#selection = selection;
    this.#bytesLeft = selection.limitBytes ?? Infinity;
    this.#recordsLeft = selection.records ?? Infinity;
  }

  /** The limit of bytes or records is reached. */
  get done(): boolean {
    return this.#bytesLeft <= 0 || this.#recordsLeft <= 0;
  }

  /** Takes the next bytes of the file; the answer's bytes are copies. Throws when a record is beyond all limits. */
  push(bytes: Uint8Array): Uint8Array {
    const out: Uint8Array[] = [];
    let start = 0;
    while (!this.done) {
      const end = bytes.indexOf(newline, start);
      if (end < 0) break;
      const piece = bytes.subarray(start, end + 1);
      start = end + 1;
      if (this.#rest.length === 0) this.#format(piece, out);
      else {
        const line = concat([...this.#rest, piece]);
        this.#rest = [];
        this.#restBytes = 0;
        this.#format(line, out);
      }
    }
    if (start < bytes.length && !this.done) {
      this.#rest.push(bytes.slice(start));
      this.#restBytes += bytes.length - start;
      if (this.#restBytes > recordBytesMax) {
        throw new Error(`a log line is longer than ${recordBytesMax} bytes`);
      }
    }
    return concat(out);
  }

  /** The file ends: what stands in it without a newline is a record of its own. */
  finish(): Uint8Array {
    const out: Uint8Array[] = [];
    if (this.#rest.length > 0 && !this.done) this.#format(concat(this.#rest), out);
    this.#rest = [];
    this.#restBytes = 0;
    return concat(out);
  }

  #format(line: Uint8Array, out: Uint8Array[]): void {
    const record = parseRecord(line);
    if (!record) return;
    this.#recordsLeft--;
    const { sinceMs, stream, timestamps } = this.#selection;
    if (stream !== "all" && record.stream !== stream) return;
    if (sinceMs !== undefined && Date.parse(record.time) < sinceMs) return;
    if (timestamps && this.#lineBegins) this.#put(encoder.encode(`${fixedTime(record.time)} `), out);
    this.#put(record.content, out);
    const { content } = record;
    this.#lineBegins = content.length === 0 || content[content.length - 1] === newline;
  }

  #put(bytes: Uint8Array, out: Uint8Array[]): void {
    const taken = bytes.subarray(0, Math.min(bytes.length, this.#bytesLeft));
    this.#bytesLeft -= taken.length;
    out.push(taken);
  }
}
