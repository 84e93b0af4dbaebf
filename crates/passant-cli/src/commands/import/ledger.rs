//! What did the import make, so that it can be taken back?
//!
//! A file of JSON lines beside the operator, not at the server: whoever undoes an import says which. A line is on disk before
//! what it tells of is made, so that an import that is cut off can be undone too; what was then not made is gone already.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use passant_core::TrustDomain;
use prost::Message;
use ring::digest;
use serde::{Deserialize, Serialize};

/// How every ledger begins.
const BEGINNING: &str = "{\"import\":";
/// The format that is written. An unknown one is not read.
const FORMAT: u32 = 1;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Made {
    /// The first line.
    Import { format: u32, trust_domain: TrustDomain },
    /// An X.509 authority of SPIRE was appended to the bundle; DER in hex.
    X509Authority(String),
    /// A JWT authority of SPIRE was appended to the bundle; its key ID.
    JwtAuthority(String),
    /// Authorities of this server were appended to SPIRE's bundle, in this second.
    Told(i64),
    /// A foreign bundle was made.
    Bundle { trust_domain: String, hash: String },
    /// A federation relationship was made.
    Relationship { trust_domain: String, hash: String },
    /// An entry was made.
    Entry { id: String, hash: String },
    /// An agent was adopted.
    Agent(String),
    /// A relationship was made with a trust domain whose bundle was here before.
    BundleBefore(String),
    /// All before this line was undone.
    Undone,
}

/// The file, open for more lines.
pub(super) struct Ledger {
    path: PathBuf,
    file: File,
    known: BTreeSet<Made>,
}

impl Ledger {
    /// Opens the file, or makes one.
    ///
    /// # Errors
    /// When it is of another trust domain, or cannot be read or written.
    pub(super) fn open(path: &Path, trust_domain: &TrustDomain) -> anyhow::Result<Self> {
        let failed = || format!("failed to open the ledger {}", path.display());
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(failed)?;
        if file.try_lock().is_err() {
            bail!("{} is in use: another import or undo is running", path.display());
        }
        let (known, whole) = read(&file, path, trust_domain)?;
        // A line that was cut off tells of nothing that was made.
        file.set_len(whole).with_context(failed)?;
        file.seek(SeekFrom::End(0)).with_context(failed)?;
        let mut ledger = Self { path: path.to_owned(), file, known };
        if whole == 0 {
            // The name has to last as long as what is written under it.
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(dir).and_then(|dir| dir.sync_all()).with_context(failed)?;
        }
        ledger.write(vec![Made::Import { format: FORMAT, trust_domain: trust_domain.clone() }])?;
        Ok(ledger)
    }

    /// Says that all was undone. What comes after belongs to another import.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn end(mut self) -> anyhow::Result<()> {
        if self.known.iter().all(stands) {
            return Ok(());
        }
        self.write(vec![Made::Undone])
    }

    /// What a ledger tells.
    ///
    /// # Errors
    /// When there is none, it is of another trust domain, or cannot be read.
    pub(super) fn read(path: &Path, trust_domain: &TrustDomain) -> anyhow::Result<BTreeSet<Made>> {
        let file = File::open(path).with_context(|| {
            format!(
                "failed to read the ledger {}, in which the import wrote down what it made: name it with --ledger",
                path.display()
            )
        })?;
        Ok(read(&file, path, trust_domain)?.0)
    }

    /// Writes lines, of which those that stand there already are left out, and sees to it that they last.
    pub(super) fn write(&mut self, made: Vec<Made>) -> anyhow::Result<()> {
        let failed = || format!("failed to write the ledger {}", self.path.display());
        let mut to = BufWriter::new(&self.file);
        let mut some = false;
        for made in made {
            if self.known.contains(&made) {
                continue;
            }
            some = true;
            serde_json::to_writer(&mut to, &made).with_context(failed)?;
            to.write_all(b"\n").with_context(failed)?;
            self.known.insert(made);
        }
        to.flush().with_context(failed)?;
        drop(to);
        if some {
            self.file.sync_data().with_context(failed)?;
        }
        Ok(())
    }

    /// Whether it has this line.
    pub(super) fn tells(&self, made: &Made) -> bool {
        self.known.contains(made)
    }

    /// The second in which SPIRE was last told of authorities of this server.
    pub(super) fn told(&self) -> Option<i64> {
        let told =
            self.known.iter().filter_map(|made| if let Made::Told(at) = made { Some(*at) } else { None });
        told.max()
    }
}

