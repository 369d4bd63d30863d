//! Where `/proc/sys` is read-only, as in many containers: what passes, what is told, and what can be done beforehand.

mod namespace;

use namespace::machine::{Machine, talk};
use namespace::wire::{open, open_all_told};
use namespace::world::{guest, world};
use namespace::{child as be_child, in_namespace, own_run_directory, run};

#[test]
fn child() {
    be_child();
}

const SPEC: &str = "tap,host=172.31.0.1/24,nat,forward=8080:80";
const LOOPBACK: &str = "--sysctl net.ipv4.conf.default.route_localnet=1";
const ROUTERS: &str = "net.ipv6.conf.default.accept_ra=0";

/// The world behind a container that was started with these settings.
fn container(settings: &str) -> Machine {
    own_run_directory();
    let world = world();
    if !settings.is_empty() {
        run(&format!("sysctl -qw {settings}"));
    }
    run("mount --bind /proc/sys /proc/sys");
    run("mount -o remount,bind,ro /proc/sys");
    world
}

#[test]
fn forwarded_ports_lead_into_the_guest_but_from_loopback() {
    in_namespace("forwarded_ports_lead_into_the_guest_but_from_loopback", || {
        let world = container("net.ipv4.ip_forward=1");
        let (mut opened, _) = open_all_told(SPEC);
        let notices = opened.notices.join("\n");
        assert!(notices.contains("from 127.0.0.1") && notices.contains(LOOPBACK), "{notices}");
        assert!(notices.contains(ROUTERS), "{notices}");
        let guest = guest(&mut opened);
        let server = world.serve("192.0.2.2:80");
        guest.talk("192.0.2.2:80").unwrap();
        assert_eq!(server.visitor(), "192.0.2.1");
        let server = guest.serve("0.0.0.0:80");
        world.talk("192.0.2.1:8080").unwrap();
        assert_eq!(server.visitor(), "192.0.2.2");
        let server = guest.serve("0.0.0.0:80");
        talk("192.0.2.1:8080".parse().unwrap()).unwrap();
        server.visitor();
    });
}

#[test]
fn ports_of_the_loopback_alone_are_refused() {
    in_namespace("ports_of_the_loopback_alone_are_refused", || {
        let _world = container("net.ipv4.ip_forward=1");
        let refused =
            open("tap,host=172.31.0.1/24,nat,forward=8080:80,forward=127.0.0.1:9090:90").unwrap_err();
        assert!(
            refused.to_string().starts_with("forward=tcp:127.0.0.1:9090:90: 127.0.0.1 does not"),
            "{refused}"
        );
        assert!(refused.remedy().unwrap().contains(LOOPBACK), "{refused}");
    });
}

#[test]
fn what_was_set_beforehand_is_enough() {
    in_namespace("what_was_set_beforehand_is_enough", || {
        let _world = container(
            "net.ipv4.ip_forward=1 net.ipv4.conf.default.route_localnet=1 net.ipv6.conf.default.accept_ra=0",
        );
        let (mut opened, _) = open_all_told(SPEC);
        assert_eq!(opened.notices, [""; 0]);
        let guest = guest(&mut opened);
        let server = guest.serve("0.0.0.0:80");
        talk("127.0.0.1:8080".parse().unwrap()).unwrap();
        assert_eq!(server.visitor(), "172.31.0.1");
    });
}

#[test]
fn the_settings_of_the_whole_host_count() {
    in_namespace("the_settings_of_the_whole_host_count", || {
        // All links let connections from 127.0.0.1 out; and one that forwards takes no router, unless it is told to.
        let _world = container(
            "net.ipv4.ip_forward=1 net.ipv4.conf.all.route_localnet=1 net.ipv6.conf.all.forwarding=1",
        );
        let (opened, _) = open_all_told(SPEC);
        assert_eq!(opened.notices, [""; 0]);
    });
}

#[test]
fn without_forwarding_the_remedy_is_a_setting_of_the_container() {
    in_namespace("without_forwarding_the_remedy_is_a_setting_of_the_container", || {
        let _world = container("");
        for (spec, setting) in [
            ("tap,host=172.31.0.1/24,nat", "--sysctl net.ipv4.ip_forward=1 "),
            ("tap,host=fd00::1/64,nat", "--sysctl net.ipv6.conf.all.forwarding=1 "),
        ] {
            let error = net::open(&spec.parse().unwrap(), &net::Host::new()).expect_err(spec);
            assert!(error.remedy().unwrap().contains(setting), "{error:?}");
        }
        assert_eq!(run("nft list ruleset"), "");
    });
}

#[test]
fn ipv6_that_leads_nowhere_is_told_where_ipv4_leads_on() {
    in_namespace("ipv6_that_leads_nowhere_is_told_where_ipv4_leads_on", || {
        let world = container("net.ipv4.ip_forward=1");
        let (mut opened, _) = open_all_told("tap,host=172.31.0.1/24,host=fd00::1/64,nat");
        let notices = opened.notices.join("\n");
        assert!(notices.contains("--sysctl net.ipv6.conf.all.forwarding=1"), "{notices}");
        let guest = guest(&mut opened);
        let server = world.serve("192.0.2.2:80");
        guest.talk("192.0.2.2:80").unwrap();
        assert_eq!(server.visitor(), "192.0.2.1");
    });
}
