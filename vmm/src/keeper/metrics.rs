//! A machine's counters in the text that Prometheus reads (its exposition format, version 0.0.4).

use std::fmt::Write;

use vmm::info::{MachineInfo, MachineState};

use crate::protocol::{Counters, NicCounters, PairCounters};

/// The counters of a machine, and of the links whose frames the kernel carries.
pub(crate) fn text(info: &MachineInfo, counters: &Counters) -> String {
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
    for (cpu, exits) in counters.exits.iter().enumerate() {
        for (kind, count) in ["port", "mmio", "other"].iter().zip(exits) {
            let _ = writeln!(text, "wirevm_exits_total{{vm={vm},vcpu=\"{cpu}\",kind=\"{kind}\"}} {count}");
        }
    }
    type Read = fn(&PairCounters) -> u64;
    // Name, the label of the cause, what it is, and where it stands; of one family after another.
    let families: [(&str, &str, &str, Read); 11] = [
        ("wirevm_sent_frames_total", "", "Frames that the guest sent", |pair| pair.tx_frames),
        ("wirevm_sent_bytes_total", "", "Bytes of these", |pair| pair.tx_bytes),
        (
            "wirevm_sent_dropped_total",
            ",cause=\"refused\"",
            "Frames of the guest that went nowhere",
            |pair| pair.tx_dropped.saturating_sub(pair.tx_too_long),
        ),
        ("wirevm_sent_dropped_total", ",cause=\"too_long\"", "", |pair| pair.tx_too_long),
        ("wirevm_received_frames_total", "", "Frames that the guest received", |pair| pair.rx_frames),
        ("wirevm_received_bytes_total", "", "Bytes of these", |pair| pair.rx_bytes),
        (
            "wirevm_received_dropped_total",
            ",cause=\"unread\"",
            "Frames that did not come to the guest",
            |pair| pair.rx_unread,
        ),
        ("wirevm_received_dropped_total", ",cause=\"unfit\"", "", |pair| {
            pair.rx_dropped.saturating_sub(pair.rx_unread)
        }),
        ("wirevm_kicks_total", "", "Notifications of the driver that woke the queue pair's thread", |pair| {
            pair.kicks
        }),
        ("wirevm_interrupts_total", "", "Interrupts of the guest", |pair| pair.interrupts),
        ("wirevm_system_calls_total", "", "System calls of the queue pair's thread", |pair| pair.calls),
    ];
    for (family, cause, help, read) in families {
        if !help.is_empty() {
            head(&mut text, family, "counter", help);
        }
        for (nic, NicCounters { pairs, .. }) in info.nics.iter().zip(&counters.nics) {
            for (number, pair) in pairs.iter().enumerate() {
                let labels = format!("vm={vm},nic={},queue=\"{number}\"{cause}", quoted(&nic.name));
                let _ = writeln!(text, "{family}{{{labels}}} {}", read(pair));
            }
        }
    }
    head(
        &mut text,
        "wirevm_ignored_frames_total",
        "counter",
        "Frames for which the wire has no way: on a tun, what is not IP",
    );
    for (nic, counters) in info.nics.iter().zip(&counters.nics) {
        let labels = format!("vm={vm},nic={}", quoted(&nic.name));
        let _ = writeln!(text, "wirevm_ignored_frames_total{{{labels}}} {}", counters.ignored);
    }
    text.push_str(&links(&vm, info));
    text
}

