//! Every wire, with guests on it: what reaches what must be what `wirevm explain` prints.

/// Stock Linux guests.
mod stock {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;
    use std::time::{Duration, Instant};

    use harness::netns::Netns;
    use harness::stock;
    use harness::traffic::Noise;
    use harness::{Vm, skip, wirevm};

    const COMMAND: Duration = Duration::from_secs(60);
    const TRANSFER: Duration = Duration::from_secs(240);

    macro_rules! need {
        ($value:expr) => {
            match $value {
                Ok(value) => value,
                Err(why) => skip!("{why}"),
            }
        };
    }

    /// One row of the table: how guests A and B are wired, and who is where on row number `n`.
    ///
    /// Every row has a NIC of the host (`u{n}`, a veth), and at its other end a machine of the LAN (`l{n}`).
    struct Row {
        /// As `wirevm explain` has it.
        name: &'static str,
        n: u8,
        /// The specs, without `mac=`.
        a: String,
        b: String,
        /// The guests' addresses, and the gateway of each where it is not on the LAN's subnet.
        addresses: [String; 2],
        gateways: Option<[String; 2]>,
        /// The address under which the guest is to find the host.
        host: String,
    }

    impl Row {
        /// A row whose guests are in the LAN's subnet, 10.n.0.0/24: the LAN's machine is .9, the host .1, A .2 and B .3.
        fn flat(name: &'static str, n: u8, a: &str, b: &str) -> Self {
            let at = |last: u8| format!("10.{n}.0.{last}/24");
            let host = format!("10.{n}.0.1");
            Self { name, n, a: a.into(), b: b.into(), addresses: [at(2), at(3)], gateways: None, host }
        }

        /// A row whose guests are in subnets of their own, 10.n.1.0/24 and 10.n.2.0/24, which the host routes.
        fn routed(name: &'static str, n: u8, kind: &str) -> Self {
            let subnet = |guest: u8| format!("{kind},host=10.{n}.{guest}.1/24,dhcp=off");
            let gateway = |guest: u8| format!("10.{n}.{guest}.1");
            Self {
                name,
                n,
                a: subnet(1),
                b: subnet(2),
                addresses: [1, 2].map(|guest| format!("10.{n}.{guest}.2/24")),
                gateways: Some([1, 2].map(gateway)),
                host: gateway(1),
            }
        }

        fn mac(&self, guest: usize) -> String {
            format!("02:00:00:00:{:02x}:{:02x}", self.n, 0xa + guest)
        }

        fn address(&self, guest: usize) -> &str {
            self.addresses[guest].split('/').next().expect("an address")
        }

        fn lan(&self) -> String {
            format!("10.{}.0.9", self.n)
        }
    }

    /// The table as `wirevm explain` prints it: by row, guest to host, to guest, to LAN, and from the LAN.
    fn explained() -> BTreeMap<String, [String; 4]> {
        let output = wirevm().arg("explain").output().expect("wirevm explains");
        let text = String::from_utf8(output.stdout).expect("text");
        let rows = text.lines().filter_map(|line| {
            let cells: Vec<_> = line.split_whitespace().map(String::from).collect();
            match cells.as_slice() {
                [name, layer, host, guest, lan, from_lan] if ["2", "3"].contains(&layer.as_str()) => {
                    Some((name.clone(), [host, guest, lan, from_lan].map(String::clone)))
                }
                _ => None,
            }
        });
        rows.collect()
    }

    /// The host and the LAN, with a veth between them for each row.
    fn world(rows: &[Row]) -> Result<(Netns, Netns), String> {
        let (host, lan) = (Netns::new()?, Netns::new()?);
        for Row { n, .. } in rows {
            host.sh(&format!(
                "ip link add u{n} type veth peer name l{n} netns {} && ip addr add 10.{n}.0.1/24 dev u{n} && ip link set u{n} up",
                lan.pid()
            ));
            lan.sh(&format!(
                "ip link set l{n} address 02:00:00:00:{n:02x}:09 up && ip addr add 10.{n}.0.9/24 dev l{n}"
            ));
        }
        Ok((host, lan))
    }

    /// Gives the guest its addresses, each on the NIC with the row's MAC.
    fn set_up(vm: &mut Vm, rows: &[Row], guest: usize) {
        for row in rows {
            let (mac, address) = (row.mac(guest), &row.addresses[guest]);
            let mut script = format!(
                "nic=$(grep -l {mac} /sys/class/net/*/address | cut -d / -f 5) && ip addr add {address} dev $nic && ip link set $nic up"
            );
            if let Some(gateways) = &row.gateways {
                script += &format!(" && ip route add 10.{}.0.0/16 via {} dev $nic", row.n, gateways[guest]);
            }
            vm.sh(&script, COMMAND);
        }
    }

    fn guest_reaches(vm: &mut Vm, address: &str) -> bool {
        vm.shell(&format!("ping -q -c 3 -i 0.4 -W 2 {address}"), COMMAND).status == 0
    }

    fn reaches(netns: &Netns, address: &str) -> bool {
        netns.try_sh(&format!("ping -q -c 3 -i 0.4 -W 2 {address}")).is_ok()
    }

