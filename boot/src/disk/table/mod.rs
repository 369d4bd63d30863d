//! Partition tables: GPT (UEFI 2.10, chapter 5) and MBR.

mod gpt;
mod mbr;
#[cfg(test)]
mod tests;

use super::Error;
use super::source::Area;

/// The most partitions that are looked at.
pub(super) const PARTITIONS_MAX: usize = 256;

/// For what a partition is there, by its type (UAPI.2, the Discoverable Partitions Specification).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The root of x86-64.
    Root,
    /// `/boot`.
    Boot,
    /// The EFI system partition.
    Esp,
    /// Anything else, or not said.
    Other,
}

/// A partition.
#[derive(Clone)]
pub(super) struct Partition<'a> {
    pub(super) purpose: Purpose,
    pub(super) area: Area<'a>,
    /// As Linux knows it: `root=PARTUUID=` takes it.
    pub(super) partuuid: String,
}

/// The partitions of `disk`, in the order of their numbers; `None` where it has no partition table.
///
/// # Errors
/// It has one that is broken, or it cannot be read.
pub(super) fn partitions(disk: Area<'_>) -> Result<Option<Vec<Partition<'_>>>, Error> {
    match gpt::partitions(disk)? {
        Some(found) => Ok(Some(found)),
        None => mbr::partitions(disk),
    }
}
