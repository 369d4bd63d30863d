//! Which link an undo is for: names are for people, and a link may get another one while we run.
//!
//! Within a boot a link is told by its network namespace and its **number**. The kernel gives none twice before it has given two
//! thousand million, but whoever makes a link may ask for one that is free. So what else tells two links apart is recorded with the
//! number ([`Mark`]):
//!
//! - the number of its **node in sysfs**, of which no two of one boot are the same (kernfs counts to 64 bits), and which a link keeps
//!   under every name: it settles the question;
//! - where sysfs is not to be had, its kind, its name, and its **permanent address**, which hardware has, and each link that was
//!   made with an address of its own has not.
//!
//! Where all that does not tell, the undo stays on record, and the user hears of it: another link of the same number might lose what
//! is its own, and so might ours.

use serde::{Deserialize, Serialize};

use super::sysfs::Sysfs;
use super::{Change, LinkId, Netlink, Refusal, netlink};

/// What tells a link from another one that has its number later, or its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    #[serde(flatten)]
    id: LinkId,
    /// As `ip -d link` says it.
    kind: String,
    /// Of its directory in sysfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    permanent: Option<[u8; 6]>,
}

/// An undo, with the links that it is for as they were when it was kept; one that was about to be made has no mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) undo: Change,
    pub(crate) marks: Vec<Mark>,
}

/// What became of the links of an undo.
#[derive(Debug)]
pub(crate) enum Found {
    /// They are there, by the names that they have now.
    Same(Change),
    /// One is gone, and what was changed of it with it.
    Gone,
    /// It cannot be told, and why.
    Unsure(String),
}

/// Marks links, and finds them again. Of one network namespace, in which it is called.
#[derive(Default)]
pub(crate) struct Marker {
    /// Ours, once one was wanted.
    sysfs: Option<Option<Sysfs>>,
}

impl Marker {
    /// Closes what it has open.
    pub(crate) fn close(&mut self) {
        self.sysfs = None;
    }

    /// Marks the links of `undo`, as far as they are there.
    pub(crate) fn mark(&mut self, netlink: &mut Netlink, undo: Change) -> Result<Kept, Refusal> {
        let mut marks = Vec::new();
        let by_index: Vec<_> = undo.links().into_iter().map(|link| link.index).collect();
        for index in by_index {
            marks.extend(netlink.link_by_index(index)?.map(|link| self.mark_of(link)));
        }
        let names: Vec<_> = undo.names().into_iter().map(str::to_owned).collect();
        for name in names {
            marks.extend(netlink.link(&name)?.map(|link| self.mark_of(link)));
        }
        Ok(Kept { undo, marks })
    }

    fn mark_of(&mut self, link: netlink::Link) -> Mark {
        let node = self.node(&link.id);
        Mark { id: link.id, kind: link.kind, node, permanent: link.permanent }
    }

    /// Only of a sysfs of our own: the machine's may show another namespace, where a link may have the same number and name.
    fn node(&mut self, link: &LinkId) -> Option<u64> {
        self.sysfs.get_or_insert_with(|| Sysfs::own().ok()).as_ref()?.node(link)
    }

    /// Looks for the links of what was kept.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub(crate) fn find(&mut self, netlink: &mut Netlink, kept: &Kept) -> Result<Found, Refusal> {
        let mut now = kept.undo.clone();
        for link in now.links_mut() {
            let mark = kept.marks.iter().find(|mark| mark.id.index == link.index);
            let Some(found) = netlink.link_by_index(link.index)? else { return Ok(Found::Gone) };
            match self.is_same(&found, link, mark) {
                Sameness::Same => *link = found.id,
                Sameness::Another => return Ok(Found::Gone),
                Sameness::Unsure => return Ok(Found::Unsure(unsure(link, &found.id))),
            }
        }
        // A name alone was all that earlier versions recorded of these.
        for name in kept.undo.names() {
            let Some(mark) = kept.marks.iter().find(|mark| mark.id.name == *name) else { continue };
            let Some(found) = netlink.link_by_index(mark.id.index)? else { return Ok(Found::Gone) };
            match self.is_same(&found, &mark.id, Some(mark)) {
                Sameness::Same => now.rename(name, &found.id.name),
                Sameness::Another => return Ok(Found::Gone),
                Sameness::Unsure => return Ok(Found::Unsure(unsure(&mark.id, &found.id))),
            }
        }
        Ok(Found::Same(now))
    }

    /// Whether the link that has the number of `link` now is that one.
    fn is_same(&mut self, found: &netlink::Link, link: &LinkId, mark: Option<&Mark>) -> Sameness {
        let same = |is| if is { Sameness::Same } else { Sameness::Another };
        let Some(mark) = mark else {
            // We made it after its undo was recorded, and chose a number that nobody else would.
            let is_ours = netlink::is_of_ours(link.index) || found.id.name == link.name;
            return if is_ours { Sameness::Same } else { Sameness::Unsure };
        };
        if let Some((then, now)) = mark.node.zip(self.node(&found.id)) {
            return same(then == now);
        }
        match mark.permanent.zip(found.permanent) {
            _ if mark.kind != found.kind => Sameness::Another,
            _ if found.id.name == link.name => Sameness::Same,
            Some((then, now)) => same(then == now),
            None => Sameness::Unsure,
        }
    }
}

enum Sameness {
    Same,
    Another,
    Unsure,
}

fn unsure(then: &LinkId, now: &LinkId) -> String {
    format!(
        "link {} was {then} and is {now}, and nothing tells whether it is the same; it stays on record",
        then.index
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: &str, permanent: Option<[u8; 6]>) -> netlink::Link {
        let id = LinkId { index, name: name.to_owned() };
        netlink::Link { kind: kind.to_owned(), permanent, ..netlink::Link::bare(id) }
    }

    #[test]
    fn without_sysfs_kind_name_and_permanent_address_tell() {
        let mut marker = Marker { sysfs: Some(None) };
        let mac = Some([2, 0, 0, 0, 0, 1]);
        let nic = link(7, "eth1", "", mac);
        let mark = marker.mark_of(nic.clone());
        let mut word = |found: netlink::Link, mark: Option<&Mark>| match marker.is_same(&found, &nic.id, mark)
        {
            Sameness::Same => "same",
            Sameness::Another => "another",
            Sameness::Unsure => "unsure",
        };
        assert_eq!(word(link(7, "eth1", "", mac), Some(&mark)), "same");
        assert_eq!(word(link(7, "lan1", "", mac), Some(&mark)), "same", "renamed");
        assert_eq!(word(link(7, "lan1", "", Some([2; 6])), Some(&mark)), "another");
        assert_eq!(word(link(7, "eth1", "veth", mac), Some(&mark)), "another");
        assert_eq!(word(link(7, "lan1", "", None), Some(&mark)), "unsure");
        let unmarked = Mark { permanent: None, ..mark };
        assert_eq!(word(link(7, "lan1", "", mac), Some(&unmarked)), "unsure");
        assert_eq!(word(link(7, "eth1", "", None), Some(&unmarked)), "same");
        // Of a record of an earlier version.
        assert_eq!(word(link(7, "eth1", "", None), None), "same");
        assert_eq!(word(link(7, "lan1", "", None), None), "unsure");
        let ours = LinkId { index: (1 << 20) + 5, name: "br0".to_owned() };
        let renamed = link(ours.index, "br1", "bridge", None);
        assert!(matches!(marker.is_same(&renamed, &ours, None), Sameness::Same));
    }
}
