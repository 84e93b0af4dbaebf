//! Is a container that a `cgroup` file names one by its whole ID, and does a process share its own group and no other?
#![no_main]

use libfuzzer_sys::fuzz_target;
use passant_attest::cgroup::Cgroups;

fuzz_target!(|file: &[u8]| {
    let Ok(cgroups) = Cgroups::parse(file) else { return };
    let Ok(Some(container)) = cgroups.container() else { return };
    let id = container.id.as_str();
    assert!(id.len() == 64 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
    assert!(file.windows(64).any(|part| part == id.as_bytes()));
    if let Some(pod) = &container.pod_uid {
        assert!(pod.len() == 36 || pod.len() == 32, "{pod}");
        assert!(pod.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-')), "{pod}");
    }
    // Whoever is at the root of every hierarchy is in no container.
    let lines = String::from_utf8_lossy(file).lines().count();
    let root: String = (0..lines.min(64)).map(|n| format!("{n}:{n}:/\n")).collect();
    assert!(!container.shares_group_of(&Cgroups::parse(root.as_bytes()).expect("lines of a cgroup file")));
});
