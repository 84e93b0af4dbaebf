//! What does the agent bound, and why is each bound what it is?

use std::time::Duration;

/// How long a sync counts as a confirmation that no entry matches. Six poll intervals: one lost poll does not turn
/// "no identity" into "not known".
pub const CONFIRMED_FOR: Duration = Duration::from_secs(30);

/// The wall clock is looked at again at least this often, so that a host that was suspended notices within seconds.
pub const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The least time between two mints for one entry, so that a wrong clock or a tiny TTL cannot become a hot loop.
pub const RENEWAL_FLOOR: Duration = Duration::from_secs(5);

/// The same floor when an SVID is minted again because its authority is tainted or gone: the server may go on signing
/// with that authority for a while, and then every agent would ask again and again.
pub const DISTRUST_FLOOR: Duration = Duration::from_secs(60);

/// CSRs in one BatchNewX509SVID call. SPIRE's server admits this many signatures a second per address.
pub const MINT_BATCH: usize = 500;

/// Entries minted before anyone asks for them, in entry-id order. A subscribed entry is minted whatever its rank.
/// Equals SPIRE's default X509-SVID cache size.
pub const PREFETCHED: usize = 1000;

/// JWT-SVIDs kept; the entry with the most gives room. Equals SPIRE's default.
pub const JWT_SVIDS: usize = 1000;

/// Audiences in one JWT-SVID request: each is a cache key part and a claim; real callers use one or two.
pub const AUDIENCES: usize = 32;

/// JWT-SVIDs fetched at the same time for one request of a workload.
pub const JWT_FETCHES_AT_ONCE: usize = 8;

/// Entries accepted from the server in one view. SPIRE's own tests go to tens of thousands per agent.
pub const ENTRIES: usize = 250_000;

/// Federated bundles fetched in one sync; more are left out with a warning.
pub const FEDERATED_BUNDLES: usize = 1000;

/// Federated bundles fetched at the same time, as SPIRE's agent does.
pub const BUNDLE_FETCHES_AT_ONCE: usize = 10;

/// Bytes accepted in one message of the server. SPIRE's default page of 500 entries stays far below; a server without
/// SyncAuthorizedEntries sends all entries in one message.
pub const MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Addresses of the server's name that are tried for one connection.
pub const ADDRESSES: usize = 8;

/// How long one address is tried alone before the next one is tried too (RFC 8305 recommends 250 ms).
pub const HEAD_START: Duration = Duration::from_millis(250);

/// One TCP connect and one TLS handshake with the server.
pub const CONNECT: Duration = Duration::from_secs(10);

/// One unary call to the server.
pub const CALL: Duration = Duration::from_secs(30);

/// One whole sync: entries, bundle and federated bundles.
pub const SYNC: Duration = Duration::from_secs(30);

/// One whole attestation dialogue; a node attestor may have to ask other machines.
pub const ATTEST: Duration = Duration::from_secs(60);

/// Rounds of challenge and response in one attestation; the known methods need one.
pub const CHALLENGES: u32 = 16;

/// The first wait after a failed call to the server; later ones grow by half.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(5);

/// The longest wait between two attempts to reach the server, as SPIRE's agent has it.
pub const BACKOFF_LAST: Duration = Duration::from_secs(4 * 60);

/// The longest wait that the server may ask for before it is asked again: about as long as without its saying so.
pub const HINT_LAST: Duration = BACKOFF_LAST;

/// The shortest wait that it may ask for: what sends zero may be a proxy, and would make a hot loop of every agent.
pub const HINT_LEAST: Duration = Duration::from_secs(1);

/// The first wait after a refusal that only an operator can lift: banned, evicted without means, token spent.
pub const REFUSED_FIRST: Duration = Duration::from_secs(60);

/// The longest wait after such a refusal.
pub const REFUSED_LAST: Duration = Duration::from_secs(10 * 60);

/// The first wait after a mint failed while a workload waits for the SVID.
pub const MINT_AGAIN_FIRST: Duration = Duration::from_secs(1);

/// The longest wait between two attempts to mint for one entry.
pub const MINT_AGAIN_LAST: Duration = Duration::from_secs(60);

/// The longest wait after a whole batch failed: workloads may be waiting, so it is much shorter than for a sync.
pub const MINT_CALL_AGAIN_LAST: Duration = Duration::from_secs(15);

/// How long a workload's request for a JWT-SVID is retried before it is refused.
pub const JWT_BUDGET: Duration = Duration::from_secs(15);

/// The same when a token that is still valid can be returned instead.
pub const JWT_BUDGET_WITH_SPARE: Duration = Duration::from_secs(3);

/// The size of agent-data.json that is still read: a chain of 16 certificates and a large bundle fit many times.
pub const DATA_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// The size of a configuration, bundle, token or certificate file that is still read.
pub const CONFIG_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Connections to the admin socket: administrators ask by hand.
pub const ADMIN_CONNECTIONS: usize = 16;

/// Calls on one such connection.
pub const ADMIN_CALLS: u32 = 4;

/// One request there: a pid and a SPIFFE ID.
pub const ADMIN_REQUEST_BYTES: usize = 4 * 1024;

/// The pause after a connection there could not be accepted.
pub const ADMIN_ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Entries that one explanation names.
pub const EXPLAINED_CANDIDATES: usize = 10;

/// The longest path of a unix socket, in bytes, with room for what is added to it while it is put in place.
pub const SOCKET_PATH_BYTES: usize = 96;

/// How long streams may take to end after the agent was told to stop.
pub const SHUTDOWN: Duration = Duration::from_secs(5);
