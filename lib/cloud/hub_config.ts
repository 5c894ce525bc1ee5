/** ConfigMap in which the running cloud says how edges dial it: `urls` (JSON list) and `authorityHash`. */
export const hubConfigMap = "kubeedge-hub";
