/** The commands of `kubeedge cloud`. What they need is loaded when they run. */
import { ExitCode, UserError } from "../lib/core/errors.ts";
import { logLevels } from "../lib/core/log.ts";
import { command, type Group } from "./support/command.ts";
import * as kinds from "./support/kinds.ts";
import { flag, many, option, optional, type Values } from "./support/options.ts";

const cluster = {
  kubeconfig: optional(
    kinds.file,
    "kubeconfig of the cluster; without it the service account of the pod that this runs in",
    { env: "KUBECONFIG" },
  ),
  context: optional(kinds.text, "context of the kubeconfig in place of its current one"),
  namespace: option(
    kinds.word("NAME", "a namespace"),
    "kubeedge-system",
    "namespace of what the cloud remembers (CA, tokens, node records)",
  ),
};

const runOptions = {
  ...cluster,
  listen: option(kinds.address, { host: "0.0.0.0", port: 10443 }, "where edges connect (TLS, WebSocket)", {
    fallbackText: "0.0.0.0:10443",
  }),
  hubUrl: many(
    kinds.hubUrl,
    "how edges dial this cloud; the default is the advertised address and the listening port",
    { env: "KUBEEDGE_HUB_URLS" },
  ),
  advertiseAddress: optional(
    kinds.host,
    "address of this machine as edges and kube-apiserver reach it; the default is that of the default route",
  ),
  kubeletListen: option(kinds.host, "0.0.0.0", "address on which the nodes' kubelet ports listen"),
  kubeletPorts: option(
    kinds.portRange,
    [11000, 11999] as [number, number],
    "one port a node, for kubectl logs, exec, port-forward and top",
    { fallbackText: "11000-11999" },
  ),
  nodeAddresses: option(
    kinds.choice("hub", "edge"),
    "hub",
    "what a Node reports as InternalIP: hub (this cloud, so that kube-apiserver reaches every node) or edge (the machine's own, with the cloud as Hostname)",
  ),
  statusListen: option(
    kinds.addressOrOff,
    { host: "127.0.0.1", port: 10444 } as kinds.Address | "off",
    "where /healthz, /readyz and /metrics are served",
    { fallbackText: "127.0.0.1:10444" },
  ),
  logLevel: option(kinds.choice(...logLevels), "info", "how much is logged"),
  logFormat: option(kinds.choice("text", "json"), "text", "lines for people or for machines"),
  dryRun: flag("check flags, config and connection, print what would be used, and stop", {
    env: null,
    inFile: false,
  }),
};

async function run(values: Values<typeof runOptions>): Promise<void> {
  if (values.dryRun) {
    await connect(values);
    const { printOptions } = await import("./support/checked.ts");
    return printOptions(values);
  }
  const { runCloud } = await import("./cloud_run.ts");
  const { hubUrl, statusListen, dryRun: _, ...rest } = values;
  await runCloud({
    ...rest,
    hubUrls: hubUrl,
    statusListen: statusListen === "off" ? undefined : statusListen,
  });
}

type ClusterValues = Values<typeof cluster>;

/** A client of the cluster, and what the cloud's modules want beside it. */
async function connect({ kubeconfig, context, namespace }: ClusterValues) {
  const [{ KubeClient }, { kubeHttp, loadConnection }, { systemClock: clock, systemRandom: random }] =
    await Promise.all([
      import("../lib/kube/client.ts"),
      import("../lib/sys/kube_http.ts"),
      import("../lib/sys/clock.ts"),
    ]);
  const connection = loadConnection(kubeconfig, context);
  const client = new KubeClient(kubeHttp(connection));
  try {
    await client.connect(AbortSignal.timeout(10_000));
  } catch (error) {
    throw new UserError(
      `Cannot reach the cluster at ${connection.server} (${connection.source})`,
      ExitCode.failure,
      { cause: error },
    );
  }
  return { client, namespace, clock, random };
}

async function records(values: ClusterValues) {
  const { NodeRecords } = await import("../lib/cloud/node_records.ts");
  const ports = await connect(values);
  const all = new NodeRecords({ ...ports, kubeletPorts: [0, 0] });
  await all.load();
  return all;
}

