//! Other wirevm of the same network namespace whose records are in another runtime directory: what is shared is shared with them
//! too, or the first of them to end would delete it under the others.
//!
//! They are found by the kernel's state. Each wirevm that changes a namespace has a socket there whose abstract name (unix(7)) says
//! where its records are: it goes with the process, however that ends, and everybody in the namespace sees it in
//! `/proc/net/unix`. Anybody can make such a name, so it is only a hint: the directory counts if it is this user's alone, as our own
//! must be ([`Directory`]), and is the one of the device and inode that were said (a mount namespace may have another one there).

use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::directory::Directory;

/// What each name begins with.
const PREFIX: &str = "wirevm-records";
/// So many directories are looked at, at most: more than there will be, unless somebody wants us to be busy.
const MOST: usize = 16;

/// A socket that says where our records are, as long as it is there.
#[derive(Debug)]
pub(super) struct Beacon(#[expect(dead_code, reason = "its name is all there is to it")] UnixDatagram);

impl Beacon {
    /// In the thread's network namespace.
    ///
    /// # Errors
    /// The directory has a name that does not fit, or there are no descriptors left.
    pub(super) fn new(directory: &Directory) -> io::Result<Self> {
        // Unique among those of this process.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let path = fs::canonicalize(directory.path())?;
        let path = path.to_str().filter(|path| !path.contains(|c: char| c.is_control()));
        let path =
            path.ok_or_else(|| io::Error::other("the path of the runtime directory is no plain text"))?;
        let (dev, inode) = directory.id()?;
        let (pid, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let name = format!("{PREFIX}/{dev:x}.{inode:x}/{pid}.{number}{path}");
        Ok(Self(UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)?))
    }
}

/// The other runtime directories that wirevm of the thread's network namespace have, as far as they are ours to use.
pub(super) fn directories(own: &Directory) -> Vec<Directory> {
    let Ok(own) = own.id() else { return Vec::new() };
    let sockets = fs::read_to_string("/proc/thread-self/net/unix").unwrap_or_default();
    let mut said: Vec<_> = sockets.lines().filter_map(said).filter(|(id, _)| *id != own).collect();
    said.sort();
    said.dedup();
    let opened = said.into_iter().take(MOST).filter_map(|(id, path)| {
        let found = Directory::existing(Path::new(path)).ok()?;
        (found.id().ok()? == id).then_some(found)
    });
    opened.collect()
}

/// What a line of `/proc/net/unix` says of a directory, where it is of such a socket: its device and inode, and its path.
fn said(line: &str) -> Option<((u64, u64), &str)> {
    // An abstract name is shown with an @ for its first byte.
    let (_, name) = line.split_once(&format!(" @{PREFIX}/"))?;
    let (id, rest) = name.split_once('/')?;
    let (_, path) = rest.split_once('/')?;
    let (dev, inode) = id.split_once('.')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let path = &rest[rest.len() - path.len() - 1..];
    Some(((number(dev)?, number(inode)?), path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_where_records_are() {
        let line = |name: &str| format!("0000000012345678: 00000002 00000000 00000000 0002 01 12345 {name}");
        let good = line("@wirevm-records/1a.2b/77.0/run/my dir/w");
        assert_eq!(said(&good), Some(((0x1a, 0x2b), "/run/my dir/w")));
        for bad in [
            "",
            "@other",
            "/run/wirevm-records/1.2/3.0/x",
            "@wirevm-records/1.2/3.0",
            "@wirevm-records/z.2/3.0/x",
        ] {
            assert_eq!(said(&line(bad)), None, "{bad}");
        }
    }
}
