//! What outlives a wirevm that is killed, and how the next one takes it back.

mod namespace;

use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use namespace::wire::opened;
use namespace::{
    child as be_child, elsewhere, holding, in_namespace, kill, killed_at, leave, records, run, runtime_dir,
    skip, state, warnings, without_ptrace,
};
use net::{clean, left_over};

#[test]
fn child() {
    be_child();
}

fn cleaned() -> Vec<String> {
    let mut told = Vec::new();
    clean(&mut |step| told.push(step.command.clone())).unwrap();
    told
}

#[test]
fn a_persistent_tap_of_a_killed_one_is_as_before() {
    in_namespace("a_persistent_tap_of_a_killed_one_is_as_before", || {
        run("ip tuntap add dev tap0 mode tap vnet_hdr");
        // A link has its queue's discipline from the first time that it is up.
        run("ip link set tap0 up");
        run("ip link set tap0 down");
        let before = state();
        let spec = "tap=tap0,host=172.31.0.1/24,mtu=1400";
        let undone = [
            "ip link set dev tap0 down",
            "ip address del 172.31.0.1/24 dev tap0",
            "ip link set dev tap0 mtu 1500",
        ];
        for step in 1..=3 {
            assert!(killed_at(spec, step));
            assert_ne!(state(), before, "step {step}");
            assert_eq!(records().len(), 1);
            let would: Vec<_> = left_over().unwrap().into_iter().map(|step| step.command).collect();
            assert_eq!(would, undone[3 - step..]);
            assert_eq!(cleaned(), would);
            assert_eq!((state(), records()), (before.clone(), vec![]));
        }
        assert!(!killed_at(spec, 4), "it has three steps");
        assert_eq!((state(), records()), (before, vec![]));
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
        assert_eq!(left_over().unwrap().len(), 2, "only of the killed one");
        leave(holding("tap"));
        assert_eq!(left_over().unwrap().len(), 0);
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

        // The same number, under another name.
        kill(holding("tap=tap0,mtu=1400"));
        run("ip link set tap0 down");
        run("ip link set tap0 name other");
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
        assert_eq!(records().len(), 1);
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
        assert_eq!(before.len(), 1);
        assert_eq!(without_ptrace(cleaned), [""; 0]);
        assert_eq!(records(), before);
        assert!(without_ptrace(|| left_over().unwrap().len()) > 1, "the doctor tells of it");

        // A record that another version of wirevm wrote, and one that was being written.
        let record = runtime_dir().join(&before[0]);
        let text = std::fs::read_to_string(&record).unwrap();
        std::fs::write(&record, text.replace("RemoveAddress", "AnotherChange")).unwrap();
        assert_eq!((cleaned(), records()), (vec![], before));
        assert!(left_over().is_err());
        let path = record.display().to_string();
        assert!(warnings().iter().any(|line| line.contains(&path) && line.contains("AnotherChange")));
        std::fs::write(&record, text + "{\"at\":1").unwrap();
        assert!(cleaned().contains(&"ip address del 172.31.0.1/24 dev tap0".to_owned()));
        assert_eq!(records(), [""; 0]);
        holder.kill().unwrap();
        holder.wait().unwrap();
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
            assert_eq!(records().len(), 1);
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
