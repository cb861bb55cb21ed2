//! One NIC as a process uses it: context, protection domain, completion queue, queue pair.

use std::ffi::{c_int, c_uint, c_void};
use std::io;

use softefa_fabric::Gid;
use softefa_verbs::ffi::*;

use super::library::Library;

/// Key that senders must know.
const QKEY: u32 = 0x1234_5678;
/// Longest inline payload that is asked for, bytes.
const INLINE_BYTES: u32 = 32;

/// An errno.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refused(pub(crate) c_int);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

fn last() -> Refused {
    Refused(io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

fn made<T>(pointer: *mut T) -> Result<*mut T, Refused> {
    if pointer.is_null() { Err(last()) } else { Ok(pointer) }
}

fn done(error: c_int) -> Result<(), Refused> {
    if error == 0 { Ok(()) } else { Err(Refused(error)) }
}

/// What a rail is to be like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) sends: u32,
    pub(crate) receives: u32,
    pub(crate) completions: u32,
    pub(crate) unsolicited: bool,
    pub(crate) rnr_retry: u8,
    pub(crate) classic_poll: bool,
}

/// Registered memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region(*mut ibv_mr);

impl Region {
    pub(crate) fn key(self) -> u32 {
        // SAFETY: a region that is registered.
        unsafe { (*self.0).lkey }
    }

    pub(crate) fn remote_key(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).rkey }
    }
}

/// An address handle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handle(*mut ibv_ah);

/// What an operation does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Send,
    Write,
    WriteWithImmediate,
    Read,
}

/// An operation to post.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) immediate: u32,
    pub(crate) remote_key: u32,
    pub(crate) remote_address: u64,
    pub(crate) local_key: u32,
    pub(crate) local_address: u64,
    pub(crate) len: u32,
    /// The bytes go with the request.
    pub(crate) inline: bool,
    /// The payload is given in two pieces, the first of so many bytes.
    pub(crate) split: Option<u32>,
    pub(crate) to: Handle,
    pub(crate) qpn: u32,
}

/// A completion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) id: u64,
    /// EFA's status.
    pub(crate) status: u32,
    pub(crate) opcode: c_uint,
    pub(crate) bytes: u32,
    pub(crate) immediate: Option<u32>,
    pub(crate) from_qpn: u32,
    /// `None` where the way of polling does not tell.
    pub(crate) unsolicited: Option<bool>,
}

/// A NIC in use.
pub(crate) struct Rail {
    library: &'static Library,
    context: *mut ibv_context,
    domain: *mut ibv_pd,
    channel: *mut ibv_comp_channel,
    queue: *mut ibv_cq_ex,
    efa_queue: *mut efadv_cq,
    pair: *mut ibv_qp,
    pair_ex: *mut ibv_qp_ex,
    classic_poll: bool,
}

