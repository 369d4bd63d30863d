use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;

#[test]
fn who_a_mapped_root_is_outside() {
    assert_eq!(outside_of("         0          0 4294967295\n", 1000), 1000);
    assert_eq!(outside_of("         0       1000          1\n", 0), 1000);
    assert_eq!(outside_of("0 1000 1\n1 100000 65536\n", 7), 100_006);
    for nonsense in ["", "0 1 1", "x y z", "0 4294967295 9"] {
        assert_eq!(outside_of(nonsense, 8), 8, "{nonsense}");
    }
}

/// A new directory of this test's, which goes with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("wirevm-directory-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        set_mode(&path, 0o755);
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn why<T: fmt::Debug>(result: io::Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn what_is_exchanged_at_the_path_is_not_what_is_opened() {
    let scratch = Scratch::new("exchange");
    let path = scratch.0.join("w");
    let directory = Directory::at(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
    fs::rename(&path, scratch.0.join("away")).unwrap();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("journal-1-1"), "forged").unwrap();
    assert_eq!(directory.names().unwrap(), [""; 0]);
    assert!(directory.file("journal-1-1", Opening::Existing).is_err());
    directory.file("lock", Opening::Any).unwrap();
    directory.make("vm").unwrap().file("lock", Opening::New).unwrap();
    assert!(scratch.0.join("away/lock").exists() && scratch.0.join("away/vm/lock").exists());
    assert!(!path.join("lock").exists());
    directory.remove_file("lock").unwrap();
    directory.open("vm").unwrap().remove_file("lock").unwrap();
    directory.remove_directory("vm").unwrap();
    assert_eq!(directory.names().unwrap(), [""; 0]);
}

#[test]
fn what_others_can_exchange_is_no_place() {
    let scratch = Scratch::new("way");
    let parent = scratch.0.join("parent");
    fs::create_dir(&parent).unwrap();
    let path = parent.join("w");
    for (mode, good) in [(0o755, true), (0o777, false), (0o1777, true), (0o757, false)] {
        set_mode(&parent, mode);
        assert_eq!(Directory::at(&path).is_ok(), good, "{mode:o}");
    }
    assert!(why(Directory::at(&path)).contains(&parent.display().to_string()));
    // Their owner can always.
    if geteuid().is_root() {
        set_mode(&parent, 0o755);
        std::os::unix::fs::chown(&parent, Some(65534), None).unwrap();
        assert!(why(Directory::at(&path)).contains("user 65534"));
        std::os::unix::fs::chown(&parent, Some(0), None).unwrap();
    }
    // A group of the user's own may; another one may not.
    set_mode(&parent, 0o775);
    assert!(Directory::at(&path).is_ok());
    let found = fstat(File::open(&parent).unwrap()).unwrap();
    let other = Trust { user: geteuid().as_raw(), group: found.st_gid + 1, nobody: None };
    assert!(other.check_way(&found, &parent).is_err());
    // Nor is one that anybody can write to itself, a link, or a file.
    set_mode(&path, 0o777);
    assert!(why(Directory::at(&path)).contains("mode 777"));
    symlink("/", parent.join("link")).unwrap();
    fs::write(parent.join("file"), "").unwrap();
    for name in ["link", "file"] {
        assert!(why(Directory::at(&parent.join(name))).contains("not a directory"), "{name}");
    }
    // On the way a link is followed.
    symlink(&parent, scratch.0.join("way")).unwrap();
    set_mode(&path, 0o700);
    assert!(Directory::at(&scratch.0.join("way/w")).is_ok());
    assert!(Directory::at(Path::new("/")).is_err());
}

#[test]
fn a_file_counts_only_if_it_is_this_user_s_alone() {
    let scratch = Scratch::new("file");
    let directory = Directory::at(&scratch.0.join("w")).unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("good"), "").unwrap();
    directory.file("good", Opening::Existing).unwrap();
    fs::write(at("open"), "").unwrap();
    set_mode(&at("open"), 0o666);
    assert!(why(directory.file("open", Opening::Existing)).contains("mode 666"));
    symlink(at("good"), at("link")).unwrap();
    assert!(directory.file("link", Opening::Existing).is_err());
    rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    assert!(why(directory.file("pipe", Opening::Existing)).contains("regular"));
    fs::create_dir(at("vm")).unwrap();
    set_mode(&at("vm"), 0o755);
    assert!(why(directory.open("vm")).contains("mode 755") && directory.make("vm").is_err());
    if geteuid().is_root() {
        std::os::unix::fs::chown(at("good"), Some(65534), None).unwrap();
        assert!(why(directory.file("good", Opening::Existing)).contains("user 65534"));
    }
}
