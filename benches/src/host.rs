//! What the numbers were measured on.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// Processor, cores, memory, kernel and the device under `dir`. No name of the machine.
pub fn describe(dir: &Path) -> Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':')
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let device = first_line(
        Command::new("findmnt")
            .args(["-n", "-o", "SOURCE,FSTYPE,OPTIONS", "-T"])
            .arg(dir),
    );
    json!({
        "cpu": field(&cpuinfo, "model name"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory": field(&meminfo, "MemTotal"),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "device": device,
    })
}

/// Processor time in 1/100 s (`USER_HZ`, the unit of /proc on every architecture we run on).
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor seconds that the whole machine has spent since it started: all programs, the kernel, and what the hypervisor took
/// away (`steal`). Idle time and waiting for disks are not among them.
pub fn busy_s() -> f64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    busy_ticks(text.lines().next().unwrap_or_default()) / TICKS_PER_SECOND
}

/// Processor seconds that this process has spent itself, children apart.
pub fn own_s() -> f64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is a name in parentheses; utime and stime are the fields 14 and 15 (proc(5)).
    let fields = text.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let ticks = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|word| word.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS_PER_SECOND
}

/// Cores that others may keep busy during a run. Half a core of two moves a wall time by more than the spread that we accept.
pub const OTHERS_CORES_MAX: f64 = 0.5;

/// Sum over a `cpu` line of /proc/stat: user, nice, system, irq, softirq, steal; idle and iowait (4 and 5) left out, and the
/// guest times (9 and 10), which are in user and nice already.
fn busy_ticks(line: &str) -> f64 {
    let fields = line.split_whitespace().skip(1).take(8).enumerate();
    fields
        .filter(|(i, _)| !matches!(i, 3 | 4))
        .filter_map(|(_, word)| word.parse::<f64>().ok())
        .sum()
}

/// First line that a program prints; empty when it cannot be started or fails.
pub fn first_line(command: &mut Command) -> String {
    let output = command.output().ok().filter(|output| output.status.success());
    let text = output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

/// Today in UTC as `2026-01-31`.
pub fn today() -> String {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    date(seconds / 86_400)
}

/// Date of a day counted from 1970-01-01. Years are counted from 1 March, so that the leap day ends one.
fn date(days: u64) -> String {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day_of_month:02}", era * 400 + year + carry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_time_leaves_out_idle_and_waiting() {
        assert_eq!(busy_ticks("cpu  1 2 4 1000 2000 8 16 32 1 1"), 63.0);
        assert!(busy_s() > 0.0 && busy_s() >= own_s());
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(11_016), "2000-02-29");
        assert_eq!(date(11_017), "2000-03-01");
        assert_eq!(date(20_453), "2025-12-31");
        assert_eq!(date(20_454), "2026-01-01");
    }
}
