//! The live proof: a child on a fabric of one node loads libfabric and asks it for `efa` endpoints.
//!
//! The child is this program once more, so that nothing but libfabric has to be there. It calls `fi_getinfo` and
//! reads from the answer only fields that have been at the same place since libfabric 1.0.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::Error;
use super::inspect::Inspection;
use crate::run::{self, Cause, End, Request};

/// Words that make this program the child, followed by the library.
const CHILD: [&str; 3] = ["/proc/self/exe", "softefa", "load"];
/// Name of the provider.
const EFA: &str = "efa";
/// NICs of the fabric: two, so that an answer shows that each is found.
const NICS: u32 = 2;
/// Longest time for the answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Most endpoints that are read.
const ENDPOINTS_MAX: usize = 4096;
/// Longest part of what the child said that is repeated, characters.
const SAID_MAX: usize = 600;

/// What libfabric answered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Proof {
    /// Version of its interface, as in `2.5`.
    pub version: String,
    /// What it offers on the provider `efa`.
    pub endpoints: Vec<Endpoint>,
}

/// One `fi_info`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    /// Name of its fabric: `efa` or `efa-direct`.
    pub fabric: String,
    /// Name of its domain: one per NIC and kind.
    pub domain: String,
}

impl Proof {
    /// Names of the fabrics, each once.
    #[must_use]
    pub fn fabrics(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.endpoints.iter().map(|e| e.fabric.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// Has a child load the library on an emulated node.
///
/// # Errors
/// [`Error::Proof`] with what stood in the way.
pub fn probe(inspection: &Inspection) -> Result<Proof, Error> {
    let mut request = Request::new(1);
    request.name = Some(format!("softefa-check-{}", std::process::id()));
    request.nics = Some(NICS);
    request.libfabric = Some(inspection.loading());
    request.deadline = Some(ANSWER_MAX);
    let mut words: Vec<_> = CHILD.into_iter().map(std::ffi::OsString::from).collect();
    words.push(inspection.library.clone().into());
    request.commands = vec![words];
    let no = |why: String| Error::Proof { why };
    let (outcome, captured) = run::run_captured(&request).map_err(|e| no(e.to_string()))?;
    let said = String::from_utf8_lossy(&captured.stderr);
    let said: String = said.trim().chars().take(SAID_MAX).collect();
    match (outcome.cause, outcome.ends.first()) {
        (Cause::Finished, Some(End::Exited(0))) => {}
        (Cause::Finished, Some(End::Signalled(signal))) => {
            return Err(no(format!("the child was ended by signal {signal}; {said}")));
        }
        (Cause::Deadline, _) => {
            return Err(no(format!("no answer within {} s; {said}", ANSWER_MAX.as_secs())));
        }
        _ => return Err(no(said)),
    }
    let proof: Proof =
        serde_json::from_slice(&captured.stdout).map_err(|e| no(format!("its answer: {e}")))?;
    if proof.endpoints.is_empty() {
        return Err(no(format!("fi_getinfo offers no endpoint of its efa provider; {said}")));
    }
    Ok(proof)
}

/// The child's part: loads the library and asks.
///
/// # Errors
/// [`Error::Proof`] with what the loader or libfabric said.
pub fn load(library: &Path) -> Result<Proof, Error> {
    let no = |why: String| Error::Proof { why };
    let path = CString::new(library.as_os_str().as_bytes()).map_err(|e| no(e.to_string()))?;
    // SAFETY: the path is a C string. Loading runs the library's constructors: this process was started for that.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if handle.is_null() {
        return Err(no(loader_error()));
    }
    let symbol = |name: &CStr| {
        // SAFETY: the handle was just opened and is never closed; the name is a C string.
        let at = unsafe { libc::dlsym(handle, name.as_ptr()) };
        if at.is_null() { Err(no(loader_error())) } else { Ok(at) }
    };
    // SAFETY: libfabric declares `uint32_t fi_version(void)`.
    let version: unsafe extern "C" fn() -> u32 = unsafe { std::mem::transmute(symbol(c"fi_version")?) };
    // SAFETY: libfabric declares fi_getinfo with these parameters; `struct fi_info` is opaque here but for its head.
    let getinfo: GetInfo = unsafe { std::mem::transmute(symbol(c"fi_getinfo")?) };
    // SAFETY: it takes nothing.
    let version = unsafe { version() };
    let mut first = std::ptr::null_mut();
    // SAFETY: node, service and hints may be null; the answer is written to `first`.
    let status =
        unsafe { getinfo(version, std::ptr::null(), std::ptr::null(), 0, std::ptr::null(), &mut first) };
    if status != 0 {
        return Err(no(format!("fi_getinfo says {}", std::io::Error::from_raw_os_error(-status))));
    }
    Ok(Proof { version: format!("{}.{}", version >> 16, version & 0xffff), endpoints: endpoints(first) })
}

/// `fi_getinfo(version, node, service, flags, hints, &info)`.
type GetInfo =
    unsafe extern "C" fn(u32, *const c_char, *const c_char, u64, *const FiInfo, *mut *mut FiInfo) -> c_int;

/// The head of `struct fi_info`.
#[repr(C)]
struct FiInfo {
    next: *mut FiInfo,
    caps: u64,
    mode: u64,
    addr_format: u32,
    src_addrlen: usize,
    dest_addrlen: usize,
    addresses: [*mut c_void; 2],
    handle: *mut c_void,
    attributes: [*mut c_void; 3],
    domain: *mut FiNamed,
    fabric: *mut FiFabric,
}

/// The head of `struct fi_domain_attr`.
#[repr(C)]
struct FiNamed {
    object: *mut c_void,
    name: *const c_char,
}

/// The head of `struct fi_fabric_attr`.
#[repr(C)]
struct FiFabric {
    object: *mut c_void,
    name: *const c_char,
    provider: *const c_char,
}

/// The endpoints of the provider `efa` in an answer, which is not given back: the process ends.
fn endpoints(mut at: *const FiInfo) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for _ in 0..ENDPOINTS_MAX {
        // SAFETY: null, or an entry of the list that fi_getinfo returned, which nobody changes or frees.
        let Some(info) = (unsafe { at.as_ref() }) else { break };
        at = info.next;
        // SAFETY: null, or the attributes that fi_getinfo allocated for this entry.
        let (domain, fabric) = unsafe { named(info) };
        if fabric.is_some_and(|f| text(f.provider) == EFA) {
            found.push(Endpoint {
                fabric: fabric.map(|f| text(f.name)).unwrap_or_default(),
                domain: domain.map(|d| text(d.name)).unwrap_or_default(),
            });
        }
    }
    found
}

/// The attributes of an entry.
///
/// # Safety
/// Its pointers are null or valid for as long as the entry is.
unsafe fn named(info: &FiInfo) -> (Option<&FiNamed>, Option<&FiFabric>) {
    // SAFETY: the caller's promise.
    let domain = unsafe { info.domain.as_ref() };
    // SAFETY: the caller's promise.
    let fabric = unsafe { info.fabric.as_ref() };
    (domain, fabric)
}

fn text(at: *const c_char) -> String {
    if at.is_null() {
        return String::new();
    }
    // SAFETY: not null, and libfabric's names are C strings that it allocated.
    unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned()
}

fn loader_error() -> String {
    // SAFETY: it takes nothing, and this process has one thread.
    let said = unsafe { libc::dlerror() };
    if said.is_null() { "the loader gives no reason".into() } else { text(said) }
}
