//! Protection domains, and thread domains, which only tell that an application locks for itself.

use core::cell::UnsafeCell;
use core::ffi::c_int;
use std::sync::atomic::{AtomicU32, Ordering};

use super::objects::{self, Kind, Object, Users};
use super::{context, null_with};
use crate::ffi::{
    IBV_PARENT_DOMAIN_INIT_ATTR_PD_CONTEXT, ibv_context, ibv_parent_domain_init_attr, ibv_pd, ibv_td,
    ibv_td_init_attr,
};
use crate::nic::Device;

#[repr(C)]
pub(super) struct Domain {
    public: UnsafeCell<ibv_pd>,
    pub(super) device: Device,
    /// What registrations and queue pairs are matched by. A parent domain has its protection domain's.
    pub(super) number: u32,
    pub(super) users: Users,
    parent: Option<Parent>,
}

/// What makes a domain a parent domain.
struct Parent {
    of: *const ibv_pd,
    thread: *const ibv_td,
}

impl Object for Domain {
    const KIND: Kind = Kind::Domain;
    type Public = ibv_pd;
    const PUBLIC: usize = 0;
}

impl Domain {
    /// The context it was made in.
    pub(super) fn context(&self) -> *mut ibv_context {
        // SAFETY: the domain is there; a read of a field that nobody changes.
        unsafe { (*self.public.get()).context }
    }

    /// Whether it is a parent domain.
    pub(super) fn is_parent(&self) -> bool {
        self.parent.is_some()
    }

    /// Whether the application promised that one thread at a time uses what is made in it.
    pub(super) fn is_single_threaded(&self) -> bool {
        self.parent.as_ref().is_some_and(|parent| !parent.thread.is_null())
    }
}

#[repr(C)]
struct ThreadDomain {
    public: UnsafeCell<ibv_td>,
    users: Users,
}

impl Object for ThreadDomain {
    const KIND: Kind = Kind::ThreadDomain;
    type Public = ibv_td;
    const PUBLIC: usize = 0;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_alloc_pd(context: *mut ibv_context) -> *mut ibv_pd {
    static NUMBERS: AtomicU32 = AtomicU32::new(0);
    // SAFETY: the caller does not close the context meanwhile.
    let device = match unsafe { context::device(context) } {
        Ok(device) => device.clone(),
        Err(error) => return null_with(error),
    };
    device.count_command(true);
    let number = NUMBERS.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
    let public = UnsafeCell::new(ibv_pd { context, handle: number });
    objects::publish(Box::new(Domain { public, device, number, users: Users::default(), parent: None }))
}

pub(super) unsafe extern "C" fn alloc_parent_domain(
    context: *mut ibv_context,
    attributes: *mut ibv_parent_domain_init_attr,
) -> *mut ibv_pd {
    // SAFETY: null or the caller's structure.
    let Some(attributes) = (unsafe { attributes.as_ref() }) else {
        return null_with(libc::EINVAL);
    };
    if attributes.comp_mask & !IBV_PARENT_DOMAIN_INIT_ATTR_PD_CONTEXT != 0 {
        return null_with(libc::EOPNOTSUPP);
    }
    // SAFETY: the caller does not destroy it meanwhile.
    let Some(domain) = (unsafe { objects::find::<Domain>(attributes.pd) }) else {
        return null_with(libc::EINVAL);
    };
    if domain.is_parent() {
        return null_with(libc::EINVAL);
    }
    if !attributes.td.is_null() {
        // SAFETY: as above.
        let Some(thread) = (unsafe { objects::find::<ThreadDomain>(attributes.td) }) else {
            return null_with(libc::EINVAL);
        };
        thread.users.add();
    }
    domain.users.add();
    let public = UnsafeCell::new(ibv_pd { context, handle: domain.number });
    objects::publish(Box::new(Domain {
        public,
        device: domain.device.clone(),
        number: domain.number,
        users: Users::default(),
        parent: Some(Parent { of: attributes.pd, thread: attributes.td }),
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_dealloc_pd(domain: *mut ibv_pd) -> c_int {
    // SAFETY: the caller has finished with it.
    let domain = match unsafe { objects::retire::<Domain>(domain, |domain| domain.users.none()) } {
        Ok(domain) => domain,
        Err(error) => return error,
    };
    match &domain.parent {
        None => domain.device.count_command(true),
        Some(parent) => {
            // SAFETY: it has a user, this domain, and so was not destroyed.
            if let Some(of) = unsafe { objects::find::<Domain>(parent.of) } {
                of.users.remove();
            }
            // SAFETY: as above.
            if let Some(thread) = unsafe { objects::find::<ThreadDomain>(parent.thread) } {
                thread.users.remove();
            }
        }
    }
    0
}

pub(super) unsafe extern "C" fn alloc_td(
    context: *mut ibv_context,
    attributes: *mut ibv_td_init_attr,
) -> *mut ibv_td {
    // SAFETY: null or the caller's structure.
    match unsafe { attributes.as_ref() } {
        Some(attributes) if attributes.comp_mask == 0 => {}
        Some(_) => return null_with(libc::EOPNOTSUPP),
        None => return null_with(libc::EINVAL),
    }
    // SAFETY: the caller does not close the context meanwhile.
    if let Err(error) = unsafe { context::device(context) } {
        return null_with(error);
    }
    let public = UnsafeCell::new(ibv_td { context });
    objects::publish(Box::new(ThreadDomain { public, users: Users::default() }))
}

pub(super) unsafe extern "C" fn dealloc_td(thread: *mut ibv_td) -> c_int {
    // SAFETY: the caller has finished with it.
    match unsafe { objects::retire::<ThreadDomain>(thread, |thread| thread.users.none()) } {
        Ok(_) => 0,
        Err(error) => error,
    }
}
