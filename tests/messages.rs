//! What wirevm says while a guest does what it likes: a few lines, and nobody waits for their reader.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::time::Duration;

use harness::netns::Netns;
use harness::{TempDir, Vm, guest, handmade, need, wirevm};

const SOON: Duration = Duration::from_secs(60);

// Says 2000 times that its kernel panicked and its crash kernel runs.
guest!(panics: "mov ecx, 2000", "mov edx, 0x505", "mov al, 2", "2: out dx, al", "dec ecx", "jnz 2b");

#[test]
fn a_guest_brings_about_few_lines_however_often_it_does_what_is_told() {
    // Starts its NIC 500 times with a ring that is nowhere, and 500 times with one that claims too much.
    guest!(rings:
        "mov ebx, 0xe0008000", "mov edi, 0xd0000000", "mov [rbx + 0x10], edi", "mov word ptr [rbx + 4], 6",
        "mov ecx, 1000",
        "2: mov byte ptr [rdi + 20], 0", "mov byte ptr [rdi + 20], 1", "mov byte ptr [rdi + 20], 3",
        "mov dword ptr [rdi + 8], 1", "mov dword ptr [rdi + 12], 1", "mov byte ptr [rdi + 20], 11",
        "mov word ptr [0x401002], 0x7000",
        "mov esi, 0x400000", "xor ebp, ebp",
        "3: mov [rdi + 22], bp", "mov word ptr [rdi + 24], 8",
        "mov [rdi + 32], rsi", "add esi, 0x1000", "mov [rdi + 40], rsi", "add esi, 0x1000",
        "mov [rdi + 48], rsi", "add esi, 0x1000",
        "test ecx, 1", "jz 4f", "mov dword ptr [rdi + 36], 0x7000",
        "4: mov word ptr [rdi + 28], 1", "inc ebp", "cmp ebp, 2", "jb 3b",
        "mov byte ptr [rdi + 20], 15", "mov dword ptr [rdi + 0x3000], 0",
        "5: pause", "test byte ptr [rdi + 20], 0x40", "jz 5b",
        "dec ecx", "jnz 2b",
    );
    for (code, words) in [
        (panics(), &["started its crash kernel"][..]),
        (rings(), &["cannot start", "the driver broke its ring"]),
    ] {
        let (netns, dir) = (need!(Netns::new()), TempDir::new());
        let kernel = handmade::kernel(&dir, code);
        let mut vm = Vm::start_in(&netns, &["run", "--net", "tap", "--kernel", kernel.to_str().unwrap()]);
        vm.ends_with(0, SOON);
        let messages = vm.messages();
        assert_eq!(messages.lines().count(), words.len(), "{}", vm.state());
        assert!(words.iter().all(|word| messages.contains(word)), "{}", vm.state());
    }
}

#[test]
fn a_reader_of_messages_who_stalls_keeps_no_run_from_ending() {
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, panics());
    let (_unread, full) = io::pipe().expect("there are descriptors");
    rustix::pipe::fcntl_setpipe_size(full.as_fd(), 4096).expect("a page is the least");
    let mut pipe = File::from(OwnedFd::from(full));
    pipe.write_all(&[b'x'; 4096]).expect("it has room for a page");
    let mut vm = Vm::start_telling(wirevm().args(["-v", "run", "--kernel"]).arg(kernel), Stdio::from(pipe));
    vm.ends_with(0, SOON);
}
