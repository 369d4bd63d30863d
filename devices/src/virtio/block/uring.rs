//! Reads, writes and flushes that the kernel does beside the queue's thread (io_uring(7)).
//!
//! **Invariant: while the kernel has a request, its pieces of guest memory stay mapped.** [`Flight`] owns them and a hold on guest
//! memory, and waits in its `drop` until the kernel has none.
//!
//! The ring takes three operations, on one file, and no more for as long as it lives: whoever takes its thread over cannot reach
//! by it what the thread's filter of system calls keeps away.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, register::Restriction, squeue};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vm_memory::GuestMemoryMmap;

use super::buffers::Buffers;

/// A ring, made before its thread is confined.
pub(super) struct Uring {
    ring: IoUring,
    done: OwnedFd,
    spent: bool,
}

/// What the kernel is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read { offset: u64 },
    Write { offset: u64, durable: bool },
    Sync,
}

/// What it did: for which token, and how many bytes.
pub(super) struct Done<'m> {
    pub(super) token: usize,
    pub(super) buffers: Buffers<'m>,
    pub(super) result: io::Result<u64>,
}

/// A ring at work for one driver.
pub(super) struct Flight<'u, 'm> {
    uring: &'u mut Uring,
    /// By token: what the kernel has, or is to be given.
    held: Vec<Option<Buffers<'m>>>,
    in_flight: usize,
    /// Of `held` together.
    bytes: u64,
    /// Should this value be forgotten, memory stays.
    _memory: GuestMemoryMmap,
}

impl Uring {
    /// A ring for so many requests at a time on that file.
    ///
    /// # Errors
    /// The kernel has none, or not for us (`kernel.io_uring_disabled`, a container's filter), or it is older than Linux 5.10.
    pub(super) fn new(file: &File, entries: u16) -> io::Result<Self> {
        let ring = IoUring::builder().setup_r_disabled().build(entries.into())?;
        let done = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let submitter = ring.submitter();
        submitter.register_files(&[file.as_raw_fd()])?;
        submitter.register_eventfd(done.as_raw_fd())?;
        let fixed = squeue::Flags::FIXED_FILE.bits();
        submitter.register_restrictions(&mut [
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_flags_allowed(fixed),
            Restriction::sqe_flags_required(fixed),
        ])?;
        submitter.register_enable_rings()?;
        Ok(Self { ring, done, spent: false })
    }

    /// A ring that takes nothing, as one that the kernel is short of memory for.
    #[cfg(test)]
    pub(super) fn that_takes_nothing(entries: u16) -> io::Result<Self> {
        let ring = IoUring::builder().setup_r_disabled().build(entries.into())?;
        Ok(Self { ring, done: eventfd(0, EventfdFlags::NONBLOCK)?, spent: false })
    }

    /// Written as something is done while nobody looks.
    pub(super) fn done(&self) -> &OwnedFd {
        &self.done
    }

    /// The kernel took no more of it once, and it is of no use any more.
    pub(super) fn is_spent(&self) -> bool {
        self.spent
    }
}

impl<'u, 'm> Flight<'u, 'm> {
    /// Starts for a driver whose buffers are in `memory`.
    pub(super) fn new(uring: &'u mut Uring, memory: &'m GuestMemoryMmap) -> Self {
        Self { uring, held: Vec::new(), in_flight: 0, bytes: 0, _memory: memory.clone() }
    }

