//! vhost-vsock: the kernel carries what goes over the sockets between guest and host, which are AF_VSOCK on both sides (kernel
//! `drivers/vhost/vsock.c`). Its rings and its thread are those of vhost-net.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use super::{VHOST, Vhost, call};

/// Its device.
const DEVICE: &str = "/dev/vhost-vsock";
/// The first address of a guest (virtio 1.2 §5.10.4), and how many are tried.
const FIRST_CID: u32 = 3;
const TRIALS: u32 = 4096;

/// What goes wrong with vhost-vsock. Where the host refused, its reason is the source and not in the text.
#[derive(Debug, thiserror::Error)]
pub enum VhostVsockError {
    /// The device does not open.
    #[error("cannot open {DEVICE}")]
    Open(#[source] io::Error),
    /// The guest cannot have this address.
    #[error("cannot give the guest the CID {cid}")]
    Cid {
        /// The address.
        cid: u32,
        /// The reason.
        source: io::Error,
    },
}

impl VhostVsockError {
    /// What the user can do about it.
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::Open(source) if source.kind() == io::ErrorKind::PermissionDenied => format!(
                "join the group that owns it, or run as root (sudo chown :kvm {DEVICE}; sudo chmod 0660 {DEVICE}); or take --vsock on, which needs no right"
            ),
            Self::Open(_) => "load the module (sudo modprobe vhost_vsock), or take --vsock on, which needs none".to_owned(),
            Self::Cid { source, .. } if source.raw_os_error() == Some(libc::EADDRINUSE) => {
                "another guest has it, or this host itself: give another, or take the first that is free (--vsock vhost)".to_owned()
            }
            Self::Cid { .. } => return None,
        })
    }
}

/// Opens vhost-vsock for a guest with this address, or with the first that is free. Returns the descriptor, for
/// [`Vhost::of_vsock`], and the address, which is the guest's as long as that is open.
///
/// # Errors
/// There is no such device, or no right to it, or the address is taken.
pub fn open_vhost_vsock(cid: Option<u32>) -> Result<(OwnedFd, u32), VhostVsockError> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let device = options.open(DEVICE).map_err(VhostVsockError::Open)?;
    if let Some(cid) = cid {
        set_cid(&device, cid).map_err(|source| VhostVsockError::Cid { cid, source })?;
        return Ok((device.into(), cid));
    }
    let mut cid = FIRST_CID;
    loop {
        match set_cid(&device, cid) {
            Ok(()) => return Ok((device.into(), cid)),
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) && cid < FIRST_CID + TRIALS => {
                cid += 1;
            }
            Err(source) => return Err(VhostVsockError::Cid { cid, source }),
        }
    }
}

fn set_cid(device: &File, cid: u32) -> io::Result<()> {
    let cid = u64::from(cid);
    // SAFETY: VHOST_VSOCK_SET_GUEST_CID reads one u64, and keeps no pointer to it.
    unsafe { call(device, libc::_IOW::<u64>(VHOST, 0x60), &raw const cid as usize) }
}

impl Vhost {
    /// vhost-vsock at rest, of a descriptor that [`open_vhost_vsock`] gave. Its [`Carrying`](super::Carrying) has no wire: it
    /// [runs](super::Carrying::run), or does not.
    ///
    /// # Errors
    /// It is no such.
    pub fn of_vsock(device: OwnedFd) -> io::Result<Self> {
        Ok(Self { is_vsock: true, ..Self::over(device.into())? })
    }
}

impl super::Carrying {
    /// Has the kernel carry what goes over the guest's sockets, from where it is in the rings.
    ///
    /// # Errors
    /// The kernel refuses, and carries nothing.
    pub fn run(&self) -> io::Result<()> {
        self.set_running(true)
    }

    /// `VHOST_VSOCK_SET_RUNNING`.
    pub(super) fn set_running(&self, running: bool) -> io::Result<()> {
        self.set(libc::_IOW::<i32>(VHOST, 0x61), &i32::from(running))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_lacks_is_said_with_a_way_out() {
        assert_eq!(libc::_IOW::<u64>(VHOST, 0x60), 0x4008_af60);
        assert_eq!(libc::_IOW::<i32>(VHOST, 0x61), 0x4004_af61);
        let of = |errno| io::Error::from_raw_os_error(errno);
        for (error, words) in [
            (VhostVsockError::Open(of(libc::ENOENT)), "modprobe vhost_vsock"),
            (VhostVsockError::Open(of(libc::EACCES)), "join the group"),
            (VhostVsockError::Cid { cid: 5, source: of(libc::EADDRINUSE) }, "another guest has it"),
        ] {
            assert!(error.remedy().unwrap().contains(words), "{error}");
        }
    }
}