const tokenOptions = {
  ...cluster,
  ttl: option(kinds.duration, 86_400_000, "how long the token can be used", { fallbackText: "24h" }),
  uses: option(kinds.number(0, 1_000_000), 1, "how many machines may join with it; 0: any number"),
  nodeNames: option(kinds.namePattern, "*", "names that its nodes may take"),
  labels: option(kinds.labels, {}, "labels that its nodes get"),
  taints: option(kinds.taints, [], "taints that its nodes get"),
  takeover: flag("its machine may take a name that another machine holds (replaced hardware)"),
  description: option(kinds.text, "", "a note for the list"),
  hubUrl: many(kinds.hubUrl, "hubs to dial in place of those that the running cloud has published"),
};

async function createToken(values: Values<typeof tokenOptions>): Promise<void> {
  const [{ createToken }, { Authority }, { hubConfigMap }, { objectPath }] = await Promise.all([
    import("../lib/cloud/join_tokens.ts"),
    import("../lib/cloud/authority.ts"),
    import("../lib/cloud/hub_config.ts"),
    import("../lib/kube/client.ts"),
  ]);
  const ports = await connect(values);
  const published = await ports.client.find<{ data?: Record<string, string> }>(
    objectPath("/api/v1", "configmaps", values.namespace, hubConfigMap),
  );
  const urls = values.hubUrl.length > 0
    ? values.hubUrl
    : JSON.parse(published?.data?.urls ?? "[]") as string[];
  if (urls.length === 0) {
    throw new UserError(
      `Cannot create a token: no cloud has published its URLs in namespace ${values.namespace}; start "kubeedge cloud" first or give --hub-url`,
    );
  }
  const authority = await Authority.load(ports);
  const { ttl, uses, nodeNames, labels, taints, takeover, description } = values;
  const grant = {
    description,
    expiresMs: Date.now() + ttl,
    usesLeft: uses === 0 ? undefined : uses,
    nodeNames,
    labels,
    taints,
    takeover,
  };
  const { token } = await createToken(grant, { urls, authorityHash: authority.signerHash }, ports);
  console.log(token);
  console.error(
    `On the edge machine, as root: kubeedge edge join TOKEN   (until ${
      new Date(grant.expiresMs).toISOString()
    })`,
  );
}

function table(rows: string[][]): void {
  const widths = rows[0]?.map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0))) ?? [];
  for (const row of rows) {
    console.log(row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join("   ").trimEnd());
  }
}

/** `3m`, `2h`, `5d`, as kubectl writes ages. */
function age(ms: number): string {
  const seconds = Math.max(0, Math.round((Date.now() - ms) / 1000));
  if (ms === 0) return "never";
  if (seconds < 120) return `${seconds}s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)}m`;
  return seconds < 172_800 ? `${Math.floor(seconds / 3600)}h` : `${Math.floor(seconds / 86_400)}d`;
}

const nodesOptions = {
  ...cluster,
  output: option(kinds.choice("table", "json"), "table", "form of the list", { short: "o", env: null }),
  statusListen: option(
    kinds.address,
    { host: "127.0.0.1", port: 10444 },
    "the running cloud's status address, for live figures",
    { fallbackText: "127.0.0.1:10444" },
  ),
};

