//! `wirevm explain`: how each wire is wired, drawn, and what can reach what over it.

use crate::cli::Wire;

/// What one side can reach of the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Yes,
    No,
    /// Once the host forwards, and the far side has a route back.
    Routed,
    /// Ports that `forward=` names.
    Forward,
    /// With `host=`, which gives the host a link of its own beside the guest's.
    Host,
    /// Once the host has an address on the bridge.
    Address,
    /// Once a NIC of the host is a port of the bridge.
    Port,
    /// Where the switch sends a frame back out of the port that it came by.
    Hairpin,
    /// From and to MAC addresses that `source=` names.
    Source,
    /// There is no other guest.
    Alone,
}

impl Reach {
    fn word(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Routed => "routed",
            Self::Forward => "forward=",
            Self::Host => "host=",
            Self::Address => "address",
            Self::Port => "port",
            Self::Hairpin => "hairpin",
            Self::Source => "source=",
            Self::Alone => "alone",
        }
    }

    /// What the word means, where it does not say it itself.
    fn meaning(self) -> Option<&'static str> {
        Some(match self {
            Self::Yes | Self::No => return None,
            Self::Routed => {
                "once the host forwards (sysctl net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1),
            and the far side has a route back"
            }
            Self::Forward => "only the ports that forward= names",
            Self::Host => "only with host=, which makes a link for the host itself beside the guest's",
            Self::Address => "once the host has an address on the bridge",
            Self::Port => "once a NIC of the host is a port of the bridge: uplink= makes it one",
            Self::Hairpin => "only through a switch that sends frames back out of the port that they came by",
            Self::Source => "only with the MAC addresses that source= names; of the other guests too",
            Self::Alone => "the guest has the NIC to itself: there is no other guest on it",
        })
    }
}

/// A way to wire a guest, and what reaches what over it.
struct Row {
    wire: Wire,
    spec: &'static str,
    layer: u8,
    guest_to_host: Reach,
    guest_to_guest: Reach,
    guest_to_lan: Reach,
    lan_to_guest: Reach,
}

/// The rows, in the order in which to consider them.
const ROWS: [Row; 10] = {
    use Reach::*;
    const fn row(wire: Wire, spec: &'static str, layer: u8, [host, guest, lan, from_lan]: [Reach; 4]) -> Row {
        Row {
            wire,
            spec,
            layer,
            guest_to_host: host,
            guest_to_guest: guest,
            guest_to_lan: lan,
            lan_to_guest: from_lan,
        }
    }
    [
        row(Wire::Tap, "tap,nat", 2, [Yes, Forward, Yes, Forward]),
        row(Wire::Tap, "tap", 2, [Yes, Routed, Routed, Routed]),
        row(Wire::Bridge, "bridge=br0", 2, [Address, Yes, Port, Port]),
        row(Wire::Bridge, "bridge=br0,uplink=eth1", 2, [Yes, Yes, Yes, Yes]),
        row(Wire::Macvtap, "macvtap=eth0", 2, [Host, Yes, Yes, Yes]),
        row(Wire::Macvtap, "macvtap=eth0,mode=vepa", 2, [Hairpin, Hairpin, Yes, Yes]),
        row(Wire::Macvtap, "macvtap=eth0,mode=private", 2, [No, No, Yes, Yes]),
        row(Wire::Macvtap, "macvtap=eth0,mode=passthru", 2, [No, Alone, Yes, Yes]),
        row(Wire::Macvtap, "macvtap=eth0,mode=source", 2, [No, Hairpin, Source, Source]),
        row(Wire::Tun, "tun", 3, [Yes, Routed, Routed, Routed]),
    ]
};

/// The screen for one wire, or the table that compares them.
pub(crate) fn text(wire: Option<Wire>) -> String {
    match wire {
        None => format!("{INTRODUCTION}\n{}\n{CHOICE}", table(ROWS.iter())),
        Some(wire) => {
            let rows = ROWS.iter().filter(|row| row.wire == wire);
            let (drawing, words) = screen(wire);
            format!("{drawing}\n{}\n{words}", table(rows))
        }
    }
}

