//! A NIC on a macvtap: stock guests, the NIC's LAN in another namespace.

/// Stock Linux guests.
mod stock {
    use std::time::Duration;

    use harness::netns::Netns;
    use harness::stock;
    use harness::{Vm, need};

    const COMMAND: Duration = Duration::from_secs(60);

    /// A machine at the other end of the cable of the host's NIC `nic`, at 172.31.0.1 and fd00:31::1.
    fn lan(host: &Netns) -> Result<Netns, String> {
        let lan = Netns::new()?;
        host.sh(&format!("ip link add nic type veth peer name wire netns {}; ip link set nic up", lan.pid()));
        lan.sh("ip address add 172.31.0.1/24 dev wire; ip address add fd00:31::1/64 dev wire nodad; ip link set wire up");
        Ok(lan)
    }

    /// Boots a guest at 172.31.0.2 and fd00:31::2: neither is made of its MAC.
    #[track_caller]
    fn boot(kernel: &stock::Stock, host: &Netns, net: &str) -> Vm {
        let mut vm = kernel.boot(host, "", &["--net", net]);
        // An IPv6 address is tentative for a second (RFC 4862 §5.4).
        vm.sh(
            "ip address add 172.31.0.2/24 dev eth0; ip address add fd00:31::2/64 dev eth0; sleep 3",
            COMMAND,
        );
        vm
    }

    /// Both ways, both families; the neighbours are asked for anew each time.
    #[track_caller]
    fn ping(vm: &mut Vm, lan: &Netns) {
        for address in ["172.31.0.1", "fd00:31::1"] {
            vm.sh(&format!("ip neigh flush dev eth0; ping -c 2 -i 0.2 -W 10 {address}"), COMMAND);
        }
        for address in ["172.31.0.2", "fd00:31::2"] {
            lan.sh(&format!("ip neigh flush dev wire; ping -c 2 -i 0.2 -W 10 {address}"));
        }
    }

    #[test]
    fn the_guest_s_groups_and_its_new_address_reach_it() {
        let kernel = need!(stock::newest());
        let host = need!(Netns::new());
        let lan = need!(lan(&host));
        // The carrier's news, and the addresses that the kernel makes itself, come a moment late.
        std::thread::sleep(Duration::from_secs(3));
        let before = host.state();
        let mut vm = boot(&kernel, &host, "macvtap=nic,mac=02:00:00:00:00:2a");
        ping(&mut vm, &lan);
        // fd00:31::2 is solicited at this group (RFC 4291 §2.7.1), which the host knows of the guest alone.
        let groups = host.sh("ip maddress show dev wirevm0");
        assert!(groups.contains("33:33:ff:00:00:02"), "{groups}");
        assert!(host.sh("ip -d link show wirevm0").contains("promiscuity 0  allmulti 0"), "{}", host.state());

        vm.sh("ip link set eth0 address 02:00:00:00:00:2b", COMMAND);
        assert!(host.sh("ip link show wirevm0").contains("02:00:00:00:00:2b"), "{}", host.state());
        ping(&mut vm, &lan);
        let known = lan.sh("ip neigh show dev wire");
        assert!(known.contains("02:00:00:00:00:2b"), "the LAN knows the guest by it: {known}");
        // The NIC's own address is taken, and the guest is told so.
        let nic = host.sh("ip -br link show nic | awk '{ print $3 }'");
        vm.sh(&format!("! ip link set eth0 address {}", nic.trim()), COMMAND);
        // All frames, all groups, and back.
        for (command, modes) in [
            ("promisc", "promiscuity 1  allmulti 1"),
            ("-promisc", "promiscuity 0  allmulti 0"),
            ("allmulti", "promiscuity 0  allmulti 1"),
            ("-allmulti", "promiscuity 0  allmulti 0"),
        ] {
            vm.sh(&format!("ifconfig eth0 {command}"), COMMAND);
            assert!(host.sh("ip -d link show wirevm0").contains(modes), "{command}: {}", host.state());
            ping(&mut vm, &lan);
        }
        // A group that the guest joins later, and leaves.
        let joined = || host.sh("ip maddress show dev wirevm0").contains("33:33:ff:12:34:56");
        for (command, then) in [("add", true), ("del", false)] {
            vm.sh(&format!("ip address {command} fd00:31::12:3456/64 dev eth0; sleep 1"), COMMAND);
            assert_eq!(joined(), then, "{command}: {}", host.sh("ip maddress show dev wirevm0"));
        }
        vm.type_in("poweroff\n");
        vm.ends_with(0, COMMAND);
        host.is_as(&before);
    }

    #[test]
    fn the_host_is_cut_off_unless_it_has_a_place() {
        let kernel = need!(stock::newest());
        let host = need!(Netns::new());
        let lan = need!(lan(&host));
        host.sh("ip address add 172.31.0.9/24 dev nic");
        let mut vm = boot(&kernel, &host, "macvtap=nic");
        assert!(vm.messages().contains("the host itself cannot reach this guest"), "{}", vm.state());
        vm.sh("! ping -c 1 -W 2 172.31.0.9", COMMAND);
        host.sh("! ping -c 1 -W 2 172.31.0.2");
        ping(&mut vm, &lan);
        vm.type_in("poweroff\n");
        vm.ends_with(0, COMMAND);

        let spec = "macvtap=nic,host=172.31.0.3/29,host=fd00:31::3/64";
        let mut vm = boot(&kernel, &host, spec);
        for address in ["172.31.0.3", "fd00:31::3"] {
            vm.sh(&format!("ping -c 2 -i 0.2 -W 10 {address}"), COMMAND);
        }
        host.sh("ping -c 2 -i 0.2 -W 10 172.31.0.2; ping -c 2 -i 0.2 -W 10 fd00:31::2");
        host.sh("ping -c 2 -i 0.2 -W 10 172.31.0.1");
        ping(&mut vm, &lan);
    }
}
