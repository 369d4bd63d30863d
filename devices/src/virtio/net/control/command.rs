//! What a command on the control queue says (virtio 1.3 §5.1.6.5). Nothing is done yet: what makes no sense is an error first.

use std::io;

use net::{Addresses, Iov, Mac, Offloads, RxFilter};
use virtio_bindings::virtio_net::*;

use crate::virtio::net::features::{guest_offloads, may_set};
use crate::virtio::net::queue_pair::{CoalesceLimits, CoalesceSettings};

/// Addresses that each list of a MAC table keeps. A longer list stands for all addresses of its sort, as in every NIC.
const MAX_ADDRESSES: usize = 64;
/// Class and command, before a command's data.
const HEADER_LEN: usize = 2;

/// What a command changes.
pub(super) enum Change {
    Filter(RxFilter),
    /// What the driver takes in the frames it receives.
    Offloads(Offloads),
    /// How long interrupts are held.
    Coalesce(CoalesceSettings),
    /// How many pairs are enabled.
    Pairs(u16),
    /// The driver has announced its guest.
    Announced,
}

/// What `command` changes, with `filter` and `coalescing` before it and `most` pairs at most.
pub(super) fn understand(
    command: &Iov<'_>,
    accepted: u64,
    filter: &RxFilter,
    coalescing: CoalesceSettings,
    most: u16,
) -> io::Result<Change> {
    // A command of a feature that was not negotiated is as unknown as any other.
    let has = |bit: u32| accepted & 1 << bit != 0;
    let (rx, extra) = (has(VIRTIO_NET_F_CTRL_RX), has(VIRTIO_NET_F_CTRL_RX_EXTRA));
    let [class, number] = read(command, 0)?;
    let mut new = filter.clone();
    match (u32::from(class), u32::from(number)) {
        (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC) if rx => new.promiscuous = switch(command)?,
        (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI) if rx => new.all_multicast = switch(command)?,
        (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLUNI) if extra => new.all_unicast = switch(command)?,
        (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_NOMULTI) if extra => new.no_multicast = switch(command)?,
        (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_NOUNI) if extra => new.no_unicast = switch(command)?,
        (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_NOBCAST) if extra => new.no_broadcast = switch(command)?,
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) if rx => set_table(command, &mut new)?,
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) if has(VIRTIO_NET_F_CTRL_MAC_ADDR) => {
            exact(command, HEADER_LEN + 6)?;
            new.mac = Mac::new(read(command, HEADER_LEN)?).map_err(malformed)?;
        }
        (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) if has(VIRTIO_NET_F_MQ) => {
            exact(command, HEADER_LEN + 2)?;
            let pairs = u16::from_le_bytes(read(command, HEADER_LEN)?);
            let valid = (1..=most).contains(&pairs);
            return valid
                .then_some(Change::Pairs(pairs))
                .ok_or_else(|| malformed("there are not so many pairs"));
        }
        (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK) if has(VIRTIO_NET_F_GUEST_ANNOUNCE) => {
            exact(command, HEADER_LEN)?;
            return Ok(Change::Announced);
        }
        (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET)
            if has(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) =>
        {
            exact(command, HEADER_LEN + 8)?;
            let bits = u64::from_le_bytes(read(command, HEADER_LEN)?);
            return may_set(bits, accepted)
                .then(|| Change::Offloads(guest_offloads(bits)))
                .ok_or_else(|| malformed("an offload was not negotiated"));
        }
        (VIRTIO_NET_CTRL_NOTF_COAL, VIRTIO_NET_CTRL_NOTF_COAL_TX_SET) if has(VIRTIO_NET_F_NOTF_COAL) => {
            return Ok(Change::Coalesce(CoalesceSettings { transmit: limits(command)?, ..coalescing }));
        }
        (VIRTIO_NET_CTRL_NOTF_COAL, VIRTIO_NET_CTRL_NOTF_COAL_RX_SET) if has(VIRTIO_NET_F_NOTF_COAL) => {
            return Ok(Change::Coalesce(CoalesceSettings { receive: limits(command)?, ..coalescing }));
        }
        _ => return Err(malformed("there is no such command")),
    }
    Ok(Change::Filter(new))
}

/// `virtio_net_ctrl_mac`, twice (§5.1.6.5.2): the stations, then the groups.
fn set_table(command: &Iov<'_>, filter: &mut RxFilter) -> io::Result<()> {
    let mut at = HEADER_LEN;
    let unicast = addresses(command, &mut at)?;
    let multicast = addresses(command, &mut at)?;
    exact(command, at)?;
    (filter.unicast, filter.multicast) = (unicast, multicast);
    Ok(())
}

/// The list at `at`: how many, then so many addresses; `at` is behind it then.
fn addresses(command: &Iov<'_>, at: &mut usize) -> io::Result<Addresses> {
    let count = u32::from_le_bytes(read(command, *at)?) as usize;
    let first = *at + 4;
    // Before anything is allocated: the driver has really sent so many.
    let end = count.checked_mul(6).and_then(|len| first.checked_add(len));
    *at = end.filter(|&end| end <= command.len()).ok_or_else(|| malformed("a list is cut off"))?;
    if count > MAX_ADDRESSES {
        return Ok(Addresses::Every);
    }
    (0..count).map(|index| read(command, first + 6 * index)).collect::<io::Result<_>>().map(Addresses::Only)
}

