//! The machine itself: kernels in, guests out, and everything that can be wrong with either.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use harness::{TempDir, Vm, guest, handmade, puts, wirevm, wirevm_path};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;

/// What a hand-made guest may take, also where KVM emulates each of its instructions on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// Runs a hand-made guest to its end, and returns what it printed and wirevm's messages.
#[track_caller]
fn run(code: &[u8], args: &[&str], status: i32) -> (String, String) {
    let dir = TempDir::new();
    let mut vm = Vm::start(wirevm().arg("run").arg("--kernel").arg(handmade::kernel(&dir, code)).args(args));
    vm.ends_with(status, SOON);
    (vm.console(), vm.messages())
}

guest!(hello: puts!("hello\\n"));

#[test]
fn a_guest_speaks_through_com1_and_resets_through_the_keyboard_controller() {
    assert_eq!(run(hello(), &[], 0), ("hello\n".into(), String::new()));
}

#[test]
fn the_console_can_be_a_file() {
    let dir = TempDir::new();
    let file = dir.path("console");
    let (console, _) = run(hello(), &["--console", file.to_str().unwrap()], 0);
    assert_eq!((console.as_str(), std::fs::read_to_string(file).unwrap().as_str()), ("", "hello\n"));
}

// Prints the initrd, by the zero page's field, up to a NUL.
guest!(initrd: "mov esi, [rsi + 0x218]", "lea rbp, [rip + 97f]", "jmp 96f");

#[test]
fn kernel_and_initrd_can_be_pipes() {
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, initrd());
    let text = dir.file("text", b"through a pipe\n\0");
    let fifo = dir.path("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    for script in [
        // What a shell makes of <(...): a descriptor that the program inherits.
        r#"cat "$2" | { exec 7<&0 </dev/null; "$0" run --kernel "$1" --initrd /dev/fd/7; }"#,
        r#"cat "$1" | { exec 7<&0 </dev/null; "$0" run --kernel /proc/self/fd/7 --initrd "$2"; }"#,
        // Standard input is no keyboard then, of which the guest would get what is meant for the loader.
        r#"cat "$1" | "$0" run --kernel /dev/stdin --initrd "$2""#,
        r#""$0" run --kernel /dev/stdin --initrd "$2" <"$1""#,
        r#"cat "$2" >"$3" & "$0" run --kernel "$1" --initrd "$3""#,
        r#"gzip -c "$1" >"$1.gz"; "$0" run --kernel "$1.gz" --initrd "$2""#,
        r#"gzip -c "$1" | "$0" run --kernel /dev/stdin --initrd "$2""#,
    ] {
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(wirevm_path()).args([&kernel, &text, &fifo]);
        let mut vm = Vm::start(&mut command);
        vm.ends_with(0, SOON);
        let said = (vm.console(), vm.messages());
        assert_eq!(said, ("through a pipe\n".into(), String::new()), "{script}");
    }
}

#[test]
fn standard_input_is_the_kernel_or_the_keyboard_and_not_both() {
    // Looks for a key for a while.
    guest!(code:
        "mov ecx, 20000", "mov edx, 0x3fd", "2: in al, dx", "test al, 1", "jnz 3f", "dec ecx", "jnz 2b",
        puts!("no key\\n"), "jmp 97f",
        "3:", puts!("a key\\n"),
    );
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, code());
    for (script, said) in [
        (r#""$0" run --kernel /dev/stdin <"$1""#, "no key\n"),
        (r#"echo | "$0" run --kernel "$1""#, "a key\n"),
    ] {
        let mut vm = Vm::start(Command::new("sh").args(["-c", script]).arg(wirevm_path()).arg(&kernel));
        vm.ends_with(0, SOON);
        assert_eq!((vm.console().as_str(), vm.messages().as_str()), (said, ""));
    }
}

#[test]
fn a_pipe_that_is_wrong_is_refused_before_anything_is_changed() {
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, hello());
    for (script, error) in [
        (r#"printf '' | "$0" run --explain --net tap --kernel /dev/stdin"#, "the kernel /dev/stdin is empty"),
        (
            r#"yes | "$0" run --explain --net tap --memory 32M --kernel "$1" --initrd /dev/stdin"#,
            "the initrd /dev/stdin has more than 33554432 bytes through a pipe",
        ),
    ] {
        let output =
            Command::new("sh").args(["-c", script]).arg(wirevm_path()).arg(&kernel).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), &*output.stdout), (Some(1), &b""[..]), "{said}");
        assert!(said.contains(error) && said.contains("\n  try:   "), "{said}");
    }
}

