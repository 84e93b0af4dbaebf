//! What does `/proc` say about a process?
//!
//! A pid can be taken over by another process, so that nothing read here means anything by itself: [`crate::peer::Peer`]
//! confirms after each read that its process was still running.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::limits::PROCESS_FILE_BYTES;

/// The directory of one pid.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    dir: PathBuf,
}

/// Whose rights a process has: its effective user and groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) supplementary_gids: Vec<u32>,
}

/// The file that a process runs, whatever stands at its path now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExecutableInode {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

impl Process {
    pub(crate) fn of(pid: u32) -> Self {
        Self { dir: PathBuf::from(format!("/proc/{pid}")) }
    }

    /// When it started, in clock ticks since boot.
    pub(crate) fn start_time(&self) -> io::Result<u64> {
        let stat = self.read("stat")?;
        start_time_in(&stat).ok_or_else(|| unexpected("stat"))
    }

    pub(crate) fn credentials(&self) -> io::Result<Credentials> {
        let status = self.read("status")?;
        credentials_in(&status).ok_or_else(|| unexpected("status"))
    }

    /// The bytes of its `cgroup` file: one line per hierarchy.
    pub(crate) fn cgroup(&self) -> io::Result<Vec<u8>> {
        self.read("cgroup")
    }

    /// A link to the running executable, which opens that very file even if it was moved or deleted.
    pub(crate) fn executable(&self) -> PathBuf {
        self.dir.join("exe")
    }

    pub(crate) fn executable_inode(&self) -> io::Result<ExecutableInode> {
        let metadata = fs::metadata(self.executable())?;
        Ok(ExecutableInode { device: metadata.dev(), inode: metadata.ino() })
    }

    /// The path that the kernel shows for the executable; it ends in ` (deleted)` when nothing stands there any more.
    pub(crate) fn executable_path(&self) -> io::Result<PathBuf> {
        fs::read_link(self.executable())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        read_bounded(&self.dir.join(name))
    }
}

/// What `status`, the longest of the files, has on most machines is well below this.
const USUAL_BYTES: usize = 4096;

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    // Room for all of a usual file, so that one read brings it: grown step by step it would take seven.
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    File::open(path)?.take(PROCESS_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > PROCESS_FILE_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{} is too long", path.display())));
    }
    Ok(bytes)
}

fn unexpected(name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{name} of the process is not as proc(5) describes it"),
    )
}

/// Field 22 of `stat`. The second field, the command, is chosen by the process and may hold anything; it ends with the
/// last parenthesis.
fn start_time_in(stat: &[u8]) -> Option<u64> {
    let command_end = stat.iter().rposition(|byte| *byte == b')')?;
    let fields = str::from_utf8(&stat[command_end + 1..]).ok()?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn credentials_in(status: &[u8]) -> Option<Credentials> {
    let status = String::from_utf8_lossy(status);
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    // Real, effective, saved and file system id.
    let effective = |name| field(name)?.split_ascii_whitespace().nth(1)?.parse().ok();
    let groups =
        field("Groups")?.split_ascii_whitespace().map(|gid| gid.parse().ok()).collect::<Option<_>>()?;
    Some(Credentials { uid: effective("Uid")?, gid: effective("Gid")?, supplementary_gids: groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_a_hostile_command() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20";
        for command in ["sh", "a b", "x) S 1 2", ")))", "new\nline"] {
            assert_eq!(start_time_in(format!("42 ({command}) {rest}").as_bytes()), Some(777), "{command:?}");
        }
        assert_eq!(start_time_in(b"42 (sh) S 1 2"), None);
        assert_eq!(start_time_in(b"42"), None);
    }

    #[test]
    fn effective_ids_are_taken() {
        let status = b"Name:\tUid:\t9\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t10 20 \n";
        assert_eq!(
            credentials_in(status),
            Some(Credentials { uid: 2, gid: 6, supplementary_gids: vec![10, 20] })
        );
        assert_eq!(credentials_in(b"Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n"), None, "no Groups line");
        let in_no_group = credentials_in(b"Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t\n").unwrap();
        assert!(in_no_group.supplementary_gids.is_empty());
    }

    #[test]
    fn this_very_process_can_be_read() {
        let process = Process::of(std::process::id());
        assert!(process.start_time().unwrap() > 0);
        assert_eq!(process.credentials().unwrap().uid, nix::unistd::geteuid().as_raw());
        assert!(!process.cgroup().unwrap().is_empty());
        assert_eq!(process.executable_path().unwrap(), std::env::current_exe().unwrap());
    }
}