    /// How many requests were pushed and not reaped.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How many bytes these read and write.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds a request, which goes to the kernel with the next [`submit`](Self::submit). There are no more than the ring was made for.
    pub(super) fn push(&mut self, token: usize, operation: Operation, buffers: Buffers<'m>) {
        if self.held.len() <= token {
            self.held.resize_with(token + 1, || None);
        }
        let (pieces, count) = (buffers.as_iovecs().as_ptr(), buffers.as_iovecs().len() as u32);
        let entry = match operation {
            Operation::Read { offset } => opcode::Readv::new(Fixed(0), pieces, count).offset(offset).build(),
            Operation::Write { offset, durable } => opcode::Writev::new(Fixed(0), pieces, count)
                .offset(offset)
                .rw_flags(if durable { libc::RWF_DSYNC } else { 0 })
                .build(),
            Operation::Sync => opcode::Fsync::new(Fixed(0)).flags(FsyncFlags::DATASYNC).build(),
        };
        self.in_flight += 1;
        self.bytes += buffers.len();
        self.held[token] = Some(buffers);
        let entry = entry.user_data(token as u64);
        // SAFETY: the pieces are guest memory that is mapped for 'm, and they and their list are in `held`, where they stay until
        // the kernel has done with them, even as this value is dropped.
        let pushed = unsafe { self.uring.ring.submission().push(&entry) };
        pushed.expect("there is an entry for each request");
    }

    /// Gives the kernel what was pushed.
    ///
    /// # Errors
    /// It takes no more: see [`settle`](Self::settle).
    pub(super) fn submit(&mut self) -> io::Result<()> {
        while !self.uring.ring.submission().is_empty() {
            match self.uring.ring.submit() {
                Ok(_) => {}
                Err(error) => self.wait_for_room(error)?,
            }
        }
        Ok(())
    }

    /// Waits until one request is done at least, of those there are.
    ///
    /// # Errors
    /// As for [`submit`](Self::submit).
    pub(super) fn wait(&mut self) -> io::Result<()> {
        match self.uring.ring.submit_and_wait(1) {
            Ok(_) => Ok(()),
            Err(error) => self.wait_for_room(error),
        }
    }

    /// The kernel may be short of something for a moment, which what it has in hand will free.
    fn wait_for_room(&mut self, error: io::Error) -> io::Result<()> {
        match error.raw_os_error() {
            Some(libc::EINTR) => Ok(()),
            Some(libc::EAGAIN | libc::EBUSY) if self.kernel_has() > 0 => {
                self.sleep();
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// How many requests were submitted and not reaped.
    fn kernel_has(&mut self) -> usize {
        self.in_flight - self.uring.ring.submission().len()
    }

    /// Takes one request that is done.
    pub(super) fn reap(&mut self) -> Option<Done<'m>> {
        let entry = self.uring.ring.completion().next()?;
        let token = entry.user_data() as usize;
        let buffers = self.held.get_mut(token).and_then(Option::take)?;
        self.in_flight -= 1;
        self.bytes -= buffers.len();
        let result = u64::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()));
        Some(Done { token, buffers, result })
    }

    /// Has the eventfd written from now on, or no more: who looks needs no call. False where something is done already.
    pub(super) fn arm(&mut self, wanted: bool) -> bool {
        let mut completions = self.uring.ring.completion();
        if wanted {
            completions.enable_eventfd();
            completions.sync();
            return completions.is_empty();
        }
        completions.disable_eventfd();
        true
    }

    /// Sleeps without asking the kernel for anything more, until something is done or for a moment.
    fn sleep(&mut self) {
        if self.arm(true) {
            let moment = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
            let _ = poll(&mut [PollFd::new(&self.uring.done, PollFlags::IN)], Some(&moment));
            let _ = rustix::io::read(&self.uring.done, &mut [0; 8]);
        }
    }

