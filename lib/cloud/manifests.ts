/**
 * Manifests for running inside the cluster: the least rights that the EdgeController gets by with, and a Deployment.
 * Everything it does for a node it does as that node: from Kubernetes 1.36 by constrained impersonation, so it can do as
 * a node no more than is listed here, and the Node authorizer limits that to the node's own objects.
 */
export interface ManifestOptions {
  namespace: string;
  image: string;
  hubUrls: string[];
  /** Undefined: the pod's host. */
  advertiseAddress: string | undefined;
}

interface Rule {
  groups: string[];
  resources: string[];
  verbs: string[];
  names?: string[];
  /** What it is for. */
  why: string;
}

/** With the cloud's own identity. */
const ownRules: Rule[] = [
  {
    groups: [""],
    resources: ["pods", "services"],
    verbs: ["list", "watch"],
    why: "what edge nodes are to run, in shared watches",
  },
  {
    groups: [""],
    resources: ["nodes"],
    verbs: ["list", "watch", "get", "create", "patch"],
    why: "the Node object at a join, with its role, labels and taints",
  },
  {
    groups: [""],
    resources: ["namespaces"],
    verbs: ["get"],
    names: ["kube-system"],
    why: "its UID is the cluster's identity",
  },
  {
    groups: ["certificates.k8s.io"],
    resources: ["certificatesigningrequests"],
    verbs: ["get"],
    why: "serving certificates of kubelet ports",
  },
  {
    groups: ["certificates.k8s.io"],
    resources: ["certificatesigningrequests/approval"],
    verbs: ["update"],
    why: "their approval",
  },
  {
    groups: ["certificates.k8s.io"],
    resources: ["signers"],
    verbs: ["approve"],
    names: ["kubernetes.io/kubelet-serving"],
    why: "of this signer only",
  },
  {
    groups: ["authentication.k8s.io"],
    resources: ["tokenreviews"],
    verbs: ["create"],
    why: "who calls a kubelet port",
  },
  {
    groups: ["authorization.k8s.io"],
    resources: ["subjectaccessreviews"],
    verbs: ["create"],
    why: "and whether they may",
  },
];
/** As the node concerned; the resource and verb of each call. */
const nodeRules: Rule[] = [
  { groups: [""], resources: ["pods/status"], verbs: ["patch"], why: "pod status" },
  { groups: [""], resources: ["pods"], verbs: ["delete"], why: "pods that have ended" },
  { groups: [""], resources: ["nodes"], verbs: ["get"], why: "owner of the lease" },
  { groups: [""], resources: ["nodes/status"], verbs: ["patch"], why: "node status" },
  { groups: [""], resources: ["events"], verbs: ["create", "patch"], why: "events" },
  {
    groups: [""],
    resources: ["secrets", "configmaps"],
    verbs: ["get", "list", "watch"],
    why: "what the node's pods refer to",
  },
  { groups: [""], resources: ["serviceaccounts/token"], verbs: ["create"], why: "tokens of the node's pods" },
  {
    groups: ["coordination.k8s.io"],
    resources: ["leases"],
    verbs: ["get", "create", "patch"],
    why: "the node's heartbeat",
  },
  {
    groups: ["certificates.k8s.io"],
    resources: ["certificatesigningrequests"],
    verbs: ["create"],
    why: "the serving certificate of its port",
  },
];
/** In its own namespace. */
const namespaceRules: Rule[] = [
  {
    groups: [""],
    resources: ["secrets"],
    verbs: ["get", "list", "create", "update", "delete"],
    why: "the CA and the join tokens",
  },
  {
    groups: [""],
    resources: ["configmaps"],
    verbs: ["get", "list", "watch", "create", "update", "patch", "delete"],
    why: "node records",
  },
];

