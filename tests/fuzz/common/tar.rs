//! Writes tar archives (POSIX ustar), with whatever in them.

/// An archive, being made.
#[derive(Clone, Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    /// A header of this kind with the right checksum, and the content with its padding.
    pub fn raw(mut self, name: &str, kind: u8, link: &str, content: &[u8]) -> Self {
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, name.as_bytes());
        put(100, if kind == b'5' { b"0000755" } else { b"0000644" });
        put(108, b"0000001");
        put(116, b"0000002");
        put(124, format!("{:011o}", content.len()).as_bytes());
        put(136, b"00000000017");
        put(156, &[kind]);
        put(157, link.as_bytes());
        put(257, b"ustar\x0000");
        put(329, b"0000007");
        put(337, b"0000454");
        seal(&mut header);
        self.0.extend(header);
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// A file.
    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.raw(name, b'0', "", content)
    }

    /// A pax header for what follows.
    pub fn pax(self, records: &[(&str, &str)]) -> Self {
        let record = |(key, value): &(&str, &str)| {
            let rest = key.len() + value.len() + 3;
            let len = (rest + 1..).find(|len| rest + len.to_string().len() == *len).unwrap_or(rest);
            format!("{len} {key}={value}\n")
        };
        self.raw("pax", b'x', "", records.iter().map(record).collect::<String>().as_bytes())
    }

    /// The whole of it.
    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// Gives a header its checksum.
pub fn seal(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

/// Gives every block that looks like a header its checksum, so that mutations get further than that.
pub fn seal_all(archive: &mut [u8]) {
    archive.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar").for_each(seal);
}
