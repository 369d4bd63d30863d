//! Bad input: each is refused in words that name it, with a remedy and the right exit status, and nothing is left behind.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use harness::netns::Netns;
use harness::{TempDir, Vm, as_nobody, guest, handmade, need, puts, skip, wirevm, wirevm_path};

guest!(hello: puts!("hello\\n"));

fn refuse(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().expect("wirevm starts")
}

/// The command must fail with `status` and say all of `words`; a refusal after the command line was understood has a remedy.
#[track_caller]
fn refused(output: &Output, status: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert!(text.starts_with("error: "), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in:\n{text}");
    }
    assert!(status == 2 || text.contains("\n  try:   "), "no remedy in:\n{text}");
    assert!(!text.contains("panicked"), "{text}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
}

#[test]
fn a_command_line_that_makes_no_sense_is_a_usage_error() {
    for (args, words) in [
        (&["run"][..], &["--kernel"][..]),
        (&["run", "--kernel", "x", "--cpus", "0"], &["--cpus", "0"]),
        (&["run", "--kernel", "x", "--cpus=-1"], &["--cpus"]),
        (&["run", "--kernel", "x", "--memory", "0"], &["--memory", "too little", "give 32M or more"]),
        (&["run", "--kernel", "x", "--memory", "1M"], &["--memory", "too little", "give 32M or more"]),
        (&["run", "--kernel", "x", "--memory", "99999999T"], &["--memory", "no machine has so much"]),
        (
            &["run", "--kernel", "x", "--memory", "1G,colour=red"],
            &["--memory", "no key \"colour\"", "hugepages="],
        ),
        (&["run", "--kernel", "x", "--memory", "1G,shared=on,mergeable=on"], &["--memory", "mergeable="]),
        (&["run", "--kernel", "x", "--memory", "lots"], &["--memory", "unknown unit 'lots'"]),
        (
            &["run", "--kernel", "x", "--net", "carrier-pigeon"],
            &["--net", "unknown kind \"carrier-pigeon\"", "tap"],
        ),
        (&["run", "--kernel", "x", "--net", "tap,colour=red"], &["--net", "no key \"colour\"", "mtu="]),
        (&["run", "--kernel", "x", "--net", "tap,mtu=9000,mtu=9000"], &["--net", "mtu= is given twice"]),
        (&["run", "--kernel", "x", "--net", "tap,queues=0"], &["--net", "queues=0", "1 to 64"]),
        (
            &["run", "--kernel", "x", "--net", "tap,affinity=0:1"],
            &["--net", "affinity=0:1", "one CPU for each"],
        ),
        (&["run", "--kernel", "x", "--net", "tun,poll=10001"], &["--net", "poll=10001", "10000 at most"]),
        (&["run", "--kernel", "x", "--net", "tap,vhost=yes"], &["--net", "vhost=yes", "on, off or auto"]),
        (&["run", "--kernel", "x", "--net", "tun,vhost=on"], &["--net", "tun has no key \"vhost\""]),
        (&["run", "--kernel", "x", "--net", "tap,mtu=9"], &["--net", "mtu=9", "68"]),
        (&["run", "--kernel", "x", "--net", "tap,mac=01:00:00:00:00:00"], &["--net", "mac=", "multicast"]),
        (&["run", "--kernel", "x", "--net", "tap,host=172.31.0.0/24"], &["--net", "host=172.31.0.0/24"]),
        (&["run", "--kernel", "x", "--net", "tap,forward=80:80"], &["--net", "forward=tcp:80:80", "nat"]),
        (&["run", "--kernel", "x", "--net", "tap=a-name-that-is-too-long"], &["--net", "15"]),
        (&["run", "--kernel", "x", "--console", ""], &["--console"]),
        (&["run", "--kernel", "x", "--uuid", "7"], &["--uuid", "it is like"]),
        (&["run", "--kernel", "x", "--serial-number", ""], &["--serial-number", "1 to 64"]),
        (&["run", "--kernel", "x", "--credential", "name"], &["--credential", "NAME=@FILE"]),
        (&["run", "--kernel", "x", "--credential", "a/b=c"], &["--credential", "letters, digits"]),
        (&["run"], &["--kernel <FILE>", "--image <IMAGE>", "--root <DIR>", "--disk <FILE>"]),
        (&["run", "--net", "tap"], &["--kernel <FILE>", "--disk <FILE>"]),
        (&["walk"], &["walk"]),
    ] {
        refused(&refuse(wirevm().args(args)), 2, words);
    }
}

#[test]
fn its_version_is_under_its_name() {
    for args in [&["--version"][..], &["run", "--version"], &["doctor", "-V"], &["explain", "-V"]] {
        let output = refuse(wirevm().args(args));
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.starts_with("wirevm ") && text.lines().count() == 1,
            "{text}"
        );
        assert!(text["wirevm ".len()..].starts_with(|c: char| c.is_ascii_digit()), "{text}");
    }
}

