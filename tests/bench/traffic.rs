//! What the programs that make traffic say, and what KVM counts meanwhile.

use std::fs;
use std::process::Stdio;

use harness::netns::Netns;

/// Exits of all guests since KVM was loaded; less those of guests that have ended.
const EXITS: &str = "/sys/kernel/debug/kvm/exits";
/// Seconds that a command may take.
const LIMIT: &str = "60";

/// How many exits all guests had while `call` ran.
pub(crate) fn exits_during<T>(call: impl FnOnce() -> Result<T, String>) -> Result<(T, f64), String> {
    let exits = || -> Result<f64, String> {
        let text = fs::read_to_string(EXITS).map_err(|error| format!("cannot read {EXITS}: {error}"))?;
        text.trim().parse().map_err(|_| format!("{EXITS} is no number: {text}"))
    };
    let before = exits()?;
    let result = call()?;
    Ok((result, exits()? - before))
}

/// The megabits per second that arrived, of what iperf3 says with `-f k`.
pub(crate) fn mbits(said: &str) -> Result<f64, String> {
    // [  5]   0.00-5.00   sec   134 MBytes  225000 Kbits/sec                  receiver
    let line = said.lines().find(|line| line.trim_end().ends_with("receiver"));
    let words: Vec<_> = line.unwrap_or_default().split_whitespace().collect();
    let rate =
        words.iter().position(|word| *word == "Kbits/sec").and_then(|at| words.get(at.checked_sub(1)?));
    let kbits: Option<f64> = rate.and_then(|rate| rate.parse().ok());
    kbits.map(|kbits| kbits / 1e3).ok_or_else(|| format!("what does iperf3 say? {said}"))
}

/// What `mbits` are in MiB after so many seconds.
pub(crate) fn mib(mbits: f64, seconds: u32) -> f64 {
    mbits * 1e6 / 8.0 * f64::from(seconds) / 1048576.0
}

/// The least and the average in milliseconds, of ping's `min/avg/max... = 0.031/0.042/0.058 ms`.
pub(crate) fn round_trip(said: &str) -> Result<[f64; 2], String> {
    let figures = said.lines().find_map(|line| line.split_once("min/avg/max")?.1.split_once(" = "));
    let mut figures =
        figures.map_or("", |(_, figures)| figures).split([' ', '/']).map_while(|word| word.parse().ok());
    figures
        .next()
        .zip(figures.next())
        .map(|(least, average)| [least, average])
        .ok_or_else(|| format!("what does ping say? {said}"))
}

/// Runs a shell command in a namespace, and returns what it printed.
pub(crate) fn shell(host: &Netns, script: &str) -> Result<String, String> {
    let mut command = host.command("timeout");
    let output = command.args(["-k", "1", LIMIT, "sh", "-c", script]).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("cannot start a shell: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => Ok(said),
        false => {
            Err(format!("{script}: {}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr)))
        }
    }
}
