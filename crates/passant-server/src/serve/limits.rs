//! How much may the world ask of the server's ports at once?

use std::time::Duration;

/// Open TLS connections that showed an X509-SVID: an agent needs one or two, so this is a fleet of ten thousand nodes.
pub(crate) const CONNECTIONS: usize = 20_000;

/// Open TLS connections without one. Apart from the others, so that strangers cannot keep agents out.
pub(crate) const STRANGERS: usize = 1_024;

/// How long a stranger's connection may stay: long enough for attestation with several challenges.
pub(crate) const STRANGER_LEASE: Duration = Duration::from_secs(60);

/// Handshakes in progress. Each costs a signature, so this bounds the burst after a restart.
pub(crate) const HANDSHAKES: usize = 256;

/// From accept to the end of the handshake, waiting for a handshake slot included.
pub(crate) const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// From the end of the handshake to the client's first 24 bytes.
pub(crate) const PREFACE_WITHIN: Duration = Duration::from_secs(10);

/// Connections on the operator socket.
pub(crate) const LOCAL_CONNECTIONS: usize = 256;

/// Accepted connections waiting for HTTP/2 to take them.
pub(crate) const ACCEPTED: usize = 64;

/// A TLS connection is asked to go away after this, as SPIRE does, so that agents follow a changed address. Streams in
/// progress finish first.
pub(crate) const CONNECTION_AGE: Duration = Duration::from_secs(180);

/// A silent connection is asked whether it lives.
pub(crate) const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);

/// How long the answer may take.
pub(crate) const KEEPALIVE_WITHIN: Duration = Duration::from_secs(20);

/// RPCs in progress on one connection. An agent has a handful.
pub(crate) const STREAMS: u32 = 128;

/// Request headers, in bytes. gRPC's own need a few hundred.
pub(crate) const HEADER_LIST: u32 = 16 * 1024;

/// How long a graceful stop waits for RPCs in progress.
pub(crate) const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Between attempts to accept when the machine is out of file descriptors.
pub(crate) const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// A gRPC message in either direction, in bytes: what gRPC clients accept by default.
pub(crate) const MESSAGE: usize = 4 * 1024 * 1024;