#[test]
fn a_machine_that_cannot_be_is_refused() {
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, hello());
    let run = |args: &[&str]| refuse(wirevm().args(["run", "--kernel"]).arg(&kernel).args(args));
    refused(&run(&["--cpus", "100000"]), 1, &["100000 vCPUs are more than", "give --cpus"]);
    refused(&run(&["--memory", "2000T"]), 1, &["2000 TiB of memory", "give --memory", "G or less"]);
    refused(&run(&["--memory", "33M,hugepages=2M"]), 1, &["huge pages of 2 MiB"]);
    let nics = std::iter::repeat_n(["--net", "tap"], 32).flatten();
    let alone = ["--rng", "off", "--balloon", "off", "--vsock", "off"];
    let all: Vec<_> = alone.into_iter().chain(nics.clone()).collect();
    refused(&run(&all), 1, &["32 NICs are more than the 31", "--net 31 times"]);
    // A device that is none takes the place of one.
    refused(&run(&all[2..]), 1, &["32 NICs are more than the 30", "--net 30 times"]);
    refused(&run(&all[4..]), 1, &["32 NICs are more than the 29"]);
    refused(&run(&all[6..]), 1, &["32 NICs are more than the 28"]);
    let nics: Vec<_> = ["--transport", "mmio"].into_iter().chain(alone).chain(nics.take(38)).collect();
    refused(&run(&nics), 1, &["19 NICs are more than the 18"]);
    let mac = "tap,mac=02:00:00:00:00:01";
    refused(&run(&["--net", mac, "--net", mac]), 1, &["NIC 0 and NIC 1 both have the MAC 02:00:00:00:00:01"]);
    refused(&run(&["--net", "fd=5:6", "--net", "fd=7:6"]), 1, &["both have the descriptor 6"]);
    let words = ["NIC 0: affinity=1023: CPU 1023 is offline", "online (0"];
    refused(&run(&["--net", "tap,queues=2,affinity=0:1023"]), 1, &words);
    let words = ["NIC 0 (tap): affinity=0:0: there is one CPU for each queue pair"];
    refused(&run(&["--net", "tap,queues=auto,affinity=0:0"]), 1, &words);
    refused(&run(&["--net", "tap=t0", "--net", "tap=t0"]), 1, &["NIC 0 and NIC 1 both have the tap t0"]);
    refused(&run(&["--console", "/no/such/dir/file"]), 1, &["/no/such/dir/file", "No such file"]);
    let gone = ["--credential", "key=@/no/such/key"];
    refused(
        &run(&gone),
        1,
        &["cannot read /no/such/key for the credential key", "No such file", "--credential NAME=@FILE"],
    );
    let long = dir.path("long");
    fs::write(&long, [b'x'; 200_000]).unwrap();
    let long = format!("key=@{}", long.display());
    refused(
        &run(&["--credential", &long]),
        1,
        &["SMBIOS tables", "131072 are set aside", "fewer or shorter"],
    );
    let vhost = ["--transport", "mmio", "--net", "tap", "--net", "tap,vhost=on"];
    refused(&run(&vhost), 1, &["NIC 1: vhost=on goes with --transport pci", "vhost=auto"]);
}

