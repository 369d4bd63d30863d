//! The PCI bus and virtio devices on it: found, moved, interrupting by MSI-X, and lied to.

use std::time::Duration;

use harness::netns::Netns;
use harness::{TempDir, Variant, Vm, counts_frames, guest, handmade, need, puts, skip, variant};

const SOON: Duration = Duration::from_secs(30);

/// Assembly: the first device's configuration space by the ECAM in rbx.
macro_rules! ecam {
    () => {
        "mov ebx, 0xe0008000\n"
    };
}

/// Assembly: queue `n` of 8 entries with vector `v`, its rings at `base` and the two pages behind it.
macro_rules! queue {
    ($n:literal, $v:literal, $base:literal) => {
        concat!(
            "mov word ptr [rdi + 22], ",
            $n,
            "\n",
            "mov word ptr [rdi + 24], 8\n",
            "mov word ptr [rdi + 26], ",
            $v,
            "\n",
            "mov dword ptr [rdi + 32], ",
            $base,
            "\nmov dword ptr [rdi + 36], 0\n",
            "mov dword ptr [rdi + 40], ",
            $base,
            " + 0x1000\nmov dword ptr [rdi + 44], 0\n",
            "mov dword ptr [rdi + 48], ",
            $base,
            " + 0x2000\nmov dword ptr [rdi + 52], 0\n",
            "mov word ptr [rdi + 28], 1\n",
        )
    };
}

/// Assembly: a driver of the device whose BAR is at rdi. It accepts VERSION_1 alone and enables both queues: receive at
/// 4 MiB without a vector, transmit at 4 MiB + 0x3000 with vector 2, with one descriptor for a frame of 60 bytes behind its
/// header at 4 MiB + 0x6000.
macro_rules! driver {
    () => {
        concat!(
            "mov byte ptr [rdi + 20], 0\n",
            "mov byte ptr [rdi + 20], 1\n",
            "mov byte ptr [rdi + 20], 3\n",
            "mov dword ptr [rdi + 8], 1\nmov dword ptr [rdi + 12], 1\n",
            "mov dword ptr [rdi + 8], 0\nmov dword ptr [rdi + 12], 0\n",
            "mov byte ptr [rdi + 20], 11\n",
            queue!("0", "0xffff", "0x400000"),
            queue!("1", "2", "0x403000"),
            "mov byte ptr [rdi + 20], 15\n",
            "mov esi, 0x403000\n",
            "mov qword ptr [rsi], 0x406000\n",
            "mov dword ptr [rsi + 8], 72\n",
            "mov dword ptr [rsi + 12], 0\n",
            // To everybody, of a type that nobody knows.
            "mov dword ptr [0x40600c], 0xffffffff\n",
            "mov word ptr [0x406010], 0xffff\n",
            "mov dword ptr [0x406012], 0x0102\n",
            "mov word ptr [0x406018], 0xb588\n",
        )
    };
}

/// Assembly: offers the frame once more and notifies; ecx counts the frames. Clobbers eax.
macro_rules! offer {
    () => {
        "mov eax, ecx\nand eax, 7\nmov word ptr [rax * 2 + 0x404004], 0\n\
         inc ecx\nmov word ptr [0x404002], cx\nmov word ptr [rdi + 0x3004], 1\n"
    };
}

/// Assembly: entry 2 of the MSI-X table, vector 0x40 of the first vCPU, with this vector control.
macro_rules! vector {
    ($control:literal) => {
        concat!(
            "mov dword ptr [rdi + 0x1020], 0xfee00000\nmov dword ptr [rdi + 0x1024], 0\n",
            "mov dword ptr [rdi + 0x1028], 0x40\nmov dword ptr [rdi + 0x102c], ",
            $control,
            "\n",
        )
    };
}

/// Assembly: vector 0x40 goes to the label 5, and the old interrupt controllers to nobody. Clobbers rax, rsi. The data at label 4 is
/// [`IDT`].
macro_rules! handler {
    () => {
        "mov esp, 0x300000\nmov esi, 0x200400\nlea rax, [rip + 5f]\n\
         mov [rsi], ax\nmov word ptr [rsi + 2], 0x10\nmov word ptr [rsi + 4], 0x8e00\n\
         shr rax, 16\nmov [rsi + 6], ax\nmov qword ptr [rsi + 8], 0\n\
         lidt [rip + 4f]\nmov al, 0xff\nout 0x21, al\nout 0xa1, al\n\
         mov esi, 0xfee000f0\nmov dword ptr [rsi], 0x1ff\n"
    };
}

