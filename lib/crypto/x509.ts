/**
 * Certificates: the cloud's own CA, the hub's serving certificates and the nodes' client certificates (P-256, ECDSA
 * with SHA-256). Signing and CSRs by @peculiar/x509, loaded on first use; reading and checking by node:crypto.
 *
 * Keys are made here by WebCrypto: the one place outside lib/sys that draws randomness, because a key never leaves the
 * call that makes it except as PEM for its owner.
 */
import { createHash, X509Certificate } from "node:crypto";
import { base64, fromBase64, hex } from "../core/bytes.ts";

const keyAlgorithm = { name: "ECDSA", namedCurve: "P-256" };
const signAlgorithm = { name: "ECDSA", hash: "SHA-256" };
/** A machine without a good clock may be this far off when its certificate is made, ms. */
export const clockSkewMs = 5 * 60_000;

async function x509() {
  await import("reflect-metadata");
  return await import("@peculiar/x509");
}

/** A key as PKCS#8 PEM. */
export async function makeKey(): Promise<string> {
  const pair = await crypto.subtle.generateKey(keyAlgorithm, true, ["sign", "verify"]) as CryptoKeyPair;
  return pem("PRIVATE KEY", new Uint8Array(await crypto.subtle.exportKey("pkcs8", pair.privateKey)));
}

/** The private key, and its public half derived by way of JWK. Throws on anything but a P-256 key. */
export async function importKeys(keyPem: string): Promise<CryptoKeyPair> {
  const privateKey = await crypto.subtle.importKey("pkcs8", unpem(keyPem), keyAlgorithm, true, ["sign"]);
  const { kty, crv, x, y } = await crypto.subtle.exportKey("jwk", privateKey);
  const publicJwk = { kty, crv, x, y } as JsonWebKey;
  const publicKey = await crypto.subtle.importKey("jwk", publicJwk, keyAlgorithm, true, ["verify"]);
  return { privateKey, publicKey };
}

export interface CertificateAuthority {
  certificate: string;
  key: string;
}

/** A self-signed CA. */
export async function makeAuthority(
  name: string,
  options: { nowMs: number; days: number; serial: Uint8Array },
): Promise<CertificateAuthority> {
  const lib = await x509();
  const key = await makeKey();
  const certificate = await lib.X509CertificateGenerator.createSelfSigned({
    name: `CN=${name}`,
    keys: await importKeys(key),
    signingAlgorithm: signAlgorithm,
    serialNumber: serialText(options.serial),
    notBefore: new Date(options.nowMs - clockSkewMs),
    notAfter: new Date(options.nowMs + options.days * 86_400_000),
    extensions: [
      new lib.BasicConstraintsExtension(true, 0, true),
      new lib.KeyUsagesExtension(lib.KeyUsageFlags.keyCertSign | lib.KeyUsageFlags.cRLSign, true),
    ],
  });
  return { certificate: certificate.toString("pem"), key };
}

/** A certificate request for `system:node:NAME` (or any subject) signed by its key: proof that the asker holds it. */
export async function makeRequest(
  keyPem: string,
  subject: { commonName: string; organization?: string },
  addresses: string[] = [],
): Promise<string> {
  const lib = await x509();
  const name: Record<string, string[]>[] = [{ CN: [subject.commonName] }];
  if (subject.organization) name.unshift({ O: [subject.organization] });
  const request = await lib.Pkcs10CertificateRequestGenerator.create({
    name,
    keys: await importKeys(keyPem),
    signingAlgorithm: signAlgorithm,
    extensions: addresses.length > 0
      ? [new lib.SubjectAlternativeNameExtension(addresses.map(generalName))]
      : [],
  });
  return request.toString("pem");
}

export type CheckedRequest = { state: "ok"; publicKey: Uint8Array<ArrayBuffer> } | {
  state: "bad";
  reason: string;
};

/** Checks a request's own signature; its subject is not believed. The public key is SPKI DER. */
export async function checkRequest(requestPem: string): Promise<CheckedRequest> {
  try {
    const lib = await x509();
    const request = new lib.Pkcs10CertificateRequest(requestPem);
    if (!(await request.verify())) {
      return { state: "bad", reason: "the request is not signed by its own key" };
    }
    const publicKey = new Uint8Array(request.publicKey.rawData);
    await crypto.subtle.importKey("spki", publicKey, keyAlgorithm, true, ["verify"]);
    return { state: "ok", publicKey };
  } catch {
    return { state: "bad", reason: "it is no PKCS#10 request with a P-256 key" };
  }
}

export interface LeafOptions {
  subject: { commonName: string; organization?: string };
  /** SPKI DER. */
  publicKey: Uint8Array<ArrayBuffer>;
  usage: "client" | "server";
  /** DNS names and IP addresses. */
  addresses?: string[];
  nowMs: number;
  lifeMs: number;
  serial: Uint8Array;
}

