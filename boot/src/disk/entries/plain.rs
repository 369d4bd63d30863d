//! A root without a boot loader: its newest kernel, with the initrd of the same name.

use super::env::Env;
use super::version::compare;
use super::{Entry, Error, FileSystem};

/// The command line of what has none: the root is added, and is there to be written to.
const OPTIONS: &str = "rw";

/// How kernels are called, as Debian, Fedora, Arch and Alpine have it.
const KERNELS: [&str; 2] = ["vmlinuz", "vmlinux"];

/// The newest kernel of `/boot`, or of a file system that is mounted there.
pub(super) fn default(system: &dyn FileSystem, _: &Env) -> Result<Option<Entry>, Error> {
    for directory in ["/boot", ""] {
        let names = system.list(if directory.is_empty() { "/" } else { directory })?;
        if let Some((kernel, initrd)) = newest(&names) {
            return Ok(Some(Entry {
                title: kernel.to_owned(),
                kernel: format!("{directory}/{kernel}"),
                initrds: initrd.into_iter().map(|initrd| format!("{directory}/{initrd}")).collect(),
                options: OPTIONS.to_owned(),
            }));
        }
    }
    Ok(None)
}

/// The newest kernel of these names, and its initrd.
fn newest(names: &[String]) -> Option<(&str, Option<&str>)> {
    // What is for rescue, or was replaced, is for hands.
    let set_aside = |name: &str| name.contains("rescue") || name.ends_with(".old") || name.ends_with(".bak");
    let version = |name: &str| {
        let rest = KERNELS.iter().find_map(|kernel| name.strip_prefix(kernel))?;
        (rest.is_empty() || rest.starts_with('-')).then(|| rest.trim_start_matches('-').to_owned())
    };
    let kernels =
        names.iter().filter(|name| !set_aside(name)).filter_map(|name| Some((version(name)?, name)));
    let (version, kernel) = kernels.max_by(|a, b| compare(&a.0, &b.0).then_with(|| a.1.cmp(b.1)))?;
    let dash = if version.is_empty() { "" } else { "-" };
    let initrds = [
        format!("initrd.img{dash}{version}"),
        format!("initramfs{dash}{version}.img"),
        format!("initrd{dash}{version}"),
        format!("initrd{dash}{version}.img"),
        format!("initramfs{dash}{version}"),
    ];
    let initrd = initrds.iter().find_map(|wanted| names.iter().find(|name| *name == wanted));
    Some((kernel, initrd.map(String::as_str)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_has_its_own_initrd() {
        for (names, found) in [
            (
                "vmlinuz-6.1.0-9-amd64 vmlinuz-6.1.0-30-amd64 initrd.img-6.1.0-30-amd64 initrd.img-6.1.0-9-amd64",
                "vmlinuz-6.1.0-30-amd64 initrd.img-6.1.0-30-amd64",
            ),
            ("vmlinuz vmlinuz.old initrd.img initrd.img.old", "vmlinuz initrd.img"),
            (
                "vmlinuz-0-rescue-abc vmlinuz-6.11.fc41 initramfs-6.11.fc41.img config-6.11.fc41",
                "vmlinuz-6.11.fc41 initramfs-6.11.fc41.img",
            ),
            (
                "vmlinuz-linux initramfs-linux.img initramfs-linux-fallback.img",
                "vmlinuz-linux initramfs-linux.img",
            ),
            ("vmlinuz-virt initramfs-virt", "vmlinuz-virt initramfs-virt"),
            ("vmlinux-5 vmlinuz-4 initrd-5", "vmlinux-5 initrd-5"),
            ("vmlinuz-7 vmlinuz", "vmlinuz-7 -"),
            ("vmlinuzx config-6 initrd.img-6", ""),
            ("vmlinuz-7-rescue vmlinuz-6", "vmlinuz-6 -"),
            ("vmlinuz-7.old vmlinuz-6", "vmlinuz-6 -"),
            ("vmlinuz-7.bak vmlinuz-6", "vmlinuz-6 -"),
            ("vmlinuz-0-rescue-abc vmlinuz.old vmlinuz-1.bak", ""),
        ] {
            let names: Vec<_> = names.split(' ').map(str::to_owned).collect();
            let got = newest(&names).map(|(kernel, initrd)| format!("{kernel} {}", initrd.unwrap_or("-")));
            assert_eq!(got.unwrap_or_default(), found);
        }
    }
}
