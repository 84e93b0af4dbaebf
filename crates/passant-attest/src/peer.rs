//! Which process is at the other end of a unix socket, and is it still the same?
//!
//! The kernel names the process that *connected*. The answer of the agent goes to whoever holds the socket now, so what
//! must not change after the connection was accepted is checked on every look: the user, the group and the executable.
//! A process that connects, forks and lets the named pid run a setuid program would otherwise be taken for that
//! program, and read its SVIDs through the socket that the fork still holds.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use ring::digest;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use crate::process::{Credentials, ExecutableInode, Process};

/// The process that connected, held by a pidfd so that its pid cannot be mistaken for a later one.
///
/// Clones share one handle.
#[derive(Clone)]
pub struct Peer(Holder);

#[derive(Clone)]
enum Holder {
    Kernel(Arc<Held>),
    Table(Arc<dyn Listed>),
}

/// A process that no kernel knows: one of a simulation, which keeps a table of its own. It is held as firmly as by a
/// pidfd: what it says is of this process, even if another has its pid by then.
pub trait Listed: Send + Sync {
    /// See [`Peer::pid`].
    fn pid(&self) -> u32;

    /// See [`Peer::uid`].
    fn uid(&self) -> u32;

    /// See [`Peer::gid`].
    fn gid(&self) -> u32;

    /// See [`Peer::start_time`].
    fn start_time(&self) -> u64;

    /// See [`Peer::identity`].
    ///
    /// # Errors
    /// As there.
    fn identity(&self) -> Result<PeerIdentity, PeerError>;

    /// See [`Peer::exited`].
    fn exited(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

struct Held {
    pid: u32,
    uid: u32,
    gid: u32,
    start_time: u64,
    /// Absent when the agent may not look at the executable of this process.
    executable: Option<Executable>,
    process: Process,
    pidfd: AsyncFd<OwnedFd>,
    /// Whether the socket handed out the pidfd. It is then certainly of the process that connected.
    is_from_socket: bool,
}

/// The program that the peer runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    /// The device of the running file.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// The path that the kernel showed for it when the connection was accepted. It ends in ` (deleted)` if nothing stood
    /// there any more; what stands there now is not known.
    pub path: PathBuf,
}

/// What a peer is, beyond its pid. User, group and executable cannot differ between two looks at one [`Peer`]; the
/// control group may, and the workload is then to be attested anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// What it runs; absent when the agent may not look.
    pub executable: Option<Executable>,
    /// SHA-256 of its `cgroup` file.
    pub cgroup: [u8; 32],
}

