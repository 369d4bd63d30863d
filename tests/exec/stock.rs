//! The agent in a guest.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::agent::{agent_path, output};
use harness::netns::Netns;
use harness::stock::{self, Stock};
use harness::{TempDir, Vm, need};
use wirevm_agent::config::Config;

use super::{hash, noise, text};

const COMMAND: Duration = Duration::from_secs(60);

/// A stock initramfs in which the agent is init, with this configuration and all the modules that are there.
fn initrd(kernel: &Stock, config: Config, dir: &TempDir) -> Result<std::path::PathBuf, String> {
    let initrd = dir.path("initrd");
    stock::add_program(kernel, agent_path().to_str().unwrap(), &initrd)?;
    let list = Command::new("cpio")
        .args(["--quiet", "-i", "--to-stdout", "lib/modules.*", "./lib/modules.*"])
        .stdin(fs::File::open(&kernel.initrd).unwrap())
        .output()
        .map_err(|why| format!("cannot run cpio: {why}"))?;
    let modules = String::from_utf8_lossy(&list.stdout).lines().map(Into::into).collect();
    let tree = dir.path("tree");
    fs::create_dir_all(tree.join(".wirevm")).unwrap();
    fs::write(tree.join(".wirevm/config"), Config { modules, ..config }.to_bytes().unwrap()).unwrap();
    let script = "cd \"$0\" && find . | cpio --quiet -o -H newc >> \"$1\"";
    let added = Command::new("sh").args(["-c", script]).arg(&tree).arg(&initrd).stdin(Stdio::null()).status();
    added.ok().filter(|status| status.success()).map(|_| initrd).ok_or("cpio fails".to_owned())
}

/// `wirevm exec web` where it runs.
fn exec(netns: &Netns, options: &[&str], command: &[&str]) -> Command {
    let mut exec = netns.command(harness::wirevm_path().to_str().unwrap());
    exec.args(["exec", "web"]).args(options).arg("--").args(command);
    exec
}

#[test]
fn an_agent_that_is_init_runs_commands_has_its_network_and_powers_off() {
    let kernel = need!(stock::newest());
    let dir = TempDir::new();
    let config = Config { hostname: Some("web".into()), ..Config::default() };
    let initrd = need!(initrd(&kernel, config, &dir));
    let netns = need!(Netns::with_own_run());
    let [kernel, initrd] =
        [&kernel.kernel, &initrd].map(|path: &std::path::PathBuf| Path::to_str(path).unwrap());
    let words = "console=ttyS0 loglevel=4 panic=-1 rdinit=/bin/wirevm-agent";
    let mut vm = Vm::start_in(
        &netns,
        &[
            "run",
            "--name",
            "web",
            "--kernel",
            kernel,
            "--initrd",
            initrd,
            "--cmdline",
            words,
            "--net",
            "tap,host=10.0.0.1/24",
        ],
    );
    let until = Instant::now() + stock::BOOT;
    while !output(&mut exec(&netns, &[], &["true"]), b"").status.success() {
        assert!(Instant::now() < until, "no agent answers\n{}", vm.state());
        std::thread::sleep(Duration::from_millis(200));
    }
    let said = |script: &str| text(&output(&mut exec(&netns, &[], &["sh", "-c", script]), b""));
    assert_eq!(said("hostname; echo err >&2; exit 7"), (Some(7), "web\n".into(), "err\n".into()));
    assert_eq!(said("kill -TERM $$").0, Some(143));
    assert_eq!(text(&output(&mut exec(&netns, &[], &["no-such-command"]), b"")).0, Some(127));
    // Both ways, each more than any buffer.
    let bytes = noise(2 << 20, 5);
    let echoed = output(&mut exec(&netns, &[], &["cat"]), &bytes);
    assert_eq!((echoed.stdout.len(), hash(&echoed.stdout)), (bytes.len(), hash(&bytes)));
    // What wirevm answers to DHCP is on the NIC.
    let until = Instant::now() + COMMAND;
    while !said("ip -4 address show eth0").1.contains("inet 10.0.0.2/24") {
        assert!(Instant::now() < until, "{:?}\n{}", said("ip address"), vm.state());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(said("ip route").1.contains("default via 10.0.0.1"), "{:?}", said("ip route"));
    // Many at once, each as long as all others.
    let running: Vec<_> = (0..100)
        .map(|number: i32| {
            let mut exec = exec(&netns, &[], &["sh", "-c", &format!("echo {number}; exit {number}")]);
            exec.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for (number, child) in running.into_iter().enumerate() {
        let (status, out, _) = text(&child.wait_with_output().unwrap());
        assert_eq!((status, out), (Some(number as i32), format!("{number}\n")));
    }
    let mut stop = netns.command(harness::wirevm_path().to_str().unwrap());
    let stopped = output(stop.args(["stop", "web", "--timeout", "60"]), b"");
    assert!(stopped.status.success(), "{:?}", text(&stopped));
    vm.ends_with(0, COMMAND);
}