#[test]
fn a_pipe_that_nobody_writes_to_does_not_keep_the_run_from_ending() {
    let dir = TempDir::new();
    let fifo = dir.path("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    for written in [false, true] {
        // Opened, and nothing written.
        let writer = written.then(|| OpenOptions::new().read(true).write(true).open(&fifo).unwrap());
        let mut vm = Vm::start(wirevm().args(["-v", "run", "--kernel"]).arg(&fifo));
        std::thread::sleep(Duration::from_millis(300));
        vm.signal(Signal::TERM);
        vm.ends_with(0, SOON);
        assert!(vm.messages().contains("ended by SIGTERM"), "{}", vm.state());
        drop(writer);
    }
}

#[test]
fn what_a_command_line_takes_away_is_said_in_one_line() {
    let said = |cmdline: &str, more: &[&str]| {
        let (console, messages) = run(hello(), &[&["--cmdline", cmdline], more].concat(), 0);
        assert_eq!(console, "hello\n");
        assert!(messages.lines().count() <= 1, "{messages}");
        messages
    };
    assert!(said("console=ttyS0 noapic pci=off", &[]).contains("noapic, so it gets no ACPI"));
    assert_eq!(said("acpi=off pci=nomsi -- noapic", &[]), "");
    // Devices on a bus that it does not look for.
    let dir = TempDir::new();
    let disk = dir.file("disk", [0; 512]);
    let disk = &["--disk", disk.to_str().unwrap(), "--transport"][..];
    assert!(said("pci=off", &[disk, &["pci"]].concat()).contains("its devices are on the PCI bus"));
    for more in [&[][..], &[disk, &["mmio"]].concat()] {
        assert_eq!(said("pci=off", more), "");
    }
}

#[test]
fn a_nic_on_a_bus_that_the_guest_does_not_look_for_is_said() {
    let netns = harness::need!(harness::netns::Netns::new());
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, hello());
    for (transport, said) in [("pci", true), ("mmio", false)] {
        let kernel = kernel.to_str().unwrap();
        let args =
            ["run", "--kernel", kernel, "--cmdline", "pci=off", "--net", "tap", "--transport", transport];
        let mut vm = Vm::start_in(&netns, &args);
        vm.ends_with(0, SOON);
        assert_eq!(vm.messages().contains("--transport mmio"), said, "{}", vm.state());
    }
}

#[test]
fn a_32_bit_kernel_is_entered_by_its_pvh_note() {
    // ebx is the start info, whose magic is first.
    guest!(code:
        ".code32",
        "cmp dword ptr [ebx], 0x336ec578", "jne 97f",
        "mov edx, 0x3f8", "mov al, 0x33", "out dx, al", "mov al, 0x32", "out dx, al", "mov al, 10", "out dx, al",
        "mov al, 0xfe", "out 0x64, al", "hlt",
        ".code64",
    );
    let dir = TempDir::new();
    let kernel = dir.file("kernel", handmade::pvh32(code()));
    let mut vm = Vm::start(wirevm().arg("run").arg("--kernel").arg(kernel));
    vm.ends_with(0, SOON);
    assert_eq!((vm.console().as_str(), vm.messages().as_str()), ("32\n", ""));
}

#[test]
fn a_string_instruction_prints_each_byte() {
    guest!(code: "lea rsi, [rip + 2f]", "mov ecx, 9", "mov edx, 0x3f8", "rep outsb", "jmp 97f", "2: .ascii \"all nine\\n\"");
    assert_eq!(run(code(), &[], 0).0, "all nine\n");
}

#[test]
fn acpi_power_off_and_reset_end_the_guest_well() {
    guest!(off: "mov edx, 0x600", "mov al, (5 << 2) | (1 << 5)", "out dx, al", "2: hlt", "jmp 2b");
    guest!(reset: "mov edx, 0x602", "mov al, 1", "out dx, al", "2: hlt", "jmp 2b");
    // As Linux does it: what kind of reset, then the reset.
    guest!(chipset: "mov edx, 0xcf9", "mov al, 2", "out dx, al", "mov al, 6", "out dx, al", "2: hlt", "jmp 2b");
    for guest in [off(), reset(), chipset()] {
        assert_eq!(run(guest, &[], 0).1, "");
    }
}

