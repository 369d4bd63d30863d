//! What `wirevm explain` says of who reaches whom, and what pings say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use harness::{Vm, wirevm};

use crate::row::{BESIDE, Family, Row};
use crate::stock::COMMAND;
use crate::world::World;

/// Of a row: guest to host, to guest, to LAN, and from the LAN.
pub(crate) type Cells<T> = [T; 4];

/// The table as `wirevm explain` prints it, by row.
pub(crate) fn explained() -> BTreeMap<String, Cells<String>> {
    let output = wirevm().arg("explain").output().expect("wirevm explains");
    let text = String::from_utf8(output.stdout).expect("text");
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<_> = line.split_whitespace().map(String::from).collect();
        match cells.as_slice() {
            [name, layer, host, guest, lan, from_lan] if ["2", "3"].contains(&layer.as_str()) => {
                Some((name.clone(), [host, guest, lan, from_lan].map(String::clone)))
            }
            _ => None,
        }
    });
    rows.collect()
}

/// Where the table and the pings differ, in words. Over each family, for the conditions as they are.
pub(crate) fn differences(world: &World, guests: &mut [Vm], rows: &[Row]) -> Vec<String> {
    let explained = explained();
    let pairs: Vec<_> =
        rows.iter().flat_map(|row| world.families.iter().map(move |family| (row, *family))).collect();
    let expected: Vec<_> = pairs
        .iter()
        .map(|(row, _)| explained[row.name].each_ref().map(|word| passes(word, world.met)))
        .collect();
    let mut measured = vec![[false; 4]; pairs.len()];
    // Where less passes than must, it is tried again: a guest may be slow.
    for _ in 0..3 {
        for (sum, new) in measured.iter_mut().zip(measure(world, guests, &pairs)) {
            sum.iter_mut().zip(new).for_each(|(sum, new)| *sum |= new);
        }
        let mut cells = measured.as_flattened().iter().zip(expected.as_flattened());
        if cells.all(|(measured, expected)| measured >= expected) {
            break;
        }
    }
    let met = if world.met { "met" } else { "not met" };
    let differ =
        pairs.iter().zip(&measured).zip(&expected).filter(|((_, measured), expected)| measured != expected);
    let words = differ.map(|(((row, family), measured), _)| {
        let says = &explained[row.name];
        format!("{}, {family:?}, conditions {met}: explained as {says:?}, measured {measured:?}", row.name)
    });
    words.collect()
}

/// Whether a ping passes where the table has this word. All words but these name a condition, and a ping is to no port that
/// `forward=` names.
fn passes(word: &str, met: bool) -> bool {
    match word {
        "yes" => true,
        "no" | "alone" | "forward=" => false,
        _ => met,
    }
}

/// What reaches what over each of the pairs.
fn measure(world: &World, guests: &mut [Vm], pairs: &[(&Row, Family)]) -> Vec<Cells<bool>> {
    let host = |(row, family): &(&Row, Family)| match row.name {
        "macvtap=eth0" if world.met => family.at(row.n, 0, BESIDE),
        _ => row.host(*family, 0),
    };
    let [a, b] = [0, 1].map(|guest| move |(row, family): &(&Row, Family)| row.guest(*family, guest));
    let far = |(row, family): &(&Row, Family)| row.lan(*family);
    let of_two = || pairs.iter().filter(|(row, _)| row.specs.len() > 1);

    // All ask at the same time.
    let lan = ask(pairs.iter().map(a));
    let netns = world.lan.clone();
    let lan = std::thread::spawn(move || answered(&netns.sh(&format!("{lan} wait"))));
    let asked = [
        pairs.iter().map(host).chain(pairs.iter().map(far)).chain(of_two().map(b)).collect::<Vec<_>>(),
        of_two().map(a).collect(),
    ];
    for (guest, addresses) in guests.iter_mut().zip(&asked) {
        // The guest's shell takes lines of 1000 characters.
        for some in addresses.chunks(30) {
            guest.sh(&format!("{{ {} wait; }} >>/dev/shm/reached & :", ask(some.iter().copied())), COMMAND);
        }
    }
    let [first, second] = [0, 1]
        .map(|guest| answered(&guests[guest].sh("wait; cat /dev/shm/reached; rm /dev/shm/reached", COMMAND)));
    let lan = lan.join().expect("the LAN asks");
    let cells = |pair| {
        let mutual = first.contains(&b(pair)) && second.contains(&a(pair));
        [first.contains(&host(pair)), mutual, first.contains(&far(pair)), lan.contains(&a(pair))]
    };
    pairs.iter().map(cells).collect()
}

/// A shell's lines that ping these addresses at once, and print those that answer.
fn ask(addresses: impl Iterator<Item = IpAddr>) -> String {
    let addresses: BTreeSet<_> = addresses.map(|address| address.to_string()).collect();
    let list = addresses.into_iter().collect::<Vec<_>>().join(" ");
    format!("for a in {list}; do ping -q -c 3 -i 0.4 -W 2 $a >/dev/null 2>&1 && echo reached $a & done;")
}

fn answered(text: &str) -> BTreeSet<IpAddr> {
    text.lines().filter_map(|line| line.trim().strip_prefix("reached ")?.parse().ok()).collect()
}