/// Assembly: what `lidt` reads.
macro_rules! idt {
    () => {
        "4: .word 0xfff\n.quad 0x200000\n"
    };
}

/// Runs a guest with a tap, and gives the machine after its end.
macro_rules! run {
    ($code:expr) => {{
        let netns = need!(Netns::new());
        let dir = TempDir::new();
        let kernel = handmade::kernel(&dir, $code);
        let mut vm =
            Vm::start_in(&netns, &["-v", "run", "--net", "tap", "--kernel", kernel.to_str().unwrap()]);
        vm.ends_with(0, SOON);
        vm
    }};
}

/// How often the guest's MMIO ended in user space.
fn mmio_exits(vm: &Vm) -> u32 {
    let messages = vm.messages();
    let exits = messages.split(" port, ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    exits.unwrap_or_else(|| panic!("no exits in {messages}"))
}

#[test]
fn a_device_is_found_both_ways_and_its_frames_and_interrupts_cost_no_exit() {
    guest!(code:
        handler!(),
        // By the ports: slot 1 is a virtio NIC, and slot 2 nobody.
        "mov edx, 0xcf8", "mov eax, 0x80001000", "out dx, eax", "mov edx, 0xcfc", "in eax, dx",
        "inc eax", "jnz 97f",
        "mov edx, 0xcf8", "mov eax, 0x80000800", "out dx, eax", "mov edx, 0xcfc", "in eax, dx",
        "cmp eax, 0x10411af4", "jne 97f",
        // By the ECAM too. Its BAR is sized, moved and switched on.
        ecam!(), "cmp eax, [rbx]", "jne 97f",
        "mov dword ptr [rbx + 0x10], 0xffffffff", "cmp dword ptr [rbx + 0x10], 0xffffc000", "jne 97f",
        "mov edi, 0xd8000000", "mov [rbx + 0x10], edi",
        "cmp dword ptr [rdi], -1", "jne 97f",
        "mov word ptr [rbx + 4], 6",
        "cmp dword ptr [rdi], 0", "jne 97f",
        puts!("found\\n"),
        // MSI-X on, but for the vector.
        "mov word ptr [rbx + 0x42], 0x8000", vector!("1"),
        driver!(),
        "xor ecx, ecx", "xor r9d, r9d",
        "2:", offer!(), "3: pause", "cmp word ptr [0x405002], cx", "jne 3b", "cmp ecx, 1000", "jb 2b",
        // Masked all the while, it is pending.
        "cmp dword ptr [rdi + 0x2000], 4", "jne 97f",
        puts!("pending\\n"),
        "sti",
        "mov dword ptr [rdi + 0x102c], 0", "6: hlt", "jmp 6b",
        idt!(),
        // The first interrupt is what was pending; then one comes with each of 101 frames, halted.
        "5: mov esi, 0xfee000b0", "mov dword ptr [rsi], 0",
        "inc r9d", "cmp r9d, 1", "jne 7f",
        puts!("interrupted\\n"),
        "cmp dword ptr [rdi + 0x2000], 0", "jne 97f",
        "7: cmp ecx, 1101", "jae 8f",
        offer!(), "mov esp, 0x300000", "sti", "7: hlt", "jmp 7b",
        "8: cmp r9d, 102", "jne 97f",
        puts!("by each\\n"),
        // Masked again, one more waits.
        "mov dword ptr [rdi + 0x102c], 1",
        offer!(), "9: pause", "cmp word ptr [0x405002], cx", "jne 9b",
        "sti", "nop", "cmp dword ptr [rdi + 0x2000], 4", "jne 97f",
        puts!("masked\\n"),
    );
    let vm = run!(code());
    assert_eq!(vm.console(), "found\npending\ninterrupted\nby each\nmasked\n", "{}", vm.state());
    let sent = vm.messages().contains("sent 1102 frames (66120 bytes, 0 lost)");
    assert!(sent == counts_frames(), "{}", vm.state());
    // Setting the device up takes a few dozen.
    let exits = mmio_exits(&vm);
    assert!(exits < 100, "{exits} MMIO exits\n{}", vm.state());
}

#[test]
fn a_bar_that_moves_takes_its_notifications_along() {
    if variant() == Variant::Vhost {
        skip!("the kernel looks for frames a moment longer, and finds the one that nobody notified it of");
    }
    guest!(code:
        ecam!(), "mov edi, 0xd0000000", "mov word ptr [rbx + 4], 6",
        driver!(), "xor ecx, ecx",
        offer!(), "2: pause", "cmp word ptr [0x405002], cx", "jne 2b",
        puts!("here\\n"),
        "mov edi, 0xdfffc000", "mov [rbx + 0x10], edi",
        offer!(), "3: pause", "cmp word ptr [0x405002], cx", "jne 3b",
        puts!("there\\n"),
        // Where it was, nobody listens any more.
        "mov esi, 0xd0000000", "cmp dword ptr [rsi], -1", "jne 97f",
        "mov eax, ecx", "and eax, 7", "mov word ptr [rax * 2 + 0x404004], 0", "inc ecx", "mov word ptr [0x404002], cx",
        "mov word ptr [rsi + 0x3004], 1",
        "mov eax, 20000", "9: dec eax", "jnz 9b", "cmp word ptr [0x405002], cx", "je 97f",
        "mov word ptr [rdi + 0x3004], 1", "9: pause", "cmp word ptr [0x405002], cx", "jne 9b",
        // Onto RAM (where the rings are), the IOAPIC, the ECAM, half out of the window, and nowhere: nothing answers.
        "mov dword ptr [0x400000], 0x12345678",
        "mov dword ptr [rbx + 0x10], 0x400000", "cmp dword ptr [0x400000], 0x12345678", "jne 97f",
        "mov dword ptr [0x403014], 0", "mov word ptr [0x403004], 1", "cmp word ptr [0x403004], 1", "jne 97f",
        "mov dword ptr [rbx + 0x10], 0xfec00000", "mov esi, 0xfec00000", "mov dword ptr [rsi], 1",
        "cmp dword ptr [rsi], 1", "jne 97f",
        "mov dword ptr [rbx + 0x10], 0xe0008000", "cmp dword ptr [rbx], 0x10411af4", "jne 97f",
        "mov dword ptr [rbx + 0x10], 0xcfffc000", "mov esi, 0xcfffc000", "cmp dword ptr [rsi], -1", "jne 97f",
        "mov dword ptr [rbx + 0x10], 0xffffc000", "mov dword ptr [rbx + 0x10], 0",
        puts!("no harm\\n"),
        // Off, on, and back: it works as before.
        "mov word ptr [rbx + 4], 0", "mov edi, 0xd0000000", "mov [rbx + 0x10], edi", "mov word ptr [rbx + 4], 6",
        "mov byte ptr [rdi + 20], 0", "mov dword ptr [0x404002], 0", "mov dword ptr [0x405002], 0",
        driver!(), "xor ecx, ecx",
        offer!(), "4: pause", "cmp word ptr [0x405002], cx", "jne 4b",
        puts!("back\\n"),
    );
    let vm = run!(code());
    assert_eq!(vm.console(), "here\nthere\nno harm\nback\n", "{}", vm.state());
    assert!(vm.messages().contains("sent 4 frames"), "{}", vm.state());
}

#[test]
fn the_bus_can_be_full_and_a_device_of_many_queues_has_as_many_vectors() {
    guest!(code:
        "mov ebx, 0xe0008000", "mov edi, 0xd0000000", "xor ecx, ecx",
        "2: cmp dword ptr [rbx], 0x10411af4", "jne 97f", "cmp [rbx + 0x10], edi", "jne 97f",
        "mov word ptr [rbx + 4], 6", "cmp word ptr [rdi + 18], 3", "jne 3f",
        "add ebx, 0x8000", "add edi, 0x4000", "inc ecx", "jmp 2b",
        // The last, of 64 pairs: the last of its vectors, and the notification of its last queue.
        "3: cmp ecx, 30", "jne 97f", "cmp word ptr [rdi + 18], 129", "jne 97f",
        "mov word ptr [rdi + 16], 130", "cmp word ptr [rdi + 16], 0xffff", "jne 97f",
        "mov word ptr [rdi + 16], 129", "cmp word ptr [rdi + 16], 129", "jne 97f",
        "mov dword ptr [rdi + 0x1810], 0xfee00000", "mov dword ptr [rdi + 0x1818], 0x40",
        "mov word ptr [rbx + 0x42], 0x8000", "mov dword ptr [rdi + 0x181c], 0",
        "mov word ptr [rdi + 0x3200], 128",
        puts!("full\\n"),
    );
    let netns = need!(Netns::new());
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, code());
    let mut args = vec![
        "-v",
        "run",
        "--rng",
        "off",
        "--balloon",
        "off",
        "--vsock",
        "off",
        "--kernel",
        kernel.to_str().unwrap(),
    ];
    args.extend(std::iter::repeat_n(["--net", "tap"], 30).flatten());
    args.extend(["--net", "tap,queues=64"]);
    let mut vm = Vm::start_in(&netns, &args);
    vm.ends_with(0, SOON);
    assert_eq!(vm.console(), "full\n", "{}", vm.state());
    assert!(!vm.messages().contains("stays masked"), "{}", vm.state());
}

