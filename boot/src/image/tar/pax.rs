//! The extended headers of pax: records of `LENGTH KEY=VALUE\n`.

use std::collections::BTreeMap;

use super::super::tree::Bytes;

/// What extended headers say of a file, of what is used here.
#[derive(Clone, Debug, Default)]
pub(super) struct Pax {
    path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: BTreeMap<Bytes, Bytes>,
    /// Of GNU's sparse files: the name, for the path is another one then.
    sparse_name: Option<Vec<u8>>,
    pub(super) sparse_size: Option<u64>,
    /// By the formats 0.0 and 0.1: offsets and lengths in turn.
    pub(super) sparse_map: Vec<u64>,
    sparse_major: Option<u64>,
    /// Keys whose values are taken back, also what all files have by them.
    taken_back: Vec<&'static str>,
    any: bool,
}

/// Keys that all files may have a value by, and one may have none.
const KEYS: [&str; 6] = ["path", "linkpath", "size", "uid", "gid", "mtime"];

impl Pax {
    pub(super) fn is_empty(&self) -> bool {
        !self.any
    }

    /// Reads records for all files. What says where a file's holes are is one file's.
    pub(super) fn read_global(&mut self, records: &[u8]) -> Option<()> {
        self.read(records)?;
        (!self.is_sparse() && self.sparse_name.is_none()).then_some(())
    }

    /// In bytes, about what a copy of it takes.
    pub(super) fn kept(&self) -> usize {
        let text = |text: &Option<Vec<u8>>| text.as_ref().map_or(0, Vec::len);
        let xattrs = self.xattrs.iter().map(|(name, value)| 32 + name.len() + value.len());
        text(&self.path) + text(&self.link) + xattrs.sum::<usize>()
    }

    /// Reads records; `None` where one is malformed. An empty value takes back what was said before.
    pub(super) fn read(&mut self, mut records: &[u8]) -> Option<()> {
        self.any = true;
        // Some writers fill up with NULs.
        while records.first().is_some_and(|byte| *byte != 0) {
            let blank = records.iter().take(8).position(|byte| *byte == b' ')?;
            let len: usize = decimal(&records[..blank])?.try_into().ok()?;
            let record = records.get(blank + 1..len)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            self.set(&record[..equals], &record[equals + 1..])?;
            records = &records[len..];
        }
        Some(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        if let Some(known) = KEYS.iter().find(|known| known.as_bytes() == key) {
            self.taken_back.retain(|taken| taken != known);
            if value.is_empty() {
                self.taken_back.push(known);
            }
        }
        let text = || (!value.is_empty()).then(|| value.to_vec());
        let number = || match value {
            b"" => Some(None),
            _ => decimal(value).map(Some),
        };
        match key {
            b"path" => self.path = text(),
            b"linkpath" => self.link = text(),
            b"size" => self.size = number()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" => self.mtime = if value.is_empty() { None } else { Some(time(value)?) },
            b"GNU.sparse.name" => self.sparse_name = text(),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse_size = number()?,
            b"GNU.sparse.major" => self.sparse_major = number()?,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                // Offset and length in turn, or the map would be of others than it says.
                if self.sparse_map.len() % 2 != usize::from(key.ends_with(b"bytes")) {
                    return None;
                }
                self.sparse_map.push(decimal(value)?);
            }
            b"GNU.sparse.map" => {
                self.sparse_map = value.split(|byte| *byte == b',').map(decimal).collect::<Option<_>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.")
                    && super::super::xattr::is_kept(name)
                {
                    self.xattrs.insert(name.into(), value.into());
                }
            }
        }
        Some(())
    }

    /// What all files have by `self`, with what one has of its own.
    pub(super) fn with(&self, own: Self) -> Self {
        if !self.any {
            return own;
        }
        let mut all = self.clone();
        let Self { path, link, size, uid, gid, mtime, xattrs, taken_back, .. } = own;
        let holds = |key| !taken_back.contains(&key);
        all.path = path.or(all.path.filter(|_| holds("path")));
        all.link = link.or(all.link.filter(|_| holds("linkpath")));
        all.size = size.or(all.size.filter(|_| holds("size")));
        all.uid = uid.or(all.uid.filter(|_| holds("uid")));
        all.gid = gid.or(all.gid.filter(|_| holds("gid")));
        all.mtime = mtime.or(all.mtime.filter(|_| holds("mtime")));
        all.xattrs.extend(xattrs);
        all.sparse_name = own.sparse_name;
        all.sparse_size = own.sparse_size;
        all.sparse_map = own.sparse_map;
        all.sparse_major = own.sparse_major;
        all
    }

