//! Disks: what is refused and why, and what a Linux guest does with one.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{TempDir, Vm, guest, handmade, puts, wirevm, wirevm_path};

guest!(hello: puts!("hello\\n"));
guest!(waits: puts!("here\\n"), "2: hlt", "jmp 2b");

const SOON: Duration = Duration::from_secs(30);

/// A file of so many bytes, all holes.
fn image(dir: &TempDir, name: &str, bytes: u64) -> String {
    let path = dir.path(name);
    File::create(&path).unwrap().set_len(bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Runs with these disks; what wirevm says, and its status.
fn run(dir: &TempDir, disks: &[&str]) -> (i32, String) {
    let kernel = handmade::kernel(dir, hello());
    let mut command = wirevm();
    // Nothing on the host is changed before disks are looked at.
    command.args(["run", "--explain", "--kernel"]).arg(kernel).env("TMPDIR", dir.path(""));
    disks.iter().for_each(|disk| _ = command.args(["--disk", disk]));
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[track_caller]
fn refused(dir: &TempDir, disks: &[&str], words: &[&str]) {
    let (status, said) = run(dir, disks);
    assert_eq!(status, 1, "{said}");
    for word in words.iter().chain(&["error: ", "\n  try:   "]) {
        assert!(said.contains(word), "{word:?} is not in:\n{said}");
    }
}

#[test]
fn what_is_no_disk_is_refused_with_what_to_do() {
    let dir = TempDir::new();
    let path = |name: &str| dir.path(name).to_str().unwrap().to_owned();
    let absent = path("absent.raw");
    refused(
        &dir,
        &[&absent],
        &["cannot open the disk", "No such file", &format!("truncate -s 10G {absent}")],
    );
    let read = format!("{absent},ro");
    refused(&dir, &[&read], &["No such file", "has to be there"]);
    refused(&dir, &["/dev/wirevm-absent"], &["No such file", "lsblk lists them"]);
    refused(&dir, &[&path("")], &["is a directory"]);
    refused(&dir, &["/dev/null"], &["/dev/null is a character device"]);
    let empty = image(&dir, "empty", 0);
    refused(&dir, &[&empty], &["is empty", &format!("truncate -s 10G {empty}")]);
    let odd = image(&dir, "odd", 1000);
    refused(&dir, &[&odd], &["has 1000 bytes", "blocks of 512", &format!("truncate -s %512 {odd}")]);
    for (name, magic, words) in [
        ("a.qcow2", &b"QFI\xfb"[..], ["a qcow2 image", "qemu-img convert -f qcow2 -O raw"]),
        ("a.vmdk", b"KDMV", ["a VMDK image", "qemu-img convert -f vmdk -O raw"]),
        ("a.vhdx", b"vhdxfile", ["a VHDX image", "qemu-img convert -f vhdx -O raw"]),
        ("a.zst", b"\x28\xb5\x2f\xfd", ["a file in zstd", "zstd -dc"]),
    ] {
        let image = image(&dir, name, 1 << 20);
        File::options().write(true).open(&image).unwrap().write_all_at(magic, 0).unwrap();
        refused(&dir, &[&image], &[&words[..], &["format=raw"]].concat());
        assert_eq!(run(&dir, &[&format!("{image},format=raw")]), (0, String::new()));
    }
    let many: Vec<_> = (0..32).map(|number| image(&dir, &number.to_string(), 512)).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    refused(&dir, &many, &["32 disks are more than the", "give --disk"]);
    // Where there is no room for what is written.
    let good = image(&dir, "good", 1 << 20);
    let kernel = handmade::kernel(&dir, hello());
    let mut command = wirevm();
    command.args(["run", "--kernel"]).arg(kernel).args(["--disk", &format!("{good},snapshot=on")]);
    let output = command.env("TMPDIR", "/no/such/place").stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("cannot make a file of 1M") && said.contains("TMPDIR"), "{said}");
}

#[test]
fn a_user_who_may_not_write_is_told_of_ro() {
    if !rustix::process::geteuid().is_root() {
        harness::skip!("it takes root to be another user");
    }
    let dir = TempDir::new();
    let disk = image(&dir, "disk", 1 << 20);
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o644)).unwrap();
    let kernel = handmade::kernel(&dir, hello());
    chown(&disk, Some(65534), Some(65534)).unwrap();
    // Root of /dev/kvm, and of no other user's files.
    let run = |disk: &str| {
        let mut command = Command::new("setpriv");
        command.arg("--bounding-set=-dac_override,-dac_read_search").arg(wirevm_path());
        let output = command.args(["run", "--disk", disk, "--kernel"]).arg(&kernel).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let said = run(&disk);
    assert!(said.contains("for writing") && said.contains(&format!("--disk {disk},ro")), "{said}");
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o000)).unwrap();
    let said = run(&disk);
    assert!(said.contains("Permission denied") && said.contains("that you may read"), "{said}");
}

