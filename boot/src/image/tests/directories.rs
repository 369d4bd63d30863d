//! Directories of the host: what each kind of file becomes, and what changes while it is read.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command, Stdio};

use rustix::fs::{OFlags, XattrFlags};
use rustix::io::{Errno, FdFlags};

use super::*;
use crate::image::directory::{attributes, subdirectory, where_there_is};

#[test]
fn sockets_and_devices_of_a_directory_are_in_the_tree() {
    let root = Directory::new();
    let _socket = std::os::unix::net::UnixListener::bind(root.path().join("socket")).unwrap();
    let nodes = Command::new("sh")
        .args(["-ec", "mknod character c 1 3; mknod block b 7 300"])
        .current_dir(root.path())
        .stderr(Stdio::null())
        .status();
    let mut want = vec![("/socket", What::Socket)];
    if nodes.is_ok_and(|status| status.success()) {
        want.extend([("/block", What::Device('b', 7, 300)), ("/character", What::Device('c', 1, 3))]);
    } else {
        eprintln!("skipped: devices, which this user cannot make");
    }
    want.sort_by_key(|(path, _)| *path);
    let listing = listing(&open(root.path()).unwrap().tree);
    let got: Vec<_> = listing.iter().skip(1).map(|(path, node)| (&path[..], node.what.clone())).collect();
    assert_eq!(got, want);
}

/// Gives a file an attribute, where the file system has room for it.
fn set(path: &Path, name: &str, value: &[u8]) -> bool {
    match rustix::fs::setxattr(path, name, value, XattrFlags::empty()) {
        Ok(()) => true,
        Err(Errno::NOTSUP | Errno::PERM | Errno::NOSPC) => false,
        Err(error) => panic!("{name}: {error}"),
    }
}

#[test]
fn attributes_of_a_directorys_files_go_with_them() {
    let root = Directory::new();
    let file = root.file("d/file", b"");
    if !set(&file, "user.note", b"a\0b") {
        return eprintln!("skipped: {} has no attributes", root.path().display());
    }
    set(&file, "user.another", b"");
    set(&file, "trusted.overlay.opaque", b"y");
    set(root.path(), "user.root", b"r");
    set(&root.path().join("d"), "user.d", &[b'd'; 300]);
    let listing = listing(&open(root.path()).unwrap().tree);
    let value = |name: &str, value: &[u8]| (name.as_bytes().into(), value.into());
    assert_eq!(listing["/d/file"].meta.xattrs, [value("user.another", b""), value("user.note", b"a\0b")]);
    assert_eq!(listing[""].meta.xattrs, [value("user.root", b"r")]);
    assert_eq!(listing["/d"].meta.xattrs, [value("user.d", &[b'd'; 300])]);
}

/// A directory that goes with its value, on a file system that holds more attributes than others do.
struct Shared(std::path::PathBuf);

