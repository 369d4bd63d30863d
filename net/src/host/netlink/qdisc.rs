//! The queue that a link sends from (tc(8), `linux/rtnetlink.h`, `linux/pkt_sched.h`). The messages are made here, for these few
//! need none of the crate's module, which has all of tc.

use std::ffi::CStr;
use std::num::NonZeroU64;
use std::time::Duration;

use netlink_bindings::traits::{NetlinkRequest, Protocol};
use netlink_bindings::utils::{finalize_nested_header, find_attr, push_header, push_nested_header};

use super::{LinkId, Netlink, Refusal, lossy};

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_STATS2: u16 = 7;
const TCA_STATS_QUEUE: u16 = 3;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// With it the kernel counts a frame by its length, and needs no table of what each length takes.
const TC_LINKLAYER_ETHERNET: u8 = 1;
const TC_H_ROOT: u32 = u32::MAX;
/// The number of a queue of ours, "wi:" in ASCII: by it nobody else's is taken for ours.
const HANDLE: u32 = 0x7769_0000;

/// What a frame has beside the payload that an MTU is of: an Ethernet header and two tags.
const HEADERS: u32 = 22;
/// How long a frame waits at most, so that TCP fills the rate and a call over the same link is still one.
const LATENCY: Duration = Duration::from_millis(50);
/// Bytes that may wait at the slowest rate: two frames that are not segmented yet.
const LEAST_LIMIT: u64 = 128 << 10;
/// Bytes that may wait at the fastest.
const MOST_LIMIT: u64 = 64 << 20;

/// A queue that lets so much out in a second (tc-tbf(8)). A frame of more bytes than the burst it sends in segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tbf {
    /// Bytes per second.
    rate: u64,
    /// Bytes that may go at once.
    burst: u32,
    /// Bytes that may wait.
    limit: u32,
}

impl Tbf {
    /// For frames of a link of this MTU in bytes; of the rate, what `burst` brings may go at once, but at least one frame.
    pub(crate) fn new(bits: NonZeroU64, burst: Duration, mtu: u32) -> Self {
        let rate = bits.get() / 8;
        let bytes_in = |time: Duration| u128::from(rate) * time.as_nanos() / 1_000_000_000;
        let least = mtu.saturating_add(HEADERS);
        let burst = u32::try_from(bytes_in(burst)).unwrap_or(u32::MAX).max(least);
        let limit = bytes_in(LATENCY).clamp(LEAST_LIMIT.into(), MOST_LIMIT.into());
        Self { rate, burst, limit: limit as u32 }
    }

    /// In the words of tc(8).
    pub(crate) fn words(&self) -> String {
        let Self { rate, burst, limit } = self;
        format!(
            "handle {:x}: tbf rate {}bit burst {burst}b limit {limit}b",
            HANDLE >> 16,
            8 * u128::from(*rate)
        )
    }

    fn options(&self) -> Vec<u8> {
        let mut options = Vec::new();
        let rate = u32::try_from(self.rate).unwrap_or(u32::MAX);
        // `tc_tbf_qopt`: `tc_ratespec` (cell_log, linklayer, overhead, cell_align, mpu, rate), none for a peak; limit, buffer, mtu.
        let mut qopt = vec![0, TC_LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
        qopt.extend(rate.to_ne_bytes());
        qopt.extend([0; 12]);
        qopt.extend(self.limit.to_ne_bytes());
        qopt.extend([0; 8]);
        push(&mut options, TCA_TBF_PARMS, &qopt);
        push(&mut options, TCA_TBF_RATE64, &self.rate.to_ne_bytes());
        push(&mut options, TCA_TBF_BURST, &self.burst.to_ne_bytes());
        options
    }
}

/// The queue at a link's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RootQdisc {
    link: u32,
    handle: u32,
    /// As `tc qdisc show` says it.
    pub(crate) kind: String,
    /// Frames that found it full.
    pub(crate) dropped: u32,
}

impl RootQdisc {
    /// True for one that [`Netlink::set_tbf`] made.
    pub(crate) fn is_ours(&self) -> bool {
        self.handle == HANDLE
    }
}

impl Netlink {
    /// The queue at the root of the link of that index; none where it is the kernel's default.
    pub(crate) fn root_qdisc(&mut self, link: u32) -> Result<Option<RootQdisc>, Refusal> {
        // Asked for one link, the kernel tells of all the same.
        let request = Message::new(libc::RTM_GETQDISC, libc::NLM_F_DUMP, link, 0, 0);
        let mut replies = self.socket()?.request(&request)?;
        let mut found = None;
        while let Some(reply) = replies.recv().transpose()? {
            found = found.or(root(reply).filter(|root| root.link == link));
        }
        Ok(found)
    }

    /// Has `link` send from such a queue. `again`: in place of one that was set before; else `EEXIST` where there is anybody's.
    pub(crate) fn set_tbf(&mut self, link: &LinkId, tbf: &Tbf, again: bool) -> Result<(), Refusal> {
        let how = if again { libc::NLM_F_REPLACE } else { libc::NLM_F_EXCL };
        let mut request =
            Message::new(libc::RTM_NEWQDISC, libc::NLM_F_CREATE | how, link.index, HANDLE, TC_H_ROOT);
        push(&mut request.payload, TCA_KIND, b"tbf\0");
        let options = push_nested_header(&mut request.payload, TCA_OPTIONS);
        request.payload.extend(tbf.options());
        finalize_nested_header(&mut request.payload, options);
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }

