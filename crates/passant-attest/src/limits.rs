//! What is bounded in attestation, and why?

/// A file of `/proc/<pid>` that is read whole: `status`, `stat` and `cgroup` are a few kilobytes; a process in very many
/// groups may have a long `Groups` line.
pub const PROCESS_FILE_BYTES: u64 = 1 << 20;
/// Executables whose digests are remembered: more than the distinct workload binaries of a node.
pub const DIGESTS: usize = 1024;
/// Threads that read names and digests at the same time. One that hangs, in a name service that asks the network or on a
/// dead file system, is given up by its caller but goes on: there must not be more and more of them.
pub const UNIX_LOOKUPS: usize = 32;
/// Evidence or a challenge of any node attestor: a chain of six certificates with large RSA keys is 20 KiB, a service
/// account token 4 KiB.
pub const NODE_PAYLOAD_BYTES: usize = 64 * 1024;
/// A join token is one segment of a SPIFFE ID path; those that are generated have 36 characters.
pub const JOIN_TOKEN_BYTES: usize = 255;
/// Bytes of randomness in each x509pop nonce, as SPIRE's agents and servers expect.
pub const X509POP_NONCE_BYTES: usize = 32;
/// Intermediate certificates that a node may present; SPIRE's default.
pub const X509POP_INTERMEDIATES: usize = 4;
/// Largest RSA key, in bits, that is worked with: SPIRE's default, and the largest that webpki verifies. Larger keys
/// only cost the server time.
pub const X509POP_RSA_BITS: usize = 8192;
/// Smallest RSA key, in bits, that proves anything.
pub const RSA_BITS_MIN: usize = 2048;
