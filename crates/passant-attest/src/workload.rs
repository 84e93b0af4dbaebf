//! What is a workload attestor, and which are there?

pub mod docker;
pub mod systemd;
pub mod unix;

use std::error::Error;
use std::pin::Pin;

use passant_core::{Host, Selectors};
use thiserror::Error;

use crate::peer::{Peer, PeerError};

use self::docker::{Docker, DockerConfig};
use self::systemd::{Systemd, SystemdConfig};
use self::unix::{Unix, UnixConfig};

/// Finds out facts about a process.
pub trait WorkloadAttestor: Send + Sync {
    /// Its name: the kind of all its selectors, and its table in the configuration.
    fn method(&self) -> &'static str;

    /// The selectors of `peer`, read now; empty when it knows nothing of this process (it is in no container, say).
    ///
    /// The caller sets the time limit, and confirms afterwards that the peer is still the same.
    fn attest<'a>(
        &'a self,
        peer: &'a Peer,
    ) -> Pin<Box<dyn Future<Output = Result<Selectors, AttestError>> + Send + 'a>>;
}

/// Why an attestor could not tell. The workload may still match by what the others found.
#[derive(Debug, Error)]
pub enum AttestError {
    /// The process is gone or no longer the one that connected.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// What the attestor was told contradicts what the process claims: it has no selectors, and what was found before
    /// does not count any more.
    #[error("{0}")]
    Refused(String),
    /// Something that the attestor needs did not answer, or not as expected.
    #[error("{what}")]
    Failed {
        /// What failed, on what, and what would help.
        what: String,
        /// The cause.
        source: Option<Box<dyn Error + Send + Sync>>,
    },
}

/// The closed list of workload attestors, each with its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkloadMethod {
    /// See [`unix`].
    Unix(UnixConfig),
    /// See [`docker`].
    Docker(DockerConfig),
    /// See [`systemd`].
    Systemd(SystemdConfig),
}

impl WorkloadMethod {
    /// The names that a configuration may use.
    pub const NAMES: &'static [&'static str] = &[unix::METHOD, docker::METHOD, systemd::METHOD];

    /// The attestor itself.
    pub fn attestor(self, host: &Host) -> Box<dyn WorkloadAttestor> {
        match self {
            Self::Unix(config) => Box::new(Unix::new(config, host)),
            Self::Docker(config) => Box::new(Docker::new(config)),
            Self::Systemd(config) => Box::new(Systemd::new(config)),
        }
    }
}
