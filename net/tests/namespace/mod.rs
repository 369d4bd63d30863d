//! A network namespace of one's own, for a test to make links in.
#![allow(unsafe_code)]
// Each test file has this module, and uses what it needs of it.
#![allow(dead_code)]

pub(crate) mod guest;
pub(crate) mod machine;
pub(crate) mod settled;
pub(crate) mod wire;
pub(crate) mod world;

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;

/// Says that a test skips, on a line of its own that the test runner counts.
pub(crate) fn skip(name: &str, why: &str) {
    // Not println!, which the test harness keeps to itself when the test passes.
    let _ = writeln!(io::stdout(), "\nskipped: {name}: {why}");
}

/// Runs `test` on a thread of its own in a new, empty network namespace, or says that it skips.
///
/// A thread has a namespace for itself, and the processes that it starts have the same; both end with the test, and
/// every link in it with them.
pub(crate) fn in_namespace(name: &str, test: impl FnOnce() + Send + 'static) {
    // One test at a time: a process that another test starts has our descriptors until it executes, and a tap that it
    // holds for that moment is busy.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    if Command::new("ip").arg("-V").output().is_err() {
        return skip(name, "there is no ip(8)");
    }
    if std::fs::metadata("/dev/net/tun").is_err() {
        return skip(name, "there is no /dev/net/tun");
    }
    own_runtime_dir();
    let result = thread::spawn(move || unshare_network().map(|()| test()));
    let result = result.join();
    let _ = std::fs::remove_file(runtime_dir().join("lock"));
    let _ = std::fs::remove_dir(runtime_dir());
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => skip(name, &format!("no network namespace: {error}")),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Runs `work` on a thread of its own in another new network namespace, for a test that needs two.
pub(crate) fn elsewhere<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    thread::spawn(move || {
        unshare_network().unwrap_or_else(|error| panic!("unshare: {error}"));
        work()
    })
}

/// Puts the thread, and the processes that it starts, into a new, empty network namespace.
fn unshare_network() -> io::Result<()> {
    // SAFETY: CLONE_NEWNET takes no memory and changes this thread only.
    match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Moves this thread into the namespace that `ip netns` calls `name`.
pub(crate) fn enter(name: &str) {
    let file = File::open(format!("/run/netns/{name}")).expect("a namespace of that name");
    // SAFETY: it takes a descriptor, and changes this thread only.
    let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "setns: {}", io::Error::last_os_error());
}

/// Keeps the records of these tests apart from those of the machine, in a directory of this process that goes with it.
fn own_runtime_dir() {
    static DIRECTORY: Once = Once::new();
    DIRECTORY.call_once(|| {
        // A child of a test has its parent's.
        if std::env::var_os("WIREVM_RUNTIME_DIR").is_none() {
            // SAFETY: the tests of this file, which alone read the environment, wait for this.
            unsafe { std::env::set_var("WIREVM_RUNTIME_DIR", runtime_dir()) };
        }
    });
}

/// The directory of records of this process and of those that it starts.
pub(crate) fn runtime_dir() -> PathBuf {
    let own = || std::env::temp_dir().join(format!("wirevm-test-{}", std::process::id()));
    std::env::var_os("WIREVM_RUNTIME_DIR").map_or_else(own, PathBuf::from)
}

/// The names of the records that there are.
pub(crate) fn records() -> Vec<String> {
    let entries = std::fs::read_dir(runtime_dir()).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name != "lock").collect()
}

/// Runs a command of words, which must succeed, and returns what it prints.
pub(crate) fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().expect("a command")).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{command}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a line of a shell, which must succeed.
pub(crate) fn shell(line: &str) {
    let done = Command::new("sh").args(["-c", line]).output().expect("a shell");
    assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
}

/// All that `ip` tells of the namespace's links, addresses and routes.
pub(crate) fn state() -> String {
    ["ip -d link", "ip address", "ip route show table all", "ip -6 route show table all"]
        .map(|command| format!("$ {command}\n{}", run(command)))
        .concat()
}

/// Runs `call` as user `uid` without any capability, on a thread of its own in the same namespace.
pub(crate) fn as_user<T: Send + 'static>(uid: u32, call: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::spawn(move || {
        // The system call and not the function of the C library, which changes every thread.
        // SAFETY: setresuid takes no memory; leaving uid 0 drops this thread's capabilities.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
        assert_eq!(result, 0, "setresuid: {}", io::Error::last_os_error());
        call()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs `call` without the right to look into processes that have more rights, on a thread of its own in the same namespace.
