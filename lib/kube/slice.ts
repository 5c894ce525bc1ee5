/**
 * Reads and cuts JSON text as bytes: members are found by scanning, nothing is parsed and serialised again, so an
 * object travels from the API server to the edge as the API server wrote it.
 *
 * Offsets are byte offsets; spans are [start, end). Every function takes whatever it is given: malformed text gives
 * `undefined`, never an exception.
 */
import { concat, text, utf8 } from "../core/bytes.ts";

export interface Span {
  start: number;
  end: number;
}

/** Objects deeper than this are no Kubernetes objects (the API server itself stops at 10,000). */
const depthMax = 512;

const quote = 0x22, backslash = 0x5c, comma = 0x2c, colon = 0x3a;
const openBrace = 0x7b, closeBrace = 0x7d, openBracket = 0x5b, closeBracket = 0x5d;

function skipSpace(json: Uint8Array, at: number): number {
  for (;;) {
    const byte = json[at];
    if (byte !== 0x20 && byte !== 0x0a && byte !== 0x0d && byte !== 0x09) return at;
    at++;
  }
}

/** `at` is on the opening quote; the end is behind the closing one. */
function skipString(json: Uint8Array, at: number): number | undefined {
  for (at++; at < json.length; at++) {
    const byte = json[at];
    if (byte === backslash) at++;
    else if (byte === quote) return at + 1;
  }
  return undefined;
}

/** The end of the value that starts at `at`. */
function skipValue(json: Uint8Array, at: number): number | undefined {
  const first = json[at];
  if (first === quote) return skipString(json, at);
  if (first === openBrace || first === openBracket) {
    let depth = 0;
    for (; at < json.length; at++) {
      const byte = json[at];
      if (byte === quote) {
        const end = skipString(json, at);
        if (end === undefined) return undefined;
        at = end - 1;
      } else if (byte === openBrace || byte === openBracket) {
        if (++depth > depthMax) return undefined;
      } else if (byte === closeBrace || byte === closeBracket) {
        if (--depth === 0) return at + 1;
      }
    }
    return undefined;
  }
  const start = at;
  for (; at < json.length; at++) {
    const byte = json[at];
    if (
      byte === comma || byte === closeBrace || byte === closeBracket || byte === 0x20 || byte === 0x0a ||
      byte === 0x0d || byte === 0x09
    ) break;
  }
  return at > start ? at : undefined;
}

/** One member of an object: `member` runs from the name's quote to the end of the value. */
export interface Member {
  name: string;
  member: Span;
  value: Span;
}

/** The members of the object in `span`, in order; undefined when it is not a well-formed object. */
export function membersOf(
  json: Uint8Array,
  span: Span = { start: 0, end: json.length },
): Member[] | undefined {
  let at = skipSpace(json, span.start);
  if (json[at] !== openBrace) return undefined;
  at = skipSpace(json, at + 1);
  const members: Member[] = [];
  if (json[at] === closeBrace) return members;
  for (;;) {
    if (json[at] !== quote) return undefined;
    const nameEnd = skipString(json, at);
    if (nameEnd === undefined) return undefined;
    const start = at;
    at = skipSpace(json, nameEnd);
    if (json[at] !== colon) return undefined;
    const valueStart = skipSpace(json, at + 1);
    const valueEnd = skipValue(json, valueStart);
    if (valueEnd === undefined || valueEnd > span.end) return undefined;
    const name = nameOf(json.subarray(start, nameEnd));
    if (name === undefined) return undefined;
    members.push({ name, member: { start, end: valueEnd }, value: { start: valueStart, end: valueEnd } });
    at = skipSpace(json, valueEnd);
    if (json[at] === closeBrace) return members;
    if (json[at] !== comma) return undefined;
    at = skipSpace(json, at + 1);
  }
}

function nameOf(quoted: Uint8Array): string | undefined {
  const raw = text(quoted.subarray(1, -1));
  if (!raw.includes("\\")) return raw;
  try {
    return JSON.parse(`"${raw}"`) as string;
  } catch {
    return undefined;
  }
}

