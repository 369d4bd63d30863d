//! What was counted of the NICs, by the machine and by the host, as clients are told.

use net::Wire;
use vmm::counters::{
    Coalesced, Direction, Dropped, HostCounters, HostDirection, NetCounters, NicCounters, QueueCounters,
};

use super::nic_table::Nics;
use crate::protocol::{self, PairCounters};

/// The counters of `nics` at the moment `at`, of which the machine has `counted` its part.
pub(super) fn of_nics(at: u64, nics: &mut Nics, counted: &protocol::Counters) -> NetCounters {
    let none = protocol::NicCounters::default();
    // One on its way in is not there yet.
    let nics = nics.iter_mut().filter(|nic| nic.is_in()).map(|nic| {
        let of_host = nic.wire.as_mut().map(Wire::counters).unwrap_or_default();
        let counted = counted.nics.iter().find(|counted| counted.number == nic.number).unwrap_or(&none);
        NicCounters {
            name: nic.name(),
            carrier: nic.carrier().to_owned(),
            link: nic.wire.as_ref().map(|wire| wire.link().to_owned()).unwrap_or_default(),
            queues: counted.pairs.iter().map(of_pair).collect(),
            host: of_host
                .link
                .map(|link| HostCounters { sent: tally(link.sent), received: tally(link.received) }),
            dropped: dropped([
                ("guard", of_host.guarded),
                ("rate", of_host.rate),
                ("not_ip", counted.ignored),
            ]),
        }
    });
    NetCounters { at, nics: nics.collect() }
}

fn of_pair(pair: &PairCounters) -> QueueCounters {
    // What was lost, less what there is another word for.
    let rest = |all: u64, causes: &[u64]| causes.iter().fold(all, |rest, cause| rest.saturating_sub(*cause));
    let &PairCounters {
        tx_too_long, tx_link_down, tx_host_down, rx_too_long, rx_no_buffer, rx_unread, ..
    } = pair;
    QueueCounters {
        sent: Direction {
            frames: pair.tx_frames,
            bytes: pair.tx_bytes,
            rate_waits: pair.tx_rate_waits,
            dropped: dropped([
                ("too_long", tx_too_long),
                ("link_down", tx_link_down),
                ("host_down", tx_host_down),
                ("refused", rest(pair.tx_dropped, &[tx_too_long, tx_link_down, tx_host_down])),
            ]),
        },
        received: Direction {
            frames: pair.rx_frames,
            bytes: pair.rx_bytes,
            rate_waits: pair.rx_rate_waits,
            dropped: dropped([
                ("too_long", rx_too_long),
                ("no_buffer", rx_no_buffer),
                ("unread", rx_unread),
                ("unfit", rest(pair.rx_dropped, &[rx_too_long, rx_no_buffer, rx_unread])),
            ]),
        },
        coalesced: Coalesced { frames: pair.tx_merged, packets: pair.tx_packets },
        kicks: pair.kicks,
        interrupts: pair.interrupts,
        system_calls: pair.calls,
    }
}

fn dropped<const N: usize>(causes: [(&str, u64); N]) -> Dropped {
    causes.into_iter().map(|(cause, count)| (cause.to_owned(), count)).collect()
}

fn tally(of: net::Tally) -> HostDirection {
    HostDirection { frames: of.frames, bytes: of.bytes, dropped: of.dropped }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_frame_that_is_lost_has_one_cause() {
        let counters = of_pair(&PairCounters {
            tx_dropped: 9,
            tx_too_long: 2,
            tx_link_down: 1,
            tx_host_down: 4,
            rx_dropped: 20,
            rx_too_long: 5,
            rx_no_buffer: 6,
            rx_unread: 7,
            tx_merged: 40,
            tx_packets: 3,
            ..PairCounters::default()
        });
        assert_eq!(
            counters.sent.dropped,
            dropped([("too_long", 2), ("link_down", 1), ("host_down", 4), ("refused", 2)])
        );
        let expected = [("too_long", 5), ("no_buffer", 6), ("unread", 7), ("unfit", 2)];
        assert_eq!(counters.received.dropped, dropped(expected));
        assert_eq!(counters.coalesced, Coalesced { frames: 40, packets: 3 });
        assert_eq!((counters.sent.lost(), counters.received.lost()), (9, 20));
    }
}
