//! What can go wrong, and what a person can do about it.

use std::io;
use std::iter;
use std::os::fd::RawFd;
use std::path::PathBuf;

use rustix::process::{Resource, getrlimit};

use crate::bridge::uplink::UplinkProblem;
use crate::config::KINDS;
use crate::fd::FdProblem;
use crate::host::holders::Holder;
use crate::host::netlink::Refusal;
use crate::macvtap::ParentProblem;
use crate::tuntap::{DEVICE, TunMode};
use crate::{Forward, HostAddress, Mac, Protocol};

/// What we tried, and on what; where the host refused, its reason is the source and not in the text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The word before the first `=` or `,` of a `--net` is no kind of wire.
    #[error("unknown kind {kind:?}")]
    UnknownKind {
        /// The word.
        kind: String,
    },
    /// The kind needs to know where, behind its `=`.
    #[error("{kind} does not say which ({kind}=)")]
    NoPlace {
        /// The kind of wire.
        kind: &'static str,
        /// A spec that says it.
        example: &'static str,
    },
    /// The kind has no such key.
    #[error("{kind} has no key {key:?} ({key}=)")]
    UnknownKey {
        /// The kind of wire.
        kind: &'static str,
        /// The key.
        key: String,
        /// The keys that it has.
        known: &'static str,
    },
    /// A piece between commas has no `=`.
    #[error("{item:?} is not key=value")]
    NotAKey {
        /// The piece.
        item: String,
    },
    /// A key is there twice.
    #[error("{key}= is given twice")]
    KeyTwice {
        /// The key.
        key: String,
    },
    /// A key's value makes no sense.
    #[error("{key}={value}: {why}")]
    Value {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// Why not.
        why: &'static str,
    },

    /// The CPUs are not as many as the queue pairs.
    #[error("affinity={affinity}: there is one CPU for each queue pair, and these are {queues}")]
    Affinity {
        /// The CPUs.
        affinity: String,
        /// How many queue pairs there are.
        queues: u16,
    },
    /// This version of wirevm has no such wire, or not with this key.
    #[error("this version of wirevm has no {what}")]
    NotBuilt {
        /// The word of the kind or of the key.
        what: &'static str,
    },
    /// The random number generator gave no MAC.
    #[error("cannot make a random Ethernet address")]
    RandomMac {
        /// The reason.
        source: io::Error,
    },
    /// The tun driver's device does not open.
    #[error("cannot open {DEVICE}")]
    OpenTun {
        /// The reason.
        source: io::Error,
    },
    /// The device of vhost-net does not open.
    #[error("cannot open {}", crate::vhost::DEVICE)]
    OpenVhost {
        /// The reason.
        source: io::Error,
    },
    /// The guest's questions, which the kernel would carry past us, cannot be heard.
    #[error("cannot hear the guest's DHCP on {link}, whose frames vhost-net carries")]
    Listen {
        /// The link.
        link: String,
        /// The reason.
        source: io::Error,
    },
    /// A new link, named by the kernel, cannot be made.
    #[error("cannot make a {mode}")]
    MakeTun {
        /// A tap or a tun.
        mode: TunMode,
        /// How many queues it shall have.
        queues: u16,
        /// The reason.
        source: io::Error,
    },
    /// There is no link of that name, and we have no right to make it.
    #[error("cannot make the {mode} {name}")]
    MakeNamedTun {
        /// A tap or a tun.
        mode: TunMode,
        /// The link.
        name: String,
        /// How many queues it shall have.
        queues: u16,
        /// The reason.
        source: io::Error,
    },
    /// The link exists, but only its owner may attach to it.
    #[error("cannot attach to the {mode} {name}")]
    TunNotOurs {
        /// A tap or a tun.
        mode: TunMode,
        /// The link.
        name: String,
        /// How many queues we attach.
        queues: u16,
        /// The user id of its owner, where it has one.
        owner: Option<u32>,
        /// The reason.
        source: io::Error,
    },
    /// Somebody is attached to the link.
    #[error("cannot attach to the {mode} {name}: {} holds it", list(holders))]
    TunBusy {
        /// A tap or a tun.
        mode: TunMode,
        /// The link.
        name: String,
        /// By whom, as far as we may look.
        holders: Vec<Holder>,
        /// The reason.
        source: io::Error,
    },
    /// The link is of the multi-queue sort and we are not, or the other way round.
    #[error("cannot attach to the {mode} {name}: it is {}, and we attach {}", sort(*queues == 1), count(*queues))]
    TunQueues {
        /// A tap or a tun.
        mode: TunMode,
        /// The link.
        name: String,
        /// How many queues we attach.
        queues: u16,
        /// The reason.
        source: io::Error,
    },
    /// A queue after the first does not attach.
    #[error("cannot attach one more queue to {name}")]
    TunQueue {
        /// The link.
        name: String,
        /// The reason.
        source: io::Error,
    },
    /// There is a link of that name, of another kind.
    #[error("cannot attach to {name}: it is {}, not a {mode}", kind_of(kind))]
    OtherKind {
        /// What was wanted, a tap or a tun.
        mode: TunMode,
        /// The link.
        name: String,
        /// `tap`, `tun`, or its kind as `ip -d link` says it; empty for hardware.
        kind: String,
        /// The reason.
        source: io::Error,
    },
    /// A refusal that we have no words for.
    #[error("cannot attach to the {mode} {name}")]
    Attach {
        /// A tap or a tun.
        mode: TunMode,
        /// The link.
        name: String,
        /// The reason.
        source: io::Error,
    },
    /// The link is attached, but does not take a setting.
    #[error("cannot set or ask the {what} of the {mode} {name}")]
    TunSetting {
        /// A tap or a tun.
        mode: TunMode,
        /// The link.
        name: String,
        /// What is set.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// There is no link to make a macvtap on.
    #[error("there is no link {name} to make a macvtap on")]
    NoParent {
        /// The name.
        name: String,
    },
    /// The link cannot have a macvtap.
    #[error("cannot make a macvtap on {parent}: {problem}")]
    BadParent {
        /// The link.
        parent: String,
        /// Why not.
        problem: ParentProblem,
    },
    /// A link that shares the NIC has the address, or the NIC itself.
    #[error("mac={mac}: {by} has this address")]
    MacTaken {
        /// The address.
        mac: Mac,
        /// The link.
        by: String,
    },
    /// An inherited descriptor that is no use.
    #[error("cannot use the descriptor {fd}: {problem}")]
    Fd {
        /// Its number.
        fd: RawFd,
        /// Why not.
        problem: FdProblem,
        /// The kernel's reason, where it gave one.
        source: Option<io::Error>,
    },
    /// A link on the way carries less than is asked for.
    #[error("mtu={mtu}: {link} carries {limit} bytes at most")]
    MtuLimit {
        /// What is asked for, in bytes.
        mtu: u16,
        /// The link.
        link: String,
        /// Its MTU, in bytes.
        limit: u32,
    },
    /// A key that goes with a new link is given for one that exists.
    #[error("{key}=: {name} is a macvtap that exists, with a {key} of its own")]
    Adopted {
        /// The link.
        name: String,
        /// The key.
        key: &'static str,
    },
    /// The NIC itself has all of the subnet, so that the host would go on to seek the guest there.
    #[error("host={address}: {on} itself has {theirs}, and cannot reach its macvtaps")]
    WholeSubnet {
        /// What we would have given our link.
        address: HostAddress,
        /// The NIC.
        on: String,
        /// Its address.
        theirs: String,
    },
    /// The character device of a macvtap does not open, or is not found.
    #[error("cannot open the device of the macvtap {name}")]
    OpenMacvtap {
        /// The macvtap.
        name: String,
        /// The number in the name of its device.
        index: u32,
        /// The reason.
        source: io::Error,
    },
    /// Somebody has the device of a macvtap open, and would get a share of the guest's frames.
    #[error("cannot attach to the macvtap {name}: {} holds it", list(holders))]
    MacvtapBusy {
        /// The macvtap.
        name: String,
        /// By whom.
        holders: Vec<Holder>,
    },
    /// The macvtap is attached, but does not take a setting.
    #[error("cannot set or ask the {what} of the macvtap {name}")]
    MacvtapSetting {
        /// The macvtap.
        name: String,
        /// What is set.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The host does not say what we must know.
    #[error("cannot ask for {what}")]
    Ask {
        /// What.
        what: String,
        /// The kernel's answer.
        #[source]
        refusal: Refusal,
    },
    /// The link that we attached to is not there any more.
    #[error("the link {name} is gone")]
    LinkGone {
        /// The link.
        name: String,
    },
    /// The host refuses a change.
    #[error("cannot change the host's wiring ({command})")]
    Step {
        /// The `ip(8)` line that does the same.
        command: String,
        /// The kernel's answer.
        #[source]
        refusal: Refusal,
    },
    /// The host routes to every subnet that we would take.
    #[error("cannot find a subnet for {link}: the host has routes to all private ones that we take from")]
    NoFreeSubnet {
        /// The link.
        link: String,
    },
    /// The directory of records is no place for them.
    #[error("cannot use {} to record what to take back", path.display())]
    Runtime {
        /// The directory, or the file in it.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Somebody asked this process to end while it waited for another one ([`wait_until_asked_to_end`](crate::wait_until_asked_to_end)).
    #[error("asked to end while another wirevm was changing the host's network")]
    Ended,
    /// There are not enough descriptors for an undo.
    #[error("cannot hold descriptors ready to take back what would be changed")]
    Reserve {
        /// The reason.
        source: io::Error,
    },
    /// A network namespace cannot be entered or asked for.
    #[error("cannot enter the network namespace{}", name.iter().map(|name| format!(" {name}")).collect::<String>())]
    Namespace {
        /// Its name, where it has one.
        name: Option<String>,
        /// The reason.
        source: io::Error,
    },
    /// The guest's address is in use on another link of the host, or by it.
    #[error("guest={guest}: {on} has it at one of its ends already")]
    GuestTaken {
        /// The guest's address.
        guest: std::net::IpAddr,
        /// The other link.
        on: String,
    },
    /// Somebody of the host waits at the port.
    #[error("forward={forward}: cannot take {} port {} of the host", forward.protocol, forward.host_port)]
    PortTaken {
        /// The ports.
        forward: Forward,
        /// The reason.
        source: io::Error,
    },
    /// The host has no address on the link, and so no subnet there.
    #[error("nat: the host has no address on {link}, and so no subnet whose addresses it could translate")]
    NothingToMasquerade {
        /// The link.
        link: String,
    },
    /// The kernel refuses the rules for NAT.
    #[error("cannot make the nftables table inet {table} for NAT")]
    Nft {
        /// The table.
        table: String,
        /// The kernel's answer.
        #[source]
        refusal: Refusal,
    },
    /// There is a link of the bridge's name, of another kind.
    #[error("cannot join a tap to {name}: it is {}, not a bridge", kind_of(kind))]
    NotABridge {
        /// The link.
        name: String,
        /// Its kind as `ip -d link` says it; empty for hardware.
        kind: String,
    },
    /// The link cannot be a bridge's uplink.
    #[error("uplink={uplink}: {problem}")]
    BadUplink {
        /// The link.
        uplink: String,
        /// Why not.
        problem: UplinkProblem,
    },
    /// The bridge has no VLANs.
    #[error("vlan={vlan}: {bridge} does not filter VLANs")]
    NoVlans {
        /// The VLAN.
        vlan: u16,
        /// The bridge.
        bridge: String,
    },
    /// Another link of the host has the address, or a part of its subnet.
    #[error("host={address}: {on} has {theirs} already")]
    AddressTaken {
        /// What we would have given our link.
        address: HostAddress,
        /// The other link.
        on: String,
        /// Its address.
        theirs: String,
    },
}

const ROOT: &str = "run it as root, or with CAP_NET_ADMIN";

impl Error {
    pub(crate) fn value(key: &str, value: String, why: &'static str) -> Self {
        Self::Value { key: key.to_owned(), value, why }
    }

    /// True where the command line is at fault, whatever the host.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::UnknownKind { .. }
                | Self::UnknownKey { .. }
                | Self::NoPlace { .. }
                | Self::NotAKey { .. }
                | Self::KeyTwice { .. }
                | Self::Value { .. }
                | Self::Affinity { .. }
        )
    }

    /// True where there is no directory for records that is ours to write.
    pub(crate) fn is_no_place(&self) -> bool {
        use io::ErrorKind::{NotADirectory, NotFound, Other, PermissionDenied, ReadOnlyFilesystem};
        let none = [NotADirectory, NotFound, Other, PermissionDenied, ReadOnlyFilesystem];
        matches!(self, Self::Runtime { source, .. } if none.contains(&source.kind()))
    }

    /// Itself and its cause, for a notice.
    pub(crate) fn with_cause(&self) -> String {
        let cause = std::error::Error::source(self).map(|cause| format!(": {cause}"));
        format!("{self}{}", cause.unwrap_or_default())
    }

    /// What a person can do about it, where we know.
    pub fn remedy(&self) -> Option<String> {
        if let Some(remedy) = too_many_files(self) {
            return Some(remedy);
        }
        Some(match self {
            Self::UnknownKind { .. } => format!("the kinds are: {KINDS}"),
            Self::NoPlace { example, .. } => format!("write --net {example}"),
            Self::NotBuilt { .. } => "use --net tap, and a newer wirevm for the rest".to_owned(),
            Self::UnknownKey { kind, known, .. } => format!("the keys of {kind} are: {known}"),
            Self::NotAKey { .. } => {
                "a --net is KIND[=WHERE][,key=value]...: tap=tap0,host=172.31.0.1/24".to_owned()
            }
            Self::KeyTwice { key } => format!("leave one {key}= away"),
            Self::Affinity { affinity, .. } => {
                let cpus = affinity.split(':').count();
                format!("give as many CPUs as queue pairs: queues={cpus}; queues=auto is as many as --cpus says")
            }
            Self::OpenTun { source } => match source.kind() {
                io::ErrorKind::NotFound => format!(
                    "load the tun driver (sudo modprobe tun); in a container, give it the device {DEVICE}"
                ),
                io::ErrorKind::PermissionDenied => format!(
                    "let everyone open it, as most distributions do (sudo chmod 0666 {DEVICE}): what it may do there is \
                     asked again"
                ),
                _ => "load the tun driver: sudo modprobe tun".to_owned(),
            },
            Self::OpenVhost { source } => match source.kind() {
                io::ErrorKind::PermissionDenied => format!(
                    "join the group that owns it, or run as root (sudo chown :kvm {0}; sudo chmod 0660 {0}); or take vhost=off",
                    crate::vhost::DEVICE
                ),
                _ => "load the module (sudo modprobe vhost_net), or take vhost=auto or off: wirevm's own threads then carry \
                     the frames"
                    .to_owned(),
            },
            Self::Listen { source, .. } if not_permitted(source) => {
                "run it as root, or with CAP_NET_RAW; or take dhcp=off, or vhost=off".to_owned()
            }
            Self::MakeTun { mode, queues, source } if not_permitted(source) => {
                let queues_key = if *queues > 1 { format!(",queues={queues}") } else { String::new() };
                let own = own(*mode, &format!("{mode}0"), *queues);
                format!("{ROOT}, or once: {own}; then use --net {mode}={mode}0{queues_key}")
            }
            Self::MakeNamedTun { mode, name, queues, .. } => {
                format!("{ROOT}, or once: {}", own(*mode, name, *queues))
            }
            Self::TunNotOurs { mode, name, queues, owner, .. } => {
                let owner = match owner {
                    Some(uid) => format!("it belongs to the user of id {uid}"),
                    None => "it has no owner".to_owned(),
                };
                let del = if *queues > 1 { " multi_queue" } else { "" };
                format!(
                    "{owner}: {ROOT}, or make it yours: sudo ip tuntap del dev {name} mode {mode}{del}; {}",
                    own(*mode, name, *queues)
                )
            }
            Self::TunBusy { mode, .. } => {
                format!(
                    "use another {mode}, or --net {mode} for a new one; a {mode} has one holder"
                )
            }
            Self::TunQueues { mode, name, queues, .. } => {
                let (easy, del) = match queues {
                    1 => ("give it more: queues=2", " multi_queue"),
                    _ => ("leave queues= away", ""),
                };
                format!(
                    "{easy}; or make it anew: sudo ip tuntap del dev {name} mode {mode}{del}; {}",
                    own(*mode, name, *queues)
                )
            }
            Self::OtherKind { mode, .. } => format!("use another name, or --net {mode} for a new {mode}"),
            Self::NoParent { .. } => "name a NIC of the host, or a macvtap that exists: ip link".to_owned(),
            Self::BadParent { problem, .. } => problem.remedy(),
            Self::MacTaken { .. } => "take another one, or leave mac= away for a random one".to_owned(),
            Self::MtuLimit { mtu, link, .. } => {
                format!("take a smaller one, or, if all behind it can: sudo ip link set dev {link} mtu {mtu}")
            }
            Self::Adopted { key, .. } => format!("leave {key}= away, or name the NIC for a new one"),
            Self::WholeSubnet { theirs, .. } => format!(
                "take the part of {theirs} that the guests' addresses are in, by a longer prefix: the host then reaches \
                 that part beside them, and the rest as before"
            ),
            Self::OpenMacvtap { index, source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    format!(
                        "{ROOT} and CAP_SYS_ADMIN, or make its device yours: sudo chown $USER /dev/tap{index}"
                    )
                }
                io::ErrorKind::NotFound => {
                    "mount sysfs, or run it as root: it says which device is the link's".to_owned()
                }
                _ => return None,
            },
            Self::MacvtapBusy { .. } => "use another one, or macvtap=NIC for a new one".to_owned(),
            Self::Fd { fd, problem, .. } => return problem.remedy(*fd),
            Self::LinkGone { .. } => "somebody deleted it meanwhile: try again".to_owned(),
            Self::Namespace { source, .. } if not_permitted(source) => {
                "run it as root: network namespaces need CAP_SYS_ADMIN".to_owned()
            }
            Self::Step { command, refusal } => return step_remedy(command, refusal),
            Self::NoFreeSubnet { .. } => "choose one: host=ADDRESS/LENGTH; or none: dhcp=off".to_owned(),
            Self::NotABridge { name, .. } => {
                format!(
                    "name a bridge or none that exists; to have {name} in a bridge: bridge=br0,uplink={name}"
                )
            }
            Self::BadUplink { problem, .. } => problem.remedy(),
            Self::NoVlans { bridge, .. } => {
                format!("let it filter: sudo ip link set dev {bridge} type bridge vlan_filtering 1")
            }
            Self::Runtime { .. } => {
                "set WIREVM_RUNTIME_DIR to a directory that you alone can write to".to_owned()
            }
            Self::GuestTaken { on, .. } => format!("choose another one; ip address show dev {on} tells why"),
            Self::NothingToMasquerade { .. } => "give it one: host=ADDRESS/LENGTH".to_owned(),
            Self::PortTaken { forward, source } => port_remedy(forward, source)?,
            Self::Nft { table, refusal } => match refusal.errno()? {
                libc::EPERM => ROOT.to_owned(),
                libc::EEXIST => format!(
                    "somebody made a table of that name: sudo nft delete table inet {table}, where nobody needs it"
                ),
                // No netlink for it, no nftables behind it, no such family, kind of chain or expression.
                libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::ENOENT => {
                    "have the kernel do NAT by nftables: sudo modprobe -a nf_tables nft_chain_nat nft_masq nft_nat nft_fib_inet \
                     nft_ct; or leave nat away, and have the host route the guest's subnet"
                        .to_owned()
                }
                _ => return None,
            },
            Self::AddressTaken { on, theirs, .. } => {
                format!(
                    "choose a subnet apart from {theirs}, or free it: sudo ip address del {theirs} dev {on}"
                )
            }
            _ => return None,
        })
    }
}