/** Where the value at `path` stands, or undefined. */
export function spanOf(json: Uint8Array, path: readonly string[]): Span | undefined {
  let span: Span = { start: skipSpace(json, 0), end: json.length };
  for (const name of path) {
    const member = membersOf(json, span)?.find((candidate) => candidate.name === name);
    if (!member) return undefined;
    span = member.value;
  }
  return span;
}

/** The string at `path`, or undefined when it is missing or no string. */
export function readString(json: Uint8Array, path: readonly string[]): string | undefined {
  const span = spanOf(json, path);
  if (!span || json[span.start] !== quote) return undefined;
  return nameOf(json.subarray(span.start, span.end));
}

/**
 * The text without the members at `paths` (those that exist). Returns the input itself when there is nothing to cut;
 * undefined when the text is malformed.
 */
export function cutMembers(json: Uint8Array, paths: readonly (readonly string[])[]): Uint8Array | undefined {
  const cuts: Span[] = [];
  for (const path of paths) {
    const parent = path.length > 1 ? spanOf(json, path.slice(0, -1)) : { start: 0, end: json.length };
    if (!parent) continue;
    const members = membersOf(json, parent);
    if (!members) {
      if (path.length > 1 && membersOf(json)) continue;
      return undefined;
    }
    const index = members.findIndex((member) => member.name === path.at(-1));
    const found = members[index];
    if (!found) continue;
    const next = members[index + 1], previous = members[index - 1];
    // One comma goes with the member: the one behind it, or for the last member the one before.
    if (next) cuts.push({ start: found.member.start, end: next.member.start });
    else if (previous) cuts.push({ start: previous.member.end, end: found.member.end });
    else cuts.push(found.member);
  }
  if (cuts.length === 0) return membersOf(json) ? json : undefined;
  cuts.sort((a, b) => a.start - b.start || b.end - a.end);
  const parts: Uint8Array[] = [];
  let at = 0;
  for (const cut of cuts) {
    if (cut.start > at) parts.push(json.subarray(at, cut.start));
    at = Math.max(at, cut.end);
  }
  parts.push(json.subarray(at));
  return tidyCommas(concat(parts));
}

/** Cutting two neighbours at the end of an object can leave one comma before its brace: `{"a":1,}`. */
function tidyCommas(json: Uint8Array): Uint8Array {
  let out: Uint8Array[] | undefined;
  let from = 0;
  for (let at = 0; at < json.length; at++) {
    const byte = json[at];
    if (byte === quote) {
      const end = skipString(json, at);
      if (end === undefined) break;
      at = end - 1;
    } else if (byte === comma) {
      const next = json[skipSpace(json, at + 1)];
      if (next === closeBrace) {
        (out ??= []).push(json.subarray(from, at));
        from = at + 1;
      }
    }
  }
  if (!out) return json;
  out.push(json.subarray(from));
  return concat(out);
}

/** The elements of the array in `span`. */
export function elementsOf(json: Uint8Array, span: Span): Span[] | undefined {
  let at = skipSpace(json, span.start);
  if (json[at] !== openBracket) return undefined;
  at = skipSpace(json, at + 1);
  const elements: Span[] = [];
  if (json[at] === closeBracket) return elements;
  for (;;) {
    const end = skipValue(json, at);
    if (end === undefined || end > span.end) return undefined;
    elements.push({ start: at, end });
    at = skipSpace(json, end);
    if (json[at] === closeBracket) return elements;
    if (json[at] !== comma) return undefined;
    at = skipSpace(json, at + 1);
  }
}

/** Gives an item of a list the apiVersion and kind that lists leave out. */
export function withTypeMeta(item: Uint8Array, apiVersion: string, kind: string): Uint8Array {
  const members = membersOf(item);
  if (!members || members.some((member) => member.name === "kind")) return item;
  const head = `{"kind":${JSON.stringify(kind)},"apiVersion":${JSON.stringify(apiVersion)}${
    members.length > 0 ? "," : ""
  }`;
  return concat([utf8(head), item.subarray(skipSpace(item, 0) + 1)]);
}
