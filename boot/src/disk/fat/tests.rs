//! File systems made by hand, with each length of table entries, up to their limits and beyond.

use std::cell::RefCell;

use super::made::{Image, SECTOR};
use super::*;
use crate::disk::source::{ReadAt, Source};

const FILE: u8 = 0x20;
const NOWHERE: &str = "its FAT file system is broken: a chain of clusters leads nowhere";

/// Each length of entries, with the fewest and the most clusters that have it.
const KINDS: [(usize, usize); 5] = [(12, 10), (12, 4084), (16, 4085), (16, 65524), (32, 65525)];

/// The least number that ends a chain.
fn end(bits: usize) -> u32 {
    match bits {
        12 => 0xff8,
        16 => 0xfff8,
        _ => 0x0fff_fff8,
    }
}

fn with<T>(image: &Image, test: impl FnOnce(&Fat<'_>) -> T) -> T {
    let source = Source::new(&image.bytes, image.bytes.len() as u64);
    test(&Fat::open(source.whole()).unwrap())
}

/// Why there is none, in words.
fn refusal(image: &Image) -> String {
    let source = Source::new(&image.bytes, image.bytes.len() as u64);
    Fat::open(source.whole()).err().expect("it is opened").to_string()
}

/// A file's bytes, or what is wrong, in words.
fn read(image: &Image, path: &str) -> Result<Option<Vec<u8>>, String> {
    with(image, |fat| fat.read(path, 1 << 30).map_err(|error| error.to_string()))
}

fn list(image: &Image, path: &str) -> Vec<String> {
    with(image, |fat| fat.list(path).unwrap())
}

/// Bytes of which those of one cluster are not those of another.
fn content(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / SECTOR * 31 + at) as u8 | 1).collect()
}

#[test]
fn a_boot_sector_is_known_by_all_three_of_its_marks() {
    let sector = |jump: u8, name_at: usize, signature: u16| {
        let mut sector = vec![0; 512];
        sector[0] = jump;
        sector[name_at..][..3].copy_from_slice(b"FAT");
        sector[510..].copy_from_slice(&signature.to_le_bytes());
        sector
    };
    let known = |bytes: Vec<u8>| {
        let source = Source::new(&bytes, bytes.len() as u64);
        is_here(source.whole()).unwrap()
    };
    for jump in [0xeb, 0xe9] {
        for name_at in [0x36, 0x52] {
            assert!(known(sector(jump, name_at, 0xaa55)));
            assert!(!known(sector(jump, name_at, 0x55aa)));
            assert!(!known(sector(jump, name_at, 0xaa55)[..511].to_vec()));
        }
        assert!(!known(sector(jump, 0x37, 0xaa55)));
        assert!(!known(sector(jump, 0x37, 0)));
    }
    for jump in [0, 0xea, 0xfa] {
        assert!(!known(sector(jump, 0x36, 0xaa55)));
        assert!(!known(sector(jump, 0x36, 0)));
        assert!(!known(sector(jump, 0x37, 0xaa55)));
    }
}

#[test]
fn sectors_and_clusters_have_a_length_that_is_a_power_of_two() {
    let strange = "its FAT file system is broken: its sectors or clusters are of a strange length";
    for sector in [0, 256, 511, 513, 768, 1536, 3072, 4095, 8192, 32768] {
        let mut image = Image::new(12, 100, 1);
        image.put(11, &u16::to_le_bytes(sector));
        assert_eq!(refusal(&image), strange, "{sector}");
    }
    for per_cluster in [0, 3, 6, 127, 255] {
        let mut image = Image::new(12, 100, 1);
        image.put(13, &[per_cluster]);
        assert_eq!(refusal(&image), strange, "{per_cluster}");
    }
    for sector in [512_u16, 1024, 2048, 4096] {
        // As long as before, in fewer sectors, and all at their beginning.
        let mut image = Image::new(12, 100, 1);
        image.put(11, &sector.to_le_bytes());
        image.put(32, &(image.bytes.len() as u32 / u32::from(sector)).to_le_bytes());
        with(&image, |fat| assert_eq!(fat.cluster_len, u64::from(sector)));
    }
}

#[test]
fn how_many_clusters_there_are_says_how_long_a_number_is() {
    for (bits, clusters) in KINDS {
        let image = Image::new(bits, clusters, 1);
        with(&image, |fat| assert_eq!((fat.clusters, fat.bits), (clusters as u32, bits as u32)));
    }
}

