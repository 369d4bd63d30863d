//! The host and the LAN around the guests, and the conditions that the table's words name.

use harness::netns::Netns;
use harness::{TempDir, Vm, guest, handmade, puts};
use rustix::process::Signal;

use crate::row::{BESIDE, Family, Row, mac};
use crate::stock::COMMAND;

/// The host, the LAN, and what there is of addresses.
pub(crate) struct World {
    pub(crate) host: Netns,
    pub(crate) lan: Netns,
    pub(crate) families: Vec<Family>,
    /// Whether the conditions are met.
    pub(crate) met: bool,
    /// The guest with `host=`, once there is one.
    beside: Option<Vm>,
}

guest!(forever: puts!("running\\n"), "2: hlt", "jmp 2b");

impl World {
    /// The host and the LAN, with a veth between them for each row, and no condition met.
    pub(crate) fn new(rows: &[Row]) -> Result<Self, String> {
        let mut families = vec![Family::V4, Family::V6];
        families.truncate(if std::path::Path::new("/proc/sys/net/ipv6").exists() { 2 } else { 1 });
        let this = Self { host: Netns::new()?, lan: Netns::new()?, families, met: false, beside: None };
        let (mut host, mut lan) = (Vec::new(), Vec::new());
        for row in rows {
            let (n, link) = (row.n, row.lan_link());
            host.push(format!("link add u{n} type veth peer name l{n} netns {}", this.lan.pid()));
            host.push(format!("link set u{n} address {} up", mac(n, 1)));
            if row.has_switch() {
                lan.push(format!("link add {link} type bridge"));
                lan.push(format!("link set l{n} master {link} up"));
            }
            // The LAN's machine has a stranger's address, whom nobody admits yet.
            lan.push(format!("link set {link} address {} up", mac(n, 8)));
            // The NIC that joins the bridge by hand later has no address, as the bridge has none.
            if row.name != "bridge=br0" {
                host.extend(this.addresses(row, 1, &format!("u{n}")));
            }
            lan.extend(this.addresses(row, 9, &link));
        }
        host.extend(
            this.families.iter().map(|family| format!("route add default via {}", rows[0].lan(*family))),
        );
        ip(&this.host, &host);
        ip(&this.lan, &lan);
        Ok(this)
    }

    /// The lines of ip(8) that give machine `last` its addresses of the LAN's subnet.
    fn addresses(&self, row: &Row, last: u8, link: &str) -> Vec<String> {
        let lines = self.families.iter().map(|family| {
            let (address, length) = (family.at(row.n, 0, last), family.subnet());
            let nodad = if *family == Family::V6 { " nodad" } else { "" };
            format!("address add {address}/{length} dev {link}{nodad}")
        });
        lines.collect()
    }

    /// What the guests must leave as it was: links, addresses and routes. Not whom the host has met, which a test of what it
    /// reaches changes.
    pub(crate) fn state(&self) -> String {
        self.host.sh(
            "while ip addr | grep -q tentative; do sleep 0.1; done; ip -d link; ip addr; ip route; ip -6 route",
        )
    }

    /// Gives guest 0 or 1 its addresses, each on the NIC with the row's MAC. Where the host routes, the first guest knows its
    /// way from the start, and the second behind NAT.
    pub(crate) fn set_up(&self, vm: &mut Vm, rows: &[Row], guest: u8) {
        vm.sh(
            "for nic in /proc/sys/net/ipv6/conf/*/dad_transmits; do [ ! -e $nic ] || echo 0 >$nic; done; \
             add() { nic=$(grep -l $1 /sys/class/net/*/address | cut -d / -f 5); shift; \
             for a; do ip addr add $a dev $nic || return; done; }",
            COMMAND,
        );
        let rows: Vec<_> = on(rows, guest).collect();
        // The guest's shell takes lines of 1000 characters.
        for some in rows.chunks(6) {
            let nics = some.iter().map(|row| {
                let addresses = self
                    .families
                    .iter()
                    .map(|family| format!("{}/{}", row.guest(*family, guest), family.subnet()));
                format!("add {} {}", row.mac(guest), addresses.collect::<Vec<_>>().join(" "))
            });
            vm.sh(&nics.collect::<Vec<_>>().join(" && "), COMMAND);
        }
        self.routes(vm, rows.into_iter().filter(|row| guest == 0 || row.name == "tap,nat"), guest);
    }

