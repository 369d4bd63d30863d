//! What the programs that make traffic say, and what KVM counts meanwhile.

use std::fs;
use std::process::Stdio;

use harness::netns::Netns;

const EXITS: &str = "/sys/kernel/debug/kvm/exits";
/// Seconds that a command may take.
const LIMIT: &str = "60";

/// Exits of all guests since KVM was loaded; less those of guests that have ended.
pub(crate) fn exits() -> Result<f64, String> {
    let text = fs::read_to_string(EXITS).map_err(|error| format!("cannot read {EXITS}: {error}"))?;
    text.trim().parse().map_err(|_| format!("{EXITS} is no number: {text}"))
}

/// How many exits all guests had while `call` ran.
pub(crate) fn exits_during<T>(call: impl FnOnce() -> Result<T, String>) -> Result<(T, f64), String> {
    let before = exits()?;
    let result = call()?;
    Ok((result, exits()? - before))
}

/// The megabits per second that arrived, of what iperf3 says with `-f k`; of several streams, their sum.
pub(crate) fn mbits(said: &str) -> Result<f64, String> {
    // [SUM]   0.00-5.00   sec   134 MBytes  225000 Kbits/sec                  receiver
    let line = received(said);
    let words: Vec<_> = line.unwrap_or_default().split_whitespace().collect();
    let rate =
        words.iter().position(|word| *word == "Kbits/sec").and_then(|at| words.get(at.checked_sub(1)?));
    let kbits: Option<f64> = rate.and_then(|rate| rate.parse().ok());
    kbits.map(|kbits| kbits / 1e3).ok_or_else(|| format!("what does iperf3 say? {said}"))
}

/// The share that was lost, in percent, of the datagrams of which iperf3 knows.
pub(crate) fn lost(said: &str) -> Result<f64, String> {
    datagrams(said).map(|(lost, all)| lost / all * 100.0)
}

/// How many datagrams were lost, and how many there were, as iperf3 knows.
pub(crate) fn datagrams(said: &str) -> Result<(f64, f64), String> {
    // [  5]   0.00-1.00   sec  3.67 MBytes  30742 Kbits/sec  0.005 ms  72657/132737 (55%)  receiver
    let counts = received(said).and_then(|line| line.split_whitespace().rev().nth(2)?.split_once('/'));
    let counts: Option<(f64, f64)> = counts.and_then(|(lost, all)| lost.parse().ok().zip(all.parse().ok()));
    let counts = counts.filter(|(_, all)| *all > 0.0);
    counts.ok_or_else(|| format!("what does iperf3 say? {said}"))
}

/// iperf3's last line of what arrived: of several streams, of all.
fn received(said: &str) -> Option<&str> {
    said.lines().rfind(|line| line.trim_end().ends_with("receiver"))
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

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "\
[  5]   0.00-1.00   sec   595 MBytes  4981920 Kbits/sec    1             sender
[  5]   0.00-1.00   sec   595 MBytes  4981761 Kbits/sec                  receiver
[SUM]   0.00-1.00   sec  2.35 GBytes  20126540 Kbits/sec    4             sender
[SUM]   0.00-1.00   sec  2.35 GBytes  20125897 Kbits/sec                  receiver

iperf Done.
";
    const UDP: &str = "\
[  5]   0.00-1.00   sec  8.10 MBytes  67932 Kbits/sec  0.000 ms  0/132740 (0%)  sender
[  5]   0.00-1.00   sec  3.67 MBytes  30742 Kbits/sec  0.005 ms  66368/132736 (50%)  receiver
";

    #[test]
    fn what_arrived_counts_and_of_several_streams_all() {
        assert_eq!(mbits(TCP), Ok(20125.897));
        assert_eq!(mbits(UDP), Ok(30.742));
        assert!(mbits("iperf3: error - the server is busy").is_err());
    }

    #[test]
    fn datagrams_that_are_lost() {
        assert_eq!(datagrams(UDP), Ok((66368.0, 132736.0)));
        assert_eq!(lost(UDP), Ok(50.0));
        assert!(lost(TCP).is_err());
        assert!(
            lost("[  5]  0.00-1.00  sec  0.00 Bytes  0.00 Kbits/sec  0.000 ms  0/0 (0%)  receiver").is_err()
        );
    }

    #[test]
    fn the_least_and_the_average_of_pings() {
        let said = "rtt min/avg/max/mdev = 0.031/0.042/0.058/0.010 ms\n";
        assert_eq!(round_trip(said), Ok([0.031, 0.042]));
    }
}
