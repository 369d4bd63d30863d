//! Which frames a NIC wants to receive, as its driver says: plain data between the device and a [`Backend`](crate::Backend).

use serde::{Deserialize, Serialize};

use crate::Mac;

/// What a NIC receives (virtio 1.2 §5.1.6.5.1 and §5.1.6.5.2). A backend does with it what its kind of link needs to bring
/// these frames; bringing more is allowed, for the guest's network stack filters again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RxFilter {
    /// The NIC's own address.
    pub mac: Mac,
    /// Everything on the wire.
    pub promiscuous: bool,
    /// Every frame to a group, whatever [`multicast`](Self::multicast) lists.
    pub all_multicast: bool,
    /// Every frame to one station, whatever [`mac`](Self::mac) and [`unicast`](Self::unicast) say.
    pub all_unicast: bool,
    /// No frame to a group.
    pub no_multicast: bool,
    /// No frame to one station.
    pub no_unicast: bool,
    /// No frame to everybody.
    pub no_broadcast: bool,
    /// Stations beside [`mac`](Self::mac).
    pub unicast: Addresses,
    /// Groups.
    pub multicast: Addresses,
}

/// One list of a NIC's MAC table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Addresses {
    /// These, and no others.
    Only(Vec<[u8; 6]>),
    /// All that there are: the list is longer than the table, or was never set.
    Every,
}

impl RxFilter {
    /// What a NIC receives until its driver says more: its own frames, those to everybody, and those to every group, so
    /// that IPv6 works with a driver that never says anything.
    pub fn new(mac: Mac) -> Self {
        Self {
            mac,
            promiscuous: false,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: Addresses::Only(Vec::new()),
            multicast: Addresses::Every,
        }
    }

    /// The groups whose frames the NIC wants.
    pub fn groups(&self) -> &Addresses {
        match self {
            Self { promiscuous: true, .. } => &Addresses::Every,
            Self { no_multicast: true, .. } => const { &Addresses::Only(Vec::new()) },
            Self { all_multicast: true, .. } => &Addresses::Every,
            Self { multicast, .. } => multicast,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_driver_wants_of_groups() {
        let listed = Addresses::Only(vec![[0x33, 0x33, 0, 0, 0, 1]]);
        let mut filter = RxFilter::new(Mac::new([2, 0, 0, 0, 0, 1]).unwrap());
        assert_eq!(filter.groups(), &Addresses::Every, "until it says more");
        filter.multicast = listed.clone();
        assert_eq!(filter.groups(), &listed);
        filter.all_multicast = true;
        assert_eq!(filter.groups(), &Addresses::Every);
        filter.no_multicast = true;
        assert_eq!(filter.groups(), &Addresses::Only(vec![]));
        filter.promiscuous = true;
        assert_eq!(filter.groups(), &Addresses::Every);
    }
}