#[test]
fn the_clock_shows_the_hosts_time() {
    // Once no update is in progress: the century, the year, the month and the day, digit by digit.
    guest!(code:
        "2: mov al, 0x0a", "out 0x70, al", "in al, 0x71", "test al, 0x80", "jnz 2b",
        "lea rbx, [rip + 5f]", "mov edx, 0x3f8",
        "3: mov al, [rbx]", "inc rbx", "test al, al", "jz 4f",
        "out 0x70, al", "in al, 0x71", "mov cl, al", "shr al, 4", "add al, 0x30", "out dx, al",
        "mov al, cl", "and al, 0xf", "add al, 0x30", "out dx, al", "jmp 3b",
        "4:", puts!("\\n"), "jmp 97f",
        "5: .byte 0x32, 9, 8, 7, 0",
    );
    let today = || {
        let date = Command::new("date").args(["-u", "+%Y%m%d"]).output().unwrap();
        String::from_utf8(date.stdout).unwrap()
    };
    let before = today();
    let shown = run(code(), &[], 0).0;
    assert!(shown == before || shown == today(), "{shown:?}");
}

#[test]
fn of_a_wide_write_the_serial_port_sends_the_low_byte() {
    guest!(code:
        "lea rsi, [rip + 3f]", "mov edx, 0x3f8",
        "2: lodsb", "test al, al", "jz 97f", "mov ah, 0x0f", "out dx, ax", "jmp 2b",
        "3: .asciz \"wide\\n\"",
    );
    assert_eq!(run(code(), &[], 0).0, "wide\n");
}

#[test]
fn a_triple_fault_is_a_crash_that_says_where() {
    // No interrupt descriptor table: the first exception is the third.
    guest!(code: puts!("so long\\n"), "ud2");
    let (console, messages) = run(code(), &[], 3);
    assert_eq!(console, "so long\n");
    assert!(messages.contains("vCPU 0 took a triple fault"), "{messages}");
    // On AMD the position is lost.
    if messages.contains(" at rip ") {
        assert!(messages.contains(" at rip 0x1000") && messages.contains("code 0f 0b"), "{messages}");
    }
}

#[test]
fn a_panic_told_to_the_panic_device_is_a_crash() {
    guest!(code: "mov edx, 0x505", "in al, dx", "test al, 1", "jz 97f", "mov al, 1", "out dx, al", "2: hlt", "jmp 2b");
    let (_, messages) = run(code(), &[], 3);
    assert!(messages.contains("error: the guest's kernel panicked"), "{messages}");
}

#[test]
fn a_guest_that_panicked_still_says_why_and_its_reset_is_a_crash() {
    guest!(code: "mov edx, 0x505", "mov al, 1", "out dx, al", "mov ecx, 20000", "2: pause", "loop 2b", puts!("why\\n"));
    let (console, messages) = run(code(), &[], 3);
    assert_eq!(console, "why\n");
    assert!(messages.contains("error: the guest's kernel panicked"), "{messages}");
}

#[test]
fn what_kvm_cannot_run_is_a_crash_that_points_to_the_doctor() {
    // There is no code to fetch in the hole, and nothing that KVM could hand to a device.
    guest!(code: "mov eax, 0xd0000000", "jmp rax");
    let (_, messages) = run(code(), &[], 3);
    assert!(messages.contains("at rip 0xd0000000"), "{messages}");
    if messages.contains("internal error") {
        assert!(messages.contains("wirevm doctor measures"), "{messages}");
    }
}

#[test]
fn the_serial_port_interrupts_through_its_line() {
    // An interrupt gate for vector 0x40 in a table at 2 MiB, the IOAPIC's pin 4 (edge) onto it, then the UART's
    // "transmitter empty" interrupt. The old interrupt controllers would answer first, so they are masked.
    guest!(code:
        "mov esp, 0x300000",
        "mov edi, 0x200400",
        "lea rax, [rip + 5f]",
        "mov [rdi], ax", "mov word ptr [rdi + 2], 0x10", "mov word ptr [rdi + 4], 0x8e00",
        "shr rax, 16", "mov [rdi + 6], ax", "mov qword ptr [rdi + 8], 0",
        "lidt [rip + 4f]",
        "mov al, 0xff", "out 0x21, al", "out 0xa1, al",
        "mov edi, 0xfee000f0", "mov dword ptr [rdi], 0x1ff",
        "mov edi, 0xfec00000",
        "mov dword ptr [rdi], 0x18", "mov dword ptr [rdi + 0x10], 0x40",
        "mov dword ptr [rdi], 0x19", "mov dword ptr [rdi + 0x10], 0",
        "sti",
        "mov edx, 0x3f9", "mov al, 2", "out dx, al",
        "2: hlt", "jmp 2b",
        "4: .word 0xfff", ".quad 0x200000",
        "5:", puts!("interrupted\\n"), "jmp 97f",
    );
    assert_eq!(run(code(), &[], 0).0, "interrupted\n");
}

