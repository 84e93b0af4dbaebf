//! Do the big tests notice what they are there for? Builds the tree with planted bugs, for them to find.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cargo::cargo;

/// Where the planted bugs stand: one `NAME.patch` each. A patch guards its bug by the environment variable
/// `PASSANT_ABLATION` being `NAME`, so that one build holds all of them and the environment chooses.
const PATCHES: &str = "tests/ablations";

/// Runs cargo with `arguments` in a copy of the tree where every bug is planted.
///
/// The copy lies in `ablations/tree` of the target directory, and what is built of it in `ablations/build`. Files that
/// did not change are left alone there, so that cargo builds only what did.
///
/// # Errors
/// When a patch does not fit the tree or does not guard its bug, when the copy cannot be written, or when cargo fails.
pub(crate) fn run(root: &Path, arguments: &[OsString]) -> Result<()> {
    let place = target(root).join("ablations");
    let tree = place.join("tree");
    plant(root, &tree)?;
    let status = cargo()
        .args(arguments)
        .current_dir(&tree)
        .env("CARGO_TARGET_DIR", place.join("build"))
        .status()
        .context("failed to run cargo")?;
    ensure!(status.success(), "cargo failed in {}, the tree with planted bugs", tree.display());
    Ok(())
}

/// What cargo builds into.
fn target(root: &Path) -> PathBuf {
    root.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// Makes `tree` a copy of `root` with every patch applied.
fn plant(root: &Path, tree: &Path) -> Result<()> {
    let files = listed(root)?;
    let patched = tempfile::tempdir()?;
    let mut touched = BTreeSet::new();
    for (name, patch) in patches(root)? {
        touched.extend(apply(root, patched.path(), &name, &patch)?);
    }
    for path in &files {
        if touched.contains(path) {
            continue;
        }
        bring(&root.join(path), &tree.join(path))?;
    }
    for path in &touched {
        bring(&patched.path().join(path), &tree.join(path))?;
    }
    remove_others(tree, &|path| files.contains(path) || touched.contains(path))
}

/// The files of the tree that git has or would take, those that were deleted left out.
fn listed(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let listing = git(root, arguments, "list the files of the tree")?;
    let names = listing.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let paths = names.map(|name| PathBuf::from(OsStr::from_bytes(name)));
    Ok(paths.filter(|path| root.join(path).is_file()).collect())
}

/// The patches by name.
fn patches(root: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let place = root.join(PATCHES);
    let mut patches = BTreeMap::new();
    for file in fs::read_dir(&place).with_context(|| format!("failed to list {}", place.display()))? {
        let path = file?.path();
        if path.extension().is_none_or(|extension| extension != "patch") {
            continue;
        }
        let name =
            path.file_stem().and_then(OsStr::to_str).context("a patch has a name in UTF-8")?.to_owned();
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        check_guard(&name, &text)?;
        patches.insert(name, path);
    }
    ensure!(!patches.is_empty(), "{} holds no patch", place.display());
    Ok(patches)
}

/// Refuses a patch whose bug would be there whatever the environment says.
fn check_guard(name: &str, text: &str) -> Result<()> {
    let added = |what: &str| text.lines().any(|line| line.starts_with('+') && line.contains(what));
    ensure!(
        added("\"PASSANT_ABLATION\"") && added(&format!("\"{name}\"")),
        "{PATCHES}/{name}.patch does not guard its bug: let it ask whether PASSANT_ABLATION is {name:?}"
    );
    Ok(())
}

/// Applies `patch` to the files below `patched`, taking those that no patch has touched yet from `root`. Gives the
/// files it touches.
fn apply(root: &Path, patched: &Path, name: &str, patch: &Path) -> Result<Vec<PathBuf>> {
    let patch = patch.as_os_str();
    let doing = format!("apply {PATCHES}/{name}.patch: renew it for the tree as it is now");
    let counts = git(patched, ["apply".as_ref(), "--numstat".as_ref(), "-z".as_ref(), patch], &doing)?;
    let mut touched = Vec::new();
    for row in counts.split(|byte| *byte == 0).filter(|row| !row.is_empty()) {
        let file = row.rsplit(|byte| *byte == b'\t').next().unwrap_or_default();
        let path = PathBuf::from(OsStr::from_bytes(file));
        let copy = patched.join(&path);
        if !copy.exists() && root.join(&path).exists() {
            bring(&root.join(&path), &copy)?;
        }
        touched.push(path);
    }
    git(patched, ["apply".as_ref(), "--whitespace=nowarn".as_ref(), patch], &doing)?;
    Ok(touched)
}

/// What git prints, run in `dir`.
fn git<S: AsRef<OsStr>>(dir: &Path, arguments: impl IntoIterator<Item = S>, doing: &str) -> Result<Vec<u8>> {
    let mut command = Command::new("git");
    command.args(arguments).current_dir(dir);
    if let Some(above) = dir.parent() {
        // Only a repository whose root is `dir` counts; elsewhere git applies patches to plain files.
        command.env("GIT_CEILING_DIRECTORIES", above);
    }
    let output = command.output().context("failed to run git")?;
    if !output.status.success() {
        bail!("failed to {doing}\n{}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(output.stdout)
}

/// Makes `to` a copy of `from`; leaves it alone where it is one.
fn bring(from: &Path, to: &Path) -> Result<()> {
    let wanted = fs::read(from).with_context(|| format!("failed to read {}", from.display()))?;
    if fs::read(to).is_ok_and(|there| there == wanted) {
        return Ok(());
    }
    if let Some(above) = to.parent() {
        fs::create_dir_all(above).with_context(|| format!("failed to create {}", above.display()))?;
    }
    // By writing, not by copying: cargo tells by the time of the change, which has to be now.
    fs::write(to, wanted).with_context(|| format!("failed to write {}", to.display()))?;
    let mode = fs::metadata(from)?.permissions();
    fs::set_permissions(to, mode).with_context(|| format!("failed to set the mode of {}", to.display()))
}

/// Removes the files below `tree` that are none of its own any more.
fn remove_others(tree: &Path, is_ours: &dyn Fn(&Path) -> bool) -> Result<()> {
    let mut open = vec![tree.to_path_buf()];
    while let Some(dir) = open.pop() {
        for file in fs::read_dir(&dir).with_context(|| format!("failed to list {}", dir.display()))? {
            let file = file?;
            let path = file.path();
            if file.file_type()?.is_dir() {
                open.push(path);
            } else if !is_ours(path.strip_prefix(tree)?) {
                fs::remove_file(&path).with_context(|| format!("failed to remove {}", path.display()))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = r#"--- a/src/a.rs
+++ b/src/a.rs
@@ -1,3 +1,5 @@
 fn a() {
+    if std::env::var_os("PASSANT_ABLATION").is_some_and(|name| name == "half") { return; }
+
     b();
 }
"#;

    /// A tree under git, with `patches`.
    fn tree(patches: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join(PATCHES)).unwrap();
        fs::create_dir(root.path().join("src")).unwrap();
        fs::write(root.path().join("src/a.rs"), "fn a() {\n    b();\n}\n").unwrap();
        fs::write(root.path().join("src/b.rs"), "fn b() {}\n").unwrap();
        for (name, patch) in patches {
            fs::write(root.path().join(PATCHES).join(format!("{name}.patch")), patch).unwrap();
        }
        git(root.path(), ["init", "--quiet"], "make a repository").unwrap();
        root
    }

    #[test]
    fn every_patch_of_this_tree_fits_it() {
        let copy = tempfile::tempdir().unwrap();
        plant(&crate::root(), copy.path()).unwrap();
    }

    #[test]
    fn the_copy_has_the_bug_and_follows_the_tree_without_touching_what_stays() {
        let root = tree(&[("half", PATCH)]);
        let copy = tempfile::tempdir().unwrap();
        plant(root.path(), copy.path()).unwrap();
        let planted = fs::read_to_string(copy.path().join("src/a.rs")).unwrap();
        assert!(planted.contains("PASSANT_ABLATION") && planted.contains("b();"), "{planted}");
        let written = |name: &str| fs::metadata(copy.path().join(name)).unwrap().modified().unwrap();
        let before = (written("src/a.rs"), written("src/b.rs"));

        fs::write(root.path().join("src/c.rs"), "fn c() {}\n").unwrap();
        plant(root.path(), copy.path()).unwrap();
        assert!(copy.path().join("src/c.rs").exists());
        assert_eq!((written("src/a.rs"), written("src/b.rs")), before);

        fs::remove_file(root.path().join("src/c.rs")).unwrap();
        plant(root.path(), copy.path()).unwrap();
        assert!(!copy.path().join("src/c.rs").exists());
    }

    #[test]
    fn a_patch_that_does_not_fit_is_named() {
        let stale = PATCH.replace("b();", "before();");
        let root = tree(&[("half", &stale)]);
        let refused = plant(root.path(), &root.path().join("copy")).unwrap_err().to_string();
        assert!(refused.contains("tests/ablations/half.patch"), "{refused}");
    }

    #[test]
    fn a_bug_that_is_not_guarded_by_its_name_is_refused() {
        let root = tree(&[("other", PATCH)]);
        let refused = plant(root.path(), &root.path().join("copy")).unwrap_err().to_string();
        assert!(refused.contains("other.patch does not guard"), "{refused}");
    }
}
