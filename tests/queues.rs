//! A NIC of several queue pairs, and the guests that use them.

/// Stock Linux guests.
mod stock {
    use std::process::Stdio;
    use std::time::Duration;

    use harness::netns::Netns;
    use harness::stock::{self, Stock};
    use harness::traffic::Noise;
    use harness::{Variant, Vm, counts_frames, guest, handmade, need, skip, variant, varied, wirevm_path};

    const COMMAND: Duration = Duration::from_secs(60);
    /// For the streams of a test at the slowest.
    const TRANSFER: Duration = Duration::from_secs(240);
    const STREAMS: usize = 4;

    // What `ethtool -L eth0 combined N` does, for the guest has no ethtool: N is the number of the program's words, and its exit
    // status the error number.
    guest!(channels:
        "mov ebx, [rsp]",
        "sub rsp, 128", "cld", "xor eax, eax", "mov rdi, rsp", "mov ecx, 128", "rep stosb",
        // struct ethtool_channels: ETHTOOL_SCHANNELS, and combined_count; behind it struct ifreq.
        "mov dword ptr [rsp], 0x3d", "mov [rsp + 32], ebx",
        "mov dword ptr [rsp + 64], 0x30687465", "mov [rsp + 80], rsp",
        // socket(AF_INET, SOCK_DGRAM, 0), ioctl(SIOCETHTOOL), exit().
        "mov eax, 41", "mov edi, 2", "mov esi, 2", "xor edx, edx", "syscall",
        "mov edi, eax", "mov eax, 16", "mov esi, 0x8946", "lea rdx, [rsp + 64]", "syscall",
        "mov edi, eax", "neg edi", "mov eax, 60", "syscall",
    );

    // What `ethtool -G eth0 rx N tx N` does: N is 64 for the program alone, and twice as many with each word more.
    guest!(rings:
        "mov ecx, [rsp]", "mov ebx, 32", "shl ebx, cl",
        "sub rsp, 128", "cld", "xor eax, eax", "mov rdi, rsp", "mov ecx, 128", "rep stosb",
        // struct ethtool_ringparam: ETHTOOL_SRINGPARAM, rx_pending and tx_pending; behind it struct ifreq.
        "mov dword ptr [rsp], 0x11", "mov [rsp + 20], ebx", "mov [rsp + 32], ebx",
        "mov dword ptr [rsp + 64], 0x30687465", "mov [rsp + 80], rsp",
        "mov eax, 41", "mov edi, 2", "mov esi, 2", "xor edx, edx", "syscall",
        "mov edi, eax", "mov eax, 16", "mov esi, 0x8946", "lea rdx, [rsp + 64]", "syscall",
        "mov edi, eax", "neg edi", "mov eax, 60", "syscall",
    );

    // What `ethtool -C eth0 rx-usecs 1000000 rx-frames 16 tx-frames 1` does with a word; for the program alone, with 0 and 0.
    guest!(coalescing:
        "mov ebx, [rsp]", "dec ebx",
        "sub rsp, 192", "cld", "xor eax, eax", "mov rdi, rsp", "mov ecx, 192", "rep stosb",
        // struct ethtool_coalesce: ETHTOOL_SCOALESCE, rx_coalesce_usecs, rx_max_coalesced_frames and tx_max_coalesced_frames; behind it
        // struct ifreq.
        "imul eax, ebx, 1000000", "shl ebx, 4",
        "mov dword ptr [rsp], 0x0f", "mov [rsp + 4], eax", "mov [rsp + 8], ebx", "mov dword ptr [rsp + 24], 1",
        "mov dword ptr [rsp + 128], 0x30687465", "mov [rsp + 144], rsp",
        "mov eax, 41", "mov edi, 2", "mov esi, 2", "xor edx, edx", "syscall",
        "mov edi, eax", "mov eax, 16", "mov esi, 0x8946", "lea rdx, [rsp + 128]", "syscall",
        "mov edi, eax", "neg edi", "mov eax, 60", "syscall",
    );

    /// The queues that the guest's driver made.
    fn queues(vm: &mut Vm) -> String {
        vm.sh("cd /sys/class/net/eth0/queues && echo *", COMMAND).trim().to_owned()
    }

