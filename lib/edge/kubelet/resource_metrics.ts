/**
 * /metrics/resource (pkg/kubelet/metrics/collectors/resource_metrics.go), what metrics-server reads, and the few
 * families of /metrics/cadvisor that the runtime's figures can fill. Prometheus text with times in ms. Pure.
 */
import type { Counters, PodCounters } from "./stats.ts";

interface Sample {
  labels: Record<string, string>;
  value: number | undefined;
  timeMs?: number | undefined;
}

export function resourceMetrics({ node, pods, failed }: Counters): string {
  const containers = (read: (container: PodCounters["containers"][number]) => Omit<Sample, "labels">) =>
    pods.flatMap(({ view, containers }) =>
      containers.map((counters) => ({
        labels: { container: counters.container, ...podLabels(view) },
        ...read(counters),
      }))
    );
  const totals = (read: (container: PodCounters["containers"][number]) => number | undefined) =>
    pods.map(({ view, containers }) => ({
      labels: podLabels(view),
      value: containers.reduce<number | undefined>(
        (total, counters) => add(total, read(counters)),
        undefined,
      ),
      timeMs: Math.max(...containers.map(({ stats }) => stats.timestampMs)),
    }));
  const nodeSample = (value: number | undefined): Sample[] => [{ labels: {}, value, timeMs: node?.timeMs }];
  const error: Sample[] = [{ labels: {}, value: failed ? 1 : 0 }];
  const errorHelp = "1 if there was an error while getting container metrics, 0 otherwise";
  return [
    family(
      "container_cpu_usage_seconds_total",
      "counter",
      "Cumulative cpu time consumed by the container in core-seconds",
      containers(({ stats }) => ({ value: seconds(stats.cpuCoreNanoSeconds), timeMs: stats.timestampMs })),
    ),
    family(
      "container_memory_working_set_bytes",
      "gauge",
      "Current working set of the container in bytes",
      containers(({ stats }) => ({ value: stats.memoryWorkingSetBytes, timeMs: stats.timestampMs })),
    ),
    family(
      "container_start_time_seconds",
      "gauge",
      "Start time of the container since unix epoch in seconds",
      containers(({ run }) => ({ value: run.startedMs > 0 ? run.startedMs / 1000 : undefined })),
    ),
    family(
      "node_cpu_usage_seconds_total",
      "counter",
      "Cumulative cpu time consumed by the node in core-seconds",
      nodeSample(seconds(node?.cpuCoreNanoSeconds)),
    ),
    family(
      "node_memory_working_set_bytes",
      "gauge",
      "Current working set of the node in bytes",
      nodeSample(node?.memory.workingSetBytes),
    ),
    family(
      "node_swap_usage_bytes",
      "gauge",
      "Current swap usage of the node in bytes",
      nodeSample(node?.swap.usageBytes),
    ),
    family(
      "pod_cpu_usage_seconds_total",
      "counter",
      "Cumulative cpu time consumed by the pod in core-seconds",
      totals(({ stats }) => seconds(stats.cpuCoreNanoSeconds)),
    ),
    family(
      "pod_memory_working_set_bytes",
      "gauge",
      "Current working set of the pod in bytes",
      totals(({ stats }) => stats.memoryWorkingSetBytes),
    ),
    family("resource_scrape_error", "gauge", errorHelp, error),
    family("scrape_error", "gauge", errorHelp, error),
  ].join("");
}

export function containerMetrics({ pods }: Counters): string {
  const samples = (
    read: (container: PodCounters["containers"][number]) => Omit<Sample, "labels">,
    more = {},
  ) =>
    pods.flatMap(({ view, containers }) =>
      containers.map((counters) => {
        const { container, run } = counters;
        const labels = {
          container,
          ...more,
          id: run.id,
          image: run.imageRef,
          name: run.id,
          ...podLabels(view),
        };
        return { labels, ...read(counters) };
      })
    );
  return [
    family(
      "container_cpu_usage_seconds_total",
      "counter",
      "Cumulative cpu time consumed in seconds.",
      samples(({ stats }) => ({ value: seconds(stats.cpuCoreNanoSeconds), timeMs: stats.timestampMs }), {
        cpu: "total",
      }),
    ),
    family(
      "container_fs_usage_bytes",
      "gauge",
      "Number of bytes that are consumed by the container on this filesystem.",
      samples(({ stats }) => ({ value: stats.writableLayerBytes, timeMs: stats.timestampMs })),
    ),
    family(
      "container_memory_working_set_bytes",
      "gauge",
      "Current working set in bytes.",
      samples(({ stats }) => ({ value: stats.memoryWorkingSetBytes, timeMs: stats.timestampMs })),
    ),
    family(
      "container_start_time_seconds",
      "gauge",
      "Start time of the container since unix epoch in seconds.",
      samples(({ run }) => ({ value: run.startedMs > 0 ? run.startedMs / 1000 : undefined })),
    ),
  ].join("");
}

/** Samples without a value are left out, and so is a family without samples. */
function family(name: string, kind: "counter" | "gauge", help: string, samples: Sample[]): string {
  const lines = samples.flatMap(({ labels, value, timeMs }) => {
    if (value === undefined) return [];
    const pairs = Object.entries(labels).map(([label, text]) =>
      `${label}="${text.replaceAll(/[\\"]/g, "\\$&")}"`
    );
    const labelText = pairs.length > 0 ? `{${pairs.join(",")}}` : "";
    return [`${name}${labelText} ${value}${timeMs === undefined ? "" : ` ${timeMs}`}\n`];
  });
  return lines.length === 0 ? "" : `# HELP ${name} ${help}\n# TYPE ${name} ${kind}\n${lines.join("")}`;
}

function podLabels({ pod }: PodCounters["view"]): { namespace: string; pod: string } {
  return { namespace: pod.metadata.namespace ?? "default", pod: pod.metadata.name };
}
function seconds(nanoseconds: number | undefined): number | undefined {
  return nanoseconds === undefined ? undefined : nanoseconds / 1e9;
}
function add(total: number | undefined, value: number | undefined): number | undefined {
  return value === undefined ? total : (total ?? 0) + value;
}
