//! What is bounded, and why? Every queue, message, list and retry of the system that has a bound has it here.

use std::time::Duration;

/// SPIFFE-ID 2.3: implementations support IDs of up to 2048 bytes and issue none longer.
pub const SPIFFE_ID_BYTES: usize = 2048;
/// SPIFFE-ID 2.3: a trust domain name is at most 255 bytes.
pub const TRUST_DOMAIN_BYTES: usize = 255;
/// An attestor's name; the longest one known has 19 bytes.
pub const SELECTOR_KIND_BYTES: usize = 255;
/// Long enough for an image name with digest or a path of Linux's `PATH_MAX`.
pub const SELECTOR_VALUE_BYTES: usize = 8192;
/// SPIRE's bound for an entry's id.
pub const ENTRY_ID_BYTES: usize = 255;
/// More selectors than any attestor yields for one process; keeps matching and messages bounded.
pub const ENTRY_SELECTORS: usize = 256;
/// Bundles of this many foreign trust domains fit one Workload API message with room to spare.
pub const ENTRY_FEDERATES_WITH: usize = 256;
/// DNS names in one certificate; keeps a chain below what TLS peers accept.
pub const DNS_NAMES: usize = 256;
/// Workload API 8: hints of up to 1024 bytes are supported, longer ones are not.
pub const HINT_BYTES: usize = 1024;
/// Nobody needs a workload SVID of over a year; a slip of units (milliseconds for seconds) is caught by this.
pub const SVID_TTL_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// How far back `not_before` lies, for peers whose clock is behind (as in SPIRE).
pub const BACKDATE: Duration = Duration::from_secs(10);