/// What a person can do where `error` or a cause of it is that there are too many open files; none where it is not.
pub fn too_many_files(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let errno = |error: &(dyn std::error::Error + 'static)| {
        let refusal = error.downcast_ref().and_then(Refusal::errno);
        refusal.or_else(|| error.downcast_ref().and_then(io::Error::raw_os_error))
    };
    let mut causes = iter::successors(Some(error), |error| error.source());
    Some(match causes.find_map(|cause| errno(cause).filter(|&errno| [libc::EMFILE, libc::ENFILE].contains(&errno)))? {
        libc::EMFILE => {
            let limit = getrlimit(Resource::Nofile).current;
            let limit = limit.map(|limit| format!(" above {limit}")).unwrap_or_default();
            format!(
                "raise the limit of open files{limit} (ulimit -Hn and -n; LimitNOFILE= of a systemd unit), or ask for fewer \
                 queue pairs (queues=)"
            )
        }
        _ => "the whole host has too many open files: sudo sysctl -w fs.file-max=NUMBER, with more than there is".to_owned(),
    })
}

/// What to do where the host refuses a change.
fn step_remedy(command: &str, refusal: &Refusal) -> Option<String> {
    let says = |words| command.contains(words);
    Some(match refusal.errno()? {
        libc::EOPNOTSUPP if says(" type mac") => "load the driver: sudo modprobe macvtap".to_owned(),
        libc::EOPNOTSUPP if says("vlan") => {
            "take a kernel that has VLANs on bridges (CONFIG_BRIDGE_VLAN_FILTERING), or leave vlan= away".to_owned()
        }
        libc::EOPNOTSUPP if says(" type bridge") => "load the driver: sudo modprobe bridge".to_owned(),
        libc::EROFS | libc::EACCES if says("sysctl -w") => format!(
            "/proc/sys is not ours to write, as in a container: run wirevm outside of it, or do it there beforehand: sudo {command}"
        ),
        libc::EROFS => {
            "have /run writable, where namespaces have their names, or name one that exists: ip netns list".to_owned()
        }
        libc::EACCES if says("address add") => {
            "the link has no IPv6: sudo sysctl -w net.ipv6.conf.default.disable_ipv6=0, or leave that host= away".to_owned()
        }
        libc::EPERM => format!("{ROOT}, or do it beforehand: sudo {command}"),
        _ => return None,
    })
}

