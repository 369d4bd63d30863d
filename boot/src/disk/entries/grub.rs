//! GRUB's menu, read as text: what its entries boot, and which is the default one.
//!
//! It is a script, and is not run. What generators of it write (`grub-mkconfig` of Debian, Ubuntu and Fedora) is understood: menu entries
//! and submenus, `linux` and `initrd`, `set`, quoting. Of an entry with a condition in it, the first way counts.

mod lexer;

use std::collections::BTreeMap;

use self::lexer::statements;
use super::env::Env;
use super::{Entry, Error, FileSystem, expand, text};

/// Where distributions have it; what a file system that is mounted at `/boot` has comes last.
const PLACES: [&str; 4] =
    ["/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub/grub.cfg", "/grub2/grub.cfg"];
/// The most variables, and characters that they put anywhere.
const VARIABLES_MAX: usize = 1024;
const EXPANDED_MAX: usize = 16 << 20;
const DEPTH_MAX: usize = 16;

/// The entry that is booted by default.
pub(super) fn default(system: &dyn FileSystem, env: &Env) -> Result<Option<Entry>, Error> {
    for path in PLACES {
        if let Some(text) = text(system, path)?
            && let Some(entry) = chosen(&text, env)?
        {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// The default entry of this menu; `None` where it boots no kernel.
fn chosen(text: &str, env: &Env) -> Result<Option<Entry>, Error> {
    let menu = Reader::new(env).read(text)?;
    let default = menu.default.as_deref().unwrap_or_default();
    Ok(find(&menu.items, default).or_else(|| first(&menu.items)).cloned())
}

/// An entry of the menu, or a submenu.
#[derive(Debug, Default)]
struct Item {
    id: String,
    /// That of an entry is in `entry`, too.
    title: String,
    /// What it boots, if that is a kernel.
    entry: Entry,
    items: Vec<Item>,
}

/// The item of `items` that `wanted` names: by its number, title or ID, with `>` before what it names in a submenu.
fn find<'i>(items: &'i [Item], wanted: &str) -> Option<&'i Entry> {
    let (here, below) = wanted.split_once('>').unwrap_or((wanted, ""));
    let here = here.trim();
    let item = match here.parse::<usize>() {
        Ok(index) => items.get(index),
        Err(_) => items.iter().find(|item| !here.is_empty() && (item.id == here || item.title == here)),
    }?;
    match item.items.is_empty() {
        true => bootable(item),
        false => find(&item.items, below).or_else(|| first(&item.items)),
    }
}

/// The first that boots a kernel.
fn first(items: &[Item]) -> Option<&Entry> {
    items.iter().find_map(|item| bootable(item).or_else(|| first(&item.items)))
}

fn bootable(item: &Item) -> Option<&Entry> {
    (!item.entry.kernel.is_empty()).then_some(&item.entry)
}

/// A block that has begun.
enum Open {
    Item(Item),
    /// Of a function, or anything else that is not looked at.
    Other,
}

struct Menu {
    items: Vec<Item>,
    default: Option<String>,
}

struct Reader<'e> {
    env: &'e Env,
    variables: BTreeMap<String, String>,
    menu: Menu,
    open: Vec<Open>,
    expanded: usize,
}

impl<'e> Reader<'e> {
    fn new(env: &'e Env) -> Self {
        let menu = Menu { items: Vec::new(), default: None };
        Self { env, variables: BTreeMap::new(), menu, open: Vec::new(), expanded: 0 }
    }

    fn read(mut self, text: &str) -> Result<Menu, Error> {
        for words in statements(text) {
            match &words[0][..] {
                "}" => self.close(),
                _ if words.last().is_some_and(|word| word == "{") => self.begin(&words)?,
                _ => self.statement(&words)?,
            }
        }
        while !self.open.is_empty() {
            self.close();
        }
        Ok(self.menu)
    }

