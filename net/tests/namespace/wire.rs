//! Wires, opened from what a person writes after `--net`.

use std::sync::{Arc, Mutex};

use net::{Error, Host, Opened};

pub(crate) fn open(spec: &str) -> Result<Opened, Error> {
    net::open(&spec.parse().unwrap(), &Host::new())
}

/// Opens what must open.
pub(crate) fn opened(spec: &str) -> Opened {
    open(spec).unwrap_or_else(|error| panic!("{spec}: {error}: {error:?}"))
}

/// What tells its steps, and the lines that were told, without why.
pub(crate) fn told() -> (Host, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&lines);
    (Host::new().telling(move |step| told.lock().unwrap().push(step.command.clone())), lines)
}

/// Opens what must open, and returns the lines told, without why and without the rules of nftables.
pub(crate) fn open_told(spec: &str) -> (Opened, Vec<String>) {
    let (opened, mut told) = open_all_told(spec);
    told.retain(|line| !line.contains("nft "));
    (opened, told)
}

/// Opens what must open, and returns the lines told, without why.
pub(crate) fn open_all_told(spec: &str) -> (Opened, Vec<String>) {
    let (host, lines) = told();
    let opened = net::open(&spec.parse().unwrap(), &host);
    let opened = opened.unwrap_or_else(|error| panic!("{spec}: {error}: {error:?}"));
    (opened, lines.lock().unwrap().clone())
}

/// Opens what must open, and returns the lines told that a shell does something for.
pub(crate) fn open_run(spec: &str) -> (Opened, Vec<String>) {
    let (opened, mut told) = open_told(spec);
    told.retain(|line| !line.starts_with('#'));
    (opened, told)
}

/// The lines that a kernel without IPv6 gets too.
pub(crate) fn without_ipv6(told: &[String]) -> Vec<&str> {
    told.iter().map(String::as_str).filter(|line| !line.contains("ipv6")).collect()
}

/// Takes back what the dead have left.
pub(crate) fn clean() {
    net::clean(&Host::new()).unwrap();
}
