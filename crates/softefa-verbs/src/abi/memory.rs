//! Memory regions and address handles.

use core::cell::UnsafeCell;
use core::ffi::{c_int, c_uint, c_void};

use softefa_fabric::Gid;

use super::domain::Domain;
use super::objects::{self, Kind, Object};
use super::{errno_of, null_with};
use crate::ffi::{
    EFADV_DEVICE_ATTR_CAPS_RDMA_READ, EFADV_DEVICE_ATTR_CAPS_RDMA_WRITE, IBV_ACCESS_LOCAL_WRITE,
    IBV_ACCESS_OPTIONAL_RANGE, IBV_ACCESS_REMOTE_READ, IBV_ACCESS_REMOTE_WRITE, IBV_REG_MR_MASK_ADDR,
    IBV_REG_MR_MASK_IOVA, ibv_ah, ibv_ah_attr, ibv_context, ibv_mr, ibv_mr_init_attr, ibv_pd,
};
use crate::nic::{Access, Device};

#[repr(C)]
pub(super) struct Region {
    public: UnsafeCell<ibv_mr>,
    device: Device,
    key: u32,
    domain: *const ibv_pd,
}

impl Object for Region {
    const KIND: Kind = Kind::Region;
    type Public = ibv_mr;
    const PUBLIC: usize = 0;
}

#[repr(C)]
pub(super) struct Handle {
    public: UnsafeCell<ibv_ah>,
    device: Device,
    /// Whose address it is.
    pub(super) to: Gid,
    /// Its number, as completions tell it.
    pub(super) number: u16,
    domain: *const ibv_pd,
}

impl Object for Handle {
    const KIND: Kind = Kind::Handle;
    type Public = ibv_ah;
    const PUBLIC: usize = 0;
}

/// Bytes within a page that an address and its alias for the device have to share.
const PAGE_OFFSET: u64 = 4095;

/// Whether the device can give `access` at all, as the kernel checks it.
fn check_access(device: &Device, access: c_uint) -> Result<Access, c_int> {
    let capabilities = device.limits().capabilities;
    let mut known = IBV_ACCESS_LOCAL_WRITE;
    if capabilities & EFADV_DEVICE_ATTR_CAPS_RDMA_READ != 0 {
        known |= IBV_ACCESS_REMOTE_READ;
    }
    if capabilities & EFADV_DEVICE_ATTR_CAPS_RDMA_WRITE != 0 {
        known |= IBV_ACCESS_REMOTE_WRITE;
    }
    let access = access & !IBV_ACCESS_OPTIONAL_RANGE;
    if access & IBV_ACCESS_REMOTE_WRITE != 0 && access & IBV_ACCESS_LOCAL_WRITE == 0 {
        return Err(libc::EINVAL);
    }
    if access & !known != 0 {
        return Err(libc::EOPNOTSUPP);
    }
    Ok(Access(access))
}

/// # Safety
/// No thread destroys the domain meanwhile.
unsafe fn register(
    domain: *mut ibv_pd,
    addr: u64,
    len: usize,
    iova: u64,
    access: c_uint,
) -> Result<*mut ibv_mr, c_int> {
    // SAFETY: the caller's promise.
    let owner = unsafe { objects::find::<Domain>(domain) }.ok_or(libc::EINVAL)?;
    let device = &owner.device;
    if len == 0 || addr & PAGE_OFFSET != iova & PAGE_OFFSET || addr.checked_add(len as u64).is_none() {
        return Err(libc::EINVAL);
    }
    let access = check_access(device, access)?;
    let key = device.register(owner.number, addr, len as u64, iova, access);
    device.count_command(key.is_ok());
    let key = key.map_err(errno_of)?;
    owner.users.add();
    let public = UnsafeCell::new(ibv_mr {
        context: owner.context(),
        pd: domain,
        addr: addr as *mut c_void,
        length: len,
        handle: key,
        lkey: key,
        rkey: key,
    });
    Ok(objects::publish(Box::new(Region { public, device: device.clone(), key, domain })))
}

