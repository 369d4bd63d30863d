//! LZMA (the LZMA SDK's `lzma-specification.txt`): a range decoder, its probabilities, and a window of what came out.
//!
//! It decodes a chunk of LZMA2 at a time, all of whose input is there, so nothing here waits or fails to read: past its end the input
//! is zeros, and the chunk says afterwards whether it was used up exactly.

/// What a broken stream is told as.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Corrupt;

/// What came out last: as much as a match can go back to, and what nobody has taken yet.
#[derive(Debug, Default)]
pub(super) struct Window {
    bytes: Vec<u8>,
    /// How far back a match may go.
    dictionary: usize,
    /// Where what was not taken begins.
    taken: usize,
    /// Where the dictionary begins: bytes before it are of before a reset.
    start: usize,
}

impl Window {
    /// Forgets all, for a stream with a `dictionary` of so many bytes.
    pub(super) fn begin(&mut self, dictionary: usize) {
        *self = Self { dictionary, ..Self::default() };
    }

    /// From here on no match goes back beyond this point.
    pub(super) fn reset(&mut self) {
        self.start = self.bytes.len();
    }

    pub(super) fn push(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    /// What was not taken yet.
    pub(super) fn rest(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    pub(super) fn take(&mut self, n: usize) {
        self.taken += n;
    }

    /// Drops what no match can reach and nobody waits for. It moves bytes only when as many again have come, so that each is moved once.
    pub(super) fn trim(&mut self) {
        let keep = self.dictionary.max(1 << 16);
        if self.taken == self.bytes.len() && self.bytes.len() >= 2 * keep {
            let drop = self.bytes.len() - keep;
            self.bytes.drain(..drop);
            self.taken -= drop;
            self.start = self.start.saturating_sub(drop);
        }
    }

    /// The byte `distance` + 1 back; 0 where there is none.
    fn back(&self, distance: usize) -> u8 {
        if distance < self.bytes.len() - self.start { self.bytes[self.bytes.len() - 1 - distance] } else { 0 }
    }

    fn repeat(&mut self, distance: usize, len: usize) -> Result<(), Corrupt> {
        if distance >= (self.bytes.len() - self.start).min(self.dictionary) {
            return Err(Corrupt);
        }
        for _ in 0..len {
            self.bytes.push(self.bytes[self.bytes.len() - 1 - distance]);
        }
        Ok(())
    }
}

type Probability = u16;
const HALF: Probability = 1 << 10;

/// The range decoder, over the bytes of a chunk.
struct Range<'a> {
    input: &'a [u8],
    range: u32,
    code: u32,
    /// Whether more was asked for than there is.
    overrun: bool,
}

impl<'a> Range<'a> {
    fn new(input: &'a [u8]) -> Result<Self, Corrupt> {
        match input {
            [0, a, b, c, d, rest @ ..] => {
                let code = u32::from_be_bytes([*a, *b, *c, *d]);
                Ok(Self { input: rest, range: u32::MAX, code, overrun: false })
            }
            _ => Err(Corrupt),
        }
    }

    fn normalize(&mut self) {
        if self.range < 1 << 24 {
            let byte = match self.input {
                [byte, rest @ ..] => {
                    self.input = rest;
                    *byte
                }
                [] => {
                    self.overrun = true;
                    0
                }
            };
            self.range <<= 8;
            self.code = self.code << 8 | u32::from(byte);
        }
    }

    fn bit(&mut self, probability: &mut Probability) -> usize {
        self.normalize();
        let bound = (self.range >> 11) * u32::from(*probability);
        if self.code < bound {
            self.range = bound;
            *probability += ((1 << 11) - *probability) >> 5;
            0
        } else {
            self.range -= bound;
            self.code -= bound;
            *probability -= *probability >> 5;
            1
        }
    }

    fn direct(&mut self, bits: u32) -> usize {
        let mut value = 0;
        for _ in 0..bits {
            self.normalize();
            self.range >>= 1;
            let bit = self.code >= self.range;
            if bit {
                self.code -= self.range;
            }
            value = value << 1 | usize::from(bit);
        }
        value
    }

    /// A number of `bits` bits by a tree of probabilities, the highest bit first.
    fn tree(&mut self, probabilities: &mut [Probability], bits: u32) -> usize {
        let mut at = 1;
        for _ in 0..bits {
            at = at << 1 | self.bit(&mut probabilities[at]);
        }
        at - (1 << bits)
    }

    /// The same, the lowest bit first.
    fn reverse_tree(&mut self, probabilities: &mut [Probability], bits: u32) -> usize {
        let (mut at, mut value) = (1, 0);
        for i in 0..bits {
            let bit = self.bit(&mut probabilities[at]);
            at = at << 1 | bit;
            value |= bit << i;
        }
        value
    }
}

/// The lengths of matches, 2 to 273.
#[derive(Clone)]
struct Lengths {
    choice: [Probability; 2],
    low: [[Probability; 8]; 16],
    middle: [[Probability; 8]; 16],
    high: [Probability; 256],
}

impl Lengths {
    const NEW: Self =
        Self { choice: [HALF; 2], low: [[HALF; 8]; 16], middle: [[HALF; 8]; 16], high: [HALF; 256] };

