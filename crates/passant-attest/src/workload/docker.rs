//! Which labels, environment and image does the container of a process have?
//!
//! Selectors as SPIRE's `docker` attestor makes them: `label:KEY:VALUE`, `env:NAME=VALUE`, `image_id` (the image as it was
//! named when the container was made) and `image_config_digest` (the image that it was made of). Docker and Podman alike.
//!
//! The control groups of the process claim a container; its engine is asked, and the claim holds if the container's first
//! process, as the engine says, is in the same control group. A name alone is not believed: whoever may make control
//! groups may name them as he likes. A process in no container has no selectors, and no engine is asked for it.

mod engine;

use std::collections::BTreeSet;
use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;

use passant_core::{Selector, Selectors};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::debug;

use self::engine::{Container, Engine, EngineError};
use super::{AttestError, WorkloadAttestor};
use crate::cgroup::{Cgroups, ContainerId, Located, Runtime};
use crate::limits::{CONTAINER_SELECTORS, ENGINE_ANSWER, ENGINE_CALLS};
use crate::peer::Peer;
use crate::process::Process;

/// The attestor's name and the kind of its selectors.
pub const METHOD: &str = "docker";

/// Where the engines are; keys and meanings as SPIRE's, but for `rootless_users` and `docker_socket_path_template`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerConfig {
    /// The socket of Docker.
    pub docker_socket_path: PathBuf,
    /// The socket of Podman.
    pub podman_socket_path: PathBuf,
    /// The sockets of Docker that users run without root.
    pub docker_socket_path_template: SocketTemplate,
    /// The sockets of Podman that users run without root.
    pub podman_socket_path_template: SocketTemplate,
    /// Users whose own engines are believed. Whoever runs an engine can have it say anything of his processes.
    pub rootless_users: BTreeSet<u32>,
}

/// A path with one `%d` in it, which stands for a user's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketTemplate {
    before: String,
    after: String,
}

/// The `docker` workload attestor.
pub struct Docker {
    config: DockerConfig,
    calls: Semaphore,
}

/// Whether a selector is a variable of a container's environment, which may hold a password: such a one is told to nobody who
/// does not name it himself.
pub fn is_variable(selector: &Selector) -> bool {
    selector.kind() == METHOD && selector.value().starts_with("env:")
}

impl Default for DockerConfig {
    fn default() -> Self {
        let template =
            |after: &str| SocketTemplate { before: "/run/user/".to_owned(), after: after.to_owned() };
        Self {
            docker_socket_path: PathBuf::from("/var/run/docker.sock"),
            podman_socket_path: PathBuf::from("/run/podman/podman.sock"),
            docker_socket_path_template: template("/docker.sock"),
            podman_socket_path_template: template("/podman/podman.sock"),
            rootless_users: BTreeSet::new(),
        }
    }
}

/// Reads the path of a socket, with or without `unix://` before it, as SPIRE has it.
///
/// # Errors
/// What is wrong with it, for the operator.
pub fn socket_path(text: &str) -> Result<PathBuf, &'static str> {
    let path = text.strip_prefix("unix://").unwrap_or(text);
    if path.starts_with('/') {
        Ok(PathBuf::from(path))
    } else {
        Err("is not the absolute path of a unix socket")
    }
}

impl SocketTemplate {
    /// Reads a path as [`socket_path`] does, with one `%d` for the user's id.
    ///
    /// # Errors
    /// What is wrong with it, for the operator.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let path = text.strip_prefix("unix://").unwrap_or(text);
        socket_path(path)?;
        match path.split_once("%d") {
            Some((before, after)) if !before.contains('%') && !after.contains('%') => {
                Ok(Self { before: before.to_owned(), after: after.to_owned() })
            }
            Some(_) | None => Err("does not have exactly one %d, for the user's id"),
        }
    }

    fn of(&self, uid: u32) -> PathBuf {
        PathBuf::from(format!("{}{uid}{}", self.before, self.after))
    }
}

impl Docker {
    /// An attestor that has asked nobody yet.
    pub fn new(config: DockerConfig) -> Self {
        Self { config, calls: Semaphore::new(ENGINE_CALLS) }
    }

    /// The selectors of a process in `cgroups`; `cgroup_of` reads the file of another process.
    async fn of(
        &self,
        cgroups: &Cgroups,
        cgroup_of: &(dyn Fn(u32) -> io::Result<Vec<u8>> + Sync),
    ) -> Result<Selectors, AttestError> {
        let refused = |error: crate::cgroup::CgroupError| AttestError::Refused(error.to_string());
        let Some(claimed) = cgroups.container().map_err(refused)? else { return Ok(Selectors::new()) };
        let Some(engine) = self.engine(&claimed)? else { return Ok(Selectors::new()) };
        let container = self.ask(&engine, &claimed.id).await?;
        check(&claimed, &container, cgroups, cgroup_of)?;
        selectors(&container)
    }