#[test]
fn a_queue_interrupts_by_the_vector_that_it_has_and_by_none() {
    guest!(code:
        handler!(),
        // Vector 0x41 goes to the label 6.
        "mov esi, 0x200410", "lea rax, [rip + 6f]",
        "mov [rsi], ax", "mov word ptr [rsi + 2], 0x10", "mov word ptr [rsi + 4], 0x8e00",
        "shr rax, 16", "mov [rsi + 6], ax", "mov qword ptr [rsi + 8], 0",
        ecam!(), "mov edi, 0xd0000000", "mov word ptr [rbx + 4], 6", "mov word ptr [rbx + 0x42], 0x8000", vector!("0"),
        "mov dword ptr [rdi + 0x1010], 0xfee00000", "mov dword ptr [rdi + 0x1014], 0",
        "mov dword ptr [rdi + 0x1018], 0x41", "mov dword ptr [rdi + 0x101c], 0",
        driver!(), "xor ecx, ecx",
        offer!(), "sti", "2: hlt", "jmp 2b",
        idt!(),
        "5: mov esi, 0xfee000b0", "mov dword ptr [rsi], 0",
        puts!("two\\n"),
        // The queue takes the other one while it is at work.
        "mov word ptr [rdi + 22], 1", "mov word ptr [rdi + 26], 1",
        offer!(), "mov esp, 0x300000", "sti", "3: hlt", "jmp 3b",
        "6: mov esi, 0xfee000b0", "mov dword ptr [rsi], 0",
        puts!("one\\n"),
        // Without MSI-X, the ISR status says it.
        "mov word ptr [rbx + 0x42], 0", "mov al, [rdi + 0x400]", "mov al, [rdi + 0x400]", "test al, al", "jnz 97f",
        offer!(), "7: pause", "mov al, [rdi + 0x400]", "test al, 1", "jz 7b",
        puts!("polled\\n"),
        // And with it again, the vector.
        "mov word ptr [rbx + 0x42], 0x8000",
        "lea rax, [rip + 8f]", "mov esi, 0x200410", "mov [rsi], ax", "shr rax, 16", "mov [rsi + 6], ax",
        offer!(), "mov esp, 0x300000", "sti", "9: hlt", "jmp 9b",
        "8:", puts!("one again\\n"),
    );
    let vm = run!(code());
    assert_eq!(vm.console(), "two\none\npolled\none again\n", "{}", vm.state());
}

