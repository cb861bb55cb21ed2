//! Error codes, positive: calls return them negated. Those below 256 are the system's.

use std::ffi::c_int;

macro_rules! system {
    ($( $name:ident = $errno:ident ),* $(,)?) => {$( pub const $name: c_int = libc::$errno; )*};
}

pub const FI_SUCCESS: c_int = 0;
system! {
    FI_EPERM = EPERM, FI_ENOENT = ENOENT, FI_EINTR = EINTR, FI_EIO = EIO, FI_E2BIG = E2BIG, FI_EBADF = EBADF,
    FI_EAGAIN = EAGAIN, FI_ENOMEM = ENOMEM, FI_EACCES = EACCES, FI_EFAULT = EFAULT, FI_EBUSY = EBUSY,
    FI_ENODEV = ENODEV, FI_EINVAL = EINVAL, FI_EMFILE = EMFILE, FI_ENOSPC = ENOSPC, FI_ENOSYS = ENOSYS,
    FI_EWOULDBLOCK = EWOULDBLOCK, FI_ENOMSG = ENOMSG, FI_ENODATA = ENODATA, FI_EPROTO = EPROTO,
    FI_EOVERFLOW = EOVERFLOW, FI_EMSGSIZE = EMSGSIZE, FI_ENOPROTOOPT = ENOPROTOOPT, FI_EOPNOTSUPP = EOPNOTSUPP,
    FI_EADDRINUSE = EADDRINUSE, FI_EADDRNOTAVAIL = EADDRNOTAVAIL, FI_ENETDOWN = ENETDOWN,
    FI_ENETUNREACH = ENETUNREACH, FI_ECONNABORTED = ECONNABORTED, FI_ECONNRESET = ECONNRESET,
    FI_ENOBUFS = ENOBUFS, FI_EISCONN = EISCONN, FI_ENOTCONN = ENOTCONN, FI_ESHUTDOWN = ESHUTDOWN,
    FI_ETIMEDOUT = ETIMEDOUT, FI_ECONNREFUSED = ECONNREFUSED, FI_EHOSTDOWN = EHOSTDOWN,
    FI_EHOSTUNREACH = EHOSTUNREACH, FI_EALREADY = EALREADY, FI_EINPROGRESS = EINPROGRESS,
    FI_EREMOTEIO = EREMOTEIO, FI_ECANCELED = ECANCELED, FI_EKEYREJECTED = EKEYREJECTED,
}

pub const FI_EOTHER: c_int = 256;
pub const FI_ETOOSMALL: c_int = 257;
pub const FI_EOPBADSTATE: c_int = 258;
/// An error entry waits: read it with `fi_cq_readerr` or `fi_eq_readerr`.
pub const FI_EAVAIL: c_int = 259;
pub const FI_EBADFLAGS: c_int = 260;
pub const FI_ENOEQ: c_int = 261;
pub const FI_EDOMAIN: c_int = 262;
pub const FI_ENOCQ: c_int = 263;
pub const FI_ECRC: c_int = 264;
pub const FI_ETRUNC: c_int = 265;
pub const FI_ENOKEY: c_int = 266;
pub const FI_ENOAV: c_int = 267;
pub const FI_EOVERRUN: c_int = 268;
/// The peer has no receive posted.
pub const FI_ENORX: c_int = 269;
/// Since 1.20.
pub const FI_ENOMR: c_int = 270;
/// Since 2.2.
pub const FI_EFIREWALLADDR: c_int = 271;
