//! What outlives a wirevm that is killed, and how the next one takes it back.

mod namespace;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use namespace::wire::opened;
use namespace::{
    child as be_child, elsewhere, features, holding, in_namespace, kill, killed_at, leave, records, run,
    runtime_dir, set_tun_offload, skip, state, tun_attached, tun_header_len, warnings, without_ptrace,
};
use net::{Host, clean, left_over};

#[test]
fn child() {
    be_child();
}

fn cleaned() -> Vec<String> {
    let steps = clean(&Host::new()).unwrap();
    steps.into_iter().map(|step| step.command).collect()
}

#[test]
fn a_persistent_tap_of_a_killed_one_is_as_before() {
    in_namespace("a_persistent_tap_of_a_killed_one_is_as_before", || {
        run("ip tuntap add dev tap0 mode tap vnet_hdr");
        // A link has its queue's discipline from the first time that it is up.
        run("ip link set tap0 up");
        run("ip link set tap0 down");
        let before = state();
        let spec = "tap=tap0,host=172.31.0.1/24,mtu=1400,guard=off";
        let undone = [
            "ip link set dev tap0 down",
            "ip address del 172.31.0.1/24 dev tap0",
            "ip link set dev tap0 mtu 1500",
            "# tap0 as it was: TUNSETVNETHDRSZ 10",
            "# tap0 as it was: TUNSETIFF IFF_TAP|IFF_NO_PI|IFF_VNET_HDR, TUNSETOFFLOAD 0",
        ];
        for step in 1..=4 {
            assert!(killed_at(spec, step));
            // To attach is the first step, and ip(8) shows nothing of it.
            assert_eq!(state() == before, step == 1, "step {step}");
            assert_eq!(records().len(), if step == 1 { 1 } else { 2 });
            let would: Vec<_> =
                left_over(&Host::new()).unwrap().steps.into_iter().map(|step| step.command).collect();
            assert_eq!(would, undone[4 - step..]);
            assert_eq!(cleaned(), would);
            assert_eq!((state(), records()), (before.clone(), vec![]));
        }
        assert!(!killed_at(spec, 5), "it has four steps");
        assert_eq!((state(), records()), (before, vec![]));
    });
}

