//! What the device's resources are, in numbers: the device's part of a telemetry sample.

use std::path::Path;

use edgeward_models::fleet::telemetry::DeviceSample;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use super::page::Page;

/// Reads the device's resources; CPU use is that since the reading before.
pub struct Resources {
    /// Absent where the platform cannot be asked: its numbers are then 0.
    system: Option<System>,
}

impl Resources {
    pub fn new() -> Self {
        let wanted = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing().with_usage())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        let system = System::new_with_specifics(wanted);
        Self {
            system: system.ok(),
        }
    }

    /// `disk`: where models are stored.
    pub fn sample(&mut self, disk: &Path) -> DeviceSample {
        let (mut cpu_percent, mut memory_used_bytes, mut memory_total_bytes) = (0.0, 0, 0);
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
            cpu_percent = system.global_cpu_usage();
            memory_used_bytes = system.used_memory();
            memory_total_bytes = system.total_memory();
        }
        DeviceSample {
            cpu_percent,
            memory_used_bytes,
            memory_total_bytes,
            agent_resident_bytes: resident_bytes(),
            disk_free_bytes: rustix::fs::statvfs(disk)
                .map(|s| s.f_bavail.saturating_mul(s.f_frsize))
                .unwrap_or(0),
        }
    }
}

/// The sample's part of the metrics page.
pub fn write_metrics(sample: &DeviceSample, page: &mut Page) {
    let name = "edgeward_device_cpu_ratio";
    page.gauge(
        name,
        "Use of all processors since the page was last asked for.",
    );
    page.value(name, &[], sample.cpu_percent / 100.0);
    for (name, help, bytes) in [
        (
            "edgeward_device_memory_used_bytes",
            "Memory of the device in use.",
            sample.memory_used_bytes,
        ),
        (
            "edgeward_device_memory_bytes",
            "Memory of the device.",
            sample.memory_total_bytes,
        ),
        (
            "edgeward_agent_resident_bytes",
            "Memory of the agent without its workers.",
            sample.agent_resident_bytes,
        ),
        (
            "edgeward_disk_free_bytes",
            "Free where versions and logs are kept.",
            sample.disk_free_bytes,
        ),
    ] {
        page.gauge(name, help);
        page.value(name, &[], bytes);
    }
}

impl Default for Resources {
    fn default() -> Self {
        Self::new()
    }
}

/// Resident bytes of this process; 0 where /proc does not say.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_of_this_machine_is_plausible() {
        let sample = Resources::new().sample(Path::new("/"));
        assert!(sample.memory_total_bytes > sample.memory_used_bytes);
        assert!(sample.agent_resident_bytes > 1 << 20);
        assert!(sample.disk_free_bytes > 0);
        assert!((0.0..=100.0).contains(&sample.cpu_percent));
    }
}
