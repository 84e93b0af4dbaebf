//! Who is asking? Attestors of workloads (on the agent) and of nodes (both halves), one file each.
//!
//! | question | file |
//! |---|---|
//! | which process is at the other end of a unix socket, and is it still the same? | [`peer`] |
//! | what is a workload attestor, and which are there? | [`workload`] |
//! | which container do control groups name? | [`cgroup`] |
//! | what do a node and a server say to each other to attest the node? | [`node`] |
//! | what is bounded, and why? | [`limits`] |
//!
//! Nothing here knows the wire: payloads and challenges are bytes, answers are selectors and SPIFFE IDs.

pub mod cgroup;
pub mod limits;
pub mod node;
pub mod peer;
mod process;
pub mod workload;
