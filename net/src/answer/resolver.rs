//! The host's DNS servers, as far as a guest can reach them (resolv.conf(5)).

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::NetnsName;
use crate::config::dns::is_reachable;

/// Of these each is looked at, until one names a server that a guest can reach: the namespace's own (ip-netns(8)), the
/// host's, and the servers behind systemd-resolved, whose own address 127.0.0.53 is the host's alone.
fn files(netns: Option<&NetnsName>) -> impl Iterator<Item = PathBuf> {
    let own = netns.map(|name| Path::new("/etc/netns").join(name.as_str()).join("resolv.conf"));
    let hosts = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
    own.into_iter().chain(hosts.map(PathBuf::from))
}

/// The servers for a guest whose host's end is in `netns`, or with us; none where there is none that it can reach.
pub(crate) fn servers(netns: Option<&NetnsName>) -> Vec<IpAddr> {
    let read = |file: PathBuf| fs::read_to_string(file).map(|text| parse(&text)).unwrap_or_default();
    files(netns).map(read).find(|servers| !servers.is_empty()).unwrap_or_default()
}

/// The first server that only the host of `netns` reaches, or ours: on the loopback of that network namespace. Another one's is not
/// asked: whoever is in a namespace shall not be heard outside of it.
pub(crate) fn on_loopback(netns: Option<&NetnsName>) -> Option<IpAddr> {
    let text = fs::read_to_string(files(netns).next()?).ok()?;
    nameservers(&text).find(IpAddr::is_loopback)
}

/// The servers in the text of a resolv.conf that another machine can reach.
fn parse(text: &str) -> Vec<IpAddr> {
    // Link-local ones have the host's interface behind a `%`, and are no address here.
    nameservers(text).filter(is_reachable).collect()
}

fn nameservers(text: &str) -> impl Iterator<Item = IpAddr> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next())?
    });
    lines.filter_map(|address| address.parse().ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn servers_of(text: &str) -> Vec<String> {
        parse(text).iter().map(IpAddr::to_string).collect()
    }

    #[test]
    fn servers_are_those_that_another_machine_can_reach() {
        let text = "# nameserver 1.1.1.1\n; nameserver 1.1.1.2\nsearch example.org\n nameserver\t192.0.2.53 # ours\n\
                    nameserver 2001:db8::53\nnameserver fe80::1%eth0\nnameserver fe80::1\nnameserver 0.0.0.0\n\
                    nameserver 127.0.0.53\nnameserver ::1\nnameservers 192.0.2.1\nnameserver nonsense\nnameserver\n";
        assert_eq!(servers_of(text), ["192.0.2.53", "2001:db8::53"]);
        assert_eq!(servers_of("nameserver 127.0.0.53\noptions edns0 trust-ad\n"), [""; 0]);
    }

    #[test]
    fn a_namespace_has_its_own_before_the_hosts() {
        let all: Vec<_> = files(Some(&"vpn".parse().unwrap())).collect();
        assert_eq!(all[0], Path::new("/etc/netns/vpn/resolv.conf"));
        assert_eq!(all[1..], files(None).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "((nameserver )?[0-9a-f:.%#; ]{0,20}\n){0,5}|.*") {
            prop_assert!(parse(&text).iter().all(is_reachable));
        }
    }
}
