//! The agent's DHCP client, against busybox's server.

use std::fs;
use std::net::UdpSocket;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use harness::agent::agent_path;
use harness::netns::Netns;
use harness::{TempDir, need, skip, stock};

/// A client and a server, each in a namespace, and a cable between them.
struct Cable {
    client: Netns,
    server: Netns,
    dir: TempDir,
    running: Vec<Child>,
}

impl Cable {
    fn new() -> Result<Self, String> {
        let (client, server) = (Netns::new()?, Netns::new()?);
        client
            .sh(&format!("ip link add eth0 type veth peer eth1 && ip link set eth1 netns {}", server.pid()));
        server.sh("ip address add 10.9.0.1/24 dev eth1 && ip link set eth1 up");
        let dir = TempDir::new();
        for made in ["etc", "run"] {
            fs::create_dir(dir.path(made)).unwrap();
        }
        Ok(Self { client, server, dir, running: Vec::new() })
    }

    /// A server that gives this address, with these options.
    fn serve(&mut self, address: &str, options: &str) {
        self.dir.file("leases", "");
        let config = format!(
            "start {address}\nend {address}\ninterface eth1\nlease_file {}\npidfile {}\nmax_leases 1\n{options}\n",
            self.dir.path("leases").display(),
            self.dir.path("pid").display()
        );
        let config = self.dir.file("udhcpd.conf", config);
        let mut command = self.server.command(stock::resources().join("busybox").to_str().unwrap());
        let child = command
            .args(["udhcpd", "-f"])
            .arg(config)
            .stdin(Stdio::null())
            .stderr(fs::File::create(self.dir.path("said")).unwrap())
            .spawn();
        self.running.push(child.expect("busybox starts"));
    }

    /// The agent's client, with `/etc` and `/run` of its own.
    fn ask(&mut self) {
        let script = "mount -t sysfs sysfs /sys && mount --bind \"$1/etc\" /etc && mount --bind \"$1/run\" /run && exec \"$0\" --dhcp eth0";
        let mut command = self.client.command("unshare");
        command.args(["--mount", "--uts", "sh", "-c", script]).arg(agent_path()).arg(self.dir.path(""));
        let said = fs::File::create(self.dir.path("asked")).unwrap();
        self.running.push(command.stdin(Stdio::null()).stderr(said).spawn().unwrap());
    }

    /// Ends the last that was started.
    fn end_last(&mut self) {
        let mut last = self.running.pop().unwrap();
        last.kill().unwrap();
        last.wait().unwrap();
    }

    /// Waits until a command in the client's namespace says this.
    #[track_caller]
    fn client_says(&self, command: &str, words: &str) {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let said = self.client.sh(command);
            if said.contains(words) {
                return;
            }
            let text = |name| fs::read_to_string(self.dir.path(name)).unwrap_or_default();
            let (server, client) = (text("said"), text("asked"));
            assert!(Instant::now() < until, "{command} does not say {words:?}\n{said}\n{server}\n{client}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn an_interface_gets_what_the_server_says_and_anew_on_another_wire() {
    if !stock::resources().join("busybox").exists() {
        skip!("there is no busybox: run make setup");
    }
    let mut cable = need!(Cable::new());
    cable.ask();
    // It asks until somebody answers.
    std::thread::sleep(Duration::from_millis(500));
    cable.serve(
        "10.9.0.7",
        "opt subnet 255.255.255.0\nopt router 10.9.0.1\nopt dns 10.9.0.1 10.9.0.2\nopt domain lan\nopt mtu 1400\nopt lease 3600\n\
         opt search a.example b.example",
    );
    cable.client_says("ip route", "default via 10.9.0.1 dev eth0");
    let link = cable.client.sh("ip -4 address show eth0");
    assert!(link.contains("inet 10.9.0.7/24") && link.contains("mtu 1400"), "{link}");
    cable.client.sh("ping -c 1 -W 5 10.9.0.1");
    let resolver = || fs::read_to_string(cable.dir.path("etc/resolv.conf")).unwrap_or_default();
    let until = Instant::now() + Duration::from_secs(10);
    while resolver().is_empty() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(resolver(), "search a.example b.example\nnameserver 10.9.0.1\nnameserver 10.9.0.2\n");

    // Another wire: another server, with a gateway that is in no subnet of the client's.
    cable.end_last();
    cable.server.sh("ip link set eth1 down");
    cable.client_says("ip link show eth0", "NO-CARRIER");
    cable.server.sh("ip address flush dev eth1; ip address add 10.8.0.1/24 dev eth1");
    cable.serve("10.8.0.5", "opt subnet 255.255.255.255\nopt router 10.9.9.9\nopt lease 3600");
    cable.server.sh("ip link set eth1 up; ip address add 10.9.9.9/32 dev eth1");
    cable.client_says("ip -4 address show eth0", "inet 10.8.0.5/32");
    cable.client_says("ip route", "default via 10.9.9.9 dev eth0");
    assert!(!cable.client.sh("ip -4 address show eth0").contains("10.9.0.7"));
}

#[test]
fn a_failure_that_passes_is_not_for_good() {
    if !stock::resources().join("busybox").exists() {
        skip!("there is no busybox: run make setup");
    }
    let mut cable = need!(Cable::new());
    let taken = cable.client.spawn(|| UdpSocket::bind("0.0.0.0:68").unwrap()).join().unwrap();
    cable.ask();
    let until = Instant::now() + Duration::from_secs(30);
    let asked = cable.dir.path("asked");
    while !fs::read_to_string(&asked).is_ok_and(|said| said.contains("cannot ask for an address")) {
        assert!(Instant::now() < until, "it asks by a port that another has");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(taken);
    cable.serve("10.9.0.7", "opt subnet 255.255.255.0\nopt lease 3600");
    cable.client_says("ip -4 address show eth0", "inet 10.9.0.7/24");
}