async function listNodes(values: Values<typeof nodesOptions>): Promise<void> {
  type Line = import("../lib/cloud/loop.ts").NodeLine;
  const { host, port } = values.statusListen;
  let lines: Line[];
  try {
    const answer = await fetch(`http://${host.includes(":") ? `[${host}]` : host}:${port}/v1/nodes`, {
      signal: AbortSignal.timeout(2000),
    });
    lines = await answer.json() as Line[];
  } catch {
    // No cloud on this machine: what it last wrote down.
    lines = (await records(values)).list().map(({ record, news }) => ({
      node: record.node,
      kubeletPort: record.kubeletPort,
      revoked: record.revoked !== undefined,
      connected: news?.connected ?? false,
      sinceMs: news?.sinceMs ?? 0,
      lastSeenMs: news?.lastSeenMs ?? 0,
      roundTripMs: news?.roundTripMs ?? 0,
      agent: news?.agent ?? "",
      address: news?.address ?? "",
    }));
  }
  lines.sort((a, b) => a.node < b.node ? -1 : 1);
  if (values.output === "json") return console.log(JSON.stringify(lines, undefined, 2));
  if (lines.length === 0) return console.error("No edge nodes yet: kubeedge cloud token create");
  const link = (line: Line) => line.revoked ? "revoked" : line.connected ? "connected" : "lost";
  table([
    ["NODE", "LINK", "RTT", "SINCE", "LAST SEEN", "AGENT", "ADDRESS", "PORT"],
    ...lines.map((line) => [
      line.node,
      link(line),
      line.connected ? `${line.roundTripMs.toFixed(1)}ms` : "-",
      age(line.sinceMs),
      age(line.lastSeenMs),
      line.agent || "-",
      line.address || "-",
      String(line.kubeletPort),
    ]),
  ]);
}

async function changeRecord(values: ClusterValues, node: string, revoked: string | undefined): Promise<void> {
  const record = await (await records(values)).change(
    node,
    ({ revoked: _, ...rest }) => revoked === undefined ? rest : { ...rest, revoked },
  );
  if (!record) {
    throw new UserError(
      `Cannot ${revoked === undefined ? "restore" : "revoke"} node "${node}": there is no such edge node`,
    );
  }
  console.log(
    revoked === undefined
      ? `node "${node}" may connect again`
      : `node "${node}" is revoked: its session ends, its certificate is worth nothing`,
  );
}

