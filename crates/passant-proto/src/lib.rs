//! Map of the crate: the wire, and the only place where wire and domain convert.
//!
//! | module | what it holds |
//! |---|---|
//! | [`workload`] | the SPIFFE Workload API (a proto without a package) |
//! | [`types`] | `spire.api.types`: messages that the services below share |
//! | [`agent`], [`entry`], [`svid`], [`bundle`] | `spire.api.server.*.v1`: messages, client and server |
//! | [`rpc`] | `google.rpc.Status`, the form of error details |
//!
//! The generated modules come from `proto/` by `cargo xtask codegen`. Their clients take any
//! channel; they do not connect by themselves.

mod generated;

pub use generated::{agent, bundle, entry, rpc, svid, types, workload};
