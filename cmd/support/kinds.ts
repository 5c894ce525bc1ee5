/** The kinds of values that options take, each with the words that a wrong one is answered with. */
import { isIP } from "node:net";
import type { Taint } from "../../lib/kube/types.ts";
import type { Kind } from "./options.ts";

export const text: Kind<string> = {
  placeholder: "TEXT",
  expected: "some text",
  read: (value) => value === "" ? undefined : value,
};

/** Text with a placeholder of its own. */
export function word(placeholder: string, expected: string, pattern = /^\S+$/): Kind<string> {
  return { placeholder, expected, read: (value) => pattern.test(value) ? value : undefined };
}

export const file: Kind<string> = {
  placeholder: "FILE",
  expected: "the path of a file",
  completes: "file",
  read: (value) => value === "" || value.includes("\0") ? undefined : value,
};

/** Absolute, because the agent's service has another working directory than the shell. */
export const directory: Kind<string> = {
  placeholder: "DIR",
  expected: "an absolute path without .. (like /var/lib/kubeedge)",
  completes: "directory",
  read: (value) => {
    if (!/^\/[^\0]*$/.test(value) || value.split("/").includes("..")) return undefined;
    return value === "/" ? value : value.replace(/\/+$/, "");
  },
};

export function number(first: number, last: number, placeholder = "N"): Kind<number> {
  const limited = last !== Number.MAX_SAFE_INTEGER;
  return {
    placeholder,
    expected: limited ? `a number from ${first} to ${last}` : `a number from ${first} up`,
    read: (value) => {
      if (!/^\d{1,16}$/.test(value)) return undefined;
      const read = Number(value);
      return read >= first && read <= last ? read : undefined;
    },
  };
}

export function choice<const T extends string>(...values: readonly T[]): Kind<T> {
  return {
    placeholder: values.join("|"),
    expected: values.length === 2 ? values.join(" or ") : `one of ${values.join(", ")}`,
    values,
    read: (value) => values.find((known) => known === value),
  };
}

/** A host as it is dialled: name, IPv4, or IPv6 without brackets. */
export const host: Kind<string> = {
  placeholder: "HOST",
  expected: "a host name or IP address",
  read: (value) => isIP(value) !== 0 || isHostName(value) ? value : undefined,
};

export interface Address {
  host: string;
  port: number;
}
/** Port 0 lets the system choose one. */
export const address: Kind<Address> = {
  placeholder: "HOST:PORT",
  expected: "host:port with a port from 0 to 65535 (like 0.0.0.0:10443 or [::]:10443)",
  read: readAddress,
};

/** First and last, inclusive. */
export const portRange: Kind<[number, number]> = {
  placeholder: "FIRST-LAST",
  expected: "two ports from 1 to 65535, the smaller first (like 11000-11999)",
  read: (value) => {
    const [, first, last] = /^(\d{1,5})-(\d{1,5})$/.exec(value) ?? [];
    const range: [number, number] = [Number(first), Number(last)];
    return range[0] >= 1 && range[1] <= 65535 && range[0] <= range[1] ? range : undefined;
  },
};