#[test]
fn the_processor_shows_nothing_that_is_not_there() {
    guest!(code:
        // A general protection fault goes to the label 5.
        "mov esp, 0x300000", "mov edi, 0x2000d0", "lea rax, [rip + 5f]",
        "mov [rdi], ax", "mov word ptr [rdi + 2], 0x10", "mov word ptr [rdi + 4], 0x8e00",
        "shr rax, 16", "mov [rdi + 6], ax", "mov qword ptr [rdi + 8], 0",
        "lidt [rip + 4f]",
        // Performance counters, by the leaves of Intel and AMD.
        "mov eax, 0xa", "xor ecx, ecx", "cpuid", "or eax, ebx", "or eax, edx", "jnz 97f",
        "mov eax, 0x80000001", "cpuid", "test ecx, 0x11800000", "jnz 97f",
        "mov eax, 0x80000000", "cpuid", "cmp eax, 0x80000022", "jb 2f",
        "mov eax, 0x80000022", "xor ecx, ecx", "cpuid", "or eax, ebx", "jnz 97f",
        // Enclaves, tiles.
        "2: mov eax, 7", "xor ecx, ecx", "cpuid", "test ebx, 4", "jnz 97f", "test edx, 0x3400000", "jnz 97f",
        puts!("not shown\\n"),
        "xor ecx, ecx", "rdpmc", puts!("a counter\\n"), "jmp 97f",
        "4: .word 0xfff", ".quad 0x200000",
        "5:", puts!("not there\\n"), "jmp 97f",
    );
    assert_eq!(run(code(), &[], 0).0, "not shown\nnot there\n");
}

#[test]
fn a_second_vcpu_starts_by_init_and_sipi() {
    // The real-mode code for page 8 tells through memory; the first vCPU waits for that.
    guest!(code:
        "lea rsi, [rip + 4f]", "mov edi, 0x8000", "mov ecx, 32", "rep movsb",
        "mov dword ptr [0x7ff0], 0",
        "mov edi, 0xfee000f0", "mov dword ptr [rdi], 0x1ff",
        "mov edi, 0xfee00300",
        "mov dword ptr [rdi + 0x10], 0x01000000", "mov dword ptr [rdi], 0x4500",
        "mov dword ptr [rdi + 0x10], 0x01000000", "mov dword ptr [rdi], 0x4608",
        "2: cmp dword ptr [0x7ff0], 0x55", "jne 2b",
        puts!("two\\n"), "jmp 97f",
        ".code16",
        "4: xor ax, ax", "mov ds, ax", "mov byte ptr [0x7ff0], 0x55", "5: hlt", "jmp 5b",
        ".code64",
    );
    if limit_of_vcpus() < 2 {
        harness::skip!("KVM recommends one vCPU here");
    }
    assert_eq!(run(code(), &["--cpus", "2"], 0).0, "two\n");
}

#[test]
fn nonsense_on_every_port_ends_nothing() {
    // All of them, both directions, three widths; only what would end the machine as it should is left out.
    guest!(code:
        "xor edx, edx",
        "2: cmp edx, 0x60", "jb 3f", "cmp edx, 0x64", "jbe 4f",
        "3: cmp edx, 0x5fd", "jb 5f", "cmp edx, 0x604", "jb 4f",
        "5: cmp edx, 0x502", "jb 6f", "cmp edx, 0x505", "jbe 4f",
        "6: cmp edx, 0xcf8", "je 4f", "cmp edx, 0xcf9", "je 4f",
        "mov eax, 0xffffffff", "out dx, eax", "out dx, ax", "out dx, al", "in eax, dx", "in ax, dx", "in al, dx",
        "4: inc edx", "cmp edx, 0x10000", "jb 2b",
        "mov edx, 0x3fb", "mov al, 3", "out dx, al", "mov edx, 0x3fc", "xor eax, eax", "out dx, al",
        puts!("alive\\n"),
    );
    let (console, messages) = run(code(), &[], 0);
    assert!(console.ends_with("alive\n"), "{console:?}");
    assert_eq!(messages, "");
}

