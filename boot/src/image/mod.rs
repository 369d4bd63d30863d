//! Images: what `--image` names becomes a tree of files, and the tree a file system for the guest.
//!
//! An image is a directory, a tar archive, an OCI layout, or what `docker save` and `podman save` write; an archive can be packed and
//! can come through a pipe. Which of them it is its content says, never its name.
//!
//! **Invariant:** an image is not trusted. Nothing of it is ever made on the host by its name: the tree is in memory, as metadata, and
//! the files' bytes stay where they lie, in the archive or in an unlinked spool file, until they are copied into the one file that
//! becomes the guest's. What is made of it is bounded by [`Limits`]. Whatever its bytes, the outcome is an [`Error`] or a file system
//! that holds what the image says; devices, setuid programs and their owners are the guest's.
//!
//! The way, and a map of the files:
//!
//! - `Source::open` finds out what the image is and by which digest it is known; `Source::load` makes the tree.
//!   `recognize.rs` says what a file is that is none.
//! - `span.rs`: bytes where they lie, and the spool. `sha256.rs`.
//! - `tar/`: archives. `layer.rs`: archives into the tree, with whiteouts. `directory.rs`: a directory of the host into a tree.
//! - `oci.rs`, `config.rs`: layouts and manifests; the command to run.
//! - `tree.rs`, `xattr.rs`, `limits.rs`: the tree, and what bounds it.
//! - `cpio.rs`, `erofs/`: the tree as initramfs and as file system. `write.rs`: what both write with.
//! - `cache.rs`: the file systems that were made, by digest. [`root`] joins all of it.
//! - `fault.rs`, `error.rs`: what can be wrong, and what the user does about it.

mod cache;
mod config;
pub(crate) mod cpio;
mod directory;
mod erofs;
mod error;
mod fault;
mod layer;
mod limits;
mod oci;
mod recognize;
mod root;
pub(crate) mod sha256;
mod source;
mod span;
mod tar;
#[cfg(test)]
mod tests;
mod tree;
mod write;
mod xattr;

pub use cache::Cache;
pub use config::ImageConfig;
pub use error::Error;
pub use fault::Fault;
pub use limits::Limits;
pub use root::{Format, Root, root};
pub use sha256::Digest;
