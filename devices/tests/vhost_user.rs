//! The front end of vhost-user and the file system device over it, between the mock driver and a back end in a thread, which can lie.

use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use devices::virtio::fs::VirtioFs;
use devices::virtio::mmio::MmioTransport;
use devices::virtio::mock::{Buffer, MockMmio, MockRing};
use devices::virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, QueueSetup, QueueState, VirtQueue};
use devices::virtio::vhost_user::{BackEnd, Error, Request};
use devices::virtio::{Activation, ActiveQueue, DeviceThreads, Interrupt, VirtioDevice};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MEMORY: usize = 1 << 20;
const RING: u64 = 0x1000;
const DATA: u64 = 0x10_000;
const ROOM: u32 = 64;
/// Enough for a back end that answers, also on a busy machine; the time that one that does not costs.
const PATIENCE: Duration = Duration::from_secs(4);
const PROTOCOL_FEATURES: u64 = 1 << 30;
const NOT_CONNECTED: i32 = -107;

/// What a back end does wrong, at the request of that number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    None,
    /// It has these features and no others.
    Features(u64),
    Queues(u64),
    /// It has these parts of the protocol and no others.
    Protocol(u64),
    /// It answers with more bytes than there are.
    Long(Request),
    /// It answers another request.
    Other(Request),
    /// It answers with these flags: of its version, and whether it is an answer.
    Flags(Request, u32),
    /// It says that it failed.
    Refuse(Request),
    /// It says nothing.
    Silent(Request),
    /// It says a byte now and then.
    Slow(Request),
    /// It hangs up.
    Close(Request),
    /// It speaks after that, and nobody asked.
    Unasked(Request),
}

#[derive(Default)]
struct FakeRing {
    setup: QueueSetup,
    base: u16,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    error: Option<OwnedFd>,
    queue: Option<VirtQueue>,
}

/// What the test knows of it.
#[derive(Default)]
struct Known {
    /// It uses no buffers.
    idle: AtomicBool,
    /// It ends.
    gone: AtomicBool,
    /// It is to end, and does so only where it is not stuck.
    killed: AtomicBool,
    stuck: AtomicBool,
    /// It ends between what it uses and the interrupt.
    mute: AtomicBool,
    /// It has whoever uses an eventfd that it has, too, wait; then it says so.
    wedges: AtomicBool,
    requests: Mutex<Vec<u32>>,
    /// What it was told with each of these requests: the features, of the rings and of the protocol.
    told: Mutex<Vec<(u32, u64)>>,
    /// It was asked for an answer where there need be none.
    acknowledges: AtomicBool,
    /// Where the rings began, each time.
    bases: Mutex<Vec<u16>>,
}

struct Fake {
    socket: UnixStream,
    lie: Lie,
    known: Arc<Known>,
    wedged: bool,
    memory: Option<GuestMemoryMmap>,
    rings: [FakeRing; 2],
}

impl Fake {
    fn spawn(lie: Lie) -> (UnixStream, Arc<Known>, JoinHandle<()>) {
        let (ours, socket) = UnixStream::pair().unwrap();
        let known = Arc::new(Known::default());
        let fake = Self {
            socket,
            lie,
            known: known.clone(),
            wedged: false,
            memory: None,
            rings: Default::default(),
        };
        (ours, known, std::thread::spawn(|| fake.live()))
    }

