//! What the tests of the whole program share: the built `wirevm`, guests, consoles and network namespaces.
//!
//! Tests come in two kinds. Those at the top of a file run on any KVM, with hand-made guests of a few instructions. Those
//! in a module `stock` boot Linux and need a KVM that runs a guest's kernel on the processor, or need what Debian's own kernel
//! has; `make test` runs them here where it can, and otherwise all together in one boot of the lab.
//!
//! A test that cannot run calls [`skip!`] and returns: its line `skipped: NAME: why` is what the total counts.

pub mod agent;
pub mod another;
pub mod fault;
pub mod handmade;
pub mod netns;
pub mod stock;
pub mod traffic;
mod variant;
mod vm;

pub use variant::{Variant, counts_frames, variant, varied};
pub use vm::{Output, Terminal, Vm};

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

/// Says that this test cannot run, and why, and leaves it.
#[macro_export]
macro_rules! skip {
    ($($why:tt)+) => {{
        println!("skipped: {}: {}", std::thread::current().name().unwrap_or("?"), format_args!($($why)+));
        return;
    }};
}

/// What a test needs, out of a `Result`; without it the test cannot run, and says the error as the reason.
#[macro_export]
macro_rules! need {
    ($value:expr) => {
        match $value {
            Ok(value) => value,
            Err(why) => $crate::skip!("{why}"),
        }
    };
}

/// The program under test: `$WIREVM`, else the one that cargo built beside this test.
pub fn wirevm_path() -> PathBuf {
    if let Some(path) = std::env::var_os("WIREVM") {
        return path.into();
    }
    let test = std::env::current_exe().expect("a test knows where it is");
    let path = test.parent().and_then(|deps| deps.parent()).expect("target/PROFILE/deps").join("wirevm");
    assert!(path.exists(), "{} is not there: run cargo build first, or set WIREVM", path.display());
    path
}

/// A command that starts the program under test.
pub fn wirevm() -> Command {
    Command::new(wirevm_path())
}

/// The program under test as a user without rights, in a copy that it can reach; `setpriv` is the command of that name.
pub fn as_nobody(mut setpriv: Command, dir: &TempDir) -> Command {
    std::fs::set_permissions(dir.path(""), Permissions::from_mode(0o755)).expect("our own directory");
    let program = dir.path("wirevm");
    std::fs::copy(wirevm_path(), &program).expect("a copy of the program");
    setpriv.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]).arg(program);
    setpriv
}

/// A directory of this test's own, removed with all in it when dropped.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Makes it under the system's place for such.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("wirevm-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a new directory");
        Self(path)
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file in it, and returns its path.
    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("a new file");
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
