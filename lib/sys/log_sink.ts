/** Log records to standard error, one line each. */
import { jsonLine, type LogSink, textLine } from "../core/log.ts";

export function logSink(format: "text" | "json"): LogSink {
  const encoder = new TextEncoder();
  const line = format === "json" ? jsonLine : textLine;
  return (record) => {
    try {
      const bytes = encoder.encode(line(record) + "\n");
      for (let at = 0; at < bytes.length;) at += Deno.stderr.writeSync(bytes.subarray(at));
    } catch { /* nobody reads, or the disk is full: the work goes on */ }
  };
}
