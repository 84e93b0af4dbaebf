//! Is there one TLS stack, ring as its only cryptography, and one version of what is fuzzed and what is shipped?

use std::collections::BTreeSet;

/// Packages that would bring a second TLS stack or a second cryptographic library.
const UNWANTED: [&str; 6] = ["aws-lc-rs", "aws-lc-sys", "native-tls", "openssl", "openssl-sys", "boring"];

/// Looks for unwanted packages in the text of a Cargo.lock.
pub(super) fn check(lock: &str) -> Vec<String> {
    let names = lock.lines().filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
    names
        .filter(|name| UNWANTED.contains(name))
        .map(|name| {
            format!("Cargo.lock: {name} must not be in the tree; find who brings it with `cargo tree -i {name}` and turn its feature off")
        })
        .collect()
}

/// Looks in the text of the fuzz targets' lock file for packages of another version than the product has.
pub(super) fn disagree(product: &str, fuzz: &str) -> Vec<String> {
    let shipped = packages(product);
    let names: BTreeSet<&str> = shipped.iter().map(|(name, _)| *name).collect();
    let others =
        packages(fuzz).into_iter().filter(|package| names.contains(package.0) && !shipped.contains(package));
    others
        .map(|(name, version)| {
            format!("tests/fuzz/Cargo.lock: {name} {version} is not what the product has: copy Cargo.lock over it and build there")
        })
        .collect()
}

/// Name and version of each package.
fn packages(lock: &str) -> BTreeSet<(&str, &str)> {
    let mut lines = lock.lines();
    let mut packages = BTreeSet::new();
    while let Some(line) = lines.next() {
        let name = line.strip_prefix("name = \"").and_then(|rest| rest.strip_suffix('"'));
        let version =
            lines.clone().next().and_then(|next| next.strip_prefix("version = \"")?.strip_suffix('"'));
        packages.extend(name.zip(version));
    }
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_tls_stack_is_found() {
        let lock = "[[package]]\nname = \"ring\"\n\n[[package]]\nname = \"aws-lc-rs\"\n";
        assert_eq!(check(lock).len(), 1);
        assert_eq!(check(&lock.replace("aws-lc-rs", "rustls")).len(), 0);
    }

    #[test]
    fn what_is_fuzzed_is_what_is_shipped() {
        let lock = "[[package]]\nname = \"h2\"\nversion = \"0.4.16\"\nsource = \"x\"\n";
        let fuzz = format!("{lock}\n[[package]]\nname = \"libfuzzer-sys\"\nversion = \"0.4.13\"\n");
        assert_eq!(disagree(lock, &fuzz).len(), 0);
        assert_eq!(disagree(lock, &fuzz.replace("0.4.16", "0.4.15")).len(), 1);
    }
}
