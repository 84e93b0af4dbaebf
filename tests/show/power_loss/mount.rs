//! How does a directory of this machine lie on a disk that can fail and lose its power? By FUSE.
//!
//! The kernel's page cache stands between, as in real life: it writes through, and keeps what it wrote even after a sync
//! failed. What bypasses FUSE, such as `sync_file_range`, syncs nothing here.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::image::{Cut, Dice, Image, ROOT};

/// Nothing is remembered by the kernel but the contents of files.
const NOW: Duration = Duration::ZERO;

/// What is wrong with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Nothing.
    None,
    /// Nothing more fits on it.
    Full,
    /// It takes no changes any more, as file systems do after a fault.
    ReadOnly,
    /// Writes and syncs fail.
    Broken,
    /// Writes go well, and the sync that fails loses them.
    LosesOnSync,
}

/// A disk under a directory.
#[derive(Clone)]
pub(crate) struct Disk {
    state: Arc<Mutex<State>>,
    at: PathBuf,
}

struct State {
    image: Image,
    trouble: Trouble,
    /// Changes and syncs until the power fails.
    left: Option<u64>,
    is_dark: bool,
    /// Changes and syncs so far.
    steps: u64,
    /// Failures that were answered on account of `trouble`.
    refused: u64,
}

/// A disk that is mounted. Dropped, it is taken off.
pub(crate) struct Mounted {
    session: Option<BackgroundSession>,
}

impl Disk {
    /// An empty disk for the directory `at`.
    pub(crate) fn new(at: &Path) -> Self {
        let state = State {
            image: Image::new(),
            trouble: Trouble::None,
            left: None,
            is_dark: false,
            steps: 0,
            refused: 0,
        };
        Self { state: Arc::new(Mutex::new(state)), at: at.to_owned() }
    }

    /// Whether this machine can have such a disk.
    ///
    /// # Errors
    /// What it lacks.
    pub(crate) fn possible() -> anyhow::Result<()> {
        ensure!(nix::unistd::geteuid().is_root(), "the fake disk is mounted by FUSE, which needs root");
        let device = Path::new("/dev/fuse");
        std::fs::File::options()
            .read(true)
            .write(true)
            .open(device)
            .context("the fake disk needs /dev/fuse")?;
        Ok(())
    }

    /// Mounts it, with power.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub(crate) fn mount(&self) -> anyhow::Result<Mounted> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("passant-fake-disk".to_owned())];
        let session = fuser::spawn_mount(self.clone(), &self.at, &config)
            .with_context(|| format!("failed to mount the fake disk at {}", self.at.display()))?;
        Ok(Mounted { session: Some(session) })
    }

    /// The power fails after so many changes and syncs from now.
    pub(crate) fn cut_after(&self, steps: u64) {
        self.lock().left = Some(steps);
    }

    /// The power fails now.
    pub(crate) fn cut_now(&self) {
        self.lock().is_dark = true;
    }

    pub(crate) fn is_dark(&self) -> bool {
        self.lock().is_dark
    }

    pub(crate) fn set_trouble(&self, trouble: Trouble) {
        self.lock().trouble = trouble;
    }

    /// Changes and syncs so far; changes that are not synced; failures answered.
    pub(crate) fn counts(&self) -> (u64, usize, u64) {
        let state = self.lock();
        (state.steps, state.image.unsynced(), state.refused)
    }

    /// Puts in the place of what is on the disk what a power cut leaves of it, and gives it power again.
    pub(crate) fn restore_power(&self, cut: Cut, dice: &mut Dice) {
        let mut state = self.lock();
        state.image = state.image.after(cut, dice);
        (state.left, state.is_dark, state.trouble) = (None, false, Trouble::None);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mounted {
    /// Takes the disk off. Nobody may have a file open.
    ///
    /// # Errors
    /// When somebody has.
    pub(crate) fn unmount(mut self) -> anyhow::Result<()> {
        let session = self.session.take().context("it is mounted")?;
        session.umount_and_join().context("failed to take the fake disk off")
    }
}

/// What is asked of the disk, as far as trouble tells things apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Grow,
    Shrink,
    Sync,
}

impl State {
    /// Lets a change or a sync happen, or not.
    fn step(&mut self, step: Step) -> Result<(), Errno> {
        if self.is_dark || self.left == Some(0) {
            self.is_dark = true;
            return Err(Errno::EIO);
        }
        self.left = self.left.map(|left| left - 1);
        self.steps += 1;
        let refused = match (self.trouble, step) {
            (Trouble::Full, Step::Grow) => Errno::ENOSPC,
            (Trouble::ReadOnly, Step::Grow | Step::Shrink) => Errno::EROFS,
            (Trouble::Broken, _) | (Trouble::LosesOnSync, Step::Sync) => Errno::EIO,
            (Trouble::None | Trouble::Full | Trouble::ReadOnly | Trouble::LosesOnSync, _) => return Ok(()),
        };
        self.refused += 1;
        Err(refused)
    }

