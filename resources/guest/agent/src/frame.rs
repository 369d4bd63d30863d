//! The frames of a connection between the host and the agent.
//!
//! ```text
//! kind u8 | length u32, little-endian, at most PAYLOAD_MAX | payload
//!
//! host                                                      agent
//!   Part*, Request        a document of `request`    ─►
//!                                    ◄─  Credit              so many bytes of standard input more
//!   Stdin, StdinEnd, Signal, Window                  ─►
//!                                    ◄─  Stdout, Stderr
//!                                    ◄─  Exited, Killed, Failed or Answer, the last frame
//! ```
//!
//! The host sends standard input only as far as it has credit, so that the agent reads all other frames at once, whatever the
//! command does not read. Output has no credit: the stream itself stalls where the host does not read. A frame of a kind that the other
//! end does not know is skipped.

/// The longest payload in bytes.
pub const PAYLOAD_MAX: usize = 64 << 10;
/// The bytes before a payload.
pub const HEADER_LEN: usize = 5;
/// Bytes of standard input that may wait in the agent.
pub const STDIN_WINDOW: u32 = 64 << 10;
/// The longest text of [`FromAgent::Failed`] in bytes; what is more is cut off.
pub const TEXT_MAX: usize = 4096;

/// From the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToAgent {
    /// A part of a request, with more to come.
    Part(Vec<u8>),
    /// The last part of a request.
    Request(Vec<u8>),
    /// Standard input.
    Stdin(Vec<u8>),
    /// Its end.
    StdinEnd,
    /// A signal for the command's process group, by its number.
    Signal(u8),
    /// The terminal has this size now.
    Window(Window),
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Lines.
    pub rows: u16,
    /// Characters in each.
    pub columns: u16,
}

/// From the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromAgent {
    /// What the command wrote to its standard output, or to its terminal.
    Stdout(Vec<u8>),
    /// What it wrote to its standard error.
    Stderr(Vec<u8>),
    /// So many bytes of standard input more are welcome.
    Credit(u32),
    /// The command ended by itself.
    Exited(u8),
    /// A signal ended it.
    Killed(u8),
    /// There was no command, with this exit status and in these words.
    Failed {
        /// 125, 126 or 127, as shells have them.
        status: u8,
        /// Why.
        text: String,
    },
    /// The answer to a question.
    Answer(Vec<u8>),
}

/// Why bytes are no frame: its length is too long for one, or not what its kind has. The connection is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadFrame;

impl std::error::Error for BadFrame {}

impl std::fmt::Display for BadFrame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a frame has a length that makes no sense")
    }
}

mod kind {
    pub(super) const PART: u8 = 1;
    pub(super) const REQUEST: u8 = 2;
    pub(super) const STDIN: u8 = 3;
    pub(super) const STDIN_END: u8 = 4;
    pub(super) const SIGNAL: u8 = 5;
    pub(super) const WINDOW: u8 = 6;
    pub(super) const STDOUT: u8 = 65;
    pub(super) const STDERR: u8 = 66;
    pub(super) const CREDIT: u8 = 67;
    pub(super) const EXITED: u8 = 68;
    pub(super) const KILLED: u8 = 69;
    pub(super) const FAILED: u8 = 70;
    pub(super) const ANSWER: u8 = 71;
}

/// A frame's words, in one direction.
pub trait Message: Sized {
    /// Appends the frame to `out`. A payload that is too long is cut into several frames where its kind allows that, and cut off where
    /// it does not.
    fn encode(&self, out: &mut Vec<u8>);

    /// What a frame means; none where its kind is unknown.
    ///
    /// # Errors
    /// The payload has not the length of its kind.
    fn decode(kind: u8, payload: &[u8]) -> Result<Option<Self>, BadFrame>;
}

/// Appends a frame; its payload is cut off at [`PAYLOAD_MAX`].
fn put(kind: u8, payload: &[u8], out: &mut Vec<u8>) {
    let payload = &payload[..payload.len().min(PAYLOAD_MAX)];
    out.push(kind);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(payload);
}

/// Appends as many frames as it takes.
fn put_stream(kind: u8, bytes: &[u8], out: &mut Vec<u8>) {
    for piece in bytes.chunks(PAYLOAD_MAX) {
        put(kind, piece, out);
    }
}

fn exactly<const N: usize>(payload: &[u8]) -> Result<[u8; N], BadFrame> {
    payload.try_into().map_err(|_| BadFrame)
}

