//! What does a selector say about a workload: how narrow it is, and what it excludes?
//!
//! The names are those of SPIRE's attestors and ours. A selector of an attestor that is not known here is taken to be
//! narrow: a rule that cannot judge stays silent.

/// How many workloads have such a selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Breadth {
    /// Many that have nothing to do with each other.
    Fleet,
    /// Those of one kind.
    Kind,
    /// One program, pod or unit: alone it is enough.
    One,
}

/// A selector in its parts: `k8s:pod-label:app:web` has the kind `k8s`, the key `pod-label` and the rest `app:web`.
pub(super) fn parts(selector: &str) -> (&str, &str, &str) {
    let (kind, value) = selector.split_once(':').unwrap_or((selector, ""));
    let (key, rest) = value.split_once(':').unwrap_or((value, ""));
    (kind, key, rest)
}

pub(super) fn breadth(selector: &str) -> Breadth {
    let (kind, key, rest) = parts(selector);
    match (kind, key) {
        ("unix" | "windows", "sha256") | ("docker", "image_config_digest") | ("systemd", _) => Breadth::One,
        ("k8s", "pod-uid" | "uid") => Breadth::One,
        ("k8s" | "docker", "image-signature-value" | "image-signature-log-index") => Breadth::One,
        _ if image(selector).is_some_and(is_digest) => Breadth::One,
        ("unix", "supplementary_gid" | "supplementary_group") => Breadth::Fleet,
        ("windows", "group_sid" | "group_name") => Breadth::Fleet,
        ("k8s", "ns" | "ns-label" | "node-name" | "pod-image-count" | "pod-init-image-count") => {
            Breadth::Fleet
        }
        ("k8s", "resource" | "plural" | "group" | "version" | "apiVersion" | "kind" | "namespace") => {
            Breadth::Fleet
        }
        ("k8s" | "docker", "image-signature" | "image-attestations") if rest == "verified" => Breadth::Fleet,
        ("k8s" | "docker", "image-signature-issuer" | "image-signature-log-id") => Breadth::Fleet,
        _ => Breadth::Kind,
    }
}

/// The image that a selector names, by tag or digest.
pub(super) fn image(selector: &str) -> Option<&str> {
    let (kind, key, rest) = parts(selector);
    match (kind, key) {
        ("k8s", "container-image" | "pod-image" | "pod-init-image") | ("docker", "image_id") => Some(rest),
        _ => None,
    }
}

/// Whether an image is named by what is in it: `repository@sha256:...`, or `sha256:...` alone.
pub(super) fn is_digest(image: &str) -> bool {
    let digest = image.rsplit_once('@').map_or(image, |(_, digest)| digest);
    let hex = digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64);
    hex.is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Whether it says that a process is root's.
pub(super) fn is_root(selector: &str) -> bool {
    matches!(selector, "unix:uid:0" | "unix:user:root")
}

/// Whether it says no more than that, of a process of root's.
pub(super) fn is_of_root(selector: &str) -> bool {
    let (kind, key, _) = parts(selector);
    is_root(selector)
        || matches!(selector, "unix:gid:0" | "unix:group:root")
        || (kind == "unix" && key.starts_with("supplementary_"))
}

/// Whether it names something that only a namespace makes one thing.
pub(super) fn needs_namespace(selector: &str) -> bool {
    let (kind, key, _) = parts(selector);
    kind == "k8s" && matches!(key, "sa" | "pod-name" | "pod-owner" | "pod-label" | "container-name")
}

/// Whether it names a namespace, or what lies in only one.
pub(super) fn has_namespace(selector: &str) -> bool {
    let (kind, key, _) = parts(selector);
    kind == "k8s"
        && matches!(key, "ns" | "ns-label" | "namespace" | "key" | "pod-uid" | "uid" | "pod-owner-uid")
}

/// What a process has one of: two different values of it never come together.
pub(super) fn single(selector: &str) -> Option<(&str, &str)> {
    let (kind, key, _) = parts(selector);
    let single = match kind {
        "unix" => matches!(key, "uid" | "user" | "gid" | "group" | "path" | "sha256"),
        "k8s" => matches!(
            key,
            "ns" | "sa"
                | "container-name"
                | "node-name"
                | "pod-name"
                | "pod-uid"
                | "pod-image-count"
                | "pod-init-image-count"
        ),
        "docker" => key == "image_config_digest",
        "systemd" => matches!(key, "id" | "fragment_path"),
        "windows" => matches!(key, "user_sid" | "user_name" | "path" | "sha256"),
        _ => false,
    };
    single.then_some((kind, key))
}

/// Whether a node has such selectors, and no process.
pub(super) fn is_of_nodes(selector: &str) -> bool {
    matches!(
        parts(selector).0,
        "aws_iid"
            | "azure_imds"
            | "azure_msi"
            | "gcp_iit"
            | "http_challenge"
            | "join_token"
            | "k8s_psat"
            | "k8s_sat"
            | "sshpop"
            | "tpm_devid"
            | "x509pop"
    )
}

/// Whether a process has such selectors, and no node.
pub(super) fn is_of_processes(selector: &str) -> bool {
    matches!(parts(selector).0, "docker" | "k8s" | "systemd" | "unix" | "windows")
}

/// Whose a workload with this selector is, as far as it says: in which respect, and the value. The namespace that
/// completes a service account is `namespace`.
pub(super) fn owner(selector: &str, namespace: &str) -> Option<(&'static str, String)> {
    let (kind, key, rest) = parts(selector);
    Some(match (kind, key) {
        ("k8s", "ns") => ("namespace", rest.to_owned()),
        ("k8s", "sa") => ("service account", format!("{namespace}/{rest}")),
        ("unix", "uid") => ("user id", rest.to_owned()),
        ("unix", "user") | ("windows", "user_name") => ("user", rest.to_owned()),
        ("windows", "user_sid") => ("user SID", rest.to_owned()),
        ("systemd", "id") => ("unit", rest.to_owned()),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breadth_is_told_by_the_attestor_and_its_key() {
        let digest = "a".repeat(64);
        for (selector, expected) in [
            ("k8s:ns:web", Breadth::Fleet),
            ("k8s:image-signature:verified", Breadth::Fleet),
            ("unix:supplementary_gid:4", Breadth::Fleet),
            ("unix:uid:1000", Breadth::Kind),
            ("k8s:sa:web", Breadth::Kind),
            ("new_attestor:anything", Breadth::Kind),
            ("k8s:container-image:web:1", Breadth::Kind),
            (&format!("unix:sha256:{digest}"), Breadth::One),
            (&format!("k8s:container-image:web@sha256:{digest}"), Breadth::One),
            (&format!("docker:image_id:sha256:{digest}"), Breadth::One),
            ("systemd:id:web.service", Breadth::One),
        ] {
            assert_eq!(breadth(selector), expected, "{selector}");
        }
    }

    #[test]
    fn digests_are_told_from_tags() {
        let digest = "0".repeat(64);
        assert!(is_digest(&format!("host:5000/web@sha256:{digest}")));
        assert!(is_digest(&format!("web:1@sha256:{digest}")));
        assert!(!is_digest("host:5000/web"));
        assert!(!is_digest(&format!("web@sha256:{}", &digest[1..])));
        assert!(!is_digest(&format!("web@sha256:{}g", &digest[1..])));
    }
}
