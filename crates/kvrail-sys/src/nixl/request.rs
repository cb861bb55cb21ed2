//! Requests: transfers that are made once and posted as often as one likes.

use std::ffi::c_int;
use std::fmt;
use std::ptr;
use std::sync::Arc;

use super::abi::{self, Handle};
use super::agent::{Inner, c_text};
use super::backend::Backend;
use super::error::{NixlError, Status};
use super::lists::DescriptorList;

/// Which way bytes go, seen from who posts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Operation {
    /// From the peer.
    Read,
    /// To the peer.
    Write,
}

impl Operation {
    const fn code(self) -> c_int {
        match self {
            Self::Read => abi::OPERATION_READ,
            Self::Write => abi::OPERATION_WRITE,
        }
    }
}

/// A list of blocks that NIXL has checked and resolved, from which requests select.
pub struct PreparedList {
    handle: Handle,
    inner: Arc<Inner>,
}

// SAFETY: NIXL reads it when a request is made of it, and frees it once; it belongs to no thread.
unsafe impl Send for PreparedList {}
// SAFETY: as above; it is not changed.
unsafe impl Sync for PreparedList {}

/// A request. Dropping it releases it.
pub struct Request {
    handle: Handle,
    inner: Arc<Inner>,
}

// SAFETY: a request belongs to no thread; calls with it are made through an exclusive reference, and under the agent's lock.
unsafe impl Send for Request {}

impl Backend {
    /// Checks and resolves a list of blocks: of the agent of that name, whose metadata was imported, or without a name of this one.
    ///
    /// # Errors
    /// What NIXL answers, as to a block outside of registered memory.
    pub fn prepare(&self, owner: Option<&str>, blocks: &DescriptorList) -> Result<PreparedList, NixlError> {
        // NIXL's name for the initiator itself is the empty one.
        let owner = c_text("prep_xfer_dlist", owner.unwrap_or_default())?;
        let arguments = self.arguments_with(None)?;
        let _turn = self.inner.turn();
        let mut handle = ptr::null_mut();
        // SAFETY: agent, list and arguments are alive, a C string; the answer is written to `handle`.
        let code = unsafe {
            (self.inner.functions().prep_xfer_dlist)(
                self.inner.handle,
                owner.as_ptr(),
                blocks.owned.handle,
                &mut handle,
                arguments.as_handle(),
            )
        };
        self.inner.check("prep_xfer_dlist", code)?;
        Ok(PreparedList { handle, inner: Arc::clone(&self.inner) })
    }

    /// Makes a request of two lists, block by block.
    ///
    /// # Errors
    /// What NIXL answers, as to lists of unlike lengths or a block outside of registered memory.
    ///
    /// # Safety
    /// The local blocks stay registered, and references that forbid what the transfer does to them do not exist, from each posting to
    /// its end.
    pub unsafe fn request(
        &self,
        operation: Operation,
        local: &DescriptorList,
        (peer, remote): (&str, &DescriptorList),
        notification: Option<&[u8]>,
    ) -> Result<Request, NixlError> {
        let peer = c_text("create_xfer_req", peer)?;
        let arguments = self.arguments_with(notification)?;
        let _turn = self.inner.turn();
        let mut handle = ptr::null_mut();
        // SAFETY: agent, lists and arguments are alive, a C string; the answer is written to `handle`. The memory is the caller's promise.
        let code = unsafe {
            (self.inner.functions().create_xfer_req)(
                self.inner.handle,
                operation.code(),
                local.owned.handle,
                remote.owned.handle,
                peer.as_ptr(),
                &mut handle,
                arguments.as_handle(),
            )
        };
        self.inner.check("create_xfer_req", code)?;
        Ok(Request { handle, inner: Arc::clone(&self.inner) })
    }

