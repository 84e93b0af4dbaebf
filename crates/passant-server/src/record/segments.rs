//! Where do the lines of the decision record lie?

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use passant_daemon::private_dir::make_private_dir;

/// Numbered runs of bytes. Only the newest is ever appended to. Calls block, and come from one thread at a time.
pub trait Segments: Send {
    /// What an operator calls segment `number`.
    fn name(&self, number: u32) -> String;

    /// The numbers of all segments, ascending.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn list(&mut self) -> io::Result<Vec<u32>>;

    /// All of a segment.
    ///
    /// # Errors
    /// When there is no such segment, or it cannot be read.
    fn read(&mut self, number: u32) -> io::Result<Vec<u8>>;

    /// The first line of a segment without reading the rest, and the size of the segment in bytes.
    ///
    /// # Errors
    /// As [`Segments::read`].
    fn peek(&mut self, number: u32) -> io::Result<(Vec<u8>, u64)>;

    /// Begins a segment, empty; that it is there is durable.
    ///
    /// # Errors
    /// When there is one of that number, or it cannot be made.
    fn create(&mut self, number: u32) -> io::Result<()>;

    /// Puts `bytes` at the end of a segment. Durable only after [`Segments::sync`].
    ///
    /// # Errors
    /// When they could not all be written; some may have been.
    fn append(&mut self, number: u32, bytes: &[u8]) -> io::Result<()>;

    /// Returns once all that was appended is durable.
    ///
    /// # Errors
    /// When that is not certain.
    fn sync(&mut self, number: u32) -> io::Result<()>;

    /// Cuts a segment down to its first `len` bytes.
    ///
    /// # Errors
    /// When it cannot be cut.
    fn truncate(&mut self, number: u32, len: u64) -> io::Result<()>;

    /// Removes a segment for good; one that somebody else has taken away is gone already.
    ///
    /// # Errors
    /// When it cannot be removed.
    fn remove(&mut self, number: u32) -> io::Result<()>;

    /// Lets go of every handle. What is read of segment `number` afterwards is what the disk holds: nothing is believed of
    /// what was written before and may never have reached it.
    ///
    /// # Errors
    /// When it cannot be opened.
    fn reopen(&mut self, number: u32) -> io::Result<()>;

    /// Whether calls return at once, so that they may be made on an I/O thread.
    fn is_instant(&self) -> bool {
        false
    }

    /// The same segments once more, to be read while these are written to; `None` where that cannot be.
    fn reader(&self) -> Option<Box<dyn Segments>> {
        None
    }
}

/// Segments as files `NNNNNNNN.log` (mode 0600) in a directory (mode 0700).
#[derive(Debug)]
pub struct FileSegments {
    dir: PathBuf,
    /// The segment that was appended to last.
    current: Option<(u32, File)>,
}

impl FileSegments {
    /// Takes `dir` for segments, and creates it when there is none.
    ///
    /// # Errors
    /// When it cannot be made private to its owner.
    pub fn open(dir: &Path) -> io::Result<Self> {
        make_private_dir(dir)?;
        if let Some(above) = dir.parent().filter(|above| !above.as_os_str().is_empty()) {
            File::open(above)?.sync_all()?;
        }
        Ok(Self::read_only(dir))
    }

    /// The segments in `dir`, which is left as it is.
    pub(super) fn read_only(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), current: None }
    }

    fn path(&self, number: u32) -> PathBuf {
        self.dir.join(format!("{number:08}.log"))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn current(&mut self, number: u32) -> io::Result<&mut File> {
        let file = match self.current.take() {
            Some((of, file)) if of == number => file,
            _ => OpenOptions::new().append(true).open(self.path(number))?,
        };
        Ok(&mut self.current.insert((number, file)).1)
    }
}

impl Segments for FileSegments {
    fn name(&self, number: u32) -> String {
        self.path(number).display().to_string()
    }