/// What the file tells, and how many bytes of it are whole lines.
fn read(file: &File, path: &Path, trust_domain: &TrustDomain) -> anyhow::Result<(BTreeSet<Made>, u64)> {
    let failed = || format!("failed to read the ledger {}", path.display());
    let mut text = String::new();
    BufReader::new(file).read_to_string(&mut text).with_context(failed)?;
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    if whole == 0 && !text.is_empty() && !text.starts_with(BEGINNING) && !BEGINNING.starts_with(&text) {
        bail!("{} is no ledger of an import", path.display());
    }
    let mut known = BTreeSet::new();
    for (at, line) in text[..whole].lines().enumerate() {
        let made: Made = serde_json::from_str(line).with_context(|| {
            format!("{}: line {} is none that this version of passant wrote", path.display(), at + 1)
        })?;
        if let Made::Import { format, trust_domain: of } = &made {
            if *format != FORMAT {
                bail!("{} has format {format}, but this version reads format {FORMAT}", path.display());
            }
            if of != trust_domain {
                bail!("{} is the ledger of an import of {of}, not of {trust_domain}", path.display());
            }
        } else if at == 0 {
            bail!("{} is no ledger of an import", path.display());
        }
        if made == Made::Undone {
            known.retain(stands);
            continue;
        }
        known.insert(made);
    }
    Ok((known, u64::try_from(whole)?))
}

/// Whether it is true of all imports, since an undo does not end it.
fn stands(made: &Made) -> bool {
    matches!(made, Made::Import { .. } | Made::Told(_))
}

/// SHA-256 of a message in hex: says whether it is still what it was.
pub(super) fn hash(message: &impl Message) -> String {
    hex(digest::digest(&digest::SHA256, &message.encode_to_vec()).as_ref())
}

/// Bytes as lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of lower-case hexadecimal, if it is some.
pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| if let [high, low] = pair { Some(digit(*high)? << 4 | digit(*low)?) } else { None })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(name: &str) -> TrustDomain {
        TrustDomain::parse(name).unwrap()
    }

    fn agent(name: &str) -> Made {
        Made::Agent(name.to_owned())
    }

    #[test]
    fn what_was_written_is_read_and_stands_there_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let entry =
            || Made::Entry { id: "e".to_owned(), hash: hash(&passant_proto::types::Entry::default()) };
        for _ in 0..2 {
            let mut ledger = Ledger::open(&path, &domain("example.org")).unwrap();
            ledger.write(vec![agent("a"), entry(), Made::Told(5), Made::Told(7)]).unwrap();
            assert_eq!(ledger.told(), Some(7));
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 5);
        let known = Ledger::read(&path, &domain("example.org")).unwrap();
        assert!(known.contains(&agent("a")) && known.contains(&entry()));
    }

    #[test]
    fn a_line_that_was_cut_off_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        Ledger::open(&path, &domain("example.org")).unwrap().write(vec![agent("a")]).unwrap();
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"agent\":\"b");
        std::fs::write(&path, text).unwrap();
        let known = Ledger::read(&path, &domain("example.org")).unwrap();
        assert_eq!(known.iter().filter(|made| matches!(made, Made::Agent(_))).count(), 1);
        Ledger::open(&path, &domain("example.org")).unwrap().write(vec![agent("c")]).unwrap();
        assert!(Ledger::read(&path, &domain("example.org")).unwrap().contains(&agent("c")));
    }

    #[test]
    fn the_ledger_of_another_import_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let opened =
            |name: &str| Ledger::open(&path, &domain(name)).map(drop).map_err(|error| format!("{error:#}"));
        opened("example.org").unwrap();
        assert!(opened("other.test").unwrap_err().contains("example.org"));
        for text in [
            "nothing\n",
            "nothing",
            "{\"agent\":\"a\"}\n",
            "{\"import\":{\"format\":2,\"trust_domain\":\"example.org\"}}\n",
        ] {
            std::fs::write(&path, text).unwrap();
            assert!(opened("example.org").is_err(), "{text}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "it was not touched");
        }
        assert!(Ledger::read(&dir.path().join("none"), &domain("example.org")).is_err());
    }

    #[test]
    fn what_was_undone_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let open = || Ledger::open(&path, &domain("example.org")).unwrap();
        open().write(vec![agent("a")]).unwrap();
        open().end().unwrap();
        let lines = || std::fs::read_to_string(&path).unwrap().lines().count();
        assert_eq!((lines(), Ledger::read(&path, &domain("example.org")).unwrap().len()), (3, 1));
        open().end().unwrap();
        assert_eq!(lines(), 3, "there was nothing to end");
        open().write(vec![agent("a"), agent("b")]).unwrap();
        let known = Ledger::read(&path, &domain("example.org")).unwrap();
        assert!(known.contains(&agent("a")) && known.contains(&agent("b")));
    }

    #[test]
    fn two_imports_do_not_write_one_ledger() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let first = Ledger::open(&path, &domain("example.org")).unwrap();
        let refused = Ledger::open(&path, &domain("example.org")).map(drop).unwrap_err();
        assert!(refused.to_string().contains("in use"), "{refused}");
        drop(first);
        Ledger::open(&path, &domain("example.org")).map(drop).unwrap();
    }

    #[test]
    fn bytes_survive_as_text() {
        assert_eq!(unhex(&hex(&[0, 0xab, 0xff])), Some(vec![0, 0xab, 0xff]));
        for bad in ["a", "zz", "\u{e9}"] {
            assert_eq!(unhex(bad), None);
        }
    }
}
