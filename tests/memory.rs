//! Guest memory of each kind that `--memory` knows, as the kernel shows it, and the milestones of the start.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use harness::{TempDir, Vm, guest, handmade, puts, skip, wirevm};

/// What a hand-made guest may take, also where KVM emulates each of its instructions on a busy machine.
const SOON: Duration = Duration::from_secs(30);

guest!(waits: puts!("running\\n"), "2: hlt", "jmp 2b");
guest!(ends: puts!("hello\\n"));

/// One mapping of a process, of `/proc/PID/smaps` (proc_pid_smaps(5)).
#[derive(Debug)]
struct Mapping {
    permissions: String,
    path: String,
    size_kib: u64,
    page_kib: u64,
    flags: Vec<String>,
}

/// The mappings of `size_kib` of a guest that runs with this `--memory`; and what wirevm has said until then.
#[track_caller]
fn mappings(memory: &str, size_kib: u64) -> (Vec<Mapping>, String) {
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, waits());
    let mut vm = Vm::start(wirevm().args(["run", "--memory", memory, "--kernel"]).arg(kernel));
    vm.expect("running\n", SOON);
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", vm.machine_pid())).expect("the process runs");
    let mut all: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let mut kib = || words.next().and_then(|number| number.parse().ok()).expect("a number of KiB");
        match (first, all.last_mut()) {
            ("Size:", Some(mapping)) => mapping.size_kib = kib(),
            ("KernelPageSize:", Some(mapping)) => mapping.page_kib = kib(),
            ("VmFlags:", Some(mapping)) => mapping.flags = words.map(str::to_owned).collect(),
            (range, _) if !range.ends_with(':') => all.push(Mapping {
                permissions: words.next().unwrap_or_default().into(),
                path: words.nth(3).unwrap_or_default().into(),
                size_kib: 0,
                page_kib: 0,
                flags: Vec::new(),
            }),
            _ => {}
        }
    }
    all.retain(|mapping| mapping.size_kib == size_kib);
    (all, vm.messages())
}

impl Mapping {
    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|has| has == flag)
    }
}

/// The one mapping of the guest's memory.
#[track_caller]
fn mapping(memory: &str, size_kib: u64) -> (Mapping, String) {
    let (mut found, messages) = mappings(memory, size_kib);
    assert_eq!(found.len(), 1, "{memory}: {found:?}\n{messages}");
    (found.remove(0), messages)
}

#[test]
fn memory_is_private_unless_it_is_to_be_shared() {
    let (private, _) = mapping("96M", 96 << 10);
    assert_eq!((private.permissions.as_str(), private.path.as_str()), ("rw-p", ""));
    assert!(!private.has("mg") && !private.has("ht"), "{private:?}");
    let (shared, messages) = mapping("96M,shared=on", 96 << 10);
    assert_eq!((shared.permissions.as_str(), shared.path.as_str()), ("rw-s", "/memfd:wirevm"));
    assert_eq!(messages, "");
}

#[test]
fn shared_memory_is_one_file_also_around_the_hole_and_keeps_its_size() {
    guest!(code:
        "mov edi, 0xbffffff8", "mov rax, 0x1122334455667788", "mov [rdi], rax",
        // The page directory of the fourth GiB is at 0xe000; its entry for 0xd0000000 leads to 4 GiB then.
        "mov rcx, 0x100000083", "mov [0xe400], rcx", "mov edi, 0xd0000000", "invlpg [rdi]",
        "inc rax", "mov [rdi], rax",
        puts!("running\\n"), "2: hlt", "jmp 2b",
    );
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, code());
    let mut vm = Vm::start(wirevm().args(["run", "--memory", "3584M,shared=on", "--kernel"]).arg(kernel));
    vm.expect("running\n", SOON);
    let file = memory_files(vm.machine_pid());
    assert_eq!(file.len(), 1, "{file:?}");
    let file = fs::OpenOptions::new().read(true).write(true).open(&file[0]).expect("our child's file");
    assert_eq!(file.metadata().unwrap().len(), 3584 << 20);
    for (offset, value) in [(0xbfff_fff8, 0x1122_3344_5566_7788), (0xc000_0000, 0x1122_3344_5566_7789)] {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, offset).unwrap();
        assert_eq!(
            u64::from_le_bytes(bytes),
            value,
            "what the guest wrote is not in the file at {offset:#x}"
        );
    }
    for len in [0, 3585 << 20] {
        assert!(file.set_len(len).is_err(), "the file lets itself be made {len} bytes");
    }
}

