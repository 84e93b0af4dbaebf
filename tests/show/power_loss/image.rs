//! What does a disk still hold after the power failed? Pure: files, names, and what of them was synced.
//!
//! Every write, change of size, creation, rename and removal is kept apart until it is synced: data by a sync of the file,
//! names by a sync of the directory. Of two readings of POSIX the harsher one is taken: a sync of a new file does *not*
//! make its name last (on ext4 it does). At a cut, each thing that was not synced may have lasted or not; see [`Cut`].

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

/// The number of the root directory.
pub(crate) const ROOT: u64 = 1;

/// What a cut leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cut {
    /// Nothing: a disk whose cache was lost.
    Nothing,
    /// Everything: the program alone was killed.
    Everything,
    /// What came before one moment, over all files and names: a disk that keeps order.
    Prefix,
    /// Each block of 4 KiB and each directory as of some moment since its last sync: a page cache.
    Blocks,
    /// Each sector of 512 bytes as of some moment, and each name for itself: torn pages, and no order at all.
    Sectors,
}

impl Cut {
    pub(crate) const ALL: [Self; 5] =
        [Self::Nothing, Self::Everything, Self::Prefix, Self::Blocks, Self::Sectors];

    fn grain(self) -> usize {
        if self == Self::Sectors { 512 } else { 4096 }
    }
}

/// Numbers that follow from a seed (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `0..most`.
    pub(crate) fn below(&mut self, most: usize) -> usize {
        let most = u64::try_from(most.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.next() % most).unwrap_or(0)
    }
}

/// Files and directories.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    nodes: BTreeMap<u64, Node>,
    newest: u64,
    /// Counts what is not synced, over all files.
    moment: u64,
}

/// A file or a directory.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) mode: u32,
    /// Counts changes; shown as the time of the last one.
    pub(crate) changes: u64,
    body: Body,
}

#[derive(Clone, Debug)]
enum Body {
    File { now: Vec<u8>, lasting: Vec<u8>, pending: Vec<(u64, Write)> },
    Dir { now: BTreeMap<OsString, u64>, lasting: BTreeMap<OsString, u64>, pending: Vec<(u64, Naming)> },
}

#[derive(Clone, Debug)]
enum Write {
    Data { at: usize, bytes: Vec<u8> },
    Size(usize),
}

#[derive(Clone, Debug)]
enum Naming {
    Put(OsString, u64),
    Remove(OsString),
    Rename(OsString, OsString, u64),
}

impl Node {
    pub(crate) fn is_dir(&self) -> bool {
        matches!(self.body, Body::Dir { .. })
    }

    /// Bytes of a file.
    pub(crate) fn size(&self) -> u64 {
        match &self.body {
            Body::File { now, .. } => u64::try_from(now.len()).unwrap_or(u64::MAX),
            Body::Dir { .. } => 0,
        }
    }

    /// The names in a directory.
    pub(crate) fn names(&self) -> Vec<(OsString, u64)> {
        match &self.body {
            Body::Dir { now, .. } => now.iter().map(|(name, number)| (name.clone(), *number)).collect(),
            Body::File { .. } => Vec::new(),
        }
    }

    /// At most `len` bytes of a file from `at`.
    pub(crate) fn read(&self, at: usize, len: usize) -> &[u8] {
        match &self.body {
            Body::File { now, .. } => {
                let from = at.min(now.len());
                &now[from..from.saturating_add(len).min(now.len())]
            }
            Body::Dir { .. } => &[],
        }
    }
}

impl Image {
    /// An empty disk.
    pub(crate) fn new() -> Self {
        let root = Node { mode: 0o700, changes: 0, body: dir(BTreeMap::new()) };
        Self { nodes: BTreeMap::from([(ROOT, root)]), newest: ROOT, moment: 0 }
    }

    pub(crate) fn node(&self, number: u64) -> Option<&Node> {
        self.nodes.get(&number)
    }

    pub(crate) fn lookup(&self, parent: u64, name: &OsStr) -> Option<u64> {
        match &self.nodes.get(&parent)?.body {
            Body::Dir { now, .. } => now.get(name).copied(),
            Body::File { .. } => None,
        }
    }