#[test]
fn a_driver_without_msi_x_is_interrupted_by_its_pin_until_it_reads_why() {
    guest!(code:
        handler!(),
        // The pin of slot 1 is on line 11: level-triggered, active low.
        "mov esi, 0xfec00000",
        "mov dword ptr [rsi], 0x26", "mov dword ptr [rsi + 0x10], 0xa040",
        "mov dword ptr [rsi], 0x27", "mov dword ptr [rsi + 0x10], 0",
        ecam!(), "cmp word ptr [rbx + 0x3c], 0x010b", "jne 97f",
        "mov edi, 0xd0000000", "mov word ptr [rbx + 4], 6",
        driver!(), "xor ecx, ecx", "xor r9d, r9d", "xor r10d, r10d", "sti",
        offer!(), "2: pause", "cmp r10d, 1", "jne 2b",
        // Once it has looked, there is an end.
        "mov r8d, 300", "3: in al, 0x80", "dec r8d", "jnz 3b", "mov r11d, r9d",
        "mov r8d, 300", "3: in al, 0x80", "dec r8d", "jnz 3b", "cmp r11d, r9d", "jne 97f",
        puts!("read\\n"),
        offer!(), "3: pause", "cmp r10d, 2", "jne 3b",
        puts!("again\\n"), "jmp 97f",
        idt!(),
        // Twice it does not look, and is interrupted again. One that comes for nothing is no harm: lines are shared.
        "5: inc r9d", "push rax", "cmp r9d, 3", "jb 6f",
        "mov al, [rbx + 6]", "mov ah, [rdi + 0x400]", "test ah, ah", "jz 6f",
        "cmp ah, 1", "jne 97f", "test al, 8", "jz 97f", "test byte ptr [rbx + 6], 8", "jnz 97f", "inc r10d",
        "6: mov eax, 0xfee000b0", "mov dword ptr [rax], 0", "pop rax", "iretq",
    );
    let vm = run!(code());
    assert_eq!(vm.console(), "read\nagain\n", "{}", vm.state());
    assert!(!vm.messages().contains("interrupt pin"), "{}", vm.state());
}

