/** What most tests of the cloud need besides the fake API: a quiet logger that remembers, waiting, quick objects. */
import { KubeClient } from "../../lib/kube/client.ts";
import { Logger, type LogRecord } from "../../lib/core/log.ts";
import { FakeClock, SeededRandom } from "./clock.ts";
import { FakeKubeApi, type Json } from "./kube_api.ts";

export const pods = "/api/v1/pods",
  nodes = "/api/v1/nodes",
  secrets = "/api/v1/secrets",
  configMaps = "/api/v1/configmaps";
export const services = "/api/v1/services";

export interface World {
  api: FakeKubeApi;
  client: KubeClient;
  clock: FakeClock;
  random: SeededRandom;
  log: Logger;
  logged: LogRecord[];
}

export function makeWorld(seed = 1): World {
  const api = new FakeKubeApi(), clock = new FakeClock();
  const logged: LogRecord[] = [];
  const log = new Logger({ sink: (record) => logged.push(record), now: () => clock.now(), level: "debug" });
  return { api, client: new KubeClient(api.send), clock, random: new SeededRandom(seed), log, logged };
}

/** Lets real promises (WebCrypto, streams) go on until the condition holds; fails after five seconds. */
export async function until(condition: () => unknown, what: string): Promise<void> {
  const endMs = Date.now() + 5000;
  while (!condition()) {
    if (Date.now() > endMs) throw new Error(`not within 5 s: ${what}`);
    await turn();
  }
}

/** Some turns of the event loop: what is going to happen without time passing has happened then. */
export async function turns(count = 20): Promise<void> {
  for (let i = 0; i < count; i++) await turn();
}

/** Like `until`, while the simulated time passes in steps. */
export async function untilPassing(
  clock: FakeClock,
  stepMs: number,
  condition: () => unknown,
  what: string,
): Promise<void> {
  const endMs = Date.now() + 5000;
  while (!condition()) {
    if (Date.now() > endMs) throw new Error(`not within 5 s: ${what}`);
    await clock.advance(stepMs);
    await turn();
  }
}

export function pod(namespace: string, name: string, nodeName: string, spec: Json = {}): Json {
  return {
    metadata: { namespace, name, managedFields: [{ manager: "test" }] },
    spec: { nodeName, containers: [{ name: "c", image: "i" }], ...spec },
    status: { phase: "Pending" },
  };
}

function turn(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}
