//! A spec beside another one, as a NIC moves from the one to the other.

use std::net::IpAddr;
use std::str::FromStr;

use super::{NetConfig, WireConfig, WireKind};
use crate::{Error, HostAddress, LinkName};

impl NetConfig {
    /// What `text` says: a spec, or only keys, which are then in place of those that this one has: `vhost=on,queues=2`.
    ///
    /// # Errors
    /// Those of the grammar.
    pub fn or_keys(&self, text: &str) -> Result<Self, Error> {
        let word = text.split([',', '=']).next().unwrap_or_default();
        if WireKind::from_word(word).is_some() || self.wire.kind().key(word).is_none() {
            return text.parse();
        }
        let name = |part: &str| part.split('=').next().unwrap_or_default().to_owned();
        let mut new: Vec<_> = text.split(',').map(name).collect();
        // What only says how another key is meant goes with what that was.
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("vlan", _)) => new.push("native".to_owned()),
                Some(("rate" | "pps", "off")) => new.push("burst".to_owned()),
                _ => {}
            }
        }
        let own = self.to_string();
        let mut parts = own.split(',');
        let wire = parts.next().unwrap_or_default();
        let kept = parts.filter(|part| !new.contains(&name(part)));
        let all: Vec<_> = std::iter::once(wire).chain(kept).chain([text]).collect();
        Self::from_str(&all.join(","))
    }

    /// True where wires of the two cannot be at once, for both want the same of the host: a name, a place for one MAC, an address,
    /// a port, or a NIC that is a bridge's or a macvtap's.
    pub fn excludes(&self, other: &Self) -> bool {
        if self.netns != other.netns {
            return false;
        }
        let shares = |a: &[HostAddress], b: &[HostAddress]| {
            a.iter().any(|a| b.iter().any(|b| a.overlaps(b.address(), b.prefix())))
        };
        let (own, others) = (self.places(), other.places());
        own.iter().any(|name| others.contains(name))
            || shares(self.hosts(), other.hosts())
            || self.guests().iter().any(|guest| other.guests().contains(guest))
            || self
                .forwards()
                .iter()
                .any(|own| other.forwards().iter().any(|other| own.shared_port(other).is_some()))
    }

    /// The links of the host that it takes for itself, or has the guest's MAC at.
    fn places(&self) -> Vec<&LinkName> {
        match &self.wire {
            WireConfig::Tap(tap) => tap.name.iter().collect(),
            WireConfig::Tun(tun) => tun.name.iter().collect(),
            WireConfig::Bridge(bridge) => {
                [Some(&bridge.name), bridge.uplink.as_ref()].into_iter().flatten().collect()
            }
            WireConfig::Macvtap(macvtap) => vec![&macvtap.parent],
            WireConfig::Fd(_) => Vec::new(),
        }
    }

    fn guests(&self) -> &[IpAddr] {
        match &self.wire {
            WireConfig::Tap(tap) => &tap.guests,
            WireConfig::Tun(tun) => &tun.guests,
            WireConfig::Bridge(_) | WireConfig::Macvtap(_) | WireConfig::Fd(_) => &[],
        }
    }

    pub(super) fn hosts(&self) -> &[HostAddress] {
        match &self.wire {
            WireConfig::Tap(tap) => &tap.hosts,
            WireConfig::Tun(tun) => &tun.hosts,
            WireConfig::Macvtap(macvtap) => &macvtap.hosts,
            WireConfig::Bridge(_) | WireConfig::Fd(_) => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> NetConfig {
        text.parse().unwrap()
    }

    #[test]
    fn keys_alone_change_a_spec() {
        let own = spec("tap=t0,host=10.0.0.1/30,mac=02:00:00:00:00:01");
        for (text, wanted) in [
            ("vhost=on", "tap=t0,host=10.0.0.1/30,mac=02:00:00:00:00:01,vhost=on"),
            ("queues=2,vhost=auto", "tap=t0,host=10.0.0.1/30,mac=02:00:00:00:00:01,queues=2,vhost=auto"),
            ("host=10.0.0.5/30", "tap=t0,host=10.0.0.5/30,mac=02:00:00:00:00:01"),
            ("bridge=br0", "bridge=br0"),
            ("tun", "tun"),
        ] {
            assert_eq!(own.or_keys(text).unwrap(), spec(wanted), "{text}");
        }
        let trunk = spec("bridge=br0,vlan=20-30,native=5");
        assert_eq!(trunk.or_keys("vlan=10").unwrap(), spec("bridge=br0,vlan=10"));
        let limited = spec("tap,rate=10M,burst=20");
        assert_eq!(limited.or_keys("rate=off").unwrap().rate, spec("tap").rate);
        assert_eq!(limited.or_keys("rate=50M").unwrap(), spec("tap,rate=50M,burst=20"));
        for text in ["vlan=5", "wlan", "", "mtu=1", "vhost=perhaps"] {
            assert!(own.or_keys(text).is_err(), "{text}");
        }
        // What is neither a kind nor a key of this one is taken for a kind, as on a command line.
        for text in ["wlan", "wlan=w0,vhost=on", "vlan=5", ""] {
            let refusal = text.parse::<NetConfig>().unwrap_err().to_string();
            assert_eq!(own.or_keys(text).unwrap_err().to_string(), refusal, "{text}");
        }
    }

    #[test]
    fn wires_that_want_the_same_exclude_each_other() {
        for (one, other, excludes) in [
            ("tap=t0", "tap=t0,vhost=on", true),
            ("tap=t0", "tap=t1", false),
            ("tap=t0", "tap=t0,netns=blue", false),
            ("bridge=br0", "bridge=br0,vlan=5", true),
            ("bridge=br0", "bridge=br1", false),
            ("bridge=br0,uplink=eth0", "macvtap=eth0", true),
            ("macvtap=eth0", "bridge=br0,uplink=eth0", true),
            ("macvtap=eth0", "macvtap=eth0,mode=vepa", true),
            ("macvtap=eth0", "macvtap=eth1", false),
            ("tap,host=10.0.0.1/24", "tun,host=10.0.0.5/30", true),
            ("tap,host=10.0.0.1/24", "tun,host=10.0.1.5/30", false),
            ("tap,nat,forward=80:80", "tap,nat,forward=80:8080", true),
            ("tap,nat,forward=80:80", "tap,nat,forward=udp:80:80", false),
            ("tun,host=10.0.0.1/32,guest=10.9.0.1", "tun,host=10.0.0.2/32,guest=10.9.0.1", true),
            ("tap", "tap", false),
        ] {
            assert_eq!(spec(one).excludes(&spec(other)), excludes, "{one} {other}");
            assert_eq!(spec(other).excludes(&spec(one)), excludes, "{other} {one}");
        }
    }
}