#[test]
fn descriptors_that_end_are_told_and_the_soft_limit_does_not_end_them() {
    let host = match Netns::with_own_run() {
        Ok(host) => host,
        Err(why) => skip!("{why}"),
    };
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, hello());
    let run = |limit: &str| {
        let mut command = host.command("sh");
        let line = format!("ulimit {limit}; exec \"$@\"");
        command.args(["-c", &line, "sh"]).arg(wirevm_path()).args(["run", "--kernel"]).arg(&kernel);
        refuse(command.args(["--net", "tap,queues=30"]))
    };
    refused(&run("-n 40"), 1, &["Too many open files", "raise the limit of open files above 40 (ulimit"]);
    let ended = run("-Sn 40");
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}

#[test]
fn a_file_that_is_no_kernel_is_refused() {
    let dir = TempDir::new();
    let good = handmade::elf(hello());
    let mut narrow = good.clone();
    narrow[4] = 1; // ELFCLASS32
    let mut truncated = good.clone();
    truncated.truncate(good.len() - 1);
    let mut large = good.clone();
    large[0x68..0x70].copy_from_slice(&(1u64 << 30).to_le_bytes()); // p_memsz
    for (name, bytes, words) in [
        ("empty", Vec::new(), &["empty"][..]),
        ("text", b"#!/bin/sh\necho this is no kernel\n".to_vec(), &["text"]),
        ("gzip", [&[0x1f, 0x8b, 8][..], &[0; 1000]].concat(), &["gzip"]),
        ("narrow", narrow, &["32-bit"]),
        ("truncated", truncated, &["truncated"]),
        ("large", large, &["--memory"]),
        // There is no option that takes a disk.
        ("qcow2", b"QFI\xfb and so on".to_vec(), &["a qcow2 disk image: take the kernel out of it"]),
    ] {
        let path = dir.file(name, bytes);
        refused(&refuse(wirevm().arg("run").arg("--kernel").arg(&path)), 1, &[path.to_str().unwrap()]);
        refused(&refuse(wirevm().arg("run").arg("--kernel").arg(&path)), 1, words);
    }
    refused(
        &refuse(wirevm().args(["run", "--kernel", "/no/such/kernel"])),
        1,
        &["/no/such/kernel", "No such file"],
    );
    refused(&refuse(wirevm().args(["run", "--kernel", "/"])), 1, &["directory"]);
    refused(&refuse(wirevm().args(["run", "--kernel", "/dev/zero"])), 1, &["/dev/zero"]);
}

#[test]
fn an_initrd_or_a_command_line_that_does_not_fit_is_refused() {
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, hello());
    let run = |args: &[&str]| refuse(wirevm().args(["run", "--kernel"]).arg(&kernel).args(args));
    let initrd = dir.path("initrd");
    fs::File::create(&initrd).unwrap().set_len(64 << 20).unwrap();
    let initrd = initrd.to_str().unwrap();
    refused(&run(&["--memory", "64M", "--initrd", initrd]), 1, &[initrd, "--memory"]);
    refused(&run(&["--initrd", "/no/such/initrd"]), 1, &["/no/such/initrd", "No such file"]);
    refused(&run(&["--cmdline", &"x".repeat(5000)]), 1, &["command line", "5000"]);
}

