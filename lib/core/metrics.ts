/** Counters, gauges and histograms in the Prometheus text format (version 0.0.4). */
export type Labels = Record<string, string>;

interface Family {
  kind: "counter" | "gauge" | "histogram";
  help: string;
  lines(name: string): string[];
}

function labelText(labels: Labels): string {
  const pairs = Object.entries(labels).map(([name, value]) =>
    `${name}="${value.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n")}"`
  );
  return pairs.length === 0 ? "" : `{${pairs.join(",")}}`;
}

export class Counter {
  readonly #values = new Map<string, number>();
  inc(labels: Labels = {}, by = 1): void {
    const key = labelText(labels);
    this.#values.set(key, (this.#values.get(key) ?? 0) + by);
  }
  value(labels: Labels = {}): number {
    return this.#values.get(labelText(labels)) ?? 0;
  }
  lines(name: string): string[] {
    if (this.#values.size === 0) return [`${name} 0`];
    return [...this.#values].map(([labels, value]) => `${name}${labels} ${value}`);
  }
}

export class Gauge {
  readonly #values = new Map<string, number>();
  #read: (() => number) | undefined;
  set(value: number, labels: Labels = {}): void {
    this.#values.set(labelText(labels), value);
  }
  delete(labels: Labels): void {
    this.#values.delete(labelText(labels));
  }
  /** Takes the value when the metrics are read, in place of `set`. */
  from(read: () => number): void {
    this.#read = read;
  }
  lines(name: string): string[] {
    if (this.#read) return [`${name} ${this.#read()}`];
    return [...this.#values].map(([labels, value]) => `${name}${labels} ${value}`);
  }
}

export class Histogram {
  readonly #counts: number[];
  #sum = 0;
  #count = 0;
  constructor(readonly bounds: readonly number[]) {
    this.#counts = bounds.map(() => 0);
  }
  observe(value: number): void {
    this.#sum += value;
    this.#count++;
    this.bounds.forEach((bound, i) => {
      if (value <= bound) this.#counts[i] = (this.#counts[i] ?? 0) + 1;
    });
  }
  lines(name: string): string[] {
    const buckets = this.bounds.map((bound, i) => `${name}_bucket{le="${bound}"} ${this.#counts[i] ?? 0}`);
    return [
      ...buckets,
      `${name}_bucket{le="+Inf"} ${this.#count}`,
      `${name}_sum ${this.#sum}`,
      `${name}_count ${this.#count}`,
    ];
  }
}

/** Seconds, from a local fsync to a slow image pull. */
export const secondsBuckets = [0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60] as const;

export class Metrics {
  readonly #families = new Map<string, Family>();

  /** The same name twice gives the same metric. */
  counter(name: string, help: string): Counter {
    return this.#family(name, help, "counter", () => new Counter());
  }
  gauge(name: string, help: string): Gauge {
    return this.#family(name, help, "gauge", () => new Gauge());
  }
  histogram(name: string, help: string, bounds: readonly number[] = secondsBuckets): Histogram {
    return this.#family(name, help, "histogram", () => new Histogram(bounds));
  }

  /** The whole exposition, for `GET /metrics` with content type `text/plain; version=0.0.4`. */
  text(): string {
    const out: string[] = [];
    for (const [name, family] of this.#families) {
      out.push(`# HELP ${name} ${family.help}`, `# TYPE ${name} ${family.kind}`, ...family.lines(name));
    }
    return out.join("\n") + "\n";
  }

  #family<T extends { lines(name: string): string[] }>(
    name: string,
    help: string,
    kind: Family["kind"],
    make: () => T,
  ): T {
    const known = this.#families.get(name);
    if (known) return (known as unknown as { metric: T }).metric;
    const metric = make();
    const family = { kind, help, metric, lines: (n: string) => metric.lines(n) };
    this.#families.set(name, family);
    return metric;
  }
}