impl Rail {
    /// Opens a device, with everything that is needed to post.
    pub(crate) fn open(
        library: &'static Library,
        device: *mut ibv_device,
        wanted: &Wanted,
    ) -> Result<Self, String> {
        let failed = |what: &'static str| move |error: Refused| format!("cannot {what}: {error}");
        // SAFETY: a device of the list, which is freed later.
        let context =
            made(unsafe { (library.ibv_open_device)(device) }).map_err(failed("open the device"))?;
        // SAFETY: the context is open, as for all calls below.
        let domain = made(unsafe { (library.ibv_alloc_pd)(context) }).map_err(failed("make a domain"))?;
        // SAFETY: as above.
        let channel =
            made(unsafe { (library.ibv_create_comp_channel)(context) }).map_err(failed("make a channel"))?;
        for fd in [
            // SAFETY: the channel was just made.
            unsafe { (*channel).fd },
            // SAFETY: the context is open.
            unsafe { (*context).async_fd },
        ] {
            // SAFETY: the call touches no memory; the descriptor is open.
            unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) };
        }
        let queue = queue(library, context, channel, wanted).map_err(failed("make a completion queue"))?;
        // SAFETY: the queue was just made.
        let efa_queue = unsafe { (library.efadv_cq_from_ibv_cq_ex)(queue) };
        let pair = pair(library, context, domain, queue, wanted).map_err(failed("make a queue pair"))?;
        // SAFETY: the pair was just made.
        let pair_ex = made(unsafe { (library.ibv_qp_to_qp_ex)(pair) }).map_err(failed("post the new way"))?;
        let rail = Self {
            library,
            context,
            domain,
            channel,
            queue,
            efa_queue,
            pair,
            pair_ex,
            classic_poll: wanted.classic_poll,
        };
        rail.connect(wanted.rnr_retry).map_err(failed("move the queue pair to its states"))?;
        Ok(rail)
    }

    fn connect(&self, rnr_retry: u8) -> Result<(), Refused> {
        let steps = [
            (IBV_QPS_INIT, IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY),
            (IBV_QPS_RTR, 0),
            (IBV_QPS_RTS, IBV_QP_SQ_PSN | IBV_QP_RNR_RETRY),
        ];
        steps.into_iter().try_for_each(|(state, mask)| self.modify(state, mask, rnr_retry))
    }

    fn modify(&self, state: c_uint, mask: c_int, rnr_retry: u8) -> Result<(), Refused> {
        // SAFETY: integers.
        let mut attributes: ibv_qp_attr = unsafe { core::mem::zeroed() };
        attributes.qp_state = state;
        attributes.port_num = 1;
        attributes.qkey = QKEY;
        attributes.rnr_retry = rnr_retry;
        // SAFETY: the pair is there, the attributes are a local structure.
        done(unsafe { (self.library.ibv_modify_qp)(self.pair, &raw mut attributes, IBV_QP_STATE | mask) })
    }

    /// Moves the queue pair to its error state: all that is posted ends flushed.
    pub(crate) fn flush(&self) -> Result<(), Refused> {
        self.modify(IBV_QPS_ERR, 0, 0)
    }

    /// The number of the queue pair.
    pub(crate) fn qpn(&self) -> u32 {
        // SAFETY: the pair is there.
        unsafe { (*self.pair).qp_num }
    }

    /// The address, as the device reports it.
    pub(crate) fn gid(&self) -> Result<Gid, Refused> {
        let mut gid = ibv_gid { raw: [0; 16] };
        // SAFETY: the context is open, the result a local structure.
        let asked = unsafe { (self.library.ibv_query_gid)(self.context, 1, 0, &raw mut gid) };
        if asked == 0 { Ok(Gid(gid.raw)) } else { Err(last()) }
    }

    /// Registers memory for everything.
    pub(crate) fn register(&self, address: *mut u8, len: usize) -> Result<Region, Refused> {
        let access = (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ) as c_int;
        // SAFETY: the domain is there; the device reads and writes the memory as a peer says, which is what it is for.
        made(unsafe { (self.library.ibv_reg_mr)(self.domain, address.cast(), len, access) }).map(Region)
    }

    pub(crate) fn deregister(&self, region: Region) -> Result<(), Refused> {
        // SAFETY: a region of this rail, used no more.
        done(unsafe { (self.library.ibv_dereg_mr)(region.0) })
    }

    /// A handle for a peer's NIC.
    pub(crate) fn handle(&self, to: Gid) -> Result<Handle, Refused> {
        // SAFETY: integers.
        let mut attributes: ibv_ah_attr = unsafe { core::mem::zeroed() };
        attributes.grh.dgid = ibv_gid { raw: to.0 };
        attributes.is_global = 1;
        attributes.port_num = 1;
        // SAFETY: the domain is there, the attributes are a local structure.
        made(unsafe { (self.library.ibv_create_ah)(self.domain, &raw mut attributes) }).map(Handle)
    }

    pub(crate) fn drop_handle(&self, handle: Handle) -> Result<(), Refused> {
        // SAFETY: a handle of this rail, used no more.
        done(unsafe { (self.library.ibv_destroy_ah)(handle.0) })
    }

    /// Posts operations, all or none.
    pub(crate) fn post(&self, requests: &[Request]) -> Result<(), Refused> {
        let pair = self.pair_ex;
        macro_rules! call {
            ($name:ident $(, $argument:expr)*) => {{
                // SAFETY: the pair is there.
                let function = unsafe { (*pair).$name }.ok_or(Refused(libc::EOPNOTSUPP))?;
                // SAFETY: the pair's own function; between `wr_start` and `wr_complete` where it has to be.
                unsafe { function(pair $(, $argument)*) }
            }};
        }
        call!(wr_start);
        for request in requests {
            // SAFETY: the field is the caller's while it builds a batch.
            unsafe { (*pair).wr_id = request.id };
            // SAFETY: as above.
            unsafe { (*pair).wr_flags = IBV_SEND_SIGNALED };
            let (key, address) = (request.remote_key, request.remote_address);
            match request.kind {
                Kind::Send => call!(wr_send_imm, request.immediate),
                Kind::Write => call!(wr_rdma_write, key, address),
                Kind::WriteWithImmediate => call!(wr_rdma_write_imm, key, address, request.immediate),
                Kind::Read => call!(wr_rdma_read, key, address),
            }
            if request.inline {
                let bytes = core::ptr::with_exposed_provenance_mut::<c_void>(request.local_address as usize);
                call!(wr_set_inline_data, bytes, request.len as usize);
            } else if let Some(first) = request.split {
                let pieces = [
                    ibv_sge { addr: request.local_address, length: first, lkey: request.local_key },
                    ibv_sge {
                        addr: request.local_address + u64::from(first),
                        length: request.len - first,
                        lkey: request.local_key,
                    },
                ];
                call!(wr_set_sge_list, 2, pieces.as_ptr());
            } else {
                call!(wr_set_sge, request.local_key, request.local_address, request.len);
            }
            call!(wr_set_ud_addr, request.to.0, request.qpn, QKEY);
        }
        done(call!(wr_complete))
    }

    /// Posts a receive.
    pub(crate) fn post_receive(&self, id: u64, address: u64, len: u32, key: u32) -> Result<(), Refused> {
        let mut piece = ibv_sge { addr: address, length: len, lkey: key };
        let mut request =
            ibv_recv_wr { wr_id: id, next: core::ptr::null_mut(), sg_list: &raw mut piece, num_sge: 1 };
        let mut bad = core::ptr::null_mut();
        // SAFETY: the context is open.
        let post = unsafe { (*self.context).ops.post_recv }.ok_or(Refused(libc::EOPNOTSUPP))?;
        // SAFETY: the context's own function, on local structures.
        done(unsafe { post(self.pair, &raw mut request, &raw mut bad) })
    }

    /// Takes up to `most` completions.
    pub(crate) fn poll(&self, most: usize, into: &mut Vec<Entry>) -> Result<(), Refused> {
        into.clear();
        if self.classic_poll { self.poll_classic(most, into) } else { self.poll_extended(most, into) }
    }

    fn poll_classic(&self, most: usize, into: &mut Vec<Entry>) -> Result<(), Refused> {
        // SAFETY: integers.
        let mut entries: [ibv_wc; 16] = unsafe { core::mem::zeroed() };
        // SAFETY: the context is open.
        let poll = unsafe { (*self.context).ops.poll_cq }.ok_or(Refused(libc::EOPNOTSUPP))?;
        let most = most.min(entries.len()) as c_int;
        // SAFETY: an extended queue begins with a plain one; there is room for so many entries.
        let count = unsafe { poll(self.queue.cast(), most, entries.as_mut_ptr()) };
        if count < 0 {
            return Err(Refused(-count));
        }
        into.extend(entries.iter().take(count as usize).map(|entry| Entry {
            id: entry.wr_id,
            status: entry.vendor_err,
            opcode: entry.opcode,
            bytes: entry.byte_len,
            immediate: (entry.wc_flags & IBV_WC_WITH_IMM != 0).then_some(entry.imm_data),
            from_qpn: entry.src_qp,
            unsolicited: None,
        }));
        Ok(())
    }

    fn poll_extended(&self, most: usize, into: &mut Vec<Entry>) -> Result<(), Refused> {
        let queue = self.queue;
        macro_rules! call {
            ($name:ident $(, $argument:expr)*) => {{
                // SAFETY: the queue is there.
                let function = unsafe { (*queue).$name }.ok_or(Refused(libc::EOPNOTSUPP))?;
                // SAFETY: the queue's own function, called while polling where it has to be.
                unsafe { function(queue $(, $argument)*) }
            }};
        }
        let mut nothing = ibv_poll_cq_attr { comp_mask: 0 };
        match call!(start_poll, &raw mut nothing) {
            0 => {}
            libc::ENOENT => return Ok(()),
            error => return Err(Refused(error)),
        }
        loop {
            // SAFETY: the queue's public fields are valid while polling.
            let id = unsafe { (*queue).wr_id };
            let opcode = call!(read_opcode);
            let is_receive = opcode & IBV_WC_RECV != 0;
            let flags = call!(read_wc_flags);
            // SAFETY: EFA's part of the queue, which lives as long.
            let unsolicited = unsafe { (*self.efa_queue).wc_is_unsolicited };
            into.push(Entry {
                id,
                status: call!(read_vendor_err),
                opcode,
                bytes: if is_receive { call!(read_byte_len) } else { 0 },
                immediate: if flags & IBV_WC_WITH_IMM != 0 { Some(call!(read_imm_data)) } else { None },
                from_qpn: if is_receive { call!(read_src_qp) } else { 0 },
                // SAFETY: EFA's own function, called while polling.
                unsolicited: unsolicited.map(|ask| unsafe { ask(self.efa_queue) }),
            });
            if into.len() >= most || call!(next_poll) != 0 {
                break;
            }
        }
        call!(end_poll);
        Ok(())
    }

    /// Readable while an event waits: completions, then the device's own.
    pub(crate) fn descriptors(&self) -> [c_int; 2] {
        // SAFETY: the channel is there.
        let channel = unsafe { (*self.channel).fd };
        // SAFETY: the context is open.
        [channel, unsafe { (*self.context).async_fd }]
    }

    /// Asks for an event with the next completion.
    pub(crate) fn arm(&self) -> Result<(), Refused> {
        // SAFETY: the context is open.
        let arm = unsafe { (*self.context).ops.req_notify_cq }.ok_or(Refused(libc::EOPNOTSUPP))?;
        // SAFETY: the context's own function.
        done(unsafe { arm(self.queue.cast(), 0) })
    }

    /// Takes all completion events that wait; how many there were.
    pub(crate) fn take_events(&self) -> u32 {
        let (mut queue, mut context) = (core::ptr::null_mut(), core::ptr::null_mut());
        let mut taken = 0;
        // SAFETY: the channel is there, the results are local; the descriptor does not block.
        while unsafe { (self.library.ibv_get_cq_event)(self.channel, &raw mut queue, &raw mut context) } == 0
        {
            taken += 1;
        }
        if taken > 0 {
            // SAFETY: the queue is there.
            unsafe { (self.library.ibv_ack_cq_events)(self.queue.cast(), taken) };
        }
        taken
    }

    /// The oldest event of the device itself, by its number.
    pub(crate) fn take_async_event(&self) -> Option<c_uint> {
        // SAFETY: integers and pointers.
        let mut event: ibv_async_event = unsafe { core::mem::zeroed() };
        // SAFETY: the context is open, the result local; the descriptor does not block.
        if unsafe { (self.library.ibv_get_async_event)(self.context, &raw mut event) } != 0 {
            return None;
        }
        // SAFETY: an event that was just taken.
        unsafe { (self.library.ibv_ack_async_event)(&raw mut event) };
        Some(event.event_type)
    }

    /// Ends everything; memory regions and handles must have been given back.
    pub(crate) fn close(self) -> Result<(), String> {
        let failed = |what: &'static str| move |error: Refused| format!("cannot destroy the {what}: {error}");
        // SAFETY: each of them is there, is used no more, and is destroyed once, in the order of their uses.
        done(unsafe { (self.library.ibv_destroy_qp)(self.pair) }).map_err(failed("queue pair"))?;
        // SAFETY: as above.
        done(unsafe { (self.library.ibv_destroy_cq)(self.queue.cast()) })
            .map_err(failed("completion queue"))?;
        // SAFETY: as above.
        done(unsafe { (self.library.ibv_destroy_comp_channel)(self.channel) }).map_err(failed("channel"))?;
        // SAFETY: as above.
        done(unsafe { (self.library.ibv_dealloc_pd)(self.domain) }).map_err(failed("domain"))?;
        // SAFETY: as above.
        done(unsafe { (self.library.ibv_close_device)(self.context) }).map_err(failed("context"))
    }
}

