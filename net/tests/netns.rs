//! `netns=`: the host's end of a wire in a network namespace of its own.

mod namespace;

use namespace::wire::{open_told, without_ipv6};
use namespace::{
    child as be_child, holding, in_namespace, kill, killed_at, leave, own_run_directory, records, run, state,
};

#[test]
fn child() {
    be_child();
}

fn names() -> Vec<String> {
    run("ip netns list").lines().map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_namespace_is_made_and_goes_with_the_last() {
    in_namespace("a_namespace_is_made_and_goes_with_the_last", || {
        own_run_directory();
        let before = state();
        let (first, told) = open_told("tap,host=172.31.0.1/24,netns=vpn");
        assert_eq!(
            without_ipv6(&told),
            [
                "ip netns add vpn",
                "ip -n vpn tuntap add dev wirevm0 mode tap vnet_hdr",
                "ip -n vpn address add 172.31.0.1/24 dev wirevm0",
                "ip -n vpn link set dev wirevm0 up",
            ]
        );
        assert_eq!((state(), names()), (before.clone(), vec!["vpn".to_owned()]), "nothing is here");
        assert!(run("ip -n vpn address show wirevm0").contains("inet 172.31.0.1/24"));

        // The same subnet and name are free here, and the lines do the same by hand.
        let (here, _) = open_told("tap=wirevm0,host=172.31.0.1/24");
        drop(here);
        let (second, told_second) = open_told("tap,dhcp=off,netns=vpn");
        assert_eq!(second.link, "wirevm1");
        assert_eq!(told_second[0], "ip -n vpn tuntap add dev wirevm1 mode tap vnet_hdr");
        drop(first);
        assert_eq!(names(), ["vpn"]);
        drop(second);
        assert_eq!((state(), names(), records()), (before, vec![], vec![]));

        told.iter().for_each(|line| drop(run(line)));
        assert!(run("ip -n vpn address show wirevm0").contains("inet 172.31.0.1/24"));
    });
}

#[test]
fn a_namespace_that_was_there_stays() {
    in_namespace("a_namespace_that_was_there_stays", || {
        own_run_directory();
        run("ip netns add vpn");
        run("ip -n vpn tuntap add dev tap0 mode tap vnet_hdr");
        run("ip -n vpn link set tap0 up");
        run("ip -n vpn link set tap0 down");
        let inside = || run("ip -n vpn -d address") + &run("ip -n vpn route show table all");
        let before = inside();
        let (opened, told) = open_told("tap=tap0,host=172.31.0.1/24,netns=vpn");
        assert!(told[0].starts_with("# in vpn: attach to tap0: TUNSETIFF "), "{told:?}");
        assert_eq!(told[1], "ip -n vpn address add 172.31.0.1/24 dev tap0");
        assert_ne!(inside(), before);
        // Dropped in another namespace than it was made in.
        drop(opened);
        assert_eq!((inside(), names(), records()), (before.clone(), vec!["vpn".to_owned()], vec![]));

        kill(holding("tap=tap0,host=172.31.0.1/24,netns=vpn"));
        // Typed here, the lines would be for the links of the same name here.
        let left = net::left_over(&net::Host::new()).unwrap().steps.into_iter().map(|step| step.command);
        let cleaned = net::clean(&net::Host::new()).unwrap();
        let cleaned: Vec<_> = cleaned.into_iter().map(|step| step.command).collect();
        assert_eq!((inside(), records()), (before, vec![]), "cleaned in there, from here");
        assert_eq!(left.collect::<Vec<_>>(), cleaned);
        assert_eq!(cleaned[0], "ip -n vpn link set dev tap0 down");
        assert!(cleaned.iter().all(|line| line.starts_with("ip -n vpn ") || line.starts_with("# in vpn: ")));
    });
}

#[test]
fn the_namespace_of_a_killed_one_goes() {
    in_namespace("the_namespace_of_a_killed_one_goes", || {
        own_run_directory();
        let mut step = 1;
        while killed_at("tap,host=172.31.0.1/24,netns=vpn", step) {
            assert_eq!(names(), ["vpn"]);
            net::clean(&net::Host::new()).unwrap();
            assert_eq!((names(), records()), (vec![], vec![]), "step {step}");
            step += 1;
        }
        assert!(step > 4, "{step}");
        // The living one keeps it, and it goes with that.
        let living = holding("tap,netns=vpn");
        kill(holding("tap,netns=vpn"));
        net::clean(&net::Host::new()).unwrap();
        assert_eq!(names(), ["vpn"]);
        leave(living);
        assert_eq!((names(), records()), (vec![], vec![]));
    });
}

#[test]
fn a_namespace_of_the_same_name_is_not_touched() {
    in_namespace("a_namespace_of_the_same_name_is_not_touched", || {
        own_run_directory();
        let (opened, _) = open_told("tap,netns=vpn");
        run("ip netns del vpn");
        run("ip netns add vpn");
        drop(opened);
        assert_eq!((names(), records()), (vec!["vpn".to_owned()], vec![]));

        // What failed inside says the line for inside; and what was made for it is gone.
        run("ip netns del vpn");
        run("ip netns add other");
        run("ip -n other tuntap add dev tap0 mode tun");
        for name in ["other", "vpn"] {
            let spec = format!("tap=tap0,host=172.31.0.1/24,host=fd00::1/64,netns={name}");
            let switch_off = move |step: &net::Step| {
                if step.command.contains("address add 172") {
                    run(&format!("ip netns exec {name} sysctl -w net.ipv6.conf.tap0.disable_ipv6=1"));
                }
            };
            let error = net::open(&spec.parse().unwrap(), &net::Host::new().telling(switch_off)).unwrap_err();
            let (expected, remedy) = match name {
                "other" => ("not a tap", "another name"),
                _ => ("ip -n vpn address add fd00::1/64 dev tap0", "net.ipv6.conf.default.disable_ipv6=0"),
            };
            assert!(error.to_string().contains(expected), "{error}");
            assert!(error.remedy().unwrap().contains(remedy), "{error:?}");
        }
        assert_eq!((names(), records()), (vec!["other".to_owned()], vec![]));
    });
}