    fn live(mut self) {
        loop {
            let mut fds = vec![PollFd::new(&self.socket, PollFlags::IN)];
            fds.extend(
                self.rings
                    .iter()
                    .filter_map(|ring| ring.kick.as_ref())
                    .map(|fd| PollFd::new(fd, PollFlags::IN)),
            );
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 5_000_000 })).unwrap();
            let asked = !fds[0].revents().is_empty();
            drop(fds);
            if self.known.gone.load(Ordering::SeqCst) || asked && self.answer().is_none() {
                return;
            }
            if self.known.wedges.load(Ordering::SeqCst) {
                self.wedge();
                self.known.wedges.store(false, Ordering::SeqCst);
            }
            if self.work().is_none() {
                return;
            }
            // A kick of a ring that is left alone stays.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Fills the kicks and says an error, and has both block; the second time, nobody has read the error.
    fn wedge(&mut self) {
        let wedged = std::mem::replace(&mut self.wedged, true);
        let mut number = [0; 8];
        for ring in &self.rings {
            let (Some(kick), Some(error)) = (&ring.kick, &ring.error) else { continue };
            if wedged {
                let mut said = [PollFd::new(error, PollFlags::IN)];
                assert_eq!(poll(&mut said, Some(&Timespec::default())), Ok(1));
                continue;
            }
            let _ = rustix::io::read(kick, &mut number);
            rustix::io::write(kick, &(u64::MAX - 1).to_ne_bytes()).unwrap();
            rustix::io::ioctl_fionbio(kick, false).unwrap();
            rustix::io::ioctl_fionbio(error, false).unwrap();
            rustix::io::write(error, &1_u64.to_ne_bytes()).unwrap();
        }
    }

    /// Takes a request, and answers it; none at the end.
    fn answer(&mut self) -> Option<()> {
        let (header, mut fds) = self.receive(12)?;
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let (request, flags, len) = (word(0), word(4), word(8) as usize);
        assert_eq!(flags & 3, 1, "the version");
        let payload = match len {
            0 => Vec::new(),
            len => {
                let (payload, more) = self.receive(len)?;
                fds.extend(more);
                payload
            }
        };
        self.known.requests.lock().unwrap().push(request);
        let long = |at: usize| u64::from_le_bytes(payload[8 * at..8 * at + 8].try_into().unwrap());
        let pair = |at: usize| u32::from_le_bytes(payload[4 * at..4 * at + 4].try_into().unwrap());
        let at = |index: u64| usize::try_from(index & 0xff).unwrap();
        let mut answer = None;
        match request {
            1 => {
                let all = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | PROTOCOL_FEATURES | 1 << 26;
                answer = Some(if let Lie::Features(features) = self.lie { features } else { all });
            }
            5 => {
                assert_eq!(long(0) as usize, fds.len());
                let regions = fds.drain(..).enumerate().map(|(index, fd)| {
                    let [guest, len, _, offset] = [1, 2, 3, 4].map(|at| long(4 * index + at));
                    (GuestAddress(guest), len as usize, Some(FileOffset::new(File::from(fd), offset)))
                });
                let regions: Vec<_> = regions.collect();
                self.memory = Some(GuestMemoryMmap::from_ranges_with_files(regions).unwrap());
            }
            8 => self.rings[pair(0) as usize].setup.size = pair(1) as u16,
            9 => {
                let setup = &mut self.rings[at(long(0))].setup;
                (setup.desc_table, setup.used_ring, setup.avail_ring) = (long(1), long(2), long(3));
            }
            10 => {
                self.known.bases.lock().unwrap().push(pair(1) as u16);
                self.rings[pair(0) as usize].base = pair(1) as u16;
            }
            11 => {
                let ring = &mut self.rings[pair(0) as usize];
                let base = ring.queue.take().map_or(ring.base, |queue| queue.state().next_avail);
                ring.kick = None;
                answer = Some(u64::from(pair(0)) | u64::from(base) << 32);
            }
            12 => {
                let (ring, memory) = (&mut self.rings[at(long(0))], self.memory.as_ref().unwrap());
                let mut queue = VirtQueue::new(&ring.setup, F_VERSION_1 | F_EVENT_IDX, memory).unwrap();
                let next_used = queue.used_index(memory).unwrap();
                queue.set_state(QueueState { next_avail: ring.base, next_used });
                (ring.queue, ring.kick) = (Some(queue), Some(fds.remove(0)));
            }
            13 => self.rings[at(long(0))].call = Some(fds.remove(0)),
            15 => answer = Some(if let Lie::Protocol(bits) = self.lie { bits } else { u64::MAX }),
            17 => answer = Some(if let Lie::Queues(queues) = self.lie { queues } else { 2 }),
            14 => self.rings[at(long(0))].error = Some(fds.remove(0)),
            2 | 16 => self.known.told.lock().unwrap().push((request, long(0))),
            3 | 18 => {}
            other => panic!("request {other}"),
        }
        let is = |lie: Request| request == lie as u32;
        let wanted = flags & 8 != 0;
        self.known.acknowledges.fetch_or(wanted, Ordering::SeqCst);
        let mut of = request;
        let mut answer = answer.or(wanted.then_some(0)).map(|answer| answer.to_le_bytes().to_vec());
        if let Lie::Long(lie) | Lie::Other(lie) | Lie::Silent(lie) | Lie::Slow(lie) = self.lie
            && is(lie)
        {
            // The front end is about to take the rings back, and one that is still at work there would use what is not its any more.
            self.known.idle.store(true, Ordering::SeqCst);
        }
        match self.lie {
            Lie::Long(lie) if is(lie) => answer = answer.map(|answer| [&answer[..], &[0; 8]].concat()),
            Lie::Other(lie) if is(lie) => of += 1,
            Lie::Refuse(lie) if is(lie) => answer = Some(1_u64.to_le_bytes().to_vec()),
            Lie::Silent(lie) if is(lie) => return Some(()),
            Lie::Close(lie) if is(lie) => return None,
            _ => {}
        }
        let Some(answer) = answer else { return Some(()) };
        let flags = if let Lie::Flags(lie, flags) = self.lie
            && is(lie)
        {
            flags
        } else {
            1 | 4
        };
        let words = [of, flags, answer.len() as u32].map(u32::to_le_bytes).concat();
        let mut bytes = [&words[..], &answer].concat();
        match self.lie {
            Lie::Slow(lie) if is(lie) => {
                for byte in bytes {
                    self.socket.write_all(&[byte]).ok()?;
                    std::thread::sleep(PATIENCE / 10);
                }
                return Some(());
            }
            Lie::Unasked(lie) if is(lie) => bytes.extend([0; 12]),
            _ => {}
        }
        self.socket.write_all(&bytes).ok()
    }

    fn receive(&self, len: usize) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
        let (mut bytes, mut fds, mut filled) = (vec![0; len], Vec::new(), 0);
        while filled < len {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut into = [IoSliceMut::new(&mut bytes[filled..])];
            let received = recvmsg(&self.socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
            filled += received.bytes;
            if received.bytes == 0 {
                return None;
            }
        }
        Some((bytes, fds))
    }

    /// Answers each request on the rings with its own words; none at the end.
    fn work(&mut self) -> Option<()> {
        if self.known.idle.load(Ordering::SeqCst) {
            return Some(());
        }
        let Some(memory) = &self.memory else { return Some(()) };
        for FakeRing { queue, call, .. } in &mut self.rings {
            let Some(queue) = queue else { continue };
            let rings = queue.map(memory).unwrap();
            while let Some(chain) = queue.pop(&rings).unwrap() {
                let mut request = [0; 16];
                queue
                    .gather(&rings, chain, |buffer, writable| {
                        if writable {
                            buffer.copy_from(&request);
                        } else {
                            _ = buffer.copy_to(&mut request);
                        };
                        Ok(())
                    })
                    .unwrap();
                queue.push_used(&rings, chain.head, 16);
            }
            if queue.publish(&rings).unwrap()
                && let Some(call) = call
            {
                if self.known.mute.load(Ordering::SeqCst) {
                    return None;
                }
                rustix::io::write(call, &1_u64.to_ne_bytes()).unwrap();
            }
        }
        Some(())
    }
}

