//! What the memory controllers of our cgroup leave.
//!
//! `/proc/self/cgroup` says where we are, `/proc/self/mountinfo` where that can be seen. In a container the mount often
//! shows only a sub-tree, or the path is given from another root: then the mount's own root stands for us. Every
//! level up to the mount point may have a limit, and the least of them counts.

use std::fs;
use std::path::{Path, PathBuf};

/// Free bytes under one limit, and the file that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Room {
    pub free: u64,
    pub file: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A directory from which to look upwards, and where to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    version: Version,
    directory: PathBuf,
    top: PathBuf,
}

/// Where our memory controllers are. Does not change while we live, except by somebody moving us.
pub(crate) fn places() -> Vec<Place> {
    let cgroup = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    locate(&cgroup, &mountinfo)
}

/// The least room that the limits leave, if there is any limit.
pub(crate) fn room(places: &[Place]) -> Option<Room> {
    places
        .iter()
        .flat_map(levels)
        .filter_map(|(version, directory)| level(version, &directory))
        .min_by_key(|r| r.free)
}

fn levels(place: &Place) -> impl Iterator<Item = (Version, PathBuf)> + '_ {
    place
        .directory
        .ancestors()
        .take_while(|directory| directory.starts_with(&place.top))
        .map(|directory| (place.version, directory.to_path_buf()))
}

fn level(version: Version, directory: &Path) -> Option<Room> {
    let (limit_name, usage_name, cache_name) = match version {
        Version::One => ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        Version::Two => ("memory.max", "memory.current", "inactive_file"),
    };
    let file = directory.join(limit_name);
    // "max" (version 2) does not parse; version 1 says a number near 2^63. Both are: no limit.
    let limit = number(&file).filter(|limit| *limit < 1 << 62)?;
    let usage = number(&directory.join(usage_name))?;
    // Clean file cache that nobody has used lately is given up before anybody is killed.
    let cache = statistic(&directory.join("memory.stat"), cache_name).unwrap_or(0);
    let free = limit.saturating_sub(usage.saturating_sub(cache));
    Some(Room {
        free,
        file: file.to_string_lossy().into_owned(),
    })
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn statistic(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn locate(cgroup: &str, mountinfo: &str) -> Vec<Place> {
    let mut places = Vec::new();
    for line in cgroup.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let version = match controllers {
            "" => Version::Two,
            list if list.split(',').any(|controller| controller == "memory") => Version::One,
            _ => continue,
        };
        places.extend(mounts(mountinfo, version).map(|(root, top)| Place {
            version,
            directory: visible(&root, &top, path),
            top,
        }));
    }
    places
}

/// Our directory under a mount that shows `root` at `top`.
fn visible(root: &str, top: &Path, path: &str) -> PathBuf {
    let below = match root {
        "/" => Some(path),
        root => path
            .strip_prefix(root)
            .filter(|rest| rest.is_empty() || rest.starts_with('/')),
    };
    match below {
        // ".." stands for what lies outside the mount or the namespace.
        Some(rest) if !rest.split('/').any(|part| part == "..") => top.join(rest.trim_start_matches('/')),
        _ => top.to_path_buf(),
    }
}

/// (root, mount point) of each mount of the memory controller.
fn mounts(mountinfo: &str, version: Version) -> impl Iterator<Item = (String, PathBuf)> + '_ {
    mountinfo.lines().filter_map(move |line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let (kind, _source, options) = (after.next()?, after.next()?, after.next()?);
        let wanted = match version {
            Version::Two => kind == "cgroup2",
            Version::One => kind == "cgroup" && options.split(',').any(|option| option == "memory"),
        };
        let mut before = before.split(' ').skip(3);
        let (root, point) = (before.next()?, before.next()?);
        wanted.then(|| (unescape(root), PathBuf::from(unescape(point))))
    })
}

/// mountinfo writes space, tab, newline and backslash as `\ooo`.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(version: Version, directory: &str, top: &str) -> Place {
        Place {
            version,
            directory: directory.into(),
            top: top.into(),
        }
    }

    const V2: &str = "30 24 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw";

    #[test]
    fn version_2_on_a_host() {
        assert_eq!(
            locate("0::/user.slice/a.scope\n", V2),
            [place(
                Version::Two,
                "/sys/fs/cgroup/user.slice/a.scope",
                "/sys/fs/cgroup"
            )]
        );
    }

    #[test]
    fn version_1_with_several_controllers() {
        let mounts = "33 32 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      34 32 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        let found = locate("5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n", mounts);
        assert_eq!(
            found,
            [place(
                Version::One,
                "/sys/fs/cgroup/memory/docker/abc",
                "/sys/fs/cgroup/memory"
            )]
        );
    }

    #[test]
    fn a_container_sees_a_sub_tree() {
        let mounts = "34 32 0:31 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        let top = "/sys/fs/cgroup/memory";
        assert_eq!(locate("4:memory:/docker/abc", mounts), [place(Version::One, top, top)]);
        let nested = format!("{top}/in");
        assert_eq!(
            locate("4:memory:/docker/abc/in", mounts),
            [place(Version::One, &nested, top)]
        );
        // Another root than the mount's, a path outside the namespace, a name that only begins alike:
        for path in ["/", "/../../x", "/docker/abcd"] {
            assert_eq!(
                locate(&format!("4:memory:{path}"), mounts),
                [place(Version::One, top, top)]
            );
        }
    }

    #[test]
    fn the_tightest_level_counts_and_cache_is_free() {
        let top = tempfile::tempdir().unwrap();
        let inner = top.path().join("outer/inner");
        fs::create_dir_all(&inner).unwrap();
        let put = |directory: &Path, name: &str, text: &str| fs::write(directory.join(name), text).unwrap();
        put(&inner, "memory.max", "max\n");
        put(&inner, "memory.current", "10\n");
        let outer = top.path().join("outer");
        put(&outer, "memory.max", "1000\n");
        put(&outer, "memory.current", "900\n");
        put(&outer, "memory.stat", "anon 700\nactive_file 9\ninactive_file 150\n");
        let place = Place {
            version: Version::Two,
            directory: inner,
            top: top.path().to_path_buf(),
        };
        let file = outer.join("memory.max").to_string_lossy().into_owned();
        assert_eq!(room(&[place]), Some(Room { free: 250, file }));
    }

    #[test]
    fn no_limit_is_none() {
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        fs::write(top.path().join("memory.usage_in_bytes"), "1\n").unwrap();
        let path = top.path().to_path_buf();
        assert_eq!(
            room(&[Place {
                version: Version::One,
                directory: path.clone(),
                top: path
            }]),
            None
        );
    }
}
