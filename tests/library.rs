//! The library, as a Rust test of its users has it.

use std::process::Command;
use std::time::Duration;

use harness::netns::Netns;
use harness::{TempDir, guest, handmade, need, puts, skip, wirevm_path};
use vmm::{MachineConfig, Vm};

const SOON: Duration = Duration::from_secs(30);

guest!(forever: puts!("running\\n"), "2: hlt", "jmp 2b");

#[test]
fn varlinkctl_speaks_to_a_machine() {
    if Command::new("varlinkctl").arg("--version").output().is_err() {
        skip!("there is no varlinkctl");
    }
    let host = need!(Netns::new());
    let dir = TempDir::new();
    let config = MachineConfig::new(handmade::kernel(&dir, forever()));
    let mut vm = Vm::start_by(host.command(wirevm_path().to_str().unwrap()), &config).unwrap();
    vm.wait_for("running", SOON).unwrap();
    let socket = vmm::runtime::socket(vm.name()).unwrap();
    let ask = |args: &[&str]| {
        let output = host.command("varlinkctl").arg(args[0]).arg(&socket).args(&args[1..]).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(ask(&["info"]).contains("io.wirevm.Machine"));
    assert!(ask(&["introspect", "io.wirevm.Machine"]).contains("method Pause"));
    assert!(ask(&["call", "io.wirevm.Machine.GetInfo", "{}"]).contains(vm.name()));
    assert_eq!(vm.stop().unwrap(), 0);
}

mod stock {
    use harness::stock::{self, BOOT};
    use vmm::info::MachineState;

    use super::*;

    #[test]
    fn a_guest_that_is_pinged_is_paused_and_loses_no_ping() {
        let kernel = need!(stock::fastest());
        let host = need!(Netns::new());
        let config = MachineConfig {
            initrd: Some(kernel.initrd.clone()),
            cmdline: "console=ttyS0 loglevel=1 panic=-1 wirevm.dhcp".to_owned(),
            net: vec!["tap,host=172.31.0.1/24".parse().unwrap()],
            ..MachineConfig::new(&kernel.kernel)
        };
        let mut vm = Vm::start_by(host.command(wirevm_path().to_str().unwrap()), &config).unwrap();
        vm.wait_for("guest# ", BOOT).unwrap_or_else(|error| panic!("{error}"));
        let mut ping = host.command("ping");
        ping.args(["-i", "0.1", "-c", "60", "-W", "20", "172.31.0.2"]);
        let (said, pauses) = std::thread::scope(|scope| {
            let said = scope.spawn(move || String::from_utf8(ping.output().unwrap().stdout).unwrap());
            let mut pauses = 0;
            while !said.is_finished() {
                vm.pause().unwrap();
                assert_eq!(vm.info().unwrap().state, MachineState::Paused);
                std::thread::sleep(Duration::from_millis(700));
                vm.resume().unwrap();
                pauses += 1;
                std::thread::sleep(Duration::from_millis(300));
            }
            (said.join().unwrap(), pauses)
        });
        assert!(pauses > 2 && said.contains(" 60 received,") && !said.contains("duplicates"), "{said}");
        vm.type_in("echo still here\n").unwrap();
        vm.wait_for("\nstill here", BOOT).unwrap_or_else(|error| panic!("{error}"));
        // Without a driver for the power button it is ended at once, else after the time that it has.
        assert_eq!(vm.stop().unwrap(), 0);
        assert!(!host.state().contains("wirevm"), "{}", host.state());
    }
}
