//! What is bounded in the server, and why? What server and agent share is in `passant_core::limits`.

use std::time::Duration;

/// Changes that wait for the journal; more callers wait in line, bounded by the calls that the server takes.
pub const JOURNAL_QUEUE: usize = 1024;
/// Changes made durable together. Past a hundred, one more adds to the latency of all and saves little.
pub const JOURNAL_BATCH: usize = 256;
/// Commits kept for readers that follow the journal; the one who is further behind reads all objects anew.
pub const JOURNAL_COMMITS_KEPT: u64 = 10_000;
/// Appends that wait for the one who follows the journal, which takes microseconds for each. Whoever is further behind is told
/// that anything may have changed.
pub const FEED_QUEUE: usize = 256;
/// Changes that these hold together: a bulk import of a few batches.
pub const FEED_CHANGES: usize = 20_000;
/// Objects pruned in one commit, so that others need not wait long behind it.
pub const PRUNE_CHANGES: usize = 1_000;
/// Bytes in one record of the store's journal, unless one change alone is larger. sled writes a leaf of up to 17 records at
/// once, and puts what is larger than 128 KiB in a file of its own, outside its log and what the log promises.
pub const STORE_RECORD_BYTES: usize = 6 * 1024;
/// sled's page cache, whose default of 1 GiB fills up. State is read once, at start; this is enough to write to, since what is
/// registered together stands together.
pub const STORE_CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// The pause before a store or a record that failed is opened again; doubled with each further failure.
pub const HEAL_FIRST: Duration = Duration::from_millis(200);
/// The longest such pause. Opening a large store costs seconds of work, and people who made room on a disk look on.
pub const HEAL_MOST: Duration = Duration::from_secs(10);
/// Groups of intents that wait for the decision record; more callers wait in line.
pub const RECORD_QUEUE: usize = 1024;
/// Messages written to the decision record with one sync.
pub const RECORD_BATCH: usize = 256;
/// Entries, bundles or relationships that one line of the decision record names; more make more lines. With the longest
/// SPIFFE IDs such a line has a megabyte.
pub const RECORD_ITEMS: usize = 500;
/// Bytes at the end of the decision record that may have reached the disk in any order when the power fails. More is seldom
/// written with one sync.
pub const RECORD_UNSYNCED: usize = 1024 * 1024;
/// Refusals that are kept while the decision record does not work.
pub const RECORD_REFUSALS_KEPT: usize = 1_000;
/// Refusals of one caller that go on record at once; then one in each [`REFUSALS_EVERY`]. The others are counted. This and
/// what follows is for denials, and once more for those who asked too often.
pub const REFUSALS_AT_ONCE: u32 = 20;
/// See [`REFUSALS_AT_ONCE`].
pub const REFUSALS_EVERY: Duration = Duration::from_secs(60);
/// Refusals of all callers together that go on record at once; then one in each [`ALL_REFUSALS_EVERY`]: some 25 MB a day
/// at most of either kind, so that who is refused on purpose does not push out what else is on record.
pub const ALL_REFUSALS_AT_ONCE: u32 = 500;
/// See [`ALL_REFUSALS_AT_ONCE`].
pub const ALL_REFUSALS_EVERY: Duration = Duration::from_secs(2);
/// Refusals of strangers, all together, that go on record at once; then one in each [`STRANGERS_REFUSALS_EVERY`].
pub const STRANGERS_REFUSALS_AT_ONCE: u32 = 10;
/// See [`STRANGERS_REFUSALS_AT_ONCE`].
pub const STRANGERS_REFUSALS_EVERY: Duration = Duration::from_secs(20);
/// Callers whose refusals are counted apart; beyond, all others share one count. Those are forgotten first who have all
/// their lines again, which after some minutes are all but a few hundred.
pub const REFUSED_CALLERS: usize = 4_096;
/// What the record says of why a call was refused, in bytes.
pub const REFUSAL_WHY: usize = 512;
/// What it says of the method, in bytes; the longest there is has half of it.
pub const REFUSAL_METHOD: usize = 160;
/// Readings of the decision record at once, one of each caller: each holds a segment in memory, and a thread. The last one is
/// for operators: holders of roles, who may let theirs last, do not keep them out.
pub const AUDITS: usize = 3;
/// One message of lines of the record, in bytes, unless one line alone is larger.
pub const AUDIT_PIECE: usize = 256 * 1024;
/// How long a reader of the record may take for one message.
pub const AUDIT_PIECE_WITHIN: Duration = Duration::from_secs(60);
/// The newest lines that may be asked for by their number; who wants more asks for all.
pub const AUDIT_NEWEST: usize = 100_000;
/// Descriptors for everything but connections that are accepted: the store, the decision record, keys, the runtime, fetches of
/// foreign bundles.
pub const FILES: u64 = 128;
/// Open TLS connections of agents: one needs one or two, so this is a fleet of ten thousand nodes.
pub const CONNECTIONS: usize = 20_000;
/// Open TLS connections that showed the X509-SVID of one agent: a few, and those that it has not noticed to be dead.
pub const CONNECTIONS_PER_AGENT: usize = 32;
/// Open TLS connections that showed another X509-SVID: administrators and servers below this one. Apart from agents, since
/// any workload of the trust domain may connect.
pub const WORKLOADS: usize = 1_024;
/// Open TLS connections without an X509-SVID. Apart from the others, so that strangers cannot keep agents out.
pub const STRANGERS: usize = 1_024;
/// How long a stranger's connection may stay: long enough for attestation with several challenges.
pub const STRANGER_LEASE: Duration = Duration::from_secs(60);
/// Handshakes in progress. Each costs a signature, so this bounds the burst after a restart.
pub const HANDSHAKES: usize = 256;
/// The part of them that one address may have: who begins handshakes and does not go on keeps a quarter.
pub const HANDSHAKES_PART: usize = 4;
/// Connections that wait for their handshakes: a fleet of ten thousand agents, after a restart. Beyond, and beyond the descriptors
/// that agents do not use, the newest of the address with the most waiting is turned away.
pub const HANDSHAKES_WAITING: usize = 12_000;
/// How long a connection waits for its handshake to begin. Whoever has not given up by then is about to.
pub const HANDSHAKE_WAITS: Duration = Duration::from_secs(30);
/// Connections that wait at the kernel to be accepted, as far as it allows.
pub const BACKLOG: u32 = 4_096;
/// From its beginning to the end of the handshake.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// From the end of the handshake to the client's first 24 bytes.
pub const PREFACE_WITHIN: Duration = Duration::from_secs(10);
/// Connections on the operator socket.
pub const LOCAL_CONNECTIONS: usize = 256;
/// The part of them that one user may have who is neither root nor the server's.
pub const LOCAL_CONNECTIONS_PART: usize = 4;
/// Accepted connections waiting for HTTP/2 to take them.
pub const ACCEPTED: usize = 64;
/// A connection is asked to go away after this, as SPIRE does: over TLS so that clients follow a changed address, on the
/// operator socket so that the groups of its user are looked up anew. Streams in progress finish first. Not those of agents,
/// which stay as long as the X509-SVID that they showed.
pub const CONNECTION_AGE: Duration = Duration::from_secs(180);
/// When another TLS connection, or one of the holder of a role on the operator socket, ends in any case: its age, and the longest
/// stream that began just before. A request that never comes to its end would else keep it open for good.
pub const CONNECTION_LEASE: Duration = Duration::from_secs(330);
/// A silent connection is asked whether it lives.
pub const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
/// The same of agents: watches say something oftener, which does not tell whether it arrives.
pub const AGENTS_KEEPALIVE_EVERY: Duration = Duration::from_secs(60);
/// How long the answer may take.
pub const KEEPALIVE_WITHIN: Duration = Duration::from_secs(20);
/// RPCs in progress on one connection. An agent has a handful.
pub const STREAMS: u32 = 128;
/// HTTP/2 windows of an agent's connection, in bytes. What calls hold that wait for their turn is bounded by this and the
/// number of connections; a megabyte takes a few round trips.
pub const AGENTS_WINDOW: u32 = 256 * 1024;
/// Calls of agents that are worked on, of all together: each holds a request and an answer in memory. The configuration may
/// say otherwise of this and of all other bounds on calls and rates.
pub const CALLS: usize = 2_048;
/// Those of one agent, over all its connections; its others wait. One call takes milliseconds, so that this is no brake; it
/// is what an agent can make the server hold that asks for lists and does not read them.
pub const CALLS_PER_AGENT: usize = 16;
/// Those of them in which it renews its own X509-SVID: it has one. Few, so that it takes very many agents to hold all places
/// that there are for it.
pub const CALLS_PER_AGENT_TO_RENEW: usize = 2;
/// Those in which it asks for X509-SVIDs of its workloads: it has one batch under way.
pub const CALLS_PER_AGENT_TO_MINT: usize = 4;
/// How long a renewal of an agent's own X509-SVID may take to come, and its answer to leave: some kilobytes. Less than calls
/// wait, so that whoever waits for the place of one that does not go on has it before it is refused.
pub const RENEWAL_WITHIN: Duration = Duration::from_secs(5);
/// The same for a batch of X509-SVIDs: a megabyte at most from agents, who ask for less at once after a failure.
pub const MINT_WITHIN: Duration = Duration::from_secs(8);
/// The part of these calls, and of the signatures and lists of all together, that stays free for what attested agents renew,
/// in percent; a fifth of it is for the agents' own X509-SVIDs alone.
pub const RESERVED_FOR_RENEWALS: u32 = 25;
/// Bytes of requests that the calls of one agent hold together: a batch of a thousand CSRs with RSA keys takes two million,
/// and one agent has one batch under way.
pub const BYTES_PER_AGENT: usize = 16 * 1024 * 1024;
/// The part of them for batches of X509-SVIDs.
pub const BYTES_PER_AGENT_TO_MINT: usize = BYTES_PER_AGENT / 2;
/// The part of them for renewals of the agent's own X509-SVID: a few of the largest requests.
pub const BYTES_PER_AGENT_TO_RENEW: usize = 4 * STRANGERS_MESSAGE;
/// Calls of all others over the network that are worked on.
pub const STRANGERS_CALLS: usize = 256;
/// Those from one address, or of one other X509-SVID. Attestations are such calls: of a fleet behind one address the others
/// wait, and each takes milliseconds.
pub const CALLS_PER_ADDRESS: usize = 16;
/// Bytes of requests that these hold together: the largest evidence for each.
pub const BYTES_PER_ADDRESS: usize = 4 * 1024 * 1024;
/// Calls of all users of the operator socket that are worked on.
pub const OPERATORS_CALLS: usize = 256;
/// Those of one user.
pub const CALLS_PER_OPERATOR: usize = 128;
/// Bytes of requests that these hold together: sixteen of the largest batches.
pub const BYTES_PER_OPERATOR: usize = 64 * 1024 * 1024;
/// How long a call waits for its turn before it is refused. Agents give up after 30 seconds.
pub const CALL_WAITS: Duration = Duration::from_secs(10);
/// The most that one waits for its place which renews: two and a half times as long as others, so that ten thousand agents that renew at once
/// are all served in their order. It leaves the work itself five of the seconds after which agents give up. What waits holds
/// no more by waiting longer: its connection's window.
pub const RENEWALS_WAIT_MOST: Duration = Duration::from_secs(25);
/// What a call that has its place waits in any case for what it still needs, as its signatures.
pub const WORK_WAITS: Duration = Duration::from_secs(2);
/// Streams that a client has opened and reset before they were looked at; the one more ends the connection. An honest
/// client resets a few when it stops.
pub const RESET_BEFORE_ACCEPT: usize = 20;
/// Streams of one connection that were reset for breaking the protocol; the one more ends the connection.
pub const RESET_FOR_ERRORS: usize = 64;
/// The same on a connection that is not an agent's: an attestation and a bundle. A request in progress is held in memory as
/// far as it came, so that this, with the bound on connections, bounds what strangers can make the server hold.
pub const STRANGERS_STREAMS: u32 = 4;
/// HTTP/2 windows of such a connection, in bytes: one request.
pub const STRANGERS_WINDOW: u32 = 256 * 1024;
/// Request headers, in bytes. gRPC's own need a few hundred.
pub const HEADER_LIST: u32 = 16 * 1024;
/// How long a graceful stop waits for RPCs in progress.
pub const STOP_WITHIN: Duration = Duration::from_secs(10);
/// Between attempts to accept when the machine is out of file descriptors.
pub const ACCEPT_RETRY: Duration = Duration::from_millis(200);
/// A gRPC message in either direction, in bytes: what gRPC clients accept by default.
pub const MESSAGE: usize = 4 * 1024 * 1024;
/// What one response may weigh, leaving room for the fields around a list.
pub const RESPONSE: usize = MESSAGE - 64 * 1024;
/// A request to a service that strangers may call, in bytes. Evidence is the largest thing in one.
pub const STRANGERS_MESSAGE: usize = 256 * 1024;
/// Items of one batch request. SPIRE's clients send at most 500.
pub const BATCH: usize = 10_000;
/// Items of one batch of X509-SVIDs: each costs a signature.
pub const SVID_BATCH: usize = 1_000;
/// What every item of a batch may take of the answer, in bytes, whatever else is in it: an ID and a status.
pub const BATCH_ITEM: usize = 320;
/// Entries or revisions in one message of SyncAuthorizedEntries; SPIRE's agents take the first page's length for it.
pub const SYNC_PAGE: usize = 500;
/// How long one SyncAuthorizedEntries may take. SPIRE's agents give up after 30 seconds.
pub const SYNC_WITHIN: Duration = Duration::from_secs(120);
/// A watch of an agent says at least so often that it lives, up to a fifth oftener. Each wakes a task on both sides: of ten
/// thousand agents 450 a second. Agents count a view as confirmed for 30 s, and take the server for dead after three times
/// as long as this.
pub const WATCH_HEARTBEAT: Duration = Duration::from_secs(25);
/// Heartbeats go out at multiples of this, which divides a second: ten thousand agents then wake the server four times a second.
pub const WATCH_TICK: Duration = Duration::from_millis(250);
/// A heartbeat that is due waits for the hub, which takes milliseconds to tell of a commit, and looks again after so long.
pub const WATCH_CONFIRMS: Duration = Duration::from_secs(1);
/// From the beginning of a watch to its hello, which agents send with it.
pub const WATCH_HELLO_WITHIN: Duration = Duration::from_secs(10);
/// From the last part of an update to its acknowledgement, and between two parts. Agents answer in milliseconds; one that does
/// not shows its workloads what is no longer true, and is better off with a new connection.
pub const WATCH_ACK_WITHIN: Duration = Duration::from_secs(60);
/// One part of an update, in bytes, unless one bundle or entry alone is larger: it is what HTTP/2 holds of an agent that does
/// not read.
pub const WATCH_PART: usize = 64 * 1024;
/// Entries that are remembered one by one for an agent that has not been told yet; with more, all of its entries are compared.
pub const WATCH_ENTRIES: usize = 256;
/// Requests on one watch at once that no update asked for, and in each second after: reports, mostly. Whoever sends more floods.
pub const WATCH_REQUESTS: (u32, u32) = (20, 1);
/// Times that one watch may ask for a snapshot: one mends what was lost, and more than a few mend nothing.
pub const WATCH_RESYNCS: u32 = 4;
/// Why an agent wants a snapshot, in bytes; for the log.
pub const WATCH_REASON: usize = 256;
/// A lineage as agents name it, in bytes; ours have 32.
pub const WATCH_LINEAGE: usize = 64;
/// Entries that are remembered to have been sent to agents that are gone, of all together, so that they need no snapshot when
/// they come back: 40 MB at most.
pub const WATCH_KEPT: usize = 1_000_000;
/// Who waits for a change to come to agents looks so often at how far it has come, at most.
pub const ROLLOUT_LOOKS: Duration = Duration::from_millis(5);
/// How long ago a process may have been attested for which an SVID is minted. Agents attest anew every few seconds as long as a
/// process is connected.
pub const EVIDENCE_AGE: Duration = Duration::from_secs(600);
/// How far an agent's clock may be ahead when it says when it attested a process.
pub const EVIDENCE_AHEAD: Duration = Duration::from_secs(60);
/// Attestations that one address may begin at once, and in each second after: a fleet behind one address comes in within
/// minutes, and who guesses join tokens is slowed down.
pub const ATTESTATIONS_PER_ADDRESS: (u32, u32) = (500, 50);
/// Those that may begin in all: the largest fleet at once, and then as many as a few cores can verify.
pub const ATTESTATIONS: (u32, u32) = (20_000, 1_000);
/// Signatures for one agent, X509-SVIDs and JWT-SVIDs together: a node with many thousands of entries has them all at once,
/// and a quarter of a million, renewed at half of an hour, needs 140 a second. Not more than is of use: each signature is on
/// record, and an agent that has one made after another pushes out what else is there.
pub const SIGNATURES_PER_AGENT: (u32, u32) = (20_000, 200);
/// Signatures for all: ten for each of ten thousand agents at once, and then about what a few cores can sign.
pub const SIGNATURES: (u32, u32) = (100_000, 10_000);
/// SVIDs that one administrator, user or holder of a role may mint. Agents mint what is wanted in masses.
pub const MINTS_PER_CALLER: (u32, u32) = (1_000, 100);
/// Lists, counts, synchronizations and explanations of one caller: a hundred thousand entries in small pages at once. An
/// agent synchronizes every few seconds.
pub const LISTS_PER_CALLER: (u32, u32) = (2_000, 200);
/// Those of all: twenty thousand agents that synchronize every five seconds.
pub const LISTS: (u32, u32) = (50_000, 5_000);
/// Callers whose recent use is remembered in one table; what is new beyond counts as one caller. Whoever has used nothing
/// for a while is not in it, so that these are far more than there are; each takes some hundred bytes.
pub const CALLERS: usize = 32_768;
/// When to ask again at the soonest for what becomes free at nobody knows what time, as a place among calls does.
pub const ASK_AGAIN: Duration = Duration::from_secs(1);
/// From the beginning of AttestAgent to its first message. Evidence is at hand before the call is made.
pub const EVIDENCE_WITHIN: Duration = Duration::from_secs(10);
/// A whole AttestAgent, from the first message to the last. Stays below the lease of a stranger's connection.
pub const ATTEST_STREAM_WITHIN: Duration = Duration::from_secs(50);
/// Evidence of a node, or its answer to a challenge, in bytes. Certificate chains and signed documents have some thousands.
pub const EVIDENCE: usize = 128 * 1024;
/// Challenges of one attestation. The known methods need one or two.
pub const CHALLENGES: usize = 8;
/// Federation relationships. Each is asked for its bundle again and again, and the largest federations known have dozens.
pub const RELATIONSHIPS: usize = 1_000;
/// Foreign bundles that are fetched at once. A fetch takes a fraction of a second, or half a minute where nobody answers:
/// so many may answer nobody before others have to wait.
pub const FETCHES: usize = 64;
/// A bundle that is fetched, in bytes of its document. It goes into the journal whenever it changes, and its endpoint belongs
/// to somebody else; the bundles of large PKIs have some dozens of authorities and take a tenth.
pub const FETCHED_DOCUMENT: usize = 512 * 1024;
/// One fetch of a bundle, with its redirects, from resolving the name to the last byte.
pub const FETCH_WITHIN: Duration = Duration::from_secs(30);
/// A TCP connection to one address of a bundle endpoint, so that a dead one leaves time for the next.
pub const ENDPOINT_CONNECT_WITHIN: Duration = Duration::from_secs(8);
/// Addresses of one bundle endpoint that are tried.
pub const ENDPOINT_ADDRESSES: usize = 8;
/// Redirects of one fetch. One or two are in use; a loop ends here.
pub const ENDPOINT_REDIRECTS: usize = 5;
/// What is read of a bundle endpoint's answer before its body, in bytes.
pub const ENDPOINT_HEADERS: usize = 64 * 1024;
/// Between fetches of a bundle whose owner hints at less: what agents need to synchronize twice.
pub const POLL_LEAST: Duration = Duration::from_secs(10);
/// Between fetches of a bundle whose owner hints at more: by then a key that was taken out of it is believed no longer.
pub const POLL_MOST: Duration = Duration::from_secs(24 * 60 * 60);
/// Between fetches of a bundle without a hint (SPIFFE Federation 4.1).
pub const POLL_DEFAULT: Duration = Duration::from_secs(300);
/// Between attempts to get the first bundle.
pub const POLL_WITHOUT: Duration = Duration::from_secs(60);
/// How long an endpoint is left alone that fails again and again, unless its bundle's hint is longer.
pub const POLL_PATIENCE: Duration = Duration::from_secs(300);
/// Operators' demands for a bundle that wait to be looked at.
pub const REFRESHES_WAITING: usize = 64;
/// A request that anybody may make beside attestation: GetBundle, with nothing but a mask.
pub const ANYBODYS_MESSAGE: usize = 4 * 1024;
/// Messages of one stream that wait for a slow reader.
pub const STREAM_WAITING: usize = 2;
/// How long a join token lives that the holder of a role has made: what it may lead to was looked at when it was made.
pub const HOLDERS_TOKEN: Duration = Duration::from_secs(60 * 60);
/// The version that an agent reports, in bytes, as in SPIRE.
pub const AGENT_VERSION: usize = 255;
/// One message of a backup, in bytes. Larger ones would not be faster, and the 4 MiB of gRPC are far.
pub const BACKUP_PIECE: usize = 256 * 1024;
/// How long a reader of a backup may take for one message.
pub const BACKUP_PIECE_WITHIN: Duration = Duration::from_secs(60);
/// Backups that may be sent at once. Each holds one state in memory, which costs what has changed since.
pub const BACKUPS: usize = 2;
/// One line of a backup, in bytes: a bundle at its bounds, in base64.
pub const BACKUP_LINE: u64 = 128 << 20;
/// Stops. Each is one decision of an operator in an incident; more are a fault of whoever makes them.
pub const STOPS: usize = 10_000;
/// Stops of processes of one agent: it is told of all of them at once. Whoever needs more means the agent.
pub const STOPS_OF_AGENT: usize = 1_000;
/// Stops in one answer: for each, all nodes are looked at for those that it concerns.
pub const STOPS_PAGE: usize = 50;
/// How long a caller may wait for agents to apply what was changed.
pub const ROLLOUT_WITHIN: Duration = Duration::from_secs(60);
/// Agents of one rollout that are named; the others are counted.
pub const ROLLOUT_NAMED: usize = 1_000;
/// Entries that one rollout may be asked of.
pub const ROLLOUT_ENTRIES: usize = 1_000;
/// Explanations that may be found at once: each may read all entries, on a thread of its own.
pub const EXPLANATIONS: usize = 1;
/// Entries of one SPIFFE ID, or that match the same selectors, of which one explanation finds out what stands in the way. Those
/// of the node that is asked about are looked at first.
pub const EXPLAINED_ENTRIES: usize = 100;
/// Entries that one explanation names.
pub const EXPLAINED_CANDIDATES: usize = 10;
/// Causes that one explanation names of an entry.
pub const EXPLAINED_CAUSES: usize = 10;
/// Ways up from an entry of which one explanation tells where they end: a pool of nodes may have thousands.
pub const EXPLAINED_WAYS: usize = 5;
/// SPIFFE IDs above one entry that are looked at for one explanation.
pub const EXPLAINED_PARENTS: usize = 10_000;
/// Objects written with one sync while state is restored.
pub const RESTORE_BATCH: usize = 1_000;
/// Authorities of one kind, the prepared one aside, beyond which operators may prepare no other: every agent and workload
/// holds them all. Rotation alone keeps four at most.
pub const AUTHORITIES: usize = 32;
/// Entries below a SPIFFE ID that are looked at before the holder of a role may give it out; with more it is refused.
pub const ENTRIES_BELOW: usize = 10_000;
/// Entries that are looked at for all items of one request of the holder of a role; the items after that are refused. The
/// journal's writer looks, in some tenths of a second, while everybody else waits.
pub const ENTRIES_LOOKED_AT: usize = 20 * ENTRIES_BELOW;
