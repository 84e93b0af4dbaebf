//! What is bounded in attestation, and why?

use std::time::Duration;

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
/// Lines of a `cgroup` file: one for each hierarchy. Kernels have about fifteen controllers; named hierarchies are few.
pub const CGROUP_LINES: usize = 64;
/// Selectors of one container. More than entries may ask for, and half of what evidence for a server may hold.
pub const CONTAINER_SELECTORS: usize = 512;
/// How long a container engine has for an answer: it answers in milliseconds, or hangs. Less than the time that attestors
/// have, so that the cause is told.
pub const ENGINE_ANSWER: Duration = Duration::from_secs(5);
/// Questions to container engines at the same time.
pub const ENGINE_CALLS: usize = 16;
/// Longest answer of a container engine. What it says of one container is some ten kilobytes.
pub const ENGINE_ANSWER_BYTES: usize = 1 << 20;
/// Longest head of one.
pub const ENGINE_HEADER_BYTES: usize = 64 * 1024;
/// So much is repeated of what an engine says when it refuses.
pub const ENGINE_MESSAGE_CHARS: usize = 200;
/// How long systemd has for each answer.
pub const SYSTEMD_ANSWER: Duration = Duration::from_secs(5);
/// Questions to systemd at the same time.
pub const SYSTEMD_CALLS: usize = 16;
