//! The front door: a datagram socket with an abstract name, by which agents of one user hand each other file
//! descriptors, and by which a sleeping agent is woken.
//!
//! One socket serves all peers, so a peer costs no descriptor here. The kernel vouches for the sender's user and
//! process with each datagram.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::host::{Nonce, take};

/// A datagram that wakes and says nothing.
const DOORBELL: &[u8] = &[0];

/// What agents say to each other at the front door.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Say {
    /// "Here is my control segment" (with a descriptor). `slot` is the receiver's number at the sender.
    Hello { start_time: u64, slot: u32 },
    /// The answer to a hello, of the same content.
    Welcome { start_time: u64, slot: u32 },
    /// The answer to a hello that cannot be served.
    Refused { reason: u32 },
    /// "Please hand over your memory with this number."
    Want { memory: u32 },
    /// Here it is (with a descriptor), or there is none (without).
    Memory { memory: u32 },
    /// The sender is being closed.
    Bye,
}

/// One datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Letter {
    pub(super) from: Nonce,
    pub(super) to: Nonce,
    pub(super) say: Say,
}

const LETTER_BYTES: usize = 4 + 4 + 16 + 16 + 8 + 8;
const LETTER_MAGIC: [u8; 4] = *b"kvS\x01";

impl Letter {
    pub(super) fn encode(&self) -> [u8; LETTER_BYTES] {
        let (kind, a, b) = match self.say {
            Say::Hello { start_time, slot } => (1u32, start_time, u64::from(slot)),
            Say::Welcome { start_time, slot } => (2, start_time, u64::from(slot)),
            Say::Refused { reason } => (3, u64::from(reason), 0),
            Say::Want { memory } => (4, u64::from(memory), 0),
            Say::Memory { memory } => (5, u64::from(memory), 0),
            Say::Bye => (6, 0, 0),
        };
        let mut bytes = [0; LETTER_BYTES];
        let mut rest = &mut bytes[..];
        for part in [&LETTER_MAGIC[..], &kind.to_le_bytes(), &self.from.0, &self.to.0] {
            let (head, tail) = rest.split_at_mut(part.len());
            head.copy_from_slice(part);
            rest = tail;
        }
        rest[..8].copy_from_slice(&a.to_le_bytes());
        rest[8..].copy_from_slice(&b.to_le_bytes());
        bytes
    }

    /// `None` for anything that this version does not say.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != LETTER_BYTES || bytes[..4] != LETTER_MAGIC {
            return None;
        }
        let mut rest = &bytes[4..];
        let kind = u32::from_le_bytes(take(&mut rest));
        let (from, to) = (Nonce(take(&mut rest)), Nonce(take(&mut rest)));
        let a = u64::from_le_bytes(take(&mut rest));
        let b = u32::try_from(u64::from_le_bytes(take(&mut rest))).ok()?;
        let say = match kind {
            1 => Say::Hello { start_time: a, slot: b },
            2 => Say::Welcome { start_time: a, slot: b },
            3 => Say::Refused { reason: u32::try_from(a).ok()? },
            4 => Say::Want { memory: u32::try_from(a).ok()? },
            5 => Say::Memory { memory: u32::try_from(a).ok()? },
            6 => Say::Bye,
            _ => return None,
        };
        Some(Self { from, to, say })
    }
}

/// A letter as it arrived.
pub(super) struct Arrival {
    pub(super) letter: Letter,
    /// The sender's process, as the kernel sees it from here; zero when it is not visible from here.
    pub(super) pid: u32,
    pub(super) uid: u32,
    pub(super) fd: Option<OwnedFd>,
}

/// How a datagram left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sent {
    Gone,
    Full,
    Out,
}

/// The socket.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    pub(super) fn open(nonce: Nonce) -> io::Result<Self> {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no memory is involved.
        let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let on: libc::c_int = 1;
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        let option = (&raw const on).cast();
        // SAFETY: `option` points to an int, whose size is passed.
        if unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED, option, len) } != 0
        {
            return Err(io::Error::last_os_error());
        }
        let (address, len) = address_of(nonce);
        // SAFETY: `address` is a socket address of which the first `len` bytes are meant.
        if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(fd))
    }

    pub(super) fn ring(&self, whom: Nonce) {
        // Full means that the sleeper has something to read already; gone is noticed elsewhere.
        let _ = self.send_bytes(whom, DOORBELL, None);
    }

    pub(super) fn send(&self, letter: &Letter, fd: Option<BorrowedFd<'_>>) -> Sent {
        self.send_bytes(letter.to, &letter.encode(), fd)
    }

    fn send_bytes(&self, whom: Nonce, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Sent {
        let (mut address, address_len) = address_of(whom);
        let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let mut control = ControlBuffer::new();
        // SAFETY: all-zero is a valid msghdr: no name, no parts, no control data.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_name = (&raw mut address).cast();
        message.msg_namelen = address_len;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if let Some(fd) = fd {
            control.put_fd(fd.as_raw_fd());
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = ControlBuffer::ONE_FD;
        }
        loop {
            let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
            // SAFETY: every pointer in `message` refers to a live local of the length stated beside it.
            if unsafe { libc::sendmsg(self.0.as_raw_fd(), &raw const message, flags) } >= 0 {
                return Sent::Out;
            }
            match io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM | libc::ETOOMANYREFS) => return Sent::Full,
                _ => return Sent::Gone,
            }
        }
    }

    /// The next letter; `Some(None)` for a datagram that says nothing.
    pub(super) fn receive(&self) -> Option<Option<Arrival>> {
        let mut bytes = [0u8; LETTER_BYTES + 1];
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let mut control = ControlBuffer::new();
        // SAFETY: all-zero is a valid msghdr.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control.0);
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: every pointer in `message` refers to a live local of the length stated beside it.
        let n = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, flags) };
        let n = usize::try_from(n).ok()?;
        let (credentials, fd) = control.parts(message.msg_controllen);
        let letter = Letter::decode(&bytes[..n]);
        Some(letter.zip(credentials).map(|(letter, (pid, uid))| Arrival { letter, pid, uid, fd }))
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Room for credentials and a few descriptors, aligned as control messages want it. Written and read field by field
/// with the kernel's own layout: length, level, kind, data, each message padded to a word.
struct ControlBuffer([u64; 16]);

