//! A machine's counters in the text that Prometheus reads (its exposition format, version 0.0.4).

use std::fmt::{Display, Write};

use vmm::counters::{Direction, HostDirection, NetCounters, NicCounters, QueueCounters};
use vmm::info::{MachineInfo, MachineState};

use crate::protocol::{Counters, DiskCounters};

/// The counters of a machine: `net`, and of what it has `counted` the exits of each vCPU (port, MMIO, other) and the disks.
pub(crate) fn text(info: &MachineInfo, net: &NetCounters, counted: &Counters) -> String {
    let mut text = String::new();
    let vm = quoted(&info.name);
    head(&mut text, "wirevm_state", "gauge", "The state that the machine is in");
    for state in [MachineState::Built, MachineState::Running, MachineState::Paused, MachineState::Ended] {
        let is = u8::from(state == info.state);
        let _ = writeln!(text, "wirevm_state{{vm={vm},state=\"{}\"}} {is}", state.word());
    }
    head(&mut text, "wirevm_uptime_seconds", "gauge", "Seconds since the machine was started");
    let _ = writeln!(text, "wirevm_uptime_seconds{{vm={vm}}} {}", info.uptime);
    head(&mut text, "wirevm_memory_bytes", "gauge", "The guest's memory");
    let _ = writeln!(text, "wirevm_memory_bytes{{vm={vm}}} {}", info.memory);
    head(&mut text, "wirevm_exits_total", "counter", "Exits of a vCPU to user space, by what the guest did");
    for (cpu, exits) in counted.exits.iter().enumerate() {
        for (kind, count) in ["port", "mmio", "other"].iter().zip(exits) {
            let _ = writeln!(text, "wirevm_exits_total{{vm={vm},vcpu=\"{cpu}\",kind=\"{kind}\"}} {count}");
        }
    }
    queues(&mut text, &vm, net);
    nics(&mut text, &vm, net);
    links(&mut text, &vm, net);
    disks(&mut text, &vm, &counted.disks);
    text
}

/// What each queue pair has counted.
fn queues(text: &mut String, vm: &str, net: &NetCounters) {
    let queues = || {
        net.nics.iter().flat_map(|nic| {
            let labels = move |queue| format!("vm={vm},nic={},queue=\"{queue}\"", quoted(&nic.name));
            nic.queues.iter().enumerate().map(move |(number, queue)| (labels(number), queue))
        })
    };
    type Way = fn(&QueueCounters) -> &Direction;
    let ways: [(&str, &str, &str, Way); 2] = [
        ("sent", "Frames that the guest sent", "Frames of the guest that went nowhere", |queue| &queue.sent),
        ("received", "Frames that the guest received", "Frames that did not come to the guest", |queue| {
            &queue.received
        }),
    ];
    for (word, frames, dropped, way) in ways {
        let family = format!("wirevm_{word}_frames_total");
        counter(text, &family, frames, queues().map(|(labels, queue)| (labels, way(queue).frames)));
        let family = format!("wirevm_{word}_bytes_total");
        counter(text, &family, "Bytes of these", queues().map(|(labels, queue)| (labels, way(queue).bytes)));
        let family = format!("wirevm_{word}_dropped_total");
        let by_cause = queues().flat_map(|(labels, queue)| {
            let causes = way(queue).dropped.iter();
            causes.map(move |(cause, count)| (format!("{labels},cause={}", quoted(cause)), *count))
        });
        counter(text, &family, dropped, by_cause);
        let family = format!("wirevm_{word}_rate_waits_total");
        let waits = queues().map(|(labels, queue)| (labels, way(queue).rate_waits));
        counter(text, &family, "How often frames waited for the NIC's rate", waits);
    }
    type Read = fn(&QueueCounters) -> u64;
    let families: [(&str, &str, Read); 5] = [
        ("wirevm_coalesced_frames_total", "Frames of those sent that went to the host together", |queue| {
            queue.coalesced.frames
        }),
        ("wirevm_coalesced_packets_total", "The packets as which they went", |queue| queue.coalesced.packets),
        ("wirevm_kicks_total", "Notifications of the driver that woke the queue pair's thread", |queue| {
            queue.kicks
        }),
        ("wirevm_interrupts_total", "Interrupts of the guest", |queue| queue.interrupts),
        ("wirevm_system_calls_total", "System calls of the queue pair's thread", |queue| queue.system_calls),
    ];
    for (family, help, read) in families {
        counter(text, family, help, queues().map(|(labels, queue)| (labels, read(queue))));
    }
}

