//! How does sled's file come from the disk in order, while sled asks for it in another?

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

/// How much is read at once.
const BYTES: usize = 1 << 20;

/// A thread that reads a file in order, as far as that goes. What was dropped from the page cache is then there before sled asks for
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
            let Ok(mut file) = File::open(path) else { return };
            let mut piece = vec![0; BYTES];
            while !ends.load(Ordering::Relaxed) && file.read(&mut piece).is_ok_and(|read| read > 0) {}
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