/// The rows as columns, and below what their words mean.
fn table<'a>(rows: impl Iterator<Item = &'a Row>) -> String {
    let line = |cells: [&str; 6]| {
        let [spec, layer, host, guest, lan, from_lan] = cells;
        let text = format!("{spec:<28} {layer:<6} {host:<9} {guest:<9} {lan:<9} {from_lan}");
        format!("{}\n", text.trim_end())
    };
    let mut text = line(["", "", "guest to", "guest to", "guest to", "LAN to"]);
    text += &line(["--net", "layer", "host", "guest", "LAN", "guest"]);
    let mut words = Vec::new();
    for row in rows {
        let reach = [row.guest_to_host, row.guest_to_guest, row.guest_to_lan, row.lan_to_guest];
        let [host, guest, lan, from_lan] = reach.map(Reach::word);
        text += &line([row.spec, &row.layer.to_string(), host, guest, lan, from_lan]);
        for reach in reach {
            if reach.meaning().is_some() && !words.contains(&reach) {
                words.push(reach);
            }
        }
    }
    text.push('\n');
    for word in words {
        text += &format!("  {:<9} {}\n", word.word(), word.meaning().unwrap_or_default());
    }
    text
}

const INTRODUCTION: &str = "\
How a guest's network card can be wired. wirevm explain tap, bridge, macvtap or tun draws each.
";

const CHOICE: &str = "\
Which one?
  The guest is to reach out, and nothing else is to change     tap,nat
  The guest is to be a machine of the LAN                      macvtap=eth0
  The same, and the host and it are to reach each other        bridge=br0,uplink=eth1
  Guests among themselves                                      bridge=br0
  A subnet of its own that the host routes                     tap
  IP only: a route, a VPN's tables, no Ethernet to care for    tun
  Somebody else made the tap or macvtap and hands it over      fd=5

Who carries the frames is another question: wirevm's own threads, or with vhost=on the kernel (not
those of a tun). What reaches what is the same. wirevm's threads hand the host what a guest sends in
a row, of one flow and size, as one packet that the host cuts again; coalesce=off: each frame alone.
";

