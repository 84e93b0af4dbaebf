//! What is the least that the same work takes on this machine?

pub(crate) mod crypto;
pub(crate) mod disk;
pub(crate) mod fan_out;
mod secured;
