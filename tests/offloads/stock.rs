//! A stock Linux guest.

use std::time::Duration;

use harness::netns::Netns;
use harness::stock;
use harness::traffic::Noise;
use harness::{Vm, guest, handmade, need};

const COMMAND: Duration = Duration::from_secs(60);
const TRANSFER: Duration = Duration::from_secs(240);

// What `ethtool -K eth0 rx-gro-hw off|on` does, for the guest has no ethtool: on with a word more. Its exit status is the
// error number.
guest!(gro_hw:
    "mov ebx, [rsp]",
    "sub rsp, 16384", "cld", "xor eax, eax", "mov rdi, rsp", "mov ecx, 16384", "rep stosb",
    // struct ethtool_gstrings: ETHTOOL_GSTRINGS, ETH_SS_FEATURES; and struct ifreq of eth0.
    "mov dword ptr [rsp], 0x1b", "mov dword ptr [rsp + 4], 4",
    "mov dword ptr [rsp + 12288], 0x30687465", "mov [rsp + 12304], rsp",
    // socket(AF_INET, SOCK_DGRAM, 0), ioctl(SIOCETHTOOL).
    "mov eax, 41", "mov edi, 2", "mov esi, 2", "xor edx, edx", "syscall",
    "mov ebp, eax",
    "mov edi, ebp", "mov eax, 16", "mov esi, 0x8946", "lea rdx, [rsp + 12288]", "syscall",
    "test eax, eax", "jnz 9f",
    // The number of the feature whose name begins with "rx-gro-h", or ENOENT.
    "mov ecx, [rsp + 8]", "xor esi, esi", "lea rdi, [rsp + 12]",
    "movabs r8, 0x682d6f72672d7872", "mov eax, -2",
    "2: cmp [rdi], r8", "je 3f", "add rdi, 32", "inc esi", "cmp esi, ecx", "jb 2b", "jmp 9f",
    // struct ethtool_sfeatures: ETHTOOL_SFEATURES, two blocks, each which bits to set and what to.
    "3: mov dword ptr [rsp + 8192], 0x3b", "mov dword ptr [rsp + 8196], 2",
    "mov eax, esi", "shr eax, 5", "lea rdi, [rsp + rax * 8 + 8200]",
    "mov ecx, esi", "and ecx, 31", "mov edx, 1", "shl edx, cl", "mov [rdi], edx",
    "cmp ebx, 1", "je 4f", "mov [rdi + 4], edx",
    "4: lea rax, [rsp + 8192]", "mov [rsp + 12304], rax",
    "mov edi, ebp", "mov eax, 16", "mov esi, 0x8946", "lea rdx, [rsp + 12288]", "syscall",
    "9: mov edi, eax", "neg edi", "mov eax, 60", "syscall",
);

/// Bytes and frames that the guest received.
fn received(vm: &mut Vm) -> [u64; 2] {
    let counts = vm.sh("cd /sys/class/net/eth0/statistics && cat rx_bytes rx_packets", COMMAND);
    let numbers: Vec<_> = counts.lines().map(|line| line.trim().parse().expect("a number")).collect();
    numbers.try_into().expect("two numbers")
}

/// Takes noise from the host and sends it back, with `meanwhile` in the guest's shell; returns the bytes of a frame that the
/// guest received, on average.
#[track_caller]
fn stream(vm: &mut Vm, netns: &Netns, meanwhile: &str) -> u64 {
    let before = received(vm);
    let noise = Noise::serve(netns, [172, 31, 0, 1].into(), 1 << 20);
    vm.sh(&format!("({}) & {meanwhile} wait", noise.guest_commands()), TRANSFER);
    noise.check().unwrap_or_else(|why| panic!("{why}\n{}", vm.state()));
    let after = received(vm);
    let [bytes, frames] = [after[0] - before[0], after[1] - before[1]];
    bytes / frames
}

#[test]
fn a_guest_that_takes_no_large_frames_gets_none_and_changes_its_mind_under_traffic() {
    let kernel = need!(stock::newest());
    let netns = need!(Netns::new());
    let mut vm = kernel.boot(&netns, "wirevm.dhcp", &["--net", "tap=t0,host=172.31.0.1/24"]);
    // VIRTIO_NET_F_CTRL_GUEST_OFFLOADS.
    assert_eq!(vm.sh("cut -c 3 /sys/class/net/eth0/device/features", COMMAND).trim(), "1");
    handmade::install(&mut vm, "/dev/shm/gro", gro_hw());
    let (off, on) = ("/dev/shm/gro", "/dev/shm/gro on");
    let large = stream(&mut vm, &netns, "");
    assert!(large > 1514, "{large} bytes a frame: no segmentation is left to the guest, nor was it");
    for _ in 0..2 {
        vm.sh(off, COMMAND);
        let small = stream(&mut vm, &netns, "");
        assert!(small <= 1514, "{small} bytes a frame, and it wanted none larger than its MTU");
        vm.sh(on, COMMAND);
        let large = stream(&mut vm, &netns, "");
        assert!(large > 1514, "{large} bytes a frame, and it wanted large ones again");
    }
    let toggles = "i=0; while [ $i -lt 20 ]; do /dev/shm/gro; /dev/shm/gro on; i=$((i+1)); done;";
    stream(&mut vm, &netns, toggles);
    // A driver begins anew with what it negotiates.
    vm.sh(off, COMMAND);
    let driver = "/sys/bus/virtio/drivers/virtio_net";
    vm.sh(&format!("echo virtio0 >{driver}/unbind; echo virtio0 >{driver}/bind"), COMMAND);
    vm.sh("ip addr add 172.31.0.2/24 dev eth0 && ip link set eth0 up", COMMAND);
    let large = stream(&mut vm, &netns, "");
    assert!(large > 1514, "{large} bytes a frame after the driver came again");
    vm.type_in("poweroff\n");
    vm.ends_with(0, COMMAND);
}

/// No guest, but the kernel's carrier, which is where stock guests run.
#[test]
fn each_frame_passes_once_however_often_a_nic_that_vhost_carries_is_paused() {
    crate::pause::each_frame_passes_once(need!(crate::World::carried("vhost=on")));
}