/// Why a peer cannot be known, or is no longer the one that connected.
#[derive(Debug, Error)]
pub enum PeerError {
    /// The kernel shows pid 0: the process is in a pid namespace that the agent cannot see into.
    #[error("peer is in a foreign pid namespace: run the agent in the host's pid namespace (hostPID: true)")]
    ForeignPidNamespace,
    /// The process has exited.
    #[error("peer has exited")]
    Gone,
    /// The process is no longer what it was when it connected.
    #[error("{0} of the peer has changed since it connected")]
    Changed(&'static str),
    /// `/proc` does not tell.
    #[error(
        "failed to read /proc of the peer: the agent must see all processes (no hidepid) and may need CAP_SYS_PTRACE"
    )]
    Unreadable(#[source] io::Error),
    /// The socket does not tell.
    #[error("failed to ask the socket for its peer")]
    Socket(#[source] io::Error),
}

impl Peer {
    /// The process that connected `stream`. To be called at once when the connection is accepted, inside a tokio
    /// runtime.
    ///
    /// On Linux 6.5 and later the socket itself hands out the pidfd (SO_PEERPIDFD). On older kernels the pid is opened,
    /// and the start time compared before and after, which leaves a gap only between connect and accept.
    ///
    /// # Errors
    /// [`PeerError::ForeignPidNamespace`] for pid 0, [`PeerError::Gone`] when the process has exited already,
    /// [`PeerError::Changed`] when it has changed its user or group since it connected, and otherwise when the kernel
    /// does not tell.
    pub fn of(stream: &UnixStream) -> Result<Self, PeerError> {
        let credentials = getsockopt(stream, sockopt::PeerCredentials).map_err(socket_error)?;
        let pid = u32::try_from(credentials.pid()).unwrap_or(0);
        if pid == 0 {
            return Err(PeerError::ForeignPidNamespace);
        }
        let process = Process::of(pid);
        let start_time = process.start_time();
        let (pidfd, is_from_socket) = match getsockopt(stream, sockopt::PeerPidfd) {
            Ok(pidfd) => (pidfd, true),
            Err(Errno::ENOPROTOOPT) => (open_pidfd(pid)?, false),
            Err(Errno::ESRCH | Errno::EINVAL | Errno::ENODATA) => return Err(PeerError::Gone),
            Err(errno) => return Err(socket_error(errno)),
        };
        let pidfd = watched(pidfd)?;
        let start_time = start_time.map_err(|error| unread(error, &pidfd))?;
        let mut held = Held {
            pid,
            uid: credentials.uid(),
            gid: credentials.gid(),
            start_time,
            executable: None,
            process,
            pidfd,
            is_from_socket,
        };
        held.executable = held.confirmed(|process| Ok(executable(process)))?;
        let peer = Self(Holder::Kernel(Arc::new(held)));
        peer.identity()?;
        Ok(peer)
    }

    /// The process `pid`, to tell an operator what would be found out about it. It connected to nobody, so that nothing may be
    /// handed out on the ground of this. Inside a tokio runtime.
    ///
    /// # Errors
    /// [`PeerError::Gone`] when there is no such process, [`PeerError::Unreadable`] when `/proc` does not tell.
    pub fn of_pid(pid: u32) -> Result<Self, PeerError> {
        let process = Process::of(pid);
        let start_time = process.start_time();
        let pidfd = watched(open_pidfd(pid)?)?;
        let start_time = start_time.map_err(|error| unread(error, &pidfd))?;
        let Credentials { uid, gid, .. } = process.credentials().map_err(|error| unread(error, &pidfd))?;
        let is_from_socket = false;
        let mut held = Held { pid, uid, gid, start_time, executable: None, process, pidfd, is_from_socket };
        held.executable = held.confirmed(|process| Ok(executable(process)))?;
        let peer = Self(Holder::Kernel(Arc::new(held)));
        peer.identity()?;
        Ok(peer)
    }

    /// A process of a simulation.
    pub fn listed(process: Arc<dyn Listed>) -> Self {
        Self(Holder::Table(process))
    }

    /// The process id, as the agent sees it. Only for logs and for finding the process in `/proc`; see
    /// [`Peer::identity`] for what it is.
    pub fn pid(&self) -> u32 {
        match &self.0 {
            Holder::Kernel(held) => held.pid,
            Holder::Table(process) => process.pid(),
        }
    }

    /// Effective user id when it connected.
    pub fn uid(&self) -> u32 {
        match &self.0 {
            Holder::Kernel(held) => held.uid,
            Holder::Table(process) => process.uid(),
        }
    }

    /// Effective group id when it connected.
    pub fn gid(&self) -> u32 {
        match &self.0 {
            Holder::Kernel(held) => held.gid,
            Holder::Table(process) => process.gid(),
        }
    }

    /// When the process started, in clock ticks since boot. With the pid and the boot it names the process for ever.
    pub fn start_time(&self) -> u64 {
        match &self.0 {
            Holder::Kernel(held) => held.start_time,
            Holder::Table(process) => process.start_time(),
        }
    }

    /// Whether the process is running. A process that has exited but was not yet waited for is not.
    pub fn is_alive(&self) -> bool {
        match &self.0 {
            Holder::Kernel(held) => held.is_alive(),
            Holder::Table(process) => process.identity().is_ok(),
        }
    }

    /// Waits until the process has exited.
    pub async fn exited(&self) {
        match &self.0 {
            // An error means that the runtime is shutting down: nobody is served any more.
            Holder::Kernel(held) => drop(held.pidfd.readable().await),
            Holder::Table(process) => process.exited().await,
        }
    }

    /// What the process is now.
    ///
    /// # Errors
    /// [`PeerError::Gone`] when it has exited, [`PeerError::Changed`] when its user, group or executable is no longer
    /// that of the process that connected, [`PeerError::Unreadable`] when `/proc` does not tell.
    pub fn identity(&self) -> Result<PeerIdentity, PeerError> {
        match &self.0 {
            Holder::Kernel(held) => held.identity(),
            Holder::Table(process) => process.identity(),
        }
    }

    /// Supplementary groups, and the check of [`Peer::identity`] in the same look.
    pub(crate) fn credentials(&self) -> Result<Credentials, PeerError> {
        let held = self.held()?;
        let (credentials, inode) =
            held.confirmed(|process| Ok((process.credentials()?, process.executable_inode().ok())))?;
        held.check(&credentials, inode)?;
        Ok(credentials)
    }

    /// What it runs; absent when the agent may not look.
    pub fn executable(&self) -> Option<&Executable> {
        match &self.0 {
            Holder::Kernel(held) => held.executable.as_ref(),
            Holder::Table(_) => None,
        }
    }

    /// The handle on the process; none of one that no kernel knows.
    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            Holder::Kernel(held) => Some(held.pidfd.get_ref().as_fd()),
            Holder::Table(_) => None,
        }
    }

    /// Reads something of the process, and confirms that it was still running.
    pub(crate) fn confirmed<T>(&self, read: impl FnOnce(&Process) -> io::Result<T>) -> Result<T, PeerError> {
        self.held()?.confirmed(read)
    }

    /// The process as the kernel holds it; one of a simulation is not to be looked for in `/proc`.
    fn held(&self) -> Result<&Held, PeerError> {
        match &self.0 {
            Holder::Kernel(held) => Ok(held),
            Holder::Table(_) => Err(PeerError::Unreadable(io::ErrorKind::Unsupported.into())),
        }
    }
}

