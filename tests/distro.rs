//! Disks of distributions: booted without a kernel beside them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::{TempDir, Vm, guest, handmade, puts, skip, wirevm};

// Prints its command line: the zero page has its address.
guest!(cmdline: "mov esi, [rsi + 0x228]", "lea rbp, [rip + 97f]", "jmp 96f");
guest!(initrd: "mov esi, [rsi + 0x218]", "lea rbp, [rip + 97f]", "jmp 96f");
guest!(hello: puts!("hello\\n"));

const SOON: Duration = Duration::from_secs(30);

/// A program of the host that is not in everybody's path.
fn tool(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/sbin", "/usr/bin"].iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists())
}

/// A bare ext4 file system of these files; none where this host cannot make one.
fn disk(dir: &TempDir, name: &str, files: &[(&str, &[u8])]) -> Option<PathBuf> {
    let tree = dir.path(&format!("{name}.d"));
    for (file, bytes) in files {
        let path = tree.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let image = dir.path(name);
    let mut command = Command::new(tool("mke2fs")?);
    command.args(["-q", "-F", "-t", "ext4", "-U", "01234567-89ab-cdef-0123-456789abcdef", "-d"]);
    let status = command.arg(tree).arg(&image).arg("8M").status().unwrap();
    assert!(status.success());
    Some(image)
}

/// Runs with these options; what the guest says, what wirevm says, and its status.
fn run(args: &[&str]) -> (String, String, i32) {
    let output = wirevm().arg("run").args(args).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code().unwrap())
}

#[test]
fn a_disk_boots_its_own_kernel_with_its_own_command_line() {
    let dir = TempDir::new();
    let kernel = handmade::elf(cmdline());
    let entry = b"title A\nlinux /boot/k\ninitrd /boot/i\noptions ro root=/dev/sda1 quiet\n";
    let files = [
        ("boot/k", &kernel[..]),
        ("boot/i", b"070701"),
        ("boot/loader/entries/a.conf", entry),
        ("etc/x", b""),
        ("usr/x", b""),
    ];
    let Some(image) = disk(&dir, "disk", &files) else { skip!("this host has no mke2fs") };
    let image = image.to_str().unwrap();
    let root = "root=UUID=01234567-89ab-cdef-0123-456789abcdef ro quiet";
    let said = |args: &[&str]| {
        let (console, messages, status) = run(args);
        assert_eq!((&messages[..], status), ("", 0), "{console}");
        console
    };
    assert_eq!(said(&["--disk", image]), format!("{root} console=ttyS0"));
    assert_eq!(
        said(&["--disk", &format!("{image},snapshot=on"), "--cmdline", "debug"]),
        format!("{root} debug")
    );
    assert_eq!(
        said(&["--disk", &format!("{image},ro"), "--transport", "mmio"]),
        format!("{root} console=ttyS0")
    );
    assert_eq!(said(&["--disk", image, "--sandbox", "off"]), format!("{root} console=ttyS0"));
    // A kernel that is given is taken, with the command line that is given.
    let kernel = dir.file("kernel", handmade::elf(cmdline()));
    assert_eq!(said(&["--disk", image, "--kernel", kernel.to_str().unwrap()]), "console=ttyS0");
}

#[test]
fn its_initrds_are_loaded_one_after_another() {
    let dir = TempDir::new();
    let kernel = handmade::elf(initrd());
    let entry = b"linux /k\ninitrd /one\ninitrd /two\n";
    let files = [("k", &kernel[..]), ("one", b"four"), ("two", b"more\0"), ("loader/entries/a.conf", entry)];
    let Some(image) = disk(&dir, "disk", &files) else { skip!("this host has no mke2fs") };
    assert_eq!(run(&["--disk", image.to_str().unwrap()]), ("fourmore".into(), String::new(), 0));
}

