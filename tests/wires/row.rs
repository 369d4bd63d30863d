//! The rows of the table, and how two guests are wired for each.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// Both, and the length of the part of a subnet that `host=` takes.
    pub(crate) fn all() -> [(Self, u8); 2] {
        [(Self::V4, 29), (Self::V6, 125)]
    }

    /// Address `last` of subnet `subnet` of row `n`: 10.n.SUBNET.LAST, or fd00:n:SUBNET::LAST.
    pub(crate) fn at(self, n: u8, subnet: u8, last: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, n, subnet, last).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, n.into(), subnet.into(), 0, 0, 0, 0, last.into()).into(),
        }
    }

    /// The length of a subnet's prefix.
    pub(crate) fn subnet(self) -> u8 {
        match self {
            Self::V4 => 24,
            Self::V6 => 64,
        }
    }

    /// All of row `n`, as `ip route` takes it.
    pub(crate) fn whole(self, n: u8) -> String {
        let length = if self == Self::V4 { 16 } else { 32 };
        format!("{}/{length}", self.at(n, 0, 0))
    }
}

/// How guests A and B are wired, and who is where on row number `n`.
///
/// Every row has a NIC of the host (`u{n}`, a veth), and at its other end a machine of the LAN (`l{n}`). In the LAN's
/// subnet, 0, the host is 1, A is 2, B is 3 and the LAN's machine is 9.
pub(crate) struct Row {
    /// As `wirevm explain` has it.
    pub(crate) name: &'static str,
    pub(crate) n: u8,
    /// Of A and of B, without `mac=`. B is not there where A has the NIC to itself.
    pub(crate) specs: Vec<String>,
    /// The guests are in subnets of their own, 1 and 2, which the host routes: it is 1 there, and the guest 2.
    pub(crate) routed: bool,
}

/// Where the host is on the link that `host=` makes for it beside the guests of a macvtap.
pub(crate) const BESIDE: u8 = 5;

impl Row {
    fn flat<const N: usize>(name: &'static str, n: u8, specs: [&str; N]) -> Self {
        Self { name, n, specs: specs.map(String::from).to_vec(), routed: false }
    }

    fn routed(name: &'static str, n: u8, kind: &str, more: [&str; 2]) -> Self {
        let spec = |guest: u8, more: &str| {
            let [ipv4, ipv6] = [Family::V4, Family::V6]
                .map(|family| format!("host={}/{}", family.at(n, guest, 1), family.subnet()));
            format!("{kind},{ipv4},{ipv6},dhcp=off{more}")
        };
        Self { name, n, specs: vec![spec(1, more[0]), spec(2, more[1])], routed: true }
    }

    /// All of them.
    pub(crate) fn all() -> Vec<Self> {
        // Each lists the LAN's machine, the host and the other guest.
        let source = |other: u8| {
            let [lan, host, other] = [9, 1, other].map(|last| mac(19, last));
            format!("macvtap=u19,mode=source,source={lan},source={host},source={other}")
        };
        vec![
            Self::routed("tap,nat", 11, "tap,nat", [",forward=8011:80", ""]),
            Self::routed("tap", 12, "tap", ["", ""]),
            Self::flat("bridge=br0", 13, ["bridge=br13", "bridge=br13"]),
            Self::flat("bridge=br0,uplink=eth1", 14, ["bridge=br14,uplink=u14", "bridge=br14,uplink=u14"]),
            Self::flat("macvtap=eth0", 15, ["macvtap=u15", "macvtap=u15"]),
            Self::flat("macvtap=eth0,mode=vepa", 16, ["macvtap=u16,mode=vepa", "macvtap=u16,mode=vepa"]),
            Self::flat(
                "macvtap=eth0,mode=private",
                17,
                ["macvtap=u17,mode=private", "macvtap=u17,mode=private"],
            ),
            Self::flat("macvtap=eth0,mode=passthru", 18, ["macvtap=u18,mode=passthru"]),
            Self::flat("macvtap=eth0,mode=source", 19, [&*source(0xb), &*source(0xa)]),
            Self::routed("tun", 20, "tun", ["", ""]),
        ]
    }

    /// The MAC address of guest 0 (A) or 1 (B).
    pub(crate) fn mac(&self, guest: u8) -> String {
        mac(self.n, 0xa + guest)
    }

    /// The address of guest 0 or 1.
    pub(crate) fn guest(&self, family: Family, guest: u8) -> IpAddr {
        if self.routed { family.at(self.n, guest + 1, 2) } else { family.at(self.n, 0, guest + 2) }
    }

    /// Where guest 0 or 1 finds the host, in its own subnet.
    pub(crate) fn host(&self, family: Family, guest: u8) -> IpAddr {
        family.at(self.n, if self.routed { guest + 1 } else { 0 }, 1)
    }

    /// The address of the LAN's machine.
    pub(crate) fn lan(&self, family: Family) -> IpAddr {
        family.at(self.n, 0, 9)
    }

    /// True where the NIC's other end is a switch, which can send frames back: in these modes it makes a difference, or
    /// must make none.
    pub(crate) fn has_switch(&self) -> bool {
        ["vepa", "private", "source"].iter().any(|mode| self.name.ends_with(mode))
    }

    /// Where the LAN's machine has its addresses.
    pub(crate) fn lan_link(&self) -> String {
        if self.has_switch() { format!("s{}", self.n) } else { format!("l{}", self.n) }
    }
}

/// The MAC address of machine `last` of row `n`.
pub(crate) fn mac(n: u8, last: u8) -> String {
    format!("02:00:00:00:{n:02x}:{last:02x}")
}