export const hubUrl: Kind<string> = {
  placeholder: "URL",
  expected: "a URL like wss://hub.example.com:10443",
  read: (value) => {
    const rest = /^wss:\/\/([^/\s?#@]+)\/?$/.exec(value)?.[1];
    if (rest === undefined || !readAddress(/:\d+$/.test(rest) ? rest : `${rest}:443`)?.port) return undefined;
    return `wss://${rest}`;
  },
};

export const unixEndpoint: Kind<string> = {
  placeholder: "URL",
  expected: "a unix socket like unix:///run/containerd/containerd.sock",
  completes: "file",
  read: (value) =>
    /^(unix:\/\/)?\/[^\0]+$/.test(value) ? value.replace(/^(unix:\/\/)?/, "unix://") : undefined,
};

const durationUnitsMs: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };
/** Milliseconds. */
export const duration: Kind<number> = {
  placeholder: "DURATION",
  expected: "a duration like 90s, 30m, 24h or 7d",
  read: (value) => {
    if (!/^(\d{1,9}(ms|s|m|h|d))+$/.test(value)) return undefined;
    let totalMs = 0;
    for (const [, count, unit] of value.matchAll(/(\d+)(ms|s|m|h|d)/g)) {
      totalMs += Number(count) * (durationUnitsMs[unit ?? ""] ?? 0);
    }
    return totalMs > 0 && totalMs <= 100 * 366 * 86_400_000 ? totalMs : undefined;
  },
};

export const ip: Kind<string> = {
  placeholder: "IP",
  expected: "an IP address",
  read: (value) => isIP(value) === 0 ? undefined : value,
};

export const cidr: Kind<string> = {
  placeholder: "CIDR",
  expected: "an address range like 10.88.0.0/16",
  read: (value) => {
    const [base = "", bits = "", ...more] = value.split("/");
    const family = isIP(base);
    if (family === 0 || more.length > 0 || !/^\d{1,3}$/.test(bits)) return undefined;
    return Number(bits) <= (family === 4 ? 32 : 128) ? value : undefined;
  },
};

/** RFC 1123 subdomain, as the API server checks it. */
export const nodeName: Kind<string> = {
  placeholder: "NAME",
  expected:
    'a node name: lower case letters, digits, "-" and ".", at most 253, starting and ending with a letter or digit',
  read: (value) =>
    value.length <= 253 && isHostName(value) && value === value.toLowerCase() ? value : undefined,
};

/** Glob over node names. */
export const namePattern: Kind<string> = {
  placeholder: "PATTERN",
  expected: 'a pattern of lower case letters, digits, "-", "." and "*" (like shop-*)',
  read: (value) => /^[-a-z0-9.*]{1,253}$/.test(value) ? value : undefined,
};

const qualifiedName = /^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?$/;
const labelValue = /^([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?$/;

export const labels: Kind<Record<string, string>> = {
  placeholder: "KEY=VALUE,…",
  expected: "Kubernetes labels like zone=shop,rack=1",
  joined: true,
  read: (value) => {
    const out: Record<string, string> = {};
    for (const pair of value.split(",")) {
      const at = pair.indexOf("=");
      const key = pair.slice(0, at), text = pair.slice(at + 1);
      if (at < 1 || !qualifiedName.test(key) || !labelValue.test(text)) return undefined;
      out[key] = text;
    }
    return out;
  },
};

export const taints: Kind<Taint[]> = {
  placeholder: "KEY[=VALUE]:EFFECT,…",
  expected: "Kubernetes taints like edge=true:NoSchedule (effects: NoSchedule, PreferNoSchedule, NoExecute)",
  joined: true,
  read: (value) => {
    const out: Taint[] = [];
    for (const part of value.split(",")) {
      const [, key = "", text, effect] =
        /^([^=:]+)(?:=([^:]*))?:(NoSchedule|PreferNoSchedule|NoExecute)$/.exec(part) ?? [];
      if (!qualifiedName.test(key) || !labelValue.test(text ?? "")) return undefined;
      out.push({ key, ...(text ? { value: text } : {}), effect: effect as Taint["effect"] });
    }
    return out;
  },
};

function isHostName(value: string): boolean {
  return value.length <= 253 &&
    value.split(".").every((part) => /^[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?$/.test(part));
}

function readAddress(value: string): Address | undefined {
  const [, bracketed, plain, digits] = /^(?:\[([^\]]+)\]|([^:\[\]]+)):(\d{1,5})$/.exec(value) ?? [];
  const name = bracketed ?? plain ?? "", port = Number(digits);
  if (bracketed !== undefined ? isIP(name) !== 6 : host.read(name) === undefined) return undefined;
  return port <= 65535 ? { host: name, port } : undefined;
}

/** A listener that may be left out. */
export const addressOrOff: Kind<Address | "off"> = {
  placeholder: "HOST:PORT|off",
  expected: "host:port, or off",
  read: (value) => value === "off" ? "off" : readAddress(value),
};
