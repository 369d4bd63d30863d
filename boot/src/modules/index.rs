//! Which modules there are, and what each needs.
//!
//! depmod writes it down: `modules.dep` has a line for each, `PATH: PATH...` (modules.dep(5)), `modules.builtin` those that are in the
//! kernel itself, `modules.softdep` and `modules.alias` what the modules say of those. A package that was only unpacked has no
//! `modules.dep`: then the modules themselves are asked.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::error::Error;
use super::modinfo::{self, Info};
use crate::unpack::Packing;

/// In bytes: of an index, of a module, of a module unpacked.
const INDEX_MAX: u64 = 32 << 20;
const MODULE_MAX: u64 = 256 << 20;
/// Of files below a directory of modules, and of directories in directories.
const FILES_MAX: usize = 100_000;
pub(super) const DEPTH_MAX: usize = 16;

/// The modules of a kernel.
#[derive(Debug)]
pub struct Modules {
    /// By name: where it is, and the names of what it needs, where that is known.
    files: HashMap<String, (PathBuf, Option<Vec<String>>)>,
    built_in: Vec<String>,
    /// `softdep` and `alias` lines.
    soft: String,
    aliases: String,
}

/// A module's name by its file's, or as a user writes it: `-` is `_`.
pub(super) fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or_default();
    file.split(".ko").next().unwrap_or_default().replace('-', "_")
}

impl Modules {
    /// None at all: of a kernel that has no directory of modules.
    pub fn none() -> Self {
        Self { files: HashMap::new(), built_in: Vec::new(), soft: String::new(), aliases: String::new() }
    }

    /// Those in `directory`, such as `/lib/modules/VERSION`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let index = |name: &str| {
            let path = directory.join(name);
            read_limited(&path, INDEX_MAX)
                .map(|bytes| bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
        };
        let built_in = index("modules.builtin")?.unwrap_or_default();
        let mut modules = Self {
            built_in: built_in.lines().map(name_of).collect(),
            soft: index("modules.softdep")?.unwrap_or_default(),
            aliases: index("modules.alias")?.unwrap_or_default(),
            ..Self::none()
        };
        match index("modules.dep")? {
            Some(text) => {
                for line in text.lines() {
                    let Some((path, needs)) = line.split_once(':') else { continue };
                    let needs = needs.split_whitespace().map(name_of).collect();
                    modules.files.insert(name_of(path), (directory.join(path), Some(needs)));
                }
            }
            None => modules.walk(directory, 0)?,
        }
        Ok(modules)
    }

    fn walk(&mut self, directory: &Path, depth: usize) -> Result<(), Error> {
        let unreadable = |source| Error::Read { path: directory.into(), source };
        for entry in fs::read_dir(directory).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            let kind = entry.file_type().map_err(unreadable)?;
            // Links (build, source) lead elsewhere.
            if kind.is_dir() && depth < DEPTH_MAX {
                self.walk(&path, depth + 1)?;
            } else if kind.is_file() && is_module(&name) && self.files.len() < FILES_MAX {
                self.files.insert(name_of(&name), (path, None));
            }
        }
        Ok(())
    }

    /// Where the module of this name is.
    pub(super) fn path(&self, name: &str) -> Option<&Path> {
        self.files.get(name).map(|(path, _)| &**path)
    }

    pub(super) fn is_built_in(&self, name: &str) -> bool {
        self.built_in.iter().any(|other| other == name)
    }

    /// What the module of this name needs before it, must have, and may want before and after it.
    pub(super) fn needs(&self, name: &str) -> Result<Info, Error> {
        match self.files.get(name) {
            Some((_, Some(needs))) => {
                let soft = self.soft.lines().filter_map(|line| {
                    let mut words = line.split_whitespace();
                    let ours =
                        words.next() == Some("softdep") && words.next().is_some_and(|of| name_of(of) == name);
                    ours.then_some(words)
                });
                let mut info = Info { needs: needs.clone(), ..Info::default() };
                soft.for_each(|words| info.soften(words));
                Ok(info)
            }
            Some((path, None)) => modinfo::of(&read(path)?).ok_or_else(|| Error::NotAModule {
                path: path.clone(),
                problem: "it has no readable .modinfo section",
            }),
            None => Ok(Info::default()),
        }
    }

    /// The modules that stand for `alias`, which is none's name; of patterns none is looked at.
    pub(super) fn aliased(&self, alias: &str) -> Vec<String> {
        let generic = format!("{alias}_generic");
        let ours = self.aliases.lines().filter_map(|line| {
            let mut words = line.strip_prefix("alias ")?.split_whitespace();
            (name_of(words.next()?) == alias).then(|| words.next().map(name_of))?
        });
        // Without an index of them there is a custom.
        ours.chain(self.files.contains_key(&generic).then_some(generic)).collect()
    }
}

fn is_module(name: &str) -> bool {
    [".ko", ".ko.gz", ".ko.xz", ".ko.zst"].iter().any(|end| name.ends_with(end))
}

/// A module's bytes, unpacked.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    read_module(path, MODULE_MAX)
}

/// The same of at most `limit` bytes.
pub(super) fn read_module(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let unreadable = |source: io::Error| Error::Read { path: path.into(), source };
    let mut file = BufReader::with_capacity(1 << 16, File::open(path).map_err(unreadable)?);
    let mut bytes = Vec::new();
    match Packing::of(file.fill_buf().map_err(unreadable)?) {
        Some(packing) => packing
            .unpack(file)
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| Error::Unpack { path: path.into(), source })?,
        None => file.take(limit + 1).read_to_end(&mut bytes).map_err(unreadable)?,
    };
    if bytes.len() as u64 > limit {
        return Err(Error::TooLarge { path: path.into(), limit });
    }
    // ELF, 64 bits, little endian, a relocatable object for x86-64.
    if bytes.get(..6) != Some(b"\x7fELF\x02\x01") || bytes.get(16..20) != Some(&[1, 0, 62, 0]) {
        return Err(Error::NotAModule { path: path.into(), problem: "it is no ELF object of that kind" });
    }
    Ok(bytes)
}

/// What `path` has; `None` where it is not there.
pub(super) fn read_limited(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)) {
        Ok(len) if len as u64 > limit => Err(Error::TooLarge { path: path.into(), limit }),
        Ok(_) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.into(), source }),
    }
}