    /// Who runs the container; none if its runtime is none of ours.
    fn engine(&self, claimed: &Located) -> Result<Option<Engine>, AttestError> {
        let config = &self.config;
        let (socket, template) = match claimed.runtime {
            Runtime::Libpod => (&config.podman_socket_path, &config.podman_socket_path_template),
            Runtime::Docker | Runtime::Unnamed => {
                (&config.docker_socket_path, &config.docker_socket_path_template)
            }
            Runtime::Containerd | Runtime::Crio | Runtime::Other => return Ok(None),
        };
        match claimed.user {
            None => Ok(Some(Engine::new(socket.clone()))),
            Some(uid) if config.rootless_users.contains(&uid) => {
                Ok(Some(Engine::of_user(template.of(uid), uid)))
            }
            Some(uid) => Err(AttestError::Refused(format!(
                "container {} is run by user {uid}, whose engine is not believed: if its word is good enough, add {uid} to \
                 rootless_users",
                claimed.id
            ))),
        }
    }

    async fn ask(&self, engine: &Engine, id: &ContainerId) -> Result<Container, AttestError> {
        let asked = async {
            // Never closed; without it there would only be no bound.
            let _call = self.calls.acquire().await;
            engine.inspect(id).await
        };
        let answered = timeout(ENGINE_ANSWER, asked).await.unwrap_or(Err(EngineError::Late));
        answered.map_err(|error| {
            let engine = engine.socket().display();
            if matches!(error, EngineError::Unknown) {
                return AttestError::Refused(format!(
                    "the engine at {engine} knows no container {id}: see that this is the engine that runs it"
                ));
            }
            failed(format!("failed to ask the engine at {engine} for container {id}"), error)
        })
    }
}

impl WorkloadAttestor for Docker {
    fn method(&self) -> &'static str {
        METHOD
    }

    fn attest<'a>(
        &'a self,
        peer: &'a Peer,
    ) -> Pin<Box<dyn Future<Output = Result<Selectors, AttestError>> + Send + 'a>> {
        Box::pin(async move {
            let file = peer.confirmed(Process::cgroup)?;
            let cgroups = Cgroups::parse(&file).map_err(|error| AttestError::Refused(error.to_string()))?;
            self.of(&cgroups, &|pid| Process::of(pid).cgroup()).await
        })
    }
}

/// Whether the process in `cgroups`, which claims a container, is one of it: its engine says which process began the
/// container, and that one must be in the container's control group, and the other in the same or below.
fn check(
    claimed: &Located,
    container: &Container,
    cgroups: &Cgroups,
    cgroup_of: &(dyn Fn(u32) -> io::Result<Vec<u8>> + Sync),
) -> Result<(), AttestError> {
    let id = &claimed.id;
    if container.id != *id {
        return Err(AttestError::Refused(format!(
            "the engine was asked for container {id} and told of another"
        )));
    }
    let Some(first) = container.first_process() else {
        return Err(AttestError::Refused(format!("container {id} does not run, as its engine says")));
    };
    let file = cgroup_of(first)
        .map_err(|error| failed(format!("failed to read the control groups of container {id}"), error))?;
    let real = Cgroups::parse(&file).ok().and_then(|cgroups| cgroups.container().ok().flatten());
    if real.is_some_and(|real| real.id == *id && real.shares_group_of(cgroups)) {
        return Ok(());
    }
    Err(AttestError::Refused(format!(
        "the process is in a control group that is named after container {id}, but is not that of the container"
    )))
}

/// What is told of `container`, as SPIRE names it.
fn selectors(container: &Container) -> Result<Selectors, AttestError> {
    let config = &container.config;
    let count = config.labels.len() + config.env.len() + 2;
    if count > CONTAINER_SELECTORS {
        return Err(AttestError::Refused(format!(
            "container {} has {count} labels and variables, over {CONTAINER_SELECTORS}: a set that large is left out as a \
             whole",
            container.id
        )));
    }
    let labels = config.labels.iter().map(|(key, value)| format!("label:{key}:{value}"));
    let env = config.env.iter().map(|variable| format!("env:{variable}"));
    let image = config.image.iter().filter(|name| !name.is_empty()).map(|name| format!("image_id:{name}"));
    let digest = container.image.iter().map(|digest| format!("image_config_digest:{digest}"));
    Ok(labels.chain(env).chain(image).chain(digest).filter_map(|value| selector(&value)).collect())
}

/// One that is too long for any entry makes no selector.
fn selector(value: &str) -> Option<Selector> {
    Selector::new(METHOD, value).inspect_err(|error| debug!(%error, "no selector made")).ok()
}

fn failed(what: String, source: impl Error + Send + Sync + 'static) -> AttestError {
    AttestError::Failed { what, source: Some(Box::new(source)) }
}

#[cfg(test)]
mod tests;