pub(crate) fn without_ptrace<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::spawn(move || {
        let mut rights = rustix::thread::capabilities(None).expect("anybody may ask");
        rights.effective.remove(rustix::thread::CapabilitySet::SYS_PTRACE);
        rights.permitted.remove(rustix::thread::CapabilitySet::SYS_PTRACE);
        rustix::thread::set_capabilities(None, rights).expect("anybody may have less");
        call()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Puts the thread into a mount namespace of its own.
fn unshare_mounts() {
    // SAFETY: CLONE_NEWNS takes no memory and changes this thread only.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "{}", io::Error::last_os_error());
    run("mount --make-rprivate /");
}

/// In a mount namespace of the thread's own, has `/run` empty: what is named there is not seen by the machine.
pub(crate) fn own_run_directory() {
    unshare_mounts();
    run("mount -t tmpfs tmpfs /run");
}

/// Runs `test` in a mount namespace of the thread's own.
pub(crate) fn run_in_own_mounts(test: impl FnOnce()) {
    unshare_mounts();
    test();
}

/// Opens the device of the macvtap `link` of the thread's network namespace, in its own mount namespace.
pub(crate) fn macvtap_device(link: &str) -> File {
    // Of sysfs, what was mounted in another network namespace shows that one's links.
    run("mount -t sysfs sysfs /sys");
    let directory = format!("/sys/class/net/{link}/macvtap");
    let tap = std::fs::read_dir(&directory).unwrap().next().expect("a device").unwrap();
    let number = std::fs::read_to_string(tap.path().join("dev")).unwrap();
    run("mount -t tmpfs tmpfs /dev/net");
    run(&format!("mknod /dev/net/tap c {}", number.trim().replace(':', " ")));
    File::options().read(true).write(true).open("/dev/net/tap").unwrap()
}

/// Has the processes that we start inherit the descriptor.
pub(crate) fn inheritable(file: &File) {
    // SAFETY: F_SETFD takes no memory.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) };
    assert_eq!(result, 0, "F_SETFD: {}", io::Error::last_os_error());
}

/// Makes a tap or tun, or attaches to it, with these `IFF_*` flags.
pub(crate) fn tun_attached(name: &str, flags: libc::c_int) -> File {
    let device = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: all zeroes is an ifreq, which TUNSETIFF reads and writes.
    let result = unsafe {
        let mut ifreq: libc::ifreq = std::mem::zeroed();
        for (to, from) in ifreq.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        ifreq.ifr_ifru.ifru_flags = flags as i16;
        libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &mut ifreq)
    };
    assert_eq!(result, 0, "attach to {name}: {}", io::Error::last_os_error());
    device
}

/// Says which offloads the reader of a tap or tun accepts, as `TUN_F_*` flags.
pub(crate) fn set_tun_offload(device: &File, flags: libc::c_uint) {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) };
    assert_eq!(result, 0, "TUNSETOFFLOAD: {}", io::Error::last_os_error());
}

/// The `IFF_*` flags that a descriptor is attached with.
pub(crate) fn tun_flags(device: &File) -> i16 {
    // SAFETY: all zeroes is an ifreq, which TUNGETIFF writes, the flags too.
    let (result, flags) = unsafe {
        let mut ifreq: libc::ifreq = std::mem::zeroed();
        (libc::ioctl(device.as_raw_fd(), libc::TUNGETIFF, &mut ifreq), ifreq.ifr_ifru.ifru_flags)
    };
    assert_eq!(result, 0, "TUNGETIFF: {}", io::Error::last_os_error());
    flags
}

/// The length of the header before each frame of a descriptor.
pub(crate) fn tun_header_len(device: &File) -> libc::c_int {
    let mut len = 0;
    // SAFETY: TUNGETVNETHDRSZ writes one int.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNGETVNETHDRSZ, &mut len) };
    assert_eq!(result, 0, "TUNGETVNETHDRSZ: {}", io::Error::last_os_error());
    len
}

/// In a mount namespace of the thread's own, puts `/dev/net/tun` there with these permissions, whatever the machine's has;
/// none to have no such device.
pub(crate) fn own_tun_device(mode: Option<u32>) {
    unshare_mounts();
    run("mount -t tmpfs tmpfs /dev/net");
    if let Some(mode) = mode {
        run("mknod /dev/net/tun c 10 200");
        run(&format!("chmod {mode:o} /dev/net/tun"));
    }
}

/// In a mount namespace of the thread's own, has a `/dev` without any device.
pub(crate) fn own_devices() {
    // SAFETY: CLONE_NEWNS takes no memory and changes this thread only.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "{}", io::Error::last_os_error());
    run("mount --make-rprivate /");
    run("mount -t tmpfs tmpfs /dev");
}

