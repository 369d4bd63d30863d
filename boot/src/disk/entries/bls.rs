//! The Boot Loader Specification's entries (UAPI.1, type 1), as systemd-boot and Fedora's GRUB have them.

use std::cmp::Ordering;

use super::env::Env;
use super::version::compare;
use super::{Entry, Error, FileSystem, expand, text};

/// Where they are, and where the directory is that their paths count from: that of the file system.
const PLACES: [&str; 2] = ["/boot/loader", "/loader"];
/// The most of them that are looked at, and of their lines, of which the longest are as long as a command line.
const ENTRIES_MAX: usize = 256;
const LINES_MAX: usize = 256;
const OPTIONS_MAX: usize = 64 << 10;
const INITRDS_MAX: usize = 16;

/// An entry, with what it is found and sorted by.
#[derive(Debug, Default)]
struct Item {
    /// The file's name, without `.conf` and the count of its tries.
    id: String,
    /// It was tried, and never came up.
    bad: bool,
    sort_key: Option<String>,
    machine_id: String,
    version: String,
    entry: Entry,
}

/// The entry that is booted by default.
pub(super) fn default(system: &dyn FileSystem, env: &Env) -> Result<Option<Entry>, Error> {
    for place in PLACES {
        let directory = format!("{place}/entries");
        let mut items = Vec::new();
        let names = system.list(&directory)?;
        for name in names.iter().filter(|name| name.ends_with(".conf")).take(ENTRIES_MAX) {
            if let Some(text) = text(system, &format!("{directory}/{name}"))? {
                items.extend(parse(name, &text, env));
            }
        }
        if items.is_empty() {
            continue;
        }
        items.sort_by(order);
        let conf = text(system, &format!("{place}/loader.conf"))?.unwrap_or_default();
        let wanted =
            conf.lines().filter_map(|line| key(line).filter(|(key, _)| *key == "default")).next_back();
        let chosen =
            chosen(&items, env.get("saved_entry").map(String::as_str), wanted.map(|(_, value)| value));
        return Ok(Some(items.swap_remove(chosen).entry));
    }
    Ok(None)
}

/// The index of the entry to boot: as GRUB saved it, as systemd-boot's configuration has it, or the first.
fn chosen(items: &[Item], saved: Option<&str>, wanted: Option<&str>) -> usize {
    let by_id = |id: &str| items.iter().position(|item| item.id == id || item.entry.title == id);
    let by_number = |text: &str| text.parse().ok().filter(|index| *index < items.len());
    let by_pattern = |pattern: &str| {
        let pattern = pattern.strip_suffix(".conf").unwrap_or(pattern);
        let fits = |item: &Item| match pattern.strip_suffix('*') {
            Some(start) => item.id.starts_with(start),
            None => item.id == pattern,
        };
        items.iter().position(fits)
    };
    let saved = saved.and_then(|saved| by_id(saved).or_else(|| by_number(saved)));
    saved.or_else(|| wanted.and_then(by_pattern)).unwrap_or(0)
}

/// A line's key and value.
fn key(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    let (key, value) = line.split_once([' ', '\t'])?;
    (!key.starts_with('#')).then(|| (key, value.trim()))
}

/// One file; `None` where it is about no kernel.
fn parse(name: &str, text: &str, env: &Env) -> Option<Item> {
    let id = name.strip_suffix(".conf").unwrap_or(name);
    let (id, tries) = match id.rsplit_once('+') {
        Some((id, tries)) if tries.starts_with(|c: char| c.is_ascii_digit()) => (id, tries),
        _ => (id, ""),
    };
    let mut item =
        Item { id: id.to_owned(), bad: tries == "0" || tries.starts_with("0-"), ..Item::default() };
    let value = |value: &str| expand(value, |name| env.get(name).map(String::as_str));
    let entry = &mut item.entry;
    for (key, text) in text.lines().take(LINES_MAX).filter_map(key) {
        match key {
            "title" => entry.title = value(text),
            "version" => item.version = text.to_owned(),
            "sort-key" => item.sort_key = Some(text.to_owned()),
            "machine-id" => item.machine_id = text.to_owned(),
            "linux" => entry.kernel = text.to_owned(),
            // Fedora has a second one there by a variable, which can be nothing.
            "initrd" if entry.initrds.len() < INITRDS_MAX => {
                entry.initrds.extend(value(text).split_whitespace().take(INITRDS_MAX).map(str::to_owned))
            }
            "options" if entry.options.len() < OPTIONS_MAX => {
                entry.options = format!("{} {}", entry.options, value(text)).trim().to_owned()
            }
            "architecture" if !text.eq_ignore_ascii_case("x64") => return None,
            _ => {}
        }
    }
    if entry.title.is_empty() {
        entry.title.clone_from(&item.id);
    }
    (!entry.kernel.is_empty()).then_some(item)
}