    /// Has `link` send from the kernel's default queue, where it has one of ours; `ENOENT` or `EINVAL` where it has not.
    pub(crate) fn remove_tbf(&mut self, link: &LinkId) -> Result<(), Refusal> {
        let request = Message::new(libc::RTM_DELQDISC, 0, link.index, HANDLE, TC_H_ROOT);
        Ok(self.socket()?.request(&request)?.recv_ack()?)
    }
}

/// A message about a queue: `tcmsg`, and attributes.
struct Message {
    request_type: u16,
    flags: u16,
    payload: Vec<u8>,
}

impl Message {
    fn new(request_type: u16, flags: libc::c_int, link: u32, handle: u32, parent: u32) -> Self {
        let words = [libc::AF_UNSPEC as u32, link, handle, parent, 0];
        let payload = words.into_iter().flat_map(u32::to_ne_bytes).collect();
        Self { request_type, flags: flags as u16, payload }
    }
}

impl NetlinkRequest for Message {
    type ReplyType<'a> = &'a [u8];

    fn protocol(&self) -> Protocol {
        Protocol::Raw { protonum: libc::NETLINK_ROUTE as u16, request_type: self.request_type }
    }

    fn flags(&self) -> u16 {
        self.flags
    }

    fn payload(&self) -> &[u8] {
        &self.payload
    }

    fn decode_reply(buffer: &[u8]) -> &[u8] {
        buffer
    }
}

/// What a message says of the queue at a link's root, if it is about one; the kernel's own have no number.
fn root(message: &[u8]) -> Option<RootQdisc> {
    let (header, attributes) = message.split_at_checked(20)?;
    let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (link, handle, parent) = (word(4), word(8), word(12));
    let kind = find_attr(attributes, TCA_KIND).and_then(|kind| CStr::from_bytes_until_nul(kind).ok());
    let queue = find_attr(attributes, TCA_STATS2).and_then(|stats| find_attr(stats, TCA_STATS_QUEUE));
    // `gnet_stats_queue`: qlen, backlog, drops.
    let dropped = queue.and_then(|queue| Some(u32::from_ne_bytes(queue.get(8..12)?.try_into().ok()?)));
    (parent == TC_H_ROOT && handle != 0).then(|| RootQdisc {
        link,
        handle,
        kind: kind.map(lossy).unwrap_or_default(),
        dropped: dropped.unwrap_or_default(),
    })
}

/// One attribute. None here needs padding before its value: all are whole words but the kind, which is one with its end.
fn push(buffer: &mut Vec<u8>, number: u16, value: &[u8]) {
    push_header(buffer, number, value.len() as u16);
    buffer.extend(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tbf(bits: u64, burst: u64, mtu: u32) -> Tbf {
        Tbf::new(NonZeroU64::new(bits).unwrap(), Duration::from_millis(burst), mtu)
    }

    #[test]
    fn a_burst_is_of_the_rate_and_has_room_for_a_frame() {
        assert_eq!(tbf(100_000_000, 10, 1500), Tbf { rate: 12_500_000, burst: 125_000, limit: 625_000 });
        let slow = tbf(16_000, 10, 9000);
        assert_eq!(slow, Tbf { rate: 2000, burst: 9022, limit: 128 << 10 });
        assert_eq!(slow.words(), "handle 7769: tbf rate 16000bit burst 9022b limit 131072b");
        let fast = tbf(1_000_000_000_000, 1000, 1500);
        assert_eq!(fast, Tbf { rate: 125_000_000_000, burst: u32::MAX, limit: 64 << 20 });
    }

    #[test]
    fn a_rate_of_more_than_four_gigabytes_is_in_the_wide_attribute() {
        let options = tbf(80_000_000_000, 10, 1500).options();
        let parameters = find_attr(&options, TCA_TBF_PARMS).unwrap();
        assert_eq!((parameters.len(), &parameters[8..12]), (36, &[0xff; 4][..]));
        assert_eq!(find_attr(&options, TCA_TBF_RATE64).unwrap(), 10_000_000_000_u64.to_ne_bytes());
        assert_eq!(find_attr(&options, TCA_TBF_BURST).unwrap(), 100_000_000_u32.to_ne_bytes());
    }

    #[test]
    fn a_queue_at_the_root_is_told_from_others_and_from_the_default() {
        let message = |handle, parent| {
            let mut message = Message::new(libc::RTM_NEWQDISC, 0, 7, handle, parent).payload;
            push(&mut message, TCA_KIND, b"tbf\0");
            let stats = push_nested_header(&mut message, TCA_STATS2);
            let queue: Vec<u8> = [1_u32, 2, 3, 4, 5].into_iter().flat_map(u32::to_ne_bytes).collect();
            push(&mut message, TCA_STATS_QUEUE, &queue);
            finalize_nested_header(&mut message, stats);
            message
        };
        let ours = root(&message(HANDLE, TC_H_ROOT)).unwrap();
        assert_eq!((ours.link, &*ours.kind, ours.dropped, ours.is_ours()), (7, "tbf", 3, true));
        assert!(!root(&message(0x10000, TC_H_ROOT)).unwrap().is_ours());
        assert_eq!(root(&message(0, TC_H_ROOT)), None, "the default");
        assert_eq!(root(&message(HANDLE, 0x10001)), None, "below another");
        assert_eq!(root(&[0; 19]), None, "cut off");
    }
}