    /// After an error of [`submit`](Self::submit): gives back what the kernel never got, token by token, once all that it has is
    /// done and `each` has it. The ring is of no use any more.
    pub(super) fn settle(mut self, mut each: impl FnMut(Done<'m>)) -> Vec<(usize, Buffers<'m>)> {
        let never = self.uring.ring.submission().len();
        while self.in_flight > never {
            match self.reap() {
                Some(done) => each(done),
                None => self.sleep(),
            }
        }
        (self.in_flight, self.uring.spent) = (0, true);
        let held = std::mem::take(&mut self.held);
        held.into_iter().enumerate().filter_map(|(token, buffers)| Some((token, buffers?))).collect()
    }
}

impl Drop for Flight<'_, '_> {
    fn drop(&mut self) {
        while self.in_flight > 0 {
            if self.reap().is_none() {
                match self.wait() {
                    Ok(()) => {}
                    // What it never got needs no wait, and the rest says when it is done.
                    Err(_) => {
                        self.uring.spent = true;
                        if self.kernel_has() == 0 {
                            return;
                        }
                        self.sleep();
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering};

    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let path = std::env::temp_dir().join(format!("wirevm-uring-{:?}", std::thread::current().id()));
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn ring(file: &File) -> Option<Uring> {
        Uring::new(file, 4).inspect_err(|error| println!("skipped: no io_uring here: {error}")).ok()
    }

    #[test]
    fn what_was_never_submitted_comes_back() {
        let file = file(b"12345678");
        let Some(mut uring) = ring(&file) else { return };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let buffers = |at| {
            let mut buffers = Buffers::default();
            assert!(buffers.push(memory.get_slice(GuestAddress(at), 4).unwrap()));
            buffers
        };
        let mut flight = Flight::new(&mut uring, &memory);
        flight.push(2, Operation::Read { offset: 4 }, buffers(0));
        flight.submit().unwrap();
        flight.push(0, Operation::Read { offset: 0 }, buffers(8));
        let mut done = Vec::new();
        let back = flight.settle(|one| done.push((one.token, one.result.unwrap())));
        assert_eq!((done, back.len(), back[0].0), (vec![(2, 4)], 1, 0));
        assert_eq!(memory.read_obj::<[u8; 12]>(GuestAddress(0)).unwrap(), *b"5678\0\0\0\0\0\0\0\0");
    }

    /// A pipe that nothing is in, a ring on its end to read from, and memory.
    fn pipe() -> Option<(Uring, io::PipeWriter, GuestMemoryMmap)> {
        let (read, write) = io::pipe().unwrap();
        let uring = ring(&File::from(OwnedFd::from(read)))?;
        Some((uring, write, GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap()))
    }

    fn first(memory: &GuestMemoryMmap, len: usize) -> Buffers<'_> {
        let mut buffers = Buffers::default();
        assert!(buffers.push(memory.get_slice(GuestAddress(0), len).unwrap()));
        buffers
    }

    #[test]
    fn who_drops_it_waits_until_the_kernel_has_nothing() {
        let Some((mut uring, mut write, memory)) = pipe() else { return };
        let dropped = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let mut flight = Flight::new(&mut uring, &memory);
            flight.push(0, Operation::Read { offset: 0 }, first(&memory, 4));
            flight.submit().unwrap();
            // This one goes to the kernel as that waits.
            flight.push(1, Operation::Read { offset: 0 }, first(&memory, 4));
            let early = scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(50));
                let early = dropped.load(Ordering::SeqCst);
                write.write_all(b"somemore").unwrap();
                early
            });
            drop(flight);
            dropped.store(true, Ordering::SeqCst);
            assert!(!early.join().unwrap());
        });
        assert!([*b"some", *b"more"].contains(&memory.read_obj::<[u8; 4]>(GuestAddress(0)).unwrap()));
        assert!(!uring.is_spent());
    }

    #[test]
    fn what_the_kernel_never_took_is_not_waited_for() {
        let Ok(mut uring) = Uring::that_takes_nothing(4) else { return };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let mut flight = Flight::new(&mut uring, &memory);
        flight.push(0, Operation::Read { offset: 0 }, first(&memory, 4));
        drop(flight);
        assert!(uring.is_spent());
    }

    #[test]
    fn only_what_the_kernel_will_free_is_waited_for() {
        let Some((mut uring, mut write, memory)) = pipe() else { return };
        let errno = io::Error::from_raw_os_error;
        let mut flight = Flight::new(&mut uring, &memory);
        let waits = |flight: &mut Flight<'_, '_>| {
            [libc::EINTR, libc::EAGAIN, libc::EBUSY, libc::EIO]
                .map(|error| flight.wait_for_room(errno(error)).is_ok())
        };
        assert_eq!((flight.kernel_has(), waits(&mut flight)), (0, [true, false, false, false]));
        flight.push(0, Operation::Read { offset: 0 }, first(&memory, 4));
        assert_eq!(
            (flight.kernel_has(), flight.bytes(), waits(&mut flight)),
            (0, 4, [true, false, false, false])
        );
        flight.submit().unwrap();
        assert_eq!(
            (flight.kernel_has(), flight.in_flight(), waits(&mut flight)),
            (1, 1, [true, true, true, false])
        );
        write.write_all(b"some").unwrap();
        flight.wait().unwrap();
        assert_eq!(flight.reap().unwrap().result.unwrap(), 4);
        assert_eq!((flight.kernel_has(), flight.bytes(), flight.in_flight()), (0, 0, 0));
        assert!(flight.reap().is_none() && !flight.uring.is_spent());
        flight.settle(|_| unreachable!());
        assert!(uring.is_spent());
    }

    #[test]
    fn a_sleeper_wakes_as_something_is_done() {
        let Some((mut uring, mut write, memory)) = pipe() else { return };
        let done = uring.done().try_clone().unwrap();
        let written = || rustix::io::read(&done, &mut [0; 8]).is_ok();
        let mut flight = Flight::new(&mut uring, &memory);
        let read = |flight: &mut Flight<'_, '_>, write: &mut io::PipeWriter| {
            write.write_all(b"some").unwrap();
            flight.wait().unwrap();
        };
        for wanted in [false, true] {
            flight.push(0, Operation::Read { offset: 0 }, first(&memory, 4));
            flight.submit().unwrap();
            assert!(flight.arm(wanted), "nothing is done yet");
            read(&mut flight, &mut write);
            assert_eq!(written(), wanted);
            assert!(!flight.arm(true), "something is done already");
            assert!(flight.arm(false) && flight.reap().is_some());
        }
    }

    #[test]
    fn what_the_kernel_refuses_is_told() {
        // A device that is read, written, and never synchronized.
        let null = OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
        let Some(mut uring) = ring(&null) else { return };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let mut flight = Flight::new(&mut uring, &memory);
        for (operation, result) in [
            (Operation::Sync, Err(Some(libc::EINVAL))),
            (Operation::Read { offset: 0 }, Ok(0)),
            (Operation::Write { offset: 0, durable: false }, Ok(4)),
        ] {
            flight.push(3, operation, first(&memory, 4));
            flight.wait().unwrap();
            let done = flight.reap().unwrap();
            assert_eq!((done.token, done.result.map_err(|error| error.raw_os_error())), (3, result));
        }
    }

    #[test]
    fn the_ring_takes_nothing_but_its_three_operations_on_its_file() {
        let file = file(b"12345678");
        let Some(mut uring) = ring(&file) else { return };
        let other = file.as_raw_fd();
        for (entry, result) in [
            (opcode::Nop::new().build().flags(squeue::Flags::FIXED_FILE), -libc::EACCES),
            (opcode::Fsync::new(io_uring::types::Fd(other)).build(), -libc::EACCES),
            (opcode::Close::new(io_uring::types::Fd(other)).build(), -libc::EACCES),
            (opcode::Fsync::new(Fixed(0)).build(), 0),
        ] {
            // SAFETY: no memory is named.
            unsafe { uring.ring.submission().push(&entry).unwrap() };
            uring.ring.submit_and_wait(1).unwrap();
            assert_eq!(uring.ring.completion().next().unwrap().result(), result);
        }
        assert!(uring.ring.submitter().register_files_update(0, &[other]).is_err());
    }
}