/// `virtio_net_ctrl_coal` (§5.1.6.5.9).
fn limits(command: &Iov<'_>) -> io::Result<Option<CoalesceLimits>> {
    exact(command, HEADER_LEN + 8)?;
    let (packets, usecs) = (read(command, HEADER_LEN)?, read(command, HEADER_LEN + 4)?);
    Ok(CoalesceLimits::new(u32::from_le_bytes(packets), u32::from_le_bytes(usecs)))
}

/// The byte of a command that switches something.
fn switch(command: &Iov<'_>) -> io::Result<bool> {
    exact(command, HEADER_LEN + 1)?;
    match read(command, HEADER_LEN)? {
        [0] => Ok(false),
        [1] => Ok(true),
        _ => Err(malformed("a switch is 0 or 1")),
    }
}

fn exact(command: &Iov<'_>, len: usize) -> io::Result<()> {
    if command.len() == len { Ok(()) } else { Err(malformed("the command has another length")) }
}

fn read<const N: usize>(command: &Iov<'_>, at: usize) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    if command.read_at(at, &mut bytes) == N { Ok(bytes) } else { Err(malformed("the command is cut off")) }
}

fn malformed(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

#[cfg(test)]
mod tests {
    use net::IovBuffer;
    use vm_memory::VolatileSlice;

    use super::*;

    /// Whether there is such a command for a driver of these features.
    fn is_known(bytes: &[u8], accepted: u64) -> bool {
        let (mut bytes, mut room) = (bytes.to_vec(), IovBuffer::new());
        let mut command = room.start();
        assert!(command.push(VolatileSlice::from(&mut bytes[..])));
        let filter = RxFilter::new(Mac::new([2, 0, 0, 0, 0, 1]).unwrap());
        understand(&command, accepted, &filter, CoalesceSettings::default(), 4).is_ok()
    }

    #[test]
    fn a_command_is_known_where_its_feature_was_negotiated() {
        const RX: u8 = VIRTIO_NET_CTRL_RX as u8;
        const MAC: u8 = VIRTIO_NET_CTRL_MAC as u8;
        const COAL: u8 = VIRTIO_NET_CTRL_NOTF_COAL as u8;
        const EXTRA: u32 = VIRTIO_NET_F_CTRL_RX_EXTRA;
        let none = [0; 8];
        for (class, number, data, bit) in [
            (RX, VIRTIO_NET_CTRL_RX_PROMISC, &[1][..], VIRTIO_NET_F_CTRL_RX),
            (RX, VIRTIO_NET_CTRL_RX_ALLMULTI, &[1], VIRTIO_NET_F_CTRL_RX),
            (RX, VIRTIO_NET_CTRL_RX_ALLUNI, &[1], EXTRA),
            (RX, VIRTIO_NET_CTRL_RX_NOMULTI, &[1], EXTRA),
            (RX, VIRTIO_NET_CTRL_RX_NOUNI, &[1], EXTRA),
            (RX, VIRTIO_NET_CTRL_RX_NOBCAST, &[1], EXTRA),
            (MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, &none, VIRTIO_NET_F_CTRL_RX),
            (MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET, &[2, 0, 0, 0, 0, 9], VIRTIO_NET_F_CTRL_MAC_ADDR),
            (VIRTIO_NET_CTRL_MQ as u8, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, &[2, 0], VIRTIO_NET_F_MQ),
            (VIRTIO_NET_CTRL_ANNOUNCE as u8, VIRTIO_NET_CTRL_ANNOUNCE_ACK, &[], VIRTIO_NET_F_GUEST_ANNOUNCE),
            (
                VIRTIO_NET_CTRL_GUEST_OFFLOADS as u8,
                VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET,
                &none,
                VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
            ),
            (COAL, VIRTIO_NET_CTRL_NOTF_COAL_TX_SET, &none, VIRTIO_NET_F_NOTF_COAL),
            (COAL, VIRTIO_NET_CTRL_NOTF_COAL_RX_SET, &none, VIRTIO_NET_F_NOTF_COAL),
        ] {
            let number = number as u8;
            let command = [&[class, number][..], data].concat();
            assert!(is_known(&command, 1 << bit), "{class}.{number} with its feature");
            assert!(!is_known(&command, !(1 << bit)), "{class}.{number} without its feature");
            let more = [&command[..], &[0]].concat();
            assert!(!is_known(&more, u64::MAX), "{class}.{number} with a byte more");
            if let [less @ .., _] = data {
                let less = [&[class, number][..], less].concat();
                assert!(!is_known(&less, u64::MAX), "{class}.{number} with a byte less");
            }
        }
        assert!(!is_known(&[RX, 6, 1], u64::MAX) && !is_known(&[9, 0], u64::MAX));
        assert!(!is_known(&[RX], u64::MAX) && !is_known(&[], u64::MAX));
        assert!(!is_known(&[RX, 0, 2], u64::MAX), "a switch is 0 or 1");
    }
}
