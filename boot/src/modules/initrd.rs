//! The small initrd: the agent as init, its configuration, and the modules to load.

use crate::image::cpio::{DIRECTORY, Memory, REGULAR};

/// Directories that an init expects.
const DIRECTORIES: [&str; 9] =
    ["dev", "proc", "sys", "run", "etc", "tmp", "root", ".wirevm", ".wirevm/modules"];

/// A module for the guest.
#[derive(Clone, Copy, Debug)]
pub struct Loaded<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its ELF object, unpacked.
    pub object: &'a [u8],
}

/// A newc archive with `/init`, which is `agent`, `/.wirevm/config`, and `/.wirevm/modules/NNN-NAME.ko`, numbered in the order in which
/// they are to be loaded; and with the directories that an init mounts on.
pub fn initrd(agent: &[u8], config: &[u8], modules: &[Loaded<'_>]) -> Vec<u8> {
    let mut archive = Memory::default();
    for directory in DIRECTORIES {
        let mode = if directory == "tmp" { 0o1777 } else { 0o755 };
        archive.add(directory, DIRECTORY | mode, b"");
    }
    archive.add("init", REGULAR | 0o755, agent);
    archive.add(".wirevm/config", REGULAR | 0o600, config);
    for (number, Loaded { name, object }) in modules.iter().enumerate() {
        archive.add(&format!(".wirevm/modules/{number:03}-{name}.ko"), REGULAR | 0o644, object);
    }
    archive.finish()
}