/// What was lost behind the queue pairs.
fn nics(text: &mut String, vm: &str, net: &NetCounters) {
    for (family, cause, help) in [
        (
            "wirevm_ignored_frames_total",
            "not_ip",
            "Frames for which the wire has no way: on a tun, what is not IP",
        ),
        ("wirevm_guard_dropped_total", "guard", "Frames of the guest under addresses that are not its own"),
        (
            "wirevm_rate_dropped_total",
            "rate",
            "Frames of the guest too many for the rate that the host keeps",
        ),
    ] {
        let of_nic = |nic: &NicCounters| {
            let labels = format!("vm={vm},nic={}", quoted(&nic.name));
            (labels, nic.dropped.get(cause).copied().unwrap_or_default())
        };
        counter(text, family, help, net.nics.iter().map(of_nic));
    }
}

/// What the host counts on the link of each NIC, seen from the guest: of vhost-net there is nothing else.
fn links(text: &mut String, vm: &str, net: &NetCounters) {
    let links = |received: bool| {
        net.nics.iter().filter_map(move |nic| {
            let host = nic.host.as_ref()?;
            let labels = format!("vm={vm},nic={},link={}", quoted(&nic.name), quoted(&nic.link));
            Some((labels, if received { host.received } else { host.sent }))
        })
    };
    type Read = fn(HostDirection) -> u64;
    let families: [(&str, bool, &str, Read); 6] = [
        ("sent_frames", false, "Frames that came from the guest by the host's link", |way| way.frames),
        ("sent_bytes", false, "Bytes of these", |way| way.bytes),
        ("sent_dropped", false, "Frames of the guest that the host's link dropped", |way| way.dropped),
        ("received_frames", true, "Frames that went to the guest by the host's link", |way| way.frames),
        ("received_bytes", true, "Bytes of these", |way| way.bytes),
        ("received_dropped", true, "Frames for the guest that the host's link dropped", |way| way.dropped),
    ];
    for (what, received, help, read) in families {
        let family = format!("wirevm_link_{what}_total");
        counter(text, &family, help, links(received).map(|(labels, way)| (labels, read(way))));
    }
}

/// What went to and from each disk, in the order of their `--disk`.
fn disks(text: &mut String, vm: &str, disks: &[DiskCounters]) {
    type Read = fn(&DiskCounters) -> u64;
    let families: [(&str, &str, Read); 7] = [
        ("reads", "Reads of a disk by the guest", |disk| disk.reads),
        ("read_bytes", "Bytes of these", |disk| disk.read_bytes),
        ("writes", "Writes to a disk by the guest", |disk| disk.writes),
        ("written_bytes", "Bytes of these", |disk| disk.written_bytes),
        ("flushes", "Flushes of a disk by the guest", |disk| disk.flushes),
        ("discards", "Requests to discard or to write zeroes", |disk| disk.discards),
        ("errors", "Requests that failed, or that made no sense", |disk| disk.errors),
    ];
    for (what, help, read) in families.iter().filter(|_| !disks.is_empty()) {
        let of_disk = |(number, disk)| (format!("vm={vm},disk=\"{number}\""), read(disk));
        counter(text, &format!("wirevm_disk_{what}_total"), help, disks.iter().enumerate().map(of_disk));
    }
}

/// A family of counters: the labels and the value of each.
fn counter(text: &mut String, family: &str, help: &str, all: impl Iterator<Item = (impl Display, u64)>) {
    head(text, family, "counter", help);
    for (labels, count) in all {
        let _ = writeln!(text, "{family}{{{labels}}} {count}");
    }
}

fn head(text: &mut String, family: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {family} {help}\n# TYPE {family} {kind}");
}