/// Memory in two files' parts, as a guest has it around its hole.
fn memory() -> GuestMemoryMmap {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    ftruncate(&file, MEMORY as u64).unwrap();
    let file = Arc::new(file);
    let half = MEMORY / 2;
    let part = |offset: usize| Some(FileOffset::from_arc(file.clone(), offset as u64));
    GuestMemoryMmap::from_ranges_with_files([
        (GuestAddress(0), half, part(0)),
        (GuestAddress(half as u64), half, part(half)),
    ])
    .unwrap()
}

struct Rig {
    memory: GuestMemoryMmap,
    bus: MmioTransport,
    threads: Box<dyn DeviceThreads>,
    irq: EventFd,
    known: Arc<Known>,
    fake: Option<JoinHandle<()>>,
}

impl Rig {
    fn new(lie: Lie) -> Self {
        Self::over(lie, memory())
    }

    fn over(lie: Lie, memory: GuestMemoryMmap) -> Self {
        let (socket, known, fake) = Fake::spawn(lie);
        let back_end = BackEnd::over(socket, VirtioFs::QUEUES, PATIENCE).unwrap();
        let killed = known.clone();
        let end = move || {
            killed.killed.store(true, Ordering::SeqCst);
            if !killed.stuck.load(Ordering::SeqCst) {
                killed.gone.store(true, Ordering::SeqCst);
            }
        };
        let device = VirtioFs::new("share0", "data", back_end, Box::new(end)).unwrap();
        let threads = device.threads();
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let bus = MmioTransport::new(Box::new(device), memory.clone(), irq.try_clone().unwrap()).unwrap();
        Self { memory, bus, threads, irq, known, fake: Some(fake) }
    }