    fn begin(&mut self, words: &[String]) -> Result<(), Error> {
        if self.open.len() == DEPTH_MAX {
            return Err(Error::TooMuch { what: "in one another in its grub.cfg" });
        }
        let open = match &words[0][..] {
            "menuentry" | "submenu" => {
                let title = self.value(words.get(1).map_or("", |title| title))?;
                // Older ones have the option's name in a variable.
                let option = |word: &String| word == "--id" || word == "$menuentry_id_option";
                let id = words.iter().position(option).and_then(|at| words.get(at + 1));
                let id = self.value(id.map_or("", |id| id))?;
                Open::Item(Item {
                    id,
                    entry: Entry { title: title.clone(), ..Entry::default() },
                    title,
                    items: Vec::new(),
                })
            }
            _ => Open::Other,
        };
        self.open.push(open);
        Ok(())
    }

    fn close(&mut self) {
        if let Some(Open::Item(item)) = self.open.pop() {
            match self.open.last_mut() {
                Some(Open::Item(parent)) => parent.items.push(item),
                Some(Open::Other) => {}
                None => self.menu.items.push(item),
            }
        }
    }

    fn statement(&mut self, words: &[String]) -> Result<(), Error> {
        let words = match &words[0][..] {
            // What follows on the same line: `if [ ... ]; then set ...`.
            "then" | "else" if words.len() > 1 => &words[1..],
            _ => words,
        };
        if matches!(self.open.last(), Some(Open::Other)) {
            return Ok(());
        }
        match &words[0][..] {
            "set" => words.get(1).map_or(Ok(()), |assignment| self.set(assignment)),
            "linux" | "linux16" | "linuxefi" => self.command(words, |entry, mut values| {
                if entry.kernel.is_empty() && !values.is_empty() {
                    entry.kernel = values.remove(0);
                    entry.options = values.join(" ");
                }
            }),
            "initrd" | "initrd16" | "initrdefi" => self.command(words, |entry, values| {
                if entry.initrds.is_empty() {
                    entry.initrds = values;
                }
            }),
            // An assignment, or what is none and sets nothing.
            word => self.set(word),
        }
    }

    /// Puts what a command says into the entry that is open.
    fn command(&mut self, words: &[String], put: impl FnOnce(&mut Entry, Vec<String>)) -> Result<(), Error> {
        if !matches!(self.open.last(), Some(Open::Item(_))) {
            return Ok(());
        }
        let values = words[1..].iter().map(|word| self.value(word)).collect::<Result<Vec<_>, _>>()?;
        // A variable can be several words, or none.
        let values = values.iter().flat_map(|value| super::words(value)).map(str::to_owned).collect();
        if let Some(Open::Item(item)) = self.open.last_mut() {
            put(&mut item.entry, values);
        }
        Ok(())
    }

    fn set(&mut self, assignment: &str) -> Result<(), Error> {
        let Some((name, value)) = assignment.split_once('=') else { return Ok(()) };
        if name == "default" {
            // What was to be booted once: GRUB takes it off as it does so, which is not done here.
            if !value.contains("next_entry") {
                self.menu.default = Some(self.value(value)?);
            }
        } else if !self.env.contains_key(name) && self.variables.len() < VARIABLES_MAX {
            // What the environment has is what such a file falls back from.
            let value = self.value(value)?;
            self.variables.insert(name.to_owned(), value);
        }
        Ok(())
    }

    /// A word with its variables' values.
    fn value(&mut self, word: &str) -> Result<String, Error> {
        let value = |name: &str| self.env.get(name).or_else(|| self.variables.get(name)).map(String::as_str);
        let value = expand(word, value).replace(lexer::DOLLAR, "$");
        self.expanded += value.len();
        if self.expanded > EXPANDED_MAX { Err(Error::TooMuch { what: "in its grub.cfg" }) } else { Ok(value) }
    }
}

#[cfg(test)]
mod tests;
