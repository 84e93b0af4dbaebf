//! Which key did somebody mean who knows SPIRE?

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
    ("ratelimit", "[limits]"),
];

/// What to say after "unknown key": what SPIRE's key is called here, or else the nearest of `known`, or all of them.
pub(super) fn suggest(unknown: &str, known: &[&str]) -> String {
    let lower = unknown.to_ascii_lowercase();
    match FROM_SPIRE.iter().find(|(theirs, _)| *theirs == lower) {
        Some((_, ours)) => format!("here this is {ours}"),
        None => passant_daemon::config::suggest(unknown, known),
    }
}

#[cfg(test)]
mod tests {
    use super::suggest;

    #[test]
    fn a_key_of_spire_is_told_from_a_slip() {
        let known = ["trust_domain", "listen"];
        assert_eq!(suggest("Bind_Port", &known), "here this is listen");
        assert_eq!(suggest("trustdomain", &known), "did you mean trust_domain?");
    }
}