    /// A driver with both queues; the ring of the second.
    fn start(&self) -> MockRing {
        let driver = MockMmio::new(&self.bus);
        assert!(driver.negotiate(F_VERSION_1 | F_EVENT_IDX));
        let rings = [0, 1].map(|queue| {
            let ring = MockRing::new(&self.memory, RING + 0x2000 * queue, 16, true);
            assert!(driver.set_queue(queue as u32, ring.setup()));
            ring
        });
        driver.start();
        assert!(!driver.needs_reset());
        let [_, ring] = rings;
        ring
    }

    /// Sends a request of that number.
    fn send(&self, ring: &mut MockRing, number: u64) -> u16 {
        let request = [40_u32.to_le_bytes(), 26_u32.to_le_bytes()].concat();
        let at = DATA + 256 * (number % 16);
        self.memory.write_slice(&[&request[..], &number.to_le_bytes()].concat(), GuestAddress(at)).unwrap();
        self.memory.write_slice(&[0xee; ROOM as usize], GuestAddress(at + 128)).unwrap();
        let head = ring.add(&[Buffer::readable(at, 40), Buffer::writable(at + 128, ROOM)]).unwrap();
        ring.want_interrupts(true);
        ring.publish();
        self.bus.kicks()[1].write(1).unwrap();
        head
    }

    /// The answer to the request of that number: error and number.
    fn answer(&self, ring: &mut MockRing, head: u16, number: u64) -> i32 {
        let used = wait(|| ring.reap());
        assert_eq!(used, Some((head, 16)), "{number}");
        let at = DATA + 256 * (number % 16) + 128;
        assert_eq!(self.memory.read_obj::<u64>(GuestAddress(at + 8)).unwrap(), number);
        self.memory.read_obj(GuestAddress(at + 4)).unwrap()
    }

    fn ask(&self, ring: &mut MockRing, number: u64) -> i32 {
        let head = self.send(ring, number);
        let answer = self.answer(ring, head, number);
        assert!(wait(|| self.irq.read().ok()).is_some(), "an interrupt");
        answer
    }

    fn hang_up(&self) {
        self.known.gone.store(true, Ordering::SeqCst);
    }
}

