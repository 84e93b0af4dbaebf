//! What may be changed on behalf of operators and agents, and when is that refused?
//!
//! Each function decides purely, against the state it is given, for `Journal::submit` to make durable.

pub(crate) mod bundle;
pub(crate) mod entry;
pub(crate) mod federation;
pub(crate) mod import;
pub(crate) mod node;
pub(crate) mod stop;
pub(crate) mod token;
