//! libfabric's binary interface, by hand from the facts of its headers: names, order and width of fields, values.
//!
//! libfabric's structures only grow at their ends, which leaves two cases:
//!
//! * **Structures that libfabric allocates** (`fi_info` and its attributes, every `fid_…`, every `fi_ops_…`). A Rust reference must not be
//!   longer than what it refers to, so the attributes end here where those of symbol version `FABRIC_1.3` end: that much every
//!   supported release (1.17 and later) has. What came later is listed below, and nothing here needs it. Tables of operations carry
//!   every entry up to 2.7, are never borrowed as a whole, and their `size` is looked at before an entry that 1.17 lacks is read.
//! * **Structures that the caller allocates** (`fi_mr_attr`, `fi_cq_attr`, `fi_cq_err_entry` …) carry every field up to 2.7. An older release
//!   neither reads nor writes the later ones, so they begin as zeros (or [`FI_ADDR_NOTAVAIL`]) and stay that.
//!
//! | Field | Since | Read or written by libfabric when the interface asked for is |
//! |---|---|---|
//! | `fi_domain_attr::max_ep_auth_key` (not here) | 1.20, `FABRIC_1.7` | ≥ 1.20 |
//! | `fi_domain_attr::max_group_id` (not here) | 2.0, `FABRIC_1.8` | any |
//! | `fi_domain_attr::max_cntr_value`, `max_err_cntr_value` (not here) | 2.5, `FABRIC_1.9` | ≥ 2.5 |
//! | `fi_domain_attr::max_xpu_ctx_cnt`, `fi_ep_attr::xpu_ctx` (not here) | 2.7, `FABRIC_1.10` | any |
//! | `fi_mr_attr::dmabuf` (in a union with `mr_iov`) | 1.20 | ≥ 1.20, with [`FI_MR_DMABUF`] |
//! | `fi_mr_attr::hmem_data` | 1.19 | ≥ 1.19 |
//! | `fi_mr_attr::page_size` | 1.22 | ≥ 1.22 |
//! | `fi_mr_attr::base_mr`, `sub_mr_cnt` | 2.0 | ≥ 2.0 |
//! | `fi_cq_err_entry::src_addr` | 1.20 | ≥ 1.20 |
//! | `fi_cq_attr::xpu_ctx` | 2.7 | any |
//!
//! `tests/layout.rs` compares every size, offset and value with installed headers.
//!
//! The functions are those that libfabric's headers define inline: calls through an object's tables. Each returns `-FI_ENOSYS` where the
//! table or the entry is missing. Names, and what the fields mean, are the headers'.
#![allow(missing_docs, non_camel_case_types)]

mod caller;
mod constants;
mod control;
mod data;
mod errno;
mod info;
mod objects;

pub use caller::*;
pub use constants::*;
pub use control::*;
pub use data::*;
pub use errno::*;
pub use info::*;
pub use objects::*;

/// Calls an entry that every supported release has: `-FI_ENOSYS` without the table or the entry.
macro_rules! call {
    ($table:expr, $entry:ident, $($argument:expr),*) => {{
        let table = $table;
        if table.is_null() {
            return (-FI_ENOSYS) as _;
        }
        // SAFETY: not null, and the object's owner keeps the table; every supported release has this entry, and it alone is read.
        let entry = unsafe { (*table).$entry };
        match entry {
            // SAFETY: the caller's promise about the object and the arguments is that of the function in the table.
            Some(function) => unsafe { function($($argument),*) },
            None => (-FI_ENOSYS) as _,
        }
    }};
}

/// Calls an entry that came after the oldest supported release: `-FI_ENOSYS` also where the table ends before it.
macro_rules! call_young {
    ($table:expr, $type:ty, $entry:ident, $($argument:expr),*) => {{
        let table = $table;
        if table.is_null() {
            return (-FI_ENOSYS) as _;
        }
        // SAFETY: not null, and every table begins with its size.
        let size = unsafe { (*table).size };
        if size < std::mem::offset_of!($type, $entry) + size_of::<usize>() {
            return (-FI_ENOSYS) as _;
        }
        call!(table, $entry, $($argument),*)
    }};
}

use {call, call_young};

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::*;

    extern "C" fn domain2(
        _: *mut fid_fabric,
        _: *mut fi_info,
        _: *mut *mut fid_domain,
        _: u64,
        _: *mut std::ffi::c_void,
    ) -> i32 {
        7
    }

    /// A table of `fi_ops_fabric` that ends after `entries` entries and its size, with `domain2` at its place if that is within it.
    fn fabric_with(entries: usize) -> (Vec<usize>, i32, i32) {
        let mut table = vec![0_usize; entries + 1];
        table[0] = table.len() * size_of::<usize>();
        if let Some(entry) = table.get_mut(std::mem::offset_of!(fi_ops_fabric, domain2) / size_of::<usize>())
        {
            *entry = domain2 as *const () as usize;
        }
        let fid = fid { fclass: FI_CLASS_FABRIC, context: ptr::null_mut(), ops: ptr::null_mut() };
        let mut fabric = fid_fabric { fid, ops: table.as_mut_ptr().cast(), api_version: 0 };
        let mut opened = ptr::null_mut();
        // SAFETY: the table is as long as it says; nothing else is looked at.
        let young = unsafe { fi_domain2(&mut fabric, ptr::null_mut(), &mut opened, 1, ptr::null_mut()) };
        // SAFETY: the same.
        let old = unsafe { fi_domain(&mut fabric, ptr::null_mut(), &mut opened, ptr::null_mut()) };
        (table, young, old)
    }

    #[test]
    fn an_entry_behind_a_table_s_end_is_never_read() {
        // The table has exactly as much memory as its size says: reading behind it is what a sanitizer would see.
        let (_, young, old) = fabric_with(5);
        assert_eq!((young, old), (-FI_ENOSYS, -FI_ENOSYS));
        assert_eq!(fabric_with(6).1, 7);
    }

    #[test]
    fn an_object_without_tables_can_do_nothing() {
        let fid = fid { fclass: FI_CLASS_EP, context: ptr::null_mut(), ops: ptr::null_mut() };
        let (ops, cm, msg, rma) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
        let (tagged, atomic, collective) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
        let mut ep = fid_ep { fid, ops, cm, msg, rma, tagged, atomic, collective };
        // SAFETY: an endpoint without tables.
        assert_eq!(unsafe { fi_writemsg(&mut ep, ptr::null(), 0) }, -(FI_ENOSYS as isize));
        // SAFETY: the same.
        assert_eq!(unsafe { fi_sendmsg(&mut ep, ptr::null(), 0) }, -(FI_ENOSYS as isize));
        // SAFETY: the same.
        assert_eq!(unsafe { fi_enable(&mut ep) }, -FI_ENOSYS);
        // SAFETY: the same.
        assert_eq!(unsafe { fi_close(ptr::from_mut(&mut ep).cast()) }, -FI_ENOSYS);
    }
}
