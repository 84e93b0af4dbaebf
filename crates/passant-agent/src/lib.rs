//! The node agent: attests its node, keeps the SVIDs of its workloads fresh, and serves them.
//!
//! | question | file |
//! |---|---|
//! | what may an operator configure? | [`config`] |
//! | what may each workload see, and when does it hear of a change? | [`cache`] |
//! | which SVIDs must be minted or dropped now? | `plan` |
//! | which JWT-SVID does a workload get? | [`jwt_cache`] |
//! | what is wrong with this agent right now? | [`health`] |
//! | which selectors does a peer have? | `attest` |
//! | how do workloads get their SVIDs? | [`workload_api`] |
//! | what is bounded, and why? | [`limits`] |

#![expect(dead_code, reason = "the parts land one after the other; who calls them comes next")]

mod attest;
mod backoff;
pub mod cache;
pub mod config;
pub mod health;
pub mod jwt_cache;
pub mod limits;
mod plan;
mod trust;
pub mod workload_api;
