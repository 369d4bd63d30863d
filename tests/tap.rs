//! A NIC on a tap: the wire made, moved over and taken back.

use std::net::UdpSocket;
use std::process::Stdio;
use std::time::Duration;

use harness::netns::Netns;
use harness::{TempDir, Variant, Vm, guest, handmade, need, puts, skip, variant};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(30);

guest!(forever: puts!("running\\n"), "2: hlt", "jmp 2b");

/// Assembly: writes a register of the first virtio-mmio device, whose address is in rdi.
macro_rules! set {
    ($register:literal, $value:expr) => {
        concat!("mov dword ptr [rdi + ", $register, "], ", $value, "\n")
    };
}

/// Assembly: queue `n` of 8 entries, its rings at `base` and the two pages behind it.
macro_rules! queue {
    ($n:literal, $base:literal) => {
        concat!(
            set!("0x30", $n),
            set!("0x38", "8"),
            set!("0x80", $base),
            set!("0x84", "0"),
            set!("0x90", concat!($base, " + 0x1000")),
            set!("0x94", "0"),
            set!("0xa0", concat!($base, " + 0x2000")),
            set!("0xa4", "0"),
            set!("0x44", "1"),
        )
    };
}

/// Assembly: a driver that accepts VERSION_1 alone and enables both queues: receive at 4 MiB, transmit at 4 MiB + 0x3000,
/// with one descriptor for a frame of 60 bytes behind its header at 4 MiB + 0x6000.
macro_rules! driver {
    () => {
        concat!(
            "mov edi, 0xc0000000\n",
            set!("0x70", "0"),
            set!("0x70", "1"),
            set!("0x70", "3"),
            set!("0x24", "1"),
            set!("0x20", "1"),
            set!("0x24", "0"),
            set!("0x20", "0"),
            set!("0x70", "11"),
            queue!("0", "0x400000"),
            queue!("1", "0x403000"),
            set!("0x70", "15"),
            "mov esi, 0x403000\n",
            "mov qword ptr [rsi], 0x406000\n",
            "mov dword ptr [rsi + 8], 72\n",
            "mov dword ptr [rsi + 12], 0\n",
            // To everybody, of a type that nobody knows.
            "mov dword ptr [0x40600c], 0xffffffff\n",
            "mov word ptr [0x406010], 0xffff\n",
            "mov dword ptr [0x406012], 0x0102\n",
            "mov word ptr [0x406018], 0xb588\n",
        )
    };
}

#[test]
fn frames_and_their_interrupts_cost_no_exit() {
    // A thousand times: offer the descriptor, notify, wait for it to be used. Then once more, halted until the interrupt.
    guest!(code:
        "mov esp, 0x300000",
        "mov ebx, 0x200400",
        "lea rax, [rip + 5f]",
        "mov [rbx], ax", "mov word ptr [rbx + 2], 0x10", "mov word ptr [rbx + 4], 0x8e00",
        "shr rax, 16", "mov [rbx + 6], ax", "mov qword ptr [rbx + 8], 0",
        "lidt [rip + 4f]",
        "mov al, 0xff", "out 0x21, al", "out 0xa1, al",
        driver!(),
        "mov ecx, 0",
        "2: mov eax, ecx", "and eax, 7", "mov word ptr [rax * 2 + 0x404004], 0",
        "inc ecx", "mov word ptr [0x404002], cx",
        set!("0x50", "1"),
        "3: pause", "cmp word ptr [0x405002], cx", "jne 3b",
        "cmp ecx, 1000", "jb 2b",
        puts!("sent\\n"),
        "mov ebx, 0xfee000f0", "mov dword ptr [rbx], 0x1ff",
        "mov ebx, 0xfec00000",
        "mov dword ptr [rbx], 0x1a", "mov dword ptr [rbx + 0x10], 0x40",
        "mov dword ptr [rbx], 0x1b", "mov dword ptr [rbx + 0x10], 0",
        "mov eax, ecx", "and eax, 7", "mov word ptr [rax * 2 + 0x404004], 0",
        "inc ecx", "mov word ptr [0x404002], cx",
        set!("0x50", "1"),
        "sti",
        "6: hlt", "jmp 6b",
        "4: .word 0xfff", ".quad 0x200000",
        "5: mov eax, [rdi + 0x60]", "test al, 1", "jz 97f",
        puts!("interrupted\\n"),
    );
    let netns = need!(Netns::new());
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, code());
    let path = kernel.to_str().unwrap();
    let mut vm =
        Vm::start_in(&netns, &["-v", "run", "--transport", "mmio", "--net", "tap", "--kernel", path]);
    vm.ends_with(0, SOON);
    assert_eq!(vm.console(), "sent\ninterrupted\n", "{}", vm.state());
    assert!(vm.messages().contains("sent 1001 frames (60060 bytes, 0 lost)"), "{}", vm.state());
    let exits =
        vm.messages().split(" port, ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u32>().ok());
    // Setting the device up takes a few dozen.
    assert!(exits.is_some_and(|exits| exits < 100), "{exits:?} MMIO exits\n{}", vm.state());
}

