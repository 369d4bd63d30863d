//! Reads FAT12, FAT16 and FAT32 with long names: the EFI system partition and `/boot` of systemd-boot.
//!
//! Microsoft's *FAT: General Overview of On-Disk Format*. A chain of clusters is followed at most as far as there are clusters.

#[cfg(test)]
pub(super) mod made;
#[cfg(test)]
mod tests;

use super::fs::{FileSystem, Kind};
use super::source::{Area, le16, le32};
use super::{Error, FILES_MAX};

const ENTRY: usize = 32;
const DIRECTORY: u8 = 0x10;
const VOLUME: u8 = 0x08;
const LONG: u8 = 0x0f;
/// The longest directory, in bytes (65536 entries).
const DIRECTORY_MAX: u64 = 2 << 20;

fn broken(problem: &'static str) -> Error {
    Error::Broken { fs: "FAT", problem }
}

/// A FAT file system.
pub(super) struct Fat<'a> {
    area: Area<'a>,
    cluster_len: u64,
    /// Where the clusters begin, of which the first has number 2.
    data: u64,
    clusters: u32,
    table: Vec<u8>,
    bits: u32,
    root: Root,
    serial: u32,
}

enum Root {
    /// Where, and how long.
    Fixed(u64, usize),
    Cluster(u32),
}

struct Entry {
    name: String,
    directory: bool,
    cluster: u32,
    size: u64,
}

/// Whether there is one here.
pub(super) fn is_here(area: Area<'_>) -> Result<bool, Error> {
    let Some(sector) = area.peek(0, 512)? else { return Ok(false) };
    let named = [0x36, 0x52].into_iter().any(|at| sector[at..].starts_with(b"FAT"));
    Ok(named && le16(&sector, 510) == 0xaa55 && matches!(sector[0], 0xeb | 0xe9))
}

impl<'a> Fat<'a> {
    /// The file system in `area`.
    pub(super) fn open(area: Area<'a>) -> Result<Self, Error> {
        let bpb = area.bytes(0, 512)?;
        let sector = u64::from(le16(&bpb, 11));
        let cluster_len = sector * u64::from(bpb[13]);
        if !(512..=4096).contains(&sector) || !sector.is_power_of_two() || !bpb[13].is_power_of_two() {
            return Err(broken("its sectors or clusters are of a strange length"));
        }
        let either = |short: usize, long: usize| match le16(&bpb, short) {
            0 => u64::from(le32(&bpb, long)),
            n => n.into(),
        };
        let (sectors, table_sectors) = (either(19, 32), either(22, 36));
        let root_len = u64::from(le16(&bpb, 17)) * ENTRY as u64;
        let first_table = u64::from(le16(&bpb, 14)) * sector;
        let root = first_table + u64::from(bpb[16]) * table_sectors * sector;
        let data = root + root_len.next_multiple_of(sector);
        let clusters = (sectors * sector).saturating_sub(data) / cluster_len;
        let bits = match clusters {
            0..4085 => 12,
            4085..65525 => 16,
            _ => 32,
        };
        let table_len = ((clusters + 2) * bits).div_ceil(8);
        if table_len > table_sectors * sector || clusters > 0x0fff_fff5 {
            return Err(broken("its table is too short for its clusters"));
        }
        area.keep(table_len)?;
        Ok(Self {
            area,
            cluster_len,
            data,
            clusters: clusters as u32,
            table: area.bytes(first_table, table_len as usize)?,
            bits: bits as u32,
            root: if bits == 32 {
                Root::Cluster(le32(&bpb, 44))
            } else {
                Root::Fixed(root, root_len as usize)
            },
            serial: le32(&bpb, if bits == 32 { 67 } else { 39 }),
        })
    }

