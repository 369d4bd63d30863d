//! What only sysfs tells of a link: its character device, and whether it is Wi-Fi.
//!
//! `/sys` shows the links of the network namespace in which it was mounted, which need not be ours (`nsenter --net`,
//! `netns=`). So this mounts a sysfs of its own, for the thread's namespace, that is attached nowhere and goes with its
//! descriptor; where that is not allowed, `/sys` has to do, and every answer is checked to be of the link that was meant.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dev, Mode, OFlags, fstat, makedev, openat, statat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::LinkId;

/// A sysfs of the thread's network namespace.
pub(crate) struct Sysfs {
    root: OwnedFd,
}

impl Sysfs {
    /// One of our own, or else the machine's.
    ///
    /// # Errors
    /// There is no sysfs at all.
    pub(crate) fn open() -> io::Result<Self> {
        Self::own().or_else(|_| Self::at(Path::new("/sys")).map(|root| Self { root }))
    }

    /// One of our own, which shows the thread's network namespace for sure.
    ///
    /// # Errors
    /// It may not be mounted.
    pub(crate) fn own() -> io::Result<Self> {
        let root = mount("sysfs", MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV)?;
        Ok(Self { root })
    }

    /// The number of the link's directory, which no other has until the next boot, and which stays when it gets another name;
    /// none where sysfs does not show this link.
    pub(crate) fn node(&self, link: &LinkId) -> Option<u64> {
        let directory =
            openat(&self.root, directory(link), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
        // Asked of what was opened, for the name may be another link's by now.
        let file = openat(&directory, "ifindex", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut index = String::new();
        File::from(file).read_to_string(&mut index).ok()?;
        (index.trim() == link.index.to_string()).then(|| fstat(&directory).ok().map(|found| found.st_ino))?
    }

    fn at(root: &Path) -> io::Result<OwnedFd> {
        Ok(openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// True where the link is Wi-Fi: it has a radio.
    pub(crate) fn is_wireless(&self, link: &LinkId) -> bool {
        let has = |file| statat(&self.root, directory(link).join(file), AtFlags::empty()).is_ok();
        self.is_same(link) && (has("phy80211") || has("wireless"))
    }

    /// True where somebody has set the link's Ethernet address (`NET_ADDR_SET`, `linux/netdevice.h`).
    pub(crate) fn has_set_address(&self, link: &LinkId) -> bool {
        let how = self.read(&directory(link).join("addr_assign_type"));
        self.is_same(link) && how.is_ok_and(|how| how.trim() == "3")
    }

    /// The number of the character device of a macvtap.
    ///
    /// # Errors
    /// `NotFound` where sysfs does not show this link.
    pub(crate) fn macvtap_device(&self, link: &LinkId) -> io::Result<Dev> {
        if !self.is_same(link) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let text = self.read(&directory(link).join(format!("macvtap/tap{}/dev", link.index)))?;
        let numbers = text.trim().split_once(':');
        let numbers = numbers.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let (major, minor) = numbers.ok_or(io::ErrorKind::InvalidData)?;
        Ok(makedev(major, minor))
    }

    /// True where the link of that name is the one of that index: the sysfs may be another namespace's.
    fn is_same(&self, link: &LinkId) -> bool {
        let index = self.read(&directory(link).join("ifindex"));
        index.is_ok_and(|index| index.trim() == link.index.to_string())
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        let file = openat(&self.root, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut text = String::new();
        File::from(file).read_to_string(&mut text)?;
        Ok(text)
    }
}

fn directory(link: &LinkId) -> PathBuf {
    Path::new("class/net").join(&link.name)
}

/// A new mount of a file system that is attached nowhere: it goes with the descriptor. Needs `CAP_SYS_ADMIN`.
pub(crate) fn mount(kind: &str, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let attributes = attributes | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(Errno::into)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn wi_fi_and_devices_are_found_by_name_and_index() {
        let root = std::env::temp_dir().join(format!("wirevm-sysfs-{}", std::process::id()));
        let link = |index, name: &str| LinkId { index, name: name.to_owned() };
        for (name, index, file) in
            [("wlan0", 3, "phy80211/name"), ("old0", 4, "wireless/status"), ("tap", 5, "macvtap/tap5/dev")]
        {
            let file = root.join("class/net").join(name).join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "246:7\n").unwrap();
            fs::write(root.join("class/net").join(name).join("ifindex"), format!("{index}\n")).unwrap();
        }
        let sysfs = Sysfs { root: Sysfs::at(&root).unwrap() };
        assert!(sysfs.is_wireless(&link(3, "wlan0")) && sysfs.is_wireless(&link(4, "old0")));
        assert!(!sysfs.is_wireless(&link(5, "tap")) && !sysfs.is_wireless(&link(9, "none")));
        assert!(!sysfs.is_wireless(&link(4, "wlan0")), "another link of that name");
        assert_eq!(sysfs.macvtap_device(&link(5, "tap")).unwrap(), makedev(246, 7));
        for other in [link(6, "tap"), link(3, "wlan0"), link(9, "none")] {
            assert_eq!(sysfs.macvtap_device(&other).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
        for (how, set) in [("1\n", false), ("3\n", true)] {
            fs::write(root.join("class/net/tap/addr_assign_type"), how).unwrap();
            assert_eq!(sysfs.has_set_address(&link(5, "tap")), set);
        }
        assert!(!sysfs.has_set_address(&link(6, "tap")) && !sysfs.has_set_address(&link(3, "wlan0")));
        fs::write(root.join("class/net/tap/macvtap/tap5/dev"), "nonsense").unwrap();
        assert_eq!(sysfs.macvtap_device(&link(5, "tap")).unwrap_err().kind(), io::ErrorKind::InvalidData);
        fs::remove_dir_all(root).unwrap();
    }
}
