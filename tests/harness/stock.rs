//! Guests that run a stock Linux kernel, as `resources/setup` fetched it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use crate::netns::Netns;
use crate::{Vm, wirevm};

/// From the start of `wirevm` to the guest's shell, at the slowest: an emulated processor on a busy machine.
pub const BOOT: Duration = Duration::from_secs(180);

/// A kernel and its initramfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stock {
    /// Its series (`6.1`, `6.12`), or `slim`.
    pub name: String,
    /// The bzImage.
    pub kernel: PathBuf,
    /// The initramfs with this kernel's modules.
    pub initrd: PathBuf,
}

/// Where the kernels are: `$WIREVM_RESOURCES`, else where `resources/setup` puts them.
pub fn resources() -> PathBuf {
    std::env::var_os("WIREVM_RESOURCES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("resources"),
        PathBuf::from,
    )
}

/// Whether Linux can run here, asked of `wirevm doctor` once.
pub fn can_run() -> Result<(), String> {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    let good = *ANSWER.get_or_init(|| {
        let doctor = wirevm().args(["doctor", "--quiet"]).stdin(Stdio::null()).status();
        doctor.is_ok_and(|status| status.success())
    });
    if good { Ok(()) } else { Err("this KVM does not run Linux; the lab does".into()) }
}

/// Debian's kernels, oldest first, or why there are none.
pub fn debian() -> Result<Vec<Stock>, String> {
    can_run()?;
    let kernels: Vec<_> = ["6.1", "6.12"].iter().filter_map(|name| kernel(name)).collect();
    if kernels.is_empty() { Err("no kernel: run make setup".into()) } else { Ok(kernels) }
}

/// The newest of Debian's kernels, or why there is none.
pub fn newest() -> Result<Stock, String> {
    debian().map(|mut kernels| kernels.pop().expect("at least one"))
}

/// The slim kernel, which starts fastest and in the least memory, or why it is not there.
pub fn slim() -> Result<Stock, String> {
    can_run()?;
    kernel("slim").ok_or_else(|| "no slim kernel: run make kernel, or set WIREVM_SLIM_KERNEL".into())
}

/// The slim kernel where there is one, else the newest of Debian's: for tests to which the kernel does not matter.
pub fn fastest() -> Result<Stock, String> {
    slim().or_else(|_| newest())
}

fn kernel(name: &str) -> Option<Stock> {
    let dir = resources();
    let stock = Stock {
        name: name.to_owned(),
        kernel: dir.join(format!("vmlinuz-{name}")),
        initrd: dir.join(format!("guest-{name}.cpio")),
    };
    (stock.kernel.exists() && stock.initrd.exists()).then_some(stock)
}

/// The kernel's initramfs with a program more, and the libraries that it is linked to, written to `to`; or why not.
pub fn add_program(kernel: &Stock, program: &str, to: &Path) -> Result<(), String> {
    let ran = |status: std::io::Result<std::process::ExitStatus>, what| match status {
        Ok(status) if status.success() => Ok(()),
        failed => Err(format!("{what}: {failed:?}")),
    };
    // The kernel unpacks one archive after the other.
    let script = r#"
        set -e
        mkdir -p "$3.tree/bin"
        cp "$2" "$3.tree/bin/"
        for library in $(ldd "$2" | awk '{ for (i = 1; i <= NF; i++) if ($i ~ /^\//) print $i }'); do
            mkdir -p "$3.tree/${library%/*}"
            cp -L "$library" "$3.tree/$library"
        done
        cp "$1" "$3"
        cd "$3.tree"
        find . | cpio --quiet -o -H newc >>"$3"
    "#;
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(&kernel.initrd).arg(program).arg(to);
    ran(shell.stdin(Stdio::null()).status(), "cannot add a program to the initramfs")
}

impl Stock {
    /// The options that boot it, with `words` more on the kernel's command line.
    pub fn args(&self, words: &str) -> Vec<String> {
        let path = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
        // Messages of the kernel's own (warnings too) would come between a command and its answer; the log keeps them.
        let cmdline = format!("console=ttyS0 loglevel=1 panic=-1 {words}");
        ["run", "--kernel", &path(&self.kernel), "--initrd", &path(&self.initrd), "--cmdline", &cmdline]
            .map(String::from)
            .to_vec()
    }

    /// Boots it in a network namespace, up to its shell.
    #[track_caller]
    pub fn boot(&self, netns: &Netns, words: &str, args: &[&str]) -> Vm {
        let mut vm = self.start(netns, words, args);
        vm.expect_from_shell("guest# ", BOOT);
        vm
    }

    /// Starts it in a network namespace.
    pub fn start(&self, netns: &Netns, words: &str, args: &[&str]) -> Vm {
        let mut all = self.args(words);
        all.extend(args.iter().map(|arg| String::from(*arg)));
        let all: Vec<_> = all.iter().map(String::as_str).collect();
        Vm::start_in(netns, &all)
    }

    /// The ELF `vmlinux` inside the bzImage, written to `to`; or why not.
    pub fn extract_vmlinux(&self, to: &Path) -> Result<(), String> {
        // Linux Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length.
        let image = std::fs::read(&self.kernel).map_err(|e| e.to_string())?;
        let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().expect("four bytes")) as usize;
        let start = (usize::from(image[0x1f1]) + 1) * 512 + word(0x248);
        let payload = &image[start..start + word(0x24c)];
        let (program, payload) = match payload {
            // The last four bytes are the length that the kernel's build appends.
            [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", &payload[..payload.len() - 4]),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", &payload[..payload.len() - 4]),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => ("xz", &payload[..payload.len() - 4]),
            _ => return Err("the payload is in a format that this test does not know".into()),
        };
        let packed = to.with_extension("packed");
        std::fs::write(&packed, payload).map_err(|e| e.to_string())?;
        let file = |path: &Path| std::fs::File::open(path).map_err(|e| e.to_string());
        let out = std::fs::File::create(to).map_err(|e| e.to_string())?;
        let status = Command::new(program)
            .arg("-dc")
            .stdin(file(&packed)?)
            .stdout(out)
            .status()
            .map_err(|e| format!("cannot start {program}: {e}"))?;
        let _ = std::fs::remove_file(packed);
        if status.success() { Ok(()) } else { Err(format!("{program} ended with {status}")) }
    }
}