#[test]
fn a_user_without_rights_is_told_which() {
    if !rustix::process::geteuid().is_root() {
        skip!("to become another user takes root");
    }
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, hello());
    let kvm = fs::metadata("/dev/kvm").unwrap().permissions().mode();
    let output = refuse(
        as_nobody(Command::new("setpriv"), &dir)
            .arg("run")
            .arg("--kernel")
            .arg(&kernel)
            .args(["--net", "tap"]),
    );
    if kvm & 0o006 == 0o006 {
        // Everybody may use KVM here, so that it is the tap that is refused.
        refused(&output, 1, &["NIC 0 (tap)"]);
    } else {
        refused(&output, 1, &["cannot open /dev/kvm", "Permission denied", "run as root"]);
    }
}

#[test]
fn without_kvm_it_says_how_to_get_it() {
    if !rustix::process::geteuid().is_root() {
        skip!("to hide /dev/kvm takes root");
    }
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, hello());
    // An empty /dev in a mount namespace of its own.
    let script = "mount -t tmpfs tmpfs /dev && exec \"$0\" run --kernel \"$1\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(wirevm_path()).arg(kernel);
    refused(&refuse(&mut command), 1, &["cannot open /dev/kvm", "No such file", "modprobe"]);
}

#[test]
fn a_failed_start_leaves_the_links_as_they_were() {
    let netns = match Netns::new() {
        Ok(netns) => netns,
        Err(why) => skip!("{why}"),
    };
    // Up once, for the kernel gives a link its queueing discipline then and does not take it back.
    netns.sh("ip tuntap add keep mode tap; ip link set keep mtu 1400 up; ip link set keep down");
    let before = netns.state();
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, hello());
    let kernel = kernel.to_str().unwrap();
    let nets = ["--net", "tap=keep,mtu=9000,host=172.31.0.1/24", "--net", "tap=fresh,host=172.31.1.1/24"];
    let failures: [&[&str]; 4] = [
        &["--kernel", "/no/such/kernel"],
        &["--kernel", kernel, "--cmdline", &"x".repeat(5000)],
        &["--kernel", kernel, "--console", "/no/such/dir/file"],
        &["--kernel", kernel, "--net", "tap=lo"],
    ];
    for args in failures {
        let mut vm = Vm::start_in(&netns, &[&["run", "-v"], &nets[..], args].concat());
        vm.ends_with(1, Duration::from_secs(20));
        // What is not to be had leaves the host alone; the others fail when a NIC has been wired.
        let early = args.iter().any(|arg| arg.starts_with("/no/such"));
        let late = args.contains(&"tap=lo");
        let wired = vm.messages().contains("NIC 0 (tap)");
        assert!((!early || !wired) && (!late || wired), "{}", vm.state());
        netns.is_as(&before);
    }
}

#[test]
fn what_others_chose_commands_no_terminal() {
    let (netns, dir) = (need!(Netns::new()), TempDir::new());
    guest!(forever: puts!("running\\n"), "2: hlt", "jmp 2b");
    let kernel = handmade::kernel(&dir, forever());
    // A process has the name of its file.
    let evil = dir.path("\x1b[2J\nerror: x");
    fs::copy(wirevm_path(), &evil).unwrap();
    let mut command = netns.command(evil.to_str().unwrap());
    command.args(["run", "--net", "tap=mine", "--kernel"]).arg(&kernel);
    let mut holder = Vm::start(&mut command);
    holder.expect("running\n", Duration::from_secs(20));
    netns.sh("ip link add \"$(printf 'a\\033[1m;b')\" type veth peer name v && ip addr add 10.9.0.1/24 dev $(printf 'a\\033[1m;b')");
    let run = |net: &str| {
        let mut command = netns.command(wirevm_path().to_str().unwrap());
        let output = refuse(command.args(["run", "--net", net, "--kernel"]).arg(&kernel));
        let commands = |&byte: &u8| byte != b'\n' && byte.is_ascii_control();
        assert!(!output.stderr.iter().any(commands), "{}", String::from_utf8_lossy(&output.stderr));
        output
    };
    let held = run("tap=mine");
    refused(&held, 1, &["(\\x1b[2J\\x0aerror: x) holds it"]);
    assert_eq!(String::from_utf8_lossy(&held.stderr).matches("\nerror").count(), 0);
    // Nor a shell.
    refused(
        &run("tap,host=10.9.0.2/24"),
        1,
        &["a\\x1b[1m;b has 10.9.0.1/24", "del 10.9.0.1/24 dev $'a\\x1b[1m;b'"],
    );
    holder.signal(rustix::process::Signal::TERM);
    holder.wait(Duration::from_secs(20));
}