#[test]
fn nonsense_in_every_register_and_ring_stops_the_nic_and_not_the_machine() {
    guest!(code:
        "mov edi, 0xc0000000",
        // Every register and what lies behind it, four values, four widths.
        "mov ebx, 0xffffffff",
        "7: xor ecx, ecx",
        "2: mov [rdi + rcx], ebx", "mov [rdi + rcx], bx", "mov [rdi + rcx], bl", "mov [rdi + rcx], rbx",
        "mov eax, [rdi + rcx]", "mov ax, [rdi + rcx]", "mov al, [rdi + rcx]", "mov rax, [rdi + rcx]",
        "add ecx, 2", "cmp ecx, 0x180", "jb 2b",
        "shr ebx, 9", "jnz 7b",
        "cmp dword ptr [rdi], 0x74726976", "jne 97f",
        puts!("registers\\n"),
        // A driver that offers more entries than the queue has.
        driver!(),
        "mov word ptr [0x404002], 0x7000", set!("0x50", "1"),
        "3: pause", "test dword ptr [rdi + 0x70], 0x40", "jz 3b",
        puts!("needs reset\\n"),
        // After the reset it works as before.
        set!("0x70", "0"),
        "mov word ptr [0x404002], 0", "mov word ptr [0x405002], 0",
        driver!(),
        "mov word ptr [0x404004], 0", "mov word ptr [0x404002], 1", set!("0x50", "1"),
        "4: pause", "cmp word ptr [0x405002], 1", "jne 4b",
        puts!("works\\n"),
    );
    let netns = need!(Netns::new());
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, code());
    let path = kernel.to_str().unwrap();
    let mut vm =
        Vm::start_in(&netns, &["-v", "run", "--transport", "mmio", "--net", "tap", "--kernel", path]);
    vm.ends_with(0, SOON);
    assert_eq!(vm.console(), "registers\nneeds reset\nworks\n", "{}", vm.state());
    assert!(vm.messages().contains("sent 1 frames"), "{}", vm.state());
}

#[test]
fn the_wire_is_there_while_the_guest_runs_and_gone_after_it() {
    let netns = need!(Netns::new());
    // One that stays, up once: the kernel gives a link its queueing discipline then and does not take it back.
    netns.sh("ip tuntap add keep mode tap; ip link set keep up; ip link set keep down");
    let before = netns.state();
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, forever());
    let args = [
        "run",
        "--kernel",
        kernel.to_str().unwrap(),
        "--net",
        "tap,host=172.31.0.1/24,mtu=9000",
        "--net",
        "tap=keep,host=172.31.1.1/24,mtu=1400",
        "--net",
        "tap=named",
    ];
    for signal in [Signal::INT, Signal::TERM] {
        let mut vm = Vm::start_in(&netns, &args);
        vm.expect("running\n", SOON);
        let links = netns.sh("ip -br link; ip -br addr; ip route");
        for (link, address) in [("wirevm0", "172.31.0.1/24"), ("keep", "172.31.1.1/24"), ("named", "")] {
            let line = links
                .lines()
                .find(|line| line.starts_with(link))
                .unwrap_or_else(|| panic!("no {link} in\n{links}"));
            assert!(line.contains("LOWER_UP"), "{line}");
            assert!(links.lines().any(|line| line.starts_with(link) && line.contains(address)), "{links}");
        }
        let mtu = netns.sh("ip -o link");
        assert!(
            mtu.contains("wirevm0: ") && mtu.contains(" mtu 9000 ") && mtu.contains(" mtu 1400 "),
            "{mtu}"
        );
        vm.signal(signal);
        vm.ends_with(0, SOON);
        netns.is_as(&before);
    }
}

