//! Which key did the operator mean?

/// Keys of SPIRE's server configuration, and where the same thing stands here.
const FROM_SPIRE: &[(&str, &str)] = &[
    ("bind_address", "listen"),
    ("bind_port", "listen"),
    ("socket_path", "socket.path"),
    ("log_level", "log.level"),
    ("log_format", "log.format"),
    ("default_svid_ttl", "default_x509_svid_ttl"),
    ("plugins", "[[node_attestor]]"),
    ("nodeattestor", "[[node_attestor]]"),
    ("keymanager", "keys"),
    ("datastore", "store"),
];

/// What to say after "unknown key": the nearest of `known`, what SPIRE's key is called here, or the whole list.
pub(super) fn suggest(unknown: &str, known: &[&str]) -> String {
    let lower = unknown.to_ascii_lowercase();
    if let Some((_, ours)) = FROM_SPIRE.iter().find(|(theirs, _)| *theirs == lower) {
        return format!("here this is {ours}");
    }
    let nearest = known.iter().map(|key| (distance(&lower, key), *key)).min();
    match nearest {
        Some((far, key)) if far <= 2 + key.len() / 8 => format!("did you mean {key}?"),
        Some(_) | None if known.is_empty() => "this section takes no further keys".to_owned(),
        Some(_) | None => format!("known keys: {}", known.join(", ")),
    }
}

/// Edit distance (insertions, deletions, substitutions) in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::suggest;

    #[test]
    fn the_nearest_key_is_named() {
        let known = ["trust_domain", "data_dir", "listen", "default_x509_svid_ttl"];
        for (typed, meant) in [
            ("trustdomain", "trust_domain"),
            ("datadir", "data_dir"),
            ("default_x509svid_ttl", "default_x509_svid_ttl"),
        ] {
            assert_eq!(suggest(typed, &known), format!("did you mean {meant}?"));
        }
        assert_eq!(suggest("bind_port", &known), "here this is listen");
        assert!(suggest("colour", &known).starts_with("known keys: trust_domain"));
        assert_eq!(suggest("colour", &[]), "this section takes no further keys");
    }
}
