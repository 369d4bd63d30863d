//! What a guest may not send into a bridge, whoever made the bridge: rules at the ingress of its port, in a table of their own that
//! goes with this process. They hold for all that is behind the port: the host, which is on the bridge with its own addresses
//! where it has an uplink and lives by the router advertisements of the LAN, the other guests, and the LAN.

use super::nft::frame::{FrameMatch, Icmpv6};
use super::nft::ingress::IngressTable;
use super::nft::{Match, Nft, Rule, Verdict};
use super::{LinkId, Sysctl, Wiring};
use crate::Error;
use crate::error::BridgeError;

/// The table for the guest at `port`.
fn table(port: &str) -> IngressTable {
    let rule = |one, why| Rule { matches: vec![Match::Frame(one)], verdict: Verdict::Drop, why };
    let rules = vec![
        rule(
            FrameMatch::Icmpv6(Icmpv6::RouterAdvertisement),
            "the guest shall not make itself the router of others",
        ),
        rule(FrameMatch::Icmpv6(Icmpv6::Redirect), "nor send them to other routers"),
    ];
    IngressTable { name: format!("wirevm-{port}"), link: port.to_owned(), rules }
}

impl Wiring {
    /// Guards `bridge` and all on it from what the guest at `port` sends, before the port is up.
    ///
    /// # Errors
    /// The kernel refuses the rules.
    pub(crate) fn guard_port(&mut self, port: &LinkId) -> Result<(), Error> {
        let table = table(&port.name);
        let mut nft = Nft::new();
        let made = nft.make_ingress(&table);
        made.map_err(|refusal| BridgeError::Guard { port: port.name.clone(), refusal })?;
        table.steps().into_iter().for_each(|step| self.tell(step.command, step.why));
        self.port_guard = Some(nft);
        Ok(())
    }

    /// Notices where the host takes router advertisements from `link`, on which nothing keeps the guest's away.
    pub(crate) fn warn_of_routers(&mut self, link: &LinkId) {
        if hears_routers(link) {
            self.notice(format!(
                "the host takes router advertisements on {link}, the guest's too, which can make it the host's router; have it \
                 take none: sudo sysctl -w net.ipv6.conf.{link}.accept_ra=0"
            ));
        }
    }
}

/// Whether the host takes router advertisements on the link (kernel `Documentation/networking/ip-sysctl.rst`, `accept_ra`).
fn hears_routers(link: &LinkId) -> bool {
    let value = |key| Sysctl::read(&format!("net/ipv6/conf/{link}/{key}")).unwrap_or_default();
    let heard = match value("accept_ra").as_str() {
        "" | "0" => false,
        "2" => true,
        _ => value("forwarding") == "0",
    };
    heard && value("disable_ipv6") == "0"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_lines_for_the_shell() {
        let lines: Vec<_> = table("wirevm0").steps().into_iter().map(|step| step.command).collect();
        assert_eq!(
            lines[..3],
            [
                "nft add table netdev wirevm-wirevm0",
                "nft 'add chain netdev wirevm-wirevm0 guard { type filter hook ingress device \"wirevm0\" priority -300; }'",
                "nft 'add rule netdev wirevm-wirevm0 guard icmpv6 type nd-router-advert counter drop'",
            ]
        );
    }
}
