//! The program `virtiofsd`: where it is, which of the two it is, and by which words it is started.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Access, access};

/// Where packages put it that is on nobody's path: Debian 13 and Fedora, Arch, Debian 12, Fedora before.
const PLACES: [&str; 4] = [
    "/usr/libexec/virtiofsd",
    "/usr/lib/virtiofsd",
    "/usr/lib/qemu/virtiofsd",
    "/usr/libexec/qemu/virtiofsd",
];
/// By which a user says where it is.
const PLACE: &str = "WIREVM_VIRTIOFSD";
/// What to do where it is nowhere.
pub(crate) const PACKAGES: &str = "install it (Debian 13, Fedora: the package virtiofsd; Debian 12: qemu-system-common), or set WIREVM_VIRTIOFSD \
     to where it is";

/// A `virtiofsd`.
#[derive(Clone, Debug)]
pub(crate) struct Virtiofsd {
    path: PathBuf,
    kind: Kind,
}

/// There are two, whose options differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The one that came with QEMU up to 7.2, in C.
    C,
    /// The one that came after it, in Rust. `read_only`: it has an option for that.
    Rust { read_only: bool },
}

/// How it is to be started. The socket is its standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start<'a> {
    /// An absolute path.
    pub(super) directory: &'a Path,
    /// It may make namespaces, in which it sees nothing but the directory; otherwise that becomes its root.
    pub(super) namespaces: bool,
    /// It is to refuse changes itself.
    pub(super) read_only: bool,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotFound {
    #[error("there is no virtiofsd here, which shares directories with guests")]
    Nowhere,
    #[error("cannot start {}", .0.display())]
    Start(PathBuf, #[source] std::io::Error),
    #[error("{} is no virtiofsd that wirevm knows", .0.display())]
    Unknown(PathBuf),
}

impl Virtiofsd {
    /// Finds it, and asks it what it is.
    ///
    /// # Errors
    /// There is none, or another program.
    pub(crate) fn find() -> Result<Self, NotFound> {
        let path = match std::env::var_os(PLACE) {
            Some(path) => path.into(),
            None => {
                let is_program = |path: &PathBuf| path.is_file() && access(path, Access::EXEC_OK).is_ok();
                let paths = std::env::var_os("PATH").unwrap_or_default();
                let on_path = std::env::split_paths(&paths).map(|directory| directory.join("virtiofsd"));
                let mut all = on_path.chain(PLACES.map(PathBuf::from));
                all.find(is_program).ok_or(NotFound::Nowhere)?
            }
        };
        let asked = Command::new(&path).arg("--help").stdin(Stdio::null()).output();
        let said = asked.map_err(|error| NotFound::Start(path.clone(), error))?;
        let help = [said.stdout, said.stderr].concat();
        match kind(&String::from_utf8_lossy(&help)) {
            Some(kind) => Ok(Self { path, kind }),
            None => Err(NotFound::Unknown(path)),
        }
    }

    /// Whether it can refuse changes itself.
    pub(super) fn can_be_read_only(&self) -> bool {
        self.kind == Kind::Rust { read_only: true }
    }

    /// The command that starts it.
    pub(super) fn command(&self, start: &Start<'_>) -> Command {
        let mut command = Command::new(&self.path);
        command.args(self.args(start)).env_clear();
        command
    }

    fn args(&self, start: &Start<'_>) -> Vec<OsString> {
        let sandbox = if start.namespaces { "namespace" } else { "chroot" };
        let mut args: Vec<OsString> = vec!["--fd=0".into()];
        match self.kind {
            Kind::C => {
                for option in
                    ["log_level=warn".into(), format!("sandbox={sandbox}").into(), source(start.directory)]
                {
                    args.extend(["-o".into(), option]);
                }
            }
            Kind::Rust { .. } => {
                args.extend(
                    ["--log-level", "warn", "--sandbox", sandbox, "--shared-dir"].map(OsString::from),
                );
                args.push(start.directory.into());
                args.extend(start.read_only.then(|| "--readonly".into()));
            }
        }
        args
    }
}

impl std::fmt::Display for Virtiofsd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.kind == Kind::C { "QEMU's, in C" } else { "in Rust" };
        write!(f, "{} ({kind})", self.path.display())
    }
}

/// Which of the two has this help.
fn kind(help: &str) -> Option<Kind> {
    match help {
        _ if help.contains("--shared-dir") => Some(Kind::Rust { read_only: help.contains("--readonly") }),
        _ if help.contains("-o source=") && help.contains("--fd=") => Some(Kind::C),
        _ => None,
    }
}

/// The option by which the one in C takes a directory: a comma would end it, but for a backslash before it.
fn source(directory: &Path) -> OsString {
    let mut option = OsString::from("source=").into_vec();
    for byte in OsStr::as_bytes(directory.as_os_str()) {
        if matches!(byte, b',' | b'\\') {
            option.push(b'\\');
        }
        option.push(*byte);
    }
    OsString::from_vec(option)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(kind: Kind, directory: &str, namespaces: bool, read_only: bool) -> String {
        let virtiofsd = Virtiofsd { path: "virtiofsd".into(), kind };
        let args = virtiofsd.args(&Start { directory: directory.as_ref(), namespaces, read_only });
        args.join(OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn each_of_the_two_is_told_by_its_help_and_gets_its_own_words() {
        let c = "    -o source=PATH             shared directory tree\n    --fd=FDNUM   fd number of vhost-user socket\n";
        let old = "      --shared-dir <SHARED_DIR>\n      --fd <FD>\n";
        let new = "      --shared-dir <SHARED_DIR>\n      --fd <FD>\n      --readonly\n";
        assert_eq!(kind(c), Some(Kind::C));
        assert_eq!(kind(old), Some(Kind::Rust { read_only: false }));
        assert_eq!(kind(new), Some(Kind::Rust { read_only: true }));
        assert_eq!(kind("usage: true [ignored]"), None);
        assert_eq!(
            args(Kind::C, "/a,b\\c", true, false),
            "--fd=0 -o log_level=warn -o sandbox=namespace -o source=/a\\,b\\\\c"
        );
        assert_eq!(
            args(Kind::Rust { read_only: true }, "/a,b", false, true),
            "--fd=0 --log-level warn --sandbox chroot --shared-dir /a,b --readonly"
        );
    }
}
