//! Does a server in this process answer as SPIRE's clients expect?

mod access;
mod agents;
mod entries;
mod federation;
mod local_authority;
mod rig;
mod store;
mod svids;
mod sync;
mod transport;