export const cloud: Group = {
  summary: "the EdgeController: joins edge machines to a Kubernetes cluster",
  description:
    "Runs beside an unmodified Kubernetes cluster, as a program or as a Deployment (kubeedge cloud manifests). Edge nodes " +
    "connect to it from behind NAT; kubectl treats them like any other node.",
  fallback: "run",
  commands: {
    run: command({
      summary: "run the EdgeController until SIGTERM",
      description:
        "Watches the cluster, serves the hub that edges connect to, and one kubelet port a node for kube-apiserver.\n\n" +
        "Needs the rights that kubeedge cloud manifests prints. Without --kubeconfig it uses the service account of its pod; the embedded " +
        "API server is not part of this version.",
      options: runOptions,
      config: true,
      examples: [
        "kubeedge cloud --kubeconfig ~/.kube/config",
        "kubeedge cloud --kubeconfig admin.conf --hub-url wss://hub.example.com:10443 --advertise-address 203.0.113.5",
      ],
      run,
    }),
    config: {
      summary: "check or print the configuration",
      commands: {
        check: command({
          summary: "check flags, environment and config file, and touch nothing",
          options: runOptions,
          config: true,
          examples: ["kubeedge cloud config check --config /etc/kubeedge/cloud.yaml"],
          run: () => console.log("The configuration is valid"),
        }),
        print: command({
          summary: "print what would be used",
          options: runOptions,
          config: true,
          run: async (values) => (await import("./support/checked.ts")).printOptions(values),
        }),
      },
    },
    token: {
      summary: "create, list and delete join tokens",
      commands: {
        create: command({
          summary: "create a join token and print it",
          description:
            "The token carries the hub's URLs, the hash of the edge CA's key and a secret. The cluster keeps only the secret's hash, in a Secret.",
          options: tokenOptions,
          examples: [
            "kubeedge cloud token create --kubeconfig ~/.kube/config",
            "kubeedge cloud token create --ttl 7d --uses 50 --node-names 'shop-*' --labels zone=shop --taints edge=true:NoSchedule",
          ],
          run: createToken,
        }),
        list: command({
          summary: "list the join tokens",
          options: cluster,
          run: async (values) => {
            const { listTokens } = await import("../lib/cloud/join_tokens.ts");
            const tokens = await listTokens(await connect(values));
            if (tokens.length === 0) return console.error("No join tokens: kubeedge cloud token create");
            table([
              ["ID", "EXPIRES", "USES LEFT", "NODE NAMES", "DESCRIPTION"],
              ...tokens.map((token) => [
                token.id,
                token.expiresMs < Date.now() ? "expired" : new Date(token.expiresMs).toISOString(),
                token.usesLeft === undefined ? "any" : String(token.usesLeft),
                token.nodeNames,
                token.description,
              ]),
            ]);
          },
        }),
        delete: command({
          summary: "delete a join token; nodes that joined with it stay",
          arguments: [{ name: "ID", help: "as kubeedge cloud token list shows it", required: true }],
          options: cluster,
          run: async (values, [id = ""]) => {
            const { deleteToken } = await import("../lib/cloud/join_tokens.ts");
            if (!await deleteToken(id, await connect(values))) {
              throw new UserError(`Cannot delete token "${id}": there is none of that id`);
            }
            console.log(`token ${id} deleted`);
          },
        }),
      },
    },
    nodes: {
      summary: "list edge nodes; revoke and restore them",
      fallback: "list",
      commands: {
        list: command({
          summary: "list the edge nodes with link state, round-trip time, last seen and agent version",
          options: nodesOptions,
          examples: ["kubeedge cloud nodes", "kubeedge cloud nodes -o json"],
          run: listNodes,
        }),
        revoke: command({
          summary: "end a node's session and refuse its certificate from now on",
          description:
            "Its pods run on where they are until the cluster moves them. To delete the node for good: kubectl delete node NAME.",
          arguments: [{ name: "NAME", help: "the node", required: true }],
          options: {
            ...cluster,
            reason: option(kinds.text, "revoked by an administrator", "why, for the node's log"),
          },
          run: (values, [node = ""]) => changeRecord(values, node, values.reason),
        }),
        restore: command({
          summary: "undo a revocation",
          arguments: [{ name: "NAME", help: "the node", required: true }],
          options: cluster,
          run: (values, [node = ""]) => changeRecord(values, node, undefined),
        }),
      },
    },
    ca: {
      summary: "show and roll the CA of edge certificates",
      commands: {
        status: command({
          summary: "show the CA's stage and hashes",
          options: cluster,
          run: async (values) => {
            const { Authority } = await import("../lib/cloud/authority.ts");
            const authority = await Authority.load(await connect(values));
            console.log(`stage: ${authority.state.stage}`);
            for (const hash of authority.hashes) {
              console.log(`${hash === authority.signerHash ? "signs:  " : "trusted:"} ${hash}`);
            }
          },
        }),
        rotate: command({
          summary: "roll the CA one stage on",
          description:
            "Three stages, each safe to stay in. The first adds a new CA to what nodes trust. The second lets it sign: nodes renew " +
            "their certificates when they next connect. The third drops the old CA: nodes that have not been connected since the second must " +
            "join again, so wait until kubeedge cloud nodes shows that all have.",
          options: cluster,
          run: async (values) => {
            const { Authority } = await import("../lib/cloud/authority.ts");
            console.log(`stage: ${await (await Authority.load(await connect(values))).rotate()}`);
          },
        }),
      },
    },
    manifests: command({
      summary: "print manifests: the least rights and a Deployment for running inside the cluster",
      options: {
        namespace: cluster.namespace,
        image: option(kinds.text, "kubeedge:latest", "image of this program"),
        hubUrl: many(kinds.hubUrl, "how edges will dial the cloud"),
        advertiseAddress: option(
          kinds.host,
          "0.0.0.0",
          "address at which kube-apiserver reaches the kubelet ports",
          { fallbackText: "the pod's host" },
        ),
      },
      examples: ["kubeedge cloud manifests --hub-url wss://hub.example.com:10443 | kubectl apply -f -"],
      run: async (values) => {
        const { manifests } = await import("../lib/cloud/manifests.ts");
        console.log(
          manifests({
            namespace: values.namespace,
            image: values.image,
            hubUrls: values.hubUrl,
            advertiseAddress: values.advertiseAddress === "0.0.0.0" ? undefined : values.advertiseAddress,
          }),
        );
      },
    }),
  },
};
