//! Is systemd asked as its manual says, by whichever way it offers?

use std::collections::HashMap;
use std::error::Error;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex as StdMutex};

use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use zbus::message::Header;
use zbus::{Guid, OwnedFd, interface};

use super::*;

const UNIT: &str = "/org/freedesktop/systemd1/unit/shop_2eservice";

/// systemd and the bus in one, at the end of a socket: it answers as systemd does, for the processes that it is told of.
/// Real systemd does not run in tests; what it says is written down from its manual, org.freedesktop.systemd1(5).
struct Fake {
    dir: TempDir,
    serving: JoinHandle<()>,
    connections: Arc<StdMutex<Vec<Connection>>>,
    calls: Calls,
}

#[derive(Clone, Debug, Default)]
struct Calls(Arc<StdMutex<Vec<&'static str>>>);

/// What the fake is like.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Age {
    /// It takes pidfds.
    Young,
    /// It does not.
    Old,
}

struct Bus;

#[interface(name = "org.freedesktop.DBus")]
impl Bus {
    fn hello(&self) -> &'static str {
        ":1.1"
    }
}

struct Manager {
    age: Age,
    units: HashMap<u32, &'static str>,
    calls: Calls,
}

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop")]
enum Fault {
    #[zbus(error)]
    ZBus(zbus::Error),
    #[zbus(name = "DBus.Error.UnknownMethod")]
    UnknownMethod(String),
    #[zbus(name = "systemd1.NoUnitForPID")]
    NoUnitForPid(String),
}

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    #[zbus(name = "GetUnitByPID")]
    fn unit_by_pid(&self, pid: u32) -> Result<OwnedObjectPath, Fault> {
        self.calls.0.lock().unwrap().push("pid");
        self.unit(pid)
    }

    #[zbus(name = "GetUnitByPIDFD")]
    fn unit_by_pidfd(
        &self,
        pidfd: OwnedFd,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(OwnedObjectPath, String, Vec<u8>), Fault> {
        self.calls.0.lock().unwrap().push("pidfd");
        if self.age == Age::Old {
            let member = header.member().map(ToString::to_string).unwrap_or_default();
            return Err(Fault::UnknownMethod(member));
        }
        let pid = pid_of(&pidfd);
        Ok((self.unit(pid)?, "shop.service".to_owned(), vec![7; 16]))
    }
}

impl Manager {
    fn unit(&self, pid: u32) -> Result<OwnedObjectPath, Fault> {
        let path = self.units.get(&pid);
        let path = path
            .ok_or_else(|| Fault::NoUnitForPid(format!("PID {pid} does not belong to any loaded unit.")))?;
        Ok(OwnedObjectPath::try_from(*path).unwrap())
    }
}

/// By the kernel's own word.
fn pid_of(pidfd: &OwnedFd) -> u32 {
    use std::os::fd::{AsFd, AsRawFd};
    let info = format!("/proc/self/fdinfo/{}", pidfd.as_fd().as_raw_fd());
    let info = std::fs::read_to_string(info).unwrap();
    info.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap().trim().parse().unwrap()
}

struct ShopUnit {
    fragment_path: &'static str,
}

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl ShopUnit {
    #[zbus(property)]
    fn id(&self) -> &'static str {
        "shop.service"
    }

    #[zbus(property)]
    fn fragment_path(&self) -> &'static str {
        self.fragment_path
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Fake {
    /// A systemd that knows `pids`.
    fn start(age: Age, pids: &[u32], fragment_path: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("bus")).unwrap();
        let (calls, connections) = (Calls::default(), Arc::new(StdMutex::new(Vec::new())));
        let (told, kept) = (calls.clone(), Arc::clone(&connections));
        let pids = pids.to_vec();
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let units = pids.iter().map(|pid| (*pid, UNIT)).collect();
                let manager = Manager { age, units, calls: told.clone() };
                let server = Builder::unix_stream(stream.into_std().unwrap())
                    .server(Guid::generate())
                    .p2p()
                    .serve_at("/org/freedesktop/DBus", Bus)
                    .serve_at(MANAGER, manager)
                    .serve_at(UNIT, ShopUnit { fragment_path });
                let server = server.build().await.unwrap();
                kept.lock().unwrap().push(server);
            }
        });
        Self { dir, serving, connections, calls }
    }

    fn attestor(&self) -> Systemd {
        Systemd::new(SystemdConfig { bus_address: format!("unix:path={}/bus", self.dir.path().display()) })
    }

    fn calls(&self) -> Vec<&'static str> {
        self.calls.0.lock().unwrap().clone()
    }
}

