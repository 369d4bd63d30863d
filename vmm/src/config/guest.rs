//! What a guest without a system of its own is made of, and what runs in it: what `run --image` and `--root` name.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A guest whose root wirevm makes, and whose init is wirevm's agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestConfig {
    /// Its root.
    pub root: RootConfig,
    /// Where the kernel's modules are; none for where the kernel has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules: Option<PathBuf>,
    /// The command and its arguments; empty for the image's own, or a shell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Variables for it, `KEY=VALUE`, beside the image's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The directory that it begins in; none for the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// Directories below a [`RootConfig::Directory`] that the guest may write to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub writable: Vec<PathBuf>,
}

/// What a guest's root is made of. It is read-only: what the guest writes is in its memory, and ends with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootConfig {
    /// An image: a directory, an archive of one, an OCI layout, or what `podman save` writes; `-` is standard input.
    Image(PathBuf),
    /// A directory of the host as it is while the guest runs, by virtio-fs. The command begins in the present directory, if that is in it.
    Directory(PathBuf),
}

impl GuestConfig {
    /// The words of `wirevm run` that make it, but for the command, which is last.
    pub(super) fn to_args(&self) -> Vec<String> {
        let path = |path: &PathBuf| path.to_string_lossy().into_owned();
        let mut args = match &self.root {
            RootConfig::Image(image) => vec!["--image".to_owned(), path(image)],
            RootConfig::Directory(directory) => vec!["--root".to_owned(), path(directory)],
        };
        let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
        self.modules.iter().for_each(|modules| option("--modules", path(modules)));
        self.env.iter().for_each(|variable| option("--env", variable.clone()));
        self.directory.iter().for_each(|directory| option("--workdir", directory.clone()));
        self.writable.iter().for_each(|directory| option("--rw", path(directory)));
        args
    }
}