impl Shared {
    fn new(name: &str) -> Self {
        let path = Path::new("/dev/shm").join(format!("boot-test-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_long_list_of_attributes_is_read_whole() {
    let shared = Shared::new("list");
    let name = |i: usize| format!("user.{i:02}{}", "n".repeat(240));
    let count = (0..30).take_while(|i| set(&shared.0, &name(*i), &[*i as u8])).count();
    if count < 20 {
        return eprintln!("skipped: /dev/shm has too few attributes");
    }
    let path = CString::new(shared.0.as_os_str().as_bytes()).unwrap();
    for follow in [false, true] {
        let want: Vec<_> = (0..count).map(|i| (name(i).into_bytes().into(), [i as u8][..].into())).collect();
        assert_eq!(attributes(&path, follow), Ok(want));
    }
}

#[test]
fn attributes_too_long_for_a_file_are_refused_of_the_root_as_well() {
    let shared = Shared::new("long");
    let below = shared.0.join("below");
    std::fs::create_dir(&below).unwrap();
    // With its name, and what each takes besides, one byte less than fits, and one more than that.
    let value = vec![b'v'; (1 << 16) - 6 - 8];
    for (directory, name) in [(&shared.0, "."), (&below, "below")] {
        if !set(directory, "user.x", &value[1..]) {
            return eprintln!("skipped: /dev/shm has no attributes of this length");
        }
        open(&shared.0).unwrap();
        assert!(set(directory, "user.x", &value));
        let said = told(open(&shared.0).unwrap_err(), &shared.0);
        let words = format!("{name} has extended attributes that Linux cannot hold");
        assert!(said.contains(&words), "{said}");
        rustix::fs::removexattr(directory, "user.x").unwrap();
    }
}

#[test]
fn attributes_that_cannot_be_read_are_not_taken_for_none() {
    for follow in [false, true] {
        assert_eq!(attributes(c"/nonexistent/file", follow), Err(Errno::NOENT));
    }
    assert_eq!(where_there_is(Ok(3)), Ok(Some(3)));
    assert_eq!(where_there_is(Err(Errno::NOTSUP)), Ok(None));
    assert_eq!(where_there_is(Err(Errno::NODATA)), Ok(None));
    assert_eq!(where_there_is(Err(Errno::IO)), Err(Errno::IO));
}

#[test]
fn what_is_no_directory_any_more_is_not_read_as_one() {
    let root = Directory::new();
    run(&root, "mkdir d; ln -s d link; mkfifo fifo; : >file");
    let fd = std::fs::File::open(root.path()).unwrap();
    for name in [c"d", c"."] {
        let opened = subdirectory(&fd, name).unwrap();
        assert_eq!(rustix::io::fcntl_getfd(&opened).unwrap(), FdFlags::CLOEXEC);
        assert!(rustix::fs::fcntl_getfl(&opened).unwrap().contains(OFlags::DIRECTORY));
    }
    for name in [c"link", c"fifo", c"file"] {
        assert_eq!(subdirectory(&fd, name).unwrap_err(), Errno::NOTDIR, "{name:?}");
    }
}

/// Copies a file of a tree as it is by now.
fn copied(image: &Image, path: &str) -> Result<Vec<u8>, String> {
    let id = image.tree.find(path.as_bytes()).unwrap();
    let Kind::File(content) = &image.tree.inode(id).kind else { panic!("{path} is no file") };
    let mut bytes = Vec::new();
    copy_content(content, 0, content.size(), &mut bytes)
        .map(|()| bytes)
        .map_err(|error| error.of("IMAGE", content, "cache").to_string())
}

/// Not by the same file either: what leads to it is not the directory that was looked at.
#[test]
fn links_that_come_later_are_not_followed() {
    let place = Directory::new();
    place.file("root/d/file", b"text");
    place.file("root/e/file", b"text");
    let image = open(&place.path().join("root")).unwrap();
    run(&place, "mv root/d outside; ln -s ../outside root/d; mv root/e root/inside; ln -s inside root/e");
    for path in ["d/file", "e/file"] {
        assert_eq!(copied(&image, path), Err(format!("cannot read {path} of the image IMAGE")));
    }
    run(&place, "rm root/d root/e; mv outside root/d; mv root/inside root/e");
    for path in ["d/file", "e/file"] {
        assert_eq!(copied(&image, path), Ok(b"text".to_vec()));
    }
}

/// A process that has ended, and whose files in `/proc` are there in part.
struct Ended(Child);

impl Ended {
    fn new() -> Self {
        let child = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        let options = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), options).unwrap();
        Self(child)
    }

    fn directory(&self) -> std::path::PathBuf {
        format!("/proc/{}", self.0.id()).into()
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.wait();
    }
}

#[test]
fn what_has_gone_since_its_directory_was_read_is_left_out() {
    let ended = Ended::new();
    let directory = ended.directory().join("ns");
    if std::fs::read_dir(&directory).is_err() {
        return eprintln!("skipped: an ended process's files are root's");
    }
    // Of an ended process some of these links are listed, and cannot be read any more.
    let there = |name: &&str| std::fs::read_link(directory.join(name)).is_ok();
    let (left, gone): (Vec<_>, Vec<_>) = ["user", "pid", "net", "uts"].into_iter().partition(there);
    assert!(!left.is_empty() && gone.iter().all(|name| directory.join(name).is_symlink()), "{gone:?}");
    let listed = names(&open(&directory).unwrap());
    assert!(left.iter().all(|name| listed.contains(&format!("/{name}"))), "{listed:?}");
    assert!(!gone.iter().any(|name| listed.contains(&format!("/{name}"))), "{listed:?}");
}

#[test]
fn a_directory_below_that_cannot_be_read_is_an_error() {
    use std::os::unix::fs::PermissionsExt;
    let root = Directory::new();
    let closed = root.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    let set_mode = |mode| std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(mode)).unwrap();
    set_mode(0);
    // Root reads that, but not the network of a process that has ended.
    let ended = Ended::new();
    let (image, below) = match std::fs::read_dir(&closed) {
        Err(_) => (root.path().to_owned(), "closed"),
        Ok(_) => (ended.directory(), "net"),
    };
    if std::fs::read_dir(image.join(below)).is_ok_and(|mut entries| entries.all(|entry| entry.is_ok())) {
        return eprintln!("skipped: this user can read every directory");
    }
    let error = open(&image).unwrap_err();
    // So that it can be removed.
    set_mode(0o700);
    assert!(matches!(&error, Error::ReadFile { path, .. } if path.ends_with(below)), "{error:?}");
}