    /// What the host says of the queues of the link.
    fn attached(netns: &Netns, link: &str) -> String {
        let text = netns.sh(&format!("ip -d link show {link}"));
        let words: Vec<_> = text.split_whitespace().collect();
        let at = words.iter().position(|&word| word == "numqueues").expect("a link of several queues");
        format!("{} and {}", words[at + 1], words[at + 3])
    }

    /// Sends noise to the guest over several TCP connections at once, has it sent back, and compares.
    #[track_caller]
    fn streams_both_ways(vm: &mut Vm, netns: &Netns, host: [u8; 4], mib: usize) {
        let all: Vec<_> = (0..STREAMS).map(|_| Noise::serve(netns, host.into(), mib << 20)).collect();
        let commands = all.iter().enumerate().map(|(number, noise)| {
            // Each has a file of its own.
            format!(
                "({}) &",
                noise.guest_commands().replace("/dev/shm/noise", &format!("/dev/shm/noise{number}"))
            )
        });
        vm.sh(&format!("{} wait", commands.collect::<String>()), TRANSFER);
        for noise in all {
            noise.check().unwrap_or_else(|why| panic!("{why}\n{}", vm.state()));
        }
    }

    /// Frames sent and received by each pair, as wirevm counted them until the end; none where the kernel carried them.
    fn frames(messages: &str, link: &str) -> Vec<(u64, u64)> {
        let number = |rest: &str| rest.split(' ').next().unwrap().parse::<u64>().unwrap();
        let start = format!("{link}: sent ");
        let pairs = messages.split(&start).skip(1);
        pairs.map(|pair| (number(pair), number(pair.split_once("received ").unwrap().1))).collect()
    }

