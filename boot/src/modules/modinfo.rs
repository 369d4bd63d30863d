//! What a module says of itself: the section `.modinfo`, of strings `KEY=VALUE` (ELF-64 Object File Format; Linux
//! `include/linux/module.h`).

use super::index::name_of;

/// What a module needs, by names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Info {
    /// Before it, or it does not load.
    pub(super) needs: Vec<String>,
    /// Before it, where there is such a module.
    pub(super) before: Vec<String>,
    /// After it, likewise.
    pub(super) after: Vec<String>,
}

impl Info {
    /// Adds what a softdep says: `pre: NAME... post: NAME...`.
    pub(super) fn soften<'a>(&mut self, words: impl Iterator<Item = &'a str>) {
        let mut to = None;
        for word in words {
            match (word, &mut to) {
                ("pre:", _) => to = Some(false),
                ("post:", _) => to = Some(true),
                (name, Some(true)) => self.after.push(name_of(name)),
                (name, Some(false)) => self.before.push(name_of(name)),
                // A word before both says nothing that is defined.
                (_, None) => {}
            }
        }
    }
}

/// Of a module's bytes; `None` where they have no such section.
pub(super) fn of(elf: &[u8]) -> Option<Info> {
    let section = section(elf, b".modinfo")?;
    let mut info = Info::default();
    for text in section.split(|byte| *byte == 0) {
        let Ok(text) = str::from_utf8(text) else { continue };
        match text.split_once('=') {
            Some(("depends", names)) => {
                info.needs.extend(names.split(',').filter(|name| !name.is_empty()).map(name_of));
            }
            Some(("softdep", words)) => info.soften(words.split_whitespace()),
            _ => {}
        }
    }
    Some(info)
}

fn section<'a>(elf: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let half =
        |bytes: &[u8], at: usize| Some(usize::from(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?)));
    let word = |bytes: &[u8], at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?) as usize);
    let long =
        |bytes: &[u8], at: usize| usize::try_from(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?)).ok();
    // e_shoff, e_shentsize, e_shnum, e_shstrndx
    let table = elf.get(long(elf, 0x28)?..)?;
    let (size, count, names) = (half(elf, 0x3a)?, half(elf, 0x3c)?, half(elf, 0x3e)?);
    if size < 64 {
        return None;
    }
    let header = |index: usize| table.get(index * size..)?.get(..size);
    let content = |header: &[u8]| elf.get(long(header, 0x18)?..)?.get(..long(header, 0x20)?);
    let names = content(header(names)?)?;
    let is_it = |header: &&[u8]| {
        let called = word(header, 0).and_then(|at| names.get(at..)).unwrap_or_default();
        called.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&0))
    };
    content((0..count).map_while(header).find(is_it)?)
}
