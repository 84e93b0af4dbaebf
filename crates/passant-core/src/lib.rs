//! The domain of Passant, pure: SPIFFE types, registration entries, matching, lifetimes and the seams.
//!
//! Nothing here does I/O, waits, reads a clock or draws a random number: time and randomness are asked of the
//! [`host::Host`] that `main` builds. Where to look:
//!
//! | question | file |
//! |---|---|
//! | what is a valid SPIFFE ID, trust domain, selector? | [`spiffe_id`], [`trust_domain`], [`selector`] |
//! | what does a registration entry hold, and which entries fit? | [`entry`], [`matching`], [`authorized`] |
//! | what does an agent know of the process it asks for; what may be stopped? | [`evidence`], [`stop`] |
//! | how are millions of entries held in little memory? | [`texts`] |
//! | do two sets of entries agree? | [`view_digest`] |
//! | when does a thing end, when is it renewed? | [`time`], [`lifetime`] |
//! | what is a valid X509-SVID, JWT-SVID, CSR, serial number? | [`x509_svid`], [`jwt_svid`], [`csr`], [`serial`] |
//! | how is JSON read that others signed or sent, how are DER and PEM written? | [`strict_json`], [`der`], [`pem_text`] |
//! | what verifies them, and how is that published? | [`bundle`], [`bundle_document`], [`jwk`] |
//! | from where do bundles of foreign trust domains come? | [`federation`] |
//! | how is a refusal told to a caller? | [`refusal`] |
//! | why has a workload no identity? | [`explanation`] |
//! | what is bounded, and why? | [`limits`] |
//! | what must be asked of the machine? | [`host`], [`keys`] |

pub mod authorized;
pub mod bundle;
pub mod bundle_document;
pub mod csr;
pub mod der;
pub mod entry;
pub mod evidence;
pub mod explanation;
pub mod federation;
pub mod host;
pub mod jwk;
pub mod jwt_svid;
pub mod keys;
pub mod lifetime;
pub mod limits;
pub mod matching;
pub mod pem_text;
pub mod refusal;
pub mod secret;
pub mod selector;
pub mod serial;
pub mod spiffe_id;
pub mod stop;
pub mod strict_json;
mod text;
pub mod texts;
pub mod time;
pub mod trust_domain;
pub mod view_digest;
pub mod x509_svid;

#[cfg(test)]
mod test_ca;

pub use bundle::{Bundle, JwtAuthority, X509Authority};
pub use csr::Csr;
pub use entry::{AuthorizedEntry, Entry, EntryDraft, EntryId, EntryOptions, KeyScope};
pub use evidence::Evidence;
pub use federation::{EndpointProfile, EndpointUrl, FederationRelationship};
pub use host::Host;
pub use jwt_svid::{JwtClaims, JwtSvid};
pub use refusal::{AgentFault, Reason, Refusal};
pub use secret::Secret;
pub use selector::{Selector, Selectors};
pub use serial::Serial;
pub use spiffe_id::SpiffeId;
pub use stop::{Instance, Stop, StopReason, StopTarget};
pub use time::UnixTime;
pub use trust_domain::TrustDomain;
pub use x509_svid::X509Svid;