    #[test]
    fn a_driver_changes_the_size_of_its_rings_under_traffic() {
        let kernel: Stock = need!(stock::newest());
        let netns = need!(Netns::new());
        let mut vm = kernel.boot(&netns, "wirevm.dhcp", &["--net", "tap=t0,host=172.31.0.1/24"]);
        // VIRTIO_F_RING_RESET.
        assert_eq!(vm.sh("cut -c 41 /sys/class/net/eth0/device/features", COMMAND).trim(), "1");
        handmade::install(&mut vm, "/dev/shm/rings", rings());
        let mut flood = netns.command("ping");
        let flood =
            flood.args(["-f", "-w", "300", "172.31.0.2"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        for words in ["", "two", "", "two words"] {
            vm.sh(&format!("/dev/shm/rings {words}"), COMMAND);
            vm.sh("ping -c 2 -i 0.2 -W 10 172.31.0.1", COMMAND);
        }
        let mut flood = flood.unwrap();
        flood.kill().unwrap();
        flood.wait().unwrap();
        assert_eq!(vm.shell("/dev/shm/rings or 512 words", COMMAND).status, 22, "there are 256 entries");
        streams_both_ways(&mut vm, &netns, [172, 31, 0, 1], 1);
        vm.type_in("poweroff\n");
        vm.ends_with(0, COMMAND);
    }

    #[test]
    fn a_driver_has_its_interrupts_held() {
        if variant() != Variant::Usual {
            skip!("the kernel holds none, and on virtio-mmio all queues have one");
        }
        let kernel: Stock = need!(stock::newest());
        let netns = need!(Netns::new());
        let mut vm = kernel.boot(&netns, "wirevm.dhcp", &["--net", "tap=t0,host=172.31.0.1/24"]);
        // VIRTIO_NET_F_NOTF_COAL.
        assert_eq!(vm.sh("cut -c 54 /sys/class/net/eth0/device/features", COMMAND).trim(), "1");
        handmade::install(&mut vm, "/dev/shm/coalescing", coalescing());
        let interrupts = |vm: &mut Vm| -> u32 {
            let line = vm.sh("grep -e -input.0 /proc/interrupts", COMMAND);
            line.split_whitespace()
                .nth(1)
                .and_then(|count| count.parse().ok())
                .unwrap_or_else(|| panic!("{line}"))
        };
        let ping = || {
            let said = netns.sh("ping -q -c 32 -i 0.02 -W 10 172.31.0.2");
            assert!(said.contains(" 32 received"), "{said}");
        };
        vm.sh("/dev/shm/coalescing on", COMMAND);
        let before = interrupts(&mut vm);
        ping();
        let held = interrupts(&mut vm) - before;
        assert!(held <= 16, "{held} interrupts for 32 frames, of which 16 take one");
        vm.sh("/dev/shm/coalescing", COMMAND);
        ping();
        streams_both_ways(&mut vm, &netns, [172, 31, 0, 1], 1);
        vm.type_in("poweroff\n");
        vm.ends_with(0, COMMAND);
    }

    #[test]
    fn a_guest_of_two_vcpus_moves_frames_by_two_pairs_and_its_driver_comes_and_goes() {
        let kernel: Stock = need!(stock::newest());
        let netns = need!(Netns::new());
        let before = netns.state();
        let net = "tap=t0,host=172.31.0.1/24,queues=auto";
        let mut vm = kernel.boot(&netns, "wirevm.dhcp", &["-v", "--cpus", "2", "--net", net]);
        assert_eq!(queues(&mut vm), "rx-0 rx-1 tx-0 tx-1");
        assert_eq!(attached(&netns, "t0"), "2 and 0");
        // VIRTIO_NET_F_MQ.
        assert_eq!(vm.sh("cut -c 23 /sys/class/net/eth0/device/features", COMMAND).trim(), "1");
        streams_both_ways(&mut vm, &netns, [172, 31, 0, 1], 1);

        // The driver wants one, and two again, under traffic.
        handmade::install(&mut vm, "/dev/shm/channels", channels());
        let mut flood = netns.command("ping");
        let flood =
            flood.args(["-f", "-w", "300", "172.31.0.2"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        for _ in 0..2 {
            vm.sh("/dev/shm/channels", COMMAND);
            assert_eq!((queues(&mut vm).as_str(), attached(&netns, "t0").as_str()), ("rx-0 tx-0", "1 and 1"));
            vm.sh("ping -c 2 -i 0.2 -W 10 172.31.0.1", COMMAND);
            vm.sh("/dev/shm/channels two", COMMAND);
            assert_eq!(
                (queues(&mut vm).as_str(), attached(&netns, "t0").as_str()),
                ("rx-0 rx-1 tx-0 tx-1", "2 and 0")
            );
            vm.sh("ping -c 2 -i 0.2 -W 10 172.31.0.1", COMMAND);
        }
        let mut flood = flood.unwrap();
        flood.kill().unwrap();
        flood.wait().unwrap();
        assert_eq!(vm.shell("/dev/shm/channels or three", COMMAND).status, 22, "there are two");
        vm.sh("/dev/shm/channels", COMMAND);
        streams_both_ways(&mut vm, &netns, [172, 31, 0, 1], 1);

        // Without a driver the host brings its frames to the first queue alone.
        let driver = "/sys/bus/virtio/drivers/virtio_net";
        for _ in 0..2 {
            vm.sh(&format!("echo virtio0 >{driver}/unbind"), COMMAND);
            assert_eq!(attached(&netns, "t0"), "1 and 1");
            vm.sh(&format!("echo virtio0 >{driver}/bind"), COMMAND);
            vm.sh("ip addr add 172.31.0.2/24 dev eth0 && ip link set eth0 up", COMMAND);
            assert_eq!(attached(&netns, "t0"), "2 and 0");
            assert_eq!(queues(&mut vm), "rx-0 rx-1 tx-0 tx-1");
        }
        streams_both_ways(&mut vm, &netns, [172, 31, 0, 1], 1);
        vm.type_in("poweroff\n");
        vm.ends_with(0, COMMAND);
        let frames = frames(&vm.messages(), "t0");
        assert!(
            frames.len() == if counts_frames() { 2 } else { 0 }
                && frames.iter().all(|&(sent, received)| sent > 100 && received > 100),
            "{frames:?}"
        );
        netns.is_as(&before);
    }

    #[test]
    fn a_guest_that_wants_fewer_pairs_than_there_are_has_all_its_frames() {
        let kernel = need!(stock::fastest());
        let netns = need!(Netns::new());
        netns.sh("ip tuntap add mine mode tap multi_queue; ip link set mine up; ip link set mine down");
        let before = netns.state();
        let net = "tap=mine,host=172.31.0.1/24,queues=3";
        let mut vm = kernel.boot(&netns, "", &["-v", "--cpus", "1", "--net", net]);
        vm.sh("ip addr add 172.31.0.2/24 dev eth0 && ip link set eth0 up", COMMAND);
        assert_eq!(attached(&netns, "mine"), "1 and 2");
        streams_both_ways(&mut vm, &netns, [172, 31, 0, 1], 1);
        vm.type_in("poweroff\n");
        vm.ends_with(0, COMMAND);
        let frames = frames(&vm.messages(), "mine");
        if counts_frames() {
            assert_eq!((frames.len(), &frames[1..]), (3, &[(0, 0), (0, 0)][..]));
        }
        netns.is_as(&before);
    }

    #[test]
    fn a_thread_looks_about_as_long_as_it_is_told() {
        if variant() == Variant::Vhost {
            skip!("it is about wirevm's own threads");
        }
        let kernel = need!(stock::fastest());
        let netns = need!(Netns::new());
        let before = netns.state();
        let net =
            ["-v", "--net", "tap=idle,host=172.31.0.1/24", "--net", "tap=busy,host=172.31.1.1/24,poll=5000"];
        let mut vm = kernel.boot(&netns, "", &net);
        for (nic, subnet) in [(0, "172.31.0"), (1, "172.31.1")] {
            vm.sh(&format!("ip addr add {subnet}.2/24 dev eth{nic} && ip link set eth{nic} up"), COMMAND);
            vm.sh(&format!("ping -c 5 -i 0.2 -W 10 {subnet}.1"), COMMAND);
        }
        vm.type_in("poweroff\n");
        vm.ends_with(0, COMMAND);
        let messages = vm.messages();
        let calls = |link: &str| -> u64 {
            let line =
                messages.lines().find(|line| line.contains(&format!("{link}: sent "))).expect("the counters");
            let calls =
                line.trim_end().strip_suffix(" system calls").and_then(|line| line.rsplit(' ').next());
            calls.and_then(|calls| calls.parse().ok()).unwrap_or_else(|| panic!("{line}"))
        };
        let (idle, busy) = (calls("idle"), calls("busy"));
        assert!(
            idle > 10 && busy > 10 * idle,
            "{idle} system calls, and {busy} of a thread that looks about"
        );
        netns.is_as(&before);
    }

    #[test]
    fn two_inherited_descriptors_of_a_macvtap_are_two_pairs() {
        let kernel = need!(stock::fastest());
        let netns = need!(Netns::new());
        netns.sh(
        "ip link add v0 type veth peer v1; ip link set v0 up; ip link set v1 up; ip addr add 172.31.0.1/24 dev v1; \
         ip link add link v0 name mv0 address 02:00:00:00:00:0a type macvtap mode bridge; ip link set mv0 up",
    );
        let script = "mount -t sysfs sysfs /sys; mount -t tmpfs tmpfs /run; \
        mknod /run/tap c $(cat /sys/class/net/mv0/macvtap/tap*/dev | tr : ' '); \
        exec 5<>/run/tap 6<>/run/tap; exec \"$0\" \"$@\"";
        let mut command = netns.command("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(wirevm_path());
        let args = kernel.args("");
        let args: Vec<_> =
            args.iter().map(String::as_str).chain(["-v", "--cpus", "2", "--net", "fd=5:6"]).collect();
        command.args(varied(&args));
        let mut vm = Vm::start(command.stdin(Stdio::piped()));
        vm.expect_from_shell("guest# ", stock::BOOT);
        vm.sh("ip addr add 172.31.0.2/24 dev eth0 && ip link set eth0 up", COMMAND);
        assert_eq!(queues(&mut vm), "rx-0 rx-1 tx-0 tx-1");
        streams_both_ways(&mut vm, &netns, [172, 31, 0, 1], 2);
        vm.type_in("poweroff\n");
        vm.ends_with(0, COMMAND);
        let frames = frames(&vm.messages(), "mv0");
        assert!(
            frames.len() == if counts_frames() { 2 } else { 0 }
                && frames.iter().all(|&(sent, received)| sent + received > 100),
            "{frames:?}"
        );
    }
}
