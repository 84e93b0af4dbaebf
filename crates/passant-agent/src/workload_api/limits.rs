//! What does the Workload API bound, and why is each bound what it is?

use std::time::Duration;

/// HTTP/2 frames of one header block that are held until it is complete. A request of this API has a few hundred bytes
/// of headers; h2 refuses more than 16 KiB of them, decoded, and gets to see what is longer than this as it came.
pub(crate) const HEADER_BLOCK_BYTES: usize = 64 * 1024;

/// Decoded headers of one request.
pub(crate) const HEADER_LIST_BYTES: u32 = 16 * 1024;

/// One request message: the largest holds a JWT-SVID to be validated.
pub(crate) const REQUEST_BYTES: usize = 128 * 1024;

/// One request for secrets. An Envoy names all its extensions in the first of a stream, and in each if it is so configured;
/// its operator may add what metadata he likes.
pub(crate) const SECRET_REQUEST_BYTES: usize = 1024 * 1024;

/// Names of secrets in one request; an Envoy asks for one on each stream.
pub(crate) const SECRET_NAMES: usize = 256;

/// One name of a secret: the longest SPIFFE ID.
pub(crate) const SECRET_NAME_BYTES: usize = 2048;

/// Names of secrets that a line of the log or a refusal shows: they travel in a header.
pub(crate) const SECRET_NAMES_SHOWN: usize = 4;

/// Characters of a client's reason for rejecting its secrets that the log shows.
pub(crate) const SECRET_ERROR_SHOWN: usize = 256;

/// HTTP/2 windows of a connection, in bytes: what of a request is held before anybody reads it. Most requests are empty; the
/// largest, a token to be validated, comes in two parts.
pub(crate) const WINDOW: u32 = 64 * 1024;

/// Bytes of requests that the calls of one user hold together: the largest request, for sixty processes at the same moment.
pub(crate) const REQUEST_BYTES_PER_USER: usize = 8 * 1024 * 1024;

/// Connections of one user. On Kubernetes a node's hundred pods may all run as one user, with a few connections each.
pub(crate) const CONNECTIONS_PER_USER: usize = 1024;

/// All connections. No four users can use up what the others need; each one costs a socket and a pidfd. Where the system
/// allows fewer descriptors, there are fewer connections, of each user and in all.
pub(crate) const CONNECTIONS: usize = (USERS - 1) * CONNECTIONS_PER_USER + 1024;

/// Users that it takes to use up all connections.
pub(crate) const USERS: usize = 5;

/// Descriptors for everything but connections of workloads: attestations under way, which read files, the connection to the
/// server, the data directory, the runtime.
pub(crate) const FILES: u64 = 256;

/// From the accept to the client's first 24 bytes. A process that says nothing keeps no place.
pub(crate) const PREFACE: Duration = Duration::from_secs(10);

/// Streams that a client has opened and reset before they were looked at; the one more ends the connection. An honest
/// client resets a few when it stops.
pub(crate) const RESET_BEFORE_ACCEPT: usize = 20;

/// Streams of one connection that were reset for breaking the protocol; the one more ends the connection.
pub(crate) const RESET_FOR_ERRORS: usize = 64;

/// JWT-SVIDs that the server is asked for by one process, at once and then in each second: those that are cached are not
/// counted. Whoever asks for ever new audiences would make agent and server sign without end.
pub(crate) const NEW_JWTS: (u32, u32) = (500, 100);

/// The same of all processes of one user.
pub(crate) const NEW_JWTS_PER_USER: (u32, u32) = (1000, 200);

/// Calls of one user under way, streams included: four for each connection.
pub(crate) const CALLS_PER_USER: usize = 4 * CONNECTIONS_PER_USER;

/// All calls under way.
pub(crate) const CALLS: usize = 4 * CONNECTIONS;

/// Streams on one connection, as most HTTP/2 servers have it.
pub(crate) const STREAMS_PER_CONNECTION: u32 = 100;

/// The peers that are attested at the same time; the others wait.
pub(crate) const ATTESTATIONS: usize = 64;

/// Those of one user: a quarter of the lookups that the unix attestor makes at once, so that executables which take long
/// to hash delay only their owner.
pub(crate) const ATTESTATIONS_PER_USER: usize = 8;

/// One attestor's answer about one peer.
pub(crate) const ATTESTOR: Duration = Duration::from_secs(10);

/// What the peer of an open stream is, is looked at again this often.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Calls on one connection that come within this time share one attestation. Who the peer is, is read for each.
pub(crate) const SAME_LOOK: Duration = Duration::from_secs(1);

/// How long a call waits for its first SVIDs while they are being minted, before it is told to come again. Well below
/// the time limits of clients, well above one mint.
pub(crate) const FIRST_ANSWER: Duration = Duration::from_secs(3);

/// The pause after a failed accept, so that a process without free descriptors does not spin.
pub(crate) const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Accepted connections that wait for the HTTP/2 server.
pub(crate) const ACCEPTED: usize = 16;