    /// How many writes and namings are not synced.
    pub(crate) fn unsynced(&self) -> usize {
        let count = |node: &Node| match &node.body {
            Body::File { pending, .. } => pending.len(),
            Body::Dir { pending, .. } => pending.len(),
        };
        self.nodes.values().map(count).sum()
    }

    /// Makes an empty file or directory; none when the name is taken.
    pub(crate) fn create(&mut self, parent: u64, name: &OsStr, mode: u32, is_dir: bool) -> Option<u64> {
        if self.lookup(parent, name).is_some() {
            return None;
        }
        self.newest += 1;
        let number = self.newest;
        let body = if is_dir { dir(BTreeMap::new()) } else { file(Vec::new()) };
        self.nodes.insert(number, Node { mode, changes: self.moment, body });
        self.naming(parent, Naming::Put(name.to_owned(), number));
        Some(number)
    }

    pub(crate) fn remove(&mut self, parent: u64, name: &OsStr) {
        self.naming(parent, Naming::Remove(name.to_owned()));
    }

    /// Renames within one directory; none when there is no such name.
    pub(crate) fn rename(&mut self, parent: u64, from: &OsStr, to: &OsStr) -> Option<()> {
        let number = self.lookup(parent, from)?;
        self.naming(parent, Naming::Rename(from.to_owned(), to.to_owned(), number));
        Some(())
    }

    pub(crate) fn set_mode(&mut self, number: u64, mode: u32) {
        if let Some(node) = self.nodes.get_mut(&number) {
            node.mode = mode;
        }
    }

    pub(crate) fn write(&mut self, number: u64, at: usize, bytes: &[u8]) {
        self.writing(number, Write::Data { at, bytes: bytes.to_vec() });
    }

    pub(crate) fn resize(&mut self, number: u64, len: usize) {
        self.writing(number, Write::Size(len));
    }

    /// Makes what was written to a file, or the names in a directory, last.
    pub(crate) fn sync(&mut self, number: u64) {
        match self.nodes.get_mut(&number).map(|node| &mut node.body) {
            Some(Body::File { lasting, pending, .. }) => {
                pending.drain(..).for_each(|(_, write)| put(lasting, &write));
            }
            Some(Body::Dir { lasting, pending, .. }) => {
                pending.drain(..).for_each(|(_, naming)| name_it(lasting, &naming));
            }
            None => {}
        }
    }

    /// A sync of a file that failed: what was written is gone, and so it reads, though the size stays. A page cache may
    /// still show it.
    pub(crate) fn fail_to_sync(&mut self, number: u64) {
        let moment = self.tick();
        if let Some(Body::File { now, lasting, pending }) =
            self.nodes.get_mut(&number).map(|node| &mut node.body)
        {
            let len = now.len();
            *now = lasting.clone();
            now.resize(len, 0);
            *pending = vec![(moment, Write::Size(len))];
        }
    }

    /// The disk that is found after the power was cut.
    pub(crate) fn after(&self, cut: Cut, dice: &mut Dice) -> Self {
        // From before the oldest change that is not synced up to the newest.
        let oldest = self.oldest_pending().unwrap_or(self.moment + 1);
        let span = usize::try_from(self.moment + 1 - oldest).unwrap_or(usize::MAX);
        let until = oldest + u64::try_from(dice.below(span + 1)).unwrap_or(0) - 1;
        let mut after = Self { nodes: BTreeMap::new(), newest: self.newest, moment: self.moment };
        for (number, node) in &self.nodes {
            let body = match &node.body {
                Body::File { now, lasting, pending } => file(match cut {
                    Cut::Nothing => lasting.clone(),
                    Cut::Everything => now.clone(),
                    Cut::Prefix => {
                        let mut lasting = lasting.clone();
                        let kept = pending.iter().filter(|(moment, _)| *moment <= until);
                        kept.for_each(|(_, write)| put(&mut lasting, write));
                        lasting
                    }
                    Cut::Blocks | Cut::Sectors => torn(lasting, pending, cut.grain(), dice),
                }),
                Body::Dir { now, lasting, pending } => dir(match cut {
                    Cut::Nothing => lasting.clone(),
                    Cut::Everything => now.clone(),
                    Cut::Prefix | Cut::Blocks | Cut::Sectors => {
                        let most = dice.below(pending.len() + 1);
                        let mut lasting = lasting.clone();
                        for (nth, (moment, naming)) in pending.iter().enumerate() {
                            let is_kept = match cut {
                                Cut::Prefix => *moment <= until,
                                Cut::Sectors => dice.below(2) == 0,
                                Cut::Nothing | Cut::Everything | Cut::Blocks => nth < most,
                            };
                            if is_kept {
                                name_it(&mut lasting, naming);
                            }
                        }
                        lasting
                    }
                }),
            };
            after.nodes.insert(*number, Node { mode: node.mode, changes: node.changes, body });
        }
        after
    }