#[test]
fn the_old_interrupt_controllers_are_as_firmware_leaves_them_and_have_the_pins_too() {
    guest!(code:
        // Masked but for the cascade; level-triggered on the lines of pins.
        "in al, 0x21", "cmp al, 0xfb", "jne 97f", "in al, 0xa1", "cmp al, 0xff", "jne 97f",
        "mov edx, 0x4d0", "in al, dx", "cmp al, 0x20", "jne 97f", "inc edx", "in al, dx", "cmp al, 0x8c", "jne 97f",
        puts!("as firmware does\\n"),
        // Line 11 is vector 0x73.
        "mov esp, 0x300000", "mov esi, 0x200730", "lea rax, [rip + 5f]",
        "mov [rsi], ax", "mov word ptr [rsi + 2], 0x10", "mov word ptr [rsi + 4], 0x8e00",
        "shr rax, 16", "mov [rsi + 6], ax", "mov qword ptr [rsi + 8], 0",
        "lidt [rip + 4f]", "mov al, 0xf7", "out 0xa1, al",
        ecam!(), "mov edi, 0xd0000000", "mov word ptr [rbx + 4], 6",
        driver!(), "xor ecx, ecx", "sti",
        offer!(), "2: hlt", "jmp 2b",
        idt!(),
        "5: mov al, [rdi + 0x400]", "cmp al, 1", "jne 97f", "mov al, 0x20", "out 0xa0, al", "out 0x20, al",
        puts!("interrupted\\n"),
        "cmp ecx, 2", "je 97f", "mov esp, 0x300000", "sti", offer!(), "jmp 2b",
    );
    let vm = run!(code());
    assert_eq!(vm.console(), "as firmware does\ninterrupted\ninterrupted\n", "{}", vm.state());
}

#[test]
fn a_message_to_the_apic_id_255_reaches_who_has_it_and_no_other() {
    guest!(code:
        handler!(),
        // x2APIC mode, in which 255 is an ID as any other.
        "mov ecx, 0x1b", "rdmsr", "or eax, 0xc00", "wrmsr",
        ecam!(), "mov edi, 0xd0000000", "mov word ptr [rbx + 4], 6", "mov word ptr [rbx + 0x42], 0x8000", vector!("1"),
        "mov dword ptr [rdi + 0x1020], 0xfeeff000", "mov dword ptr [rdi + 0x102c], 0",
        driver!(), "xor ecx, ecx", "sti",
        offer!(), "2: pause", "cmp word ptr [0x405002], cx", "jne 2b",
        "mov r8d, 300", "3: in al, 0x80", "dec r8d", "jnz 3b",
        puts!("nobody\\n"),
        "mov dword ptr [rdi + 0x1020], 0xfee00000",
        offer!(), "6: hlt", "jmp 6b",
        idt!(),
        "5:", puts!("interrupted\\n"), "jmp 97f",
    );
    let vm = run!(code());
    assert_eq!(vm.console(), "nobody\ninterrupted\n", "{}", vm.state());
}

#[test]
fn a_ring_that_lies_stops_its_nic_until_the_reset() {
    guest!(code:
        ecam!(), "mov edi, 0xd0000000", "mov word ptr [rbx + 4], 6",
        driver!(),
        // More entries than the queue has.
        "mov word ptr [0x404002], 0x7000", "mov word ptr [rdi + 0x3004], 1",
        "2: pause", "test byte ptr [rdi + 20], 0x40", "jz 2b",
        puts!("needs reset\\n"),
        // What is right comes too late.
        "mov word ptr [0x404002], 1", "mov word ptr [rdi + 0x3004], 1",
        // An exit takes as long everywhere, unlike an instruction.
        "mov r8d, 300", "3: in al, 0x80", "dec r8d", "jnz 3b", "cmp word ptr [0x405002], 0", "jne 97f",
        "mov byte ptr [rdi + 20], 0", "mov dword ptr [0x404000], 0", "mov dword ptr [0x405000], 0",
        driver!(), "xor ecx, ecx",
        offer!(), "4: pause", "cmp word ptr [0x405002], cx", "jne 4b",
        puts!("works\\n"),
    );
    let vm = run!(code());
    assert_eq!(vm.console(), "needs reset\nworks\n", "{}", vm.state());
    assert!(vm.messages().contains("the driver broke its ring"), "{}", vm.state());
}