impl Held {
    fn identity(&self) -> Result<PeerIdentity, PeerError> {
        let (credentials, inode, cgroup) = self.confirmed(|process| {
            Ok((process.credentials()?, process.executable_inode().ok(), process.cgroup()?))
        })?;
        self.check(&credentials, inode)?;
        let mut digest = [0; 32];
        digest.copy_from_slice(digest::digest(&digest::SHA256, &cgroup).as_ref());
        Ok(PeerIdentity { uid: self.uid, gid: self.gid, executable: self.executable.clone(), cgroup: digest })
    }

    fn is_alive(&self) -> bool {
        is_running(&self.pidfd)
    }

    /// The pid belongs to this process for as long as its pidfd says that it runs: what was read before that was read
    /// of this process. The start time guards the old kernels, where the pidfd may be of a later process.
    fn confirmed<T>(&self, read: impl FnOnce(&Process) -> io::Result<T>) -> Result<T, PeerError> {
        let found = read(&self.process);
        if !self.is_the_one() || !self.is_alive() {
            return Err(PeerError::Gone);
        }
        found.map_err(PeerError::Unreadable)
    }

    fn is_the_one(&self) -> bool {
        self.is_from_socket || self.process.start_time().is_ok_and(|start_time| start_time == self.start_time)
    }

    fn check(&self, credentials: &Credentials, inode: Option<ExecutableInode>) -> Result<(), PeerError> {
        if (credentials.uid, credentials.gid) != (self.uid, self.gid) {
            return Err(PeerError::Changed("user or group"));
        }
        let inode_at_accept = self
            .executable
            .as_ref()
            .map(|executable| ExecutableInode { device: executable.device, inode: executable.inode });
        if inode != inode_at_accept {
            return Err(PeerError::Changed("executable"));
        }
        Ok(())
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pid, uid, gid, start_time) = (self.pid(), self.uid(), self.gid(), self.start_time());
        write!(f, "Peer {{ pid: {pid}, uid: {uid}, gid: {gid}, start_time: {start_time} }}")
    }
}

/// The pidfd, readable for the runtime once its process has exited.
#[expect(
    deprecated,
    reason = "its successor is unsafe for types whose descriptor may be closed early; an OwnedFd's is not"
)]
fn watched(pidfd: OwnedFd) -> Result<AsyncFd<OwnedFd>, PeerError> {
    AsyncFd::with_interest(pidfd, Interest::READABLE).map_err(PeerError::Socket)
}

fn executable(process: &Process) -> Option<Executable> {
    let ExecutableInode { device, inode } = process.executable_inode().ok()?;
    Some(Executable { device, inode, path: process.executable_path().ok()? })
}

fn open_pidfd(pid: u32) -> Result<OwnedFd, PeerError> {
    // No process has a pid that the kernel's type cannot hold.
    let pid = i32::try_from(pid).map_err(|_| PeerError::Gone)?;
    let pid = Pid::from_raw(pid).ok_or(PeerError::ForeignPidNamespace)?;
    pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| match errno {
        rustix::io::Errno::SRCH => PeerError::Gone,
        _ => PeerError::Socket(errno.into()),
    })
}

fn socket_error(errno: Errno) -> PeerError {
    PeerError::Socket(errno.into())
}

/// Why `/proc` told nothing of the process behind `pidfd`. With hidepid=2 it shows no trace of one that runs.
fn unread(error: io::Error, pidfd: &AsyncFd<OwnedFd>) -> PeerError {
    let is_not_there =
        error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32);
    if is_not_there && !is_running(pidfd) { PeerError::Gone } else { PeerError::Unreadable(error) }
}