#[test]
fn what_ip_cannot_set_of_the_tap_of_a_killed_one_is_as_before() {
    in_namespace("what_ip_cannot_set_of_the_tap_of_a_killed_one_is_as_before", || {
        run("ip tuntap add dev tap0 mode tap pi");
        run("ip tuntap add dev tun0 mode tun");
        run("ip tuntap add dev many0 mode tap multi_queue pi");
        for (link, spec, kind) in [
            ("tap0", "tap=tap0,dhcp=off", libc::IFF_TAP),
            ("tun0", "tun=tun0,dhcp=off", libc::IFF_TUN | libc::IFF_NO_PI),
            ("many0", "tap=many0,dhcp=off,queues=2", libc::IFF_TAP | libc::IFF_MULTI_QUEUE),
        ] {
            // What is up once stays so, as far as ip shows.
            run(&format!("ip link set {link} up"));
            run(&format!("ip link set {link} down"));
            // A tun gets its way to make addresses when somebody is attached to it.
            let now = || (state().replace("addrgenmode random", "addrgenmode eui64"), features(link));
            let before = now();
            kill(holding(spec));
            assert!(run(&format!("ip -d link show {link}")).contains("pi off vnet_hdr on"));
            let device = tun_attached(link, kind | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
            set_tun_offload(&device, libc::TUN_F_CSUM | libc::TUN_F_TSO4);
            assert_ne!(features(link), before.1);
            // While somebody is attached, it is his.
            assert!(!cleaned().iter().any(|line| line.starts_with('#')));
            assert_eq!(records().len(), 1);
            drop(device);
            assert_eq!(cleaned().len(), 2);
            assert_eq!((now(), records()), (before, vec![]), "{link}");
            assert_eq!(tun_header_len(&tun_attached(link, kind)), 10);
        }
    });
}

#[test]
fn the_next_one_cleans_and_a_living_one_is_left_alone() {
    in_namespace("the_next_one_cleans_and_a_living_one_is_left_alone", || {
        run("ip tuntap add dev tap0 mode tap vnet_hdr");
        run("ip tuntap add dev tap1 mode tap vnet_hdr");
        for tap in ["tap0", "tap1"] {
            run(&format!("ip link set {tap} up"));
            run(&format!("ip link set {tap} down"));
        }
        let before = state();
        let living = holding("tap=tap0,host=172.31.0.1/24");
        kill(holding("tap=tap1,host=172.31.1.1/24"));
        assert_eq!(left_over(&Host::new()).unwrap().steps.len(), 4, "only of the killed one");
        leave(holding("tap"));
        assert_eq!(left_over(&Host::new()).unwrap().steps.len(), 0);
        assert!(!run("ip address show tap1").contains("172.31.1.1"));
        assert!(run("ip address show tap0").contains("172.31.0.1"));
        leave(living);
        assert_eq!((state(), records()), (before, vec![]));
    });
}

#[test]
fn what_somebody_else_made_since_is_not_touched() {
    in_namespace("what_somebody_else_made_since_is_not_touched", || {
        run("ip tuntap add dev tap0 mode tap vnet_hdr");
        kill(holding("tap=tap0,host=172.31.0.1/24"));
        // Another link of the same name.
        run("ip link del tap0");
        run("ip tuntap add dev tap0 mode tap vnet_hdr");
        run("ip address add 172.31.0.1/24 dev tap0");
        run("ip link set tap0 up");
        let before = state();
        assert_eq!(cleaned(), [""; 0]);
        assert_eq!((state(), records()), (before, vec![]));
    });
}

#[test]
fn a_namespace_that_is_gone_leaves_nothing() {
    in_namespace("a_namespace_that_is_gone_leaves_nothing", || {
        elsewhere(|| {
            run("ip tuntap add dev tap0 mode tap vnet_hdr");
            kill(holding("tap=tap0,host=172.31.0.1/24"));
        })
        .join()
        .unwrap();
        assert_eq!(records().len(), 2);
        let before = state();
        assert_eq!(cleaned(), [""; 0]);
        assert_eq!((state(), records()), (before, vec![]));
    });
}

#[test]
fn what_cannot_be_looked_at_stays_recorded() {
    in_namespace("what_cannot_be_looked_at_stays_recorded", || {
        let holder = elsewhere(|| {
            run("ip tuntap add dev tap0 mode tap vnet_hdr");
            kill(holding("tap=tap0,host=172.31.0.1/24"));
            // It ends with us at the latest.
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
        });
        let mut holder = holder.join().unwrap();
        drop(warnings());
        let before = records();
        assert_eq!(before.len(), 2);
        assert_eq!(without_ptrace(cleaned), [""; 0]);
        assert_eq!(records(), before);
        let told = without_ptrace(|| left_over(&Host::new())).unwrap().steps;
        assert!(
            told.iter().all(|step| step.command.starts_with("# in a network namespace that is out of sight"))
        );
        assert!(told.len() > 1, "the doctor tells of it");

        // A record that another version of wirevm wrote, and one that was being written.
        let text_of = |name: &String| std::fs::read_to_string(runtime_dir().join(name)).unwrap();
        let name = before.iter().find(|name| text_of(name).contains("RemoveAddress")).unwrap();
        let (record, text) = (runtime_dir().join(name), text_of(name));
        std::fs::write(&record, text.replace("RemoveAddress", "AnotherChange")).unwrap();
        assert!(cleaned().iter().all(|line| line.contains(": tap0 as it was: ")));
        assert_eq!(records(), [name.as_str()]);
        assert!(left_over(&Host::new()).unwrap().unreadable.len() == 1);
        let path = record.display().to_string();
        assert!(warnings().iter().any(|line| line.contains(&path) && line.contains("AnotherChange")));
        std::fs::write(&record, text + "{\"at\":1").unwrap();
        let line =
            format!("nsenter --net=/proc/{}/ns/net ip address del 172.31.0.1/24 dev tap0", holder.id());
        assert!(cleaned().contains(&line));
        assert_eq!(records(), [""; 0]);
        holder.kill().unwrap();
        holder.wait().unwrap();
    });
}

#[test]
fn a_record_that_wirevm_did_not_write_is_not_believed() {
    in_namespace("a_record_that_wirevm_did_not_write_is_not_believed", || {
        run("ip tuntap add dev tap0 mode tap vnet_hdr");
        kill(holding("tap=tap0,host=172.31.0.1/24,nat"));
        drop(warnings());
        let before = (state(), records());
        let text_of = |name: &String| std::fs::read_to_string(runtime_dir().join(name)).unwrap();
        let name = before.1.iter().find(|name| text_of(name).contains("RemoveAddress")).unwrap();
        let (record, text) = (runtime_dir().join(name), text_of(name));
        let told = |what: &str| {
            let warnings = warnings();
            let is_it = |line: &&String| line.contains(&record.display().to_string()) && line.contains(what);
            assert!(warnings.iter().any(|line| is_it(&line)), "{what}: {warnings:?}");
        };
        let target = runtime_dir().join("target");
        let key = |key: &str| text.replace("net/ipv4/conf/tap0/forwarding", key);
        assert_ne!(text, key("x"), "it has a switch");
        for forged in [
            key(target.to_str().unwrap()),
            key("../../etc/no-such-file"),
            key("kernel/core_pattern"),
            text.replace(
                r#"{"Down""#,
                r#"{"DeleteNamespace":{"name":"/etc/x","id":{"dev":1,"inode":1}},"x""#,
            ),
        ] {
            std::fs::write(&record, forged).unwrap();
            assert!(
                cleaned().iter().all(|line| line.starts_with('#')),
                "what ip cannot set has another record"
            );
            told("");
            assert!(left_over(&Host::new()).unwrap().unreadable.len() == 1);
        }
        assert!(!target.exists());
        std::fs::write(&record, &text).unwrap();
        // Somebody else's, or one that somebody else may have written to.
        std::fs::set_permissions(&record, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(cleaned(), [""; 0]);
        told("mode 666");
        std::fs::set_permissions(&record, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(&record, Some(65534), None).unwrap();
        assert_eq!(cleaned(), [""; 0]);
        told("user 65534");
        assert!(left_over(&Host::new()).unwrap().unreadable.len() == 1, "the doctor hears of it");
        std::os::unix::fs::chown(&record, Some(0), None).unwrap();
        assert!(run("ip address show tap0").contains("172.31.0.1"));
        assert!(cleaned().contains(&"ip address del 172.31.0.1/24 dev tap0".to_owned()));
        assert_eq!(records(), [""; 0]);
    });
}

/// The inode of the thread's network namespace.
fn own_inode() -> u64 {
    std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
}

/// Runs `work` in a new namespace whose file has that inode, once one is free; false where none is soon.
fn reborn(inode: u64, index: &str, work: fn(&str)) -> bool {
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        let index = index.to_owned();
        let made = elsewhere(move || {
            let is_it = own_inode() == inode;
            if is_it {
                work(&index);
            }
            is_it
        });
        if made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)) {
            return true;
        }
        // A namespace goes some time after its last user, with all that it has.
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

#[test]
fn the_next_namespace_with_the_file_of_one_that_is_gone_is_another() {
    const NAME: &str = "the_next_namespace_with_the_file_of_one_that_is_gone_is_another";
    // The first is recorded by its wirevm alone, the second by all who share it. Others may take the inode.
    const TRIES: usize = 20;
    let tried = |make: fn(), spec: &'static str, link: &'static str, work: fn(&str)| {
        (0..TRIES).any(|_| {
            let dead = elsewhere(move || {
                make();
                kill(holding(spec));
                let shown = run(&format!("ip -o link show {link}"));
                (own_inode(), shown.split(':').next().unwrap().to_owned())
            });
            let (inode, index) = dead.join().unwrap();
            assert!(!records().is_empty());
            reborn(inode, &index, work) || {
                cleaned();
                false
            }
        })
    };
    in_namespace(NAME, move || {
        let tap = tried(
            || drop(run("ip tuntap add dev tap0 mode tap vnet_hdr")),
            "tap=tap0,host=172.31.0.1/24",
            "tap0",
            |index| {
                run("ip tuntap add dev tap0 mode tap vnet_hdr");
                assert_eq!(run("ip -o link show tap0").split(':').next(), Some(index));
                run("ip address add 172.31.0.1/24 dev tap0");
                run("ip link set tap0 up");
                let before = state();
                assert_eq!((cleaned(), state(), records()), (vec![], before, vec![]));
            },
        );
        let bridge = tried(
            || (),
            "bridge=br0",
            "br0",
            |index| {
                run(&format!("ip link add br0 index {index} type bridge"));
                run("ip link set br0 up");
                drop(opened("bridge=br0"));
                run("ip link show br0");
                assert_eq!(records(), [""; 0]);
            },
        );
        if !(tap && bridge) {
            skip(NAME, "no namespace had the inode of the one that was gone");
        }
    });
}
