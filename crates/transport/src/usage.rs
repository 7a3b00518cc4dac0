//! What this process has taken of the machine, from the system's own books.

use std::fs;

use rustix::time::{ClockId, clock_gettime};

/// Seconds of all cores that this process has used, in the kernel too.
#[must_use]
pub fn cpu_seconds() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

/// The most memory that was resident at any time, in bytes; none where the
/// system does not tell.
#[must_use]
pub fn peak_memory_bytes() -> Option<u64> {
    status_bytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Memory that is resident now and belongs to no file, in bytes.
#[must_use]
pub fn anonymous_memory_bytes() -> Option<u64> {
    status_bytes(&fs::read_to_string("/proc/self/status").ok()?, "RssAnon:")
}

fn status_bytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_the_kernel_writes_them() {
        assert_eq!(status_bytes("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n", "VmHWM:"), Some(2 << 20));
        assert_eq!(status_bytes("VmHWM:\tmuch\n", "VmHWM:"), None);
    }

    #[test]
    fn this_process_uses_something() {
        let before = cpu_seconds();
        let mut sum = 0_u64;
        while cpu_seconds() < before + 0.01 {
            sum = sum.wrapping_add(std::hint::black_box(1));
        }
        assert!(sum > 0);
        assert!(peak_memory_bytes().unwrap() >= anonymous_memory_bytes().unwrap());
    }
}
