//! Any requests at all: an honest driver's disk is as a plain array would be, and what a hostile one puts on its ring does no harm.

mod disk_rig;

use std::os::unix::fs::FileExt;

use devices::virtio::block::Medium;
use devices::virtio::mock::Buffer;
use disk_rig::*;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

/// A request of an honest driver, or of one that errs.
#[derive(Clone, Debug)]
struct Ask {
    kind: u32,
    sector: u64,
    sectors: u32,
    /// Bytes more than whole sectors.
    odd: usize,
    flags: u32,
    cuts: Vec<usize>,
}

fn ask() -> impl Strategy<Value = Ask> {
    let kind = prop_oneof![
        4 => Just(IN),
        4 => Just(OUT),
        1 => Just(FLUSH),
        2 => Just(DISCARD),
        2 => Just(WRITE_ZEROES),
        1 => any::<u32>()
    ];
    let sector = prop_oneof![8 => 0..SECTORS, 1 => SECTORS - 2..SECTORS + 2, 1 => any::<u64>()];
    let odd = prop_oneof![12 => Just(0usize), 1 => 1usize..512];
    let flags = prop_oneof![6 => Just(0u32), 3 => Just(1), 1 => any::<u32>()];
    let cuts =
        proptest::collection::btree_set(1usize..5000, 0..6).prop_map(|cuts| cuts.into_iter().collect());
    (kind, sector, 0u32..12, odd, flags, cuts).prop_map(|(kind, sector, sectors, odd, flags, cuts)| Ask {
        kind,
        sector,
        sectors,
        odd,
        flags,
        cuts,
    })
}

/// What the disk is to answer, and what becomes of `model`.
fn expected(ask: &Ask, model: &mut [u8], sent: &[u8]) -> u8 {
    let end = ask.sector.checked_add(ask.sectors.into());
    let there = end.is_some_and(|end| end <= SECTORS);
    let place = || ask.sector as usize * SECTOR..(ask.sector as usize + ask.sectors as usize) * SECTOR;
    match ask.kind {
        IN | OUT if !there || ask.odd > 0 || ask.sectors == 0 => IOERR,
        OUT => {
            model[place()].copy_from_slice(sent);
            OK
        }
        DISCARD if ask.flags != 0 => UNSUPP,
        WRITE_ZEROES if ask.flags > 1 => UNSUPP,
        DISCARD | WRITE_ZEROES if !there => IOERR,
        // What is discarded may read as anything; here it is given back, which is zeroes.
        DISCARD | WRITE_ZEROES => {
            model[place()].fill(0);
            OK
        }
        IN | FLUSH | GET_ID => OK,
        _ => UNSUPP,
    }
}

fn plays(medium: Medium, async_io: bool, asks: &[Ask], mut model: Vec<u8>) -> Result<Vec<u8>, TestCaseError> {
    let mut rig = Rig::with(medium, async_io, 1);
    for (number, ask) in asks.iter().enumerate() {
        let len = ask.sectors as usize * SECTOR + ask.odd;
        let (sent, room) = match ask.kind {
            OUT => (pattern(len, number as u64), 0),
            DISCARD | WRITE_ZEROES => (range(ask.sector, ask.sectors, ask.flags), 0),
            _ => (Vec::new(), if ask.kind == IN { len } else { 0 }),
        };
        let before = model.clone();
        let status = expected(ask, &mut model, &sent);
        let (answer, found, _) = rig.ask_in_pieces(ask.kind, ask.sector, &sent, room, &ask.cuts, &ask.cuts);
        prop_assert_eq!(answer, status, "{:?}", ask);
        if (ask.kind, answer) == (IN, OK) {
            prop_assert!(found == before[ask.sector as usize * SECTOR..][..len], "{:?}", ask);
        }
    }
    prop_assert!(rig.read(0, SECTORS as usize) == model);
    Ok(model)
}

/// Descriptors of any content, on rings of any content.
fn descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop_oneof![
        4 => Just(SENT),
        4 => ROOM..ROOM + 0x1000,
        1 => 0x1_0000u64..0x1_4000,
        1 => any::<u64>(),
        1 => Just(MEMORY - 100)
    ];
    let len = prop_oneof![3 => Just(16u32), 3 => Just(513), 2 => 0u32..5000, 1 => any::<u32>()];
    (
        address,
        len,
        prop_oneof![6 => 0u16..4, 1 => any::<u16>()],
        prop_oneof![6 => 0u16..24, 1 => any::<u16>()],
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_disk_is_as_a_plain_array_would_be(asks in proptest::collection::vec(ask(), 1..40), async_io: bool) {
        let bytes = pattern(SECTORS as usize * SECTOR, 1);
        let whole = file(&bytes);
        let model = plays(medium(&whole, SECTORS * 512), async_io, &asks, bytes.clone())?;
        let mut found = vec![0; bytes.len()];
        whole.read_exact_at(&mut found, 0).unwrap();
        prop_assert!(found == model, "the file is as the guest sees it");

        let base = file(&bytes);
        let over = Medium { overlay: Some(holes()), ..medium(&base, SECTORS * 512) };
        let same = plays(over, async_io, &asks, bytes.clone())?;
        prop_assert!(same == model);
        base.read_exact_at(&mut found, 0).unwrap();
        prop_assert!(found == bytes, "the file below is as it was");

        let copied = Medium { direct: Some(64), ..medium(&file(&bytes), SECTORS * 512) };
        plays(copied, async_io, &asks, bytes)?;
    }

    /// Whatever is on the ring: no panic, an end in bounded time, and a disk that works after a reset.
    #[test]
    fn rings_of_any_content_do_no_harm(
        descriptors in proptest::collection::vec(descriptor(), 1..24),
        heads in proptest::collection::vec(prop_oneof![8 => 0u16..24, 1 => any::<u16>()], 1..40),
        header in (0u32..16, prop_oneof![0..SECTORS, any::<u64>()]),
        index in prop_oneof![3 => 0u16..64, 1 => any::<u16>()],
        async_io: bool,
    ) {
        let bytes = pattern(SECTORS as usize * SECTOR, 1);
        let whole = file(&bytes);
        let mut rig = Rig::on(&whole, async_io);
        let header = [&header.0.to_le_bytes()[..], &[0; 4], &header.1.to_le_bytes()].concat();
        rig.memory.write_slice(&header, GuestAddress(SENT)).unwrap();
        for (at, (addr, len, flags, next)) in descriptors.iter().enumerate() {
            rig.rings[0].lie_descriptor(at as u16, Buffer::readable(*addr, *len), *flags, *next);
        }
        heads.iter().for_each(|head| rig.rings[0].lie_available(*head));
        rig.rings[0].publish();
        rig.bus.kicks()[0].write(1).unwrap();
        std::thread::sleep(std::time::Duration::from_micros(300));
        rig.rings[0].lie_avail_idx(index);
        rig.bus.kicks()[0].write(1).unwrap();
        rig.mmio().reset();
        rig.start(LINUX);
        rig.check();
        prop_assert_eq!(whole.metadata().unwrap().len(), bytes.len() as u64);
    }
}
