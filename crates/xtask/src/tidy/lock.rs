//! Is there one TLS stack, and ring as its only cryptography?

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_tls_stack_is_found() {
        let lock = "[[package]]\nname = \"ring\"\n\n[[package]]\nname = \"aws-lc-rs\"\n";
        assert_eq!(check(lock).len(), 1);
        assert_eq!(check(&lock.replace("aws-lc-rs", "rustls")).len(), 0);
    }
}