#[test]
fn a_tap_that_cannot_be_had_is_refused_with_the_reason() {
    let netns = match Netns::new() {
        Ok(netns) => netns,
        Err(why) => skip!("{why}"),
    };
    netns.sh(
        "ip tuntap add many mode tap multi_queue; ip tuntap add three mode tun; ip link add v0 type veth peer name v1; \
         ip tuntap add mine mode tap",
    );
    let dir = TempDir::new();
    guest!(forever: puts!("running\\n"), "2: hlt", "jmp 2b");
    let kernel = handmade::kernel(&dir, forever());
    let kernel = kernel.to_str().unwrap();
    let mut holder = Vm::start_in(&netns, &["run", "--kernel", kernel, "--net", "tap=mine"]);
    holder.expect("running\n", Duration::from_secs(20));
    let pid = holder.pid().to_string();
    let run = |net: &str| {
        refuse(netns.command(wirevm_path().to_str().unwrap()).args(["run", "--kernel", kernel, "--net", net]))
    };
    refused(
        &run("tap=mine"),
        1,
        &["NIC 0 (tap): cannot attach to the tap mine", "busy", &format!("process {pid} (wirevm)")],
    );
    refused(&run("tap=many"), 1, &["NIC 0 (tap): cannot", "many", "multi_queue"]);
    refused(&run("tap=three"), 1, &["NIC 0 (tap)", "three", "tun"]);
    refused(&run("tap=v0"), 1, &["NIC 0 (tap)", "v0"]);
}

#[test]
fn without_vhost_net_it_is_refused_or_done_without_and_said() {
    let netns = match Netns::new() {
        Ok(netns) => netns,
        Err(why) => skip!("{why}"),
    };
    let before = netns.state();
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, hello());
    // A /dev of its own, with all that a guest needs but vhost-net.
    let script = "mount -t tmpfs tmpfs /dev && mkdir /dev/net && mknod /dev/kvm c 10 232 && mknod /dev/net/tun c 10 200 && \
                  exec \"$0\" run --kernel \"$1\" --net \"$2\"";
    let run = |net: &str| {
        let mut command = netns.command("unshare");
        refuse(command.args(["--mount", "sh", "-c", script]).arg(wirevm_path()).arg(&kernel).arg(net))
    };
    let words =
        ["NIC 0 (tap): cannot open /dev/vhost-net", "No such file", "modprobe vhost_net", "vhost=auto"];
    refused(&run("tap,host=172.31.0.1/24,vhost=on"), 1, &words);
    let output = run("tap,host=172.31.0.1/24,vhost=auto");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"hello\n"[..]), "{text}");
    assert!(
        text.lines().count() == 1 && text.contains("NIC 0: wirevm's own threads carry the frames"),
        "{text}"
    );
    netns.is_as(&before);
}

#[test]
fn a_kernel_that_changes_while_it_is_read_is_no_reason_to_panic() {
    let dir = TempDir::new();
    let code = [hello(), &vec![0x90; 8 << 20]].concat();
    let path = handmade::kernel(&dir, &code);
    let shrink = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let mut child = wirevm()
        .arg("run")
        .arg("--kernel")
        .arg(&path)
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    shrink.set_len(4096).unwrap();
    (&shrink).write_all(b"\x7fEL").unwrap();
    let output = {
        std::thread::sleep(Duration::from_millis(500));
        child.kill().unwrap();
        child.wait_with_output().unwrap()
    };
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "{output:?}");
}
