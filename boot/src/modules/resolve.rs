//! The modules to be loaded for those that are wanted, in an order that works.

use std::collections::HashSet;
use std::path::PathBuf;

use super::error::Error;
use super::index::{Modules, name_of, read};

/// Of modules that need modules: Linux's own are five deep.
const DEPTH_MAX: usize = 64;
/// Of modules to be loaded, and of names that are looked for on the way: guests load some dozen.
const LOADED_MAX: usize = 512;
const LOOKED_MAX: usize = 8192;
/// In bytes, of all modules unpacked.
const UNPACKED_MAX: u64 = 512 << 20;

/// A module to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// With `_` for `-`.
    pub name: String,
    /// The file, which may be packed.
    pub path: PathBuf,
}

impl Module {
    /// Its bytes, unpacked.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or is no module for x86-64.
    pub fn read(&self) -> Result<Vec<u8>, Error> {
        read(&self.path)
    }
}

/// The bytes of all of `modules`, unpacked.
///
/// # Errors
/// One cannot be read, is damaged or is no module for x86-64, or they have more bytes than any guest loads.
pub fn read_all(modules: &[Module]) -> Result<Vec<Vec<u8>>, Error> {
    read_within(modules, UNPACKED_MAX)
}

pub(super) fn read_within(modules: &[Module], limit: u64) -> Result<Vec<Vec<u8>>, Error> {
    let mut left = limit;
    let read = |module: &Module| {
        let bytes = module.read()?;
        left = left.checked_sub(bytes.len() as u64).ok_or(Error::TooMuch { limit })?;
        Ok(bytes)
    };
    modules.iter().map(read).collect()
}

/// What became of the modules that were wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolution {
    /// To be loaded one after another: each after what it needs.
    pub load: Vec<Module>,
    /// Of those wanted, what is in the kernel itself.
    pub built_in: Vec<String>,
    /// Of those wanted, what is neither: the kernel lacks it, or has it without saying so.
    pub absent: Vec<String>,
}

impl Modules {
    /// Finds the modules `wanted`, in whose names `-` and `_` are the same, and all that they need. What modules would like beside
    /// them (softdep) is loaded, too, where it is there.
    ///
    /// # Errors
    /// A module that must be asked what it needs cannot be read, or the index says that modules need modules without an end.
    pub fn resolve(&self, wanted: &[&str]) -> Result<Resolution, Error> {
        let mut resolution = Resolution::default();
        let mut way = Way::default();
        for name in wanted {
            let name = name_of(name);
            if self.is_built_in(&name) {
                resolution.built_in.push(name);
            } else if !self.add(&name, &mut way, 0)? {
                resolution.absent.push(name);
            }
        }
        resolution.load = way.load;
        Ok(resolution)
    }

    /// Adds the module of this name and all that it needs, unless that was done; whether there is one. As deep as modules need modules,
    /// each once.
    fn add(&self, name: &str, way: &mut Way, depth: usize) -> Result<bool, Error> {
        way.look(name)?;
        if depth > DEPTH_MAX {
            return Err(Error::NoEnd { name: name.into() });
        }
        let Some(path) = self.path(name) else { return Ok(false) };
        if !way.seen.insert(name.into()) {
            return Ok(true);
        }
        if way.seen.len() > LOADED_MAX {
            return Err(Error::NoEnd { name: name.into() });
        }
        let info = self.needs(name)?;
        for need in &info.needs {
            self.add(need, way, depth + 1)?;
        }
        self.add_soft(&info.before, way, depth + 1)?;
        way.load.push(Module { name: name.into(), path: path.into() });
        self.add_soft(&info.after, way, depth + 1)?;
        Ok(true)
    }

    fn add_soft(&self, names: &[String], way: &mut Way, depth: usize) -> Result<(), Error> {
        for name in names {
            way.look(name)?;
            if self.is_built_in(name) || self.add(name, way, depth)? {
                continue;
            }
            // crc32c is no module's name, but what crc32c_generic and crc32c_intel stand for. The latter does not load on every
            // processor, and need not.
            for module in self.aliased(name) {
                self.add(&module, way, depth)?;
            }
        }
        Ok(())
    }
}

/// From what is wanted to what is to be loaded.
#[derive(Default)]
struct Way {
    /// The modules that were met.
    seen: HashSet<String>,
    load: Vec<Module>,
    /// How many names were looked for.
    looked: usize,
}

impl Way {
    fn look(&mut self, name: &str) -> Result<(), Error> {
        self.looked += 1;
        if self.looked > LOOKED_MAX { Err(Error::NoEnd { name: name.into() }) } else { Ok(()) }
    }
}
