//! How does the command line write files: whole or not at all, and secrets for their owner alone?

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;

/// Writes what anyone may read, with mode 0644.
pub(crate) fn write_public(dir: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    write(dir, name, text, 0o644)
}

/// Writes a secret, with mode 0600.
pub(crate) fn write_secret(dir: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    write(dir, name, text, 0o600)
}

/// Writes a new file beside the old one and puts it in its place, so that a reader finds the old or the new, whole.
fn write(dir: &Path, name: &str, text: &str, mode: u32) -> anyhow::Result<()> {
    let path = dir.join(name);
    let failed = || format!("failed to write {}", path.display());
    fs::create_dir_all(dir).with_context(failed)?;
    let temporary = dir.join(format!(".{name}.new"));
    if let Err(error) = fs::remove_file(&temporary)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(failed);
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary).with_context(failed)?;
    file.write_all(text.as_bytes()).with_context(failed)?;
    file.sync_all().with_context(failed)?;
    fs::rename(&temporary, &path).with_context(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_replaces_a_readable_file_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        write_public(dir.path(), "key.pem", "old").unwrap();
        write_secret(dir.path(), "key.pem", "new").unwrap();
        let path = dir.path().join("key.pem");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
