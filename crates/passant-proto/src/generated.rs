//! Which generated file is which module? `cargo xtask codegen` writes them; do not edit them.

#![expect(
    missing_docs,
    unused_qualifications,
    clippy::clone_on_ref_ptr,
    reason = "written by prost and tonic, which follow other rules than ours"
)]

#[path = "gen/access.rs"]
#[rustfmt::skip]
pub mod access;
#[path = "gen/agent.rs"]
#[rustfmt::skip]
pub mod agent;
#[path = "gen/audit.rs"]
#[rustfmt::skip]
pub mod audit;
#[path = "gen/bundle.rs"]
#[rustfmt::skip]
pub mod bundle;
#[path = "gen/debug.rs"]
#[rustfmt::skip]
pub mod debug;
#[path = "gen/discovery.rs"]
#[rustfmt::skip]
pub mod discovery;
#[path = "gen/entry.rs"]
#[rustfmt::skip]
pub mod entry;
#[path = "gen/envoy_core.rs"]
#[rustfmt::skip]
pub mod envoy_core;
#[path = "gen/envoy_tls.rs"]
#[rustfmt::skip]
pub mod envoy_tls;
#[path = "gen/envoy_type.rs"]
#[rustfmt::skip]
pub mod envoy_type;
#[path = "gen/explain.rs"]
#[rustfmt::skip]
pub mod explain;
#[path = "gen/federation.rs"]
#[rustfmt::skip]
pub mod federation;
#[path = "gen/import.rs"]
#[rustfmt::skip]
pub mod import;
#[path = "gen/localauthority.rs"]
#[rustfmt::skip]
pub mod localauthority;
#[path = "gen/logger.rs"]
#[rustfmt::skip]
pub mod logger;
#[path = "gen/node.rs"]
#[rustfmt::skip]
pub mod node;
#[path = "gen/options.rs"]
#[rustfmt::skip]
pub mod options;
#[path = "gen/rpc.rs"]
#[rustfmt::skip]
pub mod rpc;
#[path = "gen/secret.rs"]
#[rustfmt::skip]
pub mod secret;
#[path = "gen/stop.rs"]
#[rustfmt::skip]
pub mod stop;
#[path = "gen/store.rs"]
#[rustfmt::skip]
pub mod store;
#[path = "gen/svid.rs"]
#[rustfmt::skip]
pub mod svid;
#[path = "gen/sync.rs"]
#[rustfmt::skip]
pub mod sync;
#[path = "gen/trustdomain.rs"]
#[rustfmt::skip]
pub mod trustdomain;
#[path = "gen/types.rs"]
#[rustfmt::skip]
pub mod types;
#[path = "gen/workload.rs"]
#[rustfmt::skip]
pub mod workload;
