//! No path: the process opens no file, by Landlock where the kernel has it, else in an empty root.

use std::fmt;
use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope,
};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::process::{chroot, fchdir};

/// By what the process opens no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Confined {
    /// Landlock, which also has it connect to no port and no abstract socket and signal nobody outside, as far as the kernel can.
    Landlock,
    /// An empty directory as its root.
    EmptyRoot,
    /// By the filter of system calls alone, which has no call that opens one.
    FilterAlone,
}

impl fmt::Display for Confined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Landlock => "no path (Landlock)",
            Self::EmptyRoot => "no path (an empty root)",
            Self::FilterAlone => {
                "no path (by its seccomp filters alone: neither Landlock nor an empty root is to be had)"
            }
        })
    }
}

/// Takes all paths away from the calling thread and those that it starts.
pub(super) fn confine() -> Confined {
    if landlock().is_ok_and(|confined| confined) {
        Confined::Landlock
    } else if empty_root().is_ok() {
        Confined::EmptyRoot
    } else {
        Confined::FilterAlone
    }
}

/// What [`confine`] would do here, as far as that can be told without doing it to this process.
pub(crate) fn can_confine() -> Confined {
    // Landlock binds a thread; this one ends at once.
    let landlocked = std::thread::spawn(|| landlock().is_ok_and(|confined| confined)).join().unwrap_or(false);
    let may_chroot = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_CHROOT));
    match (landlocked, may_chroot) {
        (true, _) => Confined::Landlock,
        (false, true) => Confined::EmptyRoot,
        (false, false) => Confined::FilterAlone,
    }
}

/// Whether the kernel has it, and now refuses all that it knows to refuse.
fn landlock() -> Result<bool, landlock::RulesetError> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::from_all(ABI::V5))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// An empty file system that nobody else sees, as the root. Takes `CAP_SYS_ADMIN` and `CAP_SYS_CHROOT`.
fn empty_root() -> io::Result<()> {
    let place = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&place)?;
    let place = fsmount(&place, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY).or_else(
        |_| -> rustix::io::Result<_> {
            // A kernel before Linux 5.2 has no mount without a place. A directory that is deleted is as empty.
            let name = format!("/tmp/.wirevm-{}", std::process::id());
            mkdirat(CWD, name.as_str(), Mode::RUSR | Mode::XUSR)?;
            let opened =
                openat(CWD, name.as_str(), OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
            rustix::fs::rmdir(name.as_str())?;
            opened
        },
    )?;
    fchdir(&place)?;
    Ok(chroot(".")?)
}
