//! What the rules of others do with packets of which nothing is known: those that ask for something are left out, and of the rest the
//! kernel's own way through the chains is gone (nft(8), "verdict statement").

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_bindings::nftables::{CmpOps, ExprOps, IterableExprAttrs, PayloadBase, VerdictCode};

use super::socket::text;

/// What a rule that asks for nothing does with every packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Accept,
    Drop,
    /// To that chain, and back.
    Jump(String),
    /// To that chain.
    Goto(String),
    Return,
}

/// What becomes of a packet at the end of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Accept,
    Drop,
    /// Whoever sent it here decides: in the end the base chain's policy.
    Open,
}

/// Deeper than chains can be nested (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;

/// What becomes of every packet in `chain`.
pub(super) fn fate(chains: &HashMap<String, Vec<Way>>, chain: &str) -> Fate {
    fate_at(chains, chain, DEPTH)
}

fn fate_at(chains: &HashMap<String, Vec<Way>>, chain: &str, depth: usize) -> Fate {
    let Some(deeper) = depth.checked_sub(1) else { return Fate::Open };
    for way in chains.get(chain).into_iter().flatten() {
        match way {
            Way::Accept => return Fate::Accept,
            Way::Drop => return Fate::Drop,
            Way::Return => return Fate::Open,
            Way::Goto(to) => return fate_at(chains, to, deeper),
            Way::Jump(to) => match fate_at(chains, to, deeper) {
                Fate::Open => {}
                decided => return decided,
            },
        }
    }
    Fate::Open
}

/// What a rule does with every packet; none where it asks for something, or does nothing with the packet itself.
pub(super) fn of_all(expressions: &[IterableExprAttrs<'_>]) -> Option<Way> {
    let (last, before) = expressions.split_last()?;
    let name = |one: &IterableExprAttrs<'_>| text(one.get_name().ok());
    // Nothing but counting and noting goes before.
    before.iter().all(|one| ["counter", "log"].contains(&name(one).as_str())).then(|| way(last))?
}

fn way(last: &IterableExprAttrs<'_>) -> Option<Way> {
    match last.get_data() {
        Ok(ExprOps::Immediate(immediate)) => {
            let verdict = immediate.get_data().and_then(|data| data.get_verdict()).ok()?;
            let to = || verdict.get_chain().ok().map(|chain| text(Some(chain)));
            let code = verdict.get_code().ok()?;
            match code {
                code if code == VerdictCode::Accept as u32 => Some(Way::Accept),
                code if code == VerdictCode::Drop as u32 => Some(Way::Drop),
                code if code == VerdictCode::Return as u32 => Some(Way::Return),
                code if code == VerdictCode::Jump as u32 => to().map(Way::Jump),
                code if code == VerdictCode::Goto as u32 => to().map(Way::Goto),
                _ => None,
            }
        }
        // The targets of iptables, inside a table of its.
        Ok(ExprOps::Target(target)) => match text(target.get_name().ok()).as_str() {
            "DROP" | "REJECT" => Some(Way::Drop),
            _ => None,
        },
        _ => (text(last.get_name().ok()) == "reject").then_some(Way::Drop),
    }
}

/// The subnet from or to which a rule lets packets pass, whatever else it asks for; none where it does not.
pub(super) fn accepted(expressions: &[IterableExprAttrs<'_>]) -> Option<(IpAddr, u8)> {
    (way(expressions.last()?) == Some(Way::Accept)).then_some(())?;
    // A part of the header is loaded, of it some bits taken or all, and that is compared.
    let (mut address_len, mut bits) = (None, None);
    for one in expressions {
        match one.get_data() {
            Ok(ExprOps::Payload(load)) => {
                let base = load.get_base().is_ok_and(|base| base == PayloadBase::NetworkHeader as u32);
                address_len = match (load.get_offset(), load.get_len()) {
                    // Source and destination of IPv4 (RFC 791), or the first bytes of one.
                    (Ok(12 | 16), Ok(1..=4)) if base => Some(4),
                    (Ok(8 | 24), Ok(1..=16)) if base => Some(16),
                    _ => None,
                };
                bits = load.get_len().ok().map(|len| 8 * len);
            }
            Ok(ExprOps::Bitwise(bitwise)) => {
                let mask = bitwise.get_mask().and_then(|mask| mask.get_value()).unwrap_or_default();
                bits = Some(mask.iter().map(|byte| byte.leading_ones()).sum());
            }
            Ok(ExprOps::Cmp(compare)) => {
                let Some(len) = address_len.take() else { continue };
                if compare.get_op().is_ok_and(|op| op == CmpOps::Eq as u32) {
                    let value = compare.get_data().and_then(|data| data.get_value()).ok()?;
                    return Some((address(value, len)?, u8::try_from(bits?).ok()?));
                }
            }
            _ => {}
        }
    }
    None
}

/// An address of `len` bytes that begins with these.
fn address(bytes: &[u8], len: usize) -> Option<IpAddr> {
    let mut whole = [0; 16];
    whole.get_mut(..bytes.len().min(len))?.copy_from_slice(bytes.get(..bytes.len().min(len))?);
    Some(match len {
        4 => Ipv4Addr::from([whole[0], whole[1], whole[2], whole[3]]).into(),
        _ => Ipv6Addr::from(whole).into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_goes_through_chains_as_the_kernel_has_it() {
        let jump = |to: &str| Way::Jump(to.to_owned());
        let chains: HashMap<_, _> = [
            ("empty", vec![]),
            ("drops", vec![Way::Drop]),
            ("returns", vec![Way::Return, Way::Drop]),
            ("accepts", vec![jump("empty"), Way::Accept, Way::Drop]),
            ("jumps", vec![jump("empty"), jump("returns"), jump("drops"), Way::Accept]),
            ("goes", vec![Way::Goto("returns".to_owned()), Way::Drop]),
            ("circle", vec![jump("circle")]),
            ("nowhere", vec![jump("none")]),
        ]
        .map(|(name, ways)| (name.to_owned(), ways))
        .into();
        for (chain, what) in [
            ("empty", Fate::Open),
            ("drops", Fate::Drop),
            ("returns", Fate::Open),
            ("accepts", Fate::Accept),
            ("jumps", Fate::Drop),
            ("goes", Fate::Open),
            ("circle", Fate::Open),
            ("nowhere", Fate::Open),
            ("none", Fate::Open),
        ] {
            assert_eq!(fate(&chains, chain), what, "{chain}");
        }
    }
}
