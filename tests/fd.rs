//! A tap or macvtap that somebody else opened, and that wirevm inherits without any right of its own.

use std::process::Stdio;
use std::time::Duration;

use harness::netns::Netns;
use harness::{TempDir, Vm, guest, handmade, puts, skip};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(30);

guest!(forever: puts!("running\\n"), "2: hlt", "jmp 2b");

#[test]
fn a_macvtap_that_the_shell_opened_is_a_wire_for_a_user_without_rights() {
    let netns = match Netns::new() {
        Ok(netns) => netns,
        Err(why) => skip!("{why}"),
    };
    netns.sh("ip link add v0 type veth peer v1; ip link set v0 addrgenmode none up; ip link set v1 addrgenmode none up");
    netns.sh("ip link add link v0 name mv0 address 02:00:00:00:00:0a type macvtap mode bridge");
    netns.sh("ip link set mv0 addrgenmode none up");
    let before = netns.state();
    let dir = TempDir::new();
    let kernel = handmade::kernel(&dir, forever());
    let program = dir.path("wirevm");
    std::fs::copy(harness::wirevm_path(), &program).unwrap();
    std::fs::set_permissions(dir.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // Root opens the device, by the number that a sysfs of this namespace says; nobody runs, with no other device than KVM's.
    let script = "mount -t sysfs sysfs /sys; mkdir \"$2\"; mount -t tmpfs tmpfs \"$2\"; mknod -m 666 \"$2/kvm\" c 10 232; \
        mount --bind \"$2/kvm\" /dev/kvm; mknod \"$2/tap\" c $(cat /sys/class/net/mv0/macvtap/tap*/dev | tr : ' '); \
        exec 5<>\"$2/tap\"; rm \"$2/tap\"; \
        exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all \
        \"$0\" -v run --kernel \"$1\" --net fd=5";
    let mut command = netns.command("unshare");
    command.args(["--mount", "sh", "-c", script]).args([&program, &kernel, &dir.path("dev")]);
    let mut vm = Vm::start(command.stdin(Stdio::null()));
    vm.expect("running\n", SOON);
    vm.expect_message("NIC 0 (fd): mv0, MAC 02:00:00:00:00:0a, MTU 1500", SOON);
    vm.signal(Signal::TERM);
    vm.ends_with(0, SOON);
    netns.is_as(&before);
}