#[test]
fn memory_is_all_there_below_and_above_the_hole() {
    // Marks the last 8 bytes below the hole and reads an address in it, where nothing is.
    guest!(code:
        "mov edi, 0xbffffff8", "mov rax, 0x1122334455667788", "mov [rdi], rax", "cmp [rdi], rax", "jne 97f",
        "mov edi, 0xd0000000", "mov eax, [rdi]", "inc eax", "jnz 97f",
        puts!("all\\n"),
    );
    assert_eq!(run(code(), &["--memory", "3584M"], 0).0, "all\n");
}

guest!(forever: puts!("running\\n"), "2: hlt", "jmp 2b");

#[test]
fn signals_end_the_run_at_once() {
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, forever());
    for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT] {
        let mut vm = Vm::start(wirevm().args(["-v", "run", "--kernel"]).arg(&kernel));
        vm.expect("running\n", SOON);
        vm.signal(signal);
        vm.ends_with(0, SOON);
        assert!(vm.messages().contains("ended by SIG"), "{}", vm.state());
    }
}

// Prints for ever, and reads no key.
guest!(spam: "2: lea rsi, [rip + 3f]", "mov ecx, 1024", "mov edx, 0x3f8", "rep outsb", "jmp 2b", "3: .fill 1024, 1, 0x78");

#[test]
fn a_console_that_nobody_reads_does_not_keep_the_run_from_ending() {
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, spam());
    for signal in [Signal::TERM, Signal::INT] {
        let mut vm = Vm::start_unread(wirevm().arg("run").arg("--kernel").arg(&kernel));
        vm.fills_its_output();
        vm.signal(signal);
        vm.ends_with(0, SOON);
    }
    // Its messages go the same way here, and there is no room for them either.
    let script = "exec \"$0\" -v run --kernel \"$1\" 2>&1";
    let mut vm = Vm::start_unread(Command::new("sh").args(["-c", script]).arg(wirevm_path()).arg(&kernel));
    vm.fills_its_output();
    vm.signal(Signal::TERM);
    vm.ends_with(0, SOON);
}

#[test]
fn a_console_that_nobody_reads_does_not_hold_the_guest_up() {
    // Far more than there is room for on the way, and then its end.
    guest!(code:
        "mov ebx, 600",
        "2: lea rsi, [rip + 3f]", "mov ecx, 1024", "mov edx, 0x3f8", "rep outsb", "dec ebx", "jnz 2b", "jmp 97f",
        "3: .fill 1024, 1, 0x78",
    );
    let dir = TempDir::new();
    let (file, kernel) = (dir.path("messages"), handmade::kernel(&dir, code()));
    let script = "exec \"$0\" -v run --kernel \"$1\" 2>\"$2\"";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(wirevm_path()).arg(kernel).arg(&file);
    let vm = Vm::start_unread(&mut command);
    let until = Instant::now() + SOON;
    // Said once its vCPU is joined, while the console still waits for its reader.
    while !std::fs::read_to_string(&file).unwrap_or_default().contains("vCPU 0: ") {
        assert!(Instant::now() < until, "the guest is held up\n{}", vm.state());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_pipe_as_the_console_needs_a_reader_who_may_stall() {
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, spam());
    let fifo = dir.path("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let run = || {
        let mut command = wirevm();
        command.arg("run").arg("--kernel").arg(&kernel).arg("--console").arg(&fifo);
        command
    };
    let mut vm = Vm::start(&mut run());
    vm.ends_with(1, SOON);
    let messages = vm.messages();
    assert!(
        messages.contains("is a pipe that nobody reads")
            && messages.contains("\n  try:   start its reader first: cat "),
        "{messages}"
    );
    let _reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&fifo).unwrap();
    let mut vm = Vm::start(&mut run());
    vm.fills_its_output();
    vm.signal(Signal::TERM);
    vm.ends_with(0, SOON);
    assert_eq!(vm.messages(), "");
}

