//! Which version a kernel is.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use super::error::Error;
use crate::unpack::Packing;

/// In bytes, of a kernel that is looked through, unpacked: `vmlinux` with all its symbols is smaller.
const KERNEL_MAX: u64 = 2 << 30;
/// What a kernel's banner begins with.
const BANNER: &[u8] = b"Linux version ";
const VERSION_MAX: usize = 64;

/// The version that the kernel in `path` says it is, such as `6.1.0-9-amd64`: a bzImage by its header (`kernel_version`, Linux
/// boot.rst), an ELF `vmlinux` by its banner; also where it is packed. `None` where it says none.
///
/// # Errors
/// It cannot be read.
pub fn kernel_version(path: &Path) -> Result<Option<String>, Error> {
    let read = || -> io::Result<_> {
        let mut file = BufReader::with_capacity(1 << 16, File::open(path)?);
        // A pipe can be read once, and that is for the guest.
        if !file.get_ref().metadata()?.is_file() {
            return Ok(None);
        }
        match Packing::of(file.fill_buf()?) {
            Some(packing) => of_bytes(packing.unpack(file)),
            None => of_bytes(file),
        }
    };
    read().map_err(|source| Error::ReadKernel { path: path.into(), source })
}

fn of_bytes(from: impl Read) -> io::Result<Option<String>> {
    let mut from = from.take(KERNEL_MAX);
    let mut window = Vec::new();
    (&mut from).take(0x10000).read_to_end(&mut window)?;
    if window.get(0x202..0x206) == Some(b"HdrS") {
        let at = 0x200 + usize::from(u16::from_le_bytes([window[0x20e], window[0x20f]]));
        return Ok(window.get(at..).filter(|_| at > 0x200).and_then(word));
    }
    if !window.starts_with(b"\x7fELF") {
        return Ok(None);
    }
    let (mut at, mut ended) = (0, false);
    loop {
        let banner = window[at..].windows(BANNER.len()).position(|bytes| bytes == BANNER);
        let keep_from = match banner.map(|found| (at + found, at + found + BANNER.len())) {
            // The banner, or the version after it, may end in the next piece.
            None => at.max(window.len().saturating_sub(BANNER.len() - 1)),
            Some((banner, version)) if !ended && window.len() - version <= VERSION_MAX => banner,
            Some((_, version)) => {
                if let Some(version) = word(&window[version..]) {
                    return Ok(Some(version));
                }
                at = version;
                continue;
            }
        };
        if ended {
            return Ok(None);
        }
        window.drain(..keep_from);
        at = 0;
        ended = from.by_ref().take(1 << 16).read_to_end(&mut window)? == 0;
    }
}

/// The version that begins here: the first word, where it can be a directory's name.
fn word(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().take(VERSION_MAX + 1).position(|byte| matches!(byte, b' ' | 0))?;
    let word = &bytes[..end];
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"._+~-".contains(byte);
    // Format strings of the kernel's begin with the banner, too.
    (word.first()?.is_ascii_digit() && word.iter().all(fits))
        .then(|| String::from_utf8_lossy(word).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    fn version(bytes: &[u8]) -> Option<String> {
        kernel_version(Scratch::new(bytes).path()).unwrap()
    }

    #[test]
    fn a_bzimage_says_it_in_its_header() {
        let mut image = vec![0; 0x1000];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x200..0x202].copy_from_slice(b"6\0");
        assert_eq!(version(&image), None, "an offset of 0 is none");
        image[0x20e..0x210].copy_from_slice(&0x300_u16.to_le_bytes());
        for (text, expected) in [
            (&b"6.1.0-9-amd64 (builder) #1 SMP\0"[..], Some("6.1.0-9-amd64")),
            (b"6.1.0\0", Some("6.1.0")),
            (b"../../etc (x)\0", None),
            (b"6/../.. \0", None),
            (b" \0", None),
        ] {
            image[0x500..0x540].fill(0);
            image[0x500..0x500 + text.len()].copy_from_slice(text);
            assert_eq!(version(&image).as_deref(), expected);
        }
        let longest = "6".repeat(VERSION_MAX);
        for (end, expected) in [(VERSION_MAX, Some(&longest[..])), (VERSION_MAX + 1, None)] {
            image[0x500..0x560].fill(0);
            image[0x500..0x500 + end].fill(b'6');
            assert_eq!(version(&image).as_deref(), expected, "{end} bytes long");
        }
        image[0x500..].fill(b'6');
        assert_eq!(version(&image), None, "no end");
        image[0x20e..0x210].copy_from_slice(&0xffff_u16.to_le_bytes());
        assert_eq!(version(&image), None, "outside");
    }

    #[test]
    fn a_vmlinux_says_it_in_its_banner_wherever_that_is() {
        for at in [100, 0xffff, 0x10000 - 7, 0x10000 - 14, 0x10000 - 16, 0x30000] {
            let mut image = b"\x7fELF".to_vec();
            image.resize(50, 0);
            image.extend(b"Linux version %s (%s)");
            image.resize(at, 0);
            image.extend(b"Linux version 6.12.4+deb13-amd64 (builder)");
            assert_eq!(version(&image).as_deref(), Some("6.12.4+deb13-amd64"), "{at}");
        }
        assert_eq!(version(b"\x7fELF and nothing"), None);
        assert_eq!(version(b"no kernel, Linux version 1.2 "), None);
    }

    #[test]
    fn a_version_that_a_piece_cuts_is_read_whole() {
        let banner = b"Linux version 6.12.4 (builder)";
        for before in 0..VERSION_MAX + BANNER.len() {
            let mut image = b"\x7fELF".to_vec();
            image.resize(0x10000 - before, 0);
            image.extend(banner);
            // At the file's end, and amid it.
            for len in [image.len(), 0x40000] {
                image.resize(len, 0);
                assert_eq!(version(&image).as_deref(), Some("6.12.4"), "{before} of {len}");
            }
        }
    }

    /// Counts how often it is read from.
    struct Counting<R>(R, usize);

    impl<R: Read> Read for Counting<R> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 += 1;
            self.0.read(buffer)
        }
    }

    #[test]
    fn banners_without_end_are_read_in_large_pieces() {
        let mut image = b"\x7fELF".to_vec();
        while image.len() < 1 << 20 {
            image.extend(BANNER);
        }
        let mut counting = Counting(&image[..], 0);
        assert_eq!(of_bytes(&mut counting).unwrap(), None);
        assert!(counting.1 < 500, "{} reads of {} bytes", counting.1, image.len());
        image.extend(b"6.1.2 x");
        assert_eq!(of_bytes(&image[..]).unwrap().as_deref(), Some("6.1.2"));
    }

    #[test]
    fn a_packed_one_is_unpacked() {
        use std::io::Write;
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(b"\x7fELF Linux version 5.4.3 x").unwrap();
        assert_eq!(version(&packed.finish().unwrap()).as_deref(), Some("5.4.3"));
    }
}
