//! The control queue: what a driver may say, what it may not, and that frames go on meanwhile.

mod rig;

use std::io;
use std::os::fd::BorrowedFd;

use devices::BusDevice;
use devices::virtio::mock::{Buffer, MockRing};
use devices::virtio::queue::F_INDIRECT_DESC;
use net::{Addresses, Backend, Iov, Mac, Offloads, RxFilter, Sent, SocketBackend};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use rig::*;

const OK: u8 = 0;
const ERR: u8 = 1;
const RX_CLASS: u8 = 0;
const MAC_CLASS: u8 = 1;
const TABLE_SET: u8 = 0;
const ADDR_SET: u8 = 1;
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn filter(rig: &Rig) -> RxFilter {
    rig.peer.filter().expect("a filter is set at the start")
}

fn fresh() -> RxFilter {
    RxFilter::new(Mac::new(MAC).unwrap())
}

fn config_mac(rig: &Rig) -> [u8; 6] {
    let mut mac = [0; 6];
    rig.device.read(0x100, &mut mac);
    mac
}

/// `virtio_net_ctrl_mac`, twice.
fn table(unicast: &[[u8; 6]], multicast: &[[u8; 6]]) -> Vec<u8> {
    let mut command = vec![MAC_CLASS, TABLE_SET];
    for list in [unicast, multicast] {
        command.extend((list.len() as u32).to_le_bytes());
        command.extend(list.concat());
    }
    command
}

fn groups(count: u8) -> Vec<[u8; 6]> {
    (0..count).map(|last| [0x33, 0x33, 0, 0, 0, last]).collect()
}

fn address_set(mac: [u8; 6]) -> Vec<u8> {
    [&[MAC_CLASS, ADDR_SET][..], &mac].concat()
}

#[test]
fn each_switch_is_its_own() {
    let mut rig = Rig::started(COMMANDS);
    assert_eq!(filter(&rig), fresh());
    for on in [1u8, 0] {
        let set = |change: fn(&mut RxFilter, bool)| {
            let mut filter = fresh();
            change(&mut filter, on == 1);
            filter
        };
        let wanted = [
            set(|filter, on| filter.promiscuous = on),
            set(|filter, on| filter.all_multicast = on),
            set(|filter, on| filter.all_unicast = on),
            set(|filter, on| filter.no_multicast = on),
            set(|filter, on| filter.no_unicast = on),
            set(|filter, on| filter.no_broadcast = on),
        ];
        for (command, wanted) in wanted.into_iter().enumerate() {
            assert_eq!(rig.command(&[RX_CLASS, command as u8, on], &[2]), OK, "{command}");
            assert_eq!(filter(&rig), wanted, "{command}");
            assert_eq!(rig.command(&[RX_CLASS, command as u8, 0], &[2]), OK);
        }
    }
    rig.check();
}

#[test]
fn a_table_is_kept_up_to_its_room() {
    let mut rig = Rig::started(COMMANDS);
    let stations = [OTHER];
    // As Linux cuts it, and as nobody does.
    let command = table(&stations, &groups(3));
    let (linux, odd): (&[usize], &[usize]) = (&[2, 12], &[1, 5, 6, 13]);
    for cuts in [linux, odd, &[]] {
        assert_eq!(rig.command(&table(&[], &[]), &[]), OK);
        assert_eq!(rig.command(&command, cuts), OK);
        let filter = filter(&rig);
        assert_eq!(filter.unicast, Addresses::Only(stations.to_vec()));
        assert_eq!(filter.multicast, Addresses::Only(groups(3)));
    }
    for (count, kept) in [(64, Addresses::Only(groups(64))), (65, Addresses::Every), (255, Addresses::Every)]
    {
        assert_eq!(rig.command(&table(&stations, &groups(count)), &[]), OK);
        assert_eq!(filter(&rig).multicast, kept, "{count} groups");
        assert_eq!(filter(&rig).unicast, Addresses::Only(stations.to_vec()));
    }
}

#[test]
fn the_address_is_the_drivers_until_the_reset() {
    let mut rig = Rig::started(COMMANDS);
    assert_eq!(config_mac(&rig), MAC);
    assert_eq!(rig.command(&address_set(OTHER), &[2]), OK);
    assert_eq!((config_mac(&rig), filter(&rig).mac.octets()), (OTHER, OTHER));
    rig.device.write(0x100, &[9; 6]);
    assert_eq!(config_mac(&rig), OTHER, "the configuration is read-only");
    for bad in [[0; 6], [1, 0, 0, 0, 0, 9], [0xff; 6]] {
        assert_eq!(rig.command(&address_set(bad), &[2]), ERR, "{bad:x?} is no station's");
        assert_eq!((config_mac(&rig), filter(&rig).mac.octets()), (OTHER, OTHER));
    }
    rig.check();
    rig.mmio().reset();
    assert_eq!(config_mac(&rig), MAC);
    rig.start(COMMANDS, 256);
    assert_eq!(filter(&rig), fresh(), "another driver begins anew");
}