#[test]
fn a_guest_may_have_more_memory_than_the_host_and_takes_what_it_touches() {
    // Finds the end of its memory in the zero page's e820 map (Linux Documentation/arch/x86/zero-page.rst), maps the last
    // 2 MiB at 0xd0000000, as above, and writes there and in the middle of the first 3 GiB.
    guest!(code:
        "movzx ecx, byte ptr [rsi + 0x1e8]", "lea rbx, [rsi + 0x2d0]", "xor r8, r8",
        "2: cmp dword ptr [rbx + 16], 1", "jne 3f",
        "mov rax, [rbx]", "add rax, [rbx + 8]", "cmp rax, r8", "cmova r8, rax",
        "3: add rbx, 20", "dec ecx", "jnz 2b",
        "sub r8, 0x200000", "and r8, -0x200000", "or r8, 0x83", "mov [0xe400], r8",
        "mov edi, 0xd0000000", "invlpg [rdi]",
        "mov rax, 0x1122334455667788", "mov [rdi], rax", "mov esi, 0x60000000", "mov [rsi], rax",
        "cmp [rdi], rax", "jne 97f",
        puts!("running\\n"), "2: hlt", "jmp 2b",
    );
    let kib = |file: &str, name: &str| -> u64 {
        let text = fs::read_to_string(file).expect("a file of /proc");
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line of that name");
        line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number of KiB")
    };
    let gib = (kib("/proc/meminfo", "MemTotal:") >> 20) * 3 / 2 + 5;
    if gib > 1023 {
        skip!("no guest has more memory than this host");
    }
    if fs::read_to_string("/proc/sys/vm/overcommit_memory").is_ok_and(|mode| mode.trim() == "2") {
        skip!("this host promises no more memory than it has (vm.overcommit_memory)");
    }
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, code());
    let mut vm = Vm::start(wirevm().args(["run", "--memory", &format!("{gib}G"), "--kernel"]).arg(kernel));
    vm.expect("running\n", SOON);
    let resident = kib(&format!("/proc/{}/status", vm.machine_pid()), "VmRSS:");
    assert!(resident < 128 << 10, "{resident} KiB of {gib} GiB are resident");
}

/// The descriptors of a process that are files in memory.
fn memory_files(pid: u32) -> Vec<PathBuf> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs");
    let is_ours =
        |path: &PathBuf| fs::read_link(path).is_ok_and(|to| to.starts_with("/memfd:wirevm (deleted)"));
    fds.map(|entry| entry.unwrap().path()).filter(is_ours).collect()
}

#[test]
fn mergeable_memory_is_shown_to_ksm() {
    let Ok(ksm) = fs::read_to_string("/sys/kernel/mm/ksm/run") else { skip!("this kernel has no KSM") };
    let (merged, messages) = mapping("96M,mergeable=on", 96 << 10);
    assert!(merged.has("mg"), "{merged:?}");
    assert_eq!(merged.permissions, "rw-p");
    assert_eq!(messages.contains("nothing is merged while KSM is off"), ksm.trim() != "1", "{messages}");
}

/// The pool of huge pages of 2 MiB; dropped, it has as many as before.
struct Pool {
    before: u64,
}

impl Pool {
    const DIR: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

    fn read(name: &str) -> Option<u64> {
        fs::read_to_string(Path::new(Self::DIR).join(name)).ok()?.trim().parse().ok()
    }

    fn set(pages: u64) -> std::io::Result<()> {
        fs::write(Path::new(Self::DIR).join("nr_hugepages"), pages.to_string())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = Self::set(self.before);
    }
}