impl Drop for Rig {
    /// A back end that failed says so here.
    fn drop(&mut self) {
        self.hang_up();
        let ended = self.fake.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

/// What the fake back end answers, whose answer is the request: its kind stands where an error does.
const SERVED: i32 = 26;

fn wait<T>(mut what: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match what() {
            None if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
            result => return result,
        }
    }
}

#[test]
fn each_driver_has_the_rings_anew() {
    let rig = Rig::new(Lie::None);
    let driver = MockMmio::new(&rig.bus);
    assert_eq!(driver.features(), F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC, "of the rings, and no more");
    let config: Vec<u8> = (0..10).flat_map(|word| driver.read(0x100 + 4 * word).to_le_bytes()).collect();
    assert_eq!(
        (&config[..5], &config[5..36], &config[36..]),
        (&b"data\0"[..], &[0; 31][..], &[1, 0, 0, 0][..])
    );
    for life in 0..3 {
        let mut ring = rig.start();
        for number in 0..20 {
            assert_eq!(rig.ask(&mut ring, number), SERVED, "{life} {number}");
        }
        driver.reset();
        assert!(rig.known.bases.lock().unwrap().drain(..).eq([0, 0]), "{life}");
    }
}

#[test]
fn both_keep_to_what_both_know() {
    for (lie, agreed) in [
        (Lie::None, 0b1001),
        (Lie::Protocol(0), 0),
        (Lie::Protocol(0b110_1000), 0b1000),
        (Lie::Protocol(0b1), 0b1),
    ] {
        let rig = Rig::new(lie);
        let mut ring = rig.start();
        // Of the features, those that the driver accepted; the protocol's are the front end's.
        let accepted = F_VERSION_1 | F_EVENT_IDX | PROTOCOL_FEATURES;
        assert_eq!(*rig.known.told.lock().unwrap(), [(16, agreed), (2, accepted)], "{lie:?}");
        assert_eq!(rig.known.acknowledges.load(Ordering::SeqCst), agreed & 0b1000 != 0, "{lie:?}");
        let requests = rig.known.requests.lock().unwrap().clone();
        assert_eq!(requests.contains(&17), agreed & 1 != 0, "{lie:?}: how many queues");
        // Where nothing is acknowledged, one answer at the end says that all was taken.
        let last = requests.last().unwrap();
        assert_eq!(*last == 1, agreed & 0b1000 == 0, "{lie:?}");
        assert_eq!(rig.ask(&mut ring, 1), SERVED);
        // To go on is nothing new where it was not paused.
        rig.threads.resume().unwrap();
        assert_eq!(rig.ask(&mut ring, 2), SERVED);
        assert_eq!(*rig.known.requests.lock().unwrap(), requests, "{lie:?}");
    }
}

#[test]
fn its_thread_is_confined() {
    let rig = Rig::new(Lie::None);
    let called = Arc::new(Mutex::new(String::new()));
    let note = Arc::clone(&called);
    let hook = move |name: &str| {
        *note.lock().unwrap() = name.to_owned();
        Err(std::io::Error::from_raw_os_error(libc::EDOM))
    };
    let refused = rig.threads.confine(&(Arc::new(hook) as _)).unwrap_err();
    assert_eq!((refused.raw_os_error(), &**called.lock().unwrap()), (Some(libc::EDOM), "share0"));
    assert_eq!(MockMmio::new(&rig.bus).read(8), 26, "a file system device");
}

#[test]
fn it_takes_as_many_regions_as_the_protocol_has_room_for() {
    let file = Arc::new(File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap()));
    ftruncate(&file, 16 * MEMORY as u64).unwrap();
    for (count, fits) in [(8, true), (9, false)] {
        let regions = (0..count).map(|number: u64| {
            let at = 2 * number * MEMORY as u64;
            (GuestAddress(at), MEMORY, Some(FileOffset::from_arc(file.clone(), number * MEMORY as u64)))
        });
        let regions: Vec<_> = regions.collect();
        let rig = Rig::over(Lie::None, GuestMemoryMmap::from_ranges_with_files(regions).unwrap());
        let mut ring = rig.start();
        assert_eq!(rig.ask(&mut ring, 1), if fits { SERVED } else { NOT_CONNECTED }, "{count}");
    }
}

