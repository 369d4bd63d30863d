//! `wirevm ssh-proxy`: connects ssh to a guest, and hands it the connection (`ProxyUseFdpass`, ssh_config(5)).

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use vmm::client::{ClientError, connect_vsock};
use vmm::info::{MachineInfo, NicInfo};

use super::{SUFFIX, SshError, failed};
use crate::cli::machines;

/// How long a guest may take to accept a connection over vsock, and at one of its addresses.
const OVER_VSOCK: Duration = Duration::from_secs(5);
const AT_ADDRESS: Duration = Duration::from_secs(3);

/// How many addresses are tried. A guest can have its host know of many.
const ADDRESSES_MAX: usize = 8;

/// Connect to a machine's guest, and hand the connection to ssh
#[derive(Debug, Args)]
pub(crate) struct Proxy {
    /// The machine's name; .wirevm behind it is no part of it
    name: String,

    /// The guest's port
    port: u16,
}

/// Connects, and gives the connection to who is behind standard output.
pub(crate) fn run(args: &Proxy) -> ExitCode {
    let name = args.name.strip_suffix(SUFFIX).unwrap_or(&args.name);
    match connect(name, args.port).and_then(|stream| hand_over(&stream)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn connect(name: &str, port: u16) -> Result<OwnedFd, SshError> {
    let mut why: Box<dyn std::error::Error + Send + Sync> = match connect_vsock(name, port.into(), OVER_VSOCK)
    {
        Ok(stream) => return Ok(stream.into()),
        Err(error @ ClientError::Name(_)) => return Err(error.into()),
        Err(error) => error.into(),
    };
    let info = machines::connect(name)?.info()?;
    let mut tried = Vec::new();
    for address in addresses(&info).into_iter().take(ADDRESSES_MAX) {
        let address = with_port(address, port);
        match TcpStream::connect_timeout(&address, AT_ADDRESS) {
            Ok(stream) => return Ok(stream.into()),
            Err(error) => {
                tried.push(address.ip());
                why = error.into();
            }
        }
    }
    Err(SshError::Nowhere { name: name.to_owned(), port, tried, why })
}

/// An address of the guest, and the link that it is on.
type At = (IpAddr, u32);

fn with_port((address, link): At, port: u16) -> SocketAddr {
    match address {
        IpAddr::V6(address) if address.is_unicast_link_local() => {
            SocketAddrV6::new(address, port, 0, link).into()
        }
        address => SocketAddr::new(address, port),
    }
}

/// Where the guest may be reached from here, by its NICs in their order.
fn addresses(info: &MachineInfo) -> Vec<At> {
    let here = std::fs::metadata("/proc/self/ns/net").map(|found| found.ino()).unwrap_or_default();
    let neighbours = |nic: &NicInfo| {
        let known = nic.mac.parse().ok().map(net::neighbours).and_then(Result::ok).unwrap_or_default();
        known.iter().map(|known| (known.address, known.link)).collect()
    };
    let mut all: Vec<At> = Vec::new();
    for nic in &info.nics {
        for at in of_nic(nic, here, || neighbours(nic)) {
            if !all.iter().any(|(known, _)| *known == at.0) {
                all.push(at);
            }
        }
    }
    all
}

/// A link of the host as [`NicInfo`] has it.
#[derive(Deserialize)]
struct Link {
    index: Option<u32>,
    namespace: u64,
}

/// The guest's addresses on a NIC: those that the wire says, then those that this host knows of its `neighbours` on the NIC's own links.
/// Elsewhere, and in another network namespace than `here`, the same address is another's.
fn of_nic(nic: &NicInfo, here: u64, neighbours: impl FnOnce() -> Vec<At>) -> Vec<At> {
    let links: Vec<Link> = serde_json::from_value(nic.links.clone()).unwrap_or_default();
    let own: Vec<_> =
        links.iter().filter(|link| link.namespace == here).filter_map(|link| link.index).collect();
    let Some(&first) = own.first() else { return Vec::new() };
    let mut known: Vec<_> = neighbours().into_iter().filter(|(_, link)| own.contains(link)).collect();
    // Those that a guest has only for the link come last, and of the others those that programs listen at most.
    known.sort_by_key(|(address, _)| match address {
        IpAddr::V4(_) => 0,
        IpAddr::V6(address) => 1 + u8::from(address.is_unicast_link_local()),
    });
    nic.addresses.iter().map(|address| (*address, first)).chain(known).collect()
}

/// Sends the descriptor with a byte, as ssh expects it.
fn hand_over(stream: &OwnedFd) -> Result<(), SshError> {
    let descriptors = [stream.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let sent = sendmsg(io::stdout(), &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL);
    sent.map(drop).map_err(|error| SshError::Host {
        what: "hand the connection over on standard output (ssh has a socket there with ProxyUseFdpass=yes)",
        source: error.into(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn nic(links: serde_json::Value, addresses: &[&str]) -> NicInfo {
        serde_json::from_value(json!({
            "name": "nic0", "spec": "tap", "kind": "tap", "link": "tap0", "mac": "02:00:00:00:00:01",
            "addresses": addresses, "mtu": 1500, "queues": 1, "carrier": "wirevm", "links": links, "hops": [],
        }))
        .unwrap()
    }

    #[test]
    fn a_guest_is_where_its_wire_says_and_then_where_its_links_know_it() {
        let at = |text: &str, link| (text.parse::<IpAddr>().unwrap(), link);
        let known = || vec![at("fe80::1", 8), at("fd00::5", 8), at("10.0.0.9", 9), at("10.0.0.5", 8)];
        let links = json!([{ "name": "tap0", "index": 7, "namespace": 1, "role": "guest" },
            { "name": "br0", "index": 8, "namespace": 1, "role": "bridge" }]);
        let told = nic(links.clone(), &["172.31.0.2"]);
        let all = [at("172.31.0.2", 7), at("10.0.0.5", 8), at("fd00::5", 8), at("fe80::1", 8)];
        assert_eq!(of_nic(&told, 1, known), all);
        assert_eq!(of_nic(&told, 2, known), [], "another namespace");
        assert_eq!(of_nic(&nic(json!([{ "index": null, "namespace": 1 }]), &["172.31.0.2"]), 1, known), []);
        assert_eq!(of_nic(&nic(json!("lies"), &["172.31.0.2"]), 1, known), []);
        assert_eq!(with_port(all[3], 22).to_string(), "[fe80::1%8]:22");
    }
}
