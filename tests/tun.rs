//! A NIC on a tun: layer 3 on the host, Ethernet for the guest.

/// Stock Linux guests.
mod stock {
    use std::time::Duration;

    use harness::netns::Netns;
    use harness::stock;
    use harness::traffic::Noise;
    use harness::{Vm, need};

    const COMMAND: Duration = Duration::from_secs(60);
    /// For some MiB at the slowest.
    const TRANSFER: Duration = Duration::from_secs(120);

    /// Sends `mib` MiB of noise from `host` to the guest over TCP, has it sent back, and compares.
    #[track_caller]
    fn tcp_both_ways(vm: &mut Vm, netns: &Netns, host: &str, mib: usize) {
        let noise = Noise::serve(netns, host.parse().expect("an address"), mib << 20);
        vm.sh(&noise.guest_commands(), TRANSFER);
        noise.check().unwrap_or_else(|why| panic!("{host}: {why}\n{}", vm.state()));
    }

    /// Frames and bytes that a NIC sent and received, as `-v` tells at the end.
    fn counted(messages: &str, link: &str) -> [(u64, u64); 2] {
        let line =
            messages.lines().find(|line| line.contains(&format!(" {link}: sent "))).expect("the counters");
        let numbers: Vec<u64> =
            line.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect();
        // The link's name ends in a digit: wirevm0, sent, bytes, lost, received, bytes, lost, interrupts.
        let &[_, sent, sent_bytes, sent_lost, received, received_bytes, received_lost, ..] = &numbers[..]
        else {
            panic!("{line}");
        };
        assert_eq!((sent_lost, received_lost), (0, 0), "{line}");
        [(sent, sent_bytes), (received, received_bytes)]
    }

    #[test]
    fn a_guest_comes_up_by_itself_and_carries_streams_in_segments_over_ipv4_and_ipv6() {
        let kernel = need!(stock::newest());
        let netns = need!(Netns::new());
        let before = netns.state();
        let nets = [
            "-v",
            "--net",
            "tun,host=10.0.0.1/30,guest=10.0.0.2,host=fd00:10::1/64,mac=02:00:00:00:00:01",
            "--net",
            "tun,host=10.9.0.1/32,guest=10.9.7.2,mtu=9000",
        ];
        // A guest's route is the host's business; here the host is a router.
        netns.sh("sysctl -qw net.ipv6.conf.default.forwarding=1");
        let mut vm = kernel.boot(&netns, "wirevm.dhcp", &nets);
        let addresses = vm.sh("ip -4 -o addr show scope global; ip route", COMMAND);
        for part in [
            "eth0    inet 10.0.0.2/30 ",
            "eth1    inet 10.9.7.2/32 ",
            "default via 10.0.0.1 dev eth0",
            "10.9.0.1 dev eth1 scope link",
        ] {
            assert!(addresses.contains(part), "{part}: {addresses}\n{}", vm.state());
        }
        let ipv6 = vm.sh(
            "for i in 1 2 3 4 5 6 7 8 9; do ip -6 addr show dev eth0 | grep -q 'fd00:10:.*global' && break; sleep 1; done;
             ip -6 addr show dev eth0; ip -6 route show default",
            COMMAND,
        );
        assert!(ipv6.contains("fd00:10::ff:fe00:1/64") && ipv6.contains("default via fe80:"), "{ipv6}");
        assert!(!ipv6.contains("dadfailed"), "{ipv6}");

        for host in ["10.0.0.1", "10.9.0.1", "fd00:10::1"] {
            vm.sh(&format!("ping -c 3 -i 0.2 -W 10 {host}"), COMMAND);
        }
        for guest in ["10.0.0.2", "10.9.7.2", "fd00:10::ff:fe00:1"] {
            netns.sh(&format!("ping -c 3 -i 0.2 -W 10 {guest}"));
        }
        // 9000 less the IPv4 and ICMP headers; one more byte would not fit.
        netns.sh("ping -M do -s 8972 -c 3 -i 0.2 -W 10 10.9.7.2");

        let bits = vm.sh("cat /sys/class/net/eth0/device/features", COMMAND);
        let bits: Vec<_> = bits.trim().chars().collect();
        // CSUM, GUEST_CSUM, GUEST_TSO4/6, HOST_TSO4/6.
        for bit in [0, 1, 7, 8, 11, 12] {
            assert_eq!(bits[bit], '1', "feature {bit} of {bits:?}");
        }
        for host in ["10.0.0.1", "fd00:10::1"] {
            tcp_both_ways(&mut vm, &netns, host, 8);
        }
        tcp_both_ways(&mut vm, &netns, "10.9.0.1", 4);

        let neighbours = vm.sh("ip neigh", COMMAND);
        assert!(neighbours.contains("10.0.0.1 dev eth0 lladdr 06:00:00:00:00:01"), "{neighbours}");
        vm.type_in("poweroff\n");
        vm.ends_with(0, COMMAND);
        for (frames, bytes) in counted(&vm.messages(), "wirevm0") {
            // Also the acknowledgements of the other way, which are short: in packets of the MTU it would be 1000 at most.
            assert!(bytes > 16 << 20 && bytes / frames > 1500, "{frames} frames, {bytes} bytes");
        }
        netns.sh("sysctl -qw net.ipv6.conf.default.forwarding=0");
        netns.is_as(&before);
    }
}
