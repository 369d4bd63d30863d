//! What is told, run by hand as root, gives the same host.

use std::sync::{Arc, Mutex};

use harness::netns::Netns;
use harness::skip;

use super::table::{NIC, a_host, each_wire, every};
use super::{inside, open};

/// Specs that attach to the taps and tuns that `told` makes or that `specs` name: without a holder they have no carrier.
fn holders(specs: &[&str], told: &[String]) -> Vec<String> {
    let made = told.iter().filter_map(|line| {
        let (place, rest) = line.split_once("tuntap add dev ")?;
        let [name, "mode", mode, flags @ ..] = &rest.split_whitespace().collect::<Vec<_>>()[..] else {
            return None;
        };
        let queues = if flags.contains(&"multi_queue") { ",queues=2" } else { "" };
        let netns = place.strip_prefix("ip -n ").map(|name| format!(",netns={}", name.trim()));
        Some(format!("{mode}={name},dhcp=off{queues}{}", netns.unwrap_or_default()))
    });
    let named = specs.iter().filter(|spec| spec.starts_with("tap=") || spec.starts_with("tun="));
    let named = named.map(|spec| {
        let keys = || spec.split(',');
        let netns = keys().find(|key| key.starts_with("netns=")).map(|key| format!(",{key}"));
        format!("{},dhcp=off{}", keys().next().unwrap(), netns.unwrap_or_default())
    });
    made.chain(named).collect()
}

/// The lines of the host's state, without records, and without who has the rules.
fn view(host: &Netns) -> Vec<String> {
    let all = host.settled();
    let is_kept = |line: &&str| {
        // The kernel leaves the route of an address that has an end, which has an end too.
        let ends = line.starts_with("2001:db8:1::/64 dev nic ") && line.contains(" expires");
        !line.is_empty() && !line.starts_with("/run/wirevm/") && *line != "flags owner" && !ends
    };
    let mut lines: Vec<_> = all.lines().filter(is_kept).map(plain).collect();
    lines.sort();
    lines
}

/// A line of it without what is another one each time: numbers, MAC addresses and what is made of them.
fn plain(line: &str) -> String {
    let line = line.split(" # ").next().unwrap().trim_end();
    // By hand, a tap stays.
    let line = line.replace("persist off", "persist on");
    let (first, rest) = line.split_once(' ').unwrap_or((&line, ""));
    let is_index = first.ends_with(':') && first.starts_with(|c: char| c.is_ascii_digit());
    let is_mac = |word: &str| word.len() == 17 && word.matches(':').count() == 5;
    let word = |word| match word {
        mac if is_mac(mac) && !mac.starts_with("02:00:00:") && !mac.starts_with("ff:") => "MAC",
        address if address.starts_with("fe80::") && !address.starts_with("fe80::ff:fe00:") => "fe80::MAC",
        // The kernel does not know the state of one that never lost its carrier.
        "UNKNOWN" => "UP",
        // An address that was used at once says so for ever.
        "nodad" => "",
        word => word,
    };
    let words = (if is_index { rest } else { &line }).split(' ').map(word).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

/// The lines that are only in `a`, each with the sign.
fn only(a: &[String], b: &[String], sign: char) -> String {
    let count = |lines: &[String], wanted: &String| lines.iter().filter(|line| *line == wanted).count();
    a.iter().filter(|line| count(a, line) > count(b, line)).map(|line| format!("{sign} {line}\n")).collect()
}

/// How a host differs that has the wires from one where what they tell was run; none where they are the same.
pub(crate) fn difference(host: &Netns, specs: &[&'static str], before: &str) -> Option<String> {
    let own = specs.to_vec();
    let (opened, told) = inside(host, move || {
        let told = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&told);
        let host = net::Host::new().telling(move |step| lines.lock().unwrap().push(step.to_string()));
        let opened = |spec: &&str| net::open(&spec.parse().unwrap(), &host);
        let opened: Result<Vec<_>, _> = own.iter().map(opened).collect();
        (opened.unwrap_or_else(|error| panic!("{own:?}: {error}: {error:?}")), told.lock().unwrap().clone())
    });
    let made = view(host);
    inside(host, move || drop(opened));
    host.has_everything_as(before, &format!("{specs:?}"));

    host.sh(&format!("set -e\n{}", told.join("\n")));
    let holders = holders(specs, &told);
    let held = inside(host, move || holders.iter().map(|spec| open(spec).unwrap()).collect::<Vec<_>>());
    let by_hand = view(host);
    inside(host, move || drop(held));
    let differ = only(&made, &by_hand, '-') + &only(&by_hand, &made, '+');
    (made != by_hand).then(|| format!("{specs:?}\n{}\n{differ}", told.join("\n")))
}

#[test]
fn what_each_wire_tells_gives_the_same_host_by_hand() {
    let differing = Mutex::new(String::new());
    let tried = each_wire(every, |host, spec, before| {
        // What is inherited was made by another.
        let differs = (!spec.starts_with("fd=")).then(|| difference(host, &[spec], before)).flatten();
        *differing.lock().unwrap() += &differs.unwrap_or_default();
    });
    if let Err(why) = tried {
        skip!("{why}");
    }
    let differing = differing.into_inner().unwrap();
    assert!(differing.is_empty(), "by hand (+) it is another host:\n{differing}");
}

#[test]
fn what_several_wires_tell_gives_the_same_host_by_hand() {
    let host = match a_host() {
        Ok(host) => host,
        Err(why) => skip!("{why}"),
    };
    host.sh(&format!("set -e; {NIC}; ip link add far address 02:00:00:00:03:00 type veth peer name end; ip link set far up; ip link set far down"));
    let specs = [
        "tap,nat",
        "bridge=br0,uplink=nic",
        "bridge=br0",
        "macvtap=far,host=203.0.113.1/24",
        "macvtap=far,mode=bridge",
        "tun,host=10.0.0.1/30",
        "tap,nat,netns=vpn",
        "bridge=br0,netns=vpn",
    ];
    let before = host.settled();
    if let Some(differs) = difference(&host, &specs, &before) {
        panic!("by hand (+) it is another host:\n{differs}");
    }
}
