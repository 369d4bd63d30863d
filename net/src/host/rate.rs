//! Holds a guest to a rate at its end on the host, where its frames do not go through wirevm: vhost-net carries them.
//!
//! **Bits wait in a queue of the kernel's, a token bucket ([`Tbf`]), and are dropped only where that is full.** What the link sends
//! has it at the link's root. What the link receives has no queue, so the last rule at its ingress forwards it to an `ifb` of ours,
//! whose queue it waits in, and which hands it back. The detour begins in nftables, after all other rules: one that begins in tc
//! (`mirred`) begins before them, and what is handed back passes none, our guard of the guest's addresses included
//! (`__netif_receive_skb_core`, `skip_classify`).
//!
//! No policer (`act_police`), which drops what a queue lets wait, and of a large frame that is not segmented yet all of it: measured
//! on Linux 6.12, TCP had 9 of 100 Mbit/s by one, and 96 by the queue.
//!
//! **Frames are counted by rules, which drop what is too many**: no queue of the kernel's counts them.

use std::num::NonZeroU64;
use std::time::Duration;

use super::netlink::{RootQdisc, Tbf};
use super::nft::{Chain, Family, Hook, Kind, Match, OwnTable, Rule, Table, Verdict};
use super::{Change, LinkId, Refusal, Wiring};
use crate::error::{ChangeKind, HostError, VhostError};
use crate::{Error, RateLimit, RateLimits};

/// After the chains of all others.
const PRIORITY: i32 = i32::MAX;

/// The chains, by what the link does.
const ARRIVES: &str = "arrives";
const LEAVES: &str = "leaves";

const QUEUE: &str = "the queue in which the guest's frames wait for its rate";
const NO_MORE: &str = "nothing waits any more";
const TOO_MANY: &str = "no more frames in a second";

/// What holds the guest's end to a rate. What it takes back, the wiring knows.
#[derive(Debug)]
pub(crate) struct HostRate {
    /// The number of the link.
    link: u32,
    /// The link is there when we are gone.
    stays: bool,
    /// The guest sends by it, as by a macvtap; else it receives by it.
    guest_sends: bool,
    /// The undo of a queue at its root is kept.
    root: bool,
    /// The `ifb`, once there was one.
    detour: Option<LinkId>,
    rules: Option<Rules>,
    /// Frames that arrived and that left, dropped by what is no more.
    lost: [u64; 2],
}

/// The rules, and what they say: frames in a second, the time of a burst, and the number of the detour.
#[derive(Debug)]
struct Rules {
    table: OwnTable,
    says: ([Option<NonZeroU64>; 2], Duration, Option<u32>),
}

impl HostRate {
    /// Of the link of that number, which is held to nothing yet.
    pub(crate) fn new(link: u32, stays: bool) -> Self {
        Self { link, stays, guest_sends: false, root: false, detour: None, rules: None, lost: [0; 2] }
    }
}

impl Wiring {
    /// Holds the guest at `held` to `limits` from now on. In the wiring's network namespace.
    ///
    /// # Errors
    /// The kernel has no such queue or rule, or the link has a queue of somebody's own. Some of it may be done then.
    pub(crate) fn hold_to(&mut self, held: &mut HostRate, limits: &RateLimits) -> Result<(), Error> {
        let done = self.take_lock().and_then(|()| self.try_hold_to(held, limits));
        self.release_lock();
        done
    }