    pub(super) fn name(&mut self) -> Option<Vec<u8>> {
        self.sparse_name.take().or_else(|| self.path.take())
    }

    pub(super) fn is_sparse(&self) -> bool {
        self.sparse_size.is_some() || !self.sparse_map.is_empty() || self.sparse_in_data()
    }

    /// By the format 1.0 the map is at the beginning of the data.
    pub(super) fn sparse_in_data(&self) -> bool {
        self.sparse_major == Some(1)
    }
}

/// A decimal number without a sign.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    // `parse` would take a plus.
    let text = str::from_utf8(digits).ok().filter(|text| text.starts_with(|c: char| c.is_ascii_digit()))?;
    text.parse().ok()
}

/// Seconds since 1970, with a fraction of any length, as seconds down and nanoseconds up.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(value) => (true, value),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanoseconds = 0;
    if let Some(fraction) = parts.next() {
        let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
        for digit in digits {
            nanoseconds = nanoseconds * 10 + char::from(*digit).to_digit(10)?;
        }
    }
    Some(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_by_their_lengths() {
        let mut pax = Pax::default();
        pax.read(b"12 path=a/b\n21 mtime=17.25000000\n26 SCHILY.xattr.user.x=\n1\n\0\0").unwrap();
        assert_eq!((pax.name().unwrap(), pax.mtime), (b"a/b".to_vec(), Some((17, 250_000_000))));
        assert_eq!(pax.xattrs[&b"user.x"[..]], b"\n1"[..].into());
        for broken in [
            "12 path=a/b",
            "11 path=a/b\n",
            "13 path=a/b\n",
            "99 path=a/b\n",
            " path=a\n",
            "9 pathab\n",
            "2 \n",
            "+9 path=a\n",
        ] {
            assert!(Pax::default().read(broken.as_bytes()).is_none(), "{broken:?}");
        }
    }

    #[test]
    fn times_are_before_and_after_1970() {
        assert_eq!(time(b"1"), Some((1, 0)));
        assert_eq!(time(b"1.5"), Some((1, 500_000_000)));
        assert_eq!(time(b"1.1234567899"), Some((1, 123_456_789)));
        assert_eq!(time(b"-1"), Some((-1, 0)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-0.25"), Some((-1, 750_000_000)));
        assert_eq!(time(b"1.x"), None);
        assert_eq!(time(b""), None);
    }

    fn read_more(pax: &mut Pax, records: &[(&str, &str)]) -> Option<()> {
        records.iter().try_for_each(|(key, value)| {
            // Its length counts its own digits.
            let rest = key.len() + value.len() + 3;
            let len = if rest < 9 { rest + 1 } else { rest + 2 };
            pax.read(format!("{len} {key}={value}\n").as_bytes())
        })
    }

    fn read(records: &[(&str, &str)]) -> Option<Pax> {
        let mut pax = Pax::default();
        read_more(&mut pax, records)?;
        Some(pax)
    }

    #[test]
    fn an_empty_value_takes_back_what_was_said_before() {
        let told = |pax: &Pax| (pax.path.clone(), pax.link.clone(), pax.size, pax.uid, pax.gid, pax.mtime);
        let said = [
            ("path", "name"),
            ("linkpath", "link"),
            ("size", "1"),
            ("uid", "2"),
            ("gid", "3"),
            ("mtime", "4"),
        ];
        let mut pax = read(&said).unwrap();
        let (name, link) = (Some(b"name".to_vec()), Some(b"link".to_vec()));
        assert_eq!(told(&pax), (name, link, Some(1), Some(2), Some(3), Some((4, 0))));
        read_more(&mut pax, &said.map(|(key, _)| (key, ""))).unwrap();
        assert_eq!(told(&pax), (None, None, None, None, None, None));
        let mut pax =
            read(&[("GNU.sparse.size", "9"), ("GNU.sparse.major", "1"), ("GNU.sparse.name", "n")]).unwrap();
        for (key, is_sparse) in
            [("GNU.sparse.size", true), ("GNU.sparse.name", true), ("GNU.sparse.major", false)]
        {
            read_more(&mut pax, &[(key, "")]).unwrap();
            assert_eq!(pax.is_sparse(), is_sparse, "{key}");
        }
        assert_eq!(pax.name(), None);
    }

    #[test]
    fn a_number_is_one_or_the_record_is_malformed() {
        for key in ["size", "uid", "gid", "mtime", "GNU.sparse.size", "GNU.sparse.major", "GNU.sparse.map"] {
            for value in ["-x123456", "+1234567", "0x123456", "99999999999999999999", " 1234567"] {
                assert!(read(&[(key, value)]).is_none(), "{key}={value}");
            }
        }
        for key in ["size", "uid", "gid"] {
            assert!(read(&[(key, "18446744073709551615")]).is_some());
            assert!(read(&[(key, "18446744073709551616")]).is_none());
        }
    }

    #[test]
    fn what_all_files_have_counts_where_one_has_nothing_of_its_own() {
        let all = read(&[
            ("path", "all"),
            ("linkpath", "all"),
            ("size", "1111"),
            ("uid", "22222"),
            ("gid", "33333"),
            ("mtime", "444"),
            ("SCHILY.xattr.user.a", "all"),
            ("SCHILY.xattr.user.b", "all"),
        ])
        .unwrap();
        let told = |mut pax: Pax| {
            let xattrs: Vec<_> =
                pax.xattrs.values().map(|value| String::from_utf8_lossy(value).into_owned()).collect();
            let texts =
                [pax.name(), pax.link].map(|text| String::from_utf8(text.unwrap_or_default()).unwrap());
            (texts, pax.size, pax.uid, pax.gid, pax.mtime, xattrs.join(" "))
        };
        let texts = |path: &str, link: &str| [path.to_owned(), link.to_owned()];
        let alone =
            (texts("all", "all"), Some(1111), Some(22_222), Some(33_333), Some((444, 0)), "all all".into());
        assert_eq!(told(all.with(Pax::default())), alone);
        let own = read(&[
            ("path", "own"),
            ("linkpath", "own"),
            ("size", "5555"),
            ("uid", "66666"),
            ("gid", "77777"),
            ("mtime", "888"),
            ("SCHILY.xattr.user.b", "own"),
            ("SCHILY.xattr.user.c", "own"),
        ])
        .unwrap();
        let both = (texts("own", "own"), Some(5555), Some(66_666), Some(77_777), Some((888, 0)));
        assert_eq!(
            told(all.with(own.clone())),
            (both.0.clone(), both.1, both.2, both.3, both.4, "all own own".into())
        );
        assert_eq!(
            told(Pax::default().with(own)),
            (both.0, both.1, both.2, both.3, both.4, "own own".into())
        );
        // One that has none takes back what all have, and that alone, until it has one after all.
        for key in KEYS {
            let has = |pax: &Pax| {
                let Pax { path, link, size, uid, gid, mtime, .. } = pax;
                let ids = [size, uid, gid].map(Option::is_some);
                [path.is_some(), link.is_some(), ids[0], ids[1], ids[2], mtime.is_some()]
            };
            let none = read(&[(key, "1234567"), (key, "")]).unwrap();
            assert_eq!(has(&all.with(none.clone())), KEYS.map(|other| other != key), "{key}");
            let mut some = none;
            read_more(&mut some, &[(key, "1234567")]).unwrap();
            assert_eq!(has(&all.with(some)), [true; 6], "{key}");
        }
        // Of one file's holes nothing is lost, and none are every file's.
        let sparse =
            read(&[("GNU.sparse.name", "s"), ("GNU.sparse.size", "9"), ("GNU.sparse.map", "1,2")]).unwrap();
        let mut sparse = all.with(sparse);
        assert_eq!(
            (sparse.name().unwrap(), sparse.sparse_size, &sparse.sparse_map[..]),
            (b"s".to_vec(), Some(9), &[1, 2][..])
        );
    }

    #[test]
    fn what_a_copy_takes_is_counted() {
        let pax = read(&[("path", "12345"), ("linkpath", "12345678"), ("uid", "12345")]).unwrap();
        assert_eq!(pax.kept(), 5 + 8);
        let attributes = [("SCHILY.xattr.user.a", "123456"), ("SCHILY.xattr.user.bc", "1")];
        assert_eq!(read(&attributes).unwrap().kept(), (32 + 6 + 6) + (32 + 7 + 1));
        assert_eq!(Pax::default().kept(), 0);
    }
}
