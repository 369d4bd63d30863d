//! `vlan=ID`, or of a trunk `vlan=ID[-ID][:ID[-ID]]...` and `native=ID`: the VLANs of a guest on a bridge (IEEE 802.1Q).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::keys::{Keys, number};
use crate::Error;

/// The VLANs that there are: 0 is a tag of no VLAN, and 4095 is reserved.
const FIRST: u16 = 1;
const LAST: u16 = 4094;

/// VLANs in a row, from 1 to 4094, written `20-30`, or `20` where it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VlanRange {
    pub(crate) first: u16,
    pub(crate) last: u16,
}

/// The VLANs of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vlans {
    /// One, whose frames have no tag at the guest.
    Access(u16),
    /// A trunk.
    Trunk {
        /// Those whose frames have their tags at the guest: in ascending order and apart, at least one.
        tagged: Vec<VlanRange>,
        /// The one whose frames have none; without it, what the guest sends without a tag goes nowhere.
        native: Option<u16>,
    },
}

impl VlanRange {
    pub(crate) fn one(vlan: u16) -> Self {
        Self { first: vlan, last: vlan }
    }

    pub(crate) fn contains(self, vlan: u16) -> bool {
        (self.first..=self.last).contains(&vlan)
    }

    /// What is left of it without `vlan`: two ranges at most.
    pub(crate) fn without(self, vlan: u16) -> impl Iterator<Item = Self> {
        let parts = match self.contains(vlan) {
            true => [Self { last: vlan - 1, ..self }, Self { first: vlan + 1, ..self }],
            false => [self, Self { first: 1, last: 0 }],
        };
        parts.into_iter().filter(|part| part.first <= part.last)
    }

    fn parse(text: &str) -> Option<Self> {
        let vlan = |text| number(text).filter(|vlan| (FIRST..=LAST).contains(vlan));
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let this = Self { first: vlan(first)?, last: vlan(last)? };
        (this.first <= this.last).then_some(this)
    }
}

impl fmt::Display for VlanRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

impl Vlans {
    /// Takes `vlan=` and `native=`.
    pub(super) fn take(keys: &mut Keys<'_>) -> Result<Option<Self>, Error> {
        let vlans = keys.take("vlan", Self::parse)?;
        let native = keys.take("native", |text| {
            number(text).filter(|vlan| (FIRST..=LAST).contains(vlan)).ok_or("a VLAN is from 1 to 4094")
        })?;
        let Some(native) = native else { return Ok(vlans) };
        let refused = |why| Err(Error::value("native", native.to_string(), why));
        let tagged = match vlans {
            None => return refused("it is of a trunk: add vlan=, or for this VLAN alone write it there"),
            Some(Self::Access(vlan)) => vec![VlanRange::one(vlan)],
            Some(Self::Trunk { tagged, .. }) => tagged,
        };
        if tagged.iter().any(|range| range.contains(native)) {
            return refused("its frames have no tag, and in vlan= it is one of those that have");
        }
        Ok(Some(Self::Trunk { tagged, native: Some(native) }))
    }