fn is_running(pidfd: &AsyncFd<OwnedFd>) -> bool {
    let mut watched = [PollFd::new(pidfd.get_ref(), PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(rustix::event::poll(&mut watched, Some(&now)), Ok(0))
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as StdUnixStream;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn peer_of_a_pair_is_this_process() {
        let (one, _two) = UnixStream::pair().unwrap();
        let peer = Peer::of(&one).unwrap();
        assert_eq!(peer.pid(), std::process::id());
        assert_eq!(peer.uid(), nix::unistd::geteuid().as_raw());
        assert!(peer.is_alive());
        let identity = peer.identity().unwrap();
        assert_eq!(identity.executable.as_ref().unwrap().path, env::current_exe().unwrap());
        assert_eq!(identity, peer.identity().unwrap());
        assert!(format!("{peer:?}").starts_with("Peer { pid: "));
    }

    #[tokio::test]
    async fn a_process_is_found_by_its_pid() {
        let own = Peer::of_pid(std::process::id()).unwrap();
        let (one, _two) = UnixStream::pair().unwrap();
        assert_eq!(own.identity().unwrap(), Peer::of(&one).unwrap().identity().unwrap());
        let mut child = Command::new("/bin/true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert!(matches!(Peer::of_pid(pid), Err(PeerError::Gone)));
    }

    #[tokio::test]
    async fn a_process_that_runs_and_is_not_in_proc_is_hidden_and_not_gone() {
        let not_there = || io::Error::from(io::ErrorKind::NotFound);
        let own = watched(open_pidfd(std::process::id()).unwrap()).unwrap();
        assert!(matches!(unread(not_there(), &own), PeerError::Unreadable(_)));
        let mut child = Command::new("/bin/true").spawn().unwrap();
        let ended = watched(open_pidfd(child.id()).unwrap()).unwrap();
        child.wait().unwrap();
        assert!(matches!(unread(not_there(), &ended), PeerError::Gone));
    }

    /// Starts this test binary again as a process that connects to `socket`, says so, and then does `what`.
    fn connect_from_a_child(test: &str, socket: &std::path::Path, what: &str) -> Child {
        Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env("PASSANT_TEST_CHILD", what)
            .env("PASSANT_TEST_SOCKET", socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// The child's part of a test: true when this process is such a child.
    fn is_child() -> bool {
        let Ok(what) = env::var("PASSANT_TEST_CHILD") else { return false };
        let mut stream = StdUnixStream::connect(env::var("PASSANT_TEST_SOCKET").unwrap()).unwrap();
        stream.write_all(b"!").unwrap();
        // The parent closes its end when it has looked.
        io::stdin().read_to_end(&mut Vec::new()).unwrap();
        if what == "exec" {
            // Only a process that keeps the socket open across the exec stays the peer; standard output is kept.
            let error =
                Command::new("/bin/sh").args(["-c", "read never"]).stdin(OwnedFd::from(stream)).exec();
            panic!("{error}");
        }
        true
    }

    async fn accept_from(child: &mut Child, listener: &UnixListener) -> (Peer, UnixStream) {
        let (stream, _) = listener.accept().await.unwrap();
        stream.readable().await.unwrap();
        let peer = Peer::of(&stream).unwrap();
        assert_eq!(peer.pid(), child.id());
        (peer, stream)
    }

    #[tokio::test]
    async fn exit_of_the_peer_is_seen() {
        if is_child() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut child = connect_from_a_child("peer::tests::exit_of_the_peer_is_seen", &socket, "exit");
        let (peer, _stream) = accept_from(&mut child, &listener).await;
        assert!(peer.is_alive());
        assert!(peer.identity().is_ok());
        drop(child.stdin.take());
        // Not waited for yet: the process is a zombie, and its /proc entry still there.
        peer.exited().await;
        assert!(!peer.is_alive());
        assert!(matches!(peer.identity(), Err(PeerError::Gone)));
        child.wait().unwrap();
        peer.exited().await;
        assert!(matches!(peer.identity(), Err(PeerError::Gone)));
    }

    #[tokio::test]
    async fn another_program_in_the_same_process_is_refused() {
        if is_child() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut child = connect_from_a_child(
            "peer::tests::another_program_in_the_same_process_is_refused",
            &socket,
            "exec",
        );
        let (peer, stream) = accept_from(&mut child, &listener).await;
        assert!(peer.identity().is_ok());
        drop(child.stdin.take());
        while peer.identity().is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(peer.is_alive());
        assert!(matches!(peer.identity(), Err(PeerError::Changed("executable"))));
        drop(stream);
        peer.exited().await;
        child.wait().unwrap();
    }
}
