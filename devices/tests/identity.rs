//! What each device says it is, and its threads, which are confined by name.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

mod asleep;
mod disk_rig;
mod rig;

use devices::BusDevice;
use devices::virtio::balloon::VirtioBalloon;
use devices::virtio::mmio::MmioTransport;
use devices::virtio::mock::Buffer;
use devices::virtio::net::VirtioNet;
use devices::virtio::pci::PciTransport;
use devices::virtio::rng::VirtioRng;
use devices::virtio::vsock::{HostEnd, HostPorts, VirtioVsock};
use devices::virtio::{DeviceThreads, VirtioDevice};
use net::SocketBackend;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// Nobody listens.
struct NoPorts(UnixStream);

impl HostPorts for NoPorts {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn connect(&mut self, _: u64, _: u32) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn answer(&mut self) -> io::Result<(u64, Option<OwnedFd>)> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

fn vsock() -> VirtioVsock {
    let path = std::env::temp_dir().join(format!("wirevm-identity-{:?}", std::thread::current().id()));
    let listener = UnixListener::bind(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    listener.set_nonblocking(true).unwrap();
    VirtioVsock::new(HostEnd {
        listener: listener.into(),
        ports: Box::new(NoPorts(UnixStream::pair().unwrap().0)),
    })
    .unwrap()
}

fn disk() -> devices::virtio::block::VirtioBlock {
    use devices::virtio::block::{BlockDeviceConfig, VirtioBlock};
    let config = BlockDeviceConfig { name: "disk".into(), serial: String::new(), queues: 2, async_io: false };
    VirtioBlock::new(config, disk_rig::medium(&disk_rig::holes(), 1 << 20)).unwrap()
}

fn nic() -> VirtioNet {
    let backend = SocketBackend::pair().unwrap().0;
    VirtioNet::new(rig::config("nic", None), vec![Box::new(backend)], Vec::new()).unwrap()
}

#[test]
fn the_guest_finds_devices_by_their_types() {
    let devices: [(Box<dyn VirtioDevice>, u32); 5] = [
        (Box::new(nic()), 1),
        (Box::new(disk()), 2),
        (Box::new(VirtioRng::new().unwrap()), 4),
        (Box::new(VirtioBalloon::new(Box::new(|_| Ok(()))).unwrap()), 5),
        (Box::new(vsock()), 19),
    ];
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
    for (device, number) in devices {
        let bus = MmioTransport::new(device, memory.clone(), EventFd::new(0).unwrap()).unwrap();
        let register = |at| {
            let mut word = [0; 4];
            bus.read(at, &mut word);
            word
        };
        assert_eq!(u32::from_le_bytes(register(0x008)), number);
        assert_eq!((&register(0x000), &register(0x00c)), (b"virt", b"wire"));
    }
}

#[test]
fn a_socket_device_tells_the_guest_its_address() {
    let device = vsock();
    let mut config = [0xaa; 10];
    device.read_config(0, &mut config);
    assert_eq!(config, [3, 0, 0, 0, 0, 0, 0, 0, 0xaa, 0xaa]);
    let mut last = [0xaa; 3];
    device.read_config(7, &mut last);
    assert_eq!(last, [0, 0xaa, 0xaa]);
}

#[test]
fn each_thread_is_confined_and_says_what_it_was_refused() {
    let (disk, nic) = (disk(), nic());
    let rng = VirtioRng::new().unwrap();
    let balloon = VirtioBalloon::new(Box::new(|_| Ok(()))).unwrap();
    let vsock = vsock();
    let disk_threads: Box<dyn DeviceThreads> = Box::new(disk.handle());
    let named: [(Box<dyn DeviceThreads>, &[&str]); 4] = [
        (disk_threads, &["disk-0", "disk-1"]),
        (rng.threads(), &["rng"]),
        (balloon.threads(), &["balloon"]),
        (vsock.threads(), &["vsock"]),
    ];
    for (threads, names) in named {
        let called = Arc::new(Mutex::new(Vec::new()));
        for answer in [Ok(()), Err(libc::EDOM)] {
            let note = Arc::clone(&called);
            let hook = move |name: &str| {
                note.lock().unwrap().push(name.to_owned());
                answer.map_err(io::Error::from_raw_os_error)
            };
            let confined = threads.confine(&(Arc::new(hook) as _));
            assert_eq!(confined.map_err(|error| error.raw_os_error().unwrap()), answer);
            let mut called = std::mem::take(&mut *called.lock().unwrap());
            called.sort();
            assert_eq!(called, names);
        }
        threads.pause().unwrap();
        threads.resume().unwrap();
    }
    assert_eq!(nic.handle().pairs(), 1);
    assert_eq!(PciTransport::vectors(3), 4, "one for each queue, and one for the configuration");
}

#[test]
fn a_disk_is_paused_as_any_device_is() {
    let mut rig = disk_rig::Rig::on(&disk_rig::holes(), false);
    DeviceThreads::pause(&rig.handle).unwrap();
    let read = [Buffer::readable(disk_rig::SENT, 16), Buffer::writable(disk_rig::ROOM, 513)];
    rig.rings[0].add(&read).unwrap();
    rig.kick(0);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(rig.rings[0].reap(), None);
    DeviceThreads::resume(&rig.handle).unwrap();
    rig.reap(0);
}

#[test]
fn without_work_each_thread_sleeps_and_a_signal_is_no_work() {
    let mut nic = rig::Rig::started(rig::LINUX);
    nic.check();
    let mut disks = disk_rig::BOTH.map(|async_io| disk_rig::Rig::on(&disk_rig::holes(), async_io));
    disks.iter_mut().for_each(disk_rig::Rig::check);
    let (rng, vsock) = (VirtioRng::new().unwrap(), vsock());
    let (handle, [first, second]) = (nic.handle.clone(), disks.each_ref().map(|disk| disk.handle.clone()));
    let threads = [
        asleep::thread_of(|hook| handle.confine(hook).unwrap()),
        asleep::thread_of(|hook| first.confine(hook).unwrap()),
        asleep::thread_of(|hook| second.confine(hook).unwrap()),
        asleep::thread_of(|hook| rng.threads().confine(hook).unwrap()),
        asleep::thread_of(|hook| vsock.threads().confine(hook).unwrap()),
    ];
    for thread in threads {
        assert!(asleep::sleeps(thread));
        asleep::interrupt(thread);
        assert!(asleep::sleeps(thread));
    }
    nic.check();
    disks.iter_mut().for_each(disk_rig::Rig::check);
    for device in [rng.threads(), vsock.threads()] {
        device.pause().unwrap();
        device.resume().unwrap();
    }
}
