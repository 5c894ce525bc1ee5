/** Every limit that crosses a module, with its unit and its reason. */

/** Largest wire frame, bytes: a Kubernetes object is at most 1.5 MiB (etcd's request limit), plus headers. */
export const frameBytesMax = 2 * 1024 * 1024;
/** Largest frame before the peer has proved its key, bytes: a certificate chain and a few digests. */
export const unprovedFrameBytesMax = 16 * 1024;
/** Connections without proof at once: a fleet of thousands reconnects in waves, each needs one for a round trip. */
export const unprovedConnectionsMax = 256;
/** Time to prove the key, ms: three round trips on a satellite link. */
export const unprovedTimeoutMs = 10_000;
/** Frames smaller than this go uncompressed: deflate gains nothing below it. */
export const compressFromBytes = 256;
/** First credit of a stream in each direction, bytes: a window for 20 Mbit/s at 100 ms. */
export const streamWindowBytes = 256 * 1024;
/** Largest stream data frame, bytes: keeps the link free for sync frames between two of them. */
export const streamChunkBytesMax = 32 * 1024;
/** Streams of one session at once: kubectl users of one node, with room for probes by the API server. */
export const streamsMax = 256;
/** Stream bytes of one session on the way, all streams together: what a sync frame may have to wait behind. */
export const sessionWindowBytes = 512 * 1024;
/** Sync frames in flight without acknowledgement, bytes: what a slow edge store has to hold. */
export const unackedBytesMax = 8 * 1024 * 1024;
/** Reports in flight without acknowledgement: enough to fill a long link, few enough to resend cheaply. */
export const unackedReportsMax = 64;
/** Requests of one edge without an answer: one per volume of a burst of pods. */
export const requestsMax = 64;
/** Heartbeat of the edge on an idle session, ms: about a quarter of Kubernetes' 40 s lease, so that two may be lost. */
export const heartbeatIntervalMs = 11_000;
/** Silence after which a session is dead, ms: two heartbeats and a little; below the node grace period of 50 s. */
export const sessionTimeoutMs = 25_000;
/** Renewal of a node's Lease by the hub at most this often, ms: with every heartbeat that was heard, as the kubelet's 10 s. */
export const leaseRenewIntervalMs = 9_000;
/** Duration written into a Lease, s: the kubelet's default. */
export const leaseDurationSeconds = 40;
