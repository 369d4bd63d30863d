//! The file that takes what a guest writes to a disk that stays as it is: without a name, so that it is gone with the machine.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use super::DiskError;

/// A file of holes of so many bytes: in `$TMPDIR` where that is set, else beside the disk, or where temporary files are kept over a
/// boot.
///
/// # Errors
/// None of them takes one.
pub(super) fn make(disk: &Path, bytes: u64) -> Result<File, DiskError> {
    let beside =
        || disk.parent().map(|parent| if parent == Path::new("") { ".".into() } else { parent.into() });
    let places: Vec<PathBuf> = match std::env::var_os("TMPDIR").filter(|place| !place.is_empty()) {
        Some(place) => vec![place.into()],
        None => beside().into_iter().chain(["/var/tmp".into()]).collect(),
    };
    let mut result = Err(io::ErrorKind::NotFound.into());
    for place in places {
        result = unnamed(&place).and_then(|file| file.set_len(bytes).map(|()| file));
        if result.is_ok() {
            break;
        }
    }
    result.map_err(|source| DiskError::Overlay { path: disk.to_path_buf(), bytes, source })
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
