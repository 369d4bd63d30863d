//! The seed of cloud-init's NoCloud data source: a small disk with the user's files, which an image's first boot reads.
//!
//! It is a FAT12 file system without partitions, with the label `CIDATA` and long names (Microsoft's *FAT: General Overview of On-Disk
//! Format*): that takes the least, and every kernel that a cloud image has can read it. It is made in memory, and is to be read only.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The names that cloud-init looks for.
const NAMES: [&str; 4] = ["meta-data", "user-data", "vendor-data", "network-config"];
/// The most that all of them have together, in bytes.
const BYTES_MAX: u64 = 16 << 20;

const SECTOR: usize = 512;
const ENTRY: usize = 32;
const ROOT_ENTRIES: usize = 64;
const RESERVED: usize = 1;
const TABLES: usize = 2;
/// With 4085 clusters a file system is a FAT16, and some readers miscount by a few: the document asks to stay away from the edge.
const CLUSTERS_MAX: usize = 4076;
/// The first of January 1980: the seed of the same files is the same.
const DATE: [u8; 2] = [0x21, 0];
const LABEL: &[u8; 11] = b"CIDATA     ";

/// Why there is no seed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's text says what its fields are
pub enum Error {
    #[error("the seed {path} is no directory")]
    NoDirectory { path: PathBuf },
    #[error("cannot read the seed's {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the directory {path} has no {}", NAMES.join(", "))]
    Nothing { path: PathBuf },
    #[error("the seed in {path} has more than {BYTES_MAX} bytes")]
    TooLong { path: PathBuf },
}

impl Error {
    /// What the user can do about it, as one line.
    pub fn remedy(&self) -> String {
        match self {
            Self::Read { .. } => "make it readable for this user, or give another --seed DIR".into(),
            Self::NoDirectory { .. } | Self::Nothing { .. } => {
                "give --seed a directory with user-data (cloud-init's documentation, NoCloud)".into()
            }
            Self::TooLong { .. } => "have the guest fetch what is large".into(),
        }
    }
}

