//! How does sled's file come from the disk in order, while sled asks for it in another?

use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

/// How much the kernel is told at once that it is wanted, and how much of that is under way.
const PIECE: u64 = 1 << 20;
const UNDER_WAY: u64 = 4 * PIECE;

/// A thread that has the kernel read a file in order, as far as that goes, and itself reads as good as nothing of it. What was dropped from the page cache is then there before sled asks for
/// it: piece by piece, in the order of keys, it would take several times as long to come from the disk.
///
/// It ends with this: what is dropped from the page cache later must not be held by a reader of ours.
pub(super) struct ReadAhead {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ReadAhead {
    /// Without a thread, or without the file, nothing is read ahead.
    pub(super) fn begin(path: &Path) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (path, ends) = (path.to_owned(), Arc::clone(&is_over));
        let read = move || {
            let Ok(file) = File::open(path) else { return };
            let want =
                |from| rustix::fs::fadvise(&file, from, NonZeroU64::new(PIECE), rustix::fs::Advice::WillNeed);
            let mut at = 0;
            // Where it does not last, what is not wanted ahead is read when it is asked for.
            while !ends.load(Ordering::Relaxed) && want(at).is_ok() {
                let there = at.saturating_sub(UNDER_WAY);
                // Waits until that is there; behind the end there is nothing.
                if !file.read_at(&mut [0], there).is_ok_and(|read| read > 0) {
                    break;
                }
                at += PIECE;
            }
        };
        Self { is_over, thread: Builder::new().name("read-ahead".to_owned()).spawn(read).ok() }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // It cannot have failed in any way that matters.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_before_its_file_does_and_without_one_too() {
        let dir = tempfile::tempdir().unwrap();
        let endless = Path::new("/dev/zero");
        for path in [endless, &dir.path().join("none")] {
            let ahead = ReadAhead::begin(path);
            assert!(ahead.thread.is_some());
            drop(ahead);
        }
    }
}