/// What the host counts on the link of each NIC, seen from the guest: of vhost-net there is nothing else.
fn links(vm: &str, info: &MachineInfo) -> String {
    // The host sends what the guest receives.
    const FAMILIES: [(&str, &str, &str); 6] = [
        ("wirevm_link_sent_frames_total", "rx_packets", "Frames that came from the guest by the host's link"),
        ("wirevm_link_sent_bytes_total", "rx_bytes", "Bytes of these"),
        ("wirevm_link_sent_dropped_total", "rx_dropped", "Frames of the guest that the host's link dropped"),
        (
            "wirevm_link_received_frames_total",
            "tx_packets",
            "Frames that went to the guest by the host's link",
        ),
        ("wirevm_link_received_bytes_total", "tx_bytes", "Bytes of these"),
        (
            "wirevm_link_received_dropped_total",
            "tx_dropped",
            "Frames for the guest that the host's link dropped",
        ),
    ];
    let mut text = String::new();
    for (family, file, help) in FAMILIES {
        head(&mut text, family, "counter", help);
        for nic in &info.nics {
            // A link in another network namespace is out of sight here.
            let path = format!("/sys/class/net/{}/statistics/{file}", nic.link);
            let Ok(count) = std::fs::read_to_string(path) else { continue };
            let labels = format!("vm={vm},nic={},link={}", quoted(&nic.name), quoted(&nic.link));
            let _ = writeln!(text, "{family}{{{labels}}} {}", count.trim());
        }
    }
    text
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
    use vmm::info::NicInfo;

    use super::*;

    #[test]
    fn each_counter_has_its_labels() {
        let nic = NicInfo {
            name: "nic0".into(),
            spec: "tap".into(),
            kind: "tap".into(),
            link: "no-such-link".into(),
            mac: String::new(),
            mtu: 1500,
            queues: 1,
            carrier: "wirevm".into(),
            up: true,
            link_mode: "follow".into(),
            why_down: None,
            links: serde_json::Value::Null,
            hops: serde_json::Value::Null,
        };
        let info = MachineInfo {
            name: "we\"b".into(),
            state: MachineState::Paused,
            pid: 1,
            machine_pid: 2,
            threads: Vec::new(),
            config: MachineConfig::new("vmlinuz"),
            memory: 512 << 20,
            nics: vec![nic],
            started: 0,
            uptime: 7,
            version: String::new(),
        };
        let pair = PairCounters {
            tx_frames: 3,
            tx_dropped: 9,
            tx_too_long: 2,
            rx_bytes: 99,
            rx_dropped: 6,
            rx_unread: 5,
            kicks: 12,
            ..PairCounters::default()
        };
        let counters =
            Counters { nics: vec![NicCounters { pairs: vec![pair], ignored: 5 }], exits: vec![[10, 20, 30]] };
        let text = text(&info, &counters);
        for line in [
            "wirevm_state{vm=\"we\\\"b\",state=\"paused\"} 1",
            "wirevm_state{vm=\"we\\\"b\",state=\"running\"} 0",
            "wirevm_memory_bytes{vm=\"we\\\"b\"} 536870912",
            "wirevm_exits_total{vm=\"we\\\"b\",vcpu=\"0\",kind=\"mmio\"} 20",
            "wirevm_sent_frames_total{vm=\"we\\\"b\",nic=\"nic0\",queue=\"0\"} 3",
            "wirevm_received_bytes_total{vm=\"we\\\"b\",nic=\"nic0\",queue=\"0\"} 99",
            "wirevm_sent_dropped_total{vm=\"we\\\"b\",nic=\"nic0\",queue=\"0\",cause=\"refused\"} 7",
            "wirevm_sent_dropped_total{vm=\"we\\\"b\",nic=\"nic0\",queue=\"0\",cause=\"too_long\"} 2",
            "wirevm_received_dropped_total{vm=\"we\\\"b\",nic=\"nic0\",queue=\"0\",cause=\"unread\"} 5",
            "wirevm_received_dropped_total{vm=\"we\\\"b\",nic=\"nic0\",queue=\"0\",cause=\"unfit\"} 1",
            "wirevm_kicks_total{vm=\"we\\\"b\",nic=\"nic0\",queue=\"0\"} 12",
            "wirevm_ignored_frames_total{vm=\"we\\\"b\",nic=\"nic0\"} 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("wirevm_") && value.parse::<u64>().is_ok(), "{line}");
        }
    }
}
