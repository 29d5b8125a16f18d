//! What the machine allows, read when asked.

use crate::headroom::{self, Available};
use std::fs;

#[derive(Debug, Clone)]
pub struct Machine {
    pub page_size: u64,
    pub open_files: u64,
    pub max_map_count: u64,
    pub memory: Available,
    pub huge_pages_free: u64,
    pub huge_page_size: u64,
}

pub fn machine() -> Machine {
    let (huge_pages_free, huge_page_size) = huge_pages();
    Machine {
        page_size: page_size(),
        open_files: crate::descriptor::soft_limit(),
        max_map_count: read_number("/proc/sys/vm/max_map_count").unwrap_or(65_530),
        memory: headroom::available(),
        huge_pages_free,
        huge_page_size,
    }
}

pub fn page_size() -> u64 {
    // SAFETY: sysconf reads a constant.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Bytes in huge pages that nobody uses or has reserved, and the size of one (2 MiB if the kernel does not say).
pub fn huge_pages() -> (u64, u64) {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let size = meminfo(&text, "Hugepagesize")
        .filter(|size| size.is_power_of_two())
        .unwrap_or(2 << 20);
    let count = |name| meminfo(&text, name).unwrap_or(0);
    let free = count("HugePages_Free").saturating_sub(count("HugePages_Rsvd"));
    (free.saturating_mul(size), size)
}

/// A line of `/proc/meminfo`, in bytes (or as a count, where it has no unit).
pub(crate) fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let mut parts = line.split_whitespace();
    let number: u64 = parts.next()?.parse().ok()?;
    match parts.next() {
        Some("kB") => number.checked_mul(1024),
        _ => Some(number),
    }
}

fn read_number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_knows_units() {
        let text = "MemAvailable:   24 kB\nHugePages_Free:        3\nHugepagesize:       2048 kB\n";
        assert_eq!(meminfo(text, "MemAvailable"), Some(24 * 1024));
        assert_eq!(meminfo(text, "HugePages_Free"), Some(3));
        assert_eq!(meminfo(text, "Mem"), None);
    }
}