/// What to do where a port of the host cannot be taken.
fn port_remedy(forward: &Forward, source: &io::Error) -> Option<String> {
    let Forward { protocol, host_port, guest_port } = forward;
    let socket = match protocol {
        Protocol::Tcp => 't',
        Protocol::Udp => 'u',
    };
    match source.kind() {
        io::ErrorKind::AddrInUse => Some(format!(
            "take another one, forward={protocol}:PORT:{guest_port}; who has it: sudo ss -{socket}anp 'sport = :{host_port}'"
        )),
        io::ErrorKind::PermissionDenied => {
            Some("run it as root or with CAP_NET_BIND_SERVICE, or take a port from 1024 on".to_owned())
        }
        _ => None,
    }
}

fn not_permitted(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPERM)
}

/// The line that makes a tap or tun which its user may attach to.
fn own(mode: TunMode, name: &str, queues: u16) -> String {
    let multi_queue = if queues > 1 { " multi_queue" } else { "" };
    format!(
        "sudo ip tuntap add dev {name} mode {mode} user $USER{multi_queue} vnet_hdr && sudo ip link set dev {name} up"
    )
}

/// What a link of the tun driver is by its queues.
fn sort(multi_queue: bool) -> &'static str {
    if multi_queue { "a multi_queue one" } else { "one without multi_queue" }
}

