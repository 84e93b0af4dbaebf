//! Which container do real files of `/proc/<pid>/cgroup` name, and which ones are only named like one?

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::*;

const A: &str = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb";
const B: &str = "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d";
const POD: &str = "6f1c2b3a-9d4e-4f50-8a7b-0c1d2e3f4a5b";
const STATIC_POD: &str = "4f1b3c2d5e6f708192a3b4c5d6e7f809";

/// What is found in one file of the corpus: the container, who runs it, its pod, and whose slice it is in.
type Found = Option<(&'static str, Runtime, Option<&'static str>, Option<u32>)>;

/// Each file of `corpus/` without a fault.
const CORPUS: &[(&str, Found)] = {
    use Runtime::{Containerd, Crio, Docker, Libpod, Other, Unnamed};
    &[
        ("docker-v1-cgroupfs", Some((A, Unnamed, None, None))),
        ("docker-v1-containerd-in-unified", Some((A, Unnamed, None, None))),
        ("docker-v1-hybrid", Some((A, Unnamed, None, None))),
        ("docker-v1-systemd", Some((A, Docker, None, None))),
        ("docker-v1-systemd-by-cgroupfs", Some((A, Docker, None, None))),
        ("docker-v2-cgroup-parent", Some((A, Docker, None, None))),
        ("docker-v2-cgroupfs", Some((A, Unnamed, None, None))),
        ("docker-v2-in-docker", Some((B, Unnamed, None, None))),
        ("docker-v2-in-docker-systemd", Some((B, Docker, None, None))),
        ("docker-v2-init-inside", Some((A, Docker, None, None))),
        ("docker-v2-rootless", Some((A, Docker, None, Some(1000)))),
        ("docker-v2-seen-from-a-container", Some((A, Unnamed, None, None))),
        ("docker-v2-seen-from-a-container-systemd", Some((A, Docker, None, None))),
        ("docker-v2-systemd", Some((A, Docker, None, None))),
        ("docker-v2-systemd-inside", Some((A, Docker, None, None))),
        ("dots-behind", None),
        ("ecs-v1", Some((A, Unnamed, None, None))),
        ("host-v1", None),
        ("host-v2-root", None),
        ("host-v2-service", None),
        ("host-v2-snap", None),
        ("host-v2-template", None),
        ("k8s-v1-cgroupfs-crio", Some((A, Crio, Some(POD), None))),
        ("k8s-v1-cgroupfs-docker", Some((A, Unnamed, Some(POD), None))),
        ("k8s-v1-cgroupfs-guaranteed", Some((A, Unnamed, Some(POD), None))),
        ("k8s-v1-containerd-service", Some((A, Containerd, Some(POD), None))),
        ("k8s-v1-kind-mixed", Some((A, Unnamed, Some(POD), None))),
        ("k8s-v1-systemd-containerd", Some((A, Containerd, Some(POD), None))),
        ("k8s-v1-systemd-docker", Some((A, Docker, Some(POD), None))),
        ("k8s-v2-cgroupfs-containerd", Some((A, Unnamed, Some(POD), None))),
        ("k8s-v2-crio-conmon", None),
        ("k8s-v2-docker-in-a-pod", Some((A, Unnamed, Some(POD), None))),
        ("k8s-v2-kind", Some((A, Containerd, Some(POD), None))),
        ("k8s-v2-seen-from-a-pod", Some((A, Containerd, Some(POD), None))),
        ("k8s-v2-seen-from-the-same-pod", Some((A, Containerd, None, None))),
        ("k8s-v2-static-pod", Some((A, Containerd, Some(STATIC_POD), None))),
        ("k8s-v2-systemd-containerd", Some((A, Containerd, Some(POD), None))),
        ("k8s-v2-systemd-containerd-guaranteed", Some((A, Containerd, Some(POD), None))),
        ("k8s-v2-systemd-crio", Some((A, Crio, Some(POD), None))),
        ("k8s-v2-systemd-crio-container", Some((A, Crio, Some(POD), None))),
        ("lxc-v2", None),
        ("nerdctl-v2", Some((A, Other, None, None))),
        ("nspawn-v2", None),
        ("podman-v1-rootful", Some((A, Libpod, None, None))),
        ("podman-v1-rootful-cgroupfs", Some((A, Libpod, None, None))),
        // Nothing names it: Podman without root makes no control groups of version 1.
        ("podman-v1-rootless", None),
        ("podman-v2-conmon", None),
        ("podman-v2-in-a-pod", Some((A, Libpod, None, None))),
        ("podman-v2-in-a-pod-cgroupfs", Some((A, Libpod, None, None))),
        ("podman-v2-quadlet", Some((A, Libpod, None, None))),
        ("podman-v2-rootful", Some((A, Libpod, None, None))),
        ("podman-v2-rootful-cgroupfs", Some((A, Libpod, None, None))),
        ("podman-v2-rootful-older", Some((A, Libpod, None, None))),
        ("podman-v2-rootless", Some((A, Libpod, None, Some(1000)))),
        ("podman-v2-rootless-cgroupfs", Some((A, Libpod, None, Some(1000)))),
        ("podman-v2-rootless-quadlet", Some((A, Libpod, None, Some(1000)))),
        ("podman-v2-rootless-seen-from-a-container", Some((A, Libpod, None, Some(1000)))),
        // What the user made it, and not what it calls itself.
        ("spoof-v1-one-hierarchy", Some((A, Docker, None, Some(1001)))),
        ("spoof-v2-delegated", Some((A, Docker, None, Some(1001)))),
        ("spoof-v2-libpod-of-another-user", Some((A, Libpod, None, Some(1001)))),
        ("too-long", None),
        ("too-short", None),
        ("upper-case", None),
    ]
};