    /// One VLAN is that of the port, and several are a trunk's.
    fn parse(text: &str) -> Result<Self, &'static str> {
        const FORM: &str = "a VLAN is from 1 to 4094; of a trunk 10:20-30";
        let ranges: Option<Vec<_>> = text.split(':').map(VlanRange::parse).collect();
        let mut tagged = ranges.ok_or(FORM)?;
        if let [one] = tagged[..]
            && !text.contains('-')
        {
            return Ok(Self::Access(one.first));
        }
        tagged.sort_unstable();
        match tagged.windows(2).any(|pair| pair[0].last >= pair[1].first) {
            true => Err("a VLAN is there twice"),
            false => Ok(Self::Trunk { tagged, native: None }),
        }
    }

    /// Those whose frames have tags at the guest.
    pub(crate) fn tagged(&self) -> &[VlanRange] {
        match self {
            Self::Access(_) => &[],
            Self::Trunk { tagged, .. } => tagged,
        }
    }

    /// The one whose frames have none there.
    pub(crate) fn untagged(&self) -> Option<u16> {
        match *self {
            Self::Access(vlan) => Some(vlan),
            Self::Trunk { native, .. } => native,
        }
    }

    /// All of them, the one without tags first.
    pub(crate) fn all(&self) -> impl Iterator<Item = VlanRange> + Clone {
        self.untagged().map(VlanRange::one).into_iter().chain(self.tagged().iter().copied())
    }

    /// The VLANs that are not among them.
    pub(crate) fn others(&self) -> Vec<VlanRange> {
        let mut own: Vec<_> = self.all().collect();
        own.sort_unstable();
        let (mut others, mut next) = (Vec::new(), FIRST);
        for range in own.into_iter().chain([VlanRange::one(LAST + 1)]) {
            others.extend((next < range.first).then(|| VlanRange { first: next, last: range.first - 1 }));
            next = range.last + 1;
        }
        others
    }

    pub(super) fn write_spec(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Access(vlan) => write!(f, ",vlan={vlan}"),
            Self::Trunk { native: Some(native), .. } => write!(f, ",vlan={self},native={native}"),
            Self::Trunk { native: None, .. } => write!(f, ",vlan={self}"),
        }
    }
}

/// The value of `vlan=`.
impl fmt::Display for Vlans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Access(vlan) => write!(f, "{vlan}"),
            // One alone would be that of the port.
            Self::Trunk { tagged, native: None }
                if tagged.len() == 1 && tagged[0].first == tagged[0].last =>
            {
                write!(f, "{0}-{0}", tagged[0].first)
            }
            Self::Trunk { tagged, .. } => {
                let ranges: Vec<_> = tagged.iter().map(VlanRange::to_string).collect();
                f.write_str(&ranges.join(":"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u16, last: u16) -> VlanRange {
        VlanRange { first, last }
    }

    #[test]
    fn one_vlan_is_the_ports_and_several_are_a_trunks() {
        let parse = |text: &str| Vlans::parse(text).unwrap();
        assert_eq!(parse("10"), Vlans::Access(10));
        let trunk = parse("100:20-30:10");
        assert_eq!(trunk.tagged(), [range(10, 10), range(20, 30), range(100, 100)]);
        assert_eq!((trunk.untagged(), trunk.to_string().as_str()), (None, "10:20-30:100"));
        assert_eq!(parse("10-10").to_string(), "10-10");
        for bad in ["", "0", "4095", "10:", ":10", "30-20", "10-", "1-4095", "10:x", "+1", "10,20"] {
            assert!(Vlans::parse(bad).unwrap_err().contains("from 1 to 4094"), "{bad}");
        }
        for twice in ["10:10", "10-20:15", "20:10-20"] {
            assert!(Vlans::parse(twice).unwrap_err().contains("twice"), "{twice}");
        }
    }

    #[test]
    fn a_range_is_in_two_without_one_of_it() {
        let without = |vlan| range(10, 20).without(vlan).collect::<Vec<_>>();
        assert_eq!(without(15), [range(10, 14), range(16, 20)]);
        assert_eq!((without(10), without(20)), (vec![range(11, 20)], vec![range(10, 19)]));
        assert_eq!((without(9), without(0)), (vec![range(10, 20)], vec![range(10, 20)]));
        assert_eq!(range(5, 5).without(5).next(), None);
    }

    #[test]
    fn the_others_are_all_that_are_not_the_guests() {
        let others = |text: &str| Vlans::parse(text).unwrap().others();
        assert_eq!(others("10"), [range(1, 9), range(11, 4094)]);
        assert_eq!(others("1:20-30:31:4094"), [range(2, 19), range(32, 4093)]);
        assert_eq!(others("1-4094"), []);
        let native = Vlans::Trunk { tagged: vec![range(10, 20)], native: Some(5) };
        assert_eq!(native.others(), [range(1, 4), range(6, 9), range(21, 4094)]);
        assert_eq!(native.all().collect::<Vec<_>>(), [range(5, 5), range(10, 20)]);
    }
}