#[test]
fn a_paused_one_stands_and_goes_on_where_it_stood() {
    let rig = Rig::new(Lie::None);
    let mut ring = rig.start();
    (0..5).for_each(|number| assert_eq!(rig.ask(&mut ring, number), SERVED));
    rig.threads.pause().unwrap();
    let head = rig.send(&mut ring, 5);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(ring.reap(), None);
    rig.threads.resume().unwrap();
    assert_eq!(rig.answer(&mut ring, head, 5), SERVED);
    assert_eq!(*rig.known.bases.lock().unwrap(), [0, 0, 0, 5]);
    // A driver that comes and goes meanwhile.
    rig.threads.pause().unwrap();
    MockMmio::new(&rig.bus).reset();
    let mut ring = rig.start();
    let head = rig.send(&mut ring, 6);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(ring.reap(), None);
    rig.threads.resume().unwrap();
    assert_eq!(rig.answer(&mut ring, head, 6), SERVED);
}

#[test]
fn once_it_is_gone_each_request_gets_an_error_and_first_those_in_hand() {
    let rig = Rig::new(Lie::None);
    let mut ring = rig.start();
    (0..20).for_each(|number| assert_eq!(rig.ask(&mut ring, number), SERVED));
    rig.known.idle.store(true, Ordering::SeqCst);
    // It may be looking at the rings just now.
    std::thread::sleep(Duration::from_millis(30));
    let in_hand = [20, 21].map(|number| (number, rig.send(&mut ring, number)));
    rig.hang_up();
    for (number, head) in in_hand {
        assert_eq!(rig.answer(&mut ring, head, number), NOT_CONNECTED);
    }
    (22..50).for_each(|number| assert_eq!(rig.ask(&mut ring, number), NOT_CONNECTED));
    rig.threads.pause().unwrap();
    let head = rig.send(&mut ring, 50);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(ring.reap(), None);
    rig.threads.resume().unwrap();
    assert_eq!(rig.answer(&mut ring, head, 50), NOT_CONNECTED);
    MockMmio::new(&rig.bus).reset();
    let mut ring = rig.start();
    assert_eq!(rig.ask(&mut ring, 51), NOT_CONNECTED);
    // One that wants no answer.
    let head = ring.add(&[Buffer::readable(DATA, 40)]).unwrap();
    ring.publish();
    rig.bus.kicks()[1].write(1).unwrap();
    assert_eq!(wait(|| ring.reap()), Some((head, 0)));
    // A ring that lies is its driver's end.
    ring.lie_available(99);
    ring.publish();
    rig.bus.kicks()[1].write(1).unwrap();
    assert!(wait(|| MockMmio::new(&rig.bus).needs_reset().then_some(())).is_some());
}