    #[test]
    fn what_reaches_what_is_what_explain_prints() {
        let kernel = need!(stock::fastest());
        let mut nat = Row::routed("tap,nat", 11, "tap,nat");
        nat.a += ",forward=8011:80";
        let mut bridged = Row::flat("macvtap=eth0", 15, "macvtap=u15,host=10.15.0.5/29", "macvtap=u15");
        bridged.host = "10.15.0.5".into();
        let rows = [
            nat,
            Row::routed("tap", 12, "tap"),
            Row::flat("bridge=br0", 13, "bridge=br13", "bridge=br13"),
            Row::flat("bridge=br0,uplink=eth1", 14, "bridge=br14,uplink=u14", "bridge=br14,uplink=u14"),
            bridged,
            Row::flat("macvtap=eth0,mode=vepa", 16, "macvtap=u16,mode=vepa", "macvtap=u16,mode=vepa"),
            Row::flat(
                "macvtap=eth0,mode=private",
                17,
                "macvtap=u17,mode=private",
                "macvtap=u17,mode=private",
            ),
            Row::routed("tun", 19, "tun"),
        ];
        let (host, lan) = need!(world(&rows));
        // The host forwards for who says "routed"; NAT switches it on for itself.
        for n in [12, 19] {
            host.sh(&format!("sysctl -qw net.ipv4.conf.u{n}.forwarding=1"));
            lan.sh(&format!("ip route add 10.{n}.0.0/16 via 10.{n}.0.1"));
        }
        host.sh("ip route add default via 10.11.0.9 && ip addr flush dev u13");
        // Not whom the host has met, which a test of what it reaches changes.
        let links = || {
            host.sh("while ip addr | grep -q tentative; do sleep 0.1; done; ip -d link; ip addr; ip route; ip -6 route")
        };
        let before = links();
        let mut guests: Vec<Vm> = Vec::new();
        for guest in 0..2 {
            let nets = rows.iter().map(|row| format!("{},mac={}", [&row.a, &row.b][guest], row.mac(guest)));
            let args: Vec<_> = nets.flat_map(|net| ["--net".to_owned(), net]).collect();
            let args: Vec<_> = args.iter().map(String::as_str).collect();
            guests.push(kernel.boot(&host, "", &args));
            set_up(&mut guests[guest], &rows, guest);
        }
        host.sh("ip addr add 10.13.0.1/24 dev br13");
        for n in [12, 19] {
            host.sh(&format!("for d in $(ip -o -4 addr | awk '$4 ~ /^10\\.{n}\\.[12]/ {{ print $2 }}'); do sysctl -qw net.ipv4.conf.$d.forwarding=1; done"));
        }

        let explained = explained();
        let mut wrong = Vec::new();
        for row in &rows {
            let [first, second] = &mut guests[..] else { unreachable!("two guests") };
            let measured = [
                guest_reaches(first, &row.host),
                guest_reaches(first, row.address(1)) && guest_reaches(second, row.address(0)),
                guest_reaches(first, &row.lan()),
                reaches(&lan, row.address(0)),
            ];
            // The world meets each condition but these: no switch with a hairpin, no NIC on the bridge, no port asked for.
            let says = &explained[row.name];
            let expected =
                says.clone().map(|word| !["no", "hairpin", "port", "forward="].contains(&word.as_str()));
            if measured != expected {
                wrong.push(format!("{}: explained as {says:?}, measured {measured:?}", row.name));
            }
        }
        assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), guests[0].state());

        // A forwarded port reaches into the guest behind the NAT.
        let first = &mut guests[0];
        first.type_in("(echo through the port | nc -l -p 80) &\n");
        let answer =
            lan.sh(&format!("{} nc 10.11.0.1 8011 </dev/null", stock::resources().join("busybox").display()));
        assert_eq!(answer.trim(), "through the port", "{}", first.state());

        // The LAN knows a guest on a NIC of the host by the guest's own MAC.
        for row in rows.iter().filter(|row| ["bridge=br0,uplink=eth1", "macvtap=eth0"].contains(&row.name)) {
            let neighbour = lan.sh(&format!("ip neigh show {}", row.address(0)));
            assert!(neighbour.contains(&row.mac(0)), "{}: {}", row.name, lan.sh("ip neigh"));
        }
        // The host's address is the bridge's while the NIC is a port of it, and comes back (`links()` below).
        assert!(host.sh("ip -4 -o addr show dev br14").contains("10.14.0.1/24"), "{}", host.state());

        // Whole streams cross each wire, checked byte by byte.
        for row in rows.iter().filter(|row| row.name != "bridge=br0") {
            let ip: Ipv4Addr = row.lan().parse().expect("an address");
            let noise = Noise::serve(&lan, ip.into(), 2 << 20);
            first.sh(&noise.guest_commands(), TRANSFER);
            noise.check().unwrap_or_else(|why| panic!("{}: {why}\n{}", row.name, first.state()));
        }

        for mut vm in guests {
            vm.type_in("poweroff\n");
            vm.ends_with(0, COMMAND);
        }
        let until = Instant::now() + Duration::from_secs(5);
        while links() != before && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(links(), before);
    }
}
