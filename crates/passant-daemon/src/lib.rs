//! What do both daemons do alike, beside issuing and serving identities?
//!
//! | question | file |
//! |---|---|
//! | what is counted and timed, and how is it told to Prometheus? | [`metrics`], [`label`] |
//! | how many calls come in, and how do they end? | [`calls`] |
//! | what does the process itself use? | [`process`] |

pub mod calls;
pub mod label;
pub mod metrics;
pub mod process;
