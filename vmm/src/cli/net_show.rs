//! `wirevm net show`: what went over a machine's NICs, once or again and again.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use vmm::client::{Client, ClientError};
use vmm::counters::{
    Coalesced, Direction, Dropped, HostCounters, HostDirection, NetCounters, NicCounters, QueueCounters,
};

use super::machines::connect;
use crate::report;

/// Say what went over a machine's network cards, for each queue pair and on the host's link, and what was lost for which reason.
#[derive(Debug, Args)]
pub(crate) struct NetShow {
    /// The machine's name
    pub(crate) name: String,

    /// The network card: nic0 is the first; without it, all
    #[arg(value_name = "NIC")]
    pub(crate) nic: Option<String>,

    /// Go on, and say each time what it was per second since the last one; ends with the machine, or Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
        value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) watch: Option<u32>,

    /// Print the numbers as JSON, one object on a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// `wirevm net show`
pub(crate) fn show(args: &NetShow) -> Result<ExitCode, ClientError> {
    let mut client = connect(&args.name)?;
    let mut last = ask(&mut client, args)?;
    let Some(seconds) = args.watch else {
        let text = if args.json { line(&last) } else { page(&last, "", |count| count.to_string()) };
        report::answer(&text);
        return Ok(ExitCode::SUCCESS);
    };
    // A reader that leaves, as head(1) may, ends it too.
    let mut is_read = !args.json || report::try_answer(&line(&last)).is_ok();
    while is_read && !client.is_gone_within(Duration::from_secs(seconds.into())) {
        let now = match ask(&mut client, args) {
            Err(ClientError::Gone) => break,
            asked => asked?,
        };
        let text = if args.json { line(&now) } else { page(&per_second(&last, &now), "/s", short) };
        is_read = report::try_answer(&text).is_ok();
        last = now;
    }
    Ok(ExitCode::SUCCESS)
}

/// The counters, of that NIC alone where one is named.
fn ask(client: &mut Client, args: &NetShow) -> Result<NetCounters, ClientError> {
    client.net_counters(args.nic.as_deref())
}

fn line(counters: &NetCounters) -> String {
    report::json_line(&json!(counters))
}

/// What of `now` came since `before`, per second.
fn per_second(before: &NetCounters, now: &NetCounters) -> NetCounters {
    let micros = u128::from(now.at.saturating_sub(before.at).max(1));
    let rate = |was: u64, is: u64| {
        // A link that was made anew counts from 0.
        let more = u128::from(is.saturating_sub(was));
        u64::try_from((more * 1_000_000 + micros / 2) / micros).unwrap_or(u64::MAX)
    };
    let dropped = |was: &Dropped, is: &Dropped| -> Dropped {
        let rate = |cause: &String, is| rate(was.get(cause).copied().unwrap_or_default(), is);
        is.iter().map(|(cause, is)| (cause.clone(), rate(cause, *is))).collect()
    };
    let direction = |was: &Direction, is: &Direction| Direction {
        frames: rate(was.frames, is.frames),
        bytes: rate(was.bytes, is.bytes),
        dropped: dropped(&was.dropped, &is.dropped),
        rate_waits: rate(was.rate_waits, is.rate_waits),
    };
    let of_host = |was: HostDirection, is: HostDirection| HostDirection {
        frames: rate(was.frames, is.frames),
        bytes: rate(was.bytes, is.bytes),
        dropped: rate(was.dropped, is.dropped),
    };
    let (no_nic, no_queue) = (NicCounters::default(), QueueCounters::default());
    let nic = |is: &NicCounters| {
        let was = before.nics.iter().find(|was| was.name == is.name).unwrap_or(&no_nic);
        let queue = |(number, is): (usize, &QueueCounters)| {
            let was = was.queues.get(number).unwrap_or(&no_queue);
            QueueCounters {
                sent: direction(&was.sent, &is.sent),
                received: direction(&was.received, &is.received),
                coalesced: Coalesced {
                    frames: rate(was.coalesced.frames, is.coalesced.frames),
                    packets: rate(was.coalesced.packets, is.coalesced.packets),
                },
                kicks: rate(was.kicks, is.kicks),
                interrupts: rate(was.interrupts, is.interrupts),
                system_calls: rate(was.system_calls, is.system_calls),
            }
        };
        let host = is.host.as_ref().map(|is| {
            let was = was.host.clone().unwrap_or_default();
            HostCounters { sent: of_host(was.sent, is.sent), received: of_host(was.received, is.received) }
        });
        NicCounters {
            queues: is.queues.iter().enumerate().map(queue).collect(),
            host,
            dropped: dropped(&was.dropped, &is.dropped),
            ..is.clone()
        }
    };
    NetCounters { at: now.at, nics: now.nics.iter().map(nic).collect() }
}

