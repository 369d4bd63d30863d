//! The .xz file format, version 1.2, with the filter LZMA2 alone, as kernel modules and most archives have it.
//!
//! Checked: the headers' and the index's CRC32, and a block's CRC32, CRC64 or SHA-256, whichever it has. By hand rather than by a crate:
//! what modules and archives need of the format is little.

use std::io::{self, BufRead, Read};

use flate2::Crc;

use crate::image::sha256::Sha256;

use super::crc64::Crc64;
use super::lzma::{Corrupt, State, Window};

/// The largest dictionary that is taken: that of `xz -9`.
pub(super) const DICTIONARY_MAX: usize = 64 << 20;

const MAGIC: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
/// The identifier of the filter LZMA2.
const LZMA2: u8 = 0x21;

/// What a stream has next.
#[derive(Debug)]
enum Next {
    Stream,
    Block,
    Chunk,
    End,
}

/// What a block's bytes are checked by (2.1.1.2).
enum Check {
    None,
    Crc32(Crc),
    Crc64(Crc64),
    Sha256(Sha256),
}

impl Check {
    /// That of the stream's flags; `None` where it is not known.
    fn new(kind: u8) -> Option<Self> {
        Some(match kind {
            0 => Self::None,
            1 => Self::Crc32(Crc::new()),
            4 => Self::Crc64(Crc64::default()),
            10 => Self::Sha256(Sha256::new()),
            _ => return None,
        })
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::None => {}
            Self::Crc32(crc) => crc.update(bytes),
            Self::Crc64(crc) => crc.update(bytes),
            Self::Sha256(sha256) => sha256.update(bytes),
        }
    }

    /// As it stands in the file.
    fn sum(self) -> Vec<u8> {
        match self {
            Self::None => Vec::new(),
            Self::Crc32(crc) => crc.sum().to_le_bytes().into(),
            Self::Crc64(crc) => crc.sum().to_le_bytes().into(),
            Self::Sha256(sha256) => sha256.finish().0.into(),
        }
    }
}

/// Unpacks what it reads.
pub(super) struct Decoder<R> {
    from: R,
    next: Next,
    /// Of the stream: the second byte of its flags, which is the kind of check.
    kind: u8,
    /// One more than the blocks of the stream so far, by which the index is checked; 0 before the first stream.
    blocks: u64,
    /// Of the block: what was read of it, and what came out.
    read: u64,
    out: u64,
    check: Check,
    state: Option<State>,
    window: Window,
    /// How many bytes came out since the dictionary's reset.
    position: usize,
    chunk: Vec<u8>,
}