fn own() -> (Peer, u32) {
    let pid = std::process::id();
    (Peer::of_pid(pid).unwrap(), pid)
}

fn texts(selectors: &Selectors) -> Vec<String> {
    selectors.iter().map(ToString::to_string).collect()
}

fn told(error: &AttestError) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        told = format!("{told}: {error}");
        cause = error.source();
    }
    told
}

#[tokio::test]
async fn the_unit_and_its_file_are_selectors() {
    let (peer, pid) = own();
    let expected = ["systemd:fragment_path:/etc/systemd/system/shop.service", "systemd:id:shop.service"];
    for (age, calls) in [(Age::Young, vec!["pidfd"]), (Age::Old, vec!["pidfd", "pid"])] {
        let fake = Fake::start(age, &[pid], "/etc/systemd/system/shop.service");
        assert_eq!(texts(&fake.attestor().attest(&peer).await.unwrap()), expected);
        assert_eq!(fake.calls(), calls);
    }
}

#[tokio::test]
async fn a_unit_without_a_file_has_no_path() {
    let (peer, pid) = own();
    let fake = Fake::start(Age::Young, &[pid], "");
    assert_eq!(texts(&fake.attestor().attest(&peer).await.unwrap()), ["systemd:id:shop.service"]);
}

#[tokio::test]
async fn a_process_in_no_unit_has_no_selectors() {
    let (peer, pid) = own();
    for age in [Age::Young, Age::Old] {
        let fake = Fake::start(age, &[pid + 1], "/x");
        assert!(fake.attestor().attest(&peer).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_bus_that_was_restarted_is_asked_again() {
    let (peer, pid) = own();
    let mut fake = Fake::start(Age::Young, &[pid], "/x");
    let attestor = fake.attestor();
    let first = attestor.attest(&peer).await.unwrap();
    assert_eq!(attestor.attest(&peer).await.unwrap(), first);
    assert_eq!(fake.connections.lock().unwrap().len(), 1, "the connection is kept");
    fake.serving.abort();
    let connections: Vec<Connection> = std::mem::take(&mut *fake.connections.lock().unwrap());
    for connection in connections {
        connection.close().await.unwrap();
    }
    std::fs::remove_file(fake.dir.path().join("bus")).unwrap();
    assert!(attestor.attest(&peer).await.is_err());
    let again = Fake::start(Age::Young, &[pid], "/x");
    std::fs::rename(again.dir.path().join("bus"), fake.dir.path().join("bus")).unwrap();
    assert_eq!(attestor.attest(&peer).await.unwrap(), first);
    fake.serving = tokio::spawn(async {});
}

#[tokio::test]
async fn without_systemd_the_remedy_is_told() {
    let (peer, _) = own();
    let attestor = Systemd::new(SystemdConfig { bus_address: "unix:path=/nonexistent/bus".to_owned() });
    let error = attestor.attest(&peer).await.unwrap_err();
    let told = told(&error);
    assert!(told.contains("/nonexistent/bus"), "{told}");
    assert_eq!(told.contains("does not run this machine"), !Path::new(BOOTED).is_dir(), "{told}");
    // A bus, and nobody of that name on it.
    let nobody = zbus::Error::FDO(Box::new(fdo::Error::ServiceUnknown("no such name".to_owned())));
    let error = attestor.unanswered(AskError::Bus(nobody));
    assert!(error.to_string().contains("not PID 1"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_hangs_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(dir.path().join("bus")).unwrap();
    let address = format!("unix:path={}/bus", dir.path().display());
    let attestor = Systemd::new(SystemdConfig { bus_address: address });
    let error = attestor.attest(&own().0).await.unwrap_err();
    assert!(told(&error).contains("in time"), "{}", told(&error));
}

#[tokio::test]
async fn what_was_said_of_a_process_that_ended_does_not_count() {
    let mut child: Child = Command::new("/bin/cat").stdin(Stdio::piped()).spawn().unwrap();
    let peer = Peer::of_pid(child.id()).unwrap();
    let fake = Fake::start(Age::Old, &[child.id()], "/x");
    assert!(fake.attestor().attest(&peer).await.is_ok());
    drop(child.stdin.take());
    child.wait().unwrap();
    // The pid may be of another by now, and systemd would tell of that one.
    assert!(matches!(fake.attestor().attest(&peer).await, Err(AttestError::Peer(_))));
}
