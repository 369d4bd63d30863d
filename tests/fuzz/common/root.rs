//! A guest's root made of an image, and what holds for one, whatever the image is.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use boot::image::{Cache, Error, Format, Limits, root};

use crate::{MemoryFile, bounded, scratch};

/// What the image may have; and what making it may allocate, for an image as long as libFuzzer lets it be: its names and attributes, some
/// times over, and the buffers by which it is read.
const LIMITS: Limits = Limits { entries: 10_000, data: 4 << 20, apparent: 16 << 20, metadata: 1 << 20 };
const MEMORY: usize = 32 << 20;

/// Makes roots of both formats out of the image. Where it is one, both are whole, and found again as they were made.
pub fn make(image: &[u8]) {
    static CACHE: OnceLock<PathBuf> = OnceLock::new();
    let directory = CACHE.get_or_init(|| scratch("cache"));
    let cache = Cache::at(directory.clone()).expect("the directory is ours");
    let image = MemoryFile::new(image);
    let make = |format| bounded(MEMORY, || root(&image.path(), format, &cache, LIMITS));
    let made = [Format::Erofs, Format::Cpio].map(make);
    match &made {
        [Ok(erofs), Ok(cpio)] => {
            assert!(!erofs.cached && !cpio.cached);
            let len = erofs.file.metadata().unwrap().len();
            let superblock = bytes(&erofs.file, 1024, 128);
            let blocks = u32::from_le_bytes(superblock[36..40].try_into().unwrap());
            assert_eq!(superblock[..4], 0xe0f5_e1e2_u32.to_le_bytes());
            assert!(
                len.is_multiple_of(4096) && u64::from(blocks) * 4096 <= len,
                "{blocks} blocks of {len} bytes"
            );
            newc(&cpio.file);
            for format in [Format::Erofs, Format::Cpio] {
                assert!(make(format).is_ok_and(|root| root.cached && root.config == erofs.config));
            }
        }
        // An initramfs has bounds of its own; otherwise what is wrong is wrong of the image.
        [Ok(_), Err(error)] => {
            assert!(matches!(error, Error::Archive { .. } | Error::TooLarge { .. }), "{error}")
        }
        [Err(error), Ok(_)] => panic!("it is only an initramfs: {error}"),
        [Err(one), Err(other)] => {
            assert_eq!(one.to_string(), other.to_string());
            assert!(!one.remedy().is_empty());
        }
    }
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        assert!(made.iter().any(Result::is_ok), "{path:?} is left");
        fs::remove_file(path).unwrap();
    }
}

fn bytes(file: &File, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, at).unwrap();
    bytes
}

/// Goes through a newc archive (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`) to its trailer, as the kernel does.
fn newc(file: &File) {
    let len = file.metadata().unwrap().len();
    let all = bytes(file, 0, len as usize);
    let mut at = 0;
    loop {
        assert!(all[at..].starts_with(b"070701"), "no header at {at}");
        let field = |number: usize| {
            let text = std::str::from_utf8(&all[at + 6 + 8 * number..][..8]).unwrap();
            usize::from_str_radix(text, 16).unwrap()
        };
        let (size, name) = (field(6), field(11));
        let text = &all[at + 110..][..name];
        assert!(text.ends_with(&[0]) && !text[..name - 1].contains(&0));
        let path = &text[..name - 1];
        assert!(path.split(|byte| *byte == b'/').all(|part| part != b".."), "a name climbs");
        at = (at + 110 + name).next_multiple_of(4) + size;
        at = at.next_multiple_of(4);
        if path == b"TRAILER!!!" {
            return assert_eq!(at, all.len(), "something is behind the trailer");
        }
    }
}
