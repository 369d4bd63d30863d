//! What all fuzz targets have: the input taken apart, the first inputs, files in memory, and a bound on what an input may allocate.
//!
//! A target is a program of `targets/`. It plays the hostile side by public interfaces alone, and says in its head what it holds to
//! be true of any input. libFuzzer mutates what it is given; `tests/fuzz/run` builds it and watches over time and memory.

mod input;
mod memory;
pub mod root;
pub mod tar;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

pub use input::{Input, join, parts};
pub use libfuzzer_sys;
pub use memory::bounded;

/// What a target begins with: a name for a person, and the input.
pub type Seeds = Vec<(String, Vec<u8>)>;

/// A fuzz target: its seeds, and what it does with an input.
#[macro_export]
macro_rules! target {
    ($seeds:path, $run:path) => {
        $crate::libfuzzer_sys::fuzz_target!(init: $crate::begin($seeds), |data: &[u8]| $run(data));
    };
}

/// With `FUZZ_SEEDS` in the environment, writes the seeds to that directory, and ends the program.
pub fn begin(seeds: fn() -> Seeds) {
    let Some(directory) = std::env::var_os("FUZZ_SEEDS") else { return };
    for (name, bytes) in seeds() {
        std::fs::write(Path::new(&directory).join(name), bytes).expect("the directory for seeds is there");
    }
    std::process::exit(0);
}

/// A file without a name, in memory.
pub struct MemoryFile(OwnedFd);

impl MemoryFile {
    /// One with these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        let fd = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC);
        let mut file = File::from(fd.expect("the kernel has memfds"));
        file.write_all(bytes).expect("there is memory");
        Self(file.into())
    }

    /// By which it can be opened.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

/// A directory of this process's, empty: below `TMPDIR`, which `tests/fuzz/run` removes.
pub fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("fuzz-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).expect("there is room for temporary files");
    path
}