/// The image of a seed of the files in `directory`. The meta-data that is not there says `instance`, by which cloud-init knows whether it
/// is the first boot, and `hostname`; user data that is not there is empty. Other files are left out.
///
/// # Errors
/// It has none of the files, one cannot be read, or they are too long.
pub fn read(directory: &Path, instance: &str, hostname: &str) -> Result<Vec<u8>, Error> {
    let is_missing = |error: io::Error| error.kind() == io::ErrorKind::NotFound;
    if std::fs::metadata(directory).map_or_else(is_missing, |there| !there.is_dir()) {
        return Err(Error::NoDirectory { path: directory.into() });
    }
    let mut files = Vec::new();
    let mut left = BYTES_MAX;
    for name in NAMES {
        let path = directory.join(name);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(left + 1).read_to_end(&mut bytes)) {
            Ok(_) => files.push((name, bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(Error::Read { path, source }),
        }
        let len = files.last().map_or(0, |(_, bytes)| bytes.len() as u64);
        left = left.checked_sub(len).ok_or_else(|| Error::TooLong { path: directory.into() })?;
    }
    if files.is_empty() {
        return Err(Error::Nothing { path: directory.into() });
    }
    let made = format!("instance-id: {instance}\nlocal-hostname: {hostname}\n");
    for (name, content) in [("meta-data", made.into_bytes()), ("user-data", Vec::new())] {
        if files.iter().all(|(there, _)| *there != name) {
            files.push((name, content));
        }
    }
    Ok(image(&files))
}

/// A disk with these files in its root, of names of ASCII and no more in all than [`read`] takes.
pub fn image(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    // The smallest clusters of which there are not too many.
    let clusters = |len: usize| files.iter().map(|(_, bytes)| bytes.len().div_ceil(len)).sum::<usize>();
    let lens = (0..8).map(|shift| SECTOR << shift);
    let cluster = lens.clone().find(|&len| clusters(len) < CLUSTERS_MAX).unwrap_or(SECTOR << 7);
    let count = clusters(cluster).max(1);
    let table_sectors = ((count + 2) * 3).div_ceil(2).div_ceil(SECTOR);
    let root = (RESERVED + TABLES * table_sectors) * SECTOR;
    let data = root + ROOT_ENTRIES * ENTRY;
    // Whole pages, for disks with sectors of that length.
    let mut disk = vec![0; (data + count * cluster).next_multiple_of(4096)];

    let mut table = vec![0xff8, 0xfff];
    let mut entries = label();
    for (index, (name, bytes)) in files.iter().enumerate() {
        let first = if bytes.is_empty() { 0 } else { table.len() };
        let chain = bytes.len().div_ceil(cluster);
        disk[data + (table.len() - 2) * cluster..][..bytes.len()].copy_from_slice(bytes);
        table.extend((1..=chain).map(|nth| if nth == chain { 0xfff } else { first as u16 + nth as u16 }));
        entries.extend(entry(name, index, first as u16, bytes.len() as u32));
    }
    disk[root..root + entries.len()].copy_from_slice(&entries);
    let packed: Vec<u8> = table
        .chunks(2)
        .flat_map(|pair| {
            let (a, b) = (pair[0], pair.get(1).copied().unwrap_or(0));
            [a as u8, (a >> 8 | b << 4) as u8, (b >> 4) as u8]
        })
        .collect();
    for nth in 0..TABLES {
        disk[(RESERVED + nth * table_sectors) * SECTOR..][..packed.len()].copy_from_slice(&packed);
    }
    let mut serial = flate2::Crc::new();
    serial.update(&disk);
    // What fills up the last page is not the file system's: its clusters would be counted, and the table has no place for them.
    let sectors = (data + count * cluster) / SECTOR;
    boot_sector(&mut disk, sectors, cluster, table_sectors as u16, serial.sum());
    disk
}

fn boot_sector(disk: &mut [u8], sectors: usize, cluster: usize, table_sectors: u16, serial: u32) {
    let mut put = |at: usize, bytes: &[u8]| disk[at..at + bytes.len()].copy_from_slice(bytes);
    // A jump to itself, where nobody boots.
    put(0, &[0xeb, 0x3c, 0x90]);
    put(3, b"wirevm  ");
    put(11, &(SECTOR as u16).to_le_bytes());
    put(13, &[(cluster / SECTOR) as u8, RESERVED as u8, 0, TABLES as u8]);
    put(17, &(ROOT_ENTRIES as u16).to_le_bytes());
    match u16::try_from(sectors) {
        Ok(short) => put(19, &short.to_le_bytes()),
        Err(_) => put(32, &(sectors as u32).to_le_bytes()),
    }
    put(21, &[0xf8]);
    put(22, &table_sectors.to_le_bytes());
    // Geometry, which has no meaning, and the drive's number.
    put(24, &[32, 0, 2, 0]);
    put(36, &[0x80, 0, 0x29]);
    put(39, &serial.to_le_bytes());
    put(43, LABEL);
    put(54, b"FAT12   ");
    put(510, &[0x55, 0xaa]);
}

/// The entry that is the file system's label.
fn label() -> Vec<u8> {
    let mut entry = vec![0; ENTRY];
    entry[..11].copy_from_slice(LABEL);
    entry[11] = 0x08;
    entry[24..26].copy_from_slice(&DATE);
    entry
}

/// A file's entries: its long name, last part first, and a short one that is no other's.
fn entry(name: &str, index: usize, first: u16, len: u32) -> Vec<u8> {
    let mut short = *b"SEED~0  \x20\x20\x20";
    short[5] = b'0' + (index % 10) as u8;
    short[6] = b'A' + (index / 10) as u8;
    let sum = short.iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
    let mut units: Vec<u16> = name.encode_utf16().collect();
    let parts = units.len().div_ceil(13);
    if !units.len().is_multiple_of(13) {
        units.push(0);
        units.resize(parts * 13, 0xffff);
    }
    let mut all = Vec::new();
    for (nth, part) in units.chunks(13).enumerate().rev() {
        let last = if nth + 1 == parts { 0x40 } else { 0 };
        let bytes: Vec<u8> = part.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        all.push(last | (nth as u8 + 1));
        all.extend_from_slice(&bytes[..10]);
        all.extend([0x0f, 0, sum]);
        all.extend_from_slice(&bytes[10..22]);
        all.extend([0, 0]);
        all.extend_from_slice(&bytes[22..]);
    }
    let mut entry = [0; ENTRY];
    entry[..11].copy_from_slice(&short);
    // An archive, which is what every file is; created, read and written on that day.
    entry[11] = 0x20;
    for at in [16, 18, 24] {
        entry[at..at + 2].copy_from_slice(&DATE);
    }
    entry[26..28].copy_from_slice(&first.to_le_bytes());
    entry[28..32].copy_from_slice(&len.to_le_bytes());
    all.extend(entry);
    all
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;
    use crate::disk::file_of_fat;
    use crate::testing::Scratch;

    fn files(lens: &[usize]) -> Vec<(&'static str, Vec<u8>)> {
        let content = |(index, len): (usize, &usize)| vec![b'a' + index as u8; *len];
        NAMES.into_iter().zip(lens.iter().enumerate().map(content)).collect()
    }

    #[test]
    fn each_file_is_there_by_its_name() {
        for lens in [
            &[0, 1, 511, 512][..],
            &[513, 70_000, 0, 4096],
            &[3 << 20, 100, 5 << 20, 1],
            &[16 << 20, 0, 0, 0],
            &[0],
            // At the edge to a FAT16.
            &[4074 << 9],
            &[4075 << 9],
            &[4076 << 9],
            &[4082 << 9],
            &[4083 << 9],
            &[4084 << 9],
            // With a table that is full to its last byte, before what fills up the page.
            &[1022 << 9],
        ] {
            let files = files(lens);
            let image = image(&files);
            assert_eq!(image.len() % 4096, 0);
            for (name, bytes) in &files {
                assert!(
                    file_of_fat(&image, &format!("/{name}")).as_ref() == Some(bytes),
                    "{name} of {lens:?}"
                );
            }
        }
    }

    #[test]
    fn clusters_grow_before_there_are_too_many() {
        assert_eq!([4075, 4076].map(|count| image(&files(&[count << 9]))[13]), [1, 2]);
    }

    #[test]
    fn each_short_name_is_anothers_and_one_that_dos_knows() {
        let files: Vec<(&str, Vec<u8>)> = ["file"; 12].map(|name| (name, b"x".to_vec())).into();
        let image = image(&files);
        let root = (RESERVED + TABLES * usize::from(u16::from_le_bytes([image[22], image[23]]))) * SECTOR;
        let entries = image[root..root + ROOT_ENTRIES * ENTRY].chunks(ENTRY);
        let names: Vec<_> = entries.filter(|entry| entry[11] == 0x20).map(|entry| &entry[..11]).collect();
        let name = |(letter, digit)| [b"SEED~", &[digit, letter][..], b"    "].concat();
        let digits = |letter, digits: std::ops::RangeInclusive<u8>| digits.map(move |digit| (letter, digit));
        let expected: Vec<_> = digits(b'A', b'0'..=b'9').chain(digits(b'B', b'0'..=b'1')).map(name).collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn each_error_says_what_helps() {
        let path = PathBuf::from("/seed");
        for (error, words) in [
            (Error::Read { path: path.clone(), source: io::ErrorKind::PermissionDenied.into() }, "readable"),
            (Error::NoDirectory { path: path.clone() }, "--seed a directory"),
            (Error::Nothing { path: path.clone() }, "user-data"),
            (Error::TooLong { path }, "fetch"),
        ] {
            assert!(error.remedy().contains(words), "{}", error.remedy());
        }
    }

    /// By others' readers, where this host has them.
    #[test]
    fn others_read_it_too() {
        let files = files(&[50, 70_000, 0, 4096]);
        let scratch = Scratch::new(&image(&files));
        let name = scratch.path().to_str().unwrap();
        let run = |program: &str, args: &[&str]| {
            let path = ["/usr/sbin", "/usr/bin", "/sbin"].map(|place| Path::new(place).join(program));
            let Some(path) = path.iter().find(|path| path.exists()) else {
                eprintln!("skipped: this host has no {program}");
                return None;
            };
            let output = Command::new(path).args(args).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{program}: {said}{}", String::from_utf8_lossy(&output.stderr));
            Some(output.stdout)
        };
        if let Some(said) = run("blkid", &["-p", "-o", "export", name]) {
            let said = String::from_utf8(said).unwrap();
            assert!(said.contains("LABEL=CIDATA\n") && said.contains("TYPE=vfat\n"), "{said}");
        }
        run("fsck.fat", &["-n", "-v", name]);
        for (file, bytes) in &files {
            if let Some(said) = run("mtype", &["-i", name, &format!("::/{file}")]) {
                assert_eq!(&said, bytes, "{file}");
            }
        }
    }

    #[test]
    fn a_directory_is_read_and_what_it_lacks_is_made() {
        let dir = std::env::temp_dir().join(format!("boot-seed-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let read = || read(&dir, "0-1-2", "web");
        assert!(matches!(read(), Err(Error::NoDirectory { .. })));
        fs::write(&dir, "").unwrap();
        assert!(matches!(read(), Err(Error::NoDirectory { .. })));
        fs::remove_file(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        let error = read().unwrap_err();
        assert!(
            error.to_string().ends_with("has no meta-data, user-data, vendor-data, network-config"),
            "{error}"
        );
        fs::write(dir.join("user-data"), "#cloud-config\n").unwrap();
        let text = |image: &Vec<u8>, name: &str| Some(String::from_utf8(file_of_fat(image, name)?).unwrap());
        let image = read().unwrap();
        assert_eq!(text(&image, "/user-data").as_deref(), Some("#cloud-config\n"));
        assert_eq!(text(&image, "/meta-data").as_deref(), Some("instance-id: 0-1-2\nlocal-hostname: web\n"));
        assert_eq!(text(&image, "/network-config"), None);
        fs::write(dir.join("meta-data"), "instance-id: mine\n").unwrap();
        fs::remove_file(dir.join("user-data")).unwrap();
        let image = read().unwrap();
        assert_eq!(text(&image, "/meta-data").as_deref(), Some("instance-id: mine\n"));
        assert_eq!(text(&image, "/user-data").as_deref(), Some(""));
        fs::create_dir(dir.join("vendor-data")).unwrap();
        let error = read().unwrap_err();
        assert!(matches!(&error, Error::Read { path, .. } if path.ends_with("vendor-data")), "{error}");
        fs::remove_dir(dir.join("vendor-data")).unwrap();
        fs::write(dir.join("user-data"), vec![b'x'; BYTES_MAX as usize + 1]).unwrap();
        assert!(matches!(read(), Err(Error::TooLong { .. })));
        fs::remove_dir_all(&dir).unwrap();
    }
}