impl ControlBuffer {
    const HEADER_WORDS: usize = 2;
    /// Header and one descriptor, padded.
    const ONE_FD: usize = (Self::HEADER_WORDS + 1) * 8;

    const fn new() -> Self {
        Self([0; 16])
    }

    fn put_fd(&mut self, fd: RawFd) {
        self.0[0] = 16 + 4;
        self.0[1] = word(libc::SOL_SOCKET as u32, libc::SCM_RIGHTS as u32);
        self.0[2] = word(fd as u32, 0);
    }

    /// Credentials (pid, uid) and the first descriptor; other descriptors are closed.
    fn parts(&self, len: usize) -> (Option<(u32, u32)>, Option<OwnedFd>) {
        let (mut credentials, mut first) = (None, None);
        let mut at = 0;
        while (at + Self::HEADER_WORDS) * 8 <= len.min(size_of_val(&self.0)) {
            let bytes = usize::try_from(self.0[at]).unwrap_or(0);
            if bytes < 16 || at * 8 + bytes > size_of_val(&self.0) {
                break;
            }
            let (level, kind) = halves(self.0[at + 1]);
            let data = &self.0[at + Self::HEADER_WORDS..at + bytes.div_ceil(8)];
            if level == libc::SOL_SOCKET as u32 && kind == libc::SCM_CREDENTIALS as u32 && data.len() == 2 {
                credentials = Some(halves(data[0]));
            } else if level == libc::SOL_SOCKET as u32 && kind == libc::SCM_RIGHTS as u32 {
                for i in 0..(bytes - 16) / 4 {
                    let (low, high) = halves(data[i / 2]);
                    let raw = if i % 2 == 0 { low } else { high } as RawFd;
                    // SAFETY: the kernel installed this descriptor for this message; nobody else owns it.
                    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
                    first.get_or_insert(fd);
                }
            }
            at += bytes.div_ceil(8);
        }
        (credentials, first)
    }
}

fn word(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

fn halves(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
}

const _: () = assert!(size_of::<usize>() == 8, "the control layout is that of 64-bit Linux");

fn address_of(nonce: Nonce) -> (libc::sockaddr_un, libc::socklen_t) {
    // SAFETY: all-zero is a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let name = nonce.socket_name();
    for (to, from) in address.sun_path[1..].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let len = std::mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
    (address, len as libc::socklen_t)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_letter_brings_its_descriptor_and_the_kernel_vouches_for_the_sender() {
        let (a, b) = (Nonce::random().unwrap(), Nonce::random().unwrap());
        let (from, to) = (Socket::open(a).unwrap(), Socket::open(b).unwrap());
        let fd = crate::memory::memfd(8192, libc::MFD_ALLOW_SEALING).unwrap();
        let letter = Letter { from: a, to: b, say: Say::Hello { start_time: 1 << 40, slot: 9 } };
        assert_eq!(from.send(&letter, Some(fd.as_fd())), Sent::Out);
        from.ring(b);
        let arrival = to.receive().unwrap().unwrap();
        assert_eq!(arrival.letter, letter);
        assert_eq!((arrival.pid, arrival.uid), (std::process::id(), super::super::host::own_uid()));
        assert!(arrival.fd.is_some());
        assert!(to.receive().unwrap().is_none(), "the doorbell says nothing");
        assert!(to.receive().is_none());
        drop(to);
        assert_eq!(from.send(&letter, None), Sent::Gone);
    }

    #[test]
    fn a_socket_that_nobody_reads_is_full_and_not_blocked() {
        let (a, b) = (Nonce::random().unwrap(), Nonce::random().unwrap());
        let (from, _to) = (Socket::open(a).unwrap(), Socket::open(b).unwrap());
        let letter = Letter { from: a, to: b, say: Say::Bye };
        let sent = (0..100_000).find(|_| from.send(&letter, None) == Sent::Full);
        assert!(sent.is_some());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_letter_or_nothing(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            let _ = Letter::decode(&bytes);
            bytes.resize(LETTER_BYTES, 0);
            bytes[..4].copy_from_slice(&LETTER_MAGIC);
            bytes[4] %= 8;
            bytes[5..8].fill(0);
            if let Some(letter) = Letter::decode(&bytes) {
                proptest::prop_assert_eq!(Letter::decode(&letter.encode()), Some(letter));
            }
        }
    }
}