/// Assembly: the addresses of a queue of the device at rdi, each by one 64-bit write to rdi + `at` and `step` bytes on; the rings
/// are three pages from rsi on, which moves behind them.
macro_rules! places {
    ($at:literal, $step:literal) => {
        concat!(
            concat!("mov [rdi + ", $at, "], rsi\nadd esi, 0x1000\n"),
            concat!("mov [rdi + ", $at, " + ", $step, "], rsi\nadd esi, 0x1000\n"),
            concat!("mov [rdi + ", $at, " + 2 * ", $step, "], rsi\nadd esi, 0x1000\n"),
        )
    };
}

#[test]
fn a_queue_is_placed_by_64_bit_writes_too() {
    guest!(pci:
        ecam!(), "mov edi, 0xd0000000", "mov word ptr [rbx + 4], 6",
        "mov byte ptr [rdi + 20], 0", "mov byte ptr [rdi + 20], 1", "mov byte ptr [rdi + 20], 3",
        "mov dword ptr [rdi + 8], 1", "mov dword ptr [rdi + 12], 1", "mov byte ptr [rdi + 20], 11",
        "mov esi, 0x400000", "xor ecx, ecx",
        "2: mov [rdi + 22], cx", "mov word ptr [rdi + 24], 8", places!("32", "8"),
        "mov word ptr [rdi + 28], 1", "inc ecx", "cmp ecx, 2", "jb 2b",
        "mov byte ptr [rdi + 20], 15", "cmp byte ptr [rdi + 20], 15", "jne 97f",
        puts!("runs\\n"),
    );
    guest!(mmio:
        "mov edi, 0xc0000000",
        "mov dword ptr [rdi + 0x70], 0", "mov dword ptr [rdi + 0x70], 1", "mov dword ptr [rdi + 0x70], 3",
        "mov dword ptr [rdi + 0x24], 1", "mov dword ptr [rdi + 0x20], 1", "mov dword ptr [rdi + 0x70], 11",
        "mov esi, 0x400000", "xor ecx, ecx",
        "2: mov [rdi + 0x30], ecx", "mov dword ptr [rdi + 0x38], 8", places!("0x80", "16"),
        "mov dword ptr [rdi + 0x44], 1", "inc ecx", "cmp ecx, 2", "jb 2b",
        "mov dword ptr [rdi + 0x70], 15", "cmp dword ptr [rdi + 0x70], 15", "jne 97f",
        puts!("runs\\n"),
    );
    for (transport, code) in [("pci", pci()), ("mmio", mmio())] {
        let netns = need!(Netns::new());
        let dir = TempDir::new();
        let kernel = handmade::kernel(&dir, code);
        let kernel = kernel.to_str().unwrap();
        let args = ["run", "--transport", transport, "--net", "tap", "--kernel", kernel];
        let mut vm = Vm::start_in(&netns, &args);
        vm.ends_with(0, SOON);
        assert_eq!(vm.console(), "runs\n", "{transport}: {}", vm.state());
    }
}

#[test]
fn interrupt_lines_work_beside_messages() {
    guest!(code:
        handler!(),
        ecam!(), "mov edi, 0xd0000000", "mov word ptr [rbx + 4], 6", "mov word ptr [rbx + 0x42], 0x8000", vector!("0"),
        // The serial port's line, edge by edge, then its "transmitter empty" interrupt.
        "mov esi, 0xfec00000",
        "mov dword ptr [rsi], 0x18", "mov dword ptr [rsi + 0x10], 0x40",
        "mov dword ptr [rsi], 0x19", "mov dword ptr [rsi + 0x10], 0",
        "sti",
        "mov edx, 0x3f9", "mov al, 2", "out dx, al",
        "2: hlt", "jmp 2b",
        idt!(),
        "5:", puts!("interrupted\\n"), "jmp 97f",
    );
    let vm = run!(code());
    assert_eq!(vm.console(), "interrupted\n", "{}", vm.state());
}

