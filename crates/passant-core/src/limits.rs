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
/// One audience value: as long as the longest SPIFFE ID; services are named by one, or by a URL.
pub const JWT_AUDIENCE_BYTES: usize = 2048;
/// Nobody needs a workload SVID of over a year; a slip of units (milliseconds for seconds) is caught by this.
pub const SVID_TTL_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// How far back `not_before` lies, for peers whose clock is behind (as in SPIRE).
pub const BACKDATE: Duration = Duration::from_secs(10);
/// RFC 5280 4.1.2.2: a serial number is at most 20 bytes.
pub const SERIAL_BYTES: usize = 20;
/// One certificate; webpki reads none that is longer, and it holds the longest list of DNS names.
pub const CERTIFICATE_BYTES: usize = 64 * 1024 - 1;
/// Certificates in one chain, leaf included: what rust-spiffe takes, and far deeper than any real hierarchy.
pub const CHAIN_CERTIFICATES: usize = 16;
/// One CSR; it may ask for as many names as a certificate holds.
pub const CSR_BYTES: usize = 64 * 1024;
/// A DER public key: RSA of 8192 bits takes about 1100 bytes.
pub const SPKI_BYTES: usize = 2048;
/// RFC 7518 3.3: RSA keys of less than 2048 bits are not used.
pub const RSA_MODULUS_BITS_MIN: usize = 2048;
/// What ring verifies with; larger keys make every check slow.
pub const RSA_MODULUS_BITS_MAX: usize = 8192;
/// What SPIRE agents are configured with at most; larger ones slow down every handshake of the workload.
pub const CSR_RSA_MODULUS_BITS_MAX: usize = 4096;
/// A bundle document of 1000 authorities stays well below this.
pub const BUNDLE_DOCUMENT_BYTES: usize = 4 * 1024 * 1024;
/// Authorities of one kind in one bundle; rotation keeps two or three, a large upstream PKI some dozens.
pub const BUNDLE_AUTHORITIES: usize = 1000;
/// A JWT authority's key ID; SPIRE's have 32 bytes.
pub const KEY_ID_BYTES: usize = 1024;
/// The URL of a bundle endpoint: as long as any client or server is sure to take.
pub const ENDPOINT_URL_BYTES: usize = 2048;
/// One JWT-SVID: rust-spiffe's bound for a segment, and more than HTTP servers take in a header.
pub const JWT_SVID_BYTES: usize = 64 * 1024;
/// Audiences in one JWT-SVID: rust-spiffe takes no more, and one is what JWT-SVID 3.2 recommends.
pub const JWT_AUDIENCES: usize = 32;
/// Clocks of issuer and validator may differ by this much before a token that is not valid yet is refused.
pub const JWT_CLOCK_SKEW: Duration = Duration::from_secs(60);
/// The text of a gRPC status. With its copy in the details (base64) it stays below the 8 KiB of headers that every peer
/// takes.
pub const STATUS_MESSAGE_BYTES: usize = 3072;
/// The longest time to ask again that is said or believed: whoever errs, or means ill, keeps nobody away for longer.
pub const RETRY_HINT: Duration = Duration::from_secs(60 * 60);

/// The text of an instance: a boot ID of 36 bytes and two numbers take 67.
pub const INSTANCE_BYTES: usize = 128;

/// Selectors of one process, as evidence names them: of all attestors together, and far more than they find.
pub const EVIDENCE_SELECTORS: usize = 4 * ENTRY_SELECTORS;

/// Workload attestors that found out something about one process.
pub const EVIDENCE_ATTESTORS: usize = 32;

/// Why something was stopped, in bytes: a sentence and a link.
pub const STOP_REASON_BYTES: usize = 512;
