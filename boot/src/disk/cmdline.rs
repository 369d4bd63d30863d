//! A boot entry's command line, for a machine with one serial port and virtio disks.

/// The kernel's command line of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cmdline {
    /// `root=...`, where it is known.
    pub root: Option<String>,
    /// The other arguments of its boot entry, without those for a boot loader.
    pub options: String,
}

/// What a boot loader tells of itself, or to itself, and means nothing here.
const LOADERS: [&str; 5] = ["BOOT_IMAGE", "initrd", "vt.handoff", "efi", "rd.live.image"];
/// Disks have other names here than where they were made.
const NAMED: [&str; 6] = ["/dev/sd", "/dev/hd", "/dev/vd", "/dev/xvd", "/dev/nvme", "/dev/mmcblk"];

/// The words of a command line; what is in double quotes has spaces (Linux, `lib/cmdline.c`).
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let end = move |c: char| {
        quoted ^= c == '"';
        c.is_ascii_whitespace() && !quoted
    };
    text.split(end).filter(|word| !word.is_empty())
}

impl Cmdline {
    /// That of an entry with `options`, on a disk whose root is found by `root`.
    pub(super) fn new(options: &str, root: Option<&str>) -> Self {
        let name = |word: &str| word.split('=').next().unwrap_or_default().to_owned();
        let (roots, others): (Vec<&str>, Vec<&str>) = words(options)
            .filter(|word| !LOADERS.contains(&&name(word)[..]))
            .partition(|word| word.starts_with("root="));
        let named =
            |word: &&&str| word.strip_prefix("root=").is_some_and(|d| NAMED.iter().any(|n| d.starts_with(n)));
        // The last one counts, but not the name of a disk that is called otherwise here.
        let own = roots.last().filter(|word| root.is_none() || !named(word));
        let root = own.copied().or(root).map(str::to_owned);
        Self { root, options: others.join(" ") }
    }

    /// All of it, with what is `given` behind it; where nothing is, with `default`, which names a serial console, unless it has one itself.
    /// What follows `--` is for the guest's init, and stays last.
    pub fn with(&self, given: Option<&str>, default: &str) -> String {
        let kernel = |text| words(text).take_while(|word| *word != "--");
        let init = |text| words(text).skip_while(|word| *word != "--").skip(1);
        let own = &self.options[..];
        let serial = |word: &str| word.starts_with("console=ttyS") || word.starts_with("console=hvc");
        // The last console is /dev/console.
        let added = given.unwrap_or(if kernel(own).any(serial) { "" } else { default });
        let dashes = init(own).chain(init(added)).next().map(|_| "--");
        let all = self.root.as_deref().into_iter().chain(kernel(own)).chain(kernel(added));
        all.chain(dashes).chain(init(own)).chain(init(added)).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disks_root_and_options_are_kept() {
        let found = Some("root=UUID=7");
        for (options, root, kept) in [
            ("BOOT_IMAGE=/boot/k root=UUID=8 ro quiet", Some("root=UUID=8"), "ro quiet"),
            ("root=/dev/sda1 root=/dev/nvme0n1p2 ro", found, "ro"),
            (
                "root=/dev/mapper/vg-root initrd=\\x vt.handoff=7 rootflags=subvol=root",
                Some("root=/dev/mapper/vg-root"),
                "rootflags=subvol=root",
            ),
            ("rw  dyndbg=\"file a +p\"  splash", found, "rw dyndbg=\"file a +p\" splash"),
            ("", found, ""),
        ] {
            let cmdline = Cmdline::new(options, found);
            assert_eq!((cmdline.root.as_deref(), &cmdline.options[..]), (root, kept), "{options}");
        }
        assert_eq!(Cmdline::new("root=/dev/sda1", None).root.as_deref(), Some("root=/dev/sda1"));
    }

    #[test]
    fn there_is_a_console_or_what_is_given() {
        for (options, given, all) in [
            ("ro", None, "root=UUID=7 ro console=ttyS0"),
            ("ro console=tty0", None, "root=UUID=7 ro console=tty0 console=ttyS0"),
            ("console=tty1 console=ttyS0,115200", None, "root=UUID=7 console=tty1 console=ttyS0,115200"),
            ("ro", Some("debug"), "root=UUID=7 ro debug"),
            ("ro -- one", Some("quiet -- two"), "root=UUID=7 ro quiet -- one two"),
            ("-- console=ttyS0", None, "root=UUID=7 console=ttyS0 -- console=ttyS0"),
        ] {
            let cmdline = Cmdline::new(options, Some("root=UUID=7"));
            assert_eq!(cmdline.with(given, "console=ttyS0"), all);
        }
    }
}
