//! The issuer: who may have which identity, decided, recorded and signed.
//!
//! | question | file |
//! |---|---|
//! | how is a server started, and stopped? | [`server`] |
//! | how is it configured? | [`config`] |
//! | what does the server know, and how does that change? | [`state`], `command`, `query` |
//! | how does a change become durable and visible? | [`journal`], [`store`] |
//! | how is the state carried away, brought back, and looked at? | [`backup`], [`restore`], [`inspect`] |
//! | what was signed, for whom and why? | [`record`] |
//! | who is calling, and may they? | [`caller`], `api/authorize.rs` |
//! | what do roles allow, and why? | [`access`] |
//! | why has a workload no identity? | `explain` |
//! | how much may each caller ask for? | `quota`, `serve/under_way.rs`, [`limits`] |
//! | how is an SVID issued? | [`issue`] |
//! | how does a node become an attested agent? | [`attest_node`] |
//! | which authorities sign, and how do they succeed each other? | [`authority`], [`keystore`] |
//! | when are bundles of foreign trust domains fetched, and how? | `federation` |
//! | how do agents hear of changes at once, and who has applied them? | [`sync`], `api/sync.rs` |
//! | how are the services answered? | `api` |
//! | what is counted and timed? | [`metrics`] |
//! | how do connections come in, and how does the server prove itself? | `serve`, [`tls`], `rotate` |

pub mod access;
mod api;
pub mod attest_node;
pub mod authority;
pub mod backup;
pub mod caller;
mod command;
pub mod config;
mod encoding;
mod explain;
mod federation;
pub mod inspect;
pub mod issue;
pub mod journal;
pub mod keystore;
pub mod limits;
pub mod metrics;
mod query;
mod quota;
pub mod record;
pub mod restore;
#[cfg(test)]
mod rig;
mod rotate;
pub mod serve;
pub mod server;
mod soundness;
pub mod state;
pub mod store;
pub mod sync;
pub mod tls;
pub(crate) mod vitals;
mod writer;

pub use config::Config;
pub use server::{Running, Server, StartError, check};