#[test]
fn offloads_go_off_and_on_and_are_as_negotiated_after_a_reset() {
    let linux = Offloads { uso: false, ..ALL };
    let mut rig = Rig::started(COMMANDS);
    assert_eq!(rig.peer.accepted(), Some(linux));
    for (bits, want) in [
        // As Linux does with its generic receive offload off, and on again.
        (F_GUEST_CSUM, Offloads { csum: true, ..Offloads::default() }),
        (F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6, linux),
        (0, Offloads::default()),
        (F_GUEST_CSUM | F_GUEST_TSO6, Offloads { tso4: false, ..linux }),
        (F_GUEST_TSO4 | F_GUEST_TSO6, Offloads::default()),
    ] {
        assert_eq!(rig.command(&offloads_set(bits), &[2]), OK, "{bits:#x}");
        assert_eq!(rig.peer.accepted(), Some(want), "{bits:#x}");
        rig.check();
    }
    rig.start(COMMANDS, 256);
    assert_eq!(rig.peer.accepted(), Some(linux), "another driver begins anew");
    let uso = F_GUEST_USO4 | F_GUEST_USO6;
    rig.start(COMMANDS | uso, 256);
    assert_eq!(rig.command(&offloads_set(F_GUEST_CSUM | uso), &[2]), OK);
    assert_eq!(rig.peer.accepted(), Some(Offloads { csum: true, uso: true, ..Offloads::default() }));
}

#[test]
fn an_offload_that_was_not_negotiated_is_an_error_and_changes_nothing() {
    const OTHERS: u64 = 1 << 9 | 1 << 10 | F_CSUM | F_HOST_TSO4 | F_HOST_USO | F_MRG_RXBUF;
    let guest = [F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_USO4, F_GUEST_USO6];
    for without in guest {
        let mut rig = Rig::started((COMMANDS | F_GUEST_USO4 | F_GUEST_USO6) & !without);
        let before = rig.peer.accepted();
        for bits in [without, F_GUEST_CSUM | without, OTHERS, 1 << 63, u64::MAX] {
            assert_eq!(rig.command(&offloads_set(bits), &[2]), ERR, "{bits:#x} without {without:#x}");
            assert_eq!(rig.peer.accepted(), before);
        }
        rig.check();
    }
}

