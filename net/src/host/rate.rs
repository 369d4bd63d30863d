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

use super::netlink::{RootQdisc, Tbf};
use super::nft::{Chain, Family, Hook, Kind, Match, OwnTable, Rule, Table, Verdict};
use super::{Change, LinkId, Refusal, Wiring};
use crate::error::{ChangeKind, HostError, VhostError};
use crate::{Error, RateLimit, RateLimits};

/// After the chains of all others.
const PRIORITY: i32 = i32::MAX;

const QUEUE: &str = "the queue in which the guest's frames wait for its rate";
const TOO_MANY: &str = "no more frames in a second";

/// What holds the guest's end to a rate. What it takes back, the wiring knows.
#[derive(Debug)]
pub(crate) struct HostRate {
    /// The number of the link.
    link: u32,
    /// The link is there when we are gone.
    stays: bool,
    /// The undo of a queue at its root is kept.
    root: bool,
    /// The `ifb`, once there was one.
    detour: Option<LinkId>,
    rules: Option<(Table, OwnTable)>,
}

impl HostRate {
    /// Of the link of that number, which is held to nothing yet.
    pub(crate) fn new(link: u32, stays: bool) -> Self {
        Self { link, stays, root: false, detour: None, rules: None }
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
        let [leaves, arrives] = if link.kind == "macvtap" { [sent, received] } else { [received, sent] };

        if let Some(bits) = arrives.bits {
            let detour = self.detour_of(held)?;
            self.set_tbf(&detour, Tbf::new(bits, burst, link.mtu), true, None)?;
        }
        let found = self.netlink.root_qdisc(&link.id).map_err(asked)?;
        let is_ours = found.as_ref().is_some_and(RootQdisc::is_ours);
        if let Some(bits) = leaves.bits {
            if let Some(RootQdisc { kind, .. }) = found.filter(|_| !is_ours) {
                return Err(VhostError::Queue { link: link.id.name, kind }.into());
            }
            let undo = Some(Change::RemoveTbf(link.id.clone())).filter(|_| held.stays && !held.root);
            self.set_tbf(&link.id, Tbf::new(bits, burst, link.mtu), is_ours, undo)?;
            held.root = true;
        }
        self.set_rules(held, &link.id, [arrives, leaves], limits)?;
        if leaves.bits.is_none() && is_ours {
            self.make(Change::RemoveTbf(link.id), None, "nothing waits any more")?;
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
        let mut table = table(link, ways, detour, limits);
        let refused = |name: &str, refusal: Refusal| {
            let command = format!("nft add table netdev {name}");
            Error::from(HostError::Step { kind: ChangeKind::Rate, command, refusal })
        };
        match &mut held.rules {
            _ if table.chains.is_empty() => held.rules = None,
            Some((before, rules)) => {
                // Under the name that the link had then.
                table.name.clone_from(&before.name);
                if table.chains != before.chains {
                    rules.replace_told(&table, self).map_err(|refusal| refused(&table.name, refusal))?;
                    *before = table;
                }
            }
            none => {
                let made = OwnTable::make_told(&table, self);
                let made = made.map_err(|refusal| refused(&table.name, refusal))?;
                *none = Some((table, made));
            }
        }
        Ok(())
    }
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
        chain("arrives", Hook::Ingress, "after all rules for what the link receives", arrives),
        chain(
            "leaves",
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
