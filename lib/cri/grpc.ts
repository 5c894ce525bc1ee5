/**
 * gRPC calls over an injected HTTP/2 transport, as much of it as CRI needs: unary calls and server streams of
 * protobuf messages. A message on the wire is u8 compressed (0), u32 length, bytes.
 *
 * The transport is Deno's fetch, which hides trailers. A refusal of grpc-go comes as headers ("trailers only"), so it is
 * seen; a call that ends without a status header succeeded when its body holds whole messages.
 */
import {
  create,
  type DescMethod,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { abortable } from "../core/abortable.ts";
import { concat } from "../core/bytes.ts";

/** The largest answer: a list of all containers with their labels, or 16 MB of exec output. */
const messageBytesMax = 64 * 1024 * 1024;

/** Posts one body to a method path; throws when the socket does not answer. */
export type GrpcSend = (
  path: string,
  body: Uint8Array<ArrayBuffer>,
  options: { timeoutMs?: number | undefined; signal?: AbortSignal | undefined },
) => Promise<{ status: number; headers: Headers; body: ReadableStream<Uint8Array> | null }>;

/** Codes of google.golang.org/grpc/codes that callers tell apart. */
const codeNames = [
  "OK",
  "Canceled",
  "Unknown",
  "InvalidArgument",
  "DeadlineExceeded",
  "NotFound",
  "AlreadyExists",
  "PermissionDenied",
  "ResourceExhausted",
  "FailedPrecondition",
  "Aborted",
  "OutOfRange",
  "Unimplemented",
  "Internal",
  "Unavailable",
  "DataLoss",
] as const;
export type GrpcCode = typeof codeNames[number];

/** The runtime refused a call, or cannot be reached (code Unavailable). */
export class CriError extends Error {
  override name = "CriError";
  constructor(message: string, readonly code: GrpcCode, options?: ErrorOptions) {
    super(message, options);
  }
}

export interface CallOptions {
  timeoutMs?: number;
  signal?: AbortSignal | undefined;
}

export async function unary<M extends DescMethod>(
  send: GrpcSend,
  method: M,
  input: MessageInitShape<M["input"]>,
  options: CallOptions = {},
): Promise<MessageShape<M["output"]>> {
  for await (const message of stream(send, method, input, options)) return message;
  throw new CriError(`${method.name}: the container runtime ended the call without an answer`, "Unavailable");
}

export async function* stream<M extends DescMethod>(
  send: GrpcSend,
  method: M,
  input: MessageInitShape<M["input"]>,
  options: CallOptions = {},
): AsyncGenerator<MessageShape<M["output"]>> {
  const payload = toBinary(method.input, create(method.input, input));
  const body = new Uint8Array(5 + payload.length);
  new DataView(body.buffer).setUint32(1, payload.length);
  body.set(payload, 5);
  const path = `/${method.parent.typeName}/${method.name}`;
  let response: Awaited<ReturnType<GrpcSend>>;
  try {
    response = await send(path, body, options);
  } catch (error) {
    if (options.signal?.aborted) throw options.signal.reason;
    const late = error instanceof Error && error.name === "TimeoutError";
    const what = late
      ? `no answer within ${options.timeoutMs} ms`
      : "the container runtime cannot be reached";
    throw new CriError(`${method.name}: ${what}`, late ? "DeadlineExceeded" : "Unavailable", {
      cause: error,
    });
  }
  checkStatus(method.name, response.status, response.headers);
  if (!response.body) return;
  try {
    for await (const message of messages(abortable(response.body, options.signal))) {
      yield fromBinary(method.output, message) as MessageShape<M["output"]>;
    }
  } catch (error) {
    if (options.signal?.aborted) throw options.signal.reason;
    if (error instanceof CriError) throw error;
    const late = error instanceof Error && error.name === "TimeoutError";
    throw new CriError(`${method.name}: the answer broke off`, late ? "DeadlineExceeded" : "Unavailable", {
      cause: error,
    });
  }
}

function checkStatus(name: string, status: number, headers: Headers): void {
  const code = headers.get("grpc-status");
  if (code !== null && code !== "0") {
    const message = decoded(headers.get("grpc-message") ?? "");
    throw new CriError(message || `${name} failed`, codeNames[Number(code)] ?? "Unknown");
  }
  if (status !== 200) throw new CriError(`${name}: HTTP ${status} from the container runtime`, "Unavailable");
}

/** Pieces are gathered until a message is whole: joined with every piece, a long answer would cost the square of its length. */
async function* messages(body: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let parts: Uint8Array[] = [];
  let held = 0, needed = 5;
  for await (const chunk of body) {
    parts.push(chunk);
    held += chunk.length;
    if (held < needed) continue;
    let rest: Uint8Array = parts.length === 1 ? chunk : concat(parts);
    for (needed = 5; rest.length >= needed; needed = 5) {
      const length = new DataView(rest.buffer, rest.byteOffset).getUint32(1);
      if (rest[0] !== 0 || length > messageBytesMax) {
        throw new CriError("unexpected message from the container runtime", "Internal");
      }
      needed = 5 + length;
      if (rest.length < needed) break;
      yield rest.subarray(5, needed);
      rest = rest.subarray(needed);
    }
    parts = [rest];
    held = rest.length;
  }
  if (held > 0) throw new CriError("the answer ended inside a message", "Unavailable");
}

/** grpc-message is percent-encoded UTF-8; what is not is shown as it came. */
function decoded(message: string): string {
  try {
    return decodeURIComponent(message.replaceAll(/%(?![0-9A-Fa-f]{2})/g, "%25"));
  } catch {
    return message;
  }
}
