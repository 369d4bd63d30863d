//! A guest of nothing but a virtio-net driver that polls, for a KVM on which Linux does not run: entered by PVH, it maps memory one to
//! one and runs in ring 3, which such a KVM executes and does not emulate.
//!
//! What it does is in the frames that it gets, of the type [`ASKED`]: see [`op`]. All others it only counts.
//!
//! `native.rs` has it compiled by rustc alone, and linked by `guest.ld`.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::hint::spin_loop;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};
use core::sync::atomic::{Ordering, compiler_fence, fence};

/// The type of the frames that ask, and of the answers; and of those that only take room. Both are for experiments (IEEE 802).
const ASKED: [u8; 2] = [0x88, 0xb5];
const FILLER: [u8; 2] = [0x88, 0xb6];
/// The first byte behind the type says what is wanted.
mod op {
    /// The frame comes back, its addresses exchanged, and at 16 how many frames have come before it.
    pub const ECHO: u8 = 1;
    /// At 16, how many frames to send, and at 20, of how many bytes; then it comes back.
    pub const SEND: u8 = 2;
}

// PVH: the note that names the entry; 32-bit mode, flat segments, no paging.
global_asm!(
    ".pushsection .note.pvh, \"a\", @note",
    ".balign 4",
    ".long 4, 4, 18",
    ".asciz \"Xen\"",
    ".long begin",
    ".popsection",
    ".code32",
    ".globl begin",
    "begin:",
    "cli",
    "mov esp, offset {stack} + 0x3ff8",
    "mov eax, offset {tables} + 0x1007",
    "mov [{tables}], eax",
    // The first 4 GiB, by pages of 2 MiB.
    "xor ecx, ecx",
    "2: mov eax, ecx",
    "shl eax, 12",
    "add eax, offset {tables} + 0x2007",
    "mov [{tables} + 0x1000 + ecx * 8], eax",
    "inc ecx",
    "cmp ecx, 4",
    "jb 2b",
    "xor ecx, ecx",
    "2: mov eax, ecx",
    "shl eax, 21",
    "or eax, 0x87",
    "mov [{tables} + 0x2000 + ecx * 8], eax",
    "inc ecx",
    "cmp ecx, 2048",
    "jb 2b",
    "mov eax, offset {tables}",
    "mov cr3, eax",
    // PAE, and what SSE takes.
    "mov eax, cr4",
    "or eax, 0x620",
    "mov cr4, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    "mov eax, cr0",
    "and eax, 0xfffffff3",
    "or eax, 0x80000003",
    "mov cr0, eax",
    "lgdt [table_of_segments]",
    "push 0x08",
    "mov eax, offset long_mode",
    "push eax",
    "retf",
    "table_of_segments: .word 55",
    ".long segments",
    ".balign 8",
    // Nothing; ring 0's code and data; ring 3's data and code.
    "segments: .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff, 0x00cff2000000ffff, 0x00affa000000ffff",
    "task: .quad 0, 0",
    ".code64",
    "long_mode: mov eax, 0x1b",
    "mov ds, eax",
    "mov es, eax",
    // A task whose map of ports denies none, for ring 3.
    "mov eax, offset {task}",
    "mov word ptr [task], 0x2068",
    "mov [task + 2], ax",
    "shr eax, 16",
    "mov [task + 4], al",
    "mov [task + 7], ah",
    "mov byte ptr [task + 5], 0x89",
    "mov word ptr [{task} + 102], 104",
    "mov byte ptr [{task} + 0x2068], 0xff",
    "mov eax, 0x28",
    "ltr ax",
    "push 0x1b",
    "push offset {stack} + 0x3ff8",
    "push 2",
    "push 0x23",
    "push offset {main}",
    "iretq",
    tables = sym TABLES,
    stack = sym STACK,
    task = sym TASK,
    main = sym main,
);

#[repr(C, align(4096))]
struct Pages<const BYTES: usize>([u8; BYTES]);

static mut TABLES: Pages<0x6000> = Pages([0; 0x6000]);
/// Its state, and a bit for each port.
static mut TASK: Pages<0x3000> = Pages([0; 0x3000]);
static mut STACK: Pages<0x4000> = Pages([0; 0x4000]);

