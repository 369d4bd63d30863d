//! A table of the family `netdev` with one chain at the ingress of one link: it sees each frame that the link brings before any
//! other part of the host does, a bridge and its spanning tree included. (A chain of the family `bridge` sees neither the frames
//! that a bridge keeps for itself nor, once the link is renamed, any of that link's.)

use netlink_bindings::nftables::{PushExprListAttrs, TableFlags};

use super::socket::header;
use super::{Family, Nft, Rule};
use crate::host::{Refusal, Step};

/// Such a table. It goes with the socket that made it, and stops nothing any more once the link is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IngressTable {
    pub(crate) name: String,
    /// The link's name.
    pub(crate) link: String,
    pub(crate) rules: Vec<Rule>,
}

/// The name of its chain.
const CHAIN: &str = "guard";
/// The hook's number (`linux/netfilter.h`, `NF_NETDEV_INGRESS`).
const INGRESS: u32 = 0;
/// Before other chains see the frame (`NF_IP_PRI_RAW`).
const PRIORITY: i32 = -300;

impl IngressTable {
    /// The lines that give the same table.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let Self { name, link, rules } = self;
        let why = "rules for what the guest sends, apart from all others; they go when we go";
        let table = Step { command: format!("nft add table netdev {name}"), why };
        let chain = format!("{{ type filter hook ingress device \"{link}\" priority {PRIORITY}; }}");
        let command = format!("nft 'add chain netdev {name} {CHAIN} {chain}'");
        let chain = Step { command, why: "where the guest's frames arrive" };
        let rules = rules.iter().map(|rule| Step {
            command: format!("nft 'add rule netdev {name} {CHAIN} {rule}'"),
            why: rule.why,
        });
        [table, chain].into_iter().chain(rules).collect()
    }
}

impl Nft {
    /// Makes a table with all in it, or nothing: `EEXIST` where there is a table of that name, `EOPNOTSUPP` where the kernel has
    /// no rules at a link's ingress.
    pub(crate) fn make_ingress(&mut self, table: &IngressTable) -> Result<(), Refusal> {
        let netdev = header(libc::NFPROTO_NETDEV as u8);
        let name = table.name.as_bytes();
        self.batch(|batch| {
            let mut request = batch.request().set_create().set_excl().op_newtable_do(&netdev);
            request.encode().push_name_bytes(name).push_flags(TableFlags::Owner as u32);
            let mut request = batch.request().set_create().op_newchain_do(&netdev);
            let attributes = request.encode().push_table_bytes(name).push_name_bytes(CHAIN.as_bytes());
            let hook = attributes.nested_hook().push_num(INGRESS).push_priority(PRIORITY);
            hook.push_dev_bytes(table.link.as_bytes()).end_nested().push_type_bytes(b"filter");
            for rule in &table.rules {
                let mut request = batch.request().set_create().set_append().op_newrule_do(&netdev);
                let attributes = request.encode().push_table_bytes(name).push_chain_bytes(CHAIN.as_bytes());
                let mut list: PushExprListAttrs<_> = attributes.nested_expressions();
                for one in &rule.matches {
                    list = one.encode(list, Family::Netdev);
                }
                rule.verdict.encode(list).end_nested();
            }
        })
    }
}
