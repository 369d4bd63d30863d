//! Whatever becomes of it, a wirevm leaves the host as it found it: every wire, and every way to end. And what it tells does
//! the same by hand.

mod by_hand;
mod stock;
mod table;
mod uplink;
mod waits;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::time::Duration;

use harness::fault::{Fault, with_fault};
use harness::netns::Netns;
use harness::{TempDir, Vm, guest, handmade, puts, skip, wirevm_path};
use net::Opened;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use table::{NIC, a_host, each_wire, every};

const SOON: Duration = Duration::from_secs(60);

fn open(spec: &str) -> Result<Opened, net::Error> {
    net::open(&spec.parse().unwrap(), &net::Host::new())
}

/// Runs `work` in the namespace.
fn inside<T: Send + 'static>(host: &Netns, work: impl FnOnce() -> T + Send + 'static) -> T {
    host.spawn(work).join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Tells a process that it is a child: what it does, at which change, on which wire.
const CHILD: &str = "WIREVM_TEST_CHILD";

/// The exit status of a child that has fewer changes.
const OVER: i32 = 3;

/// A wirevm without a guest, in a process of its own: for others start processes here, which have our descriptors until they
/// execute, and so hold our records.
#[test]
fn child() {
    let Ok(what) = std::env::var(CHILD) else { return };
    let [what, at, spec] = what.splitn(3, ' ').collect::<Vec<_>>().try_into().unwrap();
    let at = at.parse().unwrap();
    let must_open = || open(spec).unwrap_or_else(|error| panic!("{spec}: {error}: {error:?}"));
    let reached = match what {
        "start" => {
            // What can be done without may fail.
            let (opened, reached) = with_fault(Fault::Refuse, at, || open(spec));
            assert!(reached || opened.is_ok(), "{opened:?}");
            reached
        }
        "undo" => {
            let opened = must_open();
            with_fault(Fault::Refuse, at, || drop(opened)).1
        }
        "starved" => {
            leave_descriptors(12 + at as u64);
            open(spec).is_err()
        }
        _ => with_fault(Fault::Kill, at, || drop(must_open())).1,
    };
    if !reached {
        exit(OVER);
    }
}

/// Has this process open no more than so many files.
fn leave_descriptors(number: u64) {
    let free = File::open("/dev/null").unwrap().as_raw_fd() as u64;
    let limit = Rlimit { current: Some(free + number), maximum: getrlimit(Resource::Nofile).maximum };
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Has a child do `what` on each wire, once for each change: after it and `then`, `compare` compares.
fn at_each_change(what: &str, then: fn(usize), compare: fn(&Netns, &str, &str)) -> Result<(), String> {
    each_wire(every, |host, spec, before| {
        // One that is inherited was made by another, and only the program inherits.
        for at in (1..).take_while(|_| !spec.starts_with("fd=")) {
            let say = format!("{what} {at} {spec}");
            let ended = inside(host, move || {
                let mut child = Command::new(std::env::current_exe().unwrap());
                let ended = child.args(["--exact", "child", "--nocapture"]).env(CHILD, say).output().unwrap();
                then(at);
                ended
            });
            let as_wanted = ended.status.success() || ended.status.signal() == Some(libc::SIGKILL);
            let over = ended.status.code() == Some(OVER);
            assert!(as_wanted || over, "{spec}: {}", String::from_utf8_lossy(&ended.stderr));
            compare(host, before, &format!("{spec}, {what} at {at}"));
            if over {
                assert!(at > 5 || what == "undo", "{spec} has {at} changes");
                break;
            }
        }
    })
}

fn clean() {
    net::clean(&net::Host::new()).unwrap();
}

#[test]
fn whichever_change_of_a_start_fails_it_is_all_taken_back() {
    if let Err(why) = at_each_change("start", |_| (), Netns::has_everything_as) {
        skip!("{why}");
    }
}

#[test]
fn wherever_descriptors_end_it_is_all_taken_back() {
    if let Err(why) = at_each_change("starved", |_| (), Netns::has_everything_as) {
        skip!("{why}");
    }
}

#[test]
fn whichever_undo_fails_the_rest_goes_on_and_it_is_kept() {
    if let Err(why) = at_each_change("undo", |_| clean(), Netns::has_each_as) {
        skip!("{why}");
    }
}

#[test]
fn whenever_it_is_killed_the_next_one_takes_it_back() {
    let next = |at| if at % 2 == 0 { clean() } else { drop(open("tap,dhcp=off").unwrap()) };
    if let Err(why) = at_each_change("killed", next, Netns::has_everything_as) {
        skip!("{why}");
    }
}

/// Attached to the tun `name` until this is dropped.
fn attached(name: &str) -> File {
    let device = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: all zeroes is an ifreq without a name, and the ioctl reads one.
    let attached = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        name.bytes().enumerate().for_each(|(at, byte)| request.ifr_name[at] = byte as libc::c_char);
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
        libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &request)
    };
    assert_eq!(attached, 0, "{}", std::io::Error::last_os_error());
    device
}

