//! The few system calls that the standard library and `socket2` do not offer in the form needed here: epoll, and
//! vectored receive and send straight from and to registered memory.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

pub(crate) use libc::iovec;

/// Readable (data, a connection to accept, or the end of the stream).
pub(crate) const READABLE: u32 = libc::EPOLLIN as u32;
/// Writable again.
pub(crate) const WRITABLE: u32 = libc::EPOLLOUT as u32;
/// The connection is dead: an error is pending (a reset, a timeout, a refusal).
pub(crate) const BROKEN: u32 = libc::EPOLLERR as u32;
/// Both directions are shut down.
pub(crate) const HUNG_UP: u32 = libc::EPOLLHUP as u32;

/// Something that became ready, and for what.
#[derive(Clone, Copy)]
pub(crate) struct Ready {
    pub(crate) key: u64,
    pub(crate) what: u32,
}

/// An epoll instance, level-triggered.
pub(crate) struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

const EVENTS_MAX: usize = 256;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let raw = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the kernel just gave this descriptor to us; nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        Ok(Self { fd, events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX] })
    }

    pub(crate) fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn control(&self, operation: libc::c_int, fd: &impl AsRawFd, key: u64, what: u32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: what, u64: key };
        // SAFETY: `event` is a live local; the kernel only reads it during the call.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd.as_raw_fd(), &raw mut event) })?;
        Ok(())
    }

    pub(crate) fn add(&self, fd: &impl AsRawFd, key: u64, what: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, key, what)
    }

    pub(crate) fn modify(&self, fd: &impl AsRawFd, key: u64, what: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, key, what)
    }

    /// What is ready now, at most a few hundred; never waits.
    pub(crate) fn ready(&mut self, out: &mut Vec<Ready>) {
        // SAFETY: the pointer and length are those of a live vector that the kernel fills.
        let n = unsafe {
            libc::epoll_wait(self.fd.as_raw_fd(), self.events.as_mut_ptr(), EVENTS_MAX as libc::c_int, 0)
        };
        // An error here is EINTR, which means "nothing yet": the other errors are excluded by construction.
        let n = usize::try_from(n).unwrap_or(0);
        out.extend(self.events[..n].iter().map(|event| Ready { key: event.u64, what: event.events }));
    }
}

fn message_header(slices: &[iovec]) -> libc::msghdr {
    // SAFETY: all fields of `msghdr` are integers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { core::mem::zeroed() };
    header.msg_iov = slices.as_ptr().cast_mut();
    header.msg_iovlen = slices.len() as _;
    header
}

/// Receives into slices of memory without waiting. `Ok(0)` is the end of the stream.
///
/// # Safety
/// Each slice must be memory that this process may write. (Memory that is not mapped gives `EFAULT`.)
pub(crate) unsafe fn receive(fd: RawFd, slices: &[iovec]) -> io::Result<usize> {
    let mut header = message_header(slices);
    // SAFETY: `header` and its slice array live through the call; the slices are the caller's obligation.
    let n = unsafe { libc::recvmsg(fd, &raw mut header, libc::MSG_DONTWAIT) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Sends slices of memory without waiting, and without a signal when the peer is gone.
///
/// # Safety
/// Each slice must be memory that this process may read. (Memory that is not mapped gives `EFAULT`.)
pub(crate) unsafe fn send(fd: RawFd, slices: &[iovec]) -> io::Result<usize> {
    let header = message_header(slices);
    // SAFETY: `header` and its slice array live through the call; the slices are the caller's obligation.
    let n = unsafe { libc::sendmsg(fd, &raw const header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// 128 bits that nobody can guess.
pub(crate) fn random() -> io::Result<u128> {
    let mut bytes = [0u8; 16];
    // SAFETY: the pointer and length are those of a live local array that the kernel fills.
    let n = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if n == 16 { Ok(u128::from_le_bytes(bytes)) } else { Err(io::Error::last_os_error()) }
}

/// Addresses of this host's interfaces that are up, loopback last; link-local ones, which need a scope, are left out.
pub(crate) fn interface_addresses() -> io::Result<Vec<IpAddr>> {
    let mut first: *mut libc::ifaddrs = core::ptr::null_mut();
    // SAFETY: `first` is a live local that the call fills with a list, or leaves alone when it fails.
    check(unsafe { libc::getifaddrs(&raw mut first) })?;
    let mut found = Vec::new();
    let mut next = first;
    while !next.is_null() {
        // SAFETY: `next` is a node of the list that `getifaddrs` made and that is freed only below.
        let node = unsafe { *next };
        if node.ifa_flags & libc::IFF_UP as libc::c_uint != 0
            && let Some(ip) = ip_of(node.ifa_addr)
        {
            found.push(ip);
        }
        next = node.ifa_next;
    }
    // SAFETY: `first` is the list's head, freed once.
    unsafe { libc::freeifaddrs(first) };
    found.sort_by_key(IpAddr::is_loopback);
    Ok(found)
}

fn ip_of(address: *const libc::sockaddr) -> Option<IpAddr> {
    if address.is_null() {
        return None;
    }
    // SAFETY: a non-null `ifa_addr` points to a socket address, which begins with its family.
    let family = i32::from(unsafe { (*address).sa_family });
    match family {
        libc::AF_INET => {
            // SAFETY: this family's address is a `sockaddr_in`.
            let raw = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr))))
        }
        libc::AF_INET6 => {
            // SAFETY: this family's address is a `sockaddr_in6`.
            let raw = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            (!ip.is_unicast_link_local()).then_some(IpAddr::V6(ip))
        }
        _ => None,
    }
}
