//! What `resources/setup` does to the packages of the machine, with an apt and a dpkg that only seem to be ones.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use harness::TempDir;

/// Writes down how it is called, and would remove a package for any QEMU but that of version 9.
const APT: &str = r#"#!/bin/sh
echo "$@" >>"$CALLS"
case "$*" in
    update*) exit 0 ;;
    *--no-remove*qemu-system-x86=9*) ;;
    *--no-remove*qemu-system-x86*) echo "E: Packages need to be removed but remove is disabled." >&2; exit 100 ;;
    *--no-remove*) ;;
    *) echo "it may remove packages" >&2; exit 99 ;;
esac
case "$*" in *" -s "*) ;; *) [ -z "$FAILS" ] || exit 100; exit 42 ;; esac
"#;
/// Has the parts of QEMU in that version.
const DPKG: &str = "#!/bin/sh\n[ -z \"$VERSION\" ] || echo \"ii $VERSION\"\n";
const NOTHING: &str = "#!/bin/sh\nexit 0\n";

/// Runs it where every program is there but QEMU, and the parts of QEMU in `version`.
fn set_up(version: &str) -> (Output, String) {
    let dir = TempDir::new();
    fs::create_dir(dir.path("bin")).unwrap();
    let programs = [
        "cc",
        "cpio",
        "depmod",
        "xz",
        "zstd",
        "ip",
        "ping",
        "iperf3",
        "flock",
        "iasl",
        "nft",
        "iptables-legacy",
        "sysctl",
    ];
    let nothing = programs.map(|name| (name, NOTHING));
    for (name, text) in nothing.into_iter().chain([
        ("apt-get", APT),
        ("dpkg-query", DPKG),
        ("sudo", "#!/bin/sh\nexec \"$@\"\n"),
    ]) {
        let path = dir.file(&format!("bin/{name}"), text);
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    // What the script itself needs, and no QEMU.
    for name in ["bash", "sh", "env", "uname", "dirname", "sed", "head", "cat", "id"] {
        let found = ["/bin", "/usr/bin"]
            .map(|place| Path::new(place).join(name))
            .into_iter()
            .find(|path| path.exists());
        std::os::unix::fs::symlink(found.expect("every Debian has it"), dir.path("bin").join(name)).unwrap();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resources/setup");
    // The script appends the system's own places, where QEMU may be.
    let text = fs::read_to_string(script).unwrap().replace("PATH=$PATH:/usr/sbin:/sbin\n", "");
    let script = dir.file("setup", text);
    let output = Command::new("/bin/bash")
        .arg(script)
        .env_clear()
        .env("PATH", dir.path("bin"))
        .env("CALLS", dir.path("calls"))
        .env("VERSION", version)
        .env("CARGO_TARGET_DIR", dir.path("target"))
        .output()
        .unwrap();
    (output, fs::read_to_string(dir.path("calls")).unwrap_or_default())
}

#[test]
fn no_package_is_removed_for_those_that_are_missing() {
    // A QEMU that goes with what is installed is taken in that version.
    let (output, calls) = set_up("9.2");
    let last = calls.lines().last().unwrap_or_default();
    assert!(last.contains("--no-remove") && last.ends_with(" qemu-system-x86=9.2"), "{calls}{output:?}");
    assert!(!last.contains(" -s "), "{calls}");
    // Where there is none, it stops before anything is changed, and says why.
    for version in ["", "8.0"] {
        let (output, calls) = set_up(version);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("remove is disabled") && said.contains("and keep all that is installed"),
            "{said}"
        );
        assert!(calls.lines().all(|call| call.starts_with("update") || call.contains(" -s ")), "{calls}");
    }
}