#[test]
fn nonsense_in_configuration_space_and_bar_stops_nothing() {
    guest!(code:
        ecam!(),
        // All of configuration space, four values, four widths; the BAR ends up anywhere and MSI-X on and off.
        "mov r8d, 0xffffffff",
        "7: xor ecx, ecx",
        "2: mov [rbx + rcx], r8d", "mov [rbx + rcx], r8w", "mov [rbx + rcx], r8b", "mov [rbx + rcx], r8",
        "mov eax, [rbx + rcx]", "mov ax, [rbx + rcx]", "mov al, [rbx + rcx]", "mov rax, [rbx + rcx]",
        "add ecx, 2", "cmp ecx, 0x110", "jb 2b",
        "shr r8d, 9", "jnz 7b",
        "cmp dword ptr [rbx], 0x10411af4", "jne 97f",
        puts!("configuration\\n"),
        // Every register of the BAR, with MSI-X on: absurd messages, vectors, queues.
        "mov edi, 0xd0000000", "mov [rbx + 0x10], edi", "mov word ptr [rbx + 4], 6", "mov word ptr [rbx + 0x42], 0x8000",
        "mov r8d, 0xffffffff",
        "8: xor ecx, ecx",
        "3: mov [rdi + rcx], r8d", "mov [rdi + rcx], r8w", "mov [rdi + rcx], r8b", "mov [rdi + rcx], r8",
        "mov eax, [rdi + rcx]", "mov ax, [rdi + rcx]", "mov al, [rdi + rcx]", "mov rax, [rdi + rcx]",
        "add ecx, 4", "cmp ecx, 0x40", "jne 4f", "mov ecx, 0x1000", "4: cmp ecx, 0x1050", "jne 5f", "mov ecx, 0x2ff8",
        "5: cmp ecx, 0x3020", "jb 3b",
        "shr r8d, 17", "jnz 8b",
        // An absurd vector is none.
        "mov word ptr [rdi + 16], 4", "cmp word ptr [rdi + 16], 0xffff", "jne 97f",
        "mov word ptr [rdi + 16], 3", "cmp word ptr [rdi + 16], 3", "jne 97f",
        puts!("registers\\n"),
        driver!(), "xor ecx, ecx",
        offer!(), "6: pause", "cmp word ptr [0x405002], cx", "jne 6b",
        puts!("works\\n"),
    );
    let vm = run!(code());
    assert_eq!(vm.console(), "configuration\nregisters\nworks\n", "{}", vm.state());
}

/// Stock Linux guests.
mod stock {
    use super::*;
    use harness::stock;
    use harness::traffic::Noise;

    const COMMAND: Duration = Duration::from_secs(60);
    const TRANSFER: Duration = Duration::from_secs(240);

