//! One file for each noun of the command line.

pub(crate) mod access;
pub(crate) mod agent;
pub(crate) mod audit;
pub(crate) mod authority;
pub(crate) mod bundle;
pub(crate) mod debug;
pub(crate) mod entry;
pub(crate) mod explain;
pub(crate) mod federation;
pub(crate) mod files;
pub(crate) mod healthcheck;
pub(crate) mod import;
pub(crate) mod jwt;
pub(crate) mod lint;
pub(crate) mod logger;
pub(crate) mod rollout;
pub(crate) mod stop;
pub(crate) mod store;
pub(crate) mod svid;
pub(crate) mod token;
pub(crate) mod x509;