impl Message for ToAgent {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Part(bytes) => put_stream(kind::PART, bytes, out),
            Self::Request(bytes) => {
                let last = bytes.len().saturating_sub(1) / PAYLOAD_MAX * PAYLOAD_MAX;
                put_stream(kind::PART, &bytes[..last], out);
                put(kind::REQUEST, &bytes[last..], out);
            }
            Self::Stdin(bytes) => put_stream(kind::STDIN, bytes, out),
            Self::StdinEnd => put(kind::STDIN_END, &[], out),
            Self::Signal(signal) => put(kind::SIGNAL, &[*signal], out),
            Self::Window(Window { rows, columns }) => {
                let ([a, b], [c, d]) = (rows.to_le_bytes(), columns.to_le_bytes());
                put(kind::WINDOW, &[a, b, c, d], out);
            }
        }
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Option<Self>, BadFrame> {
        Ok(Some(match kind {
            kind::PART => Self::Part(payload.to_vec()),
            kind::REQUEST => Self::Request(payload.to_vec()),
            kind::STDIN => Self::Stdin(payload.to_vec()),
            kind::STDIN_END => exactly::<0>(payload).map(|_| Self::StdinEnd)?,
            kind::SIGNAL => exactly(payload).map(|[signal]| Self::Signal(signal))?,
            kind::WINDOW => exactly(payload).map(|[a, b, c, d]| {
                Self::Window(Window { rows: u16::from_le_bytes([a, b]), columns: u16::from_le_bytes([c, d]) })
            })?,
            _ => return Ok(None),
        }))
    }
}

impl Message for FromAgent {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Stdout(bytes) => put_stream(kind::STDOUT, bytes, out),
            Self::Stderr(bytes) => put_stream(kind::STDERR, bytes, out),
            Self::Credit(bytes) => put(kind::CREDIT, &bytes.to_le_bytes(), out),
            Self::Exited(code) => put(kind::EXITED, &[*code], out),
            Self::Killed(signal) => put(kind::KILLED, &[*signal], out),
            Self::Failed { status, text } => {
                let text = text.as_bytes();
                let payload = [&[*status], &text[..text.len().min(TEXT_MAX)]].concat();
                put(kind::FAILED, &payload, out);
            }
            Self::Answer(bytes) => put(kind::ANSWER, bytes, out),
        }
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Option<Self>, BadFrame> {
        Ok(Some(match kind {
            kind::STDOUT => Self::Stdout(payload.to_vec()),
            kind::STDERR => Self::Stderr(payload.to_vec()),
            kind::CREDIT => exactly(payload).map(|bytes| Self::Credit(u32::from_le_bytes(bytes)))?,
            kind::EXITED => exactly(payload).map(|[code]| Self::Exited(code))?,
            kind::KILLED => exactly(payload).map(|[signal]| Self::Killed(signal))?,
            kind::FAILED => {
                let (&status, text) = payload.split_first().ok_or(BadFrame)?;
                let text = &text[..text.len().min(TEXT_MAX)];
                Self::Failed { status, text: String::from_utf8_lossy(text).into_owned() }
            }
            kind::ANSWER => Self::Answer(payload.to_vec()),
            _ => return Ok(None),
        }))
    }
}

/// Finds the frames in a stream of bytes. It keeps no more than a frame and what was last [pushed](Self::push).
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Where the next frame begins.
    at: usize,
}

