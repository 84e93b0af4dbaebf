//! Which container and which pod do the control groups of a process name?
//!
//! Container runtimes name control groups after containers, each in its own way; this reads all the common ways, of both
//! versions of cgroups. The kernel writes `/proc/<pid>/cgroup`, so a process cannot forge what stands there. But who may
//! make control groups (every user to whom systemd delegated some) may name them after a container of somebody else:
//! [`Located`] is a claim until a process that certainly is of the container is found in the same group, see
//! [`Located::shares_group_of`].
//!
//! `mountinfo` is not read at all: a process in a mount namespace of its own writes it.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::limits::CGROUP_LINES;

/// A container's ID: 64 lower-case hexadecimal digits, and nothing else, so that it may stand in a URL.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

/// Who named a control group, as far as its name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// Docker, by systemd.
    Docker,
    /// Podman.
    Libpod,
    /// containerd, for Kubernetes.
    Containerd,
    /// CRI-O, for Kubernetes.
    Crio,
    /// The name is the ID alone: Docker, containerd and others without systemd.
    Unnamed,
    /// Somebody else, nerdctl for instance.
    Other,
}

/// A container that control groups name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The innermost container.
    pub id: ContainerId,
    /// Who runs it.
    pub runtime: Runtime,
    /// The pod that it is of, with dashes, or 32 digits without for a static pod.
    pub pod_uid: Option<String>,
    /// The user whose slice it is in: only this user and root can have put it there.
    pub user: Option<u32>,
    /// Its outermost control group in each hierarchy that names it.
    groups: Vec<Group>,
}

/// What `/proc/<pid>/cgroup` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroups(Vec<Group>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    /// The controllers of a version 1 hierarchy, empty for version 2.
    hierarchy: String,
    path: String,
}

/// Why control groups tell nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CgroupError {
    /// The file is not as cgroups(7) describes it, or has more lines than any kernel has hierarchies.
    #[error("cgroup file of the process is not as cgroups(7) describes it")]
    Malformed,
    /// Two hierarchies say different things.
    #[error("control groups of the process name two containers, {0} and {1}")]
    Conflict(ContainerId, ContainerId),
    /// Two hierarchies say different things.
    #[error("control groups of the process name two pods, {0} and {1}")]
    PodConflict(String, String),
}

/// What one path names.
struct Named<'a> {
    id: ContainerId,
    runtime: Runtime,
    pod_uid: Option<String>,
    user: Option<u32>,
    /// The path up to the container's segment, with it.
    root: &'a str,
}

const ID_DIGITS: usize = 64;

impl ContainerId {
    /// The 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is no container ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("container ID is not 64 lower-case hexadecimal digits")]
pub struct ContainerIdError;

impl FromStr for ContainerId {
    type Err = ContainerIdError;