#[test]
fn one_that_cannot_be_a_back_end_is_refused() {
    let over = |lie| {
        let (socket, _, fake) = Fake::spawn(lie);
        let error = BackEnd::over(socket, VirtioFs::QUEUES, PATIENCE).unwrap_err();
        fake.join().unwrap();
        error
    };
    assert!(matches!(over(Lie::Features(PROTOCOL_FEATURES)), Error::Lacks("VIRTIO_F_VERSION_1")));
    assert!(matches!(over(Lie::Features(F_VERSION_1)), Error::Lacks(_)));
    assert!(matches!(over(Lie::Queues(1)), Error::Queues(1)));
    assert!(matches!(over(Lie::Close(Request::GET_FEATURES)), Error::Closed));
    assert!(matches!(over(Lie::Silent(Request::GET_QUEUE_NUM)), Error::Silent(Request::GET_QUEUE_NUM)));
    assert!(matches!(over(Lie::Slow(Request::GET_FEATURES)), Error::Silent(Request::GET_FEATURES)));
    assert!(matches!(over(Lie::Long(Request::GET_FEATURES)), Error::Nonsense(Request::GET_FEATURES)));
    assert!(matches!(over(Lie::Other(Request::GET_QUEUE_NUM)), Error::Nonsense(_)));
    // No answer, an older version, a later one; what else is there is not the front end's to judge.
    for flags in [1, 4, 2 | 4, 3 | 4] {
        assert!(matches!(over(Lie::Flags(Request::GET_FEATURES, flags)), Error::Nonsense(_)), "{flags}");
    }
    let (socket, _, fake) = Fake::spawn(Lie::Flags(Request::GET_FEATURES, 1 | 4 | 8));
    assert!(BackEnd::over(socket, VirtioFs::QUEUES, PATIENCE).is_ok());
    fake.join().unwrap();
    assert!(matches!(over(Lie::Refuse(Request::SET_OWNER)), Error::Refused(Request::SET_OWNER)));
}

#[test]
fn one_that_lies_later_costs_its_driver_an_error_and_nobody_a_wait_without_end() {
    for lie in [
        Lie::Close(Request::SET_MEM_TABLE),
        Lie::Silent(Request::SET_VRING_ADDR),
        Lie::Refuse(Request::SET_VRING_KICK),
        Lie::Long(Request::SET_VRING_BASE),
        Lie::Unasked(Request::SET_VRING_ENABLE),
    ] {
        let rig = Rig::new(lie);
        let mut ring = rig.start();
        assert_eq!(rig.ask(&mut ring, 1), NOT_CONNECTED, "{lie:?}");
    }
    for lie in [
        Lie::Silent(Request::GET_VRING_BASE),
        Lie::Slow(Request::GET_VRING_BASE),
        Lie::Other(Request::GET_VRING_BASE),
        Lie::Close(Request::GET_VRING_BASE),
    ] {
        let rig = Rig::new(lie);
        let mut ring = rig.start();
        assert_eq!(rig.ask(&mut ring, 1), SERVED, "{lie:?}");
        rig.threads.pause().unwrap();
        rig.threads.resume().unwrap();
        assert_eq!(rig.ask(&mut ring, 2), NOT_CONNECTED, "{lie:?}");
        MockMmio::new(&rig.bus).reset();
        let mut ring = rig.start();
        assert_eq!(rig.ask(&mut ring, 3), NOT_CONNECTED, "{lie:?}");
    }
}

#[test]
fn one_that_is_late_is_to_end_and_until_it_has_nobody_else_touches_the_rings() {
    let rig = Rig::new(Lie::Silent(Request::GET_VRING_BASE));
    rig.known.stuck.store(true, Ordering::SeqCst);
    let mut ring = rig.start();
    assert_eq!(rig.ask(&mut ring, 1), SERVED);
    rig.known.idle.store(true, Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(30));
    rig.send(&mut ring, 2);
    rig.threads.pause().unwrap();
    assert!(rig.known.killed.load(Ordering::SeqCst));
    rig.threads.resume().unwrap();
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(ring.reap(), None, "it may use that yet");
    // A driver that comes and goes meanwhile.
    MockMmio::new(&rig.bus).reset();
    let mut ring = rig.start();
    let head = rig.send(&mut ring, 3);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(ring.reap(), None);
    rig.hang_up();
    assert_eq!(rig.answer(&mut ring, head, 3), NOT_CONNECTED);
    assert_eq!(rig.ask(&mut ring, 4), NOT_CONNECTED);
}

