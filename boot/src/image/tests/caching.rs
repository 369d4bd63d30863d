//! The cache: what is made once, and what is made again.

use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;

use super::*;
use crate::image::{Cache, Format, Root, root};

pub(super) struct Place {
    pub(super) directory: Directory,
    pub(super) cache: Cache,
}

impl Place {
    pub(super) fn new() -> Self {
        let directory = Directory::new();
        let cache = Cache::at(directory.path().join("x/wirevm")).unwrap();
        Self { directory, cache }
    }

    pub(super) fn made(&self, name: &str, format: Format) -> Root {
        root(&self.directory.path().join(name), format, &self.cache, Limits::default()).unwrap()
    }

    pub(super) fn entries(&self) -> Vec<PathBuf> {
        let mut entries: Vec<_> =
            std::fs::read_dir(self.cache.directory()).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        entries
    }
}

fn all(mut file: &std::fs::File) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

pub(super) fn archive(content: &[u8]) -> Vec<u8> {
    Tar::default().file("f", content).end()
}

#[test]
fn an_image_is_made_once_in_each_format() {
    let place = Place::new();
    place.directory.file("image", &archive(b"1"));
    for (count, format) in [(1, Format::Erofs), (2, Format::Cpio)] {
        let first = place.made("image", format);
        let again = place.made("image", format);
        assert_eq!((first.cached, again.cached, place.entries().len()), (false, true, count));
        assert!(all(&first.file) == all(&again.file));
    }
    place.directory.file("copy", &archive(b"1"));
    assert!(place.made("copy", Format::Erofs).cached, "another name, the same bytes");
    place.directory.file("image", &archive(b"2"));
    assert!(!place.made("image", Format::Erofs).cached, "the same name, other bytes");
    assert_eq!(place.cache.directory().metadata().unwrap().permissions().mode() & 0o777, 0o700);
    // A directory has no digest.
    place.directory.file("dir/f", b"3");
    assert!(!place.made("dir", Format::Erofs).cached && !place.made("dir", Format::Erofs).cached);
    assert_eq!(place.entries().len(), 3);
}

#[test]
fn an_entry_that_is_not_whole_is_made_again() {
    let place = Place::new();
    place.directory.file("image", &archive(&[7; 9000]));
    for format in [Format::Erofs, Format::Cpio] {
        let want = all(&place.made("image", format).file);
        let path = place
            .entries()
            .into_iter()
            .find(|path| path.to_string_lossy().ends_with(format!("{format:?}").to_lowercase().as_str()))
            .unwrap();
        let spoil = |how: &dyn Fn(&std::fs::File)| {
            how(&std::fs::File::options().write(true).open(&path).unwrap());
            let again = place.made("image", format);
            assert!(!again.cached && all(&again.file) == want);
            assert!(place.made("image", format).cached);
        };
        let len = want.len() as u64;
        for cut in [0, 1, 60, len / 2, len - 4096.min(len), len - 1] {
            spoil(&|file| file.set_len(cut).unwrap());
        }
        spoil(&|file| file.set_len(len + 4096).unwrap());
        let end = if format == Format::Cpio { 124 } else { 0 };
        for at in [1, 33, 40, 48, 56, 70] {
            spoil(&|file| file.write_all_at(b"#", len - end - at).unwrap());
        }
        // A link is not followed.
        std::fs::rename(&path, place.directory.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(place.directory.path().join("elsewhere"), &path).unwrap();
        assert!(!place.made("image", format).cached);
        assert!(path.symlink_metadata().unwrap().is_file());
    }
}

#[test]
fn what_the_image_says_of_its_command_is_kept() {
    let place = Place::new();
    let layer = archive(b"1");
    let digest = crate::image::Digest::of(&layer);
    let config = format!(
        r#"{{"rootfs":{{"diff_ids":["sha256:{digest}"]}},"config":{{"Env":["A=ü \"x\""],"Cmd":["c"],"User":"u"}}}}"#
    );
    let saved = Tar::default()
        .file("manifest.json", br#"[{"Config":"c.json","Layers":["l.tar"]}]"#)
        .file("c.json", config.as_bytes())
        .file("l.tar", &layer)
        .end();
    place.directory.file("image", &saved);
    for format in [Format::Erofs, Format::Cpio] {
        let (first, again) = (place.made("image", format), place.made("image", format));
        assert!(!first.cached && again.cached && first.config == again.config);
        assert_eq!((&again.config.env[0][..], &again.config.user[..]), ("A=ü \"x\"", "u"));
    }
}

#[test]
fn whoever_asks_at_once_makes_it_once() {
    let place = Place::new();
    place.directory.file("image", &archive(&[3; 100_000]));
    let made = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| place.made("image", Format::Erofs))).collect();
        threads
            .into_iter()
            .filter(|_| true)
            .map(|thread| thread.join().unwrap())
            .filter(|root| !root.cached)
            .count()
    });
    assert_eq!((made, place.entries().len()), (1, 1));
}