/// As when the dead one has a thread that is not gone yet, or another process of ours was just started.
#[test]
fn a_tap_that_is_held_for_a_moment_more_is_given_its_settings_back() {
    const LAST: usize = 21;
    let only = |wire: &table::Wire| wire.spec.starts_with("tun=tun0");
    let tried = each_wire(only, |host, spec, before| {
        let ended = inside(host, move || {
            let mut child = Command::new(std::env::current_exe().unwrap());
            let say = format!("killed {LAST} {spec}");
            let ended = child.args(["--exact", "child"]).env(CHILD, say).output().unwrap();
            let held = attached("tun0");
            let letting_go = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(60));
                drop(held);
            });
            clean();
            letting_go.join().unwrap();
            ended
        });
        assert_eq!(ended.status.signal(), Some(libc::SIGKILL), "{ended:?}");
        host.has_everything_as(before, spec);
    });
    if let Err(why) = tried {
        skip!("{why}");
    }
}

guest!(hello: puts!("hello\\n"));
guest!(forever: puts!("running\\n"), "2: hlt", "jmp 2b");

/// The files of the guests.
struct Guests {
    ends: PathBuf,
    stays: PathBuf,
    none: PathBuf,
}

impl Guests {
    fn new(dir: &TempDir) -> Self {
        Self {
            ends: dir.file("ends", handmade::elf(hello())),
            stays: dir.file("stays", handmade::elf(forever())),
            none: dir.file("none", "this is no kernel"),
        }
    }
}

/// Starts wirevm, with a descriptor 5 of what [`DEVICE`] made.
fn start(host: &Netns, kernel: &Path, specs: &[&str]) -> Vm {
    const INHERIT: &str = "if [ -e /run/tap ]; then exec 5<>/run/tap; fi; exec \"$@\"";
    let mut command = host.command("sh");
    command.args(["-c", INHERIT, "sh"]).arg(wirevm_path()).args(["run", "--kernel"]).arg(kernel);
    Vm::start(command.args(specs.iter().flat_map(|spec| ["--net", *spec])))
}

/// Starts wirevm with a guest that stays, and waits until that runs.
fn running(host: &Netns, guests: &Guests, specs: &[&str]) -> Vm {
    let mut vm = start(host, &guests.stays, specs);
    vm.expect("running\n", SOON);
    vm
}

fn doctor_cleans(host: &Netns) {
    let doctor =
        host.command("sh").args(["-c", "\"$0\" doctor --clean"]).arg(wirevm_path()).output().unwrap();
    assert!(doctor.status.code().is_some_and(|code| code < 2), "{doctor:?}");
}

#[test]
fn however_it_ends_the_host_is_as_before() {
    let dir = TempDir::new();
    let guests = Guests::new(&dir);
    let tried = each_wire(every, |host, spec, before| {
        let as_before = |how: &str| host.has_everything_as(before, &format!("{spec}, {how}"));
        start(host, &guests.ends, &[spec]).ends_with(0, SOON);
        as_before("ended by its guest");
        for signal in [Signal::TERM, Signal::INT] {
            let mut vm = running(host, &guests, &[spec]);
            vm.signal(signal);
            vm.ends_with(0, SOON);
            as_before(&format!("ended by {signal:?}"));
        }
        for (how, kernel, specs) in [
            ("without a kernel", &guests.none, &[spec][..]),
            ("without its second NIC", &guests.stays, &[spec, "tap=lo"]),
        ] {
            start(host, kernel, specs).ends_with(1, SOON);
            as_before(how);
        }
        drop(running(host, &guests, &[spec]));
        doctor_cleans(host);
        as_before("killed and cleaned");
        drop(running(host, &guests, &[spec]));
        start(host, &guests.ends, &["tap,dhcp=off"]).ends_with(0, SOON);
        as_before("killed and cleaned by the next one");
    });
    if let Err(why) = tried {
        skip!("{why}");
    }
}

#[test]
fn several_at_once_do_not_fight() {
    let host = match a_host() {
        Ok(host) => host,
        Err(why) => skip!("{why}"),
    };
    let dir = TempDir::new();
    let guests = Guests::new(&dir);
    host.sh(&format!("set -e; {NIC}; ip link add far address 02:00:00:00:03:00 type veth peer name end; ip link set far up; ip link set far down"));
    let before = host.settled();
    let specs =
        ["tap", "tap,nat", "bridge=br0,uplink=nic", "macvtap=far", "tap,netns=vpn", "bridge=br0,netns=vpn"];
    for killed in [0, 2, 4] {
        let mut vms: Vec<_> = (0..4).map(|_| start(&host, &guests.stays, &specs)).collect();
        vms.iter_mut().for_each(|vm| drop(vm.expect("running\n", SOON)));
        // Two taps of each have a subnet of their own here, and one there.
        for (place, subnets) in [("", 8), ("-n vpn", 4)] {
            let shown = host.sh(&format!("ip {place} -4 -br address"));
            let of_ours = |line: &&str| line.starts_with("wirevm") && line.contains(" 172.30.");
            let mut found: Vec<_> =
                shown.lines().filter(of_ours).map(|line| line.split_whitespace().nth(2)).collect();
            found.sort();
            found.dedup();
            assert_eq!(found.len(), subnets, "{shown}");
            let ports = host.sh(&format!("ip {place} -br link show master br0"));
            assert_eq!(ports.lines().filter(|line| line.starts_with("wirevm")).count(), 4, "{ports}");
        }
        let live = vms.split_off(killed);
        drop(vms);
        live.iter().for_each(|vm| vm.signal(Signal::TERM));
        for mut vm in live {
            vm.ends_with(0, SOON);
        }
        doctor_cleans(&host);
        host.has_everything_as(&before, &format!("{killed} were killed"));
    }
}