#[test]
fn a_killed_wirevm_takes_its_own_taps_with_it() {
    let netns = need!(Netns::new());
    let before = netns.state();
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, forever());
    let args = [
        "run",
        "--kernel",
        kernel.to_str().unwrap(),
        "--net",
        "tap,host=172.31.0.1/24",
        "--net",
        "tap=named",
    ];
    let mut vm = Vm::start_in(&netns, &args);
    vm.expect("running\n", SOON);
    assert_ne!(netns.state(), before);
    vm.signal(Signal::KILL);
    vm.wait(SOON);
    netns.is_as(&before);
}

#[test]
fn what_explain_prints_makes_the_same_wire_by_hand() {
    let (ours, byhand) = (need!(Netns::new()), need!(Netns::new()));
    for netns in [&ours, &byhand] {
        // So that there is nothing to warn of.
        netns.sh("ip tuntap add keep mode tap vnet_hdr; [ ! -e /proc/net/if_inet6 ] || echo 0 >/proc/sys/net/ipv6/conf/keep/accept_ra");
    }
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, forever());
    let args = [
        "run",
        "--explain",
        "--kernel",
        kernel.to_str().unwrap(),
        "--net",
        "tap=fresh,host=172.31.0.1/24,mtu=9000",
        "--net",
        "tap=keep,host=172.31.1.1/28",
    ];
    let mut vm = Vm::start_in(&ours, &args);
    vm.expect("running\n", SOON);
    let script = vm.messages();
    assert_eq!(script.lines().filter(|line| line.starts_with("ip ")).count(), 6, "{script}");
    byhand.sh(&script);
    // What a wirevm makes goes with it, what the line makes stays; and without a holder a tap has no carrier.
    let state = |netns: &Netns| {
        let links = netns.sh("ip -d -o link | sed 's/.*\\(fresh\\|keep\\): <.*\\(mtu [0-9]*\\) qdisc.*\\(tun type .*\\) persist.*/\\1 \\2 \\3/'");
        let addresses =
            netns.sh("ip -br -4 addr | awk '{ print $1, $3 }'; ip -4 route | sed 's/ linkdown//'");
        (links.lines().skip(1).map(String::from).collect::<Vec<_>>(), addresses)
    };
    assert_eq!(state(&ours).0.len(), 2, "{}", ours.state());
    assert!(
        state(&ours).0[1].starts_with("fresh mtu 9000 tun type tap pi off vnet_hdr on"),
        "{:?}",
        state(&ours)
    );
    assert_eq!(state(&ours), state(&byhand));
}

#[test]
fn the_hosts_resolver_answers_by_the_keeper() {
    let netns = need!(Netns::with_own_run());
    netns.sh("mount -t tmpfs etc /etc; echo nameserver 127.0.0.53 >/etc/resolv.conf");
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, forever());
    let net = "tap,host=172.31.0.1/24,nat";
    let args = ["run", "--name", "asks", "--kernel", kernel.to_str().unwrap(), "--net", net];
    let mut vm = Vm::start_in(&netns, &args);
    vm.expect("running\n", SOON);
    let socket = |at: &'static str| {
        let bound = netns.spawn(move || UdpSocket::bind(at).unwrap()).join().unwrap();
        bound.set_read_timeout(Some(SOON)).unwrap();
        bound
    };
    let resolver = socket("127.0.0.53:53");
    let ask_at = |server: &str| {
        let asker = socket("0.0.0.0:0");
        for id in 0..20 {
            let query = [0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1];
            asker.send_to(&query, server).unwrap();
            let mut message = [0; 64];
            let (len, from) = resolver.recv_from(&mut message).unwrap();
            assert_eq!(message[2..len], query[2..]);
            message[2] |= 0x80;
            resolver.send_to(&message[..len], from).unwrap();
            let len = asker.recv(&mut message).unwrap();
            assert_eq!((message[..3].to_vec(), len), (vec![0, id, 0x81], query.len()));
        }
    };
    ask_at("172.31.0.1:53");
    // To a wire that is made before the old one goes, one that is made after it, one without a relay, and back.
    for (to, server) in [
        ("tap,host=172.31.1.1/24,nat", Some("172.31.1.1:53")),
        ("tap,host=172.31.1.1/24,nat,mtu=1500", Some("172.31.1.1:53")),
        ("tap,host=172.31.2.1/24", None),
        (net, Some("172.31.0.1:53")),
    ] {
        let moved = format!("{} net move asks nic0 {to}", harness::wirevm_path().display());
        netns.try_sh(&moved).unwrap_or_else(|why| panic!("{to}: {why}\n{}", vm.state()));
        match server {
            Some(server) => ask_at(server),
            None => assert_eq!(netns.sh("ss -Hlun 'sport = 53'").lines().count(), 1, "the resolver alone"),
        }
    }
    vm.signal(Signal::TERM);
    vm.ends_with(0, SOON);
    drop(resolver);
    netns.spawn(|| UdpSocket::bind("0.0.0.0:53").expect("nobody listens any more")).join().unwrap();
}

