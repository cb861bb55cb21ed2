//! The list of devices.

use core::ffi::{c_char, c_int, c_void};
use core::ptr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use super::{Opaque, copy_text, null_with};
use crate::ffi::{IBV_NODE_UNSPECIFIED, IBV_TRANSPORT_UNSPECIFIED, ibv_device};
use crate::nic::{self, AttachError, Device};

/// One device of the list. Devices are made once in a process and never freed: pointers to them stay good after
/// `ibv_free_device_list` and in children.
#[repr(C)]
struct Listed {
    public: ibv_device,
    guid: u64,
}

/// All of them, in the order of [`nic::Host::devices`]. Null before the first successful call.
static DEVICES: AtomicPtr<Box<[Listed]>> = AtomicPtr::new(ptr::null_mut());

fn listed() -> &'static [Listed] {
    // SAFETY: null, or published in `list` and never freed.
    unsafe { DEVICES.load(Ordering::Acquire).as_ref() }.map_or(&[], |devices| devices)
}

fn describe(number: usize, device: &Device) -> Listed {
    let mut public = ibv_device {
        _ops: [ptr::null_mut::<c_void>(); 2],
        node_type: IBV_NODE_UNSPECIFIED,
        transport_type: IBV_TRANSPORT_UNSPECIFIED,
        name: [0; _],
        dev_name: [0; _],
        dev_path: [0; _],
        ibdev_path: [0; _],
    };
    let sysfs = device.sysfs_dir();
    let verbs_name = format!("uverbs{number}");
    // class/infiniband/<name> → class/infiniband_verbs/uverbs<n>
    let class = sysfs.parent().and_then(Path::parent).unwrap_or(sysfs);
    let verbs = class.join("infiniband_verbs").join(&verbs_name);
    copy_text(&mut public.name, device.name());
    copy_text(&mut public.dev_name, &verbs_name);
    copy_text(&mut public.dev_path, &verbs.to_string_lossy());
    copy_text(&mut public.ibdev_path, &sysfs.to_string_lossy());
    Listed { public, guid: guid(device) }
}

/// A node's GUID in network byte order: the interface identifier of its GID, as with EFA.
pub(super) fn guid(device: &Device) -> u64 {
    let [.., a, b, c, d, e, f, g, h] = device.gid().0;
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// The devices, made from the fabric at the first call.
fn list() -> Result<&'static [Listed], AttachError> {
    if DEVICES.load(Ordering::Acquire).is_null() {
        let host = nic::attach()?;
        let devices: Box<[Listed]> =
            host.devices().iter().enumerate().map(|(i, device)| describe(i, device)).collect();
        let fresh = Box::into_raw(Box::new(devices));
        if DEVICES.compare_exchange(ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: made above, and another thread's was published in its place.
            drop(unsafe { Box::from_raw(fresh) });
        }
    }
    Ok(listed())
}

/// Says once per process why there are no devices: a program's own message hardly ever does.
fn say(error: &AttachError) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        eprintln!("softefa: no devices: {error}");
    }
}

/// The device of a pointer that C was given, as the calling process has it now.
pub(super) fn device_of(device: *const ibv_device) -> Result<Device, c_int> {
    let number = listed()
        .iter()
        .position(|listed| ptr::from_ref(listed).cast::<ibv_device>() == device)
        .ok_or(libc::EINVAL)?;
    let host = nic::attach().map_err(|error| {
        say(&error);
        libc::ENODEV
    })?;
    host.devices().get(number).cloned().ok_or(libc::ENODEV)
}

fn known(device: *const ibv_device) -> Option<&'static Listed> {
    listed().iter().find(|listed| ptr::from_ref(*listed).cast::<ibv_device>() == device)
}

/// Without a fabric: an empty list. With one that cannot be used: null and `ENODEV`.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_device_list(count: *mut c_int) -> *mut *mut ibv_device {
    let devices = match list() {
        Ok(devices) => devices,
        Err(error) => {
            say(&error);
            if !matches!(error, AttachError::NotAsked) {
                // SAFETY: null or the caller's integer.
                if let Some(count) = unsafe { count.as_mut() } {
                    *count = 0;
                }
                return null_with(libc::ENODEV);
            }
            &[]
        }
    };
    // SAFETY: allocates; the list ends with a null pointer, which all-zero bytes are.
    let array = unsafe { libc::calloc(devices.len() + 1, size_of::<*mut ibv_device>()) };
    let array = array.cast::<*mut ibv_device>();
    if array.is_null() {
        return null_with(libc::ENOMEM);
    }
    for (i, device) in devices.iter().enumerate() {
        // SAFETY: within the array.
        let entry = unsafe { array.add(i) };
        // SAFETY: as above.
        unsafe { *entry = ptr::from_ref(device).cast_mut().cast() };
    }
    // SAFETY: null or the caller's integer.
    if let Some(count) = unsafe { count.as_mut() } {
        *count = devices.len() as c_int;
    }
    array
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_free_device_list(list: *mut *mut ibv_device) {
    // SAFETY: null or from `ibv_get_device_list`, which allocated it with calloc.
    unsafe { libc::free(list.cast()) };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_device_name(device: *mut ibv_device) -> *const c_char {
    known(device).map_or(ptr::null(), |listed| listed.public.name.as_ptr())
}

/// The kernel's numbers begin at 0 and follow the order of the list.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_device_index(device: *mut ibv_device) -> c_int {
    let at =
        listed().iter().position(|listed| ptr::from_ref(listed).cast::<ibv_device>() == device.cast_const());
    at.map_or(-1, |at| at as c_int)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_get_device_guid(device: *mut ibv_device) -> u64 {
    known(device).map_or(0, |listed| listed.guid)
}

/// Devices cannot be handed over by descriptor: there is no kernel object behind it.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_import_device(_descriptor: c_int) -> Opaque {
    null_with(libc::EOPNOTSUPP)
}
