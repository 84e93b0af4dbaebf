//! Which unit of systemd is a process in?
//!
//! Selectors as SPIRE's `systemd` attestor makes them: `id`, the unit's name, and `fragment_path`, the file that it was
//! read from, left out for units without one. systemd is asked over the system's D-Bus. Where it takes pidfds (systemd 253
//! and later) the process is named by the one that is held since it connected; else by its pid, which is that of this
//! process if it still runs when systemd has answered. Processes of a user's own units are in `user@UID.service` for the
//! system's systemd, whatever that user calls them.

use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use passant_core::{Selector, Selectors};
use thiserror::Error as ThisError;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;
use tracing::debug;
use zbus::connection::{Builder, Connection};
use zbus::fdo;
use zbus::{Fd, Message, OwnedObjectPath, OwnedVariant};

use super::{AttestError, WorkloadAttestor};
use crate::limits::{SYSTEMD_ANSWER, SYSTEMD_CALLS};
use crate::peer::Peer;

/// The attestor's name and the kind of its selectors.
pub const METHOD: &str = "systemd";

const SERVICE: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "/org/freedesktop/systemd1";
const MANAGER_INTERFACE: &str = "org.freedesktop.systemd1.Manager";
const UNIT_INTERFACE: &str = "org.freedesktop.systemd1.Unit";
const NO_UNIT: &str = "org.freedesktop.systemd1.NoUnitForPID";
/// There while systemd runs the machine; see sd_booted(3).
const BOOTED: &str = "/run/systemd/system";

/// Where systemd is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemdConfig {
    /// The address of the system's bus, as D-Bus writes addresses.
    pub bus_address: String,
}

impl Default for SystemdConfig {
    fn default() -> Self {
        Self { bus_address: "unix:path=/run/dbus/system_bus_socket".to_owned() }
    }
}

/// The `systemd` workload attestor.
pub struct Systemd {
    config: SystemdConfig,
    bus: Mutex<Option<Connection>>,
    calls: Semaphore,
}

/// What systemd says of a unit.
#[derive(Debug, PartialEq, Eq)]
struct Unit {
    id: String,
    /// Empty for a unit without a file.
    fragment_path: String,
}

/// Why systemd did not tell.
#[derive(Debug, ThisError)]
enum AskError {
    #[error("it did not answer in time")]
    Late,
    #[error(transparent)]
    Bus(#[from] zbus::Error),
}

impl Systemd {
    /// An attestor that has asked nobody yet.
    pub fn new(config: SystemdConfig) -> Self {
        Self { config, bus: Mutex::default(), calls: Semaphore::new(SYSTEMD_CALLS) }
    }

    async fn unit(&self, peer: &Peer) -> Result<Option<Unit>, AttestError> {
        // Never closed; without it there would only be no bound.
        let _call = self.calls.acquire().await;
        let mut is_second = false;
        loop {
            let bus = within(SYSTEMD_ANSWER, self.bus()).await.map_err(|error| self.unreachable(error))?;
            match within(SYSTEMD_ANSWER, unit_of(&bus, peer)).await {
                Ok(unit) => return Ok(unit),
                // The kept connection may be of a bus that was restarted meanwhile.
                Err(AskError::Bus(zbus::Error::InputOutput(_))) if !is_second => self.forget(&bus).await,
                Err(error) => {
                    if matches!(error, AskError::Late | AskError::Bus(zbus::Error::InputOutput(_))) {
                        self.forget(&bus).await;
                    }
                    return Err(self.unanswered(error));
                }
            }
            is_second = true;
        }
    }

    /// The connection that is kept, or a new one.
    async fn bus(&self) -> Result<Connection, zbus::Error> {
        let mut kept = self.bus.lock().await;
        if let Some(bus) = kept.as_ref().filter(|bus| !bus.is_closed()) {
            return Ok(bus.clone());
        }
        let bus = Builder::address(self.config.bus_address.as_str()).build().await?;
        Ok(kept.insert(bus).clone())
    }

    /// Lets go of `bus`, unless there is another by now.
    async fn forget(&self, bus: &Connection) {
        let mut kept = self.bus.lock().await;
        if kept.as_ref().is_some_and(|kept| kept.server_guid() == bus.server_guid()) {
            *kept = None;
        }
    }

    fn unreachable(&self, error: AskError) -> AttestError {
        let address = &self.config.bus_address;
        let what = if Path::new(BOOTED).is_dir() {
            format!(
                "failed to reach the system's D-Bus at {address}: see that dbus runs and that the agent may connect"
            )
        } else {
            format!(
                "failed to reach the system's D-Bus at {address}: systemd does not run this machine (no {BOOTED}), or the \
                 agent is in a container without the host's /run/systemd and its bus"
            )
        };
        AttestError::Failed { what, source: Some(Box::new(error)) }
    }