#[test]
fn a_table_holds_all_clusters_or_is_too_short() {
    // Their tables are full.
    for (bits, clusters) in [(12, 1022), (16, 4094), (32, 65662)] {
        let mut image = Image::new(bits, clusters, 1);
        with(&image, |fat| assert_eq!(fat.table.len() % SECTOR, 0));
        image.bytes.extend([0; SECTOR]);
        image.put(32, &((image.bytes.len() / SECTOR) as u32).to_le_bytes());
        let short = "its FAT file system is broken: its table is too short for its clusters";
        assert_eq!(refusal(&image), short, "FAT{bits}");
    }
}

#[test]
fn there_are_no_more_clusters_than_have_numbers() {
    let refusal = |clusters: u32| {
        let mut image = Image::new(32, 0, 1);
        let table = (u64::from(clusters) + 2).div_ceil(128) as u32;
        image.put(36, &table.to_le_bytes());
        image.put(32, &(1 + table + clusters).to_le_bytes());
        refusal(&image)
    };
    // As many as can be, with a table that there is no room for.
    assert_eq!(refusal(0x0fff_fff5), "the disk has too much in its journals and tables");
    for more in [0x0fff_fff6, 0x0fff_fff7, 0x1000_0000] {
        let short = "its FAT file system is broken: its table is too short for its clusters";
        assert_eq!(refusal(more), short, "{more:#x}");
    }
}

#[test]
fn the_serial_number_is_the_uuid() {
    for (bits, clusters) in KINDS {
        with(&Image::new(bits, clusters, 1), |fat| assert_eq!(fat.uuid(), "0234-ABCD", "FAT{bits}"));
    }
}

#[test]
fn a_file_is_read_along_its_chain() {
    for (bits, clusters) in KINDS {
        let last = clusters as u32 + 1;
        for chain in [
            vec![3, 4, 5, 6],
            // In pieces, downwards, and up to the last cluster.
            vec![3, 4, 7, 9, 8, 5],
            vec![9, 8, 7, 6],
            vec![last - 1, last, 4, 5],
            vec![6, last - 2, last - 1, last],
        ] {
            let full = chain.len() * SECTOR;
            for len in [full, full - 1, full - SECTOR + 1] {
                let mut image = Image::new(bits, clusters, 1);
                let bytes = content(len);
                image.chain(&chain, end(bits) + 7);
                for (&cluster, part) in chain.iter().zip(bytes.chunks(SECTOR)) {
                    image.fill(cluster, part);
                }
                image.root(&[image.entry(b"FILE    BIN", FILE, chain[0], len as u32)]);
                assert_eq!(read(&image, "/file.bin").unwrap(), Some(bytes), "FAT{bits} {chain:?} {len}");
            }
        }
    }
}

#[test]
fn a_chain_that_leads_out_of_the_clusters_is_broken() {
    for (bits, clusters) in KINDS {
        let last = clusters as u32 + 1;
        // The file's second cluster is none, or lies right behind the last one.
        for next in [0, 1, last + 1, last + 2, end(bits) - 1] {
            let mut image = Image::new(bits, clusters, 1);
            image.bytes.extend([7; 4 * SECTOR]);
            image.chain(&[last], next);
            image.root(&[image.entry(b"FILE       ", FILE, last, SECTOR as u32 + 1)]);
            assert_eq!(read(&image, "/file").unwrap_err(), NOWHERE, "FAT{bits} {next:#x}");
        }
        for first in [0, 1, last + 1] {
            let mut image = Image::new(bits, clusters, 1);
            image.root(&[image.entry(b"FILE       ", FILE, first, 1)]);
            assert_eq!(read(&image, "/file").unwrap_err(), NOWHERE, "FAT{bits} {first:#x}");
        }
        // The chain ends before the size does.
        let mut image = Image::new(bits, clusters, 1);
        image.chain(&[5, 6], end(bits));
        image.root(&[image.entry(b"FILE       ", FILE, 5, 2 * SECTOR as u32 + 1)]);
        let short = "its FAT file system is broken: a file has fewer clusters than its size";
        assert_eq!(read(&image, "/file").unwrap_err(), short, "FAT{bits}");
    }
}

