//! What do both daemons do alike, beside issuing and serving identities?
//!
//! | question | file |
//! |---|---|
//! | is the daemon alive, and can it be relied on? | [`vitals`] |
//! | how do an orchestrator and Prometheus look at it? | [`probe`] |
//! | how do gRPC clients ask for its health and its services? | [`grpc`] |
//! | what is counted and timed, and how is it told to Prometheus? | [`metrics`], [`label`] |
//! | how many calls come in, and how do they end? | [`calls`] |
//! | what may one caller have under way, and who is next? | [`under_way`], [`turns`] |
//! | how fast may one caller go, and what is the log told of it? | [`buckets`], [`log_rate`] |
//! | what does a client read for whom there is no room? | [`goaway`] |
//! | what does the process itself use? | [`process`] |
//! | how is what it keeps on disk kept from other users? | [`private_dir`] |
//! | how is a socket put in place that is not for everybody? | [`private_socket`] |
//! | what is wrong with a configuration, and what would mend it? | [`config`] |
//! | what is logged, and how is the level changed? | [`log`] |
//! | how does it go from its command line to its end? | [`run`] |
//! | how does the process end, and what do signals tell it? | [`exit`] |

pub mod buckets;
pub mod calls;
pub mod config;
pub mod exit;
pub mod goaway;
pub mod grpc;
pub mod label;
pub mod log;
pub mod log_rate;
pub mod metrics;
pub mod private_dir;
pub mod private_socket;
pub mod probe;
pub mod process;
pub mod run;
pub mod turns;
pub mod under_way;
pub mod vitals;
