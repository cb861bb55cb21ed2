//! The verbs that EFA has not got: each answers as rdma-core's EFA library does, by `EOPNOTSUPP`.

use core::ffi::{c_char, c_int, c_uint, c_void};

use super::{Opaque, minus_one_with, null_with};

/// Functions that return the errno.
macro_rules! errno {
    ($( $(#[$doc:meta])* $name:ident($( $argument:ident: $type:ty ),*); )*) => { $(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($( $argument: $type ),*) -> c_int {
            $( let _ = $argument; )*
            libc::EOPNOTSUPP
        }
    )* };
}

/// Functions that return null, with the reason in `errno`.
macro_rules! null {
    ($( $(#[$doc:meta])* $name:ident($( $argument:ident: $type:ty ),*); )*) => { $(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($( $argument: $type ),*) -> Opaque {
            $( let _ = $argument; )*
            null_with(libc::EOPNOTSUPP)
        }
    )* };
}

/// Functions that end what can never have been made.
macro_rules! nothing {
    ($( $(#[$doc:meta])* $name:ident($( $argument:ident: $type:ty ),*); )*) => { $(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($( $argument: $type ),*) {
            $( let _ = $argument; )*
        }
    )* };
}

errno! {
    // Shared receive queues.
    ibv_modify_srq(queue: Opaque, attributes: Opaque, mask: c_int);
    ibv_query_srq(queue: Opaque, attributes: Opaque);
    ibv_destroy_srq(queue: Opaque);
    // Multicast.
    ibv_attach_mcast(pair: Opaque, gid: *const c_void, lid: u16);
    ibv_detach_mcast(pair: Opaque, gid: *const c_void, lid: u16);
    // Enhanced connection establishment.
    ibv_query_ece(pair: Opaque, ece: Opaque);
    ibv_set_ece(pair: Opaque, ece: Opaque);
    // Completion counters, which the device does not report.
    _ibv_query_comp_cntr_caps(context: Opaque, capabilities: Opaque, len: usize);
    ibv_destroy_comp_cntr(counter: Opaque);
    ibv_set_comp_cntr(counter: Opaque, value: u64);
    ibv_set_err_comp_cntr(counter: Opaque, value: u64);
    ibv_read_comp_cntr(counter: Opaque, value: *mut u64);
    ibv_read_err_comp_cntr(counter: Opaque, value: *mut u64);
    ibv_inc_comp_cntr(counter: Opaque, amount: u64);
    ibv_inc_err_comp_cntr(counter: Opaque, amount: u64);
    ibv_qp_attach_comp_cntr(pair: Opaque, counter: Opaque, attributes: Opaque);
    // Hints about where DMA goes.
    ibv_dealloc_dmah(handle: Opaque);
}

null! {
    ibv_create_srq(domain: Opaque, attributes: Opaque);
    ibv_create_comp_cntr(context: Opaque, attributes: Opaque);
    ibv_alloc_dmah(context: Opaque, attributes: Opaque);
    // Objects of another process.
    ibv_import_pd(context: Opaque, handle: u32);
    ibv_import_mr(domain: Opaque, handle: u32);
    ibv_import_dm(context: Opaque, handle: u32);
    // Buffers that a provider allocates.
    ibv_alloc_buf(domain: Opaque, len: usize, buffer: *mut Opaque);
    ibv_reg_buf_mr(domain: Opaque, buffer: Opaque, addr: Opaque, len: usize, access: c_int);
}

nothing! {
    ibv_unimport_pd(domain: Opaque);
    ibv_unimport_mr(region: Opaque);
    ibv_unimport_dm(memory: Opaque);
    ibv_free_buf(buffer: Opaque);
    /// Providers are not loaded: this library is one.
    ibv_register_driver(name: *const c_char, init: Opaque);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_export_buf_dmabuf_fd(_buffer: Opaque) -> c_int {
    minus_one_with(libc::EOPNOTSUPP)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_dm_export_dmabuf_fd(_memory: Opaque) -> c_int {
    minus_one_with(libc::EOPNOTSUPP)
}

/// EFA has no Ethernet addresses.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_resolve_eth_l2_from_gid(
    _context: Opaque,
    _attributes: Opaque,
    _mac: *mut u8,
    _vlan: *mut u16,
) -> c_int {
    minus_one_with(libc::EOPNOTSUPP)
}

/// Memory needs no protection from a fork: the device copies with the processor, and a child begins anew.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_fork_init() -> c_int {
    0
}

/// As [`ibv_fork_init`]: not needed.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_is_fork_initialized() -> c_uint {
    crate::ffi::IBV_FORK_UNNEEDED
}

/// As [`ibv_fork_init`].
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_dontfork_range(_base: Opaque, _len: usize) -> c_int {
    0
}

/// As [`ibv_fork_init`].
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_dofork_range(_base: Opaque, _len: usize) -> c_int {
    0
}