/// Gives a file to be written by others, as those have it whose owner is another.
fn open_to_others(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).unwrap();
}

/// Writes `to` over `from` where that is in a file, and leaves its length.
fn overwrite(path: &Path, from: &[u8], to: &[u8]) {
    let bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(to, at as u64).unwrap();
    // A clock's tick may not have passed since it was looked at.
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
}

/// What a digest was found of is what is used, whoever writes to the image's files meanwhile.
#[test]
fn what_others_can_write_to_is_used_as_it_was_hashed() {
    let (plain, temporary) = (archive(b"genuine"), std::env::temp_dir());
    let layer = |root: &Directory| {
        let digest = crate::image::Digest::of(&plain);
        let config = format!(r#"{{"rootfs":{{"diff_ids":["sha256:{digest}"]}}}}"#);
        root.file("manifest.json", br#"[{"Config":"c.json","Layers":["l.tar"]}]"#);
        root.file("c.json", config.as_bytes());
        root.file("l.tar", &plain)
    };
    let root = Directory::new();
    let single = root.file("image", &plain);
    let saved = Directory::new();
    let layer = layer(&saved);
    for (image, file) in [(&single, &single), (&saved.path().to_owned(), &layer)] {
        for others in [false, true] {
            std::fs::write(file, &plain).unwrap();
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
            if others {
                open_to_others(file);
            }
            let source = Source::open(image, &temporary, Limits::default()).unwrap();
            let image = source.load().unwrap();
            image.watch.check().unwrap();
            overwrite(file, b"genuine", b"planted");
            let copied = content(&listing(&image.tree), "/f") == b"genuine";
            assert_eq!(
                (copied, image.watch.check().is_ok()),
                (others, others),
                "{file:?}, which others {others} write to"
            );
        }
    }
    // Where it is opened, too, and not used before later.
    std::fs::write(&single, packed_by_gzip(&plain)).unwrap();
    open_to_others(&single);
    let source = Source::open(&single, &temporary, Limits::default()).unwrap();
    std::fs::write(&single, packed_by_gzip(&archive(b"planted"))).unwrap();
    assert_eq!(content(&listing(&source.load().unwrap().tree), "/f"), b"genuine");
}

fn packed_by_gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

#[test]
fn nothing_is_left_of_what_fails() {
    let place = Place::new();
    let path = place.directory.file("image", &Tar::default().file("a", b"1").file("a/b", b"").end());
    root(&path, Format::Erofs, &place.cache, Limits::default()).unwrap_err();
    assert!(place.entries().is_empty());
}

#[test]
fn entries_that_nobody_wants_go() {
    use std::time::{Duration, SystemTime};
    let place = Place::new();
    let old = SystemTime::now() - Duration::from_secs(31 * 24 * 3600);
    let age = |path: &Path| std::fs::File::open(path).unwrap().set_modified(old).unwrap();
    for content in [b"1", b"2"] {
        place.directory.file(str::from_utf8(content).unwrap(), &archive(content));
        place.made(str::from_utf8(content).unwrap(), Format::Erofs);
    }
    place.entries().iter().for_each(|path| age(path));
    assert!(place.made("1", Format::Erofs).cached);
    place.directory.file("3", &archive(b"3"));
    place.made("3", Format::Erofs);
    assert_eq!(place.entries().len(), 2);
    assert!(place.made("1", Format::Erofs).cached && !place.made("2", Format::Erofs).cached);
}

#[test]
fn what_is_not_the_caches_own_stays() {
    use std::time::{Duration, SystemTime};
    let place = Place::new();
    let old = SystemTime::now() - Duration::from_secs(31 * 24 * 3600);
    let digest = "0123456789abcdef".repeat(4);
    let ours = [
        format!("{digest}-1.erofs"),
        format!("{digest}-23.cpio"),
        format!("{digest}-1.erofs.lock"),
        ".spool-1234".into(),
    ];
    let others = [
        "thesis.txt".into(),
        ".spool-".into(),
        ".spool-x".into(),
        format!("{digest}-1.txt"),
        format!("{digest}-.erofs"),
        format!("{digest}.erofs"),
        format!("{}-1.erofs", &digest[1..]),
        format!("{}g-1.erofs", &digest[1..]),
        "ä".repeat(40),
    ];
    for name in ours.iter().chain(&others) {
        let path = place.cache.directory().join(name);
        std::fs::File::create(path).unwrap().set_modified(old).unwrap();
    }
    // Of one who was killed just now, and of one who works.
    let killed = place.cache.directory().join(format!("{digest}-1.cpio.lock"));
    std::fs::write(&killed, b"").unwrap();
    let working = place.cache.lock(&format!("{digest}-9.cpio"), || ()).unwrap();
    place.directory.file("image", &archive(b"1"));
    place.made("image", Format::Erofs);
    assert!(!killed.exists() && place.cache.directory().join(format!("{digest}-9.cpio.lock")).exists());
    drop(working);
    let there = |name: &String| place.cache.directory().join(name).exists();
    assert!(others.iter().all(there) && !ours.iter().any(there), "{:?}", place.entries());
}

#[test]
fn a_link_is_no_cache() {
    let directory = Directory::new();
    directory.file("home/file", b"");
    let link = directory.path().join("wirevm");
    std::os::unix::fs::symlink("home", &link).unwrap();
    let error = Cache::at(link).unwrap_err();
    assert!(matches!(error, Error::CacheIsLink { .. }) && error.remedy().contains("XDG_CACHE_HOME"));
    // On the way there may be some.
    Cache::at(directory.path().join("wirevm/below")).unwrap();
}

#[test]
fn who_waits_for_another_is_told_and_goes_on() {
    use std::sync::mpsc;
    let place = Place::new();
    let name = format!("{}-1.erofs", "0".repeat(64));
    let alone = || panic!("nobody is to be waited for");
    let lock = place.cache.lock(&name, alone).unwrap();
    let mode = place.entries()[0].metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Who makes another is not waited for.
    drop(place.cache.lock(&format!("{}-1.cpio", "0".repeat(64)), alone).unwrap());
    std::thread::scope(|scope| {
        let (tell, waits) = mpsc::channel();
        let (cache, name) = (&place.cache, &name);
        for _ in 0..3 {
            let tell = tell.clone();
            scope.spawn(move || {
                let _lock = cache.lock(name, || tell.send(()).unwrap()).unwrap();
                // It is what has the name, and is locked.
                let second = std::fs::File::open(cache.directory().join(format!("{name}.lock"))).unwrap();
                assert!(second.try_lock().is_err());
            });
        }
        let told = (0..3).all(|_| waits.recv_timeout(std::time::Duration::from_secs(60)).is_ok());
        drop(lock);
        assert!(told);
        // Each once, though two of them wait for others as well.
        drop(tell);
        assert_eq!(waits.iter().count(), 0);
    });
    assert!(place.entries().is_empty());
}

#[test]
fn a_directory_of_others_is_refused() {
    let directory = Directory::new();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = Cache::at(directory.path().into()).unwrap_err();
    assert!(
        matches!(error, Error::CacheNotOurs { .. }) && error.remedy().contains("XDG_CACHE_HOME"),
        "{error}"
    );
    let file = directory.file("file", b"");
    let error = Cache::at(file.join("x")).unwrap_err();
    assert!(error.to_string().starts_with("cannot write to the cache "), "{error}");
}
