//! From what the user names to a file that the guest's root is in.

use std::fs::File;
use std::path::Path;

use super::cache::{self, Cache};
use super::config::ImageConfig;
use super::error::Error;
use super::limits::Limits;
use super::source::{Image, Source};
use super::tree::Tree;
use super::write::Output;
use super::{cpio, erofs};

/// As what the guest gets its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An EROFS, for a disk: read as it is needed.
    Erofs,
    /// An initramfs: in memory as a whole, and writable. Without extended attributes.
    Cpio,
}

/// In bytes, of a newc archive's end.
const TRAILER: u64 = 124;
/// Where an initramfs has its footer. The kernel unpacks it where the directory is there.
const FOOTER_NAME: &[u8] = b".wirevm/image";

impl Format {
    fn suffix(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Cpio => "cpio",
        }
    }

    /// How many bytes come after the footer.
    fn end(self) -> u64 {
        if self == Self::Cpio { TRAILER } else { 0 }
    }
}

/// A guest's root, made.
#[derive(Debug)]
pub struct Root {
    /// Open for reading; it may have no name. All of it is the disk or the initramfs: what comes after the file system is ignored.
    pub file: File,
    /// What the image says of the command to run.
    pub config: ImageConfig,
    /// Whether it was there already.
    pub cached: bool,
}

/// Makes the root of a guest out of the image `path` (`-` is standard input), or takes it from the cache.
///
/// # Errors
/// The image is none, is damaged or beyond the `limits`, or the cache cannot be written. Nothing is left then.
pub fn root(path: &Path, format: Format, cache: &Cache, limits: Limits) -> Result<Root, Error> {
    let source = Source::open(path, cache.directory(), limits)?;
    let Some(digest) = source.digest() else {
        let image = source.name().to_owned();
        let Image { tree, config, .. } = source.load()?;
        let file = make(&image, &tree, &config, format, cache)?;
        return Ok(Root { file, config, cached: false });
    };
    let name = Cache::name(digest, format.suffix());
    let found = |(file, config)| Root { file, config, cached: true };
    if let Some(entry) = cache.find(&name, format.end()) {
        return Ok(found(entry));
    }
    let waits = || log::warn!("another wirevm makes a root of the image {}: waiting for it", source.name());
    let _lock = cache.lock(&name, waits)?;
    // Somebody else may have made it meanwhile.
    if let Some(entry) = cache.find(&name, format.end()) {
        return Ok(found(entry));
    }
    let image = source.name().to_owned();
    let Image { tree, config, watch } = source.load()?;
    let file = make(&image, &tree, &config, format, cache)?;
    watch.check()?;
    cache.keep(&file, &name)?;
    Ok(Root { file, config, cached: false })
}

fn make(
    image: &str,
    tree: &Tree,
    config: &ImageConfig,
    format: Format,
    cache: &Cache,
) -> Result<File, Error> {
    let file = cache.file()?;
    let target = cache.directory().display().to_string();
    let failed = |source| cache.failed(source);
    let mut out = Output::new(&file);
    match format {
        Format::Erofs => {
            erofs::write(tree, image, &target, &mut out)?;
            let footer = cache::footer(config, out.at(), 0, 4096);
            cache::write(&mut out, &footer, cache)?;
        }
        Format::Cpio => {
            cpio::write(tree, image, &target, &mut out)?;
            // The member's header and name take 124 bytes.
            let footer = cache::footer(config, out.at() + 124, TRAILER, 4);
            let fields =
                cpio::Header { mode: cpio::REGULAR | 0o444, links: 1, inode: u32::MAX, ..Default::default() };
            cpio::header(&mut out, FOOTER_NAME, &fields, footer.len() as u32).map_err(failed)?;
            cache::write(&mut out, &footer, cache)?;
            cpio::trailer(&mut out).map_err(failed)?;
        }
    }
    out.finish().map_err(failed)?;
    Ok(file)
}
