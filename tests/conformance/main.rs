//! Are the requirements of the SPIFFE specifications met? One module per document; `cargo xtask conformance` counts.

mod bundle;
mod bundle_client;
mod commands;
mod documents;
mod endpoint;
mod federation;
mod jwt_svid;
mod samples;
mod spiffe_id;
mod workload_api;
mod workload_endpoint;
mod x509_svid;
