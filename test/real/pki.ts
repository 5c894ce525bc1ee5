/** One cluster CA, a front-proxy CA, and the certificates and kubeconfigs of a control plane (openssl). */
import { must } from "./processes.ts";

interface Leaf {
  name: string;
  subject: string;
  ca?: "ca" | "front";
  addresses?: string[];
}

export async function makePki(
  dir: string,
  { address, server }: { address: string; server: string },
): Promise<void> {
  await Deno.mkdir(dir, { recursive: true });
  const at = (name: string) => `${dir}/${name}`;
  const key = (name: string) =>
    must(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", at(`${name}.key`)]);
  for (const ca of ["ca", "front"]) {
    await key(ca);
    await must([
      "openssl",
      "req",
      "-x509",
      "-new",
      "-key",
      at(`${ca}.key`),
      "-subj",
      `/CN=${ca}`,
      "-days",
      "3650",
      "-out",
      at(`${ca}.crt`),
      "-addext",
      "keyUsage=critical,keyCertSign,cRLSign,digitalSignature",
    ]);
  }
  await must(["openssl", "genrsa", "-out", at("sa.key"), "2048"]);
  await must(["openssl", "rsa", "-in", at("sa.key"), "-pubout", "-out", at("sa.pub")]);
  const names = [
    "DNS:localhost",
    "DNS:kubernetes",
    "DNS:kubernetes.default",
    "DNS:kubernetes.default.svc",
    "DNS:kubernetes.default.svc.cluster.local",
  ];
  await makeLeaf(dir, {
    name: "apiserver",
    subject: "/CN=kube-apiserver",
    addresses: [...names, `IP:${address}`, "IP:127.0.0.1", "IP:10.96.0.1"],
  });
  await makeLeaf(dir, {
    name: "apiserver-kubelet",
    subject: "/O=system:masters/CN=kube-apiserver-kubelet-client",
  });
  await makeKubeconfig(dir, server, { name: "admin", subject: "/O=system:masters/CN=admin" });
  await makeKubeconfig(dir, server, {
    name: "controller-manager",
    subject: "/CN=system:kube-controller-manager",
  });
  await makeKubeconfig(dir, server, { name: "scheduler", subject: "/CN=system:kube-scheduler" });
}

/** A client certificate of the cluster's CA (a server's, where addresses are given). */
export async function makeLeaf(
  dir: string,
  { name, subject, ca = "ca", addresses = [] }: Leaf,
): Promise<void> {
  const at = (file: string) => `${dir}/${file}`;
  await must(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", at(`${name}.key`)]);
  await must([
    "openssl",
    "req",
    "-new",
    "-key",
    at(`${name}.key`),
    "-subj",
    subject,
    "-out",
    at(`${name}.csr`),
  ]);
  const usage = addresses.length > 0 ? "serverAuth" : "clientAuth";
  const san = addresses.length > 0 ? `subjectAltName=${addresses.join(",")}\n` : "";
  await Deno.writeTextFile(
    at(`${name}.ext`),
    `keyUsage=critical,digitalSignature\nextendedKeyUsage=${usage}\n${san}`,
  );
  await must([
    "openssl",
    "x509",
    "-req",
    "-in",
    at(`${name}.csr`),
    "-CA",
    at(`${ca}.crt`),
    "-CAkey",
    at(`${ca}.key`),
    "-CAcreateserial",
    "-days",
    "3650",
    "-extfile",
    at(`${name}.ext`),
    "-out",
    at(`${name}.crt`),
  ]);
}

async function makeKubeconfig(dir: string, server: string, leaf: Leaf): Promise<void> {
  await makeLeaf(dir, leaf);
  const user = { "client-certificate": `${leaf.name}.crt`, "client-key": `${leaf.name}.key` };
  await Deno.writeTextFile(
    `${dir}/${leaf.name}.conf`,
    JSON.stringify({
      apiVersion: "v1",
      kind: "Config",
      clusters: [{ name: "test", cluster: { server, "certificate-authority": "ca.crt" } }],
      users: [{ name: "user", user }],
      contexts: [{ name: "test", context: { cluster: "test", user: "user" } }],
      "current-context": "test",
    }),
  );
}
