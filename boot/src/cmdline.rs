//! The kernel's command line: checked, then written with its NUL.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Error;
use crate::layout::{CMDLINE, CMDLINE_LEN};

/// The limit of a kernel that states none: x86 Linux's COMMAND_LINE_SIZE less the NUL, in bytes.
pub(crate) const DEFAULT_LIMIT: usize = 2047;

/// Writes `text` to [`CMDLINE`]. `limit` is the longest text the kernel takes, in bytes without the NUL
/// (`cmdline_size` of the setup header).
pub(crate) fn write(memory: &GuestMemoryMmap, text: &str, limit: usize) -> Result<(), Error> {
    let limit = limit.min(CMDLINE_LEN as usize - 1);
    if text.len() > limit {
        return Err(Error::CmdlineTooLong { len: text.len(), limit });
    }
    // A NUL would end the text early and a newline hide what follows from a reader of the log. A tab is as
    // good as a space to Linux.
    if let Some((at, character)) = text.char_indices().find(|(_, c)| c.is_control() && *c != '\t') {
        return Err(Error::CmdlineControl { character, at });
    }
    let mut bytes = Vec::with_capacity(text.len() + 1);
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    memory.write_slice(&bytes, GuestAddress(CMDLINE)).map_err(|source| Error::Memory {
        what: "command line",
        address: CMDLINE,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bytes, memory};

    #[test]
    fn text_is_written_with_its_nul() {
        let memory = memory(64);
        memory.write_slice(&[0xff; 32], GuestAddress(CMDLINE)).unwrap();
        write(&memory, "console=ttyS0\tquiet", DEFAULT_LIMIT).unwrap();
        assert_eq!(bytes(&memory, CMDLINE, 21), b"console=ttyS0\tquiet\0\xff");
    }

    #[test]
    fn length_is_held_to_the_limit() {
        let memory = memory(64);
        write(&memory, &"a".repeat(100), 100).unwrap();
        let error = write(&memory, &"a".repeat(103), 100).unwrap_err();
        assert_eq!(error.to_string(), "the command line is 103 bytes long, and this kernel takes 100");
        assert_eq!(error.remedy().unwrap(), "shorten the command line by 3 bytes");
    }

    #[test]
    fn a_boastful_kernel_does_not_widen_the_room() {
        let memory = memory(64);
        let text = "a".repeat(CMDLINE_LEN as usize);
        let error = write(&memory, &text, u32::MAX as usize).unwrap_err();
        assert!(matches!(error, Error::CmdlineTooLong { limit: 0xffff, .. }), "{error}");
        write(&memory, &text[1..], u32::MAX as usize).unwrap();
    }

    #[test]
    fn control_characters_are_refused() {
        let memory = memory(64);
        for (text, found) in [("a\0b", '\0'), ("a\nb", '\n'), ("a\u{7f}", '\u{7f}'), ("a\u{85}", '\u{85}')] {
            let error = write(&memory, text, DEFAULT_LIMIT).unwrap_err();
            assert!(
                matches!(error, Error::CmdlineControl { character, at: 1 } if character == found),
                "{error}"
            );
        }
    }
}
