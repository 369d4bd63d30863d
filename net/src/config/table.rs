//! The words of `--net` as data: every kind of wire and every key, with what a person is told about it.
//!
//! **Invariant: this is the only list of them.** The parser refuses a key that is not here, and the help of `wirevm run`, the
//! errors and the README's table are made from it, and a test holds wirevm-net(7) to it.

use std::fmt;

/// A kind of wire, the first word of a `--net`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireKind {
    /// A tap that the host routes to.
    Tap,
    /// A tap on a bridge.
    Bridge,
    /// A macvtap on a NIC of the host.
    Macvtap,
    /// A tun: layer 3.
    Tun,
    /// Inherited descriptors.
    Fd,
}

/// One kind of wire, as a person is told about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Which it is.
    pub kind: WireKind,
    /// Its word on the command line.
    pub word: &'static str,
    /// How it is written, with the example of a name: `tap[=tap0]`.
    pub form: &'static str,
    /// A spec of it that names its link or descriptor: `tap=tap0`.
    pub example: &'static str,
    /// What it is, in one line without a full stop.
    pub help: &'static str,
}

/// One key of `--net`. A name that means different things to different kinds has a row for each meaning; no kind has two rows of
/// one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its name, before the `=`.
    pub name: &'static str,
    /// The form of its value, after the `=`: words as they are typed (`on|off`), and placeholders in capitals (`BYTES`).
    pub value: &'static str,
    /// The kinds of wire that take it.
    pub kinds: &'static [WireKind],
    /// What holds without it; none where it then simply is not so.
    pub default: Option<&'static str>,
    /// What it means, in one line without a full stop.
    pub help: &'static str,
    /// How often a spec may have it.
    pub repeat: Repeat,
    /// True where the name may stand alone, which means `on`.
    pub alone: bool,
    /// A value that makes sense.
    pub example: &'static str,
    /// The section of wirevm-net(7) that says more: its heading in lower case, with dashes.
    pub section: Option<&'static str>,
}

/// How often a spec may have a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Once.
    Once,
    /// Once with an address of IPv4 and once with one of IPv6.
    PerFamily,
    /// Any number of times, each time with another value.
    Any,
}

impl Repeat {
    /// What a person is told; nothing for [`Once`](Self::Once), which is the rule.
    pub const fn words(self) -> Option<&'static str> {
        match self {
            Self::Once => None,
            Self::PerFamily => Some("one for IPv4 and one for IPv6"),
            Self::Any => Some("repeatable"),
        }
    }
}

use WireKind::{Bridge, Fd, Macvtap, Tap, Tun};

static KINDS: [Kind; 5] = [
    Kind {
        kind: Tap,
        word: "tap",
        form: "tap[=tap0]",
        example: "tap=tap0",
        help: "a tap that the host routes to: a new one on a free subnet, or tap0, which is created if it does not exist",
    },
    Kind {
        kind: Bridge,
        word: "bridge",
        form: "bridge=br0",
        example: "bridge=br0",
        help: "a tap on the bridge br0, which is created if it does not exist",
    },
    Kind {
        kind: Macvtap,
        word: "macvtap",
        form: "macvtap=eth0",
        example: "macvtap=eth0",
        help: "a new macvtap on the NIC eth0; or eth0 itself, if that is a macvtap",
    },
    Kind {
        kind: Tun,
        word: "tun",
        form: "tun[=tun0]",
        example: "tun=tun0",
        help: "a tun: IP packets on the host, Ethernet for the guest",
    },
    Kind {
        kind: Fd,
        word: "fd",
        form: "fd=5[:6]",
        example: "fd=5",
        help: "a tap or macvtap that another program opened and wirevm inherits: one descriptor for each queue pair",
    },
];

/// Its word.
impl fmt::Display for WireKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What most rows have.
const KEY: Key = Key {
    name: "",
    value: "",
    kinds: &[Tap, Bridge, Macvtap, Tun, Fd],
    default: None,
    help: "",
    repeat: Repeat::Once,
    alone: false,
    example: "",
    section: None,
};