export async function issueLeaf(authority: CertificateAuthority, options: LeafOptions): Promise<string> {
  const lib = await x509();
  const issuer = new lib.X509Certificate(authority.certificate);
  const publicKey = await crypto.subtle.importKey("spki", options.publicKey, keyAlgorithm, true, ["verify"]);
  const name: Record<string, string[]>[] = [{ CN: [options.subject.commonName] }];
  if (options.subject.organization) name.unshift({ O: [options.subject.organization] });
  const extensions = [
    new lib.BasicConstraintsExtension(false, undefined, true),
    new lib.KeyUsagesExtension(lib.KeyUsageFlags.digitalSignature, true),
    new lib.ExtendedKeyUsageExtension([
      options.usage === "client" ? lib.ExtendedKeyUsage.clientAuth : lib.ExtendedKeyUsage.serverAuth,
    ]),
    ...(options.addresses?.length
      ? [new lib.SubjectAlternativeNameExtension(options.addresses.map(generalName))]
      : []),
  ];
  const certificate = await lib.X509CertificateGenerator.create({
    subject: name,
    issuer: issuer.subject,
    publicKey,
    signingKey: (await importKeys(authority.key)).privateKey,
    signingAlgorithm: signAlgorithm,
    serialNumber: serialText(options.serial),
    notBefore: new Date(options.nowMs - clockSkewMs),
    notAfter: new Date(options.nowMs + options.lifeMs),
    extensions,
  });
  return certificate.toString("pem");
}

/** SPKI DER of a key's public half. */
export async function publicKeyOf(keyPem: string): Promise<Uint8Array<ArrayBuffer>> {
  return new Uint8Array(await crypto.subtle.exportKey("spki", (await importKeys(keyPem)).publicKey));
}

export interface CertificateFacts {
  commonName: string;
  organizations: string[];
  notBeforeMs: number;
  notAfterMs: number;
  /** Hex of SHA-256 over the SPKI. */
  keyHash: string;
  serial: string;
}

/** Reads the first certificate of `pem`. Throws on malformed text. */
export function readCertificate(pemText: string): CertificateFacts {
  const certificate = new X509Certificate(pemText);
  const names = certificate.subject.split("\n");
  const of = (prefix: string) =>
    names.filter((name) => name.startsWith(prefix)).map((name) => name.slice(prefix.length));
  return {
    commonName: of("CN=")[0] ?? "",
    organizations: of("O="),
    notBeforeMs: Date.parse(certificate.validFrom),
    notAfterMs: Date.parse(certificate.validTo),
    keyHash: keyHashOf(certificate),
    serial: certificate.serialNumber,
  };
}

function keyHashOf(certificate: X509Certificate): string {
  return hex(
    createHash("sha256").update(certificate.publicKey.export({ type: "spki", format: "der" })).digest(),
  );
}

/** Hash of a CA's public key, as join tokens carry it: hex of SHA-256 over the SPKI. */
export function authorityHash(certificatePem: string): string {
  return keyHashOf(new X509Certificate(certificatePem));
}

export type ChainCheck = { state: "ok"; facts: CertificateFacts } | { state: "bad"; reason: string };

/** Whether `leafPem` was issued by one of the CAs in `bundlePem` and is in force. */
export function checkCertificate(leafPem: string, bundlePem: string, nowMs: number): ChainCheck {
  try {
    const leaf = new X509Certificate(leafPem);
    if (leaf.ca) return { state: "bad", reason: "it is a CA's certificate" };
    const issuer = splitPem(bundlePem).map((pemText) => new X509Certificate(pemText))
      .find((authority) => leaf.checkIssued(authority) && leaf.verify(authority.publicKey));
    if (!issuer) return { state: "bad", reason: "it was not issued by this cluster's edge CA" };
    const facts = readCertificate(leafPem);
    if (nowMs < facts.notBeforeMs - clockSkewMs) {
      return { state: "bad", reason: `it is not valid before ${new Date(facts.notBeforeMs).toISOString()}` };
    }
    if (nowMs > facts.notAfterMs) {
      return { state: "bad", reason: `it expired at ${new Date(facts.notAfterMs).toISOString()}` };
    }
    return { state: "ok", facts };
  } catch {
    return { state: "bad", reason: "it is no certificate" };
  }
}

export function splitPem(bundle: string): string[] {
  return bundle.match(/-----BEGIN CERTIFICATE-----[\s\S]*?-----END CERTIFICATE-----/g) ?? [];
}

/** Base64 DER text between the marks. */
export function pem(label: string, der: Uint8Array): string {
  const lines = base64(der).match(/.{1,64}/g) ?? [];
  return `-----BEGIN ${label}-----\n${lines.join("\n")}\n-----END ${label}-----\n`;
}
export function unpem(text: string): Uint8Array<ArrayBuffer> {
  return fromBase64(text.replaceAll(/-----[A-Z0-9 ]+-----|\s/g, ""));
}

function generalName(address: string): { type: "ip" | "dns"; value: string } {
  return { type: /^[\d.]+$|:/.test(address) ? "ip" : "dns", value: address };
}
function serialText(serial: Uint8Array): string {
  return "00" + hex(serial); // a leading zero byte keeps the number positive
}
