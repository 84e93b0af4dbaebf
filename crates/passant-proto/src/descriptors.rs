//! What do the services and messages look like, for clients that ask by reflection?
//!
//! Each is an encoded `FileDescriptorSet`, written by `cargo xtask codegen`.

/// The SPIFFE Workload API.
pub const WORKLOAD: &[u8] = include_bytes!("gen/workload.bin");

/// Everything that a server offers.
pub const SERVER: &[u8] = include_bytes!("gen/server.bin");

/// What an agent offers to the administrators of its node.
pub const NODE: &[u8] = include_bytes!("gen/node.bin");

/// Envoy's secret discovery service.
pub const SECRET: &[u8] = include_bytes!("gen/secret.bin");
