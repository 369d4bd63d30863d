//! Stock Linux guests.

use std::time::{Duration, Instant};

use harness::stock::{self, Stock};
use harness::traffic::Noise;
use harness::{Vm, need, skip};

use crate::reach::differences;
use crate::row::{Family, Row};
use crate::world::{World, on};

pub(crate) const COMMAND: Duration = Duration::from_secs(60);
const TRANSFER: Duration = Duration::from_secs(240);

mod elsewhere;

/// Boots the two guests, with a NIC on each row that they are on.
fn boot(kernel: &Stock, world: &World, rows: &[Row]) -> Vec<Vm> {
    let start = |guest: u8| {
        let nets =
            on(rows, guest).map(|row| format!("{},mac={}", row.specs[usize::from(guest)], row.mac(guest)));
        let args: Vec<_> = nets.flat_map(|net| ["--net".to_owned(), net]).collect();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        kernel.start(&world.host, "", &args)
    };
    let mut guests: Vec<_> = (0..2).map(start).collect();
    for (vm, guest) in guests.iter_mut().zip(0..) {
        vm.expect_from_shell("guest# ", stock::BOOT);
        world.set_up(vm, rows, guest);
    }
    guests
}

#[track_caller]
fn power_off(guests: Vec<Vm>) {
    for mut vm in guests {
        vm.type_in("poweroff\n");
        vm.ends_with(0, COMMAND);
    }
}

#[test]
fn what_reaches_what_is_what_explain_prints() {
    let kernel = need!(stock::fastest());
    let rows = Row::all();
    let mut world = need!(World::new(&rows));
    let before = world.state();
    let mut guests = boot(&kernel, &world, &rows);

    let mut wrong = differences(&world, &mut guests, &rows);
    // Links that wirevm has switched on for a guest behind NAT pass nothing else while that runs, so the host is made a router before.
    power_off(guests);
    world.forward();
    let mut guests = boot(&kernel, &world, &rows);
    world.meet(&rows, &mut guests[1]);
    wrong.extend(differences(&world, &mut guests, &rows));
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), guests[0].state());

    forwarded_port(&world, &mut guests[0]);
    own_macs(&world, &rows);
    known_neighbours(&rows, &mut guests);
    alone(&kernel, &world, &rows);
    streams(&world, &rows, &mut guests[0]);

    world.release_bridge();
    power_off(guests);
    world.part();
    let until = Instant::now() + Duration::from_secs(5);
    while world.state() != before && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(world.state(), before);
    if !world.families.contains(&Family::V6) {
        skip!("over IPv6: this machine has none");
    }
}

/// A forwarded port reaches into the guest behind the NAT.
#[track_caller]
fn forwarded_port(world: &World, guest: &mut Vm) {
    // Until somebody listens at port 80.
    guest.sh(
        "(echo through the port | nc -l -p 80) & until grep -q ':0050 .* 0A ' /proc/net/tcp*; do sleep 0.1; done",
        COMMAND,
    );
    let busybox = stock::resources().join("busybox");
    let answer = world.lan.sh(&format!("{} nc 10.11.0.1 8011 </dev/null", busybox.display()));
    assert_eq!(answer.trim(), "through the port", "{}", guest.state());
}

/// Who is on a NIC of the host is known to the LAN by a MAC address of its own; who is behind the host, by the NIC's.
#[track_caller]
fn own_macs(world: &World, rows: &[Row]) {
    for row in rows.iter().filter(|row| !row.routed) {
        for family in &world.families {
            let neighbour = world.lan.sh(&format!("ip neigh show {}", row.guest(*family, 0)));
            assert!(neighbour.contains(&row.mac(0)), "{}: {neighbour}\n{}", row.name, world.lan.state());
        }
    }
    // The host's address is the bridge's while the NIC is a port of it.
    let uplink = world.host.sh("ip -o addr show dev u14; echo; ip -o addr show dev br14");
    let (nic, bridge) = uplink.split_once("\n\n").expect("both");
    for family in &world.families {
        let address = format!(" {}/", family.at(14, 0, 1));
        assert!(!nic.contains(&address) && bridge.contains(&address), "{}", world.host.state());
    }
}

/// Guests in mode `private` do not find each other through a switch that sends frames back, but to a MAC address that they
/// know already, frames pass.
#[track_caller]
fn known_neighbours(rows: &[Row], guests: &mut [Vm]) {
    let row = rows.iter().find(|row| row.name.ends_with("private")).expect("a row");
    let [a, b] = [0, 1].map(|guest| (row.guest(Family::V4, guest), row.mac(guest)));
    guests[0].sh(&format!("arp -s {} {}", b.0, b.1), COMMAND);
    guests[1].sh(&format!("arp -s {} {}", a.0, a.1), COMMAND);
    guests[0].sh(&format!("ping -c 2 -i 0.2 -W 10 {}", b.0), COMMAND);
}

/// A NIC that a guest has to itself is refused to another one.
#[track_caller]
fn alone(kernel: &Stock, world: &World, rows: &[Row]) {
    for row in rows.iter().filter(|row| row.specs.len() == 1) {
        let mut vm = kernel.start(&world.host, "", &["--net", &format!("macvtap=u{}", row.n)]);
        vm.ends_with(1, COMMAND);
        assert!(vm.messages().contains("has all of it (mode passthru)"), "{}: {}", row.name, vm.state());
    }
}

/// Whole streams cross each wire, checked byte by byte.
#[track_caller]
fn streams(world: &World, rows: &[Row], guest: &mut Vm) {
    for row in rows {
        for family in &world.families {
            let noise = Noise::serve(&world.lan, row.lan(*family), 1 << 20);
            guest.sh(&noise.guest_commands(), TRANSFER);
            noise.check().unwrap_or_else(|why| panic!("{}, {family:?}: {why}\n{}", row.name, guest.state()));
        }
    }
}