fn answer<T>(result: Result<*mut T, c_int>) -> *mut T {
    result.unwrap_or_else(null_with)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_reg_mr_iova2(
    domain: *mut ibv_pd,
    addr: *mut c_void,
    len: usize,
    iova: u64,
    access: c_uint,
) -> *mut ibv_mr {
    // SAFETY: the caller does not destroy the domain meanwhile.
    answer(unsafe { register(domain, addr as u64, len, iova, access) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_reg_mr_iova(
    domain: *mut ibv_pd,
    addr: *mut c_void,
    len: usize,
    iova: u64,
    access: c_int,
) -> *mut ibv_mr {
    // SAFETY: as above.
    answer(unsafe { register(domain, addr as u64, len, iova, access.cast_unsigned()) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_reg_mr(
    domain: *mut ibv_pd,
    addr: *mut c_void,
    len: usize,
    access: c_int,
) -> *mut ibv_mr {
    // SAFETY: as above.
    answer(unsafe { register(domain, addr as u64, len, addr as u64, access.cast_unsigned()) })
}

/// Ordinary memory only: there is no DMA-buf, nor a buffer of `ibv_alloc_buf`, that this device could reach.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_reg_mr_ex(domain: *mut ibv_pd, attributes: *mut ibv_mr_init_attr) -> *mut ibv_mr {
    // SAFETY: null or the caller's structure.
    let Some(wanted) = (unsafe { attributes.as_ref() }) else {
        return null_with(libc::EINVAL);
    };
    if wanted.comp_mask & !(IBV_REG_MR_MASK_ADDR | IBV_REG_MR_MASK_IOVA) != 0 {
        return null_with(libc::EOPNOTSUPP);
    }
    if wanted.comp_mask & IBV_REG_MR_MASK_ADDR == 0 {
        return null_with(libc::EINVAL);
    }
    let addr = wanted.addr as u64;
    let iova = if wanted.comp_mask & IBV_REG_MR_MASK_IOVA != 0 { wanted.iova } else { addr };
    // SAFETY: the caller does not destroy the domain meanwhile.
    answer(unsafe { register(domain, addr, wanted.length, iova, wanted.access.cast_unsigned()) })
}

/// There is no DMA that could reach another device's memory.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_reg_dmabuf_mr(
    _domain: *mut ibv_pd,
    _offset: u64,
    _len: usize,
    _iova: u64,
    _descriptor: c_int,
    _access: c_int,
) -> *mut ibv_mr {
    null_with(libc::EOPNOTSUPP)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_dereg_mr(region: *mut ibv_mr) -> c_int {
    // SAFETY: the caller has finished with it.
    let region = match unsafe { objects::retire::<Region>(region, |_| Ok(())) } {
        Ok(region) => region,
        Err(error) => return error,
    };
    let ended = region.device.deregister(region.key);
    region.device.count_command(ended.is_ok());
    // SAFETY: it has a user, this region, and so was not destroyed.
    if let Some(owner) = unsafe { objects::find::<Domain>(region.domain) } {
        owner.users.remove();
    }
    ended.map_or_else(errno_of, |()| 0)
}

/// Changing a region in place is not among what EFA does. The answer says that the old region is still valid.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_rereg_mr(
    _region: *mut ibv_mr,
    _flags: c_int,
    _domain: *mut ibv_pd,
    _addr: *mut c_void,
    _len: usize,
    _access: c_int,
) -> c_int {
    const IBV_REREG_MR_ERR_INPUT: c_int = -1;
    super::set_errno(libc::EOPNOTSUPP);
    IBV_REREG_MR_ERR_INPUT
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_create_ah(domain: *mut ibv_pd, attributes: *mut ibv_ah_attr) -> *mut ibv_ah {
    // SAFETY: the caller does not destroy the domain meanwhile.
    let Some(owner) = (unsafe { objects::find::<Domain>(domain) }) else {
        return null_with(libc::EINVAL);
    };
    // SAFETY: null or the caller's structure.
    let Some(wanted) = (unsafe { attributes.as_ref() }) else {
        return null_with(libc::EINVAL);
    };
    // EFA knows peers by their GID only.
    if wanted.is_global == 0 || wanted.port_num != 1 {
        return null_with(libc::EINVAL);
    }
    let device = &owner.device;
    let to = Gid(wanted.grh.dgid.raw);
    let made = device.address_handle(owner.number, to);
    device.count_command(made.is_ok());
    let number = match made {
        Ok(number) => number,
        Err(limit) => return null_with(errno_of(limit)),
    };
    owner.users.add();
    let public = UnsafeCell::new(ibv_ah { context: owner.context(), pd: domain, handle: number.into() });
    objects::publish(Box::new(Handle { public, device: device.clone(), to, number, domain }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_destroy_ah(handle: *mut ibv_ah) -> c_int {
    // SAFETY: the caller has finished with it.
    let handle = match unsafe { objects::retire::<Handle>(handle, |_| Ok(())) } {
        Ok(handle) => handle,
        Err(error) => return error,
    };
    handle.device.drop_address_handle(handle.to);
    handle.device.count_command(true);
    // SAFETY: it has a user, this handle, and so was not destroyed.
    if let Some(owner) = unsafe { objects::find::<Domain>(handle.domain) } {
        owner.users.remove();
    }
    0
}

/// The attributes for an answer to `completion`'s sender. EFA's completions have no global route, so that the address is not one that
/// [`ibv_create_ah`] takes.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_init_ah_from_wc(
    _context: *mut ibv_context,
    port: u8,
    completion: *mut crate::ffi::ibv_wc,
    _route: *mut c_void,
    attributes: *mut ibv_ah_attr,
) -> c_int {
    // SAFETY: null or the caller's structure.
    let Some(completion) = (unsafe { completion.as_ref() }) else {
        return super::minus_one_with(libc::EINVAL);
    };
    // SAFETY: null or the caller's structure, which is integers.
    let Some(attributes) = (unsafe { attributes.as_mut() }) else {
        return super::minus_one_with(libc::EINVAL);
    };
    // SAFETY: integers.
    *attributes = unsafe { core::mem::zeroed() };
    attributes.dlid = completion.slid;
    attributes.sl = completion.sl;
    attributes.src_path_bits = completion.dlid_path_bits;
    attributes.port_num = port;
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_create_ah_from_wc(
    _domain: *mut ibv_pd,
    _completion: *mut crate::ffi::ibv_wc,
    _route: *mut c_void,
    _port: u8,
) -> *mut ibv_ah {
    null_with(libc::EOPNOTSUPP)
}