export function manifests({ namespace, image, hubUrls, advertiseAddress }: ManifestOptions): string {
  const impersonation: Rule[] = [
    {
      groups: ["authentication.k8s.io"],
      resources: ["nodes"],
      verbs: ["impersonate:arbitrary-node"],
      why: "acting as a node, Kubernetes 1.36 and later",
    },
    ...nodeRules.map((rule) => ({
      ...rule,
      verbs: rule.verbs.map((verb) => `impersonate-on:arbitrary-node:${verb}`),
    })),
  ];
  const args = [
    "cloud",
    "--namespace",
    namespace,
    ...hubUrls.flatMap((url) => ["--hub-url", url]),
    "--status-listen",
    "0.0.0.0:10444",
  ];
  const advertise = advertiseAddress === undefined
    ? ["--advertise-address", "$(HOST_IP)"]
    : ["--advertise-address", advertiseAddress];
  return [
    `apiVersion: v1\nkind: Namespace\nmetadata:\n  name: ${namespace}\n`,
    `apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: kubeedge-cloud\n  namespace: ${namespace}\n`,
    `apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata:\n  name: kubeedge-cloud\nrules:\n${
      rulesText([...ownRules, ...impersonation])
    }`,
    binding("ClusterRoleBinding", "ClusterRole", "kubeedge-cloud", namespace),
    `apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata:\n  name: kubeedge-cloud\n  namespace: ${namespace}\nrules:\n${
      rulesText(namespaceRules)
    }`,
    binding("RoleBinding", "Role", "kubeedge-cloud", namespace),
    `# The client CA of those who may call kubelets, as the API server publishes it.\n` +
    binding("RoleBinding", "Role", "extension-apiserver-authentication-reader", namespace, "kube-system"),
    `apiVersion: apps/v1
kind: Deployment
metadata:
  name: kubeedge-cloud
  namespace: ${namespace}
spec:
  replicas: 1
  strategy: {type: Recreate}
  selector: {matchLabels: {app: kubeedge-cloud}}
  template:
    metadata: {labels: {app: kubeedge-cloud}}
    spec:
      serviceAccountName: kubeedge-cloud
      # The kubelet ports and the hub are the host's: edges and kube-apiserver dial one address that stays.
      hostNetwork: true
      dnsPolicy: ClusterFirstWithHostNet
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms: [{matchExpressions: [{key: node-role.kubernetes.io/edge, operator: DoesNotExist}]}]
      containers:
      - name: kubeedge
        image: ${JSON.stringify(image)}
        args: ${JSON.stringify([...args, ...advertise])}
        env: [{name: HOST_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}]
        ports: [{name: hub, containerPort: 10443}, {name: status, containerPort: 10444}]
        livenessProbe: {httpGet: {path: /healthz, port: status}}
        readinessProbe: {httpGet: {path: /readyz, port: status}}
        resources: {requests: {cpu: 50m, memory: 128Mi}}
        securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
        volumeMounts: [{name: tmp, mountPath: /tmp}]
      volumes: [{name: tmp, emptyDir: {}}]
`,
    `apiVersion: v1
kind: Service
metadata:
  name: kubeedge-hub
  namespace: ${namespace}
spec:
  type: NodePort
  selector: {app: kubeedge-cloud}
  ports: [{name: hub, port: 10443, targetPort: hub}]
`,
  ].join("---\n");
}

function rulesText(rules: Rule[]): string {
  return rules.map(({ groups, resources, verbs, names, why }) =>
    `# ${why}\n- apiGroups: ${JSON.stringify(groups)}\n  resources: ${JSON.stringify(resources)}\n  verbs: ${
      JSON.stringify(verbs)
    }\n` +
    (names ? `  resourceNames: ${JSON.stringify(names)}\n` : "")
  ).join("");
}

function binding(
  kind: "ClusterRoleBinding" | "RoleBinding",
  roleKind: string,
  role: string,
  namespace: string,
  place = namespace,
): string {
  const where = kind === "RoleBinding" ? `  namespace: ${place}\n` : "";
  return `apiVersion: rbac.authorization.k8s.io/v1\nkind: ${kind}\nmetadata:\n  name: kubeedge-cloud\n${where}` +
    `roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ${roleKind}, name: ${role}}\n` +
    `subjects: [{kind: ServiceAccount, name: kubeedge-cloud, namespace: ${namespace}}]\n`;
}