#[test]
fn what_makes_no_sense_is_an_error_and_changes_nothing() {
    let mut rig = Rig::started(COMMANDS);
    let accepted = rig.peer.accepted();
    let cut = |bytes: usize| {
        let mut command = table(&[OTHER], &groups(2));
        command.truncate(command.len() - bytes);
        command
    };
    let longer = |mut command: Vec<u8>| {
        command.push(0);
        command
    };
    let mut huge = vec![MAC_CLASS, TABLE_SET];
    huge.extend([0xff; 4]);
    huge.extend([0; 60]);
    for command in [
        vec![RX_CLASS],
        vec![RX_CLASS, 0],
        vec![RX_CLASS, 0, 2],
        vec![RX_CLASS, 0, 1, 0],
        vec![RX_CLASS, 6, 1],
        vec![MAC_CLASS, TABLE_SET],
        vec![MAC_CLASS, 2, 0],
        vec![2, 0, 1, 0],
        vec![4, 0, 1, 0],
        vec![5, 0],
        vec![5, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        longer(offloads_set(0)),
        offloads_set(0)[..9].to_vec(),
        vec![0xff, 0xff, 0xff],
        cut(1),
        cut(6),
        cut(12),
        cut(16),
        longer(table(&[OTHER], &groups(2))),
        longer(address_set(OTHER)),
        address_set(OTHER)[..7].to_vec(),
        huge,
    ] {
        assert_eq!(rig.command(&command, &[]), ERR, "{command:x?}");
    }
    assert_eq!((filter(&rig), rig.peer.accepted()), (fresh(), accepted));
    assert_eq!(rig.command(&[RX_CLASS, 0, 1], &[]), OK, "and then one that does");
    rig.check();
}

#[test]
fn what_was_not_negotiated_is_no_command() {
    for (without, command) in [
        (F_CTRL_RX, vec![RX_CLASS, 0, 1]),
        (F_CTRL_RX, table(&[], &[])),
        (F_CTRL_RX_EXTRA, vec![RX_CLASS, 3, 1]),
        (F_CTRL_MAC_ADDR, address_set(OTHER)),
        (F_CTRL_GUEST_OFFLOADS, offloads_set(0)),
    ] {
        let mut rig = Rig::started(COMMANDS & !without);
        let accepted = rig.peer.accepted();
        assert_eq!(rig.command(&command, &[2]), ERR, "{command:x?}");
        assert_eq!((filter(&rig), rig.peer.accepted()), (fresh(), accepted));
    }
    // A queue that is set up and was not negotiated is left alone.
    let mut rig = Rig::new();
    let mmio = rig.mmio();
    assert!(mmio.negotiate(LINUX));
    let queues = [(RX, &rig.rx), (TX, &rig.tx), (CONTROL, &rig.control)];
    assert!(queues.into_iter().all(|(index, ring)| mmio.set_queue(index, ring.setup())));
    mmio.start();
    rig.control.lie_avail_idx(5000);
    rig.mmio().kick(CONTROL);
    rig.start(LINUX, 256);
    rig.check();
}

#[test]
fn many_commands_at_once_are_all_answered() {
    let mut rig = Rig::started(COMMANDS);
    rig.memory.write_slice(&[RX_CLASS, 0, 1], GuestAddress(COMMAND)).unwrap();
    let (command, answer) = (Buffer::readable(COMMAND, 3), Buffer::writable(ANSWER, 1));
    while rig.control.add(&[command, answer]).is_some() {}
    rig.control.publish();
    rig.mmio().kick(CONTROL);
    wait("all answers", || rig.control.pending() == 32);
    assert!(filter(&rig).promiscuous);
    wait("an interrupt", || rig.irq.read().is_ok());
}

/// A wire whose host never lets the NIC have another address, and never finishes all checksums.
struct Strict(SocketBackend);

impl Backend for Strict {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }
    fn send(&mut self, frame: &Iov<'_>) -> io::Result<Sent> {
        self.0.send(frame)
    }
    fn recv(&mut self, space: &mut Iov<'_>) -> io::Result<usize> {
        self.0.recv(space)
    }
    fn offloads(&self) -> Offloads {
        self.0.offloads()
    }
    fn set_offloads(&mut self, accepted: Offloads) -> io::Result<()> {
        if !accepted.csum {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.0.set_offloads(accepted)
    }
    fn set_filter(&mut self, filter: &RxFilter) -> io::Result<()> {
        if filter.mac.octets() != MAC {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        self.0.set_filter(filter)
    }
}

#[test]
fn what_the_host_refuses_is_an_error_and_changes_nothing() {
    let (wire, peer) = SocketBackend::pair().unwrap();
    let mut rig = Rig::with(Box::new(Strict(wire.with_offloads(ALL))), peer);
    rig.start(COMMANDS, 256);
    assert_eq!(rig.command(&address_set(OTHER), &[2]), ERR);
    assert_eq!(config_mac(&rig), MAC);
    assert_eq!(rig.command(&[RX_CLASS, 1, 1], &[2]), OK);
    assert_eq!(filter(&rig), RxFilter { all_multicast: true, ..fresh() }, "the address is not in it");
    let accepted = rig.peer.accepted();
    assert_eq!((rig.command(&offloads_set(0), &[2]), rig.peer.accepted()), (ERR, accepted));
    rig.check();
}

/// Lies on the control queue, and expects the whole NIC to stop and to come back.
fn lie(what: &str, features: u64, lie: impl Fn(&mut MockRing)) {
    let mut rig = Rig::started(features);
    lie(&mut rig.control);
    rig.mmio().kick(CONTROL);
    wait(what, || rig.mmio().needs_reset());
    rig.start(features, 256);
    assert_eq!(rig.command(&[RX_CLASS, 0, 1], &[2]), OK, "{what}");
    rig.check();
}

#[test]
fn a_broken_control_ring_stops_the_nic() {
    let chain = |buffers: &'static [Buffer]| {
        move |ring: &mut MockRing| {
            ring.add(buffers).unwrap();
            ring.publish();
        }
    };
    const READ: Buffer = Buffer { addr: COMMAND, len: 3, writable: false };
    const WRITE: Buffer = Buffer { addr: ANSWER, len: 1, writable: true };
    lie("no place for the answer", COMMANDS, chain(&[READ]));
    lie("an answer of no length", COMMANDS, chain(&[READ, Buffer { len: 0, ..WRITE }]));
    lie("a command behind its answer", COMMANDS, chain(&[WRITE, READ]));
    lie("a command past memory", COMMANDS, chain(&[Buffer { addr: MEMORY as u64, ..READ }, WRITE]));
    lie("an index that jumps", COMMANDS, |ring| ring.lie_avail_idx(1000));
    lie("a head past the table", COMMANDS, |ring| {
        ring.lie_available(64);
        ring.publish();
    });
    lie("more buffers than there can be", COMMANDS | F_INDIRECT_DESC, |ring| {
        ring.add_indirect(CHAIN_DATA, &[READ; 1025]).unwrap();
        ring.publish();
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..Default::default() })]

    /// Whatever the command: an answer, and a NIC that works.
    #[test]
    fn commands_of_any_content_are_answered(
        commands in proptest::collection::vec((0u8..7, 0u8..7, proptest::collection::vec(any::<u8>(), 0..80)), 1..8),
    ) {
        let mut rig = Rig::started(COMMANDS | F_NOTF_COAL);
        for (class, number, data) in commands {
            let before = (filter(&rig), rig.peer.accepted());
            let command = [&[class, number][..], &data].concat();
            let answer = rig.command(&command, &[]);
            prop_assert!(answer == OK || answer == ERR && (filter(&rig), rig.peer.accepted()) == before);
            prop_assert_eq!(config_mac(&rig), filter(&rig).mac.octets());
        }
        rig.check();
    }
}
