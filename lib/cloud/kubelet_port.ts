/**
 * The kubelet ports: one listener per edge node on the cloud's address, so that an unmodified kube-apiserver reaches
 * nodes behind NAT (logs, exec, port-forward, metrics). Each is a kubelet port in full: a serving certificate of the
 * cluster's signer, callers authenticated and authorized as the kubelet does it, only pods of the port's own node.
 */
import type { Clock, Random } from "../core/clock.ts";
import { errorText } from "../core/errors.ts";
import type { Logger } from "../core/log.ts";
import { Semaphore } from "../core/queue.ts";
import type { KubeClient } from "../kube/client.ts";
import type { StreamOpen } from "../wire/messages.ts";
import type { WireStream } from "../wire/streams.ts";
import { attributesOf, type KubeletAuth, type UserInfo } from "./kubelet_auth.ts";
import { requestServingCertificate, type ServingCertificate } from "./kubelet_serving.ts";
import type { NodeRecords } from "./node_records.ts";

/** Signing requests at once after a start with many nodes. */
const requestsMax = 8;
const retryMs = 10_000;
/** Serving certificates are made anew after this share of their life. */
const renewShare = 2 / 3;

export interface KubeletRequest {
  method: string;
  path: string;
  certificate: UserInfo | undefined;
  bearer: string | undefined;
}
export interface Refusal {
  status: number;
  message: string;
}
export interface KubeletHandlers {
  judge(request: KubeletRequest): Promise<Refusal | undefined>;
  open(open: StreamOpen): WireStream | Refusal;
}
/** Listens with a certificate; lib/sys/kubelet_server.ts. */
export type ListenKubelet = (
  options: { hostname: string; port: number; certificate: string; key: string; clientCa: string },
  handlers: KubeletHandlers,
) => Promise<{ close(): void }>;

export interface KubeletPortsPorts {
  client: KubeClient;
  records: NodeRecords;
  auth: KubeletAuth;
  listen: ListenKubelet;
  hostname: string;
  /** Names and addresses under which the API server dials the ports. */
  addresses: string[];
  clientCa: string;
  podOnNode: (node: string, namespace: string, name: string) => boolean;
  openStream: (node: string, open: StreamOpen) => WireStream | undefined;
  clock: Clock;
  random: Random;
  log: Logger;
}

interface OpenPort {
  port: number;
  listener: { close(): void } | undefined;
  renewAtMs: number;
}

export class KubeletPorts {
  readonly #ports: KubeletPortsPorts;
  readonly #open = new Map<string, OpenPort>();
  readonly #requests = new Semaphore(requestsMax);
  #clientCa: string;
  #closed = false;

  constructor(ports: KubeletPortsPorts) {
    this.#ports = ports;
    this.#clientCa = ports.clientCa;
    for (const { record } of ports.records.list()) {
      this.#set(record.node, record.revoked === undefined ? record.kubeletPort : undefined);
    }
    ports.records.listen((node, record) =>
      this.#set(node, record && record.revoked === undefined ? record.kubeletPort : undefined)
    );
  }

  /** Serving certificates that come to their end, and a client CA that was rolled; about once a minute. */
  tick(clientCa: string): void {
    const rolled = clientCa !== this.#clientCa;
    this.#clientCa = clientCa;
    for (const [node, open] of this.#open) {
      if (open.listener && (rolled || this.#ports.clock.now() > open.renewAtMs)) void this.#start(node, open);
    }
  }

  close(): void {
    this.#closed = true;
    for (const { listener } of this.#open.values()) listener?.close();
    this.#open.clear();
  }

  #set(node: string, port: number | undefined): void {
    const open = this.#open.get(node);
    if (open?.port === port || this.#closed) return;
    open?.listener?.close();
    this.#open.delete(node);
    if (port === undefined) return;
    const next: OpenPort = { port, listener: undefined, renewAtMs: 0 };
    this.#open.set(node, next);
    void this.#start(node, next);
  }

  async #start(node: string, open: OpenPort): Promise<void> {
    const { clock, log, client, random, addresses, hostname, listen } = this.#ports;
    const current = () => this.#open.get(node) === open && !this.#closed;
    let serving: ServingCertificate | undefined;
    while (current()) {
      try {
        serving ??= await this.#requests.run(() =>
          requestServingCertificate(node, addresses, { client, clock, random })
        );
        if (!current()) return;
        open.listener?.close();
        open.listener = await listen(
          {
            hostname,
            port: open.port,
            certificate: serving.certificate,
            key: serving.key,
            clientCa: this.#clientCa,
          },
          this.#handlers(node),
        );
        open.renewAtMs = clock.now() + (serving.notAfterMs - clock.now()) * renewShare;
        if (!current()) open.listener.close();
        log.debug("Kubelet port is open", { node, port: open.port });
        return;
      } catch (error) {
        log.warn("Cannot open a node's kubelet port, retrying", {
          node,
          port: open.port,
          error: errorText(error),
        });
        await clock.sleep(retryMs);
      }
    }
  }

  #handlers(node: string): KubeletHandlers {
    return {
      judge: (request) => this.#judge(node, request),
      open: (open) =>
        this.#ports.openStream(node, open) ??
          {
            // kube-apiserver keeps the words of a 503 to itself; those of a 502 reach kubectl.
            status: 502,
            message:
              `node "${node}" is not connected to the cloud; try again when "kubeedge cloud nodes" shows it connected`,
          },
    };
  }

  async #judge(node: string, request: KubeletRequest): Promise<Refusal | undefined> {
    const { auth, podOnNode } = this.#ports;
    const user = request.certificate ??
      (request.bearer !== undefined ? await auth.token(request.bearer) : undefined);
    if (!user) return { status: 401, message: "Unauthorized" };
    if (!await auth.allowed(user, request.method, request.path, node)) {
      const [attributes] = attributesOf(request.method, request.path, node);
      return {
        status: 403,
        message: `Forbidden (user=${user.username}, verb=${
          attributes?.verb ?? ""
        }, resource=nodes, subresource=${attributes?.subresource ?? ""})`,
      };
    }
    const pod = podOf(request.path);
    if (pod && !podOnNode(node, pod.namespace, pod.name)) {
      return { status: 404, message: `pod "${pod.namespace}/${pod.name}" does not exist on node "${node}"` };
    }
    return undefined;
  }
}

/** The pod that a path of the kubelet's API is about. */
function podOf(path: string): { namespace: string; name: string } | undefined {
  const [, kind = "", namespace = "", name = ""] = path.split("/");
  if (!["containerLogs", "exec", "attach", "portForward", "run", "checkpoint"].includes(kind)) {
    return undefined;
  }
  const decode = (segment: string) => {
    try {
      return decodeURIComponent(segment);
    } catch {
      return "";
    }
  };
  return { namespace: decode(namespace), name: decode(name) };
}