    fn routes<'a>(&self, vm: &mut Vm, rows: impl Iterator<Item = &'a Row>, guest: u8) {
        let routes = rows.filter(|row| row.routed).flat_map(|row| {
            let route = |family: &Family| {
                format!("ip route add {} via {}", family.whole(row.n), row.host(*family, guest))
            };
            self.families.iter().map(route).collect::<Vec<_>>()
        });
        vm.sh(&routes.collect::<Vec<_>>().join(" && "), COMMAND);
    }

    /// Makes the host a router.
    pub(crate) fn forward(&self) {
        self.host.sh("sysctl -qw net.ipv4.ip_forward=1");
        if self.families.contains(&Family::V6) {
            self.host.sh("sysctl -qw net.ipv6.conf.all.forwarding=1");
        }
    }

    /// Meets every condition but that: the far sides have routes back; the host has an address on the bridge, and a
    /// NIC is a port of it; switches send frames back; the LAN's machine has the address that is admitted.
    pub(crate) fn meet(&mut self, rows: &[Row], second: &mut Vm) {
        self.met = true;
        let (mut host, mut lan) = (Vec::new(), Vec::new());
        for row in rows {
            let n = row.n;
            match row.name {
                "tap" | "tun" => lan.extend(
                    self.families
                        .iter()
                        .map(|family| format!("route add {} via {}", family.whole(n), family.at(n, 0, 1))),
                ),
                "bridge=br0" => {
                    host.extend(self.addresses(row, 1, &format!("br{n}")));
                    host.push(format!("link set u{n} master br{n}"));
                }
                "macvtap=eth0" => {
                    let places = Family::all()
                        .map(|(family, length)| format!("host={}/{length}", family.at(n, 0, BESIDE)));
                    self.beside = Some(self.guest_with(&format!("macvtap=u{n},{}", places.join(","))));
                }
                _ if row.has_switch() => lan.push(format!("link set l{n} type bridge_slave hairpin on")),
                _ => {}
            }
            lan.push(format!("link set {} address {}", row.lan_link(), mac(n, 9)));
        }
        // Who knows the LAN's machine by its former address asks anew.
        for lines in [&mut host, &mut lan] {
            lines.push("neigh flush all".into());
        }
        ip(&self.host, &host);
        ip(&self.lan, &lan);
        self.routes(second, rows.iter().filter(|row| row.name != "tap,nat"), 1);
    }

    /// A third guest on the host, which does nothing.
    fn guest_with(&self, net: &str) -> Vm {
        let dir = TempDir::new();
        let kernel = handmade::kernel(&dir, forever());
        let mut vm = Vm::start_in(
            &self.host,
            &["run", "--kernel", kernel.to_str().expect("a path in UTF-8"), "--net", net],
        );
        vm.expect("running\n", COMMAND);
        vm
    }

    /// Takes the host's NIC out of the bridge, which would stay with a port of the host's.
    pub(crate) fn release_bridge(&self) {
        self.host.sh("ip link set u13 nomaster");
    }

    /// Takes back what the host itself has done in [`Self::forward`] and [`Self::meet`].
    pub(crate) fn part(&mut self) {
        if let Some(mut vm) = self.beside.take() {
            vm.signal(Signal::TERM);
            vm.ends_with(0, COMMAND);
        }
        self.host.sh("sysctl -qw net.ipv4.ip_forward=0");
        if self.families.contains(&Family::V6) {
            self.host.sh("sysctl -qw net.ipv6.conf.all.forwarding=0");
        }
    }
}

/// Runs lines of ip(8), all in one process: starting one takes long in the lab.
#[track_caller]
fn ip(netns: &Netns, lines: &[String]) {
    netns.sh(&format!("ip -batch - <<'end'\n{}\nend", lines.join("\n")));
}

/// The rows that guest 0 or 1 is on.
pub(crate) fn on(rows: &[Row], guest: u8) -> impl Iterator<Item = &Row> {
    rows.iter().filter(move |row| row.specs.len() > guest.into())
}
