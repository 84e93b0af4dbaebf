//! Which key did the operator mean?

/// What to say of the key `unknown` where those of `known` may stand: the nearest of them, or all.
pub fn suggest(unknown: &str, known: &[&str]) -> String {
    if known.is_empty() {
        return "this section takes no further keys".to_owned();
    }
    let lower = unknown.to_ascii_lowercase();
    let nearest = known.iter().map(|key| (edits(&lower, key), *key)).min();
    match nearest {
        Some((few, key)) if few <= 1 + lower.chars().count() / 4 => format!("did you mean {key}?"),
        Some(_) | None => format!("known keys: {}", known.join(", ")),
    }
}

/// How `key` is written in TOML: one that is empty, or has other characters than letters, digits, `_` and `-`, in quotes.
pub fn quoted(key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !key.is_empty() && key.chars().all(is_bare) { key.to_owned() } else { format!("{key:?}") }
}

/// Insertions, deletions and substitutions of single characters between two words.
pub fn edits(one: &str, two: &str) -> usize {
    let two: Vec<char> = two.chars().collect();
    let mut row: Vec<usize> = (0..=two.len()).collect();
    for (i, from) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in two.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[two.len()]
}

#[cfg(test)]
mod tests {
    use super::{edits, quoted, suggest};

    #[test]
    fn a_key_that_needs_quotes_has_them() {
        for (key, written) in
            [("data_dir", "data_dir"), ("", "\"\""), ("a b", "\"a b\""), ("a\nb", "\"a\\nb\"")]
        {
            assert_eq!(quoted(key), written);
        }
    }

    #[test]
    fn edits_count_single_changes() {
        for (one, two, count) in
            [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("adress", "address", 1), ("ü", "u", 1)]
        {
            assert_eq!(edits(one, two), count, "{one} {two}");
        }
    }

    #[test]
    fn the_nearest_key_is_named() {
        let known = ["trust_domain", "data_dir", "bundle", "default_x509_svid_ttl"];
        for (typed, meant) in [
            ("trustdomain", "trust_domain"),
            ("datadir", "data_dir"),
            ("Bundel", "bundle"),
            ("default_x509svid_ttl", "default_x509_svid_ttl"),
        ] {
            assert_eq!(suggest(typed, &known), format!("did you mean {meant}?"));
        }
    }

    #[test]
    fn a_key_without_likeness_gets_the_list() {
        assert_eq!(
            suggest("colour", &["bundle", "insecure_bootstrap"]),
            "known keys: bundle, insecure_bootstrap"
        );
        assert_eq!(suggest("colour", &[]), "this section takes no further keys");
    }
}