/// Entries of a ring, or what the device has, if that is less.
const RING: u16 = 256;
/// As Linux's for frames up to 1514 bytes.
const ROOM: usize = 1536;
const HEADER: usize = 12;

static mut RX: Rings = Rings::NEW;
static mut TX: Rings = Rings::NEW;
static mut RX_DATA: Pages<{ RING as usize * ROOM }> = Pages([0; RING as usize * ROOM]);
static mut TX_DATA: Pages<{ RING as usize * ROOM }> = Pages([0; RING as usize * ROOM]);

/// A split virtqueue (§2.7).
#[repr(C, align(4096))]
struct Rings {
    table: [Descriptor; RING as usize],
    /// Flags, index, the ring, used_event.
    avail: [u16; RING as usize + 3],
    used: Used,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

#[repr(C, align(4096))]
struct Used {
    flags: u16,
    index: u16,
    ring: [[u32; 2]; RING as usize],
    avail_event: u16,
}

impl Rings {
    const NEW: Self = Self {
        table: [Descriptor { addr: 0, len: 0, flags: 0, next: 0 }; RING as usize],
        avail: [0; RING as usize + 3],
        used: Used { flags: 0, index: 0, ring: [[0; 2]; RING as usize], avail_event: 0 },
    };
}

/// The driver's end of a queue. The device gives back in the order of the ring.
struct Queue {
    rings: *mut Rings,
    data: *mut u8,
    size: u16,
    /// How many chains were offered, shown, and seen used.
    offered: u16,
    shown: u16,
    seen: u16,
    number: u16,
    notify: *mut u16,
    by_index: bool,
}

impl Queue {
    fn place(&self, id: u16) -> *mut u8 {
        // SAFETY: there is memory for as many as the ring has entries.
        unsafe { self.data.add(usize::from(id) * ROOM) }
    }

    /// Offers the chain `id`, of so many bytes.
    fn offer(&mut self, id: u16, len: usize, writable: bool) {
        let at = usize::from(self.offered & (self.size - 1));
        let place = self.place(id) as u64;
        let descriptor = Descriptor { addr: place, len: len as u32, flags: u16::from(writable) * 2, next: 0 };
        // SAFETY: both indexes are below the size of the ring; the device reads them once they are shown.
        unsafe {
            write_volatile(&raw mut (*self.rings).table[usize::from(id)], descriptor);
            write_volatile(&raw mut (*self.rings).avail[2 + at], id);
        }
        self.offered = self.offered.wrapping_add(1);
    }

    /// Shows what was offered, and kicks where the device asks for that (§2.7.13.4).
    fn show(&mut self) {
        if self.offered == self.shown {
            return;
        }
        compiler_fence(Ordering::Release);
        // SAFETY: the ring is ours; notify is a register of the device.
        unsafe {
            write_volatile(&raw mut (*self.rings).avail[1], self.offered);
            fence(Ordering::SeqCst);
            let wanted = if self.by_index {
                let event = (&raw const (*self.rings).used.ring).cast::<u8>().add(8 * usize::from(self.size));
                let event = read_volatile(event.cast::<u16>());
                self.offered.wrapping_sub(event).wrapping_sub(1) < self.offered.wrapping_sub(self.shown)
            } else {
                read_volatile(&raw const (*self.rings).used.flags) & 1 == 0
            };
            self.shown = self.offered;
            if wanted {
                write_volatile(self.notify, self.number);
            }
        }
    }

    /// The next chain that the device is done with, and how much it wrote.
    fn reap(&mut self) -> Option<(u16, usize)> {
        // SAFETY: the index is below the size of the ring.
        let [id, len] = unsafe {
            if read_volatile(&raw const (*self.rings).used.index) == self.seen {
                return None;
            }
            compiler_fence(Ordering::Acquire);
            read_volatile(&raw const (*self.rings).used.ring[usize::from(self.seen & (self.size - 1))])
        };
        self.seen = self.seen.wrapping_add(1);
        Some((id as u16 & (self.size - 1), len as usize))
    }