fn corpus() -> BTreeMap<String, Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cgroup/corpus");
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    files
        .map(|file| (file.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&file).unwrap()))
        .collect()
}

fn cgroups(name: &str) -> Cgroups {
    Cgroups::parse(&corpus()[name]).unwrap()
}

fn located(name: &str) -> Located {
    cgroups(name).container().unwrap().unwrap()
}

#[test]
fn every_layout_is_read() {
    let mut files = corpus();
    for (name, expected) in CORPUS {
        let file = files.remove(*name).unwrap_or_else(|| panic!("no file {name}"));
        let found = Cgroups::parse(&file).unwrap().container().unwrap();
        let found = found.map(|one| (one.id.to_string(), one.runtime, one.pod_uid, one.user));
        let expected =
            expected.map(|(id, runtime, pod, user)| (id.to_owned(), runtime, pod.map(str::to_owned), user));
        assert_eq!(found, expected, "{name}");
    }
    let left: Vec<String> = files.into_keys().collect();
    assert_eq!(left, ["conflict", "pod-conflict"], "files that no test looks at");
}

#[test]
fn two_containers_are_none() {
    let (a, b) = (A.parse().unwrap(), B.parse().unwrap());
    assert_eq!(cgroups("conflict").container(), Err(CgroupError::Conflict(a, b)));
    assert!(matches!(cgroups("pod-conflict").container(), Err(CgroupError::PodConflict(..))));
}

#[test]
fn a_group_is_shared_by_what_is_in_it_or_below_it() {
    let shares = |container: &str, process: &str| located(container).shares_group_of(&cgroups(process));
    for same in ["docker-v1-cgroupfs", "docker-v2-systemd", "podman-v2-rootless", "k8s-v2-kind"] {
        assert!(shares(same, same), "{same}");
    }
    assert!(shares("docker-v2-systemd", "docker-v2-systemd-inside"));
    assert!(shares("docker-v2-init-inside", "docker-v2-systemd-inside"), "beside the first process");
    assert!(shares("docker-v2-cgroupfs", "docker-v2-in-docker"), "nested, and in it all the same");
    assert!(!shares("docker-v2-in-docker", "docker-v2-cgroupfs"), "around it");
    assert!(!shares("docker-v2-systemd", "docker-v2-cgroupfs"));
    assert!(!shares("docker-v2-systemd", "too-long"));
    assert!(!shares("docker-v2-cgroupfs", "too-long"), "a longer name is another one");
    for spoof in
        ["spoof-v2-delegated", "spoof-v1-one-hierarchy", "spoof-v2-libpod-of-another-user", "host-v2-root"]
    {
        for real in ["docker-v1-systemd", "docker-v2-systemd", "podman-v2-rootless", "podman-v2-rootful"] {
            assert!(!shares(real, spoof), "{spoof} for {real}");
        }
    }
    // Alike in one hierarchy only.
    let one = "2:cpuset:/docker/".to_owned() + A + "\n1:cpu:/\n";
    assert!(!located("docker-v1-cgroupfs").shares_group_of(&Cgroups::parse(one.as_bytes()).unwrap()));
}

#[test]
fn what_is_no_cgroup_file_is_refused() {
    let long = "0::/\n".repeat(CGROUP_LINES + 1);
    for file in ["", "\n", "0:/", "x::/", "0::", "0::a", "-1::/", "0::/\n\n0::/", long.as_str()] {
        assert_eq!(Cgroups::parse(file.as_bytes()), Err(CgroupError::Malformed), "{file:?}");
    }
    assert_eq!(Cgroups::parse(b"0::/\xff\n"), Err(CgroupError::Malformed));
    assert!(Cgroups::parse(&long.as_bytes()[5..]).is_ok(), "as many as there may be");
}

#[test]
fn ids_are_64_digits() {
    assert_eq!(A.parse::<ContainerId>().unwrap().as_str(), A);
    let upper = A.to_uppercase();
    let path = format!("../{}", &A[3..]);
    for text in ["", &A[1..], &upper, &path, &format!("{A}0"), &format!("{}é", &A[2..])] {
        assert!(text.parse::<ContainerId>().is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(file in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(cgroups) = Cgroups::parse(&file) {
            drop(cgroups.container());
        }
    }

    #[test]
    fn whatever_stands_around_it_an_id_is_found_only_whole(
        before in "[a-f0-9é:/._-]{0,20}", after in "[a-f0-9é:/._-]{0,20}",
    ) {
        let path = format!("/{before}{A}{after}");
        let found = Cgroups::parse(format!("0::{path}\n").as_bytes()).unwrap().container().unwrap();
        if let Some(found) = found {
            prop_assert!(path.contains(found.id.as_str()));
            prop_assert_eq!(found.id.as_str().len(), 64);
            let own = Cgroups::parse(format!("0::{path}").as_bytes()).unwrap();
            prop_assert!(found.shares_group_of(&own));
        }
    }
}
