//! The issuer: who may have which identity, decided, recorded and signed.
//!
//! | question | file |
//! |---|---|
//! | what does the server know, and how does that change? | [`state`] |
//! | how does a change become durable and visible? | [`journal`], [`store`] |
//! | what was signed, for whom and why? | [`record`] |
//! | who is calling, and may they? | [`caller`] |
//! | how is an SVID issued? | [`issue`] |
//! | how does a node become an attested agent? | [`attest_node`] |
//! | how is a server configured? | [`config`] |
//! | which authorities sign, and how do they succeed each other? | [`authority`], [`keystore`] |

pub mod attest_node;
pub mod authority;
pub mod caller;
pub mod config;
mod encoding;
pub mod issue;
pub mod journal;
pub mod keystore;
pub mod limits;
mod private_dir;
pub mod record;
pub mod state;
pub mod store;
mod writer;
