//! The guest's kernel where the user names none, the modules that belong to it, and the small initrd that brings them.
//!
//! **Invariant:** a kernel's files are read and never run; their bytes are not trusted. A version that a kernel says is used as a name in
//! paths only if it can be one. What is not there is an answer, not an error: a kernel with everything built in has no modules at all.
//!
//! - `find.rs`: a kernel on this machine. `version.rs`: which version a kernel is, by its own word.
//! - `directory.rs`: where the modules of that version are. `index.rs`: which there are, and what each needs, by depmod's files or, where
//!   depmod never ran, by the modules' own word (`modinfo.rs`).
//! - `resolve.rs`: those to be loaded, in order. `initrd.rs`: the archive.
//! - `error.rs`: what can be wrong.

mod directory;
mod error;
mod find;
mod index;
mod initrd;
mod modinfo;
mod resolve;
#[cfg(test)]
mod tests;
mod version;

pub use directory::directory;
pub use error::Error;
pub use find::default_kernel;
pub use index::Modules;
pub use initrd::{Loaded, initrd, paths};
pub use resolve::{Module, Resolution, read_all};
pub use version::kernel_version;
