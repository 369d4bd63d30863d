//! The cache's files: where they lie, whose they are, and what may stand in their place.

use std::path::PathBuf;

use super::caching::{Place, archive};
use super::*;
use crate::image::{Cache, Format, root};

#[test]
fn a_cache_is_where_its_users_environment_says() {
    let place = |variables: &[(&str, &str)], is_root| {
        let variable = |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, v)| v.into());
        Cache::place_of(variable, is_root).ok()
    };
    for (variables, root, other) in [
        (&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")][..], Some("/x/wirevm"), Some("/x/wirevm")),
        (&[("XDG_CACHE_HOME", "x"), ("HOME", "/h")], Some("/var/cache/wirevm"), Some("/h/.cache/wirevm")),
        (&[("HOME", "/h")], Some("/var/cache/wirevm"), Some("/h/.cache/wirevm")),
        (&[("XDG_CACHE_HOME", ""), ("HOME", "h")], Some("/var/cache/wirevm"), None),
        (&[], Some("/var/cache/wirevm"), None),
    ] {
        assert_eq!(place(variables, true), root.map(PathBuf::from), "root with {variables:?}");
        assert_eq!(place(variables, false), other.map(PathBuf::from), "another with {variables:?}");
    }
}

/// Whether the open file of this path is closed where another program is run.
fn closes_on_exec(path: &Path) -> bool {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let fd = fds.map(|entry| entry.path()).find(|fd| std::fs::read_link(fd).is_ok_and(|link| link == path));
    let info = Path::new("/proc/self/fdinfo").join(fd.unwrap().file_name().unwrap());
    let info = std::fs::read_to_string(info).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    i32::from_str_radix(flags.trim(), 8).unwrap() & 0o2_000_000 != 0
}

#[test]
fn neither_roots_nor_locks_go_to_programs_that_are_run() {
    let place = Place::new();
    place.directory.file("image", &archive(b"1"));
    for cached in [false, true] {
        let made = place.made("image", Format::Erofs);
        let flags = rustix::io::fcntl_getfd(&made.file).unwrap();
        assert_eq!((made.cached, flags), (cached, rustix::io::FdFlags::CLOEXEC));
    }
    let _lock = place.cache.lock("name", || ()).unwrap();
    assert!(closes_on_exec(&place.cache.directory().join("name.lock").canonicalize().unwrap()));
}

#[test]
fn a_link_in_a_locks_place_is_not_followed() {
    let place = Place::new();
    let elsewhere = place.directory.file("elsewhere", b"text");
    std::os::unix::fs::symlink(&elsewhere, place.cache.directory().join("name.lock")).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let cache = Cache::at(place.cache.directory().into()).unwrap();
    std::thread::spawn(move || tell.send(cache.lock("name", || ()).map(drop)));
    let error = told.recv_timeout(std::time::Duration::from_secs(60)).unwrap().unwrap_err();
    assert!(matches!(error, Error::Cache { .. }), "{error}");
    assert_eq!(std::fs::read(elsewhere).unwrap(), b"text");
}

#[test]
fn a_directory_in_an_entrys_place_stays_and_is_said() {
    let place = Place::new();
    let path = place.directory.file("image", &archive(b"1"));
    place.made("image", Format::Erofs);
    let entry = place.entries().remove(0);
    std::fs::remove_file(&entry).unwrap();
    std::fs::create_dir(&entry).unwrap();
    let error = root(&path, Format::Erofs, &place.cache, Limits::default()).unwrap_err();
    let Error::Cache { source, .. } = error else { panic!("{error}") };
    assert_eq!((source.kind(), entry.is_dir()), (std::io::ErrorKind::IsADirectory, true));
}

#[test]
fn an_entry_of_another_user_is_made_again() {
    let place = Place::new();
    place.directory.file("image", &archive(b"1"));
    place.made("image", Format::Erofs);
    let [entry] = &place.entries()[..] else { panic!("{:?}", place.entries()) };
    let another = rustix::process::geteuid().as_raw() + 1;
    if std::os::unix::fs::chown(entry, Some(another), None).is_err() {
        return eprintln!("skipped: this user cannot give a file to another");
    }
    assert!(!place.made("image", Format::Erofs).cached);
    assert!(place.made("image", Format::Erofs).cached);
}

#[test]
fn what_an_image_says_of_its_command_is_kept_up_to_a_mebibyte() {
    use std::io::Write;
    let place = Place::new();
    let of = |len: usize| {
        let mut config = crate::image::ImageConfig::default();
        config.user = "u".repeat(len - config.to_json().to_string().len());
        assert_eq!(config.to_json().to_string().len(), len);
        config
    };
    for (len, kept) in [(1 << 16, true), (1 << 20, true), ((1 << 20) + 1, false), ((1 << 20) + 2, false)] {
        for end in [0, 124] {
            let (config, name) = (of(len), format!("{len}-{end}"));
            let mut file = place.cache.file().unwrap();
            file.write_all(&[7; 4096]).unwrap();
            file.write_all(&crate::image::cache::footer(&config, 4096, end, 4096)).unwrap();
            file.write_all(&vec![0; end as usize]).unwrap();
            place.cache.keep(&file, &name).unwrap();
            let found = place.cache.find(&name, end).map(|(_, config)| config);
            assert_eq!(found == Some(config), kept, "{name}");
            assert_eq!(found.is_some(), kept, "{name}");
        }
    }
}