#[test]
fn one_that_ends_before_the_interrupt_leaves_no_driver_waiting() {
    let rig = Rig::new(Lie::None);
    let mut ring = rig.start();
    assert_eq!(rig.ask(&mut ring, 1), SERVED);
    rig.known.mute.store(true, Ordering::SeqCst);
    assert_eq!(rig.ask(&mut ring, 2), SERVED);
    assert_eq!(rig.ask(&mut ring, 3), NOT_CONNECTED);
}

#[test]
fn eventfds_that_it_fills_or_empties_have_nobody_wait() {
    let rig = Rig::new(Lie::None);
    let mut ring = rig.start();
    assert_eq!(rig.ask(&mut ring, 1), SERVED);
    let wedge = || {
        rig.known.wedges.store(true, Ordering::SeqCst);
        assert!(wait(|| (!rig.known.wedges.load(Ordering::SeqCst)).then_some(())).is_some());
    };
    wedge();
    assert!(wait(|| MockMmio::new(&rig.bus).needs_reset().then_some(())).is_some());
    wedge();
    rig.threads.pause().unwrap();
    rig.threads.resume().unwrap();
    MockMmio::new(&rig.bus).kick(1);
    MockMmio::new(&rig.bus).reset();
}

#[test]
fn memory_that_nobody_can_map_is_not_shared() {
    let private = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    let rig = Rig::over(Lie::None, private);
    let mut ring = rig.start();
    assert_eq!(rig.ask(&mut ring, 1), NOT_CONNECTED);
    assert!(!rig.known.requests.lock().unwrap().contains(&(Request::SET_MEM_TABLE as u32)));
}

/// A transport that has an eventfd for each queue, then another one, and then none and is told which queue it is.
struct Vectors([EventFd; 2], AtomicUsize, Mutex<Vec<u16>>);

impl Interrupt for Vectors {
    fn queue(&self, index: u16) -> std::io::Result<()> {
        self.2.lock().unwrap().push(index);
        Ok(())
    }

    fn event(&self, _: u16) -> Option<&EventFd> {
        self.0.get(self.1.load(Ordering::SeqCst))
    }

    fn config(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn needs_reset(&self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn interrupts_come_by_the_vectors_of_the_moment() {
    let (socket, _, fake) = Fake::spawn(Lie::None);
    let back_end = BackEnd::over(socket, VirtioFs::QUEUES, PATIENCE).unwrap();
    let mut device = VirtioFs::new("share0", "data", back_end, Box::new(|| ())).unwrap();
    let memory = memory();
    let event = || EventFd::new(EFD_NONBLOCK).unwrap();
    let vectors = Arc::new(Vectors([event(), event()], AtomicUsize::new(0), Mutex::default()));
    let mut ring = MockRing::new(&memory, RING, 16, true);
    let kick = Arc::new(event());
    device
        .activate(Activation {
            memory: memory.clone(),
            accepted: F_VERSION_1 | F_EVENT_IDX,
            interrupt: vectors.clone(),
            queues: vec![ActiveQueue {
                index: 1,
                ring: VirtQueue::new(ring.setup(), F_VERSION_1 | F_EVENT_IDX, &memory).unwrap(),
                kick: kick.clone(),
            }],
        })
        .unwrap();
    for vector in [0, 1, 2] {
        vectors.1.store(vector, Ordering::SeqCst);
        device.rerouted();
        let head = ring.add(&[Buffer::readable(DATA, 40), Buffer::writable(DATA + 64, 16)]).unwrap();
        ring.want_interrupts(true);
        ring.publish();
        kick.write(1).unwrap();
        assert_eq!(wait(|| ring.reap()), Some((head, 16)));
        if vector == 2 {
            assert!(wait(|| vectors.2.lock().unwrap().pop()) == Some(1));
            break;
        }
        assert!(wait(|| vectors.0[vector].read().ok()).is_some(), "{vector}");
        assert!(vectors.0[1 - vector].read().is_err() && vectors.2.lock().unwrap().is_empty(), "{vector}");
    }
    device.reset();
    drop(device);
    fake.join().unwrap();
}