/// The drawing and the words of one wire.
fn screen(wire: Wire) -> (&'static str, &'static str) {
    match wire {
        Wire::Tap => (
            "\
tap: a network link of the host whose other end is a file descriptor.

  guest               wirevm                 host
  ┌──────────────┐    ┌────────────────┐     ┌────────────────────────────────────────┐
  │ virtio-net   │    │ readv, writev  │     │ tap ───────▶ routing ───────▶ eth0     │
  │ 172.31.0.2  ◀┼────┼▶ no copy      ◀┼─fd──┼▶ 172.31.0.1  with nat: ◀─────          ◀┼──▶ LAN
  │              │    │  no lock       │     │              masquerade                │
  └──────────────┘    └────────────────┘     └────────────────────────────────────────┘
",
            "\
Host and guest are neighbours in a subnet of their own, which wirevm picks where host= does not say
it; wirevm answers the guest's DHCP. What lies beyond goes through the host's routing. With nat,
wirevm has the host forward what comes from the guest, and nothing for anybody else, and hides the
guest behind the host's own addresses. Choose it with nat for a guest that is to reach out and needs
nothing else; without, where the host is a router.

  wirevm run ... --net tap,host=172.31.0.1/24             a subnet that the host routes
  wirevm run ... --net tap,nat,forward=8080:80            out by NAT, and one port in
  wirevm run ... --net tap,nat,forward=127.0.0.1:8080:80  the same, for the host itself only
  wirevm run ... --net tap=tap0                           a tap of yours, as it is
",
        ),
        Wire::Bridge => (
            "\
bridge: a switch inside the host; each guest's tap is a port of it.

  guests              wirevm, each its own   host
  ┌──────────────┐    ┌────────────────┐     ┌────────────────────────────────────────┐
  │ virtio-net  ◀┼────┼▶ no copy      ◀┼─fd──┼▶ tap ──┐                               │
  └──────────────┘    └────────────────┘     │        ├── br0 ──── eth1, by uplink=   ◀┼──▶ LAN
  ┌──────────────┐    ┌────────────────┐     │        │    with the host's addresses   │
  │ virtio-net  ◀┼────┼▶ no copy      ◀┼─fd──┼▶ tap ──┘                               │
  └──────────────┘    └────────────────┘     └────────────────────────────────────────┘
",
            "\
Frames go by MAC address from port to port, so that guests reach each other. With uplink= a NIC of
the host is a port too: the guests are machines of its LAN, each under its own MAC address. What
arrives at a port is the bridge's, so the NIC's addresses and routes move onto the bridge, and back
at the end. Choose it for guests among themselves, and for guests on a LAN that the host is to reach
as well. Wi-Fi cannot be a port, for an access point takes frames from one MAC address.

  wirevm run ... --net bridge=br0                       made where absent; goes with its last guest
  wirevm run ... --net bridge=br0,uplink=eth1           on eth1's LAN
  wirevm run ... --net bridge=br0,vlan=20               a port of VLAN 20
  wirevm run ... --net bridge=br0,vlan=20:30-39         a trunk: these VLANs with their tags
",
        ),
        Wire::Macvtap => (
            "\
macvtap: a second MAC address on a NIC of the host, handed straight to the guest.

  guest               wirevm                 host
  ┌──────────────┐    ┌────────────────┐     ┌────────────────────────────────────────┐
  │ virtio-net  ◀┼────┼▶ no copy      ◀┼─fd──┼▶ macvtap ──┐                           │
  └──────────────┘    └────────────────┘     │            ├── eth0 ◀──────────────────┼──▶ LAN
                      with host=, made for   │  macvlan ──┘                           │
                      the host itself: ──────┼▶ the host's address beside the guest   │
                                             └────────────────────────────────────────┘
",
            "\
The guest is a machine of the LAN with a MAC address of its own, and nothing of the NIC's own
setting changes. The trap: host and guest do not reach each other, for the NIC sends nothing back
up. host= cures it, with a link for the host itself; in a subnet that the NIC has too, it takes the
part that the guests are in, by a longer prefix. Choose it for guests on a LAN where a bridge is too
much. Not Wi-Fi.

  mode=bridge    guests on one NIC reach each other directly (the default)
  mode=vepa      all goes out to the switch, which may send it back (hairpin)
  mode=private   guests on one NIC do not find each other, hairpin or not
  mode=passthru  the guest has the whole NIC, and the host has nothing by it
  mode=source    the guest hears the MAC addresses of source=, and no other

  wirevm run ... --net macvtap=eth0                         the guest asks the LAN for an address
  wirevm run ... --net macvtap=eth0,host=192.168.1.250/29   eth0 is in 192.168.1.0/24
",
        ),
        Wire::Tun => (
            "\
tun: a layer 3 link; the host sees IP packets, the guest still sees Ethernet.

  guest               wirevm                 host
  ┌──────────────┐    ┌────────────────┐     ┌────────────────────────────────────────┐
  │ virtio-net   │    │ takes Ethernet │     │ tun ───────▶ routing ───────▶ eth0    ◀┼──▶ LAN
  │ 10.0.0.2    ◀┼────┼▶ off, answers ◀┼─fd──┼▶ 10.0.0.1                  a VPN      ◀┼──▶ ...
  │              │    │ ARP, NDP, DHCP │     │                                        │
  └──────────────┘    └────────────────┘     └────────────────────────────────────────┘
",
            "\
The host has no MAC address of the guest: no broadcast, no neighbour table, nothing but routes.
wirevm takes the Ethernet header off and puts it on, and answers what a guest asks of its
neighbours. What is neither IP nor about neighbours is dropped and counted. Choose it to route a
guest as any IP address, or to put it into a VPN's tables.

  wirevm run ... --net tun                                addresses of wirevm's choice
  wirevm run ... --net tun,host=10.0.0.1/30,guest=10.0.0.2
",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn each_screen_fits_a_terminal_and_shows_its_rows() {
        for wire in [None].into_iter().chain(Wire::value_variants().iter().copied().map(Some)) {
            let text = text(wire);
            for line in text.lines() {
                assert!(line.chars().count() <= 100, "{line}");
            }
            let edges =
                text.lines().filter(|line| line.contains(['┌', '└'])).map(|line| line.chars().count());
            assert!(
                edges.collect::<std::collections::HashSet<_>>().len() <= 3,
                "a drawing's boxes end in one column"
            );
            assert!(text.lines().count() <= 40, "{wire:?} takes more than a screen");
            for row in ROWS.iter().filter(|row| wire.is_none_or(|wire| wire == row.wire)) {
                assert!(text.lines().any(|line| line.starts_with(row.spec)), "{}", row.spec);
            }
        }
    }

    #[test]
    fn each_spec_is_one_that_run_takes() {
        for row in &ROWS {
            let rest = if row.guest_to_lan == Reach::Source { ",source=02:00:00:00:00:01" } else { "" };
            assert!(format!("{}{rest}", row.spec).parse::<net::NetConfig>().is_ok(), "{}", row.spec);
        }
    }

    #[test]
    fn each_word_of_the_table_is_explained_below_it() {
        let text = table(ROWS.iter());
        for word in ["routed", "forward=", "host=", "address", "port", "hairpin", "source=", "alone"] {
            assert!(text.lines().any(|line| line.trim_start().starts_with(word)), "{word} in\n{text}");
        }
    }
}
