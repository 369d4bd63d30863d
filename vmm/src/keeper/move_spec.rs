//! What a move may change of a NIC whose guest runs, and what stays.

use net::{NetConfig, VhostMode};
use vmm::MachineConfig;

use super::control::ControlError;
use super::nics::{Nic, carrier, refused};

/// What `spec` makes of the NIC that is, or was, on the wire `from`: a whole spec, or keys that are to be others.
///
/// # Errors
/// It makes no sense, or is not for a guest that runs: why, and what helps.
pub(super) fn to_move(
    nic: &Nic,
    from: &NetConfig,
    spec: &str,
    machine: &MachineConfig,
) -> Result<NetConfig, ControlError> {
    let refuse = |reason: String, remedy: &str| {
        Err(ControlError::Refused { reason, remedy: (!remedy.is_empty()).then(|| remedy.to_owned()) })
    };
    let says = |key: &str| spec.split(',').any(|part| part.split('=').next() == Some(key));
    let to = from.or_keys(spec).map_err(|error| refused(&error))?;
    if to.mac.is_some_and(|mac| mac != nic.mac) {
        return refuse(format!("the guest has the MAC {} until its end", nic.mac), "drop mac=");
    }
    if let Some(mtu) = to.mtu.filter(|&mtu| mtu < nic.mtu) {
        let reason = format!("the guest was told an MTU of {} bytes, and {mtu} is less", nic.mtu);
        return refuse(reason, "drop mtu=");
    }
    if matches!(to.wire, net::WireConfig::Fd(_)) {
        let reason = "a machine that runs inherits no descriptors".to_owned();
        return refuse(reason, "name the tap or macvtap itself");
    }
    // Threads have these from their birth.
    for (key, other) in [("poll", to.poll != from.poll), ("affinity", to.affinity != from.affinity)] {
        if says(key) && other {
            return refuse(format!("{key}= holds from the NIC's start"), &format!("drop {key}="));
        }
    }
    if says("link") && to.link != nic.mode {
        let reason = format!("a move leaves the link's mode as it is, which is {}", nic.mode);
        return refuse(
            reason,
            &format!("drop link=, and set it by wirevm net link {} {}", nic.name(), to.link),
        );
    }
    // As many as the NIC has, if nothing is said of it.
    let to = match to.queues == net::Queues::default() {
        true => NetConfig { queues: net::Queues::Number(nic.pairs as u16), ..to },
        false => to,
    };
    let to = NetConfig { affinity: Vec::new(), poll: from.poll, link: from.link, ..to };
    let to = to.for_guest(machine.cpus).map_err(|error| refused(&error))?;
    let queues = usize::from(to.queues.number());
    if queues > nic.pairs {
        let reason = format!("the NIC has {} queue pairs since its start, and {queues} are more", nic.pairs);
        return refuse(reason, "give it more by --net");
    }
    // So is its rate.
    let to = match ["rate", "pps", "burst"].into_iter().any(says) {
        true => to,
        false => NetConfig { rate: from.rate, ..to },
    };
    let vhost = carrier(nic.number, to.vhost, machine.transport)
        .map_err(|error| ControlError::Refused { reason: error.to_string(), remedy: error.remedy() })?;
    if vhost != VhostMode::Off && queues < nic.pairs {
        let reason = format!("vhost-net needs a queue for each of the NIC's {} queue pairs", nic.pairs);
        return refuse(reason, &format!("queues={}", nic.pairs));
    }
    // A wire carries at least what the guest was told.
    let mtu = Some(to.mtu.unwrap_or(nic.mtu));
    let to = NetConfig { mac: Some(nic.mac), mtu, vhost, affinity: from.affinity.clone(), ..to };
    let same = to == (NetConfig { mtu: Some(from.mtu.unwrap_or(nic.mtu)), ..from.clone() });
    // One that has lost it may try to be there again.
    match same && nic.wire.is_some() {
        true => refuse(format!("{} is on that wire already", nic.name()), ""),
        false => Ok(to),
    }
}
