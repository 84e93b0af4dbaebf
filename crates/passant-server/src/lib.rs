//! The issuer: who may have which identity, decided, recorded and signed.
//!
//! | question | file |
//! |---|---|
//! | what does the server know, and how does that change? | [`state`] |
//! | how does a change become durable and visible? | [`journal`], [`store`] |
//! | what was signed, for whom and why? | [`record`] |
//! | where do the private keys of authorities rest? | [`keystore`] |

mod encoding;
pub mod journal;
pub mod keystore;
pub mod limits;
mod private_dir;
pub mod record;
pub mod state;
pub mod store;
mod writer;
