//! Which kinds of link this kernel makes, found out by making them where nobody sees it.

use std::thread;

use super::finding::Finding;
use super::{LinkId, Netlink, NewMacvlan, Refusal};
use crate::{MacvtapMode, sys};

/// Whether a bridge and a macvtap can be made: each is, in a network namespace of its own that goes at once. For
/// `wirevm doctor`.
pub fn link_kinds() -> Vec<Finding> {
    let tried = thread::scope(|scope| scope.spawn(try_out).join());
    let tried = tried.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    tried.into_iter().map(|(what, module, result)| finding(what, module, &result)).collect()
}

type Tried = (&'static str, &'static str, Result<(), Refusal>);

/// On a thread that is about to end.
fn try_out() -> Vec<Tried> {
    const NAMES: [(&str, &str); 2] = [("bridges", "bridge"), ("macvtaps", "macvtap")];
    if let Err(error) = sys::unshare_network() {
        let errno = error.raw_os_error().unwrap_or(libc::EPERM);
        let refused = || Err(Refusal::from(std::io::Error::from_raw_os_error(errno)));
        return NAMES.map(|(what, module)| (what, module, refused())).into();
    }
    let mut netlink = Netlink::new();
    let bridge = LinkId { index: 2, name: "br0".to_owned() };
    let macvtap = NewMacvlan {
        link: LinkId { index: 3, name: "macvtap0".to_owned() },
        // Any link with Ethernet has macvtaps; this one is there.
        parent: bridge.clone(),
        tap: true,
        mode: MacvtapMode::Bridge,
        mac: None,
        mtu: None,
        sources: Vec::new(),
    };
    let results = [netlink.add_bridge(&bridge, [2, 0, 0, 0, 0, 1], false), netlink.add_macvlan(&macvtap)];
    NAMES.into_iter().zip(results).map(|((what, module), result)| (what, module, result)).collect()
}

fn finding(what: &str, module: &str, result: &Result<(), Refusal>) -> Finding {
    let (good, state, remedy) = match result {
        Ok(()) => (true, "can be made".to_owned(), None),
        // Without the right to try nothing is known, and the line about rights says what to do.
        Err(refusal) if refusal.errno() == Some(libc::EPERM) => {
            (true, "cannot be tried without rights".to_owned(), None)
        }
        Err(refusal) => (
            false,
            format!("cannot be made: {refusal}"),
            Some(format!("modprobe {module}, or a kernel that has it")),
        ),
    };
    Finding { what: what.to_owned(), good, state, remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_made_names_its_module() {
        let refused = |errno| Err(Refusal::from(std::io::Error::from_raw_os_error(errno)));
        let absent = finding("macvtaps", "macvtap", &refused(libc::EOPNOTSUPP));
        assert!(!absent.good && absent.remedy.unwrap().starts_with("modprobe macvtap"));
        let unknown = finding("macvtaps", "macvtap", &refused(libc::EPERM));
        assert!(unknown.good && unknown.remedy.is_none());
        assert!(finding("macvtaps", "macvtap", &Ok(())).good);
    }
}