const COLUMNS: [&str; 10] =
    ["", "SENT", "BYTES", "LOST", "RECEIVED", "BYTES", "LOST", "KICKS", "INTERRUPTS", "CALLS"];

/// A table for each NIC, whose numbers are of this `unit`.
fn page(counters: &NetCounters, unit: &str, number: fn(u64) -> String) -> String {
    let mut text = String::new();
    for nic in &counters.nics {
        let mut rows =
            vec![COLUMNS.map(|head| if head.is_empty() { String::new() } else { format!("{head}{unit}") })];
        // The kernel says on the link what it carries.
        let shown = |queue: &&QueueCounters| nic.carrier == "wirevm" || **queue != QueueCounters::default();
        for (index, queue) in nic.queues.iter().enumerate().filter(|(_, queue)| shown(queue)) {
            let QueueCounters { sent, received, kicks, interrupts, system_calls, .. } = queue;
            let way = |way: &Direction| [way.frames, way.bytes, way.lost()];
            let [a, b, c, d, e, f] = [way(sent), way(received)].as_flattened().try_into().expect("2 by 3");
            let numbers = [a, b, c, d, e, f, *kicks, *interrupts, *system_calls].map(number);
            rows.push(row(format!("queue {index}"), &numbers));
        }
        if let Some(HostCounters { sent, received }) = &nic.host {
            let way = |way: &HostDirection| [way.frames, way.bytes, way.dropped];
            let numbers: Vec<_> =
                [way(sent), way(received)].as_flattened().iter().copied().map(number).collect();
            rows.push(row(format!("link {}", nic.link), &numbers));
        }
        text.push_str(&format!("{} on {}, carried by {}\n", nic.name, nic.link, nic.carrier));
        text.push_str(&aligned(&rows));
        if let Some(lost) = lost(nic, unit, number) {
            text.push_str(&format!("lost: {lost}\n"));
        }
        let of_queues =
            |read: fn(&Coalesced) -> u64| nic.queues.iter().map(|queue| read(&queue.coalesced)).sum();
        let together: [u64; 2] = [of_queues(|of| of.frames), of_queues(|of| of.packets)];
        if together != [0, 0] {
            let [frames, packets] = together.map(number);
            text.push_str(&format!("coalesced: {frames}{unit} frames sent as {packets}{unit} packets\n"));
        }
        let waits = |way: fn(&QueueCounters) -> &Direction| {
            nic.queues.iter().map(|queue| way(queue).rate_waits).sum()
        };
        let waits = [waits(|queue| &queue.sent), waits(|queue| &queue.received)];
        if waits != [0, 0] {
            let [sent, received] = waits.map(number);
            text.push_str(&format!("waited for the rate: sent {sent}{unit}, received {received}{unit}\n"));
        }
    }
    text
}

fn row(name: String, numbers: &[String]) -> [String; 10] {
    let mut row = [const { String::new() }; 10];
    row[0] = name;
    row[1..=numbers.len()].clone_from_slice(numbers);
    row
}

