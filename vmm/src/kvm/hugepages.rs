//! The host's pools of huge pages (Linux `Documentation/admin-guide/mm/hugetlbpage.rst`).

use std::fs;
use std::path::PathBuf;

use vmm::config::{HugePages, size};

/// Where the kernel has a directory for each size.
const POOLS: &str = "/sys/kernel/mm/hugepages";

/// The pool of one size of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pool {
    /// The size of its pages in bytes, a power of two.
    pub(crate) page: u64,
    /// The one that `vm.nr_hugepages` sets.
    is_default: bool,
}

impl Pool {
    /// The pool of the pages that are wanted.
    ///
    /// # Errors
    /// The host has no such pages: their size, as far as there is one to tell.
    pub(crate) fn find(wanted: HugePages) -> Result<Self, Option<u64>> {
        let default = default_size(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
        let page = match wanted {
            HugePages::Of(page) => Some(page),
            HugePages::Default => default,
        };
        let pool = page.map(|page| Self { page, is_default: default == Some(page) });
        pool.filter(|pool| pool.dir().is_dir()).ok_or(page)
    }

    /// The base-2 logarithm of the page size, as mmap(2) and memfd_create(2) want it above their other flags.
    pub(crate) fn log2(self) -> u32 {
        self.page.ilog2()
    }

    /// How many pages nobody has or has reserved.
    pub(crate) fn available(self) -> u64 {
        self.read("free_hugepages").saturating_sub(self.read("resv_hugepages"))
    }

    /// The command after which `needed` pages are available.
    pub(crate) fn reserve(self, needed: u64) -> String {
        let total = self.read("nr_hugepages") + needed.saturating_sub(self.available());
        match self.is_default {
            true => format!("sysctl vm.nr_hugepages={total}"),
            false => format!("echo {total} > {}", self.dir().join("nr_hugepages").display()),
        }
    }

    fn dir(self) -> PathBuf {
        format!("{POOLS}/hugepages-{}kB", self.page >> 10).into()
    }

    /// A number of the pool; 0 where the kernel does not tell.
    fn read(self, name: &str) -> u64 {
        let text = fs::read_to_string(self.dir().join(name)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }
}

/// The sizes of huge pages that the host has, smallest first, for a person.
pub(crate) fn sizes() -> String {
    let mut sizes: Vec<u64> = fs::read_dir(POOLS)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            Some(kib << 10)
        })
        .collect();
    sizes.sort_unstable();
    sizes.into_iter().map(size).collect::<Vec<_>>().join(", ")
}

/// The size of the default huge page in bytes, of the text of `/proc/meminfo`.
fn default_size(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("Hugepagesize:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10).filter(|page| page.is_power_of_two())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_size_is_read_from_meminfo() {
        let text = "MemTotal:       24000000 kB\nHugePages_Rsvd:        0\nHugepagesize:       2048 kB\nHugetlb: 0 kB\n";
        assert_eq!(default_size(text), Some(2 << 20));
        for text in ["", "MemTotal: 1 kB\n", "Hugepagesize: many kB\n", "Hugepagesize: 0 kB\n"] {
            assert_eq!(default_size(text), None, "{text:?}");
        }
    }
}
