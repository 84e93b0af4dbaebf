//! Which processes run on a node, and what do attestors find out about them?

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use passant_attest::peer::{Listed, Peer, PeerError, PeerIdentity};
use passant_attest::workload::{AttestError, WorkloadAttestor};
use passant_core::{Selector, Selectors};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// One process, from its start to its exit.
pub(crate) struct Process {
    /// Unique in a run, unlike its pid.
    pub(crate) number: u32,
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    /// Counts moves to other pods.
    pod: Mutex<Pod>,
    pub(crate) exit: CancellationToken,
}

struct Pod {
    name: String,
    moves: u8,
    since: Instant,
}

/// The processes of one node, by pid. Clones are the same table.
#[derive(Clone, Default)]
pub(crate) struct Table(Arc<Mutex<BTreeMap<u32, Arc<Process>>>>);

impl Process {
    pub(crate) fn new(number: u32, pid: u32, uid: u32, pod: &str) -> Arc<Self> {
        let pod = Mutex::new(Pod { name: pod.to_owned(), moves: 0, since: Instant::now() });
        Arc::new(Self { number, pid, uid, pod, exit: CancellationToken::new() })
    }

    fn pod(&self) -> MutexGuard<'_, Pod> {
        self.pod.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves it to another control group.
    pub(crate) fn move_to(&self, pod: &str) {
        let mut held = self.pod();
        let moves = held.moves.wrapping_add(1);
        *held = Pod { name: pod.to_owned(), moves, since: Instant::now() };
    }

    /// Since when it is what it is.
    pub(crate) fn steady_since(&self) -> Instant {
        self.pod().since
    }

    /// What is true of it.
    pub(crate) fn selectors(&self) -> Selectors {
        unix(self).into_iter().chain(pod(self)).collect()
    }
}

/// What the attestor `unix` finds.
fn unix(process: &Process) -> Option<Selector> {
    Selector::new("unix", &format!("uid:{}", process.uid)).ok()
}

/// What the attestor `pod` finds.
fn pod(process: &Process) -> Option<Selector> {
    Selector::new("pod", &process.pod().name).ok()
}

impl Listed for Process {
    fn pid(&self) -> u32 {
        self.pid
    }

    fn uid(&self) -> u32 {
        self.uid
    }

    fn gid(&self) -> u32 {
        self.uid
    }

    fn start_time(&self) -> u64 {
        self.number.into()
    }

    fn identity(&self) -> Result<PeerIdentity, PeerError> {
        if self.exit.is_cancelled() {
            return Err(PeerError::Gone);
        }
        Ok(PeerIdentity { uid: self.uid, gid: self.uid, executable: None, cgroup: [self.pod().moves; 32] })
    }

    fn exited(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.exit.cancelled())
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Process>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn put(&self, process: &Arc<Process>) {
        self.lock().insert(process.pid, Arc::clone(process));
    }

    /// Ends the process, if it is there; another may have its pid from now on.
    pub(crate) fn end(&self, pid: u32) -> Option<Arc<Process>> {
        let process = self.lock().remove(&pid)?;
        process.exit.cancel();
        Some(process)
    }

    fn of_pid(&self, pid: u32) -> Option<Arc<Process>> {
        self.lock().get(&pid).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Process>> {
        self.lock().values().cloned().collect()
    }
}

/// How the attestors of a node feel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    Failing,
    /// Answers take this long; the process is looked at after it.
    Slow(Duration),
    /// Answers take this long; the process is looked at before it.
    Stale(Duration),
}

/// An attestor that looks pids up in a [`Table`], as real ones do in `/proc`: it finds whoever has the pid then.
pub(crate) struct Attestor {
    pub(crate) method: &'static str,
    pub(crate) table: Table,
    pub(crate) mood: Arc<Mutex<Mood>>,
}

impl Attestor {
    /// Both attestors of a node.
    pub(crate) fn all(table: &Table, mood: &Arc<Mutex<Mood>>) -> Vec<Arc<dyn WorkloadAttestor>> {
        let of = |method| {
            Arc::new(Self { method, table: table.clone(), mood: Arc::clone(mood) })
                as Arc<dyn WorkloadAttestor>
        };
        vec![of("pod"), of("unix")]
    }

    fn look(&self, pid: u32) -> Result<Selectors, AttestError> {
        let process = self.table.of_pid(pid).ok_or(AttestError::Peer(PeerError::Gone))?;
        let found = if self.method == "unix" { unix(&process) } else { pod(&process) };
        Ok(found.into_iter().collect())
    }
}

impl WorkloadAttestor for Attestor {
    fn method(&self) -> &'static str {
        self.method
    }

    fn attest<'a>(
        &'a self,
        peer: &'a Peer,
    ) -> Pin<Box<dyn Future<Output = Result<Selectors, AttestError>> + Send + 'a>> {
        let mood = *self.mood.lock().unwrap_or_else(PoisonError::into_inner);
        Box::pin(async move {
            match mood {
                Mood::Well => self.look(peer.pid()),
                // One of the two: what the other finds must not be taken for all there is.
                Mood::Failing if self.method == "pod" => Err(AttestError::Failed {
                    what: "the container runtime does not answer".to_owned(),
                    source: None,
                }),
                Mood::Failing => self.look(peer.pid()),
                Mood::Slow(span) => {
                    tokio::time::sleep(span).await;
                    self.look(peer.pid())
                }
                Mood::Stale(span) => {
                    let found = self.look(peer.pid());
                    tokio::time::sleep(span).await;
                    found
                }
            }
        })
    }
}
