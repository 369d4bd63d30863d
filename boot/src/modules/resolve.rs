//! The modules to be loaded for those that are wanted, in an order that works.

use std::collections::HashSet;
use std::path::PathBuf;

use super::error::Error;
use super::index::{Modules, name_of, read};

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
    /// A module that must be asked what it needs cannot be read.
    pub fn resolve(&self, wanted: &[&str]) -> Result<Resolution, Error> {
        let mut resolution = Resolution::default();
        let mut seen = HashSet::new();
        for name in wanted {
            let name = name_of(name);
            if self.is_built_in(&name) {
                resolution.built_in.push(name);
            } else if !self.add(&name, &mut seen, &mut resolution.load)? {
                resolution.absent.push(name);
            }
        }
        Ok(resolution)
    }

    /// Adds the module of this name and all that it needs, unless that was done; whether there is one. As deep as modules need modules,
    /// each once.
    fn add(&self, name: &str, seen: &mut HashSet<String>, load: &mut Vec<Module>) -> Result<bool, Error> {
        let Some(path) = self.path(name) else { return Ok(false) };
        if !seen.insert(name.into()) {
            return Ok(true);
        }
        let info = self.needs(name)?;
        for need in &info.needs {
            self.add(need, seen, load)?;
        }
        self.add_soft(&info.before, seen, load)?;
        load.push(Module { name: name.into(), path: path.into() });
        self.add_soft(&info.after, seen, load)?;
        Ok(true)
    }

    fn add_soft(
        &self,
        names: &[String],
        seen: &mut HashSet<String>,
        load: &mut Vec<Module>,
    ) -> Result<(), Error> {
        for name in names {
            if self.is_built_in(name) || self.add(name, seen, load)? {
                continue;
            }
            // crc32c is no module's name, but what crc32c_generic and crc32c_intel stand for. The latter does not load on every
            // processor, and need not.
            for module in self.aliased(name) {
                self.add(&module, seen, load)?;
            }
        }
        Ok(())
    }
}