#[test]
fn what_does_not_boot_is_refused_with_what_to_do() {
    let dir = TempDir::new();
    let refused = |args: &[&str], status: i32, words: &[&str]| {
        let (_, said, code) = run(&[args, &["--explain"]].concat());
        assert_eq!(code, status, "{said}");
        words.iter().for_each(|word| assert!(said.contains(word), "{word:?} is not in:\n{said}"));
    };
    refused(&[], 2, &["--kernel"]);
    refused(&["--disk", "x", "--initrd", "y"], 2, &["--kernel"]);
    let empty = dir.file("empty", vec![0; 1 << 20]);
    let name = empty.to_str().unwrap();
    let words = [
        "finds nothing to boot in the disk",
        name,
        "neither a partition table nor a file system",
        "try:",
        "--kernel",
    ];
    refused(&["--disk", name], 1, &words);
    let mut xfs = vec![0; 1 << 20];
    xfs[..4].copy_from_slice(b"XFSB");
    let xfs = dir.file("xfs", xfs);
    let words = [
        "its root is xfs, which wirevm cannot read",
        "give --kernel and --initrd, and root=... with --cmdline",
    ];
    refused(&["--disk", xfs.to_str().unwrap()], 1, &words);
    let Some(image) = disk(&dir, "disk", &[("boot/vmlinuz-1", b"no kernel"), ("etc/x", b"")]) else {
        skip!("this host has no mke2fs")
    };
    let inside = format!("{}:/boot/vmlinuz-1", image.display());
    refused(&["--disk", image.to_str().unwrap()], 1, &[&inside, "no kernel for this machine"]);
}

#[test]
fn a_seed_is_read_before_the_guest_is_there() {
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, hello());
    let with = |seed: &Path| run(&["--kernel", kernel.to_str().unwrap(), "--seed", seed.to_str().unwrap()]);
    let seed = dir.path("seed");
    let (_, said, status) = with(&seed);
    assert_eq!(status, 1);
    assert!(said.contains("is no directory") && said.contains("try:"), "{said}");
    fs::create_dir(&seed).unwrap();
    let (_, said, _) = with(&seed);
    assert!(said.contains("has no meta-data, user-data") && said.contains("--seed"), "{said}");
    fs::write(seed.join("user-data"), "#cloud-config\n").unwrap();
    assert_eq!(with(&seed), ("hello\n".into(), String::new(), 0));
}

mod stock {
    use harness::need;
    use harness::netns::Netns;
    use harness::stock::{BOOT, can_run, newest, resources};

    use super::*;

    #[test]
    fn a_guest_reads_its_seed() {
        let dir = TempDir::new();
        let (netns, kernel) = (need!(Netns::new()), need!(newest()));
        let seed = dir.path("seed");
        fs::create_dir(&seed).unwrap();
        fs::write(seed.join("user-data"), "#cloud-config\n".to_owned() + &"- x\n".repeat(5000)).unwrap();
        fs::write(seed.join("network-config"), "version: 2\n").unwrap();
        let mut vm = kernel.boot(&netns, "wirevm.more", &["--name", "web", "--seed", seed.to_str().unwrap()]);
        // The kernel of the tests has no FAT; what it has to be is in the crate's own tests.
        assert_eq!(vm.sh("cat /sys/block/vda/ro", SOON), "1\n");
        assert_eq!(vm.sh("dd if=/dev/vda bs=1 skip=43 count=6 2>/dev/null", SOON), "CIDATA");
        assert_eq!(vm.sh("grep -c '^local-hostname: web' /dev/vda", SOON), "1\n");
        assert_eq!(vm.sh("grep -ac '^- x$' /dev/vda", SOON), "5000\n");
    }

    /// Where a guest's wire leads, and who asks it things.
    struct World {
        host: Netns,
        /// Behind the host's NIC `eth0`, with a DHCP server, where the wire leads there.
        lan: Option<(Netns, Child)>,
    }

    impl World {
        fn routed() -> Result<Self, String> {
            Ok(Self { host: Netns::new()?, lan: None })
        }