#[test]
fn keys_reach_the_guest_and_none_is_lost() {
    // Echoes until a newline, slowly enough that the port's 16 bytes run full.
    guest!(code:
        puts!("ready\\n"),
        "2: mov ecx, 200", "3: dec ecx", "jnz 3b",
        "mov edx, 0x3fd", "in al, dx", "test al, 1", "jz 2b",
        "mov edx, 0x3f8", "in al, dx", "out dx, al", "cmp al, 10", "jne 2b",
    );
    let dir = TempDir::new();
    let mut vm = Vm::start(wirevm().arg("run").arg("--kernel").arg(handmade::kernel(&dir, code())));
    vm.expect("ready\n", SOON);
    let text: String = (0..500).map(|i| char::from(b'!' + (i % 90) as u8)).collect();
    vm.type_in(&format!("{text}\x01x\n"));
    vm.ends_with(0, SOON);
    assert_eq!(vm.console(), format!("ready\n{text}\x01x\n"), "a pipe has no escape key");
}

/// What KVM recommends here, as wirevm itself says it.
fn limit_of_vcpus() -> u32 {
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, hello());
    let output = wirevm().args(["run", "--cpus", "100000", "--kernel"]).arg(kernel).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let limit = text.split("more than the ").nth(1).and_then(|rest| rest.split(' ').next());
    limit.and_then(|limit| limit.parse().ok()).unwrap_or_else(|| panic!("no limit in {text}"))
}

/// Stock Linux guests.
mod stock {
    use super::*;
    use harness::need;
    use harness::netns::Netns;
    use harness::stock::{self, BOOT};

    /// A command in the guest, on an emulated processor on a busy machine.
    const COMMAND: Duration = Duration::from_secs(60);

    /// Warnings and errors of the guest's kernel that speak of what wirevm shows it.
    #[track_caller]
    fn no_warning_is_ours(vm: &mut Vm) {
        let log = vm.sh("dmesg -r | grep '^<[0-4]>' | grep -v 'CPUID.0d' || true", COMMAND);
        let ours = [
            "acpi",
            "virtio",
            "apic",
            "pci",
            "8250",
            "ttys",
            "tsc",
            "clocksource",
            "timer",
            "firmware",
            "e820",
            "mtrr",
            "topology",
            "smpboot",
            "eth",
            "panic",
            "memory",
            "irq",
            "rtc",
            "i8042",
            "command line",
            "dmi:",
            "smbios",
            "vmgenid",
        ];
        // A driver that asks each AMD guest for what only bare metal has; a host that is busy with other things for a while.
        let theirs =
            ["amd_pstate: the _CPC object", "hrtimer: interrupt took", "clocksource: Long readout interval"];
        let found: Vec<_> = log
            .lines()
            .filter(|line| ours.iter().any(|word| line.to_lowercase().contains(word)))
            .filter(|line| !theirs.iter().any(|text| line.contains(text)))
            .collect();
        assert!(found.is_empty(), "the guest's kernel warns:\n{}\n{}", found.join("\n"), vm.state());
    }

    #[test]
    fn debian_s_kernels_boot_with_one_and_two_vcpus_and_without_a_warning() {
        let kernels = need!(stock::debian());
        let netns = need!(Netns::new());
        let uuid = "2f1c0d3e-8a4b-4c5d-9e6f-708192a3b4c5";
        for kernel in &kernels {
            for (cpus, transport) in [("1", "mmio"), ("2", "pci")] {
                let args = ["--cpus", cpus, "--transport", transport, "--net", "tap"];
                let who = ["--uuid", uuid, "--serial-number", "S 7", "--credential", "system.hostname=web"];
                let mut vm = kernel.boot(&netns, "", &[&args[..], &who].concat());
                let id = vm.sh("cd /sys/class/dmi/id; cat sys_vendor product_uuid product_serial", COMMAND);
                assert_eq!(id.lines().collect::<Vec<_>>(), ["wirevm", uuid, "S 7"], "{}", vm.state());
                let strings = "tr '\\000' '\\n' </sys/firmware/dmi/tables/DMI | grep -a io.systemd";
                let told = "io.systemd.credential:system.hostname=web";
                assert!(vm.sh(strings, COMMAND).contains(told), "{}", vm.state());
                assert_eq!(vm.sh("ls -d /sys/bus/acpi/devices/WIRV0001:00 | wc -l", COMMAND).trim(), "1");
                assert_eq!(vm.sh("nproc", COMMAND).trim(), cpus, "{}", vm.state());
                no_warning_is_ours(&mut vm);
                let clock =
                    vm.sh("cat /sys/devices/system/clocksource/clocksource0/current_clocksource", COMMAND);
                assert!(["kvm-clock", "tsc"].contains(&clock.trim()), "{clock}");
                // Filtered there: a whole log takes a slow console long.
                let log = vm.sh("dmesg | grep -iE 'tsc deadline|calibrat'", COMMAND);
                assert!(log.contains("TSC deadline timer available"), "{log}");
                assert!(log.contains("Calibrating delay loop (skipped)"), "{log}");
                assert!(!log.contains("Unable to calibrate"), "{log}");
                vm.type_in("poweroff\n");
                vm.ends_with(0, COMMAND);
            }
        }
    }

