/**
 * The environment of a container: service variables, envFrom, env with field, resource, configMap and secret sources,
 * and $(NAME) expansion. Rules as the kubelet's (pkg/kubelet/kubelet_pods.go, third_party/forked/golang/expansion).
 */
import { fromBase64, text } from "../../core/bytes.ts";
import { milliValue, parseQuantity, wholeValue } from "../../kube/quantity.ts";
import type {
  ConfigMap,
  Container,
  KubeObject,
  Pod,
  Quantity,
  ResourceFieldSelector,
  Secret,
  Service,
} from "../../kube/types.ts";
import type { NodeFacts, PodObjects } from "./ports.ts";

/** `wait`: a reference has not been synced yet; `bad`: CreateContainerConfigError with this message. */
export type Resolved<T> = { state: "ok"; value: T } | { state: "wait"; message: string } | {
  state: "bad";
  message: string;
};

export interface EnvContext {
  pod: Pod;
  objects: PodObjects;
  node: NodeFacts;
  podIps: string[];
}

export interface EnvResult {
  env: Map<string, string>;
  /** Keys of envFrom that are no names for variables, per source; they are skipped with an event. */
  skipped: string[];
}

export function resolveEnv(container: Container, context: EnvContext): Resolved<EnvResult> {
  const { pod, objects } = context;
  const namespace = pod.metadata.namespace ?? "default";
  const env = new Map<string, string>();
  const skipped: string[] = [];
  for (const source of container.envFrom ?? []) {
    const reference = source.configMapRef ?? source.secretRef;
    if (!reference?.name) continue;
    const kind = source.configMapRef ? "configmaps" : "secrets";
    const found = dataOf(objects, kind, namespace, reference.name, reference.optional ?? false);
    if (found.state !== "ok") return found;
    const invalid: string[] = [];
    for (const [key, value] of Object.entries(found.value ?? {}).sort(([a], [b]) => (a < b ? -1 : 1))) {
      const name = (source.prefix ?? "") + key;
      if (/^[^\0=]+$/.test(name)) env.set(name, text(value));
      else invalid.push(name);
    }
    if (invalid.length > 0) {
      const noun = kind === "secrets" ? "Secret" : "ConfigMap";
      skipped.push(
        `Keys [${
          invalid.join(", ")
        }] from the EnvFrom ${noun} ${namespace}/${reference.name} were skipped since they are considered invalid environment variable names.`,
      );
    }
  }
  const services = serviceEnv(objects.services(namespace), namespace, pod.spec.enableServiceLinks ?? true);
  const visible = (name: string) => env.get(name) ?? services.get(name);
  for (const variable of container.env ?? []) {
    const from = variable.valueFrom;
    if (!from) {
      env.set(variable.name, expand(variable.value ?? "", visible));
      continue;
    }
    const value = from.fieldRef
      ? fieldValue(from.fieldRef.fieldPath, context)
      : from.resourceFieldRef
      ? resourceValue(from.resourceFieldRef, pod, container, context.node)
      : from.configMapKeyRef
      ? keyValue("configmaps", from.configMapKeyRef, context)
      : from.secretKeyRef
      ? keyValue("secrets", from.secretKeyRef, context)
      : { state: "bad" as const, message: `env ${variable.name} has an unknown source` };
    if (value.state !== "ok") return value;
    if (value.value !== undefined) env.set(variable.name, value.value);
  }
  for (const [name, value] of services) if (!env.has(name)) env.set(name, value);
  return { state: "ok", value: { env, skipped } };
}

/** `$(NAME)` becomes the variable's value, `$$` a dollar; unknown names stay as they are. */
export function expand(value: string, lookup: (name: string) => string | undefined): string {
  return value.replaceAll(
    /\$(\$|\(([^)]*)\))/g,
    (whole, body: string, name: string) => body === "$" ? "$" : lookup(name) ?? whole,
  );
}

/** Bytes per key of a configMap or secret; undefined when it is optional and does not exist. */
export function dataOf(
  objects: PodObjects,
  kind: "configmaps" | "secrets",
  namespace: string,
  name: string,
  optional: boolean,
): Resolved<Record<string, Uint8Array> | undefined> {
  const found = objects.get<KubeObject>(kind, namespace, name);
  const noun = kind === "secrets" ? "secret" : "configmap";
  if (found.state === "unknown") {
    return { state: "wait", message: `${noun} "${name}" has not been synced from the cloud yet` };
  }
  if (found.state === "absent") {
    return optional
      ? { state: "ok", value: undefined }
      : { state: "bad", message: `${noun} "${name}" not found` };
  }
  const data: Record<string, Uint8Array> = {};
  if (kind === "secrets") {
    for (const [key, value] of Object.entries((found.object as Secret).data ?? {})) {
      data[key] = fromBase64(value);
    }
  } else {
    const config = found.object as ConfigMap;
    for (const [key, value] of Object.entries(config.data ?? {})) data[key] = new TextEncoder().encode(value);
    for (const [key, value] of Object.entries(config.binaryData ?? {})) data[key] = fromBase64(value);
  }
  return { state: "ok", value: data };
}

function keyValue(
  kind: "configmaps" | "secrets",
  reference: { name?: string; key: string; optional?: boolean },
  { pod, objects }: EnvContext,
): Resolved<string | undefined> {
  const namespace = pod.metadata.namespace ?? "default", name = reference.name ?? "";
  const found = dataOf(objects, kind, namespace, name, reference.optional ?? false);
  if (found.state !== "ok") return found;
  const value = found.value?.[reference.key];
  if (value !== undefined) return { state: "ok", value: text(value) };
  if (reference.optional) return { state: "ok", value: undefined };
  const noun = kind === "secrets" ? "Secret" : "ConfigMap";
  return { state: "bad", message: `couldn't find key ${reference.key} in ${noun} ${namespace}/${name}` };
}

