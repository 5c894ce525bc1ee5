/** `kubeedge bus`: a place in the program that says what it will be. */
import { ExitCode, UserError } from "../lib/core/errors.ts";
import { command, type Group } from "./support/command.ts";

const description =
  "KubeBus will join edge machines and cloud VMs into one encrypted, multitenant virtual network: a WireGuard handshake, " +
  "NAT traversal with relays to fall back on, DNS, load-balancing for Services, and a userspace TCP/IP stack where there is no root.\n\n" +
  "It is not part of this version. Pods of an edge node reach each other and the outside by the node's own CNI network.";

export const bus: Group = {
  summary: "the virtual network between edge machines and cloud VMs (not part of this version)",
  description,
  fallback: "about",
  commands: {
    about: command({
      summary: "say what it will be",
      description,
      options: {},
      run: () => {
        throw new UserError(
          "kubeedge bus is not part of this version; kubeedge bus --help says what it will be",
          ExitCode.usage,
        );
      },
    }),
  },
};