#[test]
fn an_unprivileged_user_may_use_a_tap_made_for_him() {
    if std::fs::metadata("/dev/net/tun").is_err() {
        skip!("this machine has no /dev/net/tun");
    }
    let netns = need!(Netns::new());
    netns.sh("ip tuntap add his mode tap user 65534; ip link set his addrgenmode none up");
    let before = netns.state();
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, forever());
    let program = dir.path("wirevm");
    std::fs::copy(harness::wirevm_path(), &program).unwrap();
    std::fs::set_permissions(dir.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // Whoever may open the devices, here by a bind mount of copies that everybody may.
    let script = "mkdir \"$2\"; mount -t tmpfs tmpfs \"$2\"; mknod -m 666 \"$2/kvm\" c 10 232; mknod -m 666 \"$2/tun\" c 10 200; \
        mount --bind \"$2/kvm\" /dev/kvm; mount --bind \"$2/tun\" /dev/net/tun; \
        exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all \
        \"$0\" run --kernel \"$1\" --net tap=his";
    let mut command = netns.command("unshare");
    command.args(["--mount", "sh", "-c", script]).args([&program, &kernel, &dir.path("dev")]);
    let mut vm = Vm::start(command.stdin(Stdio::null()));
    vm.expect("running\n", SOON);
    vm.signal(Signal::TERM);
    vm.ends_with(0, SOON);
    netns.is_as(&before);
}

/// Stock Linux guests.
mod stock {
    use super::*;
    use harness::stock::{self, Stock};
    use harness::traffic::Noise;

    const COMMAND: Duration = Duration::from_secs(60);
    /// For 64 MiB at the slowest.
    const TRANSFER: Duration = Duration::from_secs(240);

    /// A guest with a NIC on a tap, whose DHCP wirevm has answered.
    #[track_caller]
    fn boot(kernel: &Stock, netns: &Netns, net: &str) -> Vm {
        boot_with(&[], kernel, netns, net)
    }

    /// The same with this transport.
    #[track_caller]
    fn boot_on(transport: &str, kernel: &Stock, netns: &Netns, net: &str) -> Vm {
        boot_with(&["--transport", transport], kernel, netns, net)
    }

    #[track_caller]
    fn boot_with(args: &[&str], kernel: &Stock, netns: &Netns, net: &str) -> Vm {
        let mut vm = kernel.boot(netns, "wirevm.dhcp", &[args, &["--net", net]].concat());
        let addresses = vm.sh("ip -4 -o addr show dev eth0", COMMAND);
        assert!(addresses.contains("172.31.0.2/24"), "{addresses}\n{}", vm.state());
        vm
    }

    /// Sends `mib` MiB of noise to the guest over TCP, has it sent back, and compares.
    #[track_caller]
    fn tcp_both_ways(vm: &mut Vm, netns: &Netns, mib: usize) {
        let noise = Noise::serve(netns, [172, 31, 0, 1].into(), mib << 20);
        vm.sh(&noise.guest_commands(), TRANSFER);
        noise.check().unwrap_or_else(|why| panic!("{why}\n{}", vm.state()));
    }

