//! Guests of a few instructions, for what needs no operating system.

use std::path::PathBuf;
use std::time::Duration;

use crate::{TempDir, Vm};

/// Where a hand-made guest is loaded; it begins with its first instruction, in 64-bit mode, with the first 4 GiB mapped
/// one to one and without a stack.
pub const BASE: u64 = 0x10_0000;

/// Defines `fn NAME() -> &'static [u8]`: the machine code of these lines of assembly (Intel syntax, position-independent).
///
/// Every guest may use the macros `putc AL`-style below: `puts label` prints a string that ends in 0, `reset` ends the
/// machine through the keyboard controller.
#[macro_export]
macro_rules! guest {
    ($name:ident: $($line:expr),+ $(,)?) => {
        fn $name() -> &'static [u8] {
            // The assembler that rustc has is the guest's too: a function that is never called holds the code.
            #[unsafe(naked)]
            unsafe extern "C" fn code() {
                core::arch::naked_asm!(
                    ".quad 99f - 98f",
                    "98:",
                    $($line,)+
                    "jmp 97f",
                    // rsi: a string that ends in 0, for COM1.
                    "96: mov edx, 0x3f8",
                    "95: lodsb",
                    "test al, al",
                    "jz 94f",
                    "out dx, al",
                    "jmp 95b",
                    "94: jmp rbp",
                    "97: mov al, 0xfe",
                    "out 0x64, al",
                    "hlt",
                    "99:",
                )
            }
            // SAFETY: the function's bytes start with the length of the code behind it, as written above.
            unsafe {
                let start: *const u8 = (code as *const ()).cast();
                let len = start.cast::<u64>().read_unaligned();
                std::slice::from_raw_parts(start.add(8), len as usize)
            }
        }
    };
}

/// Assembly that prints a string through COM1; clobbers rax, rdx, rsi, rbp.
#[macro_export]
macro_rules! puts {
    ($text:literal) => {
        concat!("lea rsi, [rip + 81f]\nlea rbp, [rip + 82f]\njmp 96f\n81: .asciz \"", $text, "\"\n82:")
    };
}

/// An ELF file for x86-64 with `code` at [`BASE`], its entry too.
pub fn elf(code: &[u8]) -> Vec<u8> {
    const HEADER: u16 = 64;
    const PROGRAM_HEADER: u16 = 56;
    let offset = u64::from(HEADER + PROGRAM_HEADER);
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2u16, 62].map(u16::to_le_bytes).concat()); // executable, x86-64
    file.extend(1u32.to_le_bytes());
    file.extend([BASE, HEADER.into(), 0].map(u64::to_le_bytes).concat()); // entry, program headers, no sections
    file.extend(0u32.to_le_bytes());
    file.extend([HEADER, PROGRAM_HEADER, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    file.extend([1u32, 7].map(u32::to_le_bytes).concat()); // PT_LOAD, rwx
    let len = code.len() as u64;
    file.extend([offset, BASE, BASE, len, len, 0x1000].map(u64::to_le_bytes).concat());
    file.extend(code);
    file
}

/// A 32-bit ELF file with `code`, also of 32 bits, at [`BASE`], where its PVH note has its entry.
pub fn pvh32(code: &[u8]) -> Vec<u8> {
    const HEADERS: u32 = 52 + 2 * 32;
    let base = BASE as u32;
    // "Xen", XEN_ELFNOTE_PHYS32_ENTRY.
    let note = [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), base].map(u32::to_le_bytes).concat();
    let (note_len, len) = (note.len() as u32, code.len() as u32);
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2u16, 3].map(u16::to_le_bytes).concat()); // executable, 386
    file.extend([1, base, 52, 0, 0].map(u32::to_le_bytes).concat()); // version, entry, program headers, no sections, flags
    file.extend([52u16, 32, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    let load = [1, HEADERS + note_len, base, base, len, len, 7, 0x1000]; // PT_LOAD, rwx
    let note_segment = [4, HEADERS, 0, 0, note_len, note_len, 4, 4]; // PT_NOTE
    file.extend([load, note_segment].concat().into_iter().flat_map(u32::to_le_bytes));
    file.extend(note);
    file.extend(code);
    file
}

/// The file of [`elf`] as a program for Linux, which maps whole pages of it: all of it is at [`BASE`], the entry behind its headers.
pub fn program(code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let mut file = elf(code);
    let len = file.len() as u64;
    for (at, value) in [(24, BASE + HEADERS), (64 + 8, 0), (64 + 32, len), (64 + 40, len)] {
        file[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    file
}

/// Puts `code` into a Linux guest as the program `path`, by its shell.
pub fn install(vm: &mut Vm, path: &str, code: &[u8]) {
    const COMMAND: Duration = Duration::from_secs(60);
    for part in program(code).chunks(100) {
        let bytes: String = part.iter().map(|byte| format!("\\{byte:03o}")).collect();
        vm.sh(&format!("printf '{bytes}' >>{path}"), COMMAND);
    }
    vm.sh(&format!("chmod +x {path}"), COMMAND);
}

/// Writes the guest as a kernel file.
pub fn kernel(dir: &TempDir, code: &[u8]) -> PathBuf {
    dir.file("kernel", elf(code))
}