/// The features of a link that are on, as the bits of the kernel's `netdev_features.h`, by `ETHTOOL_GFEATURES`.
pub(crate) fn features(link: &str) -> u64 {
    const ETHTOOL_GFEATURES: u32 = 0x3a;
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    // The command, the number of blocks, and of each block: available, requested, active, never changed.
    let mut request = [0u32; 2 + 2 * 4];
    (request[0], request[1]) = (ETHTOOL_GFEATURES, 2);
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    // SAFETY: all zeroes is an ifreq; SIOCETHTOOL reads it and writes `request`, which has room for two blocks.
    let result = unsafe {
        let mut ifreq: libc::ifreq = std::mem::zeroed();
        for (to, from) in ifreq.ifr_name.iter_mut().zip(link.bytes()) {
            *to = from as libc::c_char;
        }
        ifreq.ifr_ifru.ifru_data = request.as_mut_ptr().cast();
        libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &mut ifreq)
    };
    assert_eq!(result, 0, "ETHTOOL_GFEATURES of {link}: {}", io::Error::last_os_error());
    u64::from(request[4]) | u64::from(request[8]) << 32
}

/// Has each send of more than `bytes` be one packet to be cut into such pieces (`UDP_SEGMENT`, udp(7)).
pub(crate) fn set_udp_segment(socket: &std::net::UdpSocket, bytes: libc::c_int) {
    let (value, len) = ((&raw const bytes).cast(), size_of_val(&bytes) as libc::socklen_t);
    // SAFETY: the option is one int, which `bytes` is.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, value, len) };
    assert_eq!(result, 0, "UDP_SEGMENT: {}", io::Error::last_os_error());
}

/// The header length that a persistent tap of one queue is left with, by attaching to it.
pub(crate) fn header_len(tap: &str) -> libc::c_int {
    tun_header_len(&tun_attached(tap, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR))
}

/// What was logged as a warning since the last call. Tests run one at a time.
pub(crate) fn warnings() -> Vec<String> {
    struct Kept(Mutex<Vec<String>>);
    impl log::Log for Kept {
        fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
            metadata.level() <= log::Level::Warn
        }
        fn log(&self, record: &log::Record<'_>) {
            if self.enabled(record.metadata()) {
                self.0.lock().unwrap_or_else(PoisonError::into_inner).push(record.args().to_string());
            }
        }
        fn flush(&self) {}
    }
    static KEPT: Kept = Kept(Mutex::new(Vec::new()));
    if log::set_logger(&KEPT).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
    std::mem::take(&mut KEPT.0.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Opens `spec` in a process of its own, in the thread's namespace, which is killed as soon as it tells its step number
/// `step`, from 1. False where it has fewer, and ends as it should.
///
/// The file of the test has a test that calls [`child`], named `child`.
pub(crate) fn killed_at(spec: &str, step: usize) -> bool {
    let status = start_child(spec, step).wait().expect("wait");
    assert!(status.signal() == Some(libc::SIGKILL) || status.success(), "{spec}: {status}");
    !status.success()
}

/// Opens `spec` in a process of its own and returns when it is open. The process holds it until its standard input is
/// closed, or it is killed.
pub(crate) fn holding(spec: &str) -> Child {
    once_open(start_child(spec, 0), spec)
}

/// The same of a process whose records are in `directory`.
pub(crate) fn holding_with_records_in(directory: &std::path::Path, spec: &str) -> Child {
    once_open(child_command(spec, 0).env("WIREVM_RUNTIME_DIR", directory).spawn().expect("start again"), spec)
}

fn once_open(mut child: Child, spec: &str) -> Child {
    let mut lines = io::BufReader::new(child.stdout.as_mut().expect("piped")).lines();
    let ready = lines.any(|line| line.is_ok_and(|line| line.ends_with("open")));
    assert!(ready, "{spec}: it did not open");
    child
}

/// Has a process of [`holding`] end as it should.
pub(crate) fn leave(mut child: Child) {
    drop(child.stdin.take());
    let status = child.wait().expect("wait");
    assert!(status.success(), "{status}");
}

/// Kills a process of [`holding`].
pub(crate) fn kill(mut child: Child) {
    child.kill().expect("kill");
    child.wait().expect("wait");
}

fn start_child(spec: &str, step: usize) -> Child {
    child_command(spec, step).spawn().expect("start this program again")
}

fn child_command(spec: &str, step: usize) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the path of this program"));
    command
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, format!("{step} {spec}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

/// Tells a process that it is the child of a test.
const CHILD: &str = "WIREVM_TEST_CHILD";

/// What the child does; nothing in any other process.
pub(crate) fn child() {
    let Ok(what) = std::env::var(CHILD) else { return };
    let (step, spec) = what.split_once(' ').expect("a step and a spec");
    let (last, steps): (usize, _) = (step.parse().expect("a number"), AtomicUsize::new(0));
    let host = net::Host::new().telling(move |_| {
        if steps.fetch_add(1, Ordering::Relaxed) + 1 == last {
            // SAFETY: it takes two numbers, and this process does not go on.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
    });
    let opened = net::open(&spec.parse().expect("a spec"), &host);
    let opened = opened.unwrap_or_else(|error| panic!("{spec}: {error}: {error:?}"));
    if last == 0 {
        println!("open");
        let _ = io::stdin().read_line(&mut String::new());
    }
    drop(opened);
}