    /// A chain that may be offered, once there is one.
    fn free(&mut self) -> u16 {
        while self.offered.wrapping_sub(self.seen) >= self.size {
            self.show();
            if self.reap().is_none() {
                spin_loop();
            }
        }
        self.offered & (self.size - 1)
    }
}

/// Reads or writes a register of the device.
unsafe fn get<T>(base: u64, at: u64) -> T {
    unsafe { read_volatile((base + at) as *const T) }
}

unsafe fn set<T>(base: u64, at: u64, value: T) {
    unsafe { write_volatile((base + at) as *mut T, value) }
}

/// Configuration space by ports.
struct Pci(u32);

impl Pci {
    fn select(&self, at: u8) {
        let address = 0x8000_0000 | self.0 << 11 | u32::from(at & !3);
        unsafe { asm!("out dx, eax", in("dx") 0xcf8_u16, in("eax") address) }
    }

    fn read(&self, at: u8) -> u32 {
        let value: u32;
        self.select(at);
        unsafe { asm!("in eax, dx", in("dx") 0xcfc_u16, out("eax") value) }
        value >> (8 * (at & 3))
    }

    /// The registers beside it stay as they are: QEMU takes a write of 32 bits to clear what it shows in the status.
    fn write16(&self, at: u8, value: u16) {
        self.select(at);
        unsafe { asm!("out dx, ax", in("dx") 0xcfc_u16 + u16::from(at & 2), in("ax") value) }
    }