static KEYS: [Key; 28] = [
    Key {
        name: "host",
        value: "ADDRESS/LENGTH",
        kinds: &[Tap, Tun],
        default: Some("on a new link, a free subnet"),
        help: "the host's address on the link",
        repeat: Repeat::PerFamily,
        example: "172.31.0.1/24",
        ..KEY
    },
    Key {
        name: "host",
        value: "ADDRESS/LENGTH",
        kinds: &[Macvtap],
        help: "an address for the host on a macvlan beside the guest, so that the two reach each other",
        repeat: Repeat::PerFamily,
        example: "192.168.1.250/29",
        ..KEY
    },
    Key {
        name: "guest",
        value: "ADDRESS[/LENGTH]",
        kinds: &[Tap, Tun],
        default: Some("the next address of the subnet; of IPv6, one that the guest forms"),
        help: "the guest's address in the subnet of host=",
        repeat: Repeat::PerFamily,
        example: "10.0.0.2",
        ..KEY
    },
    Key {
        name: "dhcp",
        value: "on|off",
        kinds: &[Tap, Tun],
        default: Some("on"),
        help: "tell the guest its addresses, by DHCP and router advertisement; off: no request is answered and no subnet chosen",
        example: "off",
        ..KEY
    },
    Key {
        name: "dns",
        value: "ADDRESS",
        kinds: &[Tap, Tun],
        default: Some("those of the host that a guest can reach"),
        help: "a DNS server that the guest is told of, three of each family at most",
        repeat: Repeat::Any,
        example: "192.0.2.53",
        section: Some("dns-behind-nat"),
        ..KEY
    },
    Key {
        name: "search",
        value: "DOMAIN",
        kinds: &[Tap, Tun],
        help: "a domain in which the guest looks for short names",
        repeat: Repeat::Any,
        example: "example.org",
        ..KEY
    },
    Key {
        name: "nat",
        value: "on|off",
        kinds: &[Tap],
        default: Some("off"),
        help: "the guest's connections leave the host under the host's address",
        alone: true,
        example: "on",
        ..KEY
    },
    Key {
        name: "forward",
        value: "[tcp:|udp:][ADDRESS:]PORT[-PORT]:PORT[-PORT]",
        kinds: &[Tap],
        help: "a port of the host, or a range, that leads to as many of the guest; needs nat",
        repeat: Repeat::Any,
        example: "8080:80",
        ..KEY
    },
    Key {
        name: "uplink",
        value: "LINK",
        kinds: &[Bridge],
        help: "a NIC of the host that joins the bridge; its addresses and routes move to the bridge, and back at the end",
        example: "eth1",
        ..KEY
    },
    Key {
        name: "vlan",
        value: "ID[-ID][:ID[-ID]]...",
        kinds: &[Bridge],
        help: "the guest's VLAN, 1 to 4094, without tags at the guest; several, or a range, are a trunk, with tags",
        example: "100",
        ..KEY
    },
    Key {
        name: "native",
        value: "ID",
        kinds: &[Bridge],
        help: "the VLAN of a trunk whose frames have no tag at the guest",
        example: "5",
        ..KEY
    },
    Key {
        name: "isolated",
        value: "on|off",
        kinds: &[Bridge],
        default: Some("off"),
        help: "on: guests of the bridge that have this do not reach each other, but everything else",
        example: "on",
        section: Some("what-a-guest-may-send-into-a-bridge"),
        ..KEY
    },
    Key {
        name: "mode",
        value: "bridge|vepa|private|passthru|source",
        kinds: &[Macvtap],
        default: Some("bridge"),
        help: "what the guest reaches, and what reaches the guest",
        example: "private",
        ..KEY
    },
    Key {
        name: "source",
        value: "MAC",
        kinds: &[Macvtap],
        help: "with mode=source, a machine that may send to the guest",
        repeat: Repeat::Any,
        example: "02:00:00:00:00:01",
        ..KEY
    },
    Key {
        name: "trust",
        value: "on|off",
        kinds: &[Macvtap, Fd],
        default: Some("on"),
        help: "off: the guest keeps its MAC, and may not set promiscuous mode",
        example: "off",
        section: Some("a-guest-that-is-not-trusted"),
        ..KEY
    },
    Key {
        name: "guard",
        value: "on|off",
        kinds: &[Tap, Bridge, Tun],
        default: Some("on, where the kernel can"),
        help: "hold the guest to its own addresses; off: for a guest that routes or bridges for others",
        example: "off",
        section: Some("what-a-guest-may-send"),
        ..KEY
    },
    Key {
        name: "mac",
        value: "ADDRESS",
        default: Some("random; with mode=passthru, or on an inherited macvtap, the link's own"),
        help: "the guest's MAC address",
        example: "02:00:00:00:00:01",
        ..KEY
    },
    Key {
        name: "mtu",
        value: "BYTES",
        default: Some("the link's own"),
        help: "the MTU of the link and of the guest, 68 to 65521; on a macvtap, at most the NIC's",
        example: "1400",
        ..KEY
    },
    Key {
        name: "queues",
        value: "N|auto",
        kinds: &[Tap, Bridge, Macvtap, Tun],
        default: Some("1"),
        help: "queue pairs, 1 to 64, each with a thread of its own; auto: one for each vCPU",
        example: "auto",
        section: Some("many-queues"),
        ..KEY
    },
    Key {
        name: "affinity",
        value: "CPU[:CPU]...",
        default: Some("any"),
        help: "the host's CPU for the thread of each queue pair",
        example: "2",
        section: Some("many-queues"),
        ..KEY
    },
    Key {
        name: "poll",
        value: "auto|MICROSECONDS",
        default: Some("auto"),
        help: "how long that thread looks for frames before it sleeps, at most 10000; auto finds out whether it pays",
        example: "50",
        section: Some("a-thread-that-does-not-sleep-at-once"),
        ..KEY
    },
    Key {
        name: "coalesce",
        value: "on|off",
        default: Some("on"),
        help: "frames that the guest sends in a row, of one flow and size, go to the host as one packet that it cuts again",
        example: "off",
        section: Some("many-small-frames-as-one-packet"),
        ..KEY
    },
    Key {
        name: "vhost",
        value: "on|off|auto",
        kinds: &[Tap, Bridge, Macvtap, Fd],
        default: Some("off"),
        help: "the kernel (vhost-net) carries the frames; auto: where it can",
        example: "auto",
        section: Some("carried-by-the-kernel"),
        ..KEY
    },
    Key {
        name: "link",
        value: "follow|up|down",
        default: Some("follow"),
        help: "the guest's link is up while the wire is, always, or never; wirevm net link changes it",
        example: "down",
        section: Some("the-link"),
        ..KEY
    },
    Key {
        name: "rate",
        value: "off|BITS[:BITS]",
        default: Some("off"),
        help: "bits per second that the guest sends and receives at most, with k, M or G; two values: sent, received",
        example: "20M:100M",
        section: Some("a-rate"),
        ..KEY
    },
    Key {
        name: "pps",
        value: "off|FRAMES[:FRAMES]",
        default: Some("off"),
        help: "frames per second, likewise",
        example: "10k",
        section: Some("a-rate"),
        ..KEY
    },
    Key {
        name: "burst",
        value: "MILLISECONDS",
        default: Some("10 with a rate"),
        help: "how much of the rate may go at once after a pause, 5 to 1000",
        example: "20",
        section: Some("a-rate"),
        ..KEY
    },
    Key {
        name: "netns",
        value: "NAME",
        kinds: &[Tap, Bridge, Macvtap, Tun],
        default: Some("wirevm's own"),
        help: "the network namespace of the host's links, as ip netns names it; created if it does not exist",
        example: "vpn",
        ..KEY
    },
];