#[test]
fn huge_pages_are_reserved_or_refused_with_the_command_that_reserves_them() {
    let Some(before) = Pool::read("nr_hugepages") else { skip!("this kernel has no huge pages of 2 MiB") };
    // One more than the pool can ever give as it is.
    let pages = before + Pool::read("nr_overcommit_hugepages").unwrap_or(0) + 17;
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, ends());
    let size = format!("{}M", 2 * pages);
    for kind in ["hugepages=2M", "hugepages=2M,shared=on"] {
        let mut vm =
            Vm::start(wirevm().args(["run", "--memory", &format!("{size},{kind}"), "--kernel"]).arg(&kernel));
        vm.ends_with(1, SOON);
        let messages = vm.messages();
        assert!(messages.contains(&format!("in {pages} huge pages of 2 MiB")), "{messages}");
        assert!(
            messages.contains("\n  try:   ") && messages.contains("are free; reserve more ("),
            "{messages}"
        );
    }

    let mut vm = Vm::start(
        wirevm().args(["run", "--memory", &format!("{size},hugepages=2M"), "--kernel"]).arg(&kernel),
    );
    vm.ends_with(1, SOON);
    let messages = vm.messages();
    // As the remedy says, by sysctl or by the pool's own file.
    let wanted = messages
        .split_once("vm.nr_hugepages=")
        .or_else(|| messages.split_once("(echo "))
        .map(|(_, rest)| rest.chars().take_while(char::is_ascii_digit).collect::<String>())
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("no number in {messages}"));
    let pool = Pool { before };
    if Pool::set(wanted).is_err() || Pool::read("nr_hugepages") != Some(wanted) {
        skip!("{wanted} huge pages cannot be reserved here");
    }
    for kind in ["hugepages=2M", "hugepages=2M,shared=on"] {
        let (huge, messages) = mapping(&format!("{size},{kind}"), pages << 11);
        assert_eq!(huge.page_kib, 2048, "{kind}: {huge:?}");
        assert_eq!(&huge.permissions[3..], if kind.contains("shared") { "s" } else { "p" }, "{huge:?}");
        assert!(huge.has("ht") && !huge.has("nr"), "nothing is reserved: {huge:?}");
        assert_eq!(messages, "");
    }
    drop(pool);
    assert_eq!(Pool::read("nr_hugepages"), Some(before));
}

#[test]
fn timings_are_the_milestones_in_their_order() {
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, ends());
    let mut vm = Vm::start(wirevm().args(["run", "--timings", "--kernel"]).arg(&kernel));
    vm.ends_with(0, SOON);
    let messages = vm.messages();
    let mut milestones = Vec::new();
    for line in messages.lines() {
        let (time, milestone) = line.split_once(" ms  ").unwrap_or_else(|| panic!("{messages}"));
        assert_eq!(time.find('.'), Some(6), "not aligned:\n{messages}");
        milestones.push((time.trim().parse::<f64>().unwrap(), milestone));
    }
    // Two processes say them, and each its own in order.
    milestones.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    let mut take = |name: &str| {
        let at = milestones.iter().position(|(_, milestone)| *milestone == name);
        milestones.remove(at.unwrap_or_else(|| panic!("no {name:?} in\n{messages}"))).0
    };
    // Beside what comes between others.
    let (loaded, wired) = (take("kernel loaded"), take("host plumbing done"));
    let names: Vec<_> = milestones.iter().map(|(_, milestone)| *milestone).collect();
    let ordered = [
        "command line read",
        "KVM opened",
        "guest memory mapped",
        "machine confined",
        "memory given to KVM",
        "VM made",
        "wires received",
        "devices made",
        "vCPUs made",
        "first KVM_RUN",
    ];
    assert_eq!(names, ordered, "{messages}");
    let at = |name| milestones.iter().find(|(_, milestone)| *milestone == name).expect("it is there").0;
    assert!(at("machine confined") <= loaded && loaded <= at("vCPUs made"), "{messages}");
    assert!(at("guest memory mapped") <= wired && wired <= at("wires received"), "{messages}");

    // A start that fails shows how far it came, and off there is nothing.
    let mut vm = Vm::start(wirevm().args(["run", "--timings", "--kernel", "/no/such/kernel"]));
    vm.ends_with(1, SOON);
    assert!(vm.messages().contains(" ms  guest memory mapped\n"), "{}", vm.messages());
    let mut vm = Vm::start(wirevm().args(["run", "--kernel"]).arg(kernel));
    vm.ends_with(0, SOON);
    assert_eq!(vm.messages(), "");
}
