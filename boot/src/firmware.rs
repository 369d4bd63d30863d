//! All the firmware that there is: what a PC does when real-mode code jumps to `ffff:0000`, restart; and the VM generation ID.
//!
//! Linux restarts that way on a hardware-reduced ACPI machine without EFI: such machines have EFI, it believes, and where
//! that turns out to be absent it falls back not to the ACPI reset register, but to the BIOS.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Error;
use crate::layout::{GENERATION_ID, RESET, RESET_VALUE, RESTART};

/// Writes the code, and the VM generation ID.
pub(crate) fn write(memory: &GuestMemoryMmap, generation: [u8; 16]) -> Result<(), Error> {
    let [low, high] = RESET.to_le_bytes();
    // mov dx, RESET; mov al, RESET_VALUE; out dx, al; again: hlt; jmp again
    let code = [0xba, low, high, 0xb0, RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd];
    let put = |bytes: &[u8], address| {
        let written = memory.write_slice(bytes, GuestAddress(address));
        written.map_err(|source| Error::Memory { what: "firmware", address, source })
    };
    put(&code, RESTART)?;
    put(&generation, GENERATION_ID)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{FIRMWARE, FIRMWARE_LEN};
    use crate::testing::memory;

    #[test]
    fn a_restart_writes_the_reset_register() {
        let memory = memory(64);
        write(&memory, [0; 16]).unwrap();
        let mut code = [0xcc; 16];
        memory.read_slice(&mut code, GuestAddress(0xf_fff0)).unwrap();
        assert_eq!(code[..6], [0xba, 0x02, 0x06, 0xb0, 1, 0xee]);
        assert_eq!(code[9..], [0; 7], "it ends before the megabyte does");
        assert!((FIRMWARE..FIRMWARE + FIRMWARE_LEN).contains(&RESTART));
    }
}