fn queue(
    library: &Library,
    context: *mut ibv_context,
    channel: *mut ibv_comp_channel,
    wanted: &Wanted,
) -> Result<*mut ibv_cq_ex, Refused> {
    let mut attributes = ibv_cq_init_attr_ex {
        cqe: wanted.completions,
        cq_context: core::ptr::null_mut(),
        channel,
        comp_vector: 0,
        wc_flags: IBV_WC_STANDARD_FLAGS,
        comp_mask: 0,
        flags: 0,
        parent_domain: core::ptr::null_mut(),
    };
    let flags = EFADV_WC_EX_WITH_SGID | if wanted.unsolicited { EFADV_WC_EX_WITH_IS_UNSOLICITED } else { 0 };
    let efa = efadv_cq_init_attr { wc_flags: flags, ..efadv_cq_init_attr::default() };
    let len = size_of::<efadv_cq_init_attr>() as u32;
    // SAFETY: context and channel are there, the structures local.
    made(unsafe { (library.efadv_create_cq)(context, &raw mut attributes, &raw const efa, len) })
}

fn pair(
    library: &Library,
    context: *mut ibv_context,
    domain: *mut ibv_pd,
    queue: *mut ibv_cq_ex,
    wanted: &Wanted,
) -> Result<*mut ibv_qp, Refused> {
    // SAFETY: integers and pointers.
    let mut attributes: ibv_qp_init_attr_ex = unsafe { core::mem::zeroed() };
    attributes.send_cq = queue.cast();
    attributes.recv_cq = queue.cast();
    attributes.cap = ibv_qp_cap {
        max_send_wr: wanted.sends,
        max_recv_wr: wanted.receives,
        max_send_sge: 2,
        max_recv_sge: 1,
        max_inline_data: INLINE_BYTES,
    };
    attributes.qp_type = IBV_QPT_DRIVER;
    attributes.comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
    attributes.pd = domain;
    attributes.send_ops_flags = IBV_QP_EX_WITH_SEND
        | IBV_QP_EX_WITH_SEND_WITH_IMM
        | IBV_QP_EX_WITH_RDMA_READ
        | IBV_QP_EX_WITH_RDMA_WRITE
        | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM;
    let unsolicited = if wanted.unsolicited { EFADV_QP_FLAGS_UNSOLICITED_WRITE_RECV } else { 0 };
    let efa = efadv_qp_init_attr {
        driver_qp_type: EFADV_QP_DRIVER_TYPE_SRD,
        flags: unsolicited,
        ..efadv_qp_init_attr::default()
    };
    let len = size_of::<efadv_qp_init_attr>() as u32;
    // SAFETY: context, domain and queue are there, the structures local.
    made(unsafe { (library.efadv_create_qp_ex)(context, &raw mut attributes, &raw const efa, len) })
}