    fn try_hold_to(&mut self, held: &mut HostRate, limits: &RateLimits) -> Result<(), Error> {
        let asked = |refusal| HostError::Ask { what: "the link at the guest's end".to_owned(), refusal };
        let link = self.netlink.link_by_index(held.link).map_err(asked)?;
        let link = link.ok_or_else(|| HostError::LinkGone { name: format!("number {}", held.link) })?;
        // A macvtap is a link of the guest's own: the guest sends by it.
        let RateLimits { sent, received, burst } = *limits;
        held.guest_sends = link.kind == "macvtap";
        let [leaves, arrives] = if held.guest_sends { [sent, received] } else { [received, sent] };

        let found = self.netlink.root_qdisc(held.link).map_err(asked)?;
        let is_ours = found.as_ref().is_some_and(RootQdisc::is_ours);
        let dropped = found.as_ref().map_or(0, |found| found.dropped);
        if let Some(RootQdisc { kind, .. }) = found.filter(|_| leaves.bits.is_some() && !is_ours) {
            return Err(VhostError::Queue { link: link.id.name, kind }.into());
        }
        if let Some(bits) = arrives.bits {
            let detour = self.detour_of(held)?;
            self.set_tbf(&detour, Tbf::new(bits, burst, link.mtu), true, None)?;
        }
        if let Some(bits) = leaves.bits {
            let undo = Some(Change::RemoveTbf(link.id.clone())).filter(|_| held.stays && !held.root);
            self.set_tbf(&link.id, Tbf::new(bits, burst, link.mtu), is_ours, undo)?;
            held.root = true;
        }
        self.set_rules(held, &link.id, [arrives, leaves], limits)?;
        if leaves.bits.is_none() && is_ours {
            held.lost[1] += u64::from(dropped);
            self.make(Change::RemoveTbf(link.id), None, NO_MORE)?;
        }
        if arrives.bits.is_none()
            && let Some(detour) = held.detour.take()
        {
            held.lost[0] += self.dropped_at(detour.index);
            // Its undo is kept, and finds it gone.
            let gone = self.netlink.link_by_index(detour.index).map_err(asked)?.is_none();
            return if gone { Ok(()) } else { self.make(Change::DeleteLink(detour), None, NO_MORE) };
        }
        Ok(())
    }

    /// The link by which goes what arrives, made where there is none yet.
    fn detour_of(&mut self, held: &mut HostRate) -> Result<LinkId, Error> {
        let asked = |refusal| HostError::Ask { what: "the host's links".to_owned(), refusal };
        if let Some(detour) = &held.detour
            && let Some(found) = self.netlink.link_by_index(detour.index).map_err(asked)?
        {
            return Ok(found.id);
        }
        let link = self.netlink.unused_link().map_err(asked)?;
        let (command, undo) = (format!("ip link add name {link} type ifb"), Change::DeleteLink(link.clone()));
        let why = "the guest's frames take a detour by it, for what arrives has no queue";
        self.make_by(|netlink| netlink.add_ifb(&link), ChangeKind::Rate, command, Some(undo), why)?;
        held.detour = Some(link.clone());
        self.make_quiet(&link, "else the host solicits on it")?;
        self.make(Change::Up(link.clone()), None, "a link that is down drops every frame")?;
        Ok(link)
    }

    /// Frames that our queue at the root of the link of that index has dropped.
    fn dropped_at(&mut self, link: u32) -> u64 {
        let root = self.netlink.root_qdisc(link).ok().flatten().filter(RootQdisc::is_ours);
        root.map_or(0, |root| root.dropped.into())
    }

    /// Frames that were dropped for the rate of `held`: of what the guest sent, and of what it was to receive. What the kernel does
    /// not say counts as nothing.
    pub(crate) fn dropped_for(&mut self, held: &mut HostRate) -> [u64; 2] {
        let mut all = held.lost;
        add(&mut all, by_rules(held));
        let links = [held.detour.as_ref().map(|detour| detour.index), Some(held.link)];
        let by_queues = links.map(|link| link.map(|link| self.dropped_at(link)));
        add(&mut all, by_queues.map(Option::unwrap_or_default));
        let [arrived, left] = all;
        if held.guest_sends { [left, arrived] } else { all }
    }

    fn set_tbf(&mut self, link: &LinkId, tbf: Tbf, again: bool, undo: Option<Change>) -> Result<(), Error> {
        let word = if again { "replace" } else { "add" };
        let command = format!("tc qdisc {word} dev {link} root {}", tbf.words());
        self.make_by(|netlink| netlink.set_tbf(link, &tbf, again), ChangeKind::Rate, command, undo, QUEUE)
    }

    fn set_rules(
        &mut self,
        held: &mut HostRate,
        link: &LinkId,
        ways: [RateLimit; 2],
        limits: &RateLimits,
    ) -> Result<(), Error> {
        let detour = held.detour.as_ref().filter(|_| ways[0].bits.is_some());
        let says = (ways.map(|way| way.frames), limits.burst, detour.map(|detour| detour.index));
        if held.rules.as_ref().is_some_and(|rules| rules.says == says) {
            return Ok(());
        }
        let mut table = table(link, ways, detour, limits);
        let by_rules = by_rules(held);
        let refused = |name: &str, refusal: Refusal| {
            let command = format!("nft add table netdev {name}");
            Error::from(HostError::Step { kind: ChangeKind::Rate, command, refusal })
        };
        match &mut held.rules {
            _ if table.chains.is_empty() => held.rules = None,
            Some(rules) => {
                // Under the name that the link had then.
                rules.table.name().clone_into(&mut table.name);
                let replaced = rules.table.replace_told(&table, self);
                replaced.map_err(|refusal| refused(&table.name, refusal))?;
                rules.says = says;
            }
            none => {
                let made = OwnTable::make_told(&table, self);
                let made = made.map_err(|refusal| refused(&table.name, refusal))?;
                *none = Some(Rules { table: made, says });
            }
        }
        add(&mut held.lost, by_rules);
        Ok(())
    }
}