#[test]
fn a_chain_of_a_directory_ends_at_the_least_number_that_ends_it() {
    for (bits, clusters) in KINDS {
        let mut image = Image::new(bits, clusters, 1);
        image.fill(4, &image.entry(b"A          ", FILE, 0, 0).repeat(16));
        image.fill(6, &image.entry(b"B          ", FILE, 0, 0));
        image.root(&[image.entry(b"DIR        ", DIRECTORY, 4, 0)]);
        for past in [0, 7] {
            image.chain(&[4, 6], end(bits) + past);
            let names = [vec!["A"; 16], vec!["B"]].concat();
            assert_eq!(list(&image, "/dir"), names, "FAT{bits}");
        }
        image.chain(&[4, 6], end(bits) - 1);
        let error = with(&image, |fat| fat.list("/dir").unwrap_err());
        assert_eq!(error.to_string(), NOWHERE, "FAT{bits}");
    }
}

#[test]
fn a_directory_has_two_mebibytes_at_most() {
    let per_cluster = 64;
    let most = DIRECTORY_MAX as usize / (64 * SECTOR);
    let mut image = Image::new(16, 4085, per_cluster);
    image.root(&[image.entry(b"DIR        ", DIRECTORY, 3, 0)]);
    for cluster in 3..=most as u32 + 4 {
        let entries = image.entry(b"A          ", FILE, 0, 0).repeat(64 * SECTOR / ENTRY);
        image.fill(cluster, &entries);
    }
    // All one after another, and the first apart.
    for second in [4, 5] {
        let chain: Vec<u32> = [3].into_iter().chain(second..).take(most + 1).collect();
        image.chain(&chain[..most], end(16));
        assert_eq!(list(&image, "/dir").len(), 65536, "{second}");
        image.chain(&chain, end(16));
        let error = with(&image, |fat| fat.list("/dir").unwrap_err());
        assert_eq!(error.to_string(), "the disk has too much in one directory", "{second}");
    }
}

/// A disk that notes where it is read, and how much.
struct Noting<'a>(&'a Vec<u8>, RefCell<Vec<(u64, usize)>>);

impl ReadAt for Noting<'_> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.1.borrow_mut().push((offset, buffer.len()));
        self.0.read_exact_at(buffer, offset)
    }
}

#[test]
fn clusters_one_after_another_are_read_at_once_up_to_a_mebibyte() {
    let mib = 1 << 20;
    let in_mib = (mib / SECTOR) as u32;
    let last = 4084 + 1;
    // Of each file its chain, its size, and from which clusters how much is read.
    for (chain, size, reads) in [
        (vec![3, 4, 5, 6], 4 * SECTOR, vec![(3, 4 * SECTOR)]),
        (vec![3, 4, 5, 6], 3 * SECTOR + 1, vec![(3, 3 * SECTOR + 1)]),
        (vec![last - 2, last - 1, last], 3 * SECTOR, vec![(last - 2, 3 * SECTOR)]),
        (vec![3, 4, 8, 9], 4 * SECTOR, vec![(3, 2 * SECTOR), (8, 2 * SECTOR)]),
        ((3..3 + in_mib).collect(), mib, vec![(3, mib)]),
        ((3..4 + in_mib).collect(), mib + SECTOR, vec![(3, mib), (3 + in_mib, SECTOR)]),
    ] {
        let mut image = Image::new(12, 4084, 1);
        image.chain(&chain, end(12));
        image.root(&[image.entry(b"FILE       ", FILE, chain[0], size as u32)]);
        let disk = Noting(&image.bytes, RefCell::default());
        let source = Source::new(&disk, image.bytes.len() as u64);
        let fat = Fat::open(source.whole()).unwrap();
        disk.1.borrow_mut().clear();
        assert_eq!(fat.read("/file", FILES_MAX).unwrap().unwrap().len(), size);
        let place =
            |(cluster, len): (u32, usize)| ((image.data + (cluster as usize - 2) * SECTOR) as u64, len);
        let expected: Vec<_> = reads.into_iter().map(place).collect();
        // The first is of the root.
        assert_eq!(disk.1.borrow()[1..], expected);
    }
}

/// In the root a label, a file, and a directory that has a file, a way up and a directory more.
fn tree(bits: usize, clusters: usize) -> Image {
    let mut image = Image::new(bits, clusters, 1);
    let far = clusters as u32;
    let file = |image: &Image, name, cluster| image.entry(name, FILE, cluster, 4);
    image.root(&[
        image.entry(b"A LABEL    ", VOLUME, 0, 0),
        file(&image, b"ROOTFILETXT", 3),
        image.entry(b"DIR        ", DIRECTORY, far, 0),
    ]);
    let inner = [
        image.entry(b".          ", DIRECTORY, far, 0),
        // The root, whatever its cluster is.
        image.entry(b"..         ", DIRECTORY, 0, 0),
        file(&image, b"FILE       ", far + 1),
        image.entry(b"SUB     DIR", DIRECTORY, 4, 0),
    ];
    image.fill(far, &inner.concat());
    image.fill(3, b"root");
    image.fill(far + 1, b"deep");
    for cluster in [3, 4, far, far + 1] {
        image.chain(&[cluster], end(bits));
    }
    image
}