    #[test]
    fn memory_of_every_size_is_the_guest_s() {
        let netns = need!(Netns::new());
        let fastest = need!(stock::fastest());
        for (mib, kernel) in [
            (64, stock::slim()),
            (512, Ok(fastest.clone())),
            (3584, Ok(fastest.clone())),
            (6144, Ok(fastest)),
        ] {
            let Ok(kernel) = kernel else {
                println!("skipped: 64 MiB of memory: only the slim kernel runs in so little");
                continue;
            };
            let mut vm = kernel.boot(&netns, "", &["--memory", &format!("{mib}M")]);
            // What the firmware's map gave the kernel; what it keeps of that for itself differs from kernel to kernel.
            let told = vm.sh("dmesg | sed -n 's|.*Memory: [0-9]*K/\\([0-9]*\\)K available.*|\\1|p'", COMMAND);
            let told: u64 = told.trim().parse().expect("a number of KiB");
            assert!((mib << 10) - told < 1 << 10, "{told} KiB of {mib} MiB\n{}", vm.state());
            let total = vm.sh("awk '/MemTotal/ { print $2 }' /proc/meminfo", COMMAND);
            let total: u64 = total.trim().parse().expect("a number of KiB");
            assert!(total > told / 8 * 5, "{total} KiB of {mib} MiB\n{}", vm.state());
            assert!(total < mib << 10, "{total} KiB of {mib} MiB");
            // Every page of a file on each side of the hole holds what was written.
            let check = "dd if=/dev/urandom of=/dev/shm/a bs=1M count=16 2>/dev/null && cp /dev/shm/a /dev/shm/b && cmp /dev/shm/a /dev/shm/b";
            vm.sh(if mib > 64 { check } else { "true" }, COMMAND);
            vm.type_in("poweroff\n");
            vm.ends_with(0, COMMAND);
        }
    }

    #[test]
    fn the_vmlinux_inside_boots_by_its_pvh_entry() {
        let kernel = need!(stock::newest());
        let netns = need!(Netns::new());
        let dir = TempDir::new();
        let vmlinux = dir.path("vmlinux");
        need!(kernel.extract_vmlinux(&vmlinux));
        let elf = stock::Stock { kernel: vmlinux.clone(), ..kernel.clone() };
        let mut vm = elf.boot(&netns, "", &["--cpus", "2"]);
        assert_eq!(vm.sh("nproc", COMMAND).trim(), "2");
        no_warning_is_ours(&mut vm);
        // Reboot, for once: it ends the run too.
        vm.type_in("reboot\n");
        vm.ends_with(0, COMMAND);

        // Without the note that names the entry it is a plain ELF kernel, with the 64-bit protocol.
        let mut bytes = std::fs::read(&vmlinux).unwrap();
        let note = [4u32.to_le_bytes(), 4u32.to_le_bytes(), 18u32.to_le_bytes(), *b"Xen\0"].concat();
        let notes = [4u32.to_le_bytes(), 8u32.to_le_bytes(), 18u32.to_le_bytes(), *b"Xen\0"].concat();
        let mut hidden = 0;
        for at in 0..bytes.len() - 16 {
            if bytes[at..at + 16] == note[..] || bytes[at..at + 16] == notes[..] {
                bytes[at + 8] = 99;
                hidden += 1;
            }
        }
        assert_eq!(hidden, 1, "the kernel has one note of its PVH entry");
        let plain = stock::Stock { kernel: dir.file("plain", bytes), ..kernel };
        let mut vm = plain.boot(&netns, "", &[]);
        vm.type_in("poweroff\n");
        vm.ends_with(0, COMMAND);
    }

