/** A peer that speaks the session protocol with whatever identity it is given: for tests of what the hub refuses. */
import { hex } from "../../lib/core/bytes.ts";
import { signProof } from "../../lib/crypto/proof.ts";
import { authorityHash } from "../../lib/crypto/x509.ts";
import type { Identity } from "../../lib/edge/identity.ts";
import { connectHub } from "../../lib/sys/hub_client.ts";
import { EdgeSession, nonceOf } from "../../lib/wire/edge_session.ts";
import { protocolVersion, protocolVersionLeast } from "../../lib/wire/frame.ts";
import {
  type Hello,
  type Proof,
  proofParameters,
  type Refuse,
  type Request,
  type Response,
} from "../../lib/wire/messages.ts";

export type Outcome =
  | {
    state: "welcome";
    proof: Proof;
    request(request: Request): Promise<Response | { failed: string }>;
    close(): void;
  }
  | { state: "refused"; refuse: Refuse }
  | { state: "closed"; reason: string };

export interface StrangerOptions {
  url: string;
  /** The CA bundle that the stranger trusts. */
  authorities: string;
  identity: Pick<Identity, "certificate" | "key">;
  instance?: string;
  /** Sent in place of one's own proof. */
  replay?: Proof;
  /** What the proof says is changed after it was signed. */
  tamper?: (proof: Proof) => Proof;
}

export async function meetHub(options: StrangerOptions): Promise<Outcome> {
  const { promise, resolve } = Promise.withResolvers<Outcome>();
  const waiting: Uint8Array[] = [];
  let proof: Proof | undefined;
  // deno-lint-ignore prefer-const -- the session's handlers read it before it is there
  let connection: { send(message: Uint8Array): void; close(): void } | undefined;
  const session: EdgeSession = new EdgeSession({
    transmit: (message) => connection ? connection.send(message) : waiting.push(message),
    hello: async (hello) => {
      proof = options.replay ?? await prove(hello, options);
      session.prove(options.tamper ? options.tamper(proof) : proof);
    },
    welcome: () => {
      resolve({
        state: "welcome",
        proof: proof as Proof,
        request: (request) => session.request(request),
        close: () => connection?.close(),
      });
    },
    refused: (refuse) => resolve({ state: "refused", refuse }),
    change: (seq) => session.committed(seq),
    synced: (seq) => session.committed(seq),
    reported: () => {},
    reportRefused: () => {},
    streamOpened: (stream) => stream.reset("none here"),
    goaway: () => connection?.close(),
    failed: (reason) => resolve({ state: "closed", reason }),
  }, performance.now());
  connection = await connectHub(options.url, options.authorities, {
    message: (bytes) => session.message(bytes, performance.now()),
    closed: (reason) => {
      session.closed(reason);
      resolve({ state: "closed", reason });
    },
  });
  for (const message of waiting) connection.send(message);
  const outcome = await promise;
  if (outcome.state !== "welcome") connection.close();
  return outcome;
}

async function prove(
  hello: Hello,
  { identity, authorities, instance = "stranger" }: StrangerOptions,
): Promise<Proof> {
  const claims = {
    versionLeast: protocolVersionLeast,
    versionMost: protocolVersion,
    agent: "stranger",
    instance,
    digests: {},
  };
  const signature = await signProof(identity.key, {
    nonce: nonceOf(hello),
    authorityHash: authorityHash(authorities),
    parameters: proofParameters(claims),
  });
  return { ...claims, certificate: identity.certificate, signature: hex(signature) };
}