/// Every kind of wire, in the order in which a person is told about them.
pub fn kinds() -> &'static [Kind] {
    &KINDS
}

/// Every key of `--net`, in the order in which a person is told about them: first those of few kinds, then those of all.
///
/// ```
/// let of_tun = net::keys().iter().filter(|key| key.kinds.contains(&net::WireKind::Tun));
/// assert!(of_tun.clone().any(|key| key.name == "guest") && of_tun.clone().all(|key| key.name != "nat"));
/// ```
pub fn keys() -> &'static [Key] {
    &KEYS
}

impl WireKind {
    /// What a person is told about it.
    pub fn row(self) -> &'static Kind {
        // The table has the order of the enum, as a test holds.
        &KINDS[self as usize]
    }

    /// Its word on the command line.
    pub fn word(self) -> &'static str {
        self.row().word
    }

    /// The kind of this word.
    pub fn from_word(word: &str) -> Option<Self> {
        KINDS.iter().find(|row| row.word == word).map(|row| row.kind)
    }

    /// Its key of this name.
    pub fn key(self, name: &str) -> Option<&'static Key> {
        self.keys().find(|key| key.name == name)
    }

    /// The keys that it takes.
    pub fn keys(self) -> impl Iterator<Item = &'static Key> + Clone {
        KEYS.iter().filter(move |key| key.kinds.contains(&self))
    }

    /// The names of its keys, for an error.
    pub(super) fn key_names(self) -> String {
        let name = |key: &Key| format!("{}{}", key.name, if key.alone { "" } else { "=" });
        self.keys().map(name).collect::<Vec<_>>().join(", ")
    }
}

impl Key {
    /// How it is written: `mtu=BYTES`, or `nat[=on|off]`.
    pub fn form(&self) -> String {
        let Self { name, value, .. } = self;
        if self.alone { format!("{name}[={value}]") } else { format!("{name}={value}") }
    }

    /// How its value is written, with an example, for a person who got it wrong.
    pub(super) fn remedy(&self) -> String {
        format!("write {}: {}={}", self.form(), self.name, self.example)
    }
}

