//! A real DHCP client on one end of a wire, and wirevm's answers on the other.

mod namespace;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use namespace::{in_namespace, run, skip};
use net::{Autoconf, Backend, HostV4, IovBuffer, Lease, Sent, SocketBackend, Tap};
use vm_memory::VolatileSlice;

/// Carries one frame from one backend to another; false where there is none.
fn carry(from: &mut dyn Backend, to: &mut dyn Backend) -> bool {
    let mut frame = vec![0; 70_000];
    let mut room = IovBuffer::new();
    let mut space = room.start();
    assert!(space.push(VolatileSlice::from(&mut frame[..])));
    let Ok(len) = from.recv(&mut space) else { return false };
    drop(space);
    let mut iov = room.start();
    assert!(iov.push(VolatileSlice::from(&mut frame[..len])));
    matches!(to.send(&iov), Ok(Sent::Gone | Sent::Answered))
}

/// The static one that `resources/setup` unpacks, of `$WIREVM_RESOURCES` as elsewhere; or else the machine's.
fn busybox() -> PathBuf {
    let resources = std::env::var_os("WIREVM_RESOURCES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("resources"),
        PathBuf::from,
    );
    Some(resources.join("busybox")).filter(|path| path.exists()).unwrap_or_else(|| "busybox".into())
}

#[test]
fn udhcpc_gets_its_lease() {
    const NAME: &str = "udhcpc_gets_its_lease";
    if Command::new(busybox()).args(["udhcpc", "--help"]).output().is_err() {
        return skip(NAME, "there is no busybox: run make setup");
    }
    in_namespace(NAME, || {
        let mut guest = Tap::open(Some(&"guest0".parse().unwrap())).unwrap();
        run("ip link set guest0 address 02:00:00:00:00:01 up");
        let (backend, _peer) = SocketBackend::pair().unwrap();
        let mac = "02:00:00:00:00:01".parse().unwrap();
        let host = HostV4::new([172, 31, 0, 1].into(), 24).unwrap();
        let lease = Lease::new(mac, host, [2, 0, 0, 0, 0, 0xff], 1400).unwrap();
        let mut server = Autoconf::new(backend, Some(lease), None);

        let directory = std::env::temp_dir().join(format!("wirevm-udhcpc-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let script = directory.join("script");
        let text = "#!/bin/sh\necho \"$1 ip=$ip mask=$subnet router=$router mtu=$mtu server=$serverid lease=$lease\"\n";
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        let client = Command::new(busybox())
            .args(["udhcpc", "-f", "-n", "-q", "-i", "guest0", "-O", "mtu", "-s"])
            .arg(&script)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut client = client.unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while client.try_wait().unwrap().is_none() && Instant::now() < end {
            // The server's backend never sends, so what it receives are answers.
            let moved = carry(&mut guest, &mut server) | carry(&mut server, &mut guest);
            if !moved {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let _ = client.kill();
        let output = client.wait_with_output().unwrap();
        let _ = std::fs::remove_dir_all(&directory);
        let said = String::from_utf8_lossy(&output.stdout);
        let bound =
            "bound ip=172.31.0.2 mask=255.255.255.0 router=172.31.0.1 mtu=1400 server=172.31.0.1 lease=86400";
        assert!(said.contains(bound), "{said}{}", String::from_utf8_lossy(&output.stderr));
    });
}