    fn decode(&mut self, range: &mut Range<'_>, position: usize) -> usize {
        if range.bit(&mut self.choice[0]) == 0 {
            2 + range.tree(&mut self.low[position], 3)
        } else if range.bit(&mut self.choice[1]) == 0 {
            10 + range.tree(&mut self.middle[position], 3)
        } else {
            18 + range.tree(&mut self.high, 8)
        }
    }
}

/// All that a decoder has learned, and its properties. About 28 KiB.
#[derive(Clone)]
pub(super) struct State {
    lc: u32,
    lp: u32,
    pb: u32,
    /// What came last, as the specification numbers it: 0 to 11.
    state: usize,
    /// The last four distances, less one.
    rep: [usize; 4],
    literal: Vec<[Probability; 0x300]>,
    is_match: [[Probability; 16]; 12],
    is_rep: [Probability; 12],
    is_rep0: [Probability; 12],
    is_rep0_long: [[Probability; 16]; 12],
    is_rep1: [Probability; 12],
    is_rep2: [Probability; 12],
    slot: [[Probability; 64]; 4],
    special: [Probability; 115],
    align: [Probability; 16],
    lengths: Lengths,
    rep_lengths: Lengths,
}

impl State {
    /// A fresh one, with the properties that this byte says.
    pub(super) fn new(properties: u8) -> Result<Self, Corrupt> {
        let (lc, lp, pb) =
            (u32::from(properties % 9), u32::from(properties / 9 % 5), u32::from(properties / 45));
        // LZMA2 has this bound on lc and lp.
        if pb > 4 || lc + lp > 4 {
            return Err(Corrupt);
        }
        Ok(Self {
            lc,
            lp,
            pb,
            state: 0,
            rep: [0; 4],
            literal: vec![[HALF; 0x300]; 1 << (lc + lp)],
            is_match: [[HALF; 16]; 12],
            is_rep: [HALF; 12],
            is_rep0: [HALF; 12],
            is_rep0_long: [[HALF; 16]; 12],
            is_rep1: [HALF; 12],
            is_rep2: [HALF; 12],
            slot: [[HALF; 64]; 4],
            special: [HALF; 115],
            align: [HALF; 16],
            lengths: Lengths::NEW,
            rep_lengths: Lengths::NEW,
        })
    }

    /// The same properties, and nothing learned.
    pub(super) fn reset(&mut self) -> Result<(), Corrupt> {
        *self = Self::new((self.pb * 45 + self.lp * 9 + self.lc) as u8)?;
        Ok(())
    }

    /// Decodes a chunk of `size` bytes, which takes all of `input`. `position` is how many bytes came out since the dictionary's reset.
    pub(super) fn chunk(
        &mut self,
        input: &[u8],
        size: usize,
        mut position: usize,
        window: &mut Window,
    ) -> Result<(), Corrupt> {
        let mut range = Range::new(input)?;
        let mut left = size;
        while left > 0 {
            if range.overrun {
                return Err(Corrupt);
            }
            let pos_state = position & ((1 << self.pb) - 1);
            let len = if range.bit(&mut self.is_match[self.state][pos_state]) == 0 {
                self.literal(&mut range, position, window);
                1
            } else {
                let len = self.distance(&mut range, pos_state);
                if len > left {
                    return Err(Corrupt);
                }
                window.repeat(self.rep[0], len)?;
                len
            };
            left -= len;
            position += len;
        }
        range.normalize();
        if range.overrun || !range.input.is_empty() || range.code != 0 { Err(Corrupt) } else { Ok(()) }
    }

    fn literal(&mut self, range: &mut Range<'_>, position: usize, window: &mut Window) {
        let previous = usize::from(window.back(0));
        let which = ((position & ((1 << self.lp) - 1)) << self.lc) + (previous >> (8 - self.lc));
        let probabilities = &mut self.literal[which];
        let mut symbol = 1;
        if self.state >= 7 {
            let mut matched = usize::from(window.back(self.rep[0]));
            while symbol < 0x100 {
                let expected = matched >> 7 & 1;
                matched <<= 1;
                let bit = range.bit(&mut probabilities[(1 + expected) << 8 | symbol]);
                symbol = symbol << 1 | bit;
                if bit != expected {
                    break;
                }
            }
        }
        while symbol < 0x100 {
            symbol = symbol << 1 | range.bit(&mut probabilities[symbol]);
        }
        window.push(symbol as u8);
        self.state = match self.state {
            0..=3 => 0,
            4..=9 => self.state - 3,
            _ => self.state - 6,
        };
    }

    /// Decodes how far back a match begins, to `rep[0]`, and gives its length.
    fn distance(&mut self, range: &mut Range<'_>, pos_state: usize) -> usize {
        let (state, literal_before) = (self.state, self.state < 7);
        if range.bit(&mut self.is_rep[state]) == 0 {
            self.state = if literal_before { 7 } else { 10 };
            let len = self.lengths.decode(range, pos_state);
            let distance = self.new_distance(range, len);
            self.rep = [distance, self.rep[0], self.rep[1], self.rep[2]];
            return len;
        }
        if range.bit(&mut self.is_rep0[state]) == 0 {
            if range.bit(&mut self.is_rep0_long[state][pos_state]) == 0 {
                self.state = if literal_before { 9 } else { 11 };
                return 1;
            }
        } else {
            let which = match range.bit(&mut self.is_rep1[state]) {
                0 => 1,
                _ => 2 + range.bit(&mut self.is_rep2[state]),
            };
            self.rep[..=which].rotate_right(1);
        }
        self.state = if literal_before { 8 } else { 11 };
        self.rep_lengths.decode(range, pos_state)
    }

    fn new_distance(&mut self, range: &mut Range<'_>, len: usize) -> usize {
        let slot = range.tree(&mut self.slot[(len - 2).min(3)], 6);
        if slot < 4 {
            return slot;
        }
        let bits = (slot >> 1) as u32 - 1;
        let base = (2 | slot & 1) << bits;
        if slot < 14 {
            base + range.reverse_tree(&mut self.special[base - slot..], bits)
        } else {
            base + (range.direct(bits - 4) << 4) + range.reverse_tree(&mut self.align, 4)
        }
    }
}

#[cfg(test)]
mod tests;