/// Frames that the rules have dropped of what arrived, and of what left. What the kernel does not say counts as nothing.
fn by_rules(held: &mut HostRate) -> [u64; 2] {
    let Some(rules) = &mut held.rules else { return [0; 2] };
    [ARRIVES, LEAVES].map(|chain| rules.table.dropped_in(chain).unwrap_or_default())
}

fn add(to: &mut [u64; 2], more: [u64; 2]) {
    to.iter_mut().zip(more).for_each(|(to, more)| *to += more);
}

/// The rules for what arrives at the link and what leaves by it; without a chain for that which has no limit.
fn table(
    link: &LinkId,
    [arrives, leaves]: [RateLimit; 2],
    detour: Option<&LinkId>,
    limits: &RateLimits,
) -> Table {
    let too_many = |limit: RateLimit| {
        limit.frames.map(|rate| {
            let burst = u128::from(rate.get()) * limits.burst.as_millis() / 1000;
            let burst = u32::try_from(burst).unwrap_or(u32::MAX).max(1);
            Rule { matches: vec![Match::Over { rate, burst }], verdict: Verdict::Drop, why: TOO_MANY }
        })
    };
    let forward = detour.map(|detour| Rule {
        matches: Vec::new(),
        verdict: Verdict::Forward(detour.clone()),
        why: "the detour; it comes back from there",
    });
    let chain = |name, hook, why, rules: Vec<Rule>| {
        let device = Some(link.clone());
        let chain = Chain { name, kind: Kind::Filter, hook, device, priority: PRIORITY, why, rules };
        Some(chain).filter(|chain| !chain.rules.is_empty())
    };
    let arrives = too_many(arrives).into_iter().chain(forward).collect();
    let chains = [
        chain(ARRIVES, Hook::Ingress, "after all rules for what the link receives", arrives),
        chain(
            LEAVES,
            Hook::Egress,
            "before the queue of what the link sends",
            too_many(leaves).into_iter().collect(),
        ),
    ];
    Table {
        family: Family::Netdev,
        // No other link's table is called so: there a `_` is one of its name.
        name: format!("{}_rate", Table::name_for(&link.name)),
        sets: Vec::new(),
        chains: chains.into_iter().flatten().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(limits: &str, detour: bool) -> Vec<String> {
        let link = |index, name: &str| LinkId { index, name: name.to_owned() };
        let (tap, ifb) = (link(7, "tap0"), link(8, "wirevm0"));
        let limits: RateLimits = limits.parse().unwrap();
        let table = table(&tap, [limits.sent, limits.received], Some(&ifb).filter(|_| detour), &limits);
        table.steps().into_iter().skip(1).map(|step| step.command).collect()
    }

    #[test]
    fn what_arrives_takes_the_detour_after_all_rules_and_frames_are_counted_both_ways() {
        assert_eq!(
            lines("rate=1M,pps=10k:7,burst=20", true),
            [
                "nft 'add chain netdev wirevm-tap0_rate arrives { type filter hook ingress device \"tap0\" priority 2147483647; }'",
                "nft 'add rule netdev wirevm-tap0_rate arrives limit rate over 10000/second burst 200 packets counter drop'",
                "nft 'add rule netdev wirevm-tap0_rate arrives fwd to \"wirevm0\"'",
                "nft 'add chain netdev wirevm-tap0_rate leaves { type filter hook egress device \"tap0\" priority 2147483647; }'",
                "nft 'add rule netdev wirevm-tap0_rate leaves limit rate over 7/second burst 1 packets counter drop'",
            ]
        );
        assert_eq!(lines("rate=off:1M", false), [""; 0], "a queue at the root needs no rule");
        assert_eq!(lines("pps=off:1k", false).len(), 2);
    }
}
