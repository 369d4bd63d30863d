//! The file that takes what a guest writes to a disk that stays as it is: without a name, so that it is gone with the machine.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use super::{DiskError, Kind};

/// The longest disk that can have one, in bytes: the map of what was written takes 64 MiB then.
pub(super) const BYTES_MAX: u64 = 64 << 40;

/// A file of holes of so many bytes: in `$TMPDIR` where that is set, else beside the disk if that is a file, or where temporary files are
/// kept over a boot.
///
/// # Errors
/// The disk is longer than [`BYTES_MAX`], or none of them takes one.
pub(super) fn make(disk: &Path, kind: Kind, bytes: u64) -> Result<File, DiskError> {
    if bytes > BYTES_MAX {
        return Err(DiskError::TooLong { path: disk.to_path_buf(), bytes });
    }
    let mut result = Err(io::ErrorKind::NotFound.into());
    for place in places(disk, kind, std::env::var_os("TMPDIR")) {
        result = unnamed(&place).and_then(|file| file.set_len(bytes).map(|()| file));
        if result.is_ok() {
            break;
        }
    }
    result.map_err(|source| DiskError::Overlay { path: disk.to_path_buf(), bytes, source })
}

/// Where such a file can be, best first. What is beside a device is the host's RAM (devtmpfs).
fn places(disk: &Path, kind: Kind, tmpdir: Option<OsString>) -> Vec<PathBuf> {
    let beside = || match disk.parent() {
        Some(parent) if parent == Path::new("") => Some(".".into()),
        parent => parent.map(PathBuf::from),
    };
    match (tmpdir.filter(|place| !place.is_empty()), kind) {
        (Some(place), _) => vec![place.into()],
        (None, Kind::Device) => vec!["/var/tmp".into()],
        (None, Kind::Regular) => beside().into_iter().chain(["/var/tmp".into()]).collect(),
    }
}

fn unnamed(place: &Path) -> io::Result<File> {
    let (flags, mode) = (OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    match openat(CWD, place, flags | OFlags::TMPFILE, mode) {
        Ok(file) => Ok(file.into()),
        // A file system that has none: one with a name, for a moment.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let name = place.join(format!(".wirevm-{}-{:p}", std::process::id(), &flags));
            let file = openat(CWD, &name, flags | OFlags::CREATE | OFlags::EXCL, mode)?;
            unlinkat(CWD, &name, AtFlags::empty())?;
            Ok(file.into())
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_to_a_device_is_not_beside_it() {
        let places = |disk: &str, kind, tmpdir: Option<&str>| -> Vec<String> {
            let places = places(Path::new(disk), kind, tmpdir.map(Into::into));
            places.into_iter().map(|place| place.to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(places("/dev/vg/web", Kind::Device, None), ["/var/tmp"]);
        assert_eq!(places("/dev/vg/web", Kind::Device, Some("/big")), ["/big"]);
        assert_eq!(places("/images/web", Kind::Regular, Some("")), ["/images", "/var/tmp"]);
        assert_eq!(places("web", Kind::Regular, None), [".", "/var/tmp"]);
        assert_eq!(places("/images/web", Kind::Regular, Some("/big")), ["/big"]);
    }
}
