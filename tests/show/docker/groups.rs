//! Where does this machine keep the control groups of a process, and how is another put into ones of the same name?

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::ensure;

/// The control groups of a process: of each hierarchy the place where it is mounted, and the path in it.
pub(super) struct Groups(Vec<(PathBuf, String)>);

/// Control groups that were made here, removed when dropped: they must be empty by then.
pub(super) struct Made(Vec<PathBuf>);

impl Groups {
    /// Those of `pid`, in the hierarchies that are mounted.
    pub(super) fn of(pid: u32) -> anyhow::Result<Self> {
        let lines = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mounted = |controllers: &str| {
            mounts.lines().find_map(|line| {
                let mut fields = line.split(' ');
                let (place, kind, options) = (fields.nth(1)?, fields.next()?, fields.next()?);
                let is_it = match controllers {
                    "" => kind == "cgroup2",
                    _ => {
                        kind == "cgroup"
                            && controllers.split(',').all(|one| options.split(',').any(|it| it == one))
                    }
                };
                is_it.then(|| PathBuf::from(place))
            })
        };
        let groups = lines.lines().filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            Some((mounted(controllers)?, path.to_owned()))
        });
        let groups: Vec<_> = groups.collect();
        ensure!(!groups.is_empty(), "no control groups of process {pid} in:\n{lines}");
        Ok(Self(groups))
    }

    /// The place of each hierarchy, and that of this process's group in it.
    pub(super) fn places(&self) -> impl Iterator<Item = (&Path, PathBuf)> {
        self.0.iter().map(|(mount, path)| (mount.as_path(), mount.join(path.trim_start_matches('/'))))
    }

    /// Makes groups of the same last name elsewhere: below `parent` in each hierarchy.
    pub(super) fn named_alike(&self, parent: &str) -> anyhow::Result<Made> {
        let mut made = Made(Vec::new());
        for (mount, path) in &self.0 {
            let name = path.rsplit('/').next().unwrap_or_default();
            // Such a one of cpusets takes no process until it is given processors.
            if name.is_empty() || mount.ends_with("cpuset") {
                continue;
            }
            for dir in [mount.join(parent), mount.join(parent).join(name)] {
                if !dir.is_dir() {
                    fs::create_dir(&dir)?;
                    made.0.push(dir);
                }
            }
        }
        Ok(made)
    }
}

impl Made {
    /// A line of shell that moves the shell there.
    pub(super) fn enter(&self) -> String {
        let leaves =
            self.0.iter().filter(|dir| !self.0.iter().any(|other| other != *dir && other.starts_with(dir)));
        leaves.map(|dir| format!("echo $$ > {}/cgroup.procs && ", dir.display())).collect()
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // One that is still in use stays behind, empty soon.
        self.0.iter().rev().for_each(|dir| drop(fs::remove_dir(dir)));
    }
}