    fn list(&mut self) -> io::Result<Vec<u32>> {
        let mut numbers = Vec::new();
        for file in fs::read_dir(&self.dir)? {
            let name = file?.file_name();
            let digits = name.to_str().and_then(|name| name.strip_suffix(".log"));
            let number =
                digits.filter(|digits| digits.len() >= 8).and_then(|digits| digits.parse::<u32>().ok());
            numbers.extend(number);
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn read(&mut self, number: u32) -> io::Result<Vec<u8>> {
        fs::read(self.path(number))
    }

    fn peek(&mut self, number: u32) -> io::Result<(Vec<u8>, u64)> {
        let file = File::open(self.path(number))?;
        let size = file.metadata()?.len();
        let mut line = Vec::new();
        BufReader::new(file).read_until(b'\n', &mut line)?;
        Ok((line, size))
    }

    fn create(&mut self, number: u32) -> io::Result<()> {
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(self.path(number))?;
        file.sync_all()?;
        self.sync_dir()?;
        self.current = Some((number, file));
        Ok(())
    }

    fn append(&mut self, number: u32, bytes: &[u8]) -> io::Result<()> {
        self.current(number)?.write_all(bytes)
    }

    fn sync(&mut self, number: u32) -> io::Result<()> {
        self.current(number)?.sync_data()
    }

    fn truncate(&mut self, number: u32, len: u64) -> io::Result<()> {
        let file = self.current(number)?;
        file.set_len(len)?;
        file.sync_all()
    }

    fn remove(&mut self, number: u32) -> io::Result<()> {
        match fs::remove_file(self.path(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.sync_dir(),
        }
    }

    fn reopen(&mut self, number: u32) -> io::Result<()> {
        self.current = None;
        let file = File::open(self.path(number))?;
        file.sync_all()?;
        // After a failed sync the page cache may show what the disk never got.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        self.sync_dir()
    }

    fn reader(&self) -> Option<Box<dyn Segments>> {
        Some(Box::new(Self::read_only(&self.dir)))
    }
}

/// Segments in memory, for development, tests and simulation. Clones are the same directory.
#[derive(Clone, Debug, Default)]
pub struct MemorySegments(Arc<Mutex<BTreeMap<u32, Vec<u8>>>>);

impl MemorySegments {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, number: u32, act: impl FnOnce(&mut Vec<u8>) -> T) -> io::Result<T> {
        self.lock().get_mut(&number).map(act).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Segments for MemorySegments {
    fn name(&self, number: u32) -> String {
        format!("segment {number} in memory")
    }

    fn list(&mut self) -> io::Result<Vec<u32>> {
        Ok(self.lock().keys().copied().collect())
    }

    fn read(&mut self, number: u32) -> io::Result<Vec<u8>> {
        self.with(number, |bytes| bytes.clone())
    }

    fn peek(&mut self, number: u32) -> io::Result<(Vec<u8>, u64)> {
        self.with(number, |bytes| {
            let line = bytes.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
            (line.to_vec(), u64::try_from(bytes.len()).unwrap_or(u64::MAX))
        })
    }

    fn create(&mut self, number: u32) -> io::Result<()> {
        if self.lock().insert(number, Vec::new()).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(())
    }

    fn append(&mut self, number: u32, bytes: &[u8]) -> io::Result<()> {
        self.with(number, |segment| segment.extend_from_slice(bytes))
    }

    fn sync(&mut self, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&mut self, number: u32, len: u64) -> io::Result<()> {
        self.with(number, |segment| segment.truncate(usize::try_from(len).unwrap_or(usize::MAX)))
    }

    fn remove(&mut self, number: u32) -> io::Result<()> {
        self.lock().remove(&number);
        Ok(())
    }

    fn reopen(&mut self, number: u32) -> io::Result<()> {
        self.with(number, |_| ())
    }

    fn is_instant(&self) -> bool {
        true
    }

    fn reader(&self) -> Option<Box<dyn Segments>> {
        Some(Box::new(self.clone()))
    }
}