    /// The kernel's threads that carry frames for `vm`: where each may run, and for how many ticks it did.
    fn carriers(vm: &Vm) -> Vec<(String, u64)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", vm.machine_pid())).expect("it runs");
        let read =
            |task: &std::path::Path, file| std::fs::read_to_string(task.join(file)).unwrap_or_default();
        let carriers =
            tasks.map(|task| task.unwrap().path()).filter(|task| read(task, "comm").starts_with("vhost-"));
        let of = |task: std::path::PathBuf| {
            let status = read(&task, "status");
            let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            // utime and stime, counted from the state behind the name in parentheses.
            let stat = read(&task, "stat");
            let ticks = stat.rsplit(") ").next().unwrap().split(' ').skip(11).take(2);
            (cpus.unwrap().trim().to_owned(), ticks.map(|ticks| ticks.parse::<u64>().unwrap()).sum())
        };
        carriers.map(of).collect()
    }

    #[test]
    fn the_kernel_s_carrier_is_where_and_looks_about_as_long_as_it_is_told() {
        if !std::path::Path::new("/dev/vhost-net").exists() {
            skip!("there is no /dev/vhost-net");
        }
        // A frame, and some milliseconds of rest; over and over.
        guest!(code:
            ecam!(), "mov edi, 0xd0000000", "mov word ptr [rbx + 4], 6",
            driver!(), "xor ecx, ecx",
            puts!("running\\n"),
            "2:", offer!(), "3: pause", "cmp word ptr [0x405002], cx", "jne 3b",
            "mov eax, 300000", "4: dec eax", "jnz 4b", "jmp 2b",
        );
        let netns = need!(Netns::new());
        let before = netns.state();
        let dir = TempDir::new();
        let kernel = handmade::kernel(&dir, code());
        let ticks = [("affinity=1", "1"), ("poll=10000", "0-1")].map(|(key, cpus)| {
            let net = format!("tap,vhost=on,{key}");
            let mut vm =
                Vm::start_in(&netns, &["-v", "run", "--net", &net, "--kernel", kernel.to_str().unwrap()]);
            vm.expect("running\n", SOON);
            vm.expect_message("carried by vhost-net", SOON);
            std::thread::sleep(Duration::from_secs(5));
            let carriers = carriers(&vm);
            vm.signal(rustix::process::Signal::TERM);
            vm.ends_with(0, SOON);
            match &carriers[..] {
                [(allowed, ticks)] if allowed == cpus => *ticks,
                _ => panic!("{carriers:?}\n{}", vm.state()),
            }
        });
        assert!(ticks[1] > 2 * ticks[0].max(10), "{ticks:?} ticks, the second time with poll=10000");
        netns.is_as(&before);
    }

    #[test]
    fn every_kernel_gives_each_queue_its_vector_and_moves_them_under_traffic() {
        let mut kernels = need!(stock::debian());
        kernels.extend(stock::slim());
        for kernel in &kernels {
            let netns = need!(Netns::new());
            let net = ["--cpus", "2", "--net", "tap,host=172.31.0.1/24,queues=2"];
            let mut vm = kernel.boot(&netns, "wirevm.dhcp", &net);
            let lines = vm.sh("grep virtio0 /proc/interrupts", COMMAND);
            for name in ["config", "input.0", "output.0", "input.1", "output.1"] {
                let line = lines.lines().find(|line| line.ends_with(&format!("virtio0-{name}")));
                assert!(line.is_some_and(|line| line.contains("PCI-MSI")), "{name}: {lines}");
            }
            // From one vCPU to the other and back, each time masked, changed and unmasked by the kernel.
            vm.sh(
                "irqs=$(sed -n 's/^ *\\([0-9]*\\):.*virtio0-[io].*/\\1/p' /proc/interrupts); \
                 (while sleep 0.2; do for cpu in 1 2; do for irq in $irqs; do echo $cpu >/proc/irq/$irq/smp_affinity; \
                 done; done; done) & echo $! >/tmp/mover",
                COMMAND,
            );
            let noise = Noise::serve(&netns, [172, 31, 0, 1].into(), 8 << 20);
            vm.sh(&noise.guest_commands(), TRANSFER);
            noise.check().unwrap_or_else(|why| panic!("{why}\n{}", vm.state()));
            vm.sh("kill $(cat /tmp/mover); ping -c 3 -i 0.2 -W 10 172.31.0.1", COMMAND);
            vm.type_in("poweroff\n");
            vm.ends_with(0, COMMAND);
        }
    }

    #[test]
    fn a_guest_without_msi_x_or_acpi_or_the_ioapic_has_its_lease() {
        have_their_lease(&[("pci=nomsi", "IO-APIC"), ("acpi=off", "XT-PIC"), ("noapic pci=nomsi", "XT-PIC")]);
    }

    #[test]
    fn a_guest_that_takes_its_interrupts_by_the_pics_has_its_lease() {
        have_their_lease(&[("noapic", "XT-PIC"), ("acpi=noirq", "XT-PIC"), ("nolapic nosmp", "XT-PIC")]);
    }

    /// Debian's newest kernel with these words on its command line and interrupts from there.
    #[track_caller]
    fn have_their_lease(guests: &[(&str, &str)]) {
        let kernel = need!(stock::newest());
        for &(words, line) in guests {
            let netns = need!(Netns::new());
            let mut vm =
                kernel.boot(&netns, &format!("wirevm.dhcp {words}"), &["--net", "tap,host=172.31.0.1/24"]);
            let address = vm.sh("ip -4 -o addr show dev eth0", COMMAND);
            assert!(address.contains("172.31.0.2/24"), "{words}: {address}\n{}", vm.state());
            vm.sh("ping -c 3 -i 0.2 -W 10 172.31.0.1", COMMAND);
            let lines = vm.sh("grep -E 'ttyS0|virtio0' /proc/interrupts", COMMAND);
            assert!(lines.contains(line), "{words}: {lines}");
            if words.contains("nomsi") {
                assert!(lines.lines().any(|l| l.contains("virtio0") && l.contains(line)), "{words}: {lines}");
            }
            // The clock of a PC, where kvmclock tells no time of day.
            let rtc = vm.sh("cat /sys/class/rtc/rtc0/since_epoch", COMMAND);
            let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
            let rtc: u64 = rtc.trim().parse().unwrap_or_else(|_| panic!("{rtc:?}"));
            assert!(now.abs_diff(rtc) < 3600, "{rtc} at {now}");
            // Without ACPI there is no power off.
            vm.type_in("reboot -f\n");
            vm.ends_with(0, COMMAND);
        }
    }
}