#[test]
fn a_disk_has_one_writer_or_many_readers() {
    let dir = TempDir::new();
    let disk = image(&dir, "disk", 1 << 20);
    let (ro, snapshot) = (format!("{disk},ro"), format!("{disk},snapshot=on"));
    refused(&dir, &[&disk, &disk], &["disk 0 and disk 1 both are"]);
    refused(&dir, &[&ro, &disk], &["disk 0 and disk 1 both are"]);
    assert_eq!(run(&dir, &[&ro, &ro, &snapshot, &snapshot]), (0, String::new()));

    let place = TempDir::new();
    let kernel = handmade::kernel(&place, waits());
    let start = |disk: &str| {
        let mut vm = Vm::start(wirevm().args(["run", "--disk", disk, "--kernel"]).arg(&kernel));
        vm.expect("here", SOON);
        vm
    };
    let writer = start(&disk);
    let holder = format!("in use by process {} (", writer.machine_pid());
    for other in [&disk, &ro, &snapshot] {
        refused(&dir, &[other], &[&holder, "wirevm"]);
    }
    drop(writer);
    let _reader = start(&ro);
    refused(&dir, &[&disk], &["in use by process", "add snapshot=on or ro"]);
    assert_eq!(run(&dir, &[&ro]), (0, String::new()));
}

#[test]
fn nothing_is_left_of_a_snapshot() {
    let dir = TempDir::new();
    let disk = image(&dir, "disk", 1 << 20);
    let kernel = handmade::kernel(&dir, waits());
    for place in [Some(dir.path("")), None] {
        let mut command = wirevm();
        command.args(["run", "--disk", &format!("{disk},snapshot=on"), "--kernel"]).arg(&kernel);
        command.env_remove("TMPDIR");
        place.iter().for_each(|place| _ = command.env("TMPDIR", place));
        let mut vm = Vm::start(&mut command);
        vm.expect("here", SOON);
        let mut names: Vec<_> =
            fs::read_dir(dir.path("")).unwrap().map(|it| it.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["disk", "kernel"], "it has no name");
    }
}

#[test]
fn a_disks_threads_are_named_and_confined() {
    let dir = TempDir::new();
    let disk = image(&dir, "disk", 1 << 20);
    let kernel = handmade::kernel(&dir, waits());
    let disk = format!("{disk},queues=2");
    let mut vm = Vm::start(wirevm().args(["-vv", "run", "--disk", &disk, "--kernel"]).arg(&kernel));
    vm.expect("here", SOON);
    // By whichever way this kernel has.
    vm.expect_message("blk0: queue 1 ", SOON);
    let tasks = Path::new("/proc").join(vm.machine_pid().to_string()).join("task");
    let mut names = Vec::new();
    for task in fs::read_dir(tasks).unwrap() {
        let task = task.unwrap().path();
        let name = fs::read_to_string(task.join("comm")).unwrap().trim().to_owned();
        let status = fs::read_to_string(task.join("status")).unwrap();
        assert!(status.contains("Seccomp:\t2\n"), "{name}");
        names.push(name);
    }
    names.retain(|name| name.starts_with("blk"));
    names.sort();
    assert_eq!(names, ["blk0-0", "blk0-1"]);
}

mod stock {
    use harness::netns::Netns;
    use harness::stock::{BOOT, fastest};
    use harness::{Vm, need};
    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Bytes that tell places apart.
    fn pattern(len: usize) -> Vec<u8> {
        (0..len as u64).map(|at| ((at * 31) ^ (at >> 9)) as u8).collect()
    }

    fn md5(bytes: &[u8], dir: &TempDir) -> String {
        let output = Command::new("md5sum").arg(dir.file("sum", bytes)).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
    }

    /// Where the guest has the disk of that serial number.
    fn node(vm: &mut Vm, serial: &str) -> String {
        let found = vm.sh(&format!("grep -lx {serial} /sys/block/*/serial"), SOON);
        format!("/dev/{}", found.trim().split('/').nth(3).unwrap())
    }

