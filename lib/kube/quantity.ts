/** Kubernetes quantities (k8s.io/apimachinery/pkg/api/resource): `100m`, `1.5`, `64Mi`, `1e3`. */
import type { Quantity } from "./types.ts";

const suffixes: Record<string, number> = {
  n: 1e-9,
  u: 1e-6,
  m: 1e-3,
  "": 1,
  k: 1e3,
  M: 1e6,
  G: 1e9,
  T: 1e12,
  P: 1e15,
  E: 1e18,
  Ki: 2 ** 10,
  Mi: 2 ** 20,
  Gi: 2 ** 30,
  Ti: 2 ** 40,
  Pi: 2 ** 50,
  Ei: 2 ** 60,
};

/** The number, or undefined when it is no quantity. */
export function parseQuantity(quantity: Quantity | undefined): number | undefined {
  if (typeof quantity === "number") return quantity;
  if (quantity === undefined) return undefined;
  const match = /^([+-]?(?:\d+\.?\d*|\.\d+))(?:[eE]([+-]?\d+)|(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei))?$/.exec(
    quantity,
  );
  if (!match) return undefined;
  return Number(match[1]) * (match[2] !== undefined ? 10 ** Number(match[2]) : suffixes[match[3] ?? ""] ?? 1);
}

/** Whole milli-units, rounded up as Kubernetes does. */
export function milliValue(quantity: Quantity | undefined): number {
  return Math.ceil(Number(((parseQuantity(quantity) ?? 0) * 1000).toFixed(6)));
}
/** Whole units, rounded up. */
export function wholeValue(quantity: Quantity | undefined): number {
  return Math.ceil(Number((parseQuantity(quantity) ?? 0).toFixed(9)));
}