    /// Makes a request of prepared lists: the block at `indices[i]` of the one with that of the other.
    ///
    /// # Errors
    /// What NIXL answers, as to an index outside of a list; [`Status::InvalidParam`] also for lists of another agent.
    ///
    /// # Safety
    /// As for [`request`](Self::request).
    pub unsafe fn request_prepared(
        &self,
        operation: Operation,
        local: &PreparedList,
        remote: &PreparedList,
        indices: &[i32],
        notification: Option<&[u8]>,
    ) -> Result<Request, NixlError> {
        if [local, remote].iter().any(|list| !Arc::ptr_eq(&list.inner, &self.inner)) {
            return Err(NixlError { call: "make_xfer_req", status: Status::InvalidParam });
        }
        let arguments = self.arguments_with(notification)?;
        let _turn = self.inner.turn();
        let mut handle = ptr::null_mut();
        // SAFETY: agent, lists and arguments are alive; as many indices as said, which are copied; the answer is written to `handle`. The
        // memory is the caller's promise.
        let code = unsafe {
            (self.inner.functions().make_xfer_req)(
                self.inner.handle,
                operation.code(),
                local.handle,
                indices.as_ptr(),
                indices.len(),
                remote.handle,
                indices.as_ptr(),
                indices.len(),
                &mut handle,
                arguments.as_handle(),
            )
        };
        self.inner.check("make_xfer_req", code)?;
        Ok(Request { handle, inner: Arc::clone(&self.inner) })
    }
}

impl Request {
    /// Posts it. Most backends post all of it before they return.
    ///
    /// # Errors
    /// What NIXL answers; a request that is in flight is refused with [`Status::Backend`].
    #[inline]
    pub fn post(&mut self) -> Result<Status, NixlError> {
        let _turn = self.inner.turn();
        // SAFETY: agent and request are alive. No arguments: those of its making hold, the notification too.
        let code = unsafe {
            (self.inner.functions().post_xfer_req)(self.inner.handle, self.handle, ptr::null_mut())
        };
        outcome("post_xfer_req", code)
    }

    /// Looks once, and makes progress: [`Status::Success`] or [`Status::InProgress`].
    ///
    /// # Errors
    /// How the posting failed.
    #[inline]
    pub fn status(&mut self) -> Result<Status, NixlError> {
        let _turn = self.inner.turn();
        // SAFETY: agent and request are alive.
        let code = unsafe { (self.inner.functions().get_xfer_status)(self.inner.handle, self.handle) };
        outcome("get_xfer_status", code)
    }
}

#[inline]
fn outcome(call: &'static str, code: c_int) -> Result<Status, NixlError> {
    match code {
        abi::SUCCESS => Ok(Status::Success),
        abi::IN_PROGRESS => Ok(Status::InProgress),
        code => Err(NixlError { call, status: Status::of(code) }),
    }
}

impl Drop for Request {
    /// Releases it. One that is in flight is cancelled as far as its backend can; that nothing touches its memory any more NIXL does
    /// not say.
    fn drop(&mut self) {
        let functions = self.inner.functions();
        let released = {
            let _turn = self.inner.turn();
            // SAFETY: agent and request are alive, and it is released once.
            unsafe { (functions.release_xfer_req)(self.inner.handle, self.handle) }
        };
        match self.inner.check("release_xfer_req", released) {
            // SAFETY: released; nobody has the handle.
            Ok(()) => unsafe {
                (functions.destroy_xfer_req)(self.handle);
            },
            // It stays NIXL's: what is in flight may still complete into it.
            Err(error) => log::error!("a request is not released: {error}"),
        }
    }
}

impl Drop for PreparedList {
    fn drop(&mut self) {
        let _turn = self.inner.turn();
        // SAFETY: agent and list are alive, and it is released once.
        let code =
            unsafe { (self.inner.functions().release_xfer_dlist_handle)(self.inner.handle, self.handle) };
        if let Err(error) = self.inner.check("release_xfer_dlist_handle", code) {
            log::error!("{error}");
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Request")
    }
}

impl fmt::Debug for PreparedList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PreparedList")
    }
}
