//! A CPU for each of several threads: `CPU[:CPU]...`

use super::keys::number;

/// The CPUs that a thread can be bound to are numbered below this, `CPU_SETSIZE` (sched_setaffinity(2)).
const CPUS: u16 = 1024;

/// Reads CPUs as [`write_cpus`] writes them.
///
/// # Errors
/// They are no such numbers: what was expected.
pub fn parse_cpus(text: &str) -> Result<Vec<u16>, &'static str> {
    let cpus: Option<_> = text.split(':').map(|cpu| number(cpu).filter(|&cpu| cpu < CPUS)).collect();
    cpus.ok_or("expected numbers of CPUs below 1024: 2, or 2:3 for two")
}

/// The numbers of CPUs as an option has them: `2:3`.
pub fn write_cpus(cpus: &[u16]) -> String {
    cpus.iter().map(u16::to_string).collect::<Vec<_>>().join(":")
}
