//! The guests that are started.

use std::path::{Path, PathBuf};

use harness::TempDir;
use harness::stock::resources;

/// A kernel and its initramfs.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// `slim`, or a series of Debian's.
    pub(crate) name: String,
    pub(crate) image: PathBuf,
    pub(crate) initrd: PathBuf,
    /// The same with iperf3 in it.
    pub(crate) bench_initrd: PathBuf,
}

impl Kernel {
    /// All that there are, the one that boots fastest first.
    pub(crate) fn all() -> Vec<Self> {
        let dir = resources();
        let slim = std::env::var_os("WIREVM_SLIM_KERNEL").map(PathBuf::from);
        let slim = slim.into_iter().chain([dir.join("vmlinuz-slim"), dir.join("slim/bzImage")]);
        let slim = slim.map(|image| ("slim", image));
        let debian = ["6.12", "6.1"].map(|name| (name, dir.join(format!("vmlinuz-{name}"))));
        let mut found: Vec<Self> = Vec::new();
        for (name, image) in slim.chain(debian) {
            let initrd = dir.join(format!("guest-{name}.cpio"));
            let bench_initrd = dir.join(format!("guest-bench-{name}.cpio"));
            let complete = [&image, &initrd, &bench_initrd].iter().all(|file| file.exists());
            if complete && found.iter().all(|kernel| kernel.name != name) {
                found.push(Self { name: name.to_owned(), image, initrd, bench_initrd });
            }
        }
        found
    }

    /// The same in `directory`, which is to be in memory: the lab reads a file of its host slowly.
    pub(crate) fn copied(self, directory: &TempDir) -> Result<Self, String> {
        let copy = |from: PathBuf| {
            let to = directory.path(&from.file_name().expect("a file").to_string_lossy());
            let copied = std::fs::copy(&from, &to);
            copied.map(|_| to).map_err(|error| format!("cannot copy {}: {error}", from.display()))
        };
        let (image, initrd, bench_initrd) = (copy(self.image)?, copy(self.initrd)?, copy(self.bench_initrd)?);
        Ok(Self { image, initrd, bench_initrd, ..self })
    }
}

/// What a guest is started with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guest<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initrd: &'a Path,
    pub(crate) memory_mib: u64,
    /// The tap of its only NIC; none for one that the VMM makes.
    pub(crate) tap: Option<&'a str>,
}

/// Words on every guest's kernel command line. Nothing that is not the guest's own output crosses the console, which costs
/// an exit for each byte.
pub(crate) const CMDLINE: &str = "console=ttyS0 loglevel=1 panic=-1";