/// The kinds of wire, for an error: `tap, bridge=br0, ...`.
pub(crate) fn kind_forms() -> String {
    KINDS.map(|row| row.form).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MTU, NetConfig, Queues};

    #[test]
    fn the_kinds_are_in_the_order_of_their_enum() {
        for (index, row) in KINDS.iter().enumerate() {
            assert_eq!((row.kind as usize, row.kind.row().word), (index, row.word));
            assert_eq!(WireKind::from_word(row.word), Some(row.kind));
            let config: NetConfig = row.example.parse().unwrap();
            assert_eq!((config.wire.kind(), config.to_string().as_str()), (row.kind, row.example));
            assert!(row.form.starts_with(row.word));
        }
        assert_eq!(WireKind::from_word("veth"), None);
        let words: Vec<_> = kinds().iter().map(|row| row.word).collect();
        assert_eq!(words, ["tap", "bridge", "macvtap", "tun", "fd"]);
    }

    #[test]
    fn no_kind_has_a_key_twice_and_each_says_what_it_is() {
        for kind in KINDS.map(|row| row.kind) {
            let mut names: Vec<_> = kind.keys().map(|key| key.name).collect();
            names.sort_unstable();
            assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{kind:?}: {names:?}");
        }
        for key in &KEYS {
            let texts = [key.name, key.value, key.help, key.example];
            assert!(texts.iter().all(|text| !text.is_empty()) && !key.help.ends_with('.'), "{key:?}");
            assert!(!key.kinds.is_empty() && (!key.alone || key.value == "on|off"), "{key:?}");
        }
    }

    /// What a key's example needs beside it.
    fn beside(name: &str) -> &'static str {
        match name {
            "guest" => ",host=10.0.0.1/24",
            "forward" => ",nat",
            "burst" => ",rate=100M",
            "source" => ",mode=source",
            "native" => ",vlan=10:20",
            _ => "",
        }
    }

    #[test]
    fn every_kind_understands_every_key_of_its_own_and_no_other() {
        for kind in KINDS.map(|row| row.kind) {
            for key in &KEYS {
                let without = format!("{}{}", kind.row().example, beside(key.name));
                let spec = format!("{without},{}={}", key.name, key.example);
                match kind.key(key.name) {
                    None => {
                        let error = spec.parse::<NetConfig>().unwrap_err();
                        assert!(error.to_string().contains(" has no key "), "{spec}: {error}");
                    }
                    Some(own) if own == key => {
                        let config: NetConfig =
                            spec.parse().unwrap_or_else(|error| panic!("{spec}: {error}"));
                        // There is no `mode=source` without a `source=`.
                        let without = without.parse::<NetConfig>();
                        assert!(without.map_or(key.name == "source", |without| without != config), "{spec}");
                    }
                    Some(_) => {}
                }
            }
        }
    }

    #[test]
    fn a_key_that_may_not_repeat_is_refused_the_second_time() {
        for kind in KINDS.map(|row| row.kind) {
            for key in kind.keys() {
                let text = format!("{}={}", key.name, key.example);
                let spec = format!("{}{},{text},{text}", kind.row().example, beside(key.name));
                let error = spec.parse::<NetConfig>().unwrap_err().to_string();
                let expected = match key.repeat {
                    Repeat::Once => format!("{}= is given twice", key.name),
                    Repeat::PerFamily => "one for IPv4 and one for IPv6 at most".to_owned(),
                    Repeat::Any => format!("{text}: "),
                };
                // Ports are written with their protocol.
                let expected = expected.replace("forward=", "forward=tcp:");
                assert!(error.contains(&expected), "{spec}: {error}");
            }
        }
    }

    #[test]
    fn defaults_that_are_words_are_the_parsers() {
        for kind in KINDS.map(|row| row.kind) {
            let plain: NetConfig = kind.row().example.parse().unwrap();
            for key in kind.keys() {
                let Some(default) = key.default else { continue };
                if key.value.split('|').any(|word| word == default) || default.parse::<u32>().is_ok() {
                    let spec = format!("{},{}={default}", kind.row().example, key.name);
                    assert_eq!(spec.parse::<NetConfig>().unwrap(), plain, "{spec}");
                }
            }
        }
    }

    #[test]
    fn the_numbers_in_the_table_are_the_parsers() {
        let help = |name: &str| KEYS.iter().find(|key| key.name == name).unwrap().help;
        assert!(help("mtu").contains(&format!("{} to {}", MTU.start(), MTU.end())));
        assert!(help("queues").contains(&format!("{} to {}", Queues::RANGE.start(), Queues::RANGE.end())));
        assert!(
            "tap,poll=10000".parse::<NetConfig>().is_ok() && "tap,poll=10001".parse::<NetConfig>().is_err()
        );
        assert!(help("poll").contains("10000"));
        assert!(help("vlan").contains("1 to 4094"));
        assert!(help("burst").contains("5 to 1000"));
    }
}