fn count(queues: u16) -> String {
    if queues == 1 { "one queue".to_owned() } else { format!("{queues} queues") }
}

fn list(holders: &[Holder]) -> String {
    match holders {
        [] => "a process that we may not look into".to_owned(),
        some => some.iter().map(Holder::to_string).collect::<Vec<_>>().join(", "),
    }
}

fn kind_of(kind: &str) -> String {
    match kind {
        "" => "a network interface".to_owned(),
        "tap" => "a tap (layer 2)".to_owned(),
        "tun" => "a tun (layer 3)".to_owned(),
        kind => format!("a {kind}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_change_has_a_remedy() {
        for (errno, command, remedy) in [
            (
                libc::EROFS,
                "sysctl -w net.ipv4.ip_forward=1",
                "outside of it, or do it there beforehand: sudo sysctl -w",
            ),
            (libc::EROFS, "ip netns add vpn", "/run"),
            (
                libc::EOPNOTSUPP,
                "ip link set dev br8 type bridge vlan_filtering 1",
                "CONFIG_BRIDGE_VLAN_FILTERING",
            ),
            (
                libc::EOPNOTSUPP,
                "ip link add name br8 type bridge stp_state 0 vlan_filtering 1",
                "leave vlan= away",
            ),
            (libc::EACCES, "ip address add fd00::1/64 dev tap0 nodad", "disable_ipv6=0"),
            (libc::EMFILE, "ip link set dev tap0 up", "ulimit"),
        ] {
            let refusal = io::Error::from_raw_os_error(errno).into();
            let error = Error::Step { command: command.to_owned(), refusal };
            assert!(error.remedy().is_some_and(|found| found.contains(remedy)), "{error}");
            assert!(error.with_cause().contains(&io::Error::from_raw_os_error(errno).to_string()));
        }
    }
}