    fn bar(&self, number: u8) -> u64 {
        let low = self.read(0x10 + 4 * number);
        let high = if low & 6 == 4 { self.read(0x14 + 4 * number) } else { 0 };
        u64::from(high) << 32 | u64::from(low & !0xf)
    }
}

fn say(text: &str) {
    for byte in text.bytes() {
        unsafe { asm!("out dx, al", in("dx") 0x3f8_u16, in("al") byte) }
    }
}

fn end(why: &str) -> ! {
    say(why);
    loop {
        spin_loop();
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    end("panic\n")
}

// What the compiler and the core library expect of an operating system's.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    unsafe { asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _) }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    unsafe { asm!("rep stosb", inout("rdi") to => _, inout("rcx") len => _, in("al") value as u8) }
    to
}

extern "C" fn main() -> ! {
    let nic = (0..32).map(Pci).find(|slot| {
        let id = slot.read(0);
        id & 0xffff == 0x1af4 && matches!(id >> 16, 0x1000 | 0x1041)
    });
    let Some(nic) = nic else { end("no NIC\n") };
    // Memory and bus mastering.
    nic.write16(4, 6);
    let (mut common, mut notify, mut factor) = (0, 0, 0);
    let mut at = nic.read(0x34) as u8;
    while at != 0 {
        let head = nic.read(at);
        if head as u8 == 9 {
            let where_ = nic.bar(nic.read(at + 4) as u8) + u64::from(nic.read(at + 8));
            match (head >> 24) as u8 {
                1 => common = where_,
                2 => (notify, factor) = (where_, u64::from(nic.read(at + 16))),
                _ => {}
            }
        }
        at = (head >> 8) as u8;
    }
    if common == 0 || notify == 0 {
        end("the NIC has no registers\n");
    }
    if (common | notify) >> 32 != 0 {
        end("the NIC's registers are above 4 GiB\n");
    }
    // SAFETY: the registers of §4.1.4.3.
    let [mut rx, mut tx] = unsafe {
        for status in [0_u8, 1, 3] {
            set(common, 20, status);
        }
        let word = |select: u32| {
            set(common, 0, select);
            get::<u32>(common, 4)
        };
        // CSUM, GUEST_CSUM, MRG_RXBUF, EVENT_IDX; segments, too, where a frame may take several buffers. Then VERSION_1.
        let offered = word(0);
        let wanted = 1 << 0 | 1 << 1 | 1 << 15 | 1 << 29;
        let segments = if offered & 1 << 15 != 0 { 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12 } else { 0 };
        let accepted = offered & (wanted | segments);
        for (select, bits) in [(0_u32, accepted), (1, word(1) & 1)] {
            set(common, 8, select);
            set(common, 12, bits);
        }
        set(common, 20, 11_u8);
        if get::<u8>(common, 20) & 8 == 0 {
            end("the NIC takes no features\n");
        }
        let by_index = accepted & 1 << 29 != 0;
        let queue = |number: u16, rings: *mut Rings, data: *mut u8| {
            set(common, 22, number);
            let size = get::<u16>(common, 24).min(RING);
            set(common, 24, size);
            let fields = [
                addr_of!((*rings).table) as u64,
                addr_of!((*rings).avail) as u64,
                addr_of!((*rings).used) as u64,
            ];
            for (field, address) in fields.into_iter().enumerate() {
                set(common, 32 + 8 * field as u64, address as u32);
                set(common, 36 + 8 * field as u64, (address >> 32) as u32);
            }
            let notify = (notify + factor * u64::from(get::<u16>(common, 30))) as *mut u16;
            set(common, 28, 1_u16);
            // No interrupts: by the flag, or by an index that is far away but once in 65,536 (§2.7.7).
            write_volatile(&raw mut (*rings).avail[0], 1);
            Queue { rings, data, size, offered: 0, shown: 0, seen: 0, number, notify, by_index }
        };
        let queues = [
            queue(0, addr_of_mut!(RX), addr_of_mut!(RX_DATA).cast()),
            queue(1, addr_of_mut!(TX), addr_of_mut!(TX_DATA).cast()),
        ];
        set(common, 20, 15_u8);
        queues
    };
    for id in 0..rx.size {
        rx.offer(id, ROOM, true);
    }
    rx.show();
    say("ready\n");
    run(&mut rx, &mut tx)
}

fn run(rx: &mut Queue, tx: &mut Queue) -> ! {
    let mut came = 0_u32;
    loop {
        // As Linux does: so many at most before room is shown.
        let mut took = 0;
        while took < 64
            && let Some((id, len)) = rx.reap()
        {
            // SAFETY: the device has written it and is done with it.
            let frame = unsafe { core::slice::from_raw_parts_mut(rx.place(id).add(HEADER), ROOM - HEADER) };
            if len >= HEADER + 24 && frame[12..14] == ASKED {
                answer(tx, &mut frame[..len - HEADER], came);
            }
            rx.offer(id, ROOM, true);
            came = came.wrapping_add(1);
            took += 1;
        }
        rx.show();
        if took == 0 {
            spin_loop();
        }
    }
}

fn answer(tx: &mut Queue, frame: &mut [u8], came: u32) {
    if frame[14] == op::SEND {
        let number = |at: usize| u32::from_le_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
        let (count, len) = (number(16), (number(20) as usize).clamp(60, ROOM - HEADER));
        for _ in 0..count {
            let id = tx.free();
            let data = tx.place(id);
            // SAFETY: the place is free. What is behind the type stays as it is.
            unsafe {
                core::ptr::write_bytes(data, 0, HEADER);
                let start = [2, 0, 0, 0, 0xaa, 0xaa, 2, 0, 0, 0, 0xbb, 0xbb, FILLER[0], FILLER[1]];
                core::ptr::copy_nonoverlapping(start.as_ptr(), data.add(HEADER), start.len());
            }
            tx.offer(id, HEADER + len, false);
            tx.show();
        }
    } else if frame[14] != op::ECHO {
        return;
    }
    let id = tx.free();
    let data = tx.place(id);
    let len = frame.len().min(ROOM - HEADER);
    // SAFETY: the place is free, and has room for a frame.
    unsafe {
        core::ptr::write_bytes(data, 0, HEADER);
        let data = core::slice::from_raw_parts_mut(data.add(HEADER), len);
        data.copy_from_slice(&frame[..len]);
        data[..6].copy_from_slice(&frame[6..12]);
        data[6..12].copy_from_slice(&frame[..6]);
        data[16..20].copy_from_slice(&came.to_le_bytes());
    }
    tx.offer(id, HEADER + len, false);
    tx.show();
}