    fn unanswered(&self, error: AskError) -> AttestError {
        let is_nobody = matches!(&error, AskError::Bus(zbus::Error::FDO(error))
            if matches!(**error, fdo::Error::ServiceUnknown(_) | fdo::Error::NameHasNoOwner(_)));
        let address = &self.config.bus_address;
        let what = if is_nobody {
            format!(
                "there is no systemd on the D-Bus at {address}: it does not run this machine (it is not PID 1)"
            )
        } else {
            format!("failed to ask systemd on the D-Bus at {address} for the unit of the process")
        };
        AttestError::Failed { what, source: Some(Box::new(error)) }
    }
}

impl WorkloadAttestor for Systemd {
    fn method(&self) -> &'static str {
        METHOD
    }

    fn attest<'a>(
        &'a self,
        peer: &'a Peer,
    ) -> Pin<Box<dyn Future<Output = Result<Selectors, AttestError>> + Send + 'a>> {
        Box::pin(async move {
            let unit = self.unit(peer).await;
            // What was said of the pid was said of this process.
            peer.confirmed(|_| Ok(()))?;
            let Some(Unit { id, fragment_path }) = unit? else { return Ok(Selectors::new()) };
            let found = [("id", id), ("fragment_path", fragment_path)];
            Ok(found.iter().filter(|(_, value)| !value.is_empty()).filter_map(selector).collect())
        })
    }
}

/// Asks systemd; none if the process is in no unit.
async fn unit_of(bus: &Connection, peer: &Peer) -> Result<Option<Unit>, zbus::Error> {
    let path = match unit_by_pidfd(bus, peer).await {
        Err(error) if is_not_offered(&error) => unit_by_pid(bus, peer).await,
        answer => answer,
    };
    let path = match path {
        Err(zbus::Error::MethodError(name, ..)) if name.as_str() == NO_UNIT => return Ok(None),
        path => path?,
    };
    let (id, fragment_path) =
        (property(bus, &path, "Id").await?, property(bus, &path, "FragmentPath").await?);
    Ok(Some(Unit { id, fragment_path }))
}

async fn unit_by_pidfd(bus: &Connection, peer: &Peer) -> Result<OwnedObjectPath, zbus::Error> {
    // The process of a simulation has none, and no systemd either.
    let Some(pidfd) = peer.pidfd() else { return Err(zbus::Error::Unsupported) };
    let answer = call(bus, "GetUnitByPIDFD", &Fd::from(pidfd)).await?;
    let (path, _id, _invocation): (OwnedObjectPath, String, Vec<u8>) = answer.body().deserialize()?;
    Ok(path)
}

async fn unit_by_pid(bus: &Connection, peer: &Peer) -> Result<OwnedObjectPath, zbus::Error> {
    call(bus, "GetUnitByPID", &peer.pid()).await?.body().deserialize()
}

async fn call<B>(bus: &Connection, method: &'static str, body: &B) -> Result<Message, zbus::Error>
where
    B: serde::Serialize + zbus::DynamicType + Sync,
{
    bus.call_method(Some(SERVICE), MANAGER, Some(MANAGER_INTERFACE), method, body).await
}

async fn property(bus: &Connection, unit: &OwnedObjectPath, name: &str) -> Result<String, zbus::Error> {
    let properties = Some("org.freedesktop.DBus.Properties");
    let answer = bus.call_method(Some(SERVICE), unit, properties, "Get", &(UNIT_INTERFACE, name)).await?;
    let value: OwnedVariant = answer.body().deserialize()?;
    String::try_from(value)
}

/// Whether systemd or the policy of the bus is too old for pidfds, or the bus passes none on.
fn is_not_offered(error: &zbus::Error) -> bool {
    let is_told =
        |error: &fdo::Error| matches!(error, fdo::Error::UnknownMethod(_) | fdo::Error::AccessDenied(_));
    matches!(error, zbus::Error::Unsupported) || matches!(error, zbus::Error::FDO(error) if is_told(error))
}

async fn within<T>(
    limit: Duration,
    asked: impl Future<Output = Result<T, zbus::Error>>,
) -> Result<T, AskError> {
    Ok(timeout(limit, asked).await.map_err(|_| AskError::Late)??)
}

/// One that is too long for any entry makes no selector.
fn selector((key, value): &(&str, String)) -> Option<Selector> {
    Selector::new(METHOD, &format!("{key}:{value}"))
        .inspect_err(|error| debug!(%error, "no selector made"))
        .ok()
}

#[cfg(test)]
mod tests;
