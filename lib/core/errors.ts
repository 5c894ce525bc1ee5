/** Errors that somebody catches, and how any error becomes one line of text. */

/** Exit codes of the program, as `kubeedge --help` documents them. */
export const ExitCode = {
  ok: 0,
  /** The work was tried and failed. */
  failure: 1,
  /** Flags, environment or config file are wrong; nothing was touched. */
  usage: 2,
  /** The machine lacks something that `edge join` checks for. */
  precondition: 3,
  /** The other side refused: token, certificate, revoked node, version. */
  refused: 4,
} as const;
export type ExitCode = typeof ExitCode[keyof typeof ExitCode];

/** An error whose message is meant for the person at the terminal: action + value + state + remedy, no stack. */
export class UserError extends Error {
  override name = "UserError";
  constructor(message: string, readonly exitCode: ExitCode = ExitCode.failure, options?: ErrorOptions) {
    super(message, options);
  }
}

/** One line for logs and terminals: message and causes, never a stack. */
export function errorText(error: unknown): string {
  const parts: string[] = [];
  let current: unknown = error;
  for (let depth = 0; current !== undefined && current !== null && depth < 5; depth++) {
    const text = current instanceof Error ? current.message || current.name : String(current);
    if (text !== "" && !parts.some((part) => part.includes(text))) parts.push(text);
    current = current instanceof Error ? current.cause : undefined;
  }
  return parts.join(": ").replaceAll(/\s*\n\s*/g, " ");
}
