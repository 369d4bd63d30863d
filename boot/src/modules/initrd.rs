//! The small initrd: the agent as init, its configuration, and the modules to load.

use crate::image::cpio::{DIRECTORY, Memory, REGULAR};

/// Directories that an init expects.
const DIRECTORIES: [&str; 7] = ["dev", "proc", "sys", "run", "etc", "tmp", "root"];

/// A module for the guest.
#[derive(Clone, Copy, Debug)]
pub struct Loaded<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its ELF object, unpacked.
    pub object: &'a [u8],
}

/// A newc archive with `/init`, which is `agent`, `/.wirevm/config`, and `/.wirevm/modules/NNN-NAME.ko`, numbered in the order in which
/// they are to be loaded; and, where it is `alone`, with the directories that an init mounts on. Otherwise it comes behind another
/// archive, whose directories stay as they are.
pub fn initrd(agent: &[u8], config: &[u8], modules: &[Loaded<'_>], alone: bool) -> Vec<u8> {
    let mut archive = Memory::default();
    for directory in DIRECTORIES.iter().filter(|_| alone) {
        let mode = if *directory == "tmp" { 0o1777 } else { 0o755 };
        archive.add(directory, DIRECTORY | mode, b"");
    }
    for directory in [".wirevm", ".wirevm/modules"] {
        archive.add(directory, DIRECTORY | 0o755, b"");
    }
    archive.add("init", REGULAR | 0o755, agent);
    archive.add(".wirevm/config", REGULAR | 0o600, config);
    for (number, Loaded { name, object }) in modules.iter().enumerate() {
        archive.add(&path(number, name), REGULAR | 0o644, object);
    }
    archive.finish()
}

/// Where these modules are in the guest, in the order in which they are to be loaded.
pub fn paths<'a>(modules: &'a [Loaded<'_>]) -> impl Iterator<Item = String> + 'a {
    modules.iter().enumerate().map(|(number, module)| format!("/{}", path(number, module.name)))
}

fn path(number: usize, name: &str) -> String {
    format!(".wirevm/modules/{number:03}-{name}.ko")
}
