//! FAT file systems made by hand, for tests: every byte of them can lie.

/// What a FAT16 says where a FAT32 has the higher half of a cluster's number.
const NOISE: u8 = 0x5a;
pub(in crate::disk) const SECTOR: usize = 512;
const ROOT_LEN: usize = 64 * 32;

/// A file system with sectors of 512 bytes and one table.
pub(in crate::disk) struct Image {
    pub(in crate::disk) bytes: Vec<u8>,
    bits: usize,
    cluster_len: usize,
    root: usize,
    pub(in crate::disk) data: usize,
}

impl Image {
    /// As many clusters, each of `per_cluster` sectors, and a table of no more sectors than they take.
    pub(in crate::disk) fn new(bits: usize, clusters: usize, per_cluster: u8) -> Self {
        let table_sectors = ((clusters + 2) * bits).div_ceil(8).div_ceil(SECTOR);
        let root = (1 + table_sectors) * SECTOR;
        let data = root + if bits == 32 { 0 } else { ROOT_LEN };
        let cluster_len = usize::from(per_cluster) * SECTOR;
        let len = data + clusters * cluster_len;
        let mut image = Self { bytes: vec![0; len], bits, cluster_len, root, data };
        image.put(0, &[0xeb, 0x3c, 0x90]);
        image.put(11, &[0, 2, per_cluster, 1, 0, 1]);
        image.put(32, &((len / SECTOR) as u32).to_le_bytes());
        image.put(510, &[0x55, 0xaa]);
        if bits == 32 {
            image.put(36, &(table_sectors as u32).to_le_bytes());
            image.put(44, &2_u32.to_le_bytes());
            image.put(67, &[0xcd, 0xab, 0x34, 0x02]);
            image.put(0x52, b"FAT32   ");
            image.chain(&[2], 0x0fff_ffff);
        } else {
            image.put(17, &((ROOT_LEN / 32) as u16).to_le_bytes());
            image.put(22, &(table_sectors as u16).to_le_bytes());
            image.put(39, &[0xcd, 0xab, 0x34, 0x02]);
            image.put(0x36, b"FAT     ");
        }
        image
    }

    pub(in crate::disk) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// What is in a cluster, and may go on in those behind it.
    pub(in crate::disk) fn fill(&mut self, cluster: u32, bytes: &[u8]) {
        self.put(self.data + (cluster as usize - 2) * self.cluster_len, bytes);
    }

    /// Makes a chain of these clusters, of which the last has `end`.
    pub(in crate::disk) fn chain(&mut self, clusters: &[u32], end: u32) {
        for (index, &cluster) in clusters.iter().enumerate() {
            let (value, n) = (clusters.get(index + 1).copied().unwrap_or(end), cluster as usize);
            match self.bits {
                12 => {
                    let at = SECTOR + n + n / 2;
                    let old = u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]);
                    let value = value as u16;
                    let pair =
                        if n.is_multiple_of(2) { old & 0xf000 | value } else { old & 0xf | value << 4 };
                    self.put(at, &pair.to_le_bytes());
                }
                16 => self.put(SECTOR + n * 2, &(value as u16).to_le_bytes()),
                // The highest four bits are reserved.
                _ => self.put(SECTOR + n * 4, &(value | 0xa000_0000).to_le_bytes()),
            }
        }
    }

    /// The root's entries.
    pub(in crate::disk) fn root(&mut self, entries: &[[u8; 32]]) {
        self.put(self.root, &entries.concat());
    }

    /// An entry with a name of eight and three bytes.
    pub(in crate::disk) fn entry(
        &self,
        name: &[u8; 11],
        attributes: u8,
        cluster: u32,
        size: u32,
    ) -> [u8; 32] {
        let mut entry = [0; 32];
        entry[..11].copy_from_slice(name);
        entry[11] = attributes;
        let high = if self.bits == 32 { ((cluster >> 16) as u16).to_le_bytes() } else { [NOISE; 2] };
        entry[20..22].copy_from_slice(&high);
        entry[26..28].copy_from_slice(&(cluster as u16).to_le_bytes());
        entry[28..].copy_from_slice(&size.to_le_bytes());
        entry
    }
}