impl Decoder {
    /// Takes bytes as they come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.at));
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame that is whole and of a known kind.
    ///
    /// # Errors
    /// The next frame has a length that makes no sense: nothing behind it can be found.
    #[allow(clippy::should_implement_trait)]
    pub fn next<M: Message>(&mut self) -> Result<Option<M>, BadFrame> {
        loop {
            let Some((header, rest)) = self.bytes[self.at..].split_first_chunk::<HEADER_LEN>() else {
                return Ok(None);
            };
            let [kind, a, b, c, d] = *header;
            let len = u32::from_le_bytes([a, b, c, d]) as usize;
            if len > PAYLOAD_MAX {
                return Err(BadFrame);
            }
            let Some(payload) = rest.get(..len) else { return Ok(None) };
            let message = M::decode(kind, payload);
            self.at += HEADER_LEN + len;
            if let Some(message) = message? {
                return Ok(Some(message));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(messages: &[impl Message]) -> Vec<u8> {
        let mut out = Vec::new();
        messages.iter().for_each(|message| message.encode(&mut out));
        out
    }

    /// All the messages in `bytes`, pushed in pieces of `piece`.
    fn decoded<M: Message>(bytes: &[u8], piece: usize) -> Result<Vec<M>, BadFrame> {
        let (mut decoder, mut messages) = (Decoder::default(), Vec::new());
        for piece in bytes.chunks(piece) {
            decoder.push(piece);
            while let Some(message) = decoder.next()? {
                messages.push(message);
            }
            assert!(decoder.bytes.len() - decoder.at < HEADER_LEN + PAYLOAD_MAX);
        }
        Ok(messages)
    }

    fn to_agent() -> impl Strategy<Value = ToAgent> {
        let bytes = || proptest::collection::vec(any::<u8>(), 1..300);
        prop_oneof![
            bytes().prop_map(ToAgent::Part),
            bytes().prop_map(ToAgent::Request),
            bytes().prop_map(ToAgent::Stdin),
            Just(ToAgent::StdinEnd),
            any::<u8>().prop_map(ToAgent::Signal),
            any::<(u16, u16)>().prop_map(|(rows, columns)| ToAgent::Window(Window { rows, columns })),
        ]
    }

    fn from_agent() -> impl Strategy<Value = FromAgent> {
        let bytes = || proptest::collection::vec(any::<u8>(), 1..300);
        prop_oneof![
            bytes().prop_map(FromAgent::Stdout),
            bytes().prop_map(FromAgent::Stderr),
            any::<u32>().prop_map(FromAgent::Credit),
            any::<u8>().prop_map(FromAgent::Exited),
            any::<u8>().prop_map(FromAgent::Killed),
            (any::<u8>(), ".{0,80}").prop_map(|(status, text)| FromAgent::Failed { status, text }),
            bytes().prop_map(FromAgent::Answer),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            to in proptest::collection::vec(to_agent(), 0..8),
            from in proptest::collection::vec(from_agent(), 0..8),
            piece in 1..700usize,
        ) {
            prop_assert_eq!(decoded::<ToAgent>(&encoded(&to), piece).unwrap(), to);
            prop_assert_eq!(decoded::<FromAgent>(&encoded(&from), piece).unwrap(), from);
        }

        #[test]
        fn any_bytes_are_frames_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..4096), piece in 1..700usize) {
            let _ = decoded::<ToAgent>(&bytes, piece);
            let _ = decoded::<FromAgent>(&bytes, piece);
        }
    }

    #[test]
    fn a_length_that_is_claimed_is_not_believed() {
        let header = |kind, len: u32| [&[kind][..], &len.to_le_bytes()].concat();
        let long = header(kind::STDOUT, PAYLOAD_MAX as u32 + 1);
        assert_eq!(decoded::<FromAgent>(&long, 5), Err(BadFrame));
        assert_eq!(decoded::<FromAgent>(&header(kind::STDOUT, PAYLOAD_MAX as u32), 5), Ok(vec![]));
        for (kind, payload) in [(kind::CREDIT, 3), (kind::EXITED, 2), (kind::KILLED, 0), (kind::FAILED, 0)] {
            let frame = [header(kind, payload), vec![0; payload as usize]].concat();
            assert_eq!(decoded::<FromAgent>(&frame, 64), Err(BadFrame), "{kind}");
        }
    }

    #[test]
    fn a_frame_of_an_unknown_kind_is_skipped() {
        let mut bytes = Vec::new();
        put(200, b"of a later version", &mut bytes);
        FromAgent::Exited(3).encode(&mut bytes);
        assert_eq!(decoded::<FromAgent>(&bytes, 7), Ok(vec![FromAgent::Exited(3)]));
    }

    #[test]
    fn what_is_long_goes_in_several_frames() {
        for len in [0, 1, PAYLOAD_MAX, PAYLOAD_MAX + 1, 3 * PAYLOAD_MAX] {
            let bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let mut whole = Vec::new();
            for part in decoded::<ToAgent>(&encoded(&[ToAgent::Request(bytes.clone())]), 4096).unwrap() {
                let last = matches!(part, ToAgent::Request(_));
                let (ToAgent::Part(part) | ToAgent::Request(part)) = part else { panic!("{part:?}") };
                whole.extend(part);
                assert_eq!(last, whole.len() == len);
            }
            assert_eq!(whole, bytes);
            let stream = decoded::<FromAgent>(&encoded(&[FromAgent::Stdout(bytes)]), 4096).unwrap();
            assert_eq!(stream.len(), len.div_ceil(PAYLOAD_MAX));
        }
        let failed = FromAgent::Failed { status: 125, text: "x".repeat(PAYLOAD_MAX) };
        let [FromAgent::Failed { text, .. }] = &decoded(&encoded(&[failed]), 4096).unwrap()[..] else {
            panic!()
        };
        assert_eq!(text.len(), TEXT_MAX);
    }
}