    /// True where a tap of this kernel segments UDP.
    fn host_has_uso() -> bool {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut parts = release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        (parts.next(), parts.next()) >= (Some(6), Some(2))
    }

    /// The feature bits that the guest's driver negotiated.
    fn features(vm: &mut Vm) -> Vec<bool> {
        let bits = vm.sh("cat /sys/class/net/eth0/device/features", COMMAND);
        bits.trim().chars().map(|bit| bit == '1').collect()
    }

    #[test]
    fn debian_s_kernels_ping_and_carry_64_mib_each_way_with_all_offloads() {
        // Each kernel on the other transport; on PCI, all of them are in `pci.rs`.
        for (kernel, transport) in need!(stock::debian()).iter().zip(["mmio", "pci"]) {
            let netns = need!(Netns::new());
            let before = netns.state();
            let mut vm = boot_on(transport, kernel, &netns, "tap,host=172.31.0.1/24");
            vm.sh("ping -c 3 -i 0.2 -W 10 172.31.0.1", COMMAND);
            netns.sh("ping -c 3 -i 0.2 -W 10 172.31.0.2");
            // CSUM, GUEST_CSUM, MTU, MAC, GUEST_TSO4/6, HOST_TSO4/6, MRG_RXBUF, STATUS, INDIRECT_DESC, EVENT_IDX, VERSION_1.
            let negotiated = features(&mut vm);
            for bit in [0, 1, 3, 5, 7, 8, 11, 12, 15, 16, 28, 29, 32] {
                assert!(negotiated[bit], "feature {bit} is missing in {negotiated:?}");
            }
            // UDP segments as well where both ends can: GUEST_USO4/6 and HOST_USO, since Linux 6.2.
            if kernel.name == "6.12" && host_has_uso() {
                assert_eq!(negotiated[54..57], [true; 3], "{negotiated:?}");
            }
            tcp_both_ways(&mut vm, &netns, 64);
            vm.type_in("poweroff\n");
            vm.ends_with(0, COMMAND);
            netns.is_as(&before);
        }
    }

    #[test]
    fn a_guest_knows_its_addresses_its_router_and_its_resolvers() {
        let kernel = need!(stock::fastest());
        let netns = need!(Netns::new());
        netns.sh("sysctl -qw net.ipv6.conf.all.forwarding=1");
        let before = netns.state();
        let mut vm = boot(&kernel, &netns, "tap,host=172.31.0.1/24,host=fd00::1/64,mac=02:00:00:00:00:2a");
        let addresses = "until ip -6 addr show dev eth0 | grep -v tentative | grep fd00:; do sleep 0.2; done";
        let address = vm.sh(addresses, COMMAND);
        assert!(address.contains("fd00::ff:fe00:2a/64"), "{address}");
        let routes = vm.sh(
            "for i in $(seq 50); do ip -6 route | grep -q ^default && break; sleep 0.2; done; ip -6 route",
            COMMAND,
        );
        let router = routes.lines().find(|line| line.starts_with("default via fe80::"));
        assert!(router.is_some_and(|route| route.contains("dev eth0")), "{routes}");
        vm.sh("ping -c 2 -W 10 fd00::1", COMMAND);
        netns.sh("ping -c 2 -i 0.2 -W 10 fd00::ff:fe00:2a");
        let resolvers = vm.sh("cat /etc/resolv.conf", COMMAND);
        let of_host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let reachable =
            |line: &&str| line.starts_with("nameserver ") && !line.contains(" 127.") && !line.contains(':');
        for line in of_host.lines().filter(reachable).take(2) {
            assert!(resolvers.contains(line.trim()), "{line}: {resolvers}");
        }
        vm.type_in("poweroff\n");
        vm.ends_with(0, COMMAND);
        netns.is_as(&before);

        // Without a word of addresses: both ends have one, and meet.
        let mut vm = kernel.boot(&netns, "wirevm.dhcp", &["--net", "tap"]);
        let gateway = vm.sh("ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'", COMMAND);
        assert_eq!(gateway.trim(), "172.30.0.1", "{}", vm.state());
        vm.sh("ping -c 2 -W 10 172.30.0.1", COMMAND);
        netns.sh("ping -c 2 -i 0.2 -W 10 172.30.0.2");
    }

