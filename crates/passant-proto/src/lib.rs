//! Map of the crate: the wire, and the only place where wire and domain convert.
//!
//! | module | what it holds |
//! |---|---|
//! | [`workload`] | the SPIFFE Workload API (a proto without a package) |
//! | [`types`] | `spire.api.types`: messages that the services below share |
//! | [`agent`], [`entry`], [`svid`], [`bundle`], [`trustdomain`], [`localauthority`], [`logger`], [`debug`] | `spire.api.server.*.v1`: messages, client and server |
//! | [`access`] | `passant.access.v1`: why a server lets a caller do something, or not |
//! | [`audit`] | `passant.audit.v1`: what is on a server's decision record, and whether it holds together |
//! | [`explain`] | `passant.explain.v1`: why a workload has an identity or none, as a server sees it |
//! | [`node`] | `passant.node.v1`: the same as an agent sees it |
//! | [`store`] | `passant.store.v1`: how operators back up a server |
//! | [`federation`] | `passant.federation.v1`: how the fetching of foreign bundles goes |
//! | [`import`] | `passant.import.v1`: how what another server of the trust domain attested moves here |
//! | [`sync`] | `passant.sync.v1`: how an agent hears at once of what concerns it, and has SVIDs minted on evidence |
//! | [`stop`] | `passant.stop.v1`: what takes effect now, and how far it has come |
//! | [`options`] | `passant.entry.v1`: entries with what Passant knows of them beyond SPIRE's fields |
//! | [`descriptors`] | descriptions of all services, for reflection |
//! | [`secret`], [`discovery`], [`envoy_core`], [`envoy_tls`], [`envoy_type`] | of Envoy's xDS API what secret discovery needs |
//! | [`rpc`] | `google.rpc.Status`, the form of error details |
//! | [`convert`] | wire to domain and back, one file per thing converted |
//! | [`status`] | refusal to gRPC status and back |
//! | [`goodbye`] | whether a call that failed was never looked at |
//! | [`lean_codec`] | how messages of `passant.sync.v1` are coded: as all others, in less memory |
//! | [`shared`] | a part of a message that goes out to thousands |
//!
//! All but the last five lines are generated from `proto/` by `cargo xtask codegen`. Their clients take any
//! channel; they do not connect by themselves.

pub mod convert;
pub mod descriptors;
mod generated;
pub mod goodbye;
pub mod lean_codec;
pub mod shared;
pub mod status;

pub use generated::{
    access, agent, audit, bundle, debug, discovery, entry, envoy_core, envoy_tls, envoy_type, explain,
    federation, import, localauthority, logger, node, options, rpc, secret, stop, store, svid, sync,
    trustdomain, types, workload,
};