    fn attributes(&self, number: u64) -> Result<FileAttr, Errno> {
        let node = self.image.node(number).ok_or(Errno::ENOENT)?;
        let changed = UNIX_EPOCH + Duration::from_micros(node.changes);
        let kind = if node.is_dir() { FileType::Directory } else { FileType::RegularFile };
        Ok(FileAttr {
            ino: INodeNo(number),
            size: node.size(),
            blocks: node.size().div_ceil(512),
            atime: changed,
            mtime: changed,
            ctime: changed,
            crtime: changed,
            kind,
            perm: u16::try_from(node.mode & 0o7777).unwrap_or(0o600),
            nlink: 1,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn create(&mut self, parent: u64, name: &OsStr, mode: u32, is_dir: bool) -> Result<FileAttr, Errno> {
        self.step(Step::Grow)?;
        let number = self.image.create(parent, name, mode, is_dir).ok_or(Errno::EEXIST)?;
        self.attributes(number)
    }

    fn remove(&mut self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        self.step(Step::Shrink)?;
        self.image.lookup(parent, name).ok_or(Errno::ENOENT)?;
        self.image.remove(parent, name);
        Ok(())
    }

    fn sync(&mut self, number: u64) -> Result<(), Errno> {
        let allowed = self.step(Step::Sync);
        match allowed {
            Ok(()) => self.image.sync(number),
            Err(_) if !self.is_dark => self.image.fail_to_sync(number),
            Err(_) => {}
        }
        allowed
    }

    fn write(&mut self, number: u64, at: u64, bytes: &[u8]) -> Result<u32, Errno> {
        let at = usize::try_from(at).map_err(|_| Errno::EFBIG)?;
        self.step(Step::Grow)?;
        self.image.write(number, at, bytes);
        u32::try_from(bytes.len()).map_err(|_| Errno::EINVAL)
    }
}

fn answer(reply: ReplyEmpty, done: Result<(), Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn answer_entry(reply: ReplyEntry, found: Result<FileAttr, Errno>) {
    match found {
        Ok(attributes) => reply.entry(&NOW, &attributes, Generation(0)),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Disk {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let state = self.lock();
        let found = state.image.lookup(parent.0, name).ok_or(Errno::ENOENT);
        answer_entry(reply, found.and_then(|number| state.attributes(number)));
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.lock().attributes(number.0) {
            Ok(attributes) => reply.attr(&NOW, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.lock();
        let mut set = || {
            if let Some(mode) = mode {
                state.image.set_mode(number.0, mode);
            }
            if let Some(size) = size {
                let now = state.image.node(number.0).ok_or(Errno::ENOENT)?.size();
                state.step(if size > now { Step::Grow } else { Step::Shrink })?;
                state.image.resize(number.0, usize::try_from(size).map_err(|_| Errno::EFBIG)?);
            }
            state.attributes(number.0)
        };
        match set() {
            Ok(attributes) => reply.attr(&NOW, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        answer_entry(reply, self.lock().create(parent.0, name, mode & !umask, true));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        match self.lock().create(parent.0, name, mode & !umask, false) {
            Ok(attributes) => {
                reply.created(&NOW, &attributes, Generation(0), FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE)
            }
            Err(error) => reply.error(error),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.lock().remove(parent.0, name));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.lock().remove(parent.0, name));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        to_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut state = self.lock();
        let renamed = if parent == to { state.step(Step::Shrink) } else { Err(Errno::EXDEV) };
        let renamed = renamed.and_then(|()| state.image.rename(parent.0, name, to_name).ok_or(Errno::ENOENT));
        answer(reply, renamed);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        at: u64,
        len: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = self.lock();
        let place = usize::try_from(at).ok().zip(usize::try_from(len).ok());
        match (state.image.node(number.0), place) {
            (Some(node), Some((at, len))) => reply.data(node.read(at, len)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn write(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        at: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.lock().write(number.0, at, bytes) {
            Ok(written) => reply.written(written),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(reply, self.lock().sync(number.0));
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer(reply, self.lock().sync(number.0));
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, from: u64, mut reply: ReplyDirectory) {
        let state = self.lock();
        let Some(node) = state.image.node(number.0) else { return reply.error(Errno::ENOENT) };
        let dots = [(".".into(), number.0), ("..".into(), ROOT)];
        let names = dots.into_iter().chain(node.names());
        for (nth, (name, number)) in (1..).zip(names).skip(usize::try_from(from).unwrap_or(usize::MAX)) {
            let is_dir = state.image.node(number).is_some_and(super::image::Node::is_dir);
            let kind = if is_dir { FileType::Directory } else { FileType::RegularFile };
            if reply.add(INodeNo(number), nth, kind, &name) {
                break;
            }
        }
        reply.ok();
    }
}
