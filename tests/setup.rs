//! What `resources/setup` does to the packages of the machine, with an apt and a dpkg that only seem to be ones.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use harness::TempDir;

/// Writes down how it is called. It would remove a package for `$REMOVES`, would install `$INSTALLS`, and has all for download but
/// busybox, so that the script ends there.
const APT: &str = r#"#!/bin/sh
echo "$@" >>"$CALLS"
case "$*" in
    update*) exit 0 ;;
    *"download busybox"*) exit 42 ;;
    *"download "*) for package in ${*##*download }; do : >"$package.deb"; done; exit 0 ;;
    *" -s "*) ;;
    *--no-remove*) exit 0 ;;
    *) exit 42 ;;
esac
case "$*" in *--no-remove*)
    for package in $REMOVES; do
        case "$* " in *" $package "*) echo "E: Packages need to be removed but remove is disabled." >&2; exit 100 ;; esac
    done ;;
esac
for package in $INSTALLS; do echo "Inst $package (1)"; done
[ -n "$INSTALLS" ] || { echo "E: Unable to locate package" >&2; exit 100; }
"#;
/// Unpacks a QEMU and its firmware.
const DPKG: &str = r#"#!/bin/sh
mkdir -p "$3/usr/bin" "$3/usr/share/qemu" "$3/usr/share/seabios"
: >"$3/usr/bin/$(basename "$2" .deb)" >"$3/usr/share/seabios/bios.bin"
"#;
const NOTHING: &str = "#!/bin/sh\nexit 0\n";

/// The script's end on a machine that has every program but QEMU, how apt was called, and the directory of what was unpacked.
struct SetUp {
    output: Output,
    calls: String,
    dir: TempDir,
}

fn set_up(installs: &str, removes: &str) -> SetUp {
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
        "apt-cache",
    ];
    let nothing = programs.map(|name| (name, NOTHING));
    let sudo = "#!/bin/sh\nexec \"$@\"\n";
    for (name, text) in nothing.into_iter().chain([("apt-get", APT), ("dpkg", DPKG), ("sudo", sudo)]) {
        let path = dir.file(&format!("bin/{name}"), text);
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    // What the scripts themselves need, and no QEMU.
    for name in [
        "awk", "basename", "bash", "dirname", "env", "grep", "ln", "mkdir", "mktemp", "mv", "rm", "sh",
        "uname",
    ] {
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
        .env("INSTALLS", installs)
        .env("REMOVES", removes)
        .env("CARGO_TARGET_DIR", dir.path("target"))
        .output()
        .unwrap();
    let calls = fs::read_to_string(dir.path("calls")).unwrap_or_default();
    SetUp { output, calls, dir }
}

/// The calls that change something, and not its lists; root has an option more for a download.
fn changes(calls: &str) -> Vec<&str> {
    let changes = |call: &&str| !call.starts_with("update") && !call.split(' ').any(|word| word == "-s");
    let option = "-o APT::Sandbox::User=root ";
    calls.lines().filter(changes).map(|call| call.strip_prefix(option).unwrap_or(call)).collect()
}

#[test]
fn no_package_is_removed_for_those_that_are_missing() {
    let parts = "qemu-system-x86 qemu-system-common seabios libslirp0";
    let installs = |calls: &str, packages: &str| {
        let found = changes(calls).iter().any(|call| {
            call.starts_with("install ")
                && call.contains(" --no-remove ")
                && call.ends_with(&format!(" {packages}"))
        });
        assert!(found, "{packages}: {calls}");
    };

    // Where apt removes nothing, it installs what is missing.
    let done = set_up(parts, "");
    installs(&done.calls, "qemu-system-x86");
    assert_eq!(changes(&done.calls)[1..], ["download busybox-static"], "{}", done.calls);

    // Where it would, what QEMU needs is installed, and QEMU unpacked, with its firmware where it looks for it.
    let done = set_up(parts, "qemu-system-x86");
    installs(&done.calls, "libslirp0");
    let downloads = ["download qemu-system-x86 qemu-system-common seabios", "download busybox-static"];
    assert_eq!(changes(&done.calls)[1..], downloads, "{}", done.calls);
    let qemu = done.dir.path("target/resources/qemu/usr");
    assert!(qemu.join("bin/qemu-system-x86").exists() && qemu.join("share/qemu/bios.bin").exists());
    // Nor is anything installed where QEMU needs nothing.
    let done = set_up("qemu-system-x86 seabios", "qemu-system-x86");
    let downloads = ["download qemu-system-x86 seabios", "download busybox-static"];
    assert_eq!(changes(&done.calls), downloads, "{}", done.calls);

    // Where that, too, would remove a package, or apt knows none of that name, it stops before anything is changed, and says why.
    for (parts, removes, why) in [
        (parts, "qemu-system-x86 libslirp0", "remove is disabled"),
        ("libfoo", "qemu-system-x86", "remove is disabled"),
        ("", "", "Unable to locate package"),
    ] {
        let done = set_up(parts, removes);
        let said = String::from_utf8_lossy(&done.output.stderr);
        assert_eq!(done.output.status.code(), Some(1), "{said}");
        let remedy = "apt cannot install qemu-system-x86 and keep all that is installed";
        assert!(said.contains(why) && said.contains(remedy), "{said}");
        assert_eq!(changes(&done.calls), [""; 0], "{}", done.calls);
    }
}
