//! Does the tree keep the rules that no compiler checks?

mod code;
mod edges;
mod lock;
mod sources;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// What is not ours: built, downloaded, or git's.
const FOREIGN: [&str; 5] = [".git", ".venv", "__pycache__", "node_modules", "target"];

/// Checks everything; the error lists every fault, one a line.
pub(crate) fn run(root: &Path) -> Result<()> {
    let faults = faults(root)?;
    if faults.is_empty() {
        return Ok(());
    }
    bail!("the tree is not tidy:\n{}", faults.join("\n"))
}

fn faults(root: &Path) -> Result<Vec<String>> {
    let mut faults = edges::check(root)?;
    let lock = |path| fs::read_to_string(root.join(path)).with_context(|| format!("failed to read {path}"));
    let (product, fuzz) = (lock("Cargo.lock")?, lock("tests/fuzz/Cargo.lock")?);
    faults.extend(lock::check(&product));
    faults.extend(lock::disagree(&product, &fuzz));
    for file in texts(root)? {
        faults.extend(sources::check(&file));
    }
    Ok(faults)
}

/// A text file of the tree.
struct File {
    /// Relative to the workspace, with slashes.
    path: String,
    text: String,
}

/// All text files below `root`, in order of their paths. Files that are not UTF-8 are left out.
fn texts(root: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("failed to list {}", dir.display()))? {
            let entry = entry?;
            let path = entry.path();
            let kind = entry.file_type()?;
            if FOREIGN.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            if kind.is_dir() {
                open.push(path);
            } else if kind.is_file()
                && let Ok(text) = String::from_utf8(fs::read(&path)?)
            {
                let path = path.strip_prefix(root)?.to_string_lossy().into_owned();
                files.push(File { path, text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tree_is_tidy() {
        let faults = super::faults(&crate::root()).unwrap();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }
}
