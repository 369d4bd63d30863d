//! The kernel's command line: read for what it asks of the machine, checked, then written with its NUL.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Error;
use crate::layout::{CMDLINE, CMDLINE_LEN, VirtioMmio};

/// The limit of a kernel that states none: x86 Linux's COMMAND_LINE_SIZE less the NUL, in bytes.
pub(crate) const DEFAULT_LIMIT: usize = 2047;

/// The words of a command line that are the kernel's: what follows `--` is its init's.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_ascii_whitespace().take_while(|word| *word != "--")
}

/// Whether `text` has the kernel do without ACPI: the last word on that counts (Linux `admin-guide/kernel-parameters.txt`).
pub(crate) fn without_acpi(text: &str) -> bool {
    words(text).filter(|word| matches!(*word, "acpi=off" | "acpi=force" | "acpi=on")).last()
        == Some("acpi=off")
}

/// The word of `text`, if there is one, that has the kernel leave the IOAPIC alone, and so take its interrupts by the 8259s.
pub(crate) fn without_io_apic(text: &str) -> Option<&str> {
    let pci = |word: &str| {
        word.strip_prefix("pci=").is_some_and(|options| options.split(',').any(|o| o == "noacpi"))
    };
    // Linux: without SMP it takes no IOAPIC either.
    let others = ["noapic", "nolapic", "disableapic", "acpi=noirq", "nosmp", "maxcpus=0"];
    words(text).find(|word| others.contains(word) || pci(word))
}

/// Whether `text` has the kernel look for no PCI bus.
pub(crate) fn without_pci(text: &str) -> bool {
    words(text)
        .filter_map(|word| word.strip_prefix("pci="))
        .any(|options| options.split(',').any(|o| o == "off"))
}

/// `text` with the virtio-mmio devices before it, for a kernel that learns of them by neither ACPI nor `text`
/// (`virtio_mmio.device=SIZE@BASE:IRQ`, Linux `drivers/virtio/virtio_mmio.c`).
pub(crate) fn with_devices(text: &str, devices: &[VirtioMmio]) -> String {
    let told = words(text).any(|word| word.starts_with("virtio_mmio.device="));
    let devices =
        if (without_acpi(text) || without_io_apic(text).is_some()) && !told { devices } else { &[] };
    let word = |device: &VirtioMmio| {
        let VirtioMmio { base, size, gsi } = device;
        format!("virtio_mmio.device={size}@{base:#x}:{gsi} ")
    };
    devices.iter().map(word).chain([text.to_owned()]).collect()
}

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
    use crate::layout::virtio_mmio;
    use crate::testing::{bytes, memory};

    #[test]
    fn text_is_written_with_its_nul() {
        let memory = memory(64);
        memory.write_slice(&[0xff; 32], GuestAddress(CMDLINE)).unwrap();
        write(&memory, "console=ttyS0\tquiet", DEFAULT_LIMIT).unwrap();
        assert_eq!(bytes(&memory, CMDLINE, 21), b"console=ttyS0\tquiet\0\xff");
    }

    #[test]
    fn a_kernel_without_acpi_is_told_of_its_devices() {
        let devices: Vec<_> = (0..2).filter_map(virtio_mmio).collect();
        let told = "virtio_mmio.device=4096@0xc0000000:5 virtio_mmio.device=4096@0xc0001000:6 ";
        for text in ["acpi=off", "quiet acpi=off -- acpi=on", "acpi=force\tacpi=off acpi=noirq", "noapic"] {
            assert_eq!(with_devices(text, &devices), format!("{told}{text}"));
            assert_eq!(with_devices(text, &[]), text);
        }
        for text in [
            "",
            "quiet",
            "acpi=offline",
            "xacpi=off",
            "acpi=off acpi=on",
            "-- acpi=off noapic",
            "noapictimer nolapic_timer maxcpus=01 pci=noacpid",
            "acpi=off virtio_mmio.device=4K@0xc0000000:5",
        ] {
            assert_eq!(with_devices(text, &devices), text);
        }
    }

    #[test]
    fn the_word_is_found_that_leaves_the_io_apic_alone() {
        for word in
            ["noapic", "nolapic", "disableapic", "acpi=noirq", "nosmp", "maxcpus=0", "pci=nomsi,noacpi"]
        {
            assert_eq!(without_io_apic(&format!("quiet {word} -- noapic")), Some(word));
        }
        assert_eq!(without_io_apic("acpi=off maxcpus=1 pci=nomsi -- noapic"), None);
    }

    #[test]
    fn pci_is_off_by_its_own_word() {
        for (text, off) in [
            ("quiet pci=off", true),
            ("pci=nomsi,off", true),
            ("pci=nomsi", false),
            ("pci=offline xpci=off", false),
            ("-- pci=off", false),
        ] {
            assert_eq!(without_pci(text), off, "{text}");
        }
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
