//! Reading sysfs for tools.

use core::ffi::{CStr, c_char, c_int};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::nic;

/// `SYSFS_PATH`, as in rdma-core; without it, the node's own tree; without that, the machine's.
fn root() -> PathBuf {
    if let Some(path) = std::env::var_os("SYSFS_PATH").filter(|path| !path.is_empty()) {
        return path.into();
    }
    let own = nic::attach().ok().and_then(|host| {
        // <root>/class/infiniband/<name>
        host.devices().first()?.sysfs_dir().ancestors().nth(3).map(Path::to_owned)
    });
    own.unwrap_or_else(|| "/sys".into())
}

#[unsafe(no_mangle)]
extern "C" fn ibv_get_sysfs_path() -> *const c_char {
    static PATH: OnceLock<CString> = OnceLock::new();
    let path = PATH.get_or_init(|| {
        let mut bytes = root().into_os_string().into_vec();
        while bytes.len() > 1 && bytes.ends_with(b"/") {
            bytes.pop();
        }
        CString::new(bytes).unwrap_or_else(|_| c"/sys".to_owned())
    });
    path.as_ptr()
}

fn read(dir: &CStr, file: &CStr, into: &mut [u8]) -> Option<usize> {
    let path = Path::new(OsStr::from_bytes(dir.to_bytes())).join(OsStr::from_bytes(file.to_bytes()));
    let mut len = File::open(path).ok()?.read(into).ok()?;
    if len == 0 {
        return Some(0);
    }
    if into[len - 1] == b'\n' {
        len -= 1;
    }
    // Without room for the end of the string the answer would be no string.
    *into.get_mut(len)? = 0;
    Some(len)
}

/// The first line of a small file, without its line end: its length, or -1.
#[unsafe(no_mangle)]
unsafe extern "C" fn ibv_read_sysfs_file(
    dir: *const c_char,
    file: *const c_char,
    into: *mut c_char,
    len: usize,
) -> c_int {
    if dir.is_null() || file.is_null() || into.is_null() {
        return -1;
    }
    // SAFETY: the caller's string.
    let dir = unsafe { CStr::from_ptr(dir) };
    // SAFETY: as above.
    let file = unsafe { CStr::from_ptr(file) };
    let mut buffer = vec![0_u8; len];
    let Some(read) = read(dir, file, &mut buffer) else { return -1 };
    let filled = buffer.len().min(read + 1);
    // SAFETY: the caller says that so many bytes are writable.
    unsafe { into.cast::<u8>().copy_from_nonoverlapping(buffer.as_ptr(), filled) };
    read as c_int
}