#[test]
fn paths_lead_through_directories_up_and_down() {
    // Of a FAT32 also clusters with numbers of more than 16 bits.
    for (bits, clusters) in KINDS.into_iter().chain([(32, 0x1_0010)]) {
        let image = tree(bits, clusters);
        for path in ["/", "", "/./", "/dir/..", "/dir/./..//"] {
            assert_eq!(list(&image, path), ["ROOTFILE.TXT", "DIR"], "FAT{bits} {path}");
        }
        for path in ["/dir", "/DIR/", "/dir/../dir"] {
            assert_eq!(list(&image, path), [".", "..", "FILE", "SUB.DIR"], "FAT{bits} {path}");
        }
        for path in ["/dir/sub.dir", "/none", "/rootfile.txt", "/dir/file", "/dir/file/file"] {
            assert!(list(&image, path).is_empty(), "FAT{bits} {path}");
        }
        for (path, bytes) in [
            ("/rootfile.txt", Some(&b"root"[..])),
            ("/dir/../RootFile.Txt", Some(b"root")),
            ("/dir/file", Some(b"deep")),
            ("/dir/rootfile.txt", None),
            ("/file", None),
            ("/rootfile.txt/file", None),
            ("/rootfile.txt/..", None),
            ("/a label", None),
            ("/dir/none", None),
        ] {
            assert_eq!(read(&image, path).unwrap().as_deref(), bytes, "FAT{bits} {path}");
        }
        for path in ["/", "/dir", "/dir/sub.dir", "/dir/.."] {
            assert_eq!(read(&image, path).unwrap_err(), format!("its {path} is no regular file"));
        }
        let is_directory = |path: &str| with(&image, |fat| fat.is_directory(path).unwrap());
        assert!(["/", "/dir", "/dir/sub.dir", "/dir/.."].into_iter().all(is_directory));
        assert!(!["/none", "/rootfile.txt", "/dir/file", "/rootfile.txt/.."].into_iter().any(is_directory));
    }
}

#[test]
fn halves_of_a_short_name_are_in_small_letters_by_their_flags() {
    let mut image = Image::new(12, 10, 1);
    let entry = |name, flags: u8| {
        let mut entry = image.entry(name, FILE, 0, 0);
        entry[12] = flags;
        entry
    };
    let entries = [
        entry(b"NAME1   EXT", 0),
        entry(b"NAME2   EXT", 0x08),
        entry(b"NAME3   EXT", 0x10),
        entry(b"NAME4   EXT", 0x18),
        entry(b"NAME5   EXT", !0x18),
        entry(b"NAME-678   ", 0x08),
        entry(b"A B     C  ", 0x10),
    ];
    image.root(&entries);
    let names = ["NAME1.EXT", "name2.EXT", "NAME3.ext", "name4.ext", "NAME5.EXT", "name-678", "A B.c"];
    assert_eq!(list(&image, "/"), names);
}

#[test]
fn a_file_is_as_long_as_its_limit_and_no_longer() {
    let mut image = Image::new(12, 10, 1);
    image.chain(&[3, 4], end(12));
    image.fill(3, &content(1000));
    image.root(&[
        image.entry(b"FILE       ", FILE, 3, 1000),
        image.entry(b"HUGE       ", FILE, 3, FILES_MAX as u32 + 1),
        image.entry(b"EMPTY      ", FILE, 0, 0),
    ]);
    let read = |path: &str, limit| with(&image, |fat| fat.read(path, limit));
    for limit in [1000, 1001, u64::MAX] {
        assert_eq!(read("/file", limit).unwrap().unwrap(), content(1000), "{limit}");
    }
    for limit in [0, 1, 999] {
        let error = read("/file", limit).unwrap_err().to_string();
        assert_eq!(error, format!("its /file has 1000 bytes, and there is room for {limit}"));
    }
    // Whatever the caller takes, it is no more than kernel and initrd have together.
    let error = read("/huge", u64::MAX).unwrap_err();
    assert!(
        matches!(error, Error::TooLong { size, limit: FILES_MAX, .. } if size == FILES_MAX + 1),
        "{error}"
    );
    assert!(read("/empty", 0).unwrap().unwrap().is_empty());
}
