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

/// How long ago a process may have been looked at for which an SVID is asked. Our server believes what is ten minutes old; there
/// is time left for the call, and for clocks that differ.
pub const EVIDENCE_AGE: Duration = Duration::from_secs(8 * 60);

/// Selectors of one process that a server is told, in bytes. Containers with all their labels have some ten thousand.
pub const EVIDENCE_BYTES: usize = 128 * 1024;

/// The same in one call. Our server reads 4 MiB, CSRs and all; one entry's own selectors are less than 2.2 MiB.
pub const MINT_EVIDENCE_BYTES: usize = 2 * 1024 * 1024;

/// Entries minted before anyone asks for them, in entry-id order. A subscribed entry is minted whatever its rank.
/// Equals SPIRE's default X509-SVID cache size.
pub const PREFETCHED: usize = 1000;

/// Processes that have a key of their own by one entry. On a node with more of them, something starts processes in a loop.
pub const PROCESSES_PER_ENTRY: usize = 1000;

/// The same by all entries together: each holds a key and a chain.
pub const PROCESSES: usize = 10_000;

/// New ones by one entry, at once and then in each second: whoever starts short-lived processes without end would have
/// agent and server sign without end.
pub const PROCESS_KEYS: (u32, u32) = (100, 10);

/// How long a process keeps its own key without an open stream. A client that connects anew finds it; of one that has
/// exited, the agent hears while a stream is open.
pub const PROCESS_IDLE: Duration = Duration::from_secs(60);

/// Stops that concern one agent: more than anybody makes by hand.
pub const STOPS: usize = 10_000;

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

/// Bytes accepted in one message of a server that pushes. Ours sends parts of about 64 KiB; one bundle can be larger.
pub const PUSHED_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// Bytes accepted in all parts of one update: a hundred thousand entries of a few hundred bytes, several times over.
pub const UPDATE_BYTES: usize = 256 * 1024 * 1024;

/// The name of a lineage, in bytes; ours take 36.
pub const LINEAGE_BYTES: usize = 128;

/// How often a server may say that it will be heard of. More often would only be work, and more seldom would leave a dead
/// connection undetected.
pub const HEARTBEAT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Heartbeats that may be missing before a connection counts as dead.
pub const HEARTBEATS_MISSED: u32 = 3;

/// From the hello to the welcome; and from a request for a snapshot to its last part.
pub const WELCOME: Duration = Duration::from_secs(30);

/// How long the acknowledgement of an update waits until workloads have taken it up: one whose SVID cannot be had, or
/// that cannot be attested just now, is not to hold up what comes next.
pub const TAKEN_UP: Duration = Duration::from_millis(500);

/// The least time between two reports of what is served, unless the bundle has changed.
pub const REPORT: Duration = Duration::from_secs(10);

/// A request to a server that pushes waits this long for the connection to take it.
pub const SEND: Duration = Duration::from_secs(10);

/// The first wait before a watch that ended is opened again; spread from nothing to this over the fleet.
pub const WATCH_AGAIN_FIRST: Duration = Duration::from_secs(1);

/// The longest one. A fleet of ten thousand comes back over this time once its server does.
pub const WATCH_AGAIN_LAST: Duration = Duration::from_secs(15);

/// A watch that lived as long as this was none that fails again and again.
pub const WATCH_LIVED: Duration = Duration::from_secs(60);

/// How long a server that cannot push is polled before it is asked again, unless there is a new connection.
pub const WATCH_ANEW: Duration = Duration::from_secs(5 * 60);

/// Over this time agents open their watches on a new connection when an authority has gone: none of them is in a hurry.
pub const WATCH_MOVES: Duration = Duration::from_secs(10);

/// After this time without news, what speaks against the view counts: before, the news of it may be under way.
pub const DOUBT: Duration = Duration::from_secs(2);

/// Clocks of agent and server that differ by more are worth a warning.
pub const CLOCKS_APART: Duration = Duration::from_secs(30);

/// Servers of one trust domain that an agent may be told of.
pub const SERVERS: usize = 16;

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
