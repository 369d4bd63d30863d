//! What outlives a wirevm that is killed, and how the next one takes it back.

mod namespace;

use namespace::{
    child as be_child, elsewhere, holding, in_namespace, kill, killed_at, leave, records, run, state,
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