fn corrupt(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl From<Corrupt> for io::Error {
    fn from(_: Corrupt) -> Self {
        corrupt("the xz data is corrupt")
    }
}

fn crc32(bytes: &[u8]) -> [u8; 4] {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum().to_le_bytes()
}

impl<R: BufRead> Decoder<R> {
    pub(super) fn new(from: R) -> Self {
        Self {
            from,
            next: Next::Stream,
            kind: 0,
            blocks: 0,
            read: 0,
            out: 0,
            check: Check::None,
            state: None,
            window: Window::default(),
            position: 0,
            chunk: Vec::new(),
        }
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes)?;
        self.read += N as u64;
        Ok(bytes)
    }

    /// A number of 7 bits a byte, the lowest first; counted among `counted`.
    fn number(&mut self, counted: &mut Vec<u8>) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let [byte] = self.bytes()?;
            counted.push(byte);
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(corrupt("a number in the xz index is too long"))
    }

    /// The header of a stream (2.1.1), after padding of zeros in fours; the end where there is no more.
    fn stream(&mut self) -> io::Result<()> {
        loop {
            if self.from.fill_buf()?.is_empty() {
                self.next = Next::End;
                return Ok(());
            }
            let first: [u8; 4] = self.bytes()?;
            if first == [0; 4] && self.blocks > 0 {
                continue;
            }
            let rest: [u8; 8] = self.bytes()?;
            if first != MAGIC[..4] || rest[..2] != MAGIC[4..] || crc32(&rest[2..4]) != rest[4..] {
                return Err(corrupt("no xz stream begins where one should"));
            }
            if rest[2] != 0 || Check::new(rest[3]).is_none() {
                return Err(corrupt("the xz stream is of a kind that is not known"));
            }
            (self.kind, self.blocks, self.next) = (rest[3], 1, Next::Block);
            return Ok(());
        }
    }

    /// The header of a block (3.1), or the index and the stream's end.
    fn block(&mut self) -> io::Result<()> {
        self.read = 0;
        let [size] = self.bytes()?;
        if size == 0 {
            return self.index();
        }
        let mut header = vec![0; (usize::from(size) + 1) * 4];
        header[0] = size;
        self.from.read_exact(&mut header[1..])?;
        let (body, crc) = header.split_at(header.len() - 4);
        if crc32(body) != crc {
            return Err(corrupt("the header of an xz block is corrupt"));
        }
        // Sizes, where there are any, are told again by the index: they are skipped.
        let (flags, mut rest) = (body[1], &body[2..]);
        for present in [0x40, 0x80] {
            if flags & present != 0 {
                let len = rest.iter().position(|byte| byte & 0x80 == 0).ok_or(Corrupt)?;
                rest = &rest[len + 1..];
            }
        }
        let &[LZMA2, 1, dictionary, ..] = rest else {
            return Err(corrupt("the xz data has a filter other than LZMA2"));
        };
        if flags & 0x3f != 0 {
            return Err(corrupt("the xz data has a filter beside LZMA2"));
        }
        let dictionary = match dictionary {
            0..=39 => (2 | u64::from(dictionary) & 1) << (dictionary / 2 + 11),
            _ => u64::MAX,
        };
        let dictionary = usize::try_from(dictionary).unwrap_or(usize::MAX);
        if dictionary > DICTIONARY_MAX {
            return Err(corrupt("the xz data needs a dictionary of more than 64 MiB"));
        }
        self.window.begin(dictionary);
        self.check = Check::new(self.kind).ok_or(Corrupt)?;
        (self.state, self.out, self.read, self.position) = (None, 0, 0, 0);
        self.next = Next::Chunk;
        Ok(())
    }

    /// A chunk of LZMA2; of the block's end the padding and the check.
    fn lzma2(&mut self) -> io::Result<()> {
        self.window.trim();
        let before = self.window.rest().len();
        let [control] = self.bytes()?;
        match control {
            0 => return self.block_end(),
            1 | 2 => {
                let size = usize::from(u16::from_be_bytes(self.bytes()?)) + 1;
                if control == 1 {
                    self.window.reset();
                    self.position = 0;
                }
                self.fill(size)?;
                self.chunk.iter().for_each(|byte| self.window.push(*byte));
                self.position += size;
            }
            0x80.. => {
                let [high, low] = self.bytes()?;
                let size =
                    (usize::from(control & 0x1f) << 16 | usize::from(high) << 8 | usize::from(low)) + 1;
                let packed = usize::from(u16::from_be_bytes(self.bytes()?)) + 1;
                if control >= 0xe0 {
                    self.window.reset();
                    self.position = 0;
                }
                if control >= 0xc0 {
                    let [properties] = self.bytes()?;
                    self.state = Some(State::new(properties)?);
                }
                self.fill(packed)?;
                let state = self.state.as_mut().ok_or(Corrupt)?;
                if (0xa0..0xc0).contains(&control) {
                    state.reset()?;
                }
                state.chunk(&self.chunk, size, self.position, &mut self.window)?;
                self.position += size;
            }
            _ => return Err(Corrupt.into()),
        }
        let fresh = &self.window.rest()[before..];
        self.check.update(fresh);
        self.out += fresh.len() as u64;
        Ok(())
    }

    fn fill(&mut self, len: usize) -> io::Result<()> {
        self.chunk.resize(len, 0);
        self.from.read_exact(&mut self.chunk)?;
        self.read += len as u64;
        Ok(())
    }

    fn block_end(&mut self) -> io::Result<()> {
        while !self.read.is_multiple_of(4) {
            if self.bytes()? != [0] {
                return Err(Corrupt.into());
            }
        }
        let expected = std::mem::replace(&mut self.check, Check::None).sum();
        self.fill(expected.len())?;
        if self.chunk != expected {
            return Err(corrupt("the check of an xz block is wrong"));
        }
        self.blocks += 1;
        self.next = Next::Block;
        Ok(())
    }

    /// The index (4) without its first byte, and the stream's footer (2.1.2).
    fn index(&mut self) -> io::Result<()> {
        let mut bytes = vec![0];
        // What the block counter began with is for the stream.
        if self.number(&mut bytes)? != self.blocks - 1 {
            return Err(corrupt("the xz index counts other blocks than there are"));
        }
        let mut crc = Crc::new();
        for _ in 1..self.blocks {
            self.number(&mut bytes)?;
            self.number(&mut bytes)?;
            crc.update(&bytes);
            bytes.clear();
        }
        while !self.read.is_multiple_of(4) {
            let [byte] = self.bytes()?;
            bytes.push(byte);
        }
        crc.update(&bytes);
        let size = (self.read + 4) / 4 - 1;
        if self.bytes()? != crc.sum().to_le_bytes() {
            return Err(corrupt("the xz index is corrupt"));
        }
        let footer: [u8; 12] = self.bytes()?;
        let [crc @ .., b'Y', b'Z'] = footer else { return Err(corrupt("the xz stream's end is corrupt")) };
        let (crc, body) = crc.split_at(4);
        if crc32(body) != crc || body[..4] != (size as u32).to_le_bytes() || body[4..] != [0, self.kind] {
            return Err(corrupt("the xz stream's end is corrupt"));
        }
        self.next = Next::Stream;
        Ok(())
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.window.rest().is_empty() {
            match self.next {
                Next::Stream => self.stream()?,
                Next::Block => self.block()?,
                Next::Chunk => self.lzma2()?,
                Next::End => return Ok(0),
            }
        }
        let rest = self.window.rest();
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        self.window.take(n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