    fn boot(disks: &[&str], more: &[&str]) -> Result<Vm, String> {
        let (netns, kernel) = (Netns::new()?, fastest()?);
        let disks = disks.iter().flat_map(|disk| ["--disk", disk]);
        let args: Vec<_> = disks.chain(more.iter().copied()).collect();
        Ok(kernel.boot(&netns, "wirevm.more", &args))
    }

    #[test]
    fn a_guest_finds_its_disks_in_order_and_reads_and_writes_them() {
        let dir = TempDir::new();
        let bytes = pattern(4 << 20);
        let sum = md5(&bytes, &dir);
        let (first, second) = (dir.file("first", &bytes), dir.file("second", &bytes));
        let third = dir.file("third", &bytes);
        let disks = [
            format!("{},serial=one", first.display()),
            format!("{},serial=two,ro,queues=2", second.display()),
            format!("{},serial=three,snapshot=on", third.display()),
        ];
        let disks = disks.each_ref().map(String::as_str);
        let mut vm = need!(boot(&disks, &["--cpus", "2"]));
        assert_eq!(vm.sh("cat /sys/block/vd[abc]/serial", SOON), "onetwothree");
        for disk in ["vda", "vdb", "vdc"] {
            assert!(vm.sh(&format!("md5sum /dev/{disk}"), SOON).starts_with(&sum), "{}", vm.state());
        }
        assert_eq!(vm.sh("cat /sys/block/vda/queue/logical_block_size /sys/block/vdb/ro", SOON), "512\n1\n");
        assert_eq!(vm.sh("ls /sys/block/vdb/mq", SOON).split_whitespace().count(), 2);

        // What the first sectors have goes to the end; past the cache, to be there when dd ends.
        for disk in ["vda", "vdc"] {
            vm.sh(&format!("dd if=/dev/{disk} of=/dev/{disk} bs=64k count=8 seek=56 conv=fsync"), SOON);
        }
        let mut wanted = bytes.clone();
        wanted.copy_within(..512 << 10, 56 * (64 << 10));
        assert!(fs::read(&first).unwrap() == wanted, "what was flushed is in the file");
        let written = md5(&wanted, &dir);
        vm.sh("echo 3 >/proc/sys/vm/drop_caches", SOON);
        assert!(vm.sh("md5sum /dev/vdc", SOON).starts_with(&written));
        assert!(fs::read(&third).unwrap() == bytes, "the file of a snapshot is as it was");
        let refused = vm.shell("dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=fsync", SOON);
        assert!(refused.status != 0 && fs::read(&second).unwrap() == bytes, "{refused:?}");

        // Discarded, it is a hole.
        let blocks = || std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&first).unwrap());
        let before = blocks();
        vm.sh("blkdiscard -o 1048576 -l 1048576 /dev/vda", SOON);
        assert!(blocks() + 2000 < before, "{} blocks, then {}", before, blocks());
        assert!(fs::read(&first).unwrap()[1 << 20..2 << 20].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_was_flushed_survives_a_kill_in_the_middle_of_writes() {
        let dir = TempDir::new();
        let disk = image(&dir, "disk", 64 * MIB);
        let made = Command::new("mke2fs").args(["-q", "-t", "ext4", &disk]).output();
        let made = need!(made.map_err(|error| format!("no mke2fs: {error}")));
        assert!(made.status.success(), "{made:?}");
        let mut vm = need!(boot(&[&format!("{disk},serial=root")], &[]));
        let node = node(&mut vm, "root");
        vm.sh(&format!("mkdir -p /mnt && mount -t ext4 {node} /mnt"), SOON);
        vm.sh("dd if=/dev/urandom of=/mnt/kept bs=64k count=64 && md5sum /mnt/kept >/mnt/sum && sync", BOOT);
        let sum = vm.sh("cat /mnt/sum", SOON);
        vm.type_in("i=0; while :; do i=$((i + 1)); dd if=/dev/urandom of=/mnt/$((i % 20)) bs=16k count=40 conv=fsync 2>/dev/null; echo round-$i; done\n");
        vm.expect("round-5", BOOT);
        let machine = Pid::from_raw(vm.machine_pid() as i32).unwrap();
        kill_process(machine, Signal::KILL).unwrap();
        vm.wait(SOON);
        // Replays the journal: 1 is "corrected", as after any crash; what it finds then must be whole.
        let replayed = Command::new("e2fsck").args(["-p", &disk]).output().unwrap();
        assert!(matches!(replayed.status.code(), Some(0 | 1)), "{replayed:?}");
        let clean = Command::new("e2fsck").args(["-fn", &disk]).output().unwrap();
        assert_eq!(clean.status.code(), Some(0), "{clean:?}");
        let kept = Command::new("debugfs").args(["-R", "cat /kept", &disk]).output().unwrap().stdout;
        assert_eq!(kept.len(), 4 << 20);
        assert_eq!(md5(&kept, &dir), sum.split(' ').next().unwrap());
    }

    #[test]
    fn a_pause_loses_nothing_that_is_on_its_way_to_a_disk() {
        let dir = TempDir::new();
        let run = dir.path("run");
        fs::create_dir(&run).unwrap();
        let disk = image(&dir, "disk", 16 * MIB);
        let (netns, kernel) = (need!(Netns::new()), need!(fastest()));
        let name = format!("disk-{}", std::process::id());
        let args = ["--name", &name, "--disk", &disk];
        let mut vm = kernel.boot(&netns, "wirevm.more", &args);
        vm.sh("dd if=/dev/urandom of=/dev/shm/data bs=64k count=64", BOOT);
        let sum = vm.sh("md5sum </dev/shm/data", SOON);
        vm.type_in("for i in 0 1 2; do dd if=/dev/shm/data of=/dev/vda bs=4k seek=$((i * 1024)) conv=fsync 2>/dev/null; done; echo all''written\n");
        let ask = |what: &str| {
            let output = netns.command(wirevm_path().to_str().unwrap()).args([what, &name]).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        };
        for _ in 0..5 {
            ask("pause");
            std::thread::sleep(Duration::from_millis(50));
            ask("resume");
        }
        vm.expect("allwritten", BOOT);
        let bytes = fs::read(&disk).unwrap();
        for at in 0..3 {
            let part = &bytes[at * (4 << 20)..(at + 1) * (4 << 20)];
            assert_eq!(md5(part, &dir), sum.split(' ').next().unwrap(), "part {at}");
        }
    }

    #[test]
    fn a_host_that_is_full_is_an_io_error_in_the_guest() {
        let dir = TempDir::new();
        let place = dir.path("full");
        fs::create_dir(&place).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "disk"]).arg(&place).status();
        if !mounted.is_ok_and(|status| status.success()) {
            harness::skip!("a file system of bounded size takes a right to mount");
        }
        let disk = place.join("disk");
        File::create(&disk).unwrap().set_len(16 * MIB).unwrap();
        let booted = boot(&[disk.to_str().unwrap()], &[]);
        if let Ok(mut vm) = booted {
            let full = vm.shell("dd if=/dev/zero of=/dev/vda bs=64k count=200 conv=fsync", BOOT);
            let read = vm.shell("dd if=/dev/vda of=/dev/null bs=64k count=10", SOON);
            vm.expect_message("the host cannot write at byte", SOON);
            drop(vm);
            let _ = Command::new("umount").arg(&place).status();
            assert!(full.status != 0, "{full:?}");
            assert_eq!(read.status, 0, "the guest goes on: {read:?}");
        } else {
            let _ = Command::new("umount").arg(&place).status();
            need!(booted);
        }
    }

    #[test]
    fn a_block_device_has_its_own_blocks() {
        let dir = TempDir::new();
        let file = image(&dir, "disk", 16 * MIB);
        let losetup =
            |args: &[&str]| Command::new("losetup").args(args).output().map_err(|error| error.to_string());
        let _ = Command::new("modprobe").arg("loop").output();
        let made = need!(losetup(&["--show", "-f", "-b", "4096", &file]));
        if !made.status.success() {
            harness::skip!("no loop device: {}", String::from_utf8_lossy(&made.stderr));
        }
        let device = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        let booted = boot(&[&format!("{device},direct")], &[]);
        let outcome = booted.map(|mut vm| {
            let blocks =
                vm.sh("cat /sys/block/vda/queue/logical_block_size; blockdev --getsize64 /dev/vda", SOON);
            let copied = vm
                .shell("dd if=/dev/urandom of=/dev/vda bs=64k count=16 conv=fsync && md5sum /dev/vda", BOOT);
            (blocks, copied)
        });
        let found = outcome.as_ref().map(|_| md5(&fs::read(&device).unwrap(), &dir));
        let _ = losetup(&["-d", &device]);
        let (blocks, copied) = need!(&outcome);
        assert_eq!(blocks, "4096\n16777216\n");
        assert!(copied.status == 0 && copied.text.contains(&found.unwrap()), "{copied:?}");
    }
}