/** A downward API field as text. */
export function fieldValue(
  path: string,
  { pod, node, podIps }: Omit<EnvContext, "objects">,
): Resolved<string | undefined> {
  const { metadata, spec } = pod;
  const subscript = /^metadata\.(labels|annotations)\['(.*)'\]$/.exec(path);
  if (subscript) {
    const map = subscript[1] === "labels" ? metadata.labels : metadata.annotations;
    return { state: "ok", value: map?.[subscript[2] ?? ""] ?? "" };
  }
  const lines = (map: Record<string, string> | undefined) =>
    Object.entries(map ?? {}).sort(([a], [b]) => (a < b ? -1 : 1)).map(([key, value]) =>
      `${key}=${goQuote(value)}`
    ).join("\n");
  switch (path) {
    case "metadata.name":
      return { state: "ok", value: metadata.name };
    case "metadata.namespace":
      return { state: "ok", value: metadata.namespace ?? "default" };
    case "metadata.uid":
      return { state: "ok", value: metadata.uid ?? "" };
    case "metadata.labels":
      return { state: "ok", value: lines(metadata.labels) };
    case "metadata.annotations":
      return { state: "ok", value: lines(metadata.annotations) };
    case "spec.nodeName":
      return { state: "ok", value: spec.nodeName ?? node.name };
    case "spec.serviceAccountName":
      return { state: "ok", value: spec.serviceAccountName ?? "" };
    case "status.hostIP":
      return { state: "ok", value: node.ips[0] ?? "" };
    case "status.hostIPs":
      return { state: "ok", value: node.ips.join(",") };
    case "status.podIP":
      return { state: "ok", value: podIps[0] ?? "" };
    case "status.podIPs":
      return { state: "ok", value: podIps.join(",") };
    default:
      return { state: "bad", message: `unsupported fieldPath: ${path}` };
  }
}

/** Go's strconv.Quote, near enough for labels and annotations. */
function goQuote(value: string): string {
  return JSON.stringify(value);
}

/** A container's request or limit in units of the divisor, rounded up; limits default to the node's allocatable. */
export function resourceValue(
  selector: ResourceFieldSelector,
  pod: Pod,
  self: Container | undefined,
  node: NodeFacts,
): Resolved<string | undefined> {
  const all = [...pod.spec.containers, ...(pod.spec.initContainers ?? [])];
  const container = selector.containerName
    ? all.find((candidate) => candidate.name === selector.containerName)
    : self;
  if (!container) return { state: "bad", message: `container ${selector.containerName ?? ""} not found` };
  const [which, ...rest] = selector.resource.split(".");
  const resource = rest.join(".");
  if ((which !== "limits" && which !== "requests") || !resource) {
    return { state: "bad", message: `unsupported container resource : ${selector.resource}` };
  }
  const limit = container.resources?.limits?.[resource];
  let quantity: Quantity | undefined = which === "limits"
    ? limit
    : container.resources?.requests?.[resource] ?? limit;
  if (which === "limits" && quantity === undefined) quantity = node.allocatable[resource];
  const divisor = selector.divisor === undefined || selector.divisor === "0" || selector.divisor === 0
    ? "1"
    : selector.divisor;
  const amount = resource === "cpu"
    ? Math.ceil(milliValue(quantity) / Math.max(1, milliValue(divisor)))
    : Math.ceil(wholeValue(quantity) / Math.max(1, parseQuantity(divisor) ?? 1));
  return { state: "ok", value: String(amount) };
}

/** Docker-link variables of services (pkg/kubelet/envvars); without links only the API server's. */
export function serviceEnv(services: Service[], namespace: string, links: boolean): Map<string, string> {
  const env = new Map<string, string>();
  const isApi = (service: Service) =>
    service.metadata.namespace === "default" && service.metadata.name === "kubernetes";
  const chosen = services.filter((service) =>
    isApi(service) || (links && service.metadata.namespace === namespace)
  );
  for (const { metadata, spec } of chosen) {
    const ip = spec?.clusterIP, ports = spec?.ports ?? [];
    const first = ports[0];
    if (!ip || ip === "None" || !first) continue;
    const name = metadata.name.toUpperCase().replaceAll("-", "_");
    const host = ip.includes(":") ? `[${ip}]` : ip;
    env.set(`${name}_SERVICE_HOST`, ip).set(`${name}_SERVICE_PORT`, String(first.port));
    for (const port of ports) {
      if (port.name) {
        env.set(`${name}_SERVICE_PORT_${port.name.toUpperCase().replaceAll("-", "_")}`, String(port.port));
      }
    }
    for (const [index, port] of ports.entries()) {
      const protocol = port.protocol ?? "TCP";
      const url = `${protocol.toLowerCase()}://${host}:${port.port}`;
      const prefix = `${name}_PORT_${port.port}_${protocol}`;
      if (index === 0) env.set(`${name}_PORT`, url);
      env.set(prefix, url).set(`${prefix}_PROTO`, protocol.toLowerCase()).set(
        `${prefix}_PORT`,
        String(port.port),
      ).set(`${prefix}_ADDR`, ip);
    }
  }
  return env;
}