    #[test]
    fn the_guest_has_random_bytes_the_time_and_gives_memory_back() {
        let kernel = need!(stock::newest());
        let netns = need!(Netns::new());
        let mut vm = kernel.boot(&netns, "wirevm.more", &["--memory", "512M"]);
        // Before anything else could have set it.
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let before = now();
        let guest: u64 = vm.sh("date +%s", COMMAND).trim().parse().unwrap();
        // Its kernel reads the CMOS clock, which has whole seconds.
        assert!((before - 1..=now() + 1).contains(&guest), "{before}, {guest}\n{}", vm.state());
        let rng = vm.sh("cat /sys/class/misc/hw_random/rng_current", COMMAND);
        assert!(rng.starts_with("virtio_rng"), "{rng}\n{}", vm.state());
        vm.sh("dd if=/dev/hwrng of=/dev/shm/random bs=64 count=64 2>/dev/null && [ $(gzip -c /dev/shm/random | wc -c) -gt 4096 ]", COMMAND);

        let machine = vm.machine_pid();
        let anonymous = || {
            let status = std::fs::read_to_string(format!("/proc/{machine}/status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap().to_owned();
            line.trim_end_matches("kB").trim().parse::<u64>().unwrap() >> 10
        };
        let idle = anonymous();
        vm.sh("dd if=/dev/zero of=/dev/shm/large bs=1M count=192 2>/dev/null", COMMAND);
        let busy = anonymous();
        assert!(busy >= idle + 150, "{idle} MiB, then {busy} MiB");
        vm.sh("rm /dev/shm/large", COMMAND);
        let end = Instant::now() + BOOT;
        while anonymous() > idle + 64 {
            assert!(Instant::now() < end, "{idle}, {busy}, {} MiB\n{}", anonymous(), vm.state());
            std::thread::sleep(Duration::from_millis(200));
        }
        // What it gave it can have again.
        vm.sh("dd if=/dev/zero of=/dev/shm/large bs=1M count=192 2>/dev/null && cmp -n 201326592 /dev/shm/large /dev/zero", COMMAND);
        vm.type_in("poweroff\n");
        vm.ends_with(0, COMMAND);
    }

    #[test]
    fn a_kernel_panic_is_a_crash() {
        let kernel = need!(stock::newest());
        let netns = need!(Netns::new());
        let mut vm = kernel.boot(&netns, "", &[]);
        vm.type_in("echo c >/proc/sysrq-trigger\n");
        vm.ends_with(3, COMMAND);
        assert!(vm.messages().contains("the guest's kernel panicked"), "{}", vm.state());
    }

    #[test]
    fn the_power_button_powers_the_guest_off() {
        let kernel = need!(stock::newest());
        let mut command = wirevm();
        command.args(kernel.args(""));
        let (mut vm, _terminal) = Vm::start_on_terminal(&command);
        vm.expect("guest# ", BOOT);
        vm.type_in("\x01p");
        vm.ends_with(0, COMMAND);
        assert!(vm.console().contains("Power down"), "{}", vm.state());
    }

    #[test]
    fn a_kernel_that_reads_the_mp_table_has_all_without_acpi() {
        // Debian's read neither that nor virtio_mmio.device=.
        let kernel = need!(stock::slim());
        for (words, transport, cpus) in [
            ("acpi=off", "pci", "2"),
            ("acpi=off", "mmio", "2"),
            ("noapic reboot=k panic=1 pci=off nomodules", "mmio", "1"),
        ] {
            let netns = need!(Netns::new());
            let net = ["--net", "tap,host=172.31.0.1/24", "--transport", transport, "--cpus", cpus];
            let mut vm = kernel.boot(&netns, &format!("wirevm.dhcp {words}"), &net);
            assert_eq!(vm.sh("nproc", COMMAND).trim(), cpus, "{words}, {transport}\n{}", vm.state());
            let address = vm.sh("ip -4 -o addr show dev eth0", COMMAND);
            assert!(address.contains("172.31.0.2/24"), "{words}, {transport}: {address}\n{}", vm.state());
            vm.sh("ping -c 3 -i 0.2 -W 10 172.31.0.1", COMMAND);
            vm.type_in("reboot -f\n");
            vm.ends_with(0, COMMAND);
        }
    }
}