/// The first column begins at the left, the numbers end at the right.
fn aligned(rows: &[[String; 10]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..10).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = format!("{:<width$}", row[0], width = widths[0]);
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            line.push_str(&format!("  {cell:>width$}"));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// What was lost of the guest's frames and of those for the guest, by cause; none where nothing was.
fn lost(nic: &NicCounters, unit: &str, number: fn(u64) -> String) -> Option<String> {
    let mut all: Vec<(String, u64)> = Vec::new();
    let ways = nic
        .queues
        .iter()
        .flat_map(|queue| [("sent", &queue.sent.dropped), ("received", &queue.received.dropped)]);
    for (way, dropped) in ways.chain([("sent", &nic.dropped)]) {
        for (cause, count) in dropped {
            let cause = format!("{way} {cause}");
            match all.iter_mut().find(|(known, _)| *known == cause) {
                Some((_, sum)) => *sum += count,
                None => all.push((cause, *count)),
            }
        }
    }
    all.retain(|(_, count)| *count > 0);
    let words = all.iter().map(|(cause, count)| format!("{cause} {}{unit}", number(*count)));
    (!all.is_empty()).then(|| words.collect::<Vec<_>>().join(", "))
}

/// A number in five characters or so.
fn short(count: u64) -> String {
    let (divisor, unit) = match count {
        0..100_000 => return count.to_string(),
        100_000..10_000_000 => (1_000, "k"),
        10_000_000..10_000_000_000 => (1_000_000, "M"),
        _ => (1_000_000_000, "G"),
    };
    format!("{}.{}{unit}", count / divisor, count % divisor * 10 / divisor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(at: u64, scale: u64) -> NetCounters {
        let dropped = |cause: &str, count| Dropped::from([(cause.to_owned(), count)]);
        let direction = |frames, cause| Direction {
            frames,
            bytes: 1000 * frames,
            dropped: dropped(cause, scale),
            rate_waits: if cause == "too_long" { scale } else { 0 },
        };
        let queue = QueueCounters {
            sent: direction(100 * scale, "too_long"),
            received: direction(200 * scale, "no_buffer"),
            coalesced: Coalesced { frames: 90 * scale, packets: 4 * scale },
            kicks: 7 * scale,
            ..QueueCounters::default()
        };
        let host = HostDirection { frames: 100 * scale, bytes: 100_000 * scale, dropped: 0 };
        let nic = NicCounters {
            name: "nic0".into(),
            carrier: "wirevm".into(),
            link: "tap0".into(),
            queues: vec![queue.clone(), queue],
            host: Some(HostCounters { sent: host, received: host }),
            dropped: dropped("guard", 2 * scale),
        };
        NetCounters { at, nics: vec![nic] }
    }

    #[test]
    fn a_page_has_a_row_for_each_queue_and_the_link_and_says_what_was_lost() {
        let page = page(&counters(0, 3), "", |count| count.to_string());
        let words = page.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        assert_eq!(
            words.collect::<Vec<_>>(),
            [
                "nic0 on tap0, carried by wirevm",
                "SENT BYTES LOST RECEIVED BYTES LOST KICKS INTERRUPTS CALLS",
                "queue 0 300 300000 3 600 600000 3 21 0 0",
                "queue 1 300 300000 3 600 600000 3 21 0 0",
                "link tap0 300 300000 0 300 300000 0",
                "lost: sent too_long 6, received no_buffer 6, sent guard 6",
                "coalesced: 540 frames sent as 24 packets",
                "waited for the rate: sent 6, received 0",
            ]
        );
        let columns: Vec<_> = page.lines().skip(2).take(2).map(|line| line.find("300000").unwrap()).collect();
        assert_eq!(columns[0], columns[1], "{page}");
    }

    #[test]
    fn a_rate_is_per_second_of_the_machine() {
        let rates = per_second(&counters(1_000_000, 1), &counters(3_000_000, 5));
        let queue = &rates.nics[0].queues[0];
        assert_eq!((queue.sent.frames, queue.received.bytes, queue.kicks), (200, 400_000, 14));
        assert_eq!((queue.sent.lost(), rates.nics[0].dropped["guard"]), (2, 4));
        assert_eq!(rates.nics[0].host.as_ref().unwrap().sent.bytes, 200_000);
        assert_eq!(queue.coalesced, Coalesced { frames: 180, packets: 8 });
        // A NIC that is new, and a link that was made anew.
        let first = per_second(&NetCounters::default(), &counters(1_000_000, 1));
        assert_eq!(first.nics[0].queues[1].sent.frames, 100);
        assert_eq!(per_second(&counters(0, 9), &counters(1_000_000, 1)).nics[0].queues[0].kicks, 0);
    }

    #[test]
    fn numbers_are_short() {
        for (count, text) in [
            (0, "0"),
            (99_999, "99999"),
            (123_456, "123.4k"),
            (12_345_678, "12.3M"),
            (12_345_678_901, "12.3G"),
        ] {
            assert_eq!(short(count), text);
        }
    }
}