    fn oldest_pending(&self) -> Option<u64> {
        let first = |node: &Node| match &node.body {
            Body::File { pending, .. } => pending.first().map(|(moment, _)| *moment),
            Body::Dir { pending, .. } => pending.first().map(|(moment, _)| *moment),
        };
        self.nodes.values().filter_map(first).min()
    }

    const fn tick(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    fn writing(&mut self, number: u64, write: Write) {
        let moment = self.tick();
        if let Some(node) = self.nodes.get_mut(&number) {
            node.changes = moment;
            if let Body::File { now, pending, .. } = &mut node.body {
                put(now, &write);
                pending.push((moment, write));
            }
        }
    }

    fn naming(&mut self, parent: u64, naming: Naming) {
        let moment = self.tick();
        if let Some(node) = self.nodes.get_mut(&parent) {
            node.changes = moment;
            if let Body::Dir { now, pending, .. } = &mut node.body {
                name_it(now, &naming);
                pending.push((moment, naming));
            }
        }
    }
}

fn file(lasting: Vec<u8>) -> Body {
    Body::File { now: lasting.clone(), lasting, pending: Vec::new() }
}

fn dir(lasting: BTreeMap<OsString, u64>) -> Body {
    Body::Dir { now: lasting.clone(), lasting, pending: Vec::new() }
}

fn put(file: &mut Vec<u8>, write: &Write) {
    match write {
        Write::Size(len) => file.resize(*len, 0),
        Write::Data { at, bytes } => {
            let end = at + bytes.len();
            if file.len() < end {
                file.resize(end, 0);
            }
            file[*at..end].copy_from_slice(bytes);
        }
    }
}

fn name_it(dir: &mut BTreeMap<OsString, u64>, naming: &Naming) {
    match naming {
        Naming::Put(name, number) => drop(dir.insert(name.clone(), *number)),
        Naming::Remove(name) => drop(dir.remove(name)),
        Naming::Rename(from, to, number) => {
            dir.remove(from);
            dir.insert(to.clone(), *number);
        }
    }
}

/// The file with a size of some moment, and each grain of it as of some moment.
fn torn(lasting: &[u8], pending: &[(u64, Write)], grain: usize, dice: &mut Dice) -> Vec<u8> {
    let mut after = lasting.to_vec();
    let sized = dice.below(pending.len() + 1);
    for (_, write) in &pending[..sized] {
        match write {
            Write::Size(len) => after.resize(*len, 0),
            Write::Data { at, bytes } if after.len() < at + bytes.len() => after.resize(at + bytes.len(), 0),
            Write::Data { .. } => {}
        }
    }
    let mut touched: BTreeMap<usize, Vec<(usize, &[u8])>> = BTreeMap::new();
    for (_, write) in pending {
        let Write::Data { at, bytes } = write else { continue };
        let mut from = 0;
        while from < bytes.len() {
            let block = (at + from) / grain;
            let to = ((block + 1) * grain - at).min(bytes.len());
            touched.entry(block).or_default().push((at + from, &bytes[from..to]));
            from = to;
        }
    }
    for pieces in touched.into_values() {
        let kept = dice.below(pieces.len() + 1);
        for (at, bytes) in &pieces[..kept] {
            let end = (at + bytes.len()).min(after.len());
            if *at < end {
                after[*at..end].copy_from_slice(&bytes[..end - at]);
            }
        }
    }
    after
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    fn content(image: &Image, file: &str) -> Option<Vec<u8>> {
        let number = image.lookup(ROOT, name(file))?;
        Some(image.node(number)?.read(0, usize::MAX).to_vec())
    }

    /// A synced file `f` of `old`, over which `new` is written.
    fn rewritten() -> (Image, u64) {
        let mut image = Image::new();
        let number = image.create(ROOT, name("f"), 0o600, false).unwrap();
        image.write(number, 0, &[b'o'; 9000]);
        image.sync(number);
        image.sync(ROOT);
        image.write(number, 0, &[b'n'; 9000]);
        (image, number)
    }

    #[test]
    fn what_was_synced_lasts_through_every_cut() {
        let (mut image, number) = rewritten();
        image.sync(number);
        assert_eq!(image.unsynced(), 0);
        for (seed, cut) in (0..).zip(Cut::ALL) {
            let after = image.after(cut, &mut Dice::new(seed));
            assert_eq!(content(&after, "f").unwrap(), [b'n'; 9000], "{cut:?}");
        }
    }

    #[test]
    fn what_was_not_synced_may_be_lost_or_torn() {
        let (image, _) = rewritten();
        assert_eq!(content(&image.after(Cut::Nothing, &mut Dice::new(1)), "f").unwrap(), [b'o'; 9000]);
        assert_eq!(content(&image.after(Cut::Everything, &mut Dice::new(1)), "f").unwrap(), [b'n'; 9000]);
        for (cut, grain) in [(Cut::Blocks, 4096), (Cut::Sectors, 512)] {
            let mut mixed = 0;
            for seed in 0..20 {
                let after = content(&image.after(cut, &mut Dice::new(seed)), "f").unwrap();
                assert!(after.chunks(grain).all(|block| block.iter().all(|byte| *byte == block[0])));
                mixed += usize::from(after.contains(&b'o') && after.contains(&b'n'));
            }
            assert!(mixed > 0, "{cut:?}");
        }
    }

    #[test]
    fn a_name_lasts_by_a_sync_of_its_directory_alone() {
        let mut image = Image::new();
        let number = image.create(ROOT, name("new"), 0o600, false).unwrap();
        image.write(number, 0, b"x");
        image.sync(number);
        assert_eq!(content(&image.after(Cut::Nothing, &mut Dice::new(1)), "new"), None);
        image.sync(ROOT);
        image.rename(ROOT, name("new"), name("f")).unwrap();
        for seed in 0..20 {
            let after = image.after(Cut::Sectors, &mut Dice::new(seed));
            // One of the two names, never none and never both.
            assert_ne!(content(&after, "new").is_some(), content(&after, "f").is_some());
        }
    }

    #[test]
    fn a_prefix_keeps_order_over_files() {
        let mut image = Image::new();
        let files = ["a", "b"].map(|file| image.create(ROOT, name(file), 0o600, false).unwrap());
        image.sync(ROOT);
        for nth in 0..10 {
            image.write(files[nth % 2], nth, &[1]);
        }
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let after = image.after(Cut::Prefix, &mut Dice::new(seed));
            let (a, b) = (content(&after, "a").unwrap().len(), content(&after, "b").unwrap().len());
            assert!(a.abs_diff(b) <= 1 || a == 0 || b == 0, "{a} {b}");
            seen.insert((a, b));
        }
        assert!(seen.len() > 5, "{seen:?}");
    }

    #[test]
    fn a_failed_sync_loses_what_was_written_and_a_later_one_does_not_bring_it_back() {
        let (mut image, number) = rewritten();
        image.write(number, 9000, b"more");
        image.fail_to_sync(number);
        image.sync(number);
        let after = content(&image.after(Cut::Everything, &mut Dice::new(1)), "f").unwrap();
        assert_eq!((&after[..9000], &after[9000..]), ([b'o'; 9000].as_slice(), [0; 4].as_slice()));
    }
}