    #[test]
    fn a_guest_behind_nat_asks_the_hosts_resolver() {
        let kernel = need!(stock::fastest());
        let netns = need!(Netns::with_own_run());
        netns.sh("mount -t tmpfs etc /etc; echo nameserver 127.0.0.53 >/etc/resolv.conf");
        let resolver = netns.spawn(|| UdpSocket::bind("127.0.0.53:53").unwrap()).join().unwrap();
        // It ends with the test's process.
        std::thread::spawn(move || {
            let mut message = [0; 512];
            while let Ok((len, from)) = resolver.recv_from(&mut message) {
                let mut answer = message[..len].to_vec();
                (answer[2], answer[3]) = (0x81, 0x80);
                // The type is the last but one of the question, and an address of IPv4 is type 1.
                if answer.ends_with(&[0, 1, 0, 1]) {
                    answer[7] = 1;
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 99]);
                }
                let _ = resolver.send_to(&answer, from);
            }
        });
        let mut vm = boot(&kernel, &netns, "tap,host=172.31.0.1/24,nat");
        assert_eq!(vm.sh("cat /etc/resolv.conf", COMMAND).trim(), "nameserver 172.31.0.1");
        let found = vm.sh("nslookup example.test", COMMAND);
        assert!(found.contains("192.0.2.99"), "{found}");
    }

    #[test]
    fn jumbo_frames_pass_whole() {
        let kernel = need!(stock::fastest());
        let netns = need!(Netns::new());
        let mut vm = boot(&kernel, &netns, "tap,host=172.31.0.1/24,mtu=9000");
        assert_eq!(vm.sh("cat /sys/class/net/eth0/mtu", COMMAND).trim(), "9000");
        // 9000 less the IPv4 and ICMP headers; one more byte would not fit.
        netns.sh("ping -M do -s 8972 -c 3 -i 0.2 -W 10 172.31.0.2");
        vm.sh("ping -s 8972 -c 3 -i 0.2 -W 10 172.31.0.1", COMMAND);
        tcp_both_ways(&mut vm, &netns, 8);
    }

    #[test]
    fn the_driver_can_be_unbound_and_bound_under_traffic() {
        let kernel = need!(stock::newest());
        // The kernel carries frames on one of them.
        let transports: &[_] = if variant() == Variant::Vhost { &["pci"] } else { &["pci", "mmio"] };
        for &transport in transports {
            let netns = need!(Netns::new());
            let mut vm = boot_on(transport, &kernel, &netns, "tap,host=172.31.0.1/24,mac=02:00:00:00:00:2a");
            netns.sh("ip neigh replace 172.31.0.2 lladdr 02:00:00:00:00:2a dev wirevm0");
            let mut flood = netns.command("ping");
            let mut flood = flood
                .args(["-f", "-w", "300", "-s", "1400", "172.31.0.2"])
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            for _ in 0..3 {
                vm.sh("cd /sys/bus/virtio/drivers/virtio_net && echo virtio0 >unbind && ! [ -e /sys/class/net/eth0 ] && echo virtio0 >bind", COMMAND);
                vm.sh("ip addr add 172.31.0.2/24 dev eth0 && ip link set eth0 up && ping -c 2 -i 0.2 -W 10 172.31.0.1", COMMAND);
            }
            flood.kill().unwrap();
            flood.wait().unwrap();
            tcp_both_ways(&mut vm, &netns, 8);
        }
    }

    #[test]
    fn a_guest_under_traffic_ends_at_once_and_leaves_nothing() {
        let kernel = need!(stock::fastest());
        for signal in [Signal::INT, Signal::KILL] {
            let netns = need!(Netns::new());
            let before = netns.state();
            let vm = &mut boot(&kernel, &netns, "tap,host=172.31.0.1/24");
            let mut flood = netns.command("ping");
            let mut flood = flood
                .args(["-f", "-w", "300", "172.31.0.2"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(Duration::from_secs(1));
            vm.signal(signal);
            vm.wait(COMMAND);
            flood.kill().unwrap();
            flood.wait().unwrap();
            netns.is_as(&before);
        }
    }
}