/// A label's value.
fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use vmm::MachineConfig;
    use vmm::counters::{Coalesced, Dropped, HostCounters};

    use super::*;

    #[test]
    fn each_counter_has_its_labels() {
        let info = MachineInfo {
            name: "we\"b".into(),
            state: MachineState::Paused,
            pid: 1,
            machine_pid: 2,
            threads: Vec::new(),
            config: MachineConfig::new("vmlinuz"),
            memory: 512 << 20,
            vsock: None,
            nics: Vec::new(),
            started: 0,
            uptime: 7,
            version: String::new(),
        };
        let dropped = |cause: &str, count| Dropped::from([(cause.to_owned(), count)]);
        let queue = QueueCounters {
            sent: Direction { frames: 3, bytes: 0, dropped: dropped("refused", 7), rate_waits: 8 },
            received: Direction { frames: 0, bytes: 99, dropped: dropped("no_buffer", 1), rate_waits: 0 },
            coalesced: Coalesced { frames: 70, packets: 9 },
            kicks: 12,
            ..QueueCounters::default()
        };
        let (from, to) = (
            HostDirection { frames: 40, bytes: 41, dropped: 42 },
            HostDirection { frames: 50, bytes: 51, dropped: 52 },
        );
        let nic = NicCounters {
            name: "nic0".into(),
            carrier: "wirevm".into(),
            link: "tap0".into(),
            queues: vec![queue],
            host: Some(HostCounters { sent: from, received: to }),
            dropped: [dropped("not_ip", 5), dropped("guard", 6), dropped("rate", 7)]
                .into_iter()
                .flatten()
                .collect(),
        };
        let disk = DiskCounters { reads: 60, written_bytes: 61, errors: 62, ..DiskCounters::default() };
        let counted = Counters { exits: vec![[10, 20, 30]], disks: vec![disk], ..Counters::default() };
        let text = text(&info, &NetCounters { at: 0, nics: vec![nic] }, &counted);
        for line in [
            "wirevm_state{vm=\"we\\\"b\",state=\"paused\"} 1",
            "wirevm_state{vm=\"we\\\"b\",state=\"running\"} 0",
            "wirevm_memory_bytes{vm=\"we\\\"b\"} 536870912",
            "wirevm_exits_total{vm=\"we\\\"b\",vcpu=\"0\",kind=\"mmio\"} 20",
            "wirevm_sent_frames_total{vm=\"we\\\"b\",nic=\"nic0\",queue=\"0\"} 3",
            "wirevm_received_bytes_total{vm=\"we\\\"b\",nic=\"nic0\",queue=\"0\"} 99",
            "wirevm_sent_dropped_total{vm=\"we\\\"b\",nic=\"nic0\",queue=\"0\",cause=\"refused\"} 7",
            "wirevm_received_dropped_total{vm=\"we\\\"b\",nic=\"nic0\",queue=\"0\",cause=\"no_buffer\"} 1",
            "wirevm_sent_rate_waits_total{vm=\"we\\\"b\",nic=\"nic0\",queue=\"0\"} 8",
            "wirevm_coalesced_frames_total{vm=\"we\\\"b\",nic=\"nic0\",queue=\"0\"} 70",
            "wirevm_coalesced_packets_total{vm=\"we\\\"b\",nic=\"nic0\",queue=\"0\"} 9",
            "wirevm_kicks_total{vm=\"we\\\"b\",nic=\"nic0\",queue=\"0\"} 12",
            "wirevm_ignored_frames_total{vm=\"we\\\"b\",nic=\"nic0\"} 5",
            "wirevm_guard_dropped_total{vm=\"we\\\"b\",nic=\"nic0\"} 6",
            "wirevm_rate_dropped_total{vm=\"we\\\"b\",nic=\"nic0\"} 7",
            "wirevm_link_sent_frames_total{vm=\"we\\\"b\",nic=\"nic0\",link=\"tap0\"} 40",
            "wirevm_link_received_dropped_total{vm=\"we\\\"b\",nic=\"nic0\",link=\"tap0\"} 52",
            "wirevm_disk_reads_total{vm=\"we\\\"b\",disk=\"0\"} 60",
            "wirevm_disk_written_bytes_total{vm=\"we\\\"b\",disk=\"0\"} 61",
            "wirevm_disk_errors_total{vm=\"we\\\"b\",disk=\"0\"} 62",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("wirevm_") && value.parse::<u64>().is_ok(), "{line}");
        }
    }
}