/// What comes first is booted: those with a sort key, of which the newest, then those with the greatest name.
fn order(a: &Item, b: &Item) -> Ordering {
    let by_name = || compare(&b.id, &a.id);
    a.bad.cmp(&b.bad).then_with(|| match (&a.sort_key, &b.sort_key) {
        (Some(first), Some(second)) => first
            .cmp(second)
            .then_with(|| a.machine_id.cmp(&b.machine_id))
            .then_with(|| compare(&b.version, &a.version))
            .then_with(by_name),
        (first, second) => second.is_some().cmp(&first.is_some()).then_with(by_name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(files: &[(&str, &str)]) -> Vec<Item> {
        let env = Env::from([("kernelopts".into(), "root=UUID=7 ro".into())]);
        let mut items: Vec<_> = files.iter().filter_map(|(name, text)| parse(name, text, &env)).collect();
        items.sort_by(order);
        items
    }

    #[test]
    fn an_entry_is_what_its_file_says() {
        let text = "# a comment\ntitle Fedora Linux (6.11)\nversion 6.11\nlinux /vmlinuz-6.11\ninitrd /initramfs-6.11.img $tuned_initrd\n\
                    options $kernelopts quiet\noptions\t$tuned_params\ngrub_users $grub_users\n";
        let [item] = &items(&[("abc-6.11.conf", text)])[..] else { panic!("one") };
        let entry = Entry {
            title: "Fedora Linux (6.11)".into(),
            kernel: "/vmlinuz-6.11".into(),
            initrds: vec!["/initramfs-6.11.img".into()],
            options: "root=UUID=7 ro quiet".into(),
        };
        assert_eq!(item.entry, entry);
        assert!(
            items(&[("efi.conf", "title Shell\nefi /shell.efi"), ("a.conf", "linux /k\narchitecture aa64")])
                .is_empty()
        );
    }

    #[test]
    fn the_first_is_the_newest_unless_another_was_chosen() {
        let linux = "linux /k\n";
        let files = [
            ("m-6.9.0.conf", linux),
            ("m-6.10.0.conf", linux),
            ("m-6.11.0+0-3.conf", linux),
            ("m-0-rescue.conf", linux),
        ];
        let items = items(&files);
        let ids: Vec<_> = items.iter().map(|item| &item.id[..]).collect();
        assert_eq!(ids, ["m-6.10.0", "m-6.9.0", "m-0-rescue", "m-6.11.0"]);
        for (saved, wanted, index) in [
            (None, None, 0),
            (Some("m-6.9.0"), None, 1),
            (Some("gone"), Some("m-6.9*"), 1),
            (None, Some("m-0-rescue.conf"), 2),
            (Some("3"), None, 3),
            (Some("9"), Some("nothing*"), 0),
        ] {
            assert_eq!(chosen(&items, saved, wanted), index, "{saved:?} {wanted:?}");
        }
    }

    #[test]
    fn sort_keys_come_first_and_then_versions() {
        let files = [
            ("z.conf", "linux /k"),
            ("a.conf", "linux /k\nsort-key debian\nversion 6.9"),
            ("b.conf", "linux /k\nsort-key debian\nversion 6.10"),
            ("c.conf", "linux /k\nsort-key arch\nversion 1"),
        ];
        let items = items(&files);
        assert_eq!(items.iter().map(|item| &item.id[..]).collect::<Vec<_>>(), ["c", "b", "a", "z"]);
    }

    /// A file system of files in memory.
    struct Files<'a>(&'a [(&'a str, &'a str)]);

    impl FileSystem for Files<'_> {
        fn kind(&self) -> crate::disk::fs::Kind {
            crate::disk::fs::Kind::Fat
        }

        fn uuid(&self) -> String {
            String::new()
        }

        fn is_directory(&self, _: &str) -> Result<bool, Error> {
            Ok(false)
        }

        fn list(&self, path: &str) -> Result<Vec<String>, Error> {
            let names = self.0.iter().filter_map(|(file, _)| file.strip_prefix(path)?.strip_prefix('/'));
            Ok(names.map(str::to_owned).collect())
        }

        fn read(&self, path: &str, _: u64) -> Result<Option<Vec<u8>>, Error> {
            Ok(self.0.iter().find(|(file, _)| *file == path).map(|(_, text)| text.as_bytes().to_vec()))
        }
    }

    #[test]
    fn the_configuration_of_systemd_boot_says_which_is_booted() {
        let kernel = |conf: &str, env: &[(&str, &str)]| {
            let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
            let files = [
                ("/loader/entries/a.conf", "linux /a"),
                ("/loader/entries/b.conf", "title B it is\nlinux /b"),
                ("/loader/entries/c.conf", "linux /c"),
                ("/loader/entries/z.txt", "linux /z"),
                ("/loader/loader.conf", conf),
            ];
            default(&Files(&files), &env).unwrap().unwrap().kernel
        };
        for (conf, found) in [
            ("", "/c"),
            ("timeout 3\ndefault b.conf\nconsole-mode max", "/b"),
            ("default a\n default\tb*\n#default c", "/b"),
            ("timeout a\neditor b", "/c"),
            ("default z", "/c"),
        ] {
            assert_eq!(kernel(conf, &[]), found, "{conf}");
        }
        for (saved, found) in
            [("B it is", "/b"), ("b", "/b"), ("0", "/c"), ("1", "/b"), ("3", "/a"), ("gone", "/a")]
        {
            assert_eq!(kernel("default a", &[("saved_entry", saved)]), found, "{saved}");
        }
    }

    #[test]
    fn a_plus_is_a_count_of_tries_before_a_digit_only() {
        let linux = "linux /k";
        for (name, id, bad) in [
            ("m-6.12.1+deb13-amd64.conf", "m-6.12.1+deb13-amd64", false),
            ("m+3.conf", "m", false),
            ("m+3-1.conf", "m", false),
            ("m+0.conf", "m", true),
            ("m+0-3.conf", "m", true),
            ("m+.conf", "m+", false),
        ] {
            let item = parse(name, linux, &Env::new()).unwrap();
            assert_eq!((&item.id[..], item.bad), (id, bad), "{name}");
        }
    }

    #[test]
    fn of_the_same_sort_key_the_machine_and_then_the_version_count() {
        let files = [
            ("d.conf", "linux /k\nsort-key s\nmachine-id 2\nversion 9"),
            ("c.conf", "linux /k\nsort-key s\nmachine-id 1\nversion 6.9"),
            ("b.conf", "linux /k\nsort-key s\nmachine-id 1\nversion 6.10"),
            ("a.conf", "linux /k\nsort-key s\nmachine-id 1\nversion 6.9"),
        ];
        assert_eq!(items(&files).iter().map(|item| &item.id[..]).collect::<Vec<_>>(), ["b", "c", "a", "d"]);
    }

    #[test]
    fn an_entry_is_for_this_architecture_or_for_any() {
        for (architecture, boots) in [("x64", true), ("X64", true), ("aa64", false), ("ia32", false)] {
            let text = format!("linux /k\narchitecture {architecture}");
            assert_eq!(parse("a.conf", &text, &Env::new()).is_some(), boots, "{architecture}");
        }
    }

    #[test]
    fn an_entry_has_so_many_initrds_and_options_and_no_more() {
        let entry = |lines: &[String]| {
            parse("a.conf", &format!("linux /k\n{}", lines.join("\n")), &Env::new()).unwrap().entry
        };
        for lines in [INITRDS_MAX - 1, INITRDS_MAX, INITRDS_MAX + 1, 100] {
            let initrds: Vec<_> = (0..lines).map(|n| format!("initrd /{n}")).collect();
            assert_eq!(entry(&initrds).initrds.len(), lines.min(INITRDS_MAX), "{lines}");
        }
        assert_eq!(entry(&[format!("initrd {}", "/i ".repeat(100))]).initrds.len(), INITRDS_MAX);
        // Lines with a blank between: one less than the limit, the limit, and one more.
        let line = |len: usize| format!("options {}", "o".repeat(len));
        for (len, room) in [(OPTIONS_MAX - 1, true), (OPTIONS_MAX, false), (OPTIONS_MAX + 1, false)] {
            let mut lines = vec![line(12_999); 4];
            lines.push(line(len - 4 * 13_000));
            assert_eq!(entry(&lines).options.len(), len);
            lines.extend(vec!["options x".to_owned(); 100]);
            assert_eq!(entry(&lines).options.len(), if room { len + 2 } else { len }, "{len}");
        }
    }
}