    fn from_str(text: &str) -> Result<Self, ContainerIdError> {
        if text.len() == ID_DIGITS && text.bytes().all(is_digit) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ContainerIdError)
        }
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Cgroups {
    /// Reads the bytes of a `cgroup` file.
    ///
    /// # Errors
    /// [`CgroupError::Malformed`].
    pub fn parse(file: &[u8]) -> Result<Self, CgroupError> {
        let text = str::from_utf8(file).map_err(|_| CgroupError::Malformed)?;
        let groups: Option<Vec<Group>> = text.lines().take(CGROUP_LINES + 1).map(Group::parse).collect();
        groups
            .filter(|groups| !groups.is_empty() && groups.len() <= CGROUP_LINES)
            .map(Self)
            .ok_or(CgroupError::Malformed)
    }

    /// The container that they name, if any: in each path the innermost.
    ///
    /// Where some hierarchies name a container of a pod and others one without, as on a node that is a container itself,
    /// those with a pod count.
    ///
    /// # Errors
    /// [`CgroupError::Conflict`] and [`CgroupError::PodConflict`].
    pub fn container(&self) -> Result<Option<Located>, CgroupError> {
        let mut named: Vec<(&Group, Named<'_>)> =
            self.0.iter().filter_map(|group| Some((group, Named::by(&group.path)?))).collect();
        if named.iter().any(|(_, one)| one.pod_uid.is_some()) {
            named.retain(|(_, one)| one.pod_uid.is_some());
        }
        let Some((_, first)) = named.first() else { return Ok(None) };
        for (_, other) in &named {
            if other.id != first.id {
                return Err(CgroupError::Conflict(first.id.clone(), other.id.clone()));
            }
            if let (Some(one), Some(two)) = (&first.pod_uid, &other.pod_uid)
                && one != two
            {
                return Err(CgroupError::PodConflict(one.clone(), two.clone()));
            }
        }
        // One hierarchy may be less telling than another, as with version 1 controllers that systemd does not manage.
        let runtime = named.iter().map(|(_, one)| one.runtime).find(|runtime| *runtime != Runtime::Unnamed);
        Ok(Some(Located {
            id: first.id.clone(),
            runtime: runtime.unwrap_or(Runtime::Unnamed),
            pod_uid: first.pod_uid.clone(),
            user: named.iter().find_map(|(_, one)| one.user),
            groups: named
                .iter()
                .map(|(group, one)| Group { hierarchy: group.hierarchy.clone(), path: one.root.to_owned() })
                .collect(),
        }))
    }

    fn path(&self, hierarchy: &str) -> Option<&str> {
        self.0.iter().find(|group| group.hierarchy == hierarchy).map(|group| group.path.as_str())
    }
}

impl Located {
    /// Whether a process in `cgroups` is in this container's control group or below it, in every hierarchy that this
    /// container has one in.
    ///
    /// To be asked of where a process is that is *known* to be of the container: its first process, as its engine says.
    pub fn shares_group_of(&self, cgroups: &Cgroups) -> bool {
        !self.groups.is_empty()
            && self.groups.iter().all(|group| {
                let below = cgroups.path(&group.hierarchy).and_then(|path| path.strip_prefix(&group.path));
                below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
            })
    }
}

impl Group {
    /// A line `NUMBER:CONTROLLERS:PATH`; a path may hold colons. The number is of this boot only, and not kept.
    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.splitn(3, ':');
        let (number, hierarchy, path) = (parts.next()?, parts.next()?, parts.next()?);
        let is_line = number.parse::<u32>().is_ok() && path.starts_with('/');
        is_line.then(|| Self { hierarchy: hierarchy.to_owned(), path: path.to_owned() })
    }
}

impl<'a> Named<'a> {
    /// The innermost container that `path` names.
    fn by(path: &'a str) -> Option<Self> {
        let mut end = path.len();
        loop {
            let start = path[..end].rfind('/')?;
            let segment = &path[start + 1..end];
            if let Some((before, runtime, id)) = container_in(segment) {
                let pod_uid = pod_in(before).or_else(|| path[..start].rsplit('/').find_map(pod_in));
                let user = user_of(&path[..start]);
                return Some(Self { id, runtime, pod_uid, user, root: &path[..end] });
            }
            end = start;
        }
    }
}

/// The container that a segment of a path is named after, and what stands before its runtime's name.
///
/// `ID`, `RUNTIME-ID`, either with `.scope`, or `SLICE:RUNTIME:ID`.
fn container_in(segment: &str) -> Option<(&str, Runtime, ContainerId)> {
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    let at = name.len().checked_sub(ID_DIGITS).filter(|at| name.is_char_boundary(*at))?;
    let (front, id) = name.split_at(at);
    let id = id.parse().ok()?;
    if front.is_empty() {
        return Some(("", Runtime::Unnamed, id));
    }
    let (before, runtime) = match front.strip_suffix(':') {
        Some(front) => front.rsplit_once(':').unwrap_or(("", front)),
        None => ("", front.strip_suffix('-')?),
    };
    let runtime = match runtime {
        "docker" => Runtime::Docker,
        // With cgroups=split the group of the container itself is its payload.
        "libpod" | "libpod-payload" => Runtime::Libpod,
        "cri-containerd" => Runtime::Containerd,
        "crio" => Runtime::Crio,
        // The monitor of a container is no process of it.
        monitor if monitor.ends_with("conmon") => return None,
        _ => Runtime::Other,
    };
    Some((before, runtime, id))
}

/// The pod that a segment is named after: `podUID`, `PARENT-podUID.slice`, with dashes or, from systemd, underscores.
fn pod_in(segment: &str) -> Option<String> {
    let name = segment.strip_suffix(".slice").unwrap_or(segment);
    let uid = name.strip_prefix("pod").or_else(|| Some(name.rsplit_once("-pod")?.1))?;
    let uid = uid.replace('_', "-");
    let is_uuid = uid.len() == 36
        && uid.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => is_digit(byte),
        });
    // Of a static pod it is the digest of its manifest.
    let is_digest = uid.len() == 32 && uid.bytes().all(is_digit);
    (is_uuid || is_digest).then_some(uid)
}

/// The user whose slice `path` begins with. Deeper ones may be made by anybody. An agent in a control group namespace
/// sees the others beginning with `..`.
fn user_of(path: &str) -> Option<u32> {
    let mut segments = path.split('/').filter(|segment| !segment.is_empty()).skip_while(|it| *it == "..");
    if segments.next()? != "user.slice" {
        return None;
    }
    segments.next()?.strip_prefix("user-")?.strip_suffix(".slice")?.parse().ok()
}

const fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests;