    /// The cluster after `cluster`; `None` at a chain's end.
    fn next(&self, cluster: u32) -> Option<u32> {
        let n = cluster as usize;
        let (next, end) = match self.bits {
            12 => {
                let pair = le16(&self.table, n + n / 2);
                (u32::from(if n.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 }), 0xff8)
            }
            16 => (le16(&self.table, n * 2).into(), 0xfff8),
            _ => (le32(&self.table, n * 4) & 0x0fff_ffff, 0x0fff_fff8),
        };
        (next < end).then_some(next)
    }

    /// The bytes of a chain of clusters: `size` of them, or all where that is not known; at most `limit`.
    fn chain(&self, first: u32, size: Option<u64>, limit: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let mut next = Some(first).filter(|_| size != Some(0));
        while let Some(cluster) = next {
            if !(2..self.clusters + 2).contains(&cluster) {
                return Err(broken("a chain of clusters leads nowhere"));
            }
            let left = size.map_or(self.cluster_len, |size| size - bytes.len() as u64);
            if bytes.len() as u64 + left.min(self.cluster_len) > limit {
                return Err(Error::TooMuch { what: "in one directory" });
            }
            // Clusters one after another are read at once.
            let (mut last, mut len) = (cluster, self.cluster_len);
            next = self.next(cluster);
            while next == Some(last + 1) && len < left && last + 1 < self.clusters + 2 && len < 1 << 20 {
                last += 1;
                len += self.cluster_len;
                next = self.next(last);
            }
            let at = self.data + u64::from(cluster - 2) * self.cluster_len;
            bytes.extend(self.area.bytes(at, if size.is_some() { len.min(left) } else { len } as usize)?);
            if size == Some(bytes.len() as u64) {
                return Ok(bytes);
            }
        }
        if size.is_some_and(|size| size != bytes.len() as u64) {
            return Err(broken("a file has fewer clusters than its size"));
        }
        Ok(bytes)
    }

    fn entries(&self, directory: Option<&Entry>) -> Result<Vec<Entry>, Error> {
        let bytes = match (directory, &self.root) {
            (Some(entry), _) if entry.cluster != 0 => self.chain(entry.cluster, None, DIRECTORY_MAX)?,
            (_, &Root::Cluster(cluster)) => self.chain(cluster, None, DIRECTORY_MAX)?,
            (_, &Root::Fixed(at, len)) => self.area.bytes(at, len)?,
        };
        let mut entries = Vec::new();
        let mut long: Vec<u16> = Vec::new();
        for raw in bytes.chunks_exact(ENTRY) {
            match (raw[0], raw[11]) {
                (0, _) => break,
                (0xe5, _) => long.clear(),
                (order, LONG) => {
                    if order & 0x40 != 0 {
                        long.clear();
                    }
                    let units =
                        [1..11, 14..26, 28..32].into_iter().flat_map(|range| raw[range].chunks_exact(2));
                    // They stand last part first.
                    let part =
                        units.map(|unit| le16(unit, 0)).take_while(|&unit| unit != 0 && unit != 0xffff);
                    long.splice(0..0, part.collect::<Vec<_>>());
                    long.truncate(255);
                }
                (_, attributes) if attributes & VOLUME != 0 => long.clear(),
                (_, attributes) => {
                    let name =
                        if long.is_empty() { short_name(raw) } else { String::from_utf16_lossy(&long) };
                    long.clear();
                    let high = if self.bits == 32 { u32::from(le16(raw, 20)) << 16 } else { 0 };
                    entries.push(Entry {
                        name,
                        directory: attributes & DIRECTORY != 0,
                        cluster: high | u32::from(le16(raw, 26)),
                        size: le32(raw, 28).into(),
                    });
                }
            }
        }
        Ok(entries)
    }

    /// What is at `path`: the outer `None` where nothing is, the inner one for the root.
    fn lookup(&self, path: &str) -> Result<Option<Option<Entry>>, Error> {
        let mut at: Option<Entry> = None;
        for name in path.split('/').filter(|name| !matches!(*name, "" | ".")) {
            if at.as_ref().is_some_and(|entry| !entry.directory) {
                return Ok(None);
            }
            let mut entries = self.entries(at.as_ref())?.into_iter();
            at = entries.find(|entry| entry.name.eq_ignore_ascii_case(name));
            if at.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(at))
    }
}

/// `NAME.EXT`, of which either half can be in small letters (a flag of Windows NT).
fn short_name(raw: &[u8]) -> String {
    let part = |bytes: &[u8], small: bool| {
        let text = String::from_utf8_lossy(bytes).trim_end().to_owned();
        if small { text.to_ascii_lowercase() } else { text }
    };
    let (name, extension) = (part(&raw[..8], raw[12] & 0x08 != 0), part(&raw[8..11], raw[12] & 0x10 != 0));
    if extension.is_empty() { name } else { format!("{name}.{extension}") }
}

impl FileSystem for Fat<'_> {
    fn kind(&self) -> Kind {
        Kind::Fat
    }

    fn uuid(&self) -> String {
        format!("{:04X}-{:04X}", self.serial >> 16, self.serial & 0xffff)
    }

    fn is_directory(&self, path: &str) -> Result<bool, Error> {
        Ok(self.lookup(path)?.is_some_and(|entry| entry.is_none_or(|entry| entry.directory)))
    }

    fn list(&self, path: &str) -> Result<Vec<String>, Error> {
        match self.lookup(path)? {
            Some(entry) if entry.as_ref().is_none_or(|entry| entry.directory) => {
                Ok(self.entries(entry.as_ref())?.into_iter().map(|entry| entry.name).collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        match self.lookup(path)? {
            None => Ok(None),
            Some(Some(file)) if !file.directory => {
                let limit = limit.min(FILES_MAX);
                if file.size > limit {
                    return Err(Error::TooLong { path: path.to_owned(), size: file.size, limit });
                }
                self.chain(file.cluster, Some(file.size), limit).map(Some)
            }
            Some(_) => Err(Error::NotAFile { path: path.to_owned() }),
        }
    }
}