        fn lan(dir: &TempDir) -> Result<Self, String> {
            let (host, lan) = (Netns::with_own_run()?, Netns::new()?);
            host.try_sh(&format!(
                "ip link add eth0 type veth peer name eth0 netns {} && ip addr add 172.31.7.9/24 dev eth0 && ip link set eth0 up",
                lan.pid()
            ))?;
            lan.try_sh("ip addr add 172.31.7.1/24 dev eth0 && ip link set eth0 up")?;
            let path = |name: &str| dir.path(name).display().to_string();
            let config = format!(
                "start 172.31.7.2\nend 172.31.7.2\ninterface eth0\nlease_file {}\npidfile {}\noption subnet 255.255.255.0\n\
                 option router 172.31.7.1\n",
                path("leases"),
                path("udhcpd.pid")
            );
            fs::write(path("leases"), "").unwrap();
            let config = dir.file("udhcpd.conf", config);
            let busybox = resources().join("busybox");
            let mut server = lan.command(busybox.to_str().unwrap());
            server.args(["udhcpd", "-f"]).arg(config).stdout(Stdio::null()).stderr(Stdio::null());
            let server = server.spawn().map_err(|error| format!("udhcpd: {error}"))?;
            Ok(Self { host, lan: Some((lan, server)) })
        }

        fn asks(&self) -> &Netns {
            self.lan.as_ref().map_or(&self.host, |(lan, _)| lan)
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            if let Some((_, server)) = &mut self.lan {
                server.kill().unwrap();
                server.wait().unwrap();
            }
        }
    }

    /// Boots Debian's disk on its own kernel to a login, with root let in by its key, its address by DHCP (172.31.7.2), no unit that
    /// failed, and an end by its power button.
    fn debian(wire: &str, world: fn(&TempDir) -> Result<World, String>) {
        need!(can_run());
        let disk = resources().join("debian.raw");
        if !disk.exists() {
            skip!("no disk: run make debian");
        }
        let disk = format!("{},snapshot=on", disk.display());
        let dir = TempDir::new();
        let key = dir.path("key");
        let Some(keygen) = tool("ssh-keygen") else { skip!("this host has no ssh-keygen") };
        let made =
            Command::new(keygen).args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status().unwrap();
        assert!(made.success());
        let world = need!(world(&dir));
        let public = format!("{}.pub", key.display());
        let args =
            ["run", "--memory", "1G", "--disk", &disk, "--net", wire, "--name", "web", "--ssh-key", &public];
        let mut vm = Vm::start_in(&world.host, &[&args[..], &["--cmdline", "console=ttyS0 quiet"]].concat());
        vm.expect("web login: ", BOOT * 2);
        let ssh = format!(
            "ssh -i {} -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=60 \
             -o LogLevel=ERROR root@172.31.7.2",
            key.display()
        );
        // Its SSH server may come up after its terminal.
        world.asks().sh(&format!("for i in $(seq 60); do {ssh} true && exit; sleep 1; done; exit 1"));
        let inside = |command: &str| world.asks().sh(&format!("{ssh} '{command}'")).trim().to_owned();
        assert_eq!(inside("systemctl --failed --no-legend --plain"), "", "{wire}: {}", vm.state());
        assert_eq!(inside("hostname; findmnt -no SOURCE,FSTYPE /"), "web\n/dev/vda1 ext4", "{wire}");
        vm.signal(rustix::process::Signal::TERM);
        vm.ends_with(0, BOOT);
    }

    #[test]
    fn debian_boots_to_a_login_on_a_tap_with_nat() {
        debian("tap,nat,host=172.31.7.1/24", |_| World::routed());
    }

    #[test]
    fn debian_boots_to_a_login_on_a_tap() {
        debian("tap,host=172.31.7.1/24", |_| World::routed());
    }

    #[test]
    fn debian_boots_to_a_login_on_a_tun() {
        debian("tun,host=172.31.7.1/24", |_| World::routed());
    }

    #[test]
    fn debian_boots_to_a_login_on_a_bridge_with_an_uplink() {
        debian("bridge=br0,uplink=eth0", World::lan);
    }

    #[test]
    fn debian_boots_to_a_login_on_a_macvtap() {
        debian("macvtap=eth0", World::lan);
    }
}
