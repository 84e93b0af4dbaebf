//! How is an operator told what is wrong with a configuration?
//!
//! | question | file |
//! |---|---|
//! | what is wrong, and what would mend it? | `fault` |
//! | how is a span of time written? | [`duration`] |
//! | which key was meant? | `suggest` |

pub mod duration;
mod fault;
mod suggest;

pub use fault::{ConfigError, Fault};
pub use suggest::{edits, quoted, suggest};
