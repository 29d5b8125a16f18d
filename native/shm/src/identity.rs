//! Which process this is, in a way that survives reuse of pids and restarts of the machine.

use crate::header::Identity;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

/// Of this process. Read once: none of it changes while we live.
pub fn own() -> Identity {
    static OWN: OnceLock<Identity> = OnceLock::new();
    *OWN.get_or_init(|| {
        let pid = u64::from(std::process::id());
        Identity {
            boot_id: boot_id().unwrap_or_default(),
            pid_namespace: fs::metadata("/proc/self/ns/pid").map_or(0, |meta| meta.ino()),
            pid,
            start_time: stat(pid).map_or(0, |(_, start)| start),
        }
    })
}

/// The start time of a process in our own pid namespace (clock ticks since boot), unless it is a zombie.
pub fn start_time(pid: u64) -> Option<u64> {
    stat(pid)
        .filter(|(state, _)| !matches!(state, 'Z' | 'X' | 'x'))
        .map(|(_, start)| start)
}

/// Whether this very process, not another with the same pid, is alive.
pub fn is_alive(pid: u64, start: u64) -> bool {
    start_time(pid) == Some(start)
}

/// Fields 3 and 22 of `/proc/PID/stat`. The second field may hold spaces and brackets: look behind the last one.
fn stat(pid: u64) -> Option<(char, u64)> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

fn boot_id() -> Option<[u8; 16]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).ok().map(u128::to_be_bytes)
}

/// 32 hexadecimal digits.
pub fn boot_id_hex(boot_id: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*boot_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_is_complete_and_alive() {
        let own = own();
        assert_ne!(own.boot_id, [0; 16]);
        assert!(own.pid_namespace > 0 && own.start_time > 0);
        assert!(is_alive(own.pid, own.start_time));
        assert!(!is_alive(own.pid, own.start_time + 1));
    }

    #[test]
    fn a_zombie_is_not_alive() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = u64::from(child.id());
        while start_time(pid).is_some() {
            std::thread::yield_now();
        }
        assert!(stat(pid).is_some(), "not reaped yet");
        child.wait().unwrap();
        assert!(stat(pid).is_none());
    }
}
