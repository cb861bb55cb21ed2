//! The verbs ABI as a C program uses it: through the exported functions and the tables behind their handles, on a fabric of one node.
#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block,
    reason = "this is C's side: every call passes handles that earlier calls gave and pointers to locals"
)]

use std::ffi::{c_int, c_uint, c_void};
use std::mem::{offset_of, zeroed};
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use softefa_fabric::{Fabric, Fault, FaultKind, Limits, Model, NicSpec, SEGMENT_FILE, Scope, Spec};
use softefa_verbs::ffi::*;

unsafe extern "C" {
    fn ibv_get_device_list(count: *mut c_int) -> *mut *mut ibv_device;
    fn ibv_free_device_list(list: *mut *mut ibv_device);
    fn ibv_open_device(device: *mut ibv_device) -> *mut ibv_context;
    fn ibv_close_device(context: *mut ibv_context) -> c_int;
    fn ibv_get_async_event(context: *mut ibv_context, event: *mut ibv_async_event) -> c_int;
    fn ibv_query_gid(context: *mut ibv_context, port: u8, index: c_int, gid: *mut ibv_gid) -> c_int;
    fn ibv_alloc_pd(context: *mut ibv_context) -> *mut ibv_pd;
    fn ibv_dealloc_pd(domain: *mut ibv_pd) -> c_int;
    fn ibv_reg_mr(domain: *mut ibv_pd, addr: *mut c_void, len: usize, access: c_int) -> *mut ibv_mr;
    fn ibv_dereg_mr(region: *mut ibv_mr) -> c_int;
    fn ibv_create_ah(domain: *mut ibv_pd, attributes: *mut ibv_ah_attr) -> *mut ibv_ah;
    fn ibv_destroy_ah(handle: *mut ibv_ah) -> c_int;
    fn ibv_create_comp_channel(context: *mut ibv_context) -> *mut ibv_comp_channel;
    fn ibv_destroy_comp_channel(channel: *mut ibv_comp_channel) -> c_int;
    fn ibv_get_cq_event(
        channel: *mut ibv_comp_channel,
        queue: *mut *mut ibv_cq,
        context: *mut *mut c_void,
    ) -> c_int;
    fn ibv_create_qp(domain: *mut ibv_pd, wanted: *mut ibv_qp_init_attr) -> *mut ibv_qp;
    fn ibv_modify_qp(pair: *mut ibv_qp, wanted: *mut ibv_qp_attr, mask: c_int) -> c_int;
    fn ibv_query_qp(
        pair: *mut ibv_qp,
        into: *mut ibv_qp_attr,
        mask: c_int,
        init: *mut ibv_qp_init_attr,
    ) -> c_int;
    fn ibv_destroy_qp(pair: *mut ibv_qp) -> c_int;
    fn ibv_destroy_cq(queue: *mut ibv_cq) -> c_int;
    fn ibv_qp_to_qp_ex(pair: *mut ibv_qp) -> *mut ibv_qp_ex;
    fn efadv_create_cq(
        context: *mut ibv_context,
        wanted: *mut ibv_cq_init_attr_ex,
        efa: *const efadv_cq_init_attr,
        len: u32,
    ) -> *mut ibv_cq_ex;
    fn efadv_cq_from_ibv_cq_ex(queue: *mut ibv_cq_ex) -> *mut efadv_cq;
    fn efadv_create_qp_ex(
        context: *mut ibv_context,
        wanted: *mut ibv_qp_init_attr_ex,
        efa: *const efadv_qp_init_attr,
        len: u32,
    ) -> *mut ibv_qp;
    fn efadv_query_device(context: *mut ibv_context, into: *mut efadv_device_attr, len: u32) -> c_int;
    fn efadv_query_ah(handle: *mut ibv_ah, into: *mut efadv_ah_attr, len: u32) -> c_int;
}

/// The tests' fabric, which lives as long as the process: one node, three NICs, no latency. The third is for what would disturb the others.
fn fabric() {
    static FABRIC: OnceLock<tempfile::TempDir> = OnceLock::new();
    FABRIC.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let nics =
            (0..3).map(|i| NicSpec { name: format!("rdmap{i}s0"), rate_bps: 100_000_000_000 }).collect();
        let spec = Spec { nodes: 1, nics, seed: 3, model: Model::instant(), limits: Limits::default() };
        Fabric::create(&dir.path().join(SEGMENT_FILE), &spec).unwrap();
        // SAFETY: Rust reads the environment under a lock, and nothing else in this process reads it.
        unsafe { std::env::set_var("SOFTEFA_DIR", dir.path()) };
        // SAFETY: as above.
        unsafe { std::env::set_var("SOFTEFA_NODE", "0") };
        dir
    });
}

fn errno() -> c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

/// One open NIC with what most tests need.
struct Opened {
    context: *mut ibv_context,
    domain: *mut ibv_pd,
    gid: ibv_gid,
}

impl Opened {
    fn nic(number: usize) -> Opened {
        fabric();
        unsafe {
            let mut count = 0;
            let list = ibv_get_device_list(&raw mut count);
            assert_eq!(count, 3);
            let context = ibv_open_device(*list.add(number));
            ibv_free_device_list(list);
            assert!(!context.is_null());
            let mut gid = ibv_gid { raw: [0; 16] };
            assert_eq!(ibv_query_gid(context, 1, 0, &raw mut gid), 0);
            Opened { context, domain: ibv_alloc_pd(context), gid }
        }
    }

    fn tables(&self) -> *mut verbs_context {
        self.context.cast::<u8>().wrapping_sub(offset_of!(verbs_context, context)).cast()
    }

    fn queue_attributes(&self) -> ibv_cq_init_attr_ex {
        ibv_cq_init_attr_ex { cqe: 64, wc_flags: IBV_WC_STANDARD_FLAGS, ..unsafe { zeroed() } }
    }

    fn queue(&self, channel: *mut ibv_comp_channel) -> *mut ibv_cq_ex {
        let mut wanted = self.queue_attributes();
        wanted.channel = channel;
        wanted.cq_context = 0x77 as *mut c_void;
        let efa = efadv_cq_init_attr { wc_flags: EFADV_WC_EX_WITH_SGID, ..Default::default() };
        let queue = unsafe {
            efadv_create_cq(self.context, &raw mut wanted, &raw const efa, size_of_val(&efa) as u32)
        };
        assert!(!queue.is_null(), "{}", errno());
        queue
    }

    fn pair_attributes(&self, queue: *mut ibv_cq_ex) -> ibv_qp_init_attr_ex {
        let cap = ibv_qp_cap {
            max_send_wr: 8,
            max_recv_wr: 8,
            max_send_sge: 2,
            max_recv_sge: 1,
            max_inline_data: 32,
        };
        ibv_qp_init_attr_ex {
            send_cq: queue.cast(),
            recv_cq: queue.cast(),
            cap,
            qp_type: IBV_QPT_DRIVER,
            sq_sig_all: 1,
            comp_mask: IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS,
            pd: self.domain,
            send_ops_flags: 0b1_1111,
            ..unsafe { zeroed() }
        }
    }

    fn new_pair(&self, queue: *mut ibv_cq_ex) -> *mut ibv_qp {
        let mut wanted = self.pair_attributes(queue);
        let efa = efadv_qp_init_attr::default();
        let pair = unsafe {
            efadv_create_qp_ex(self.context, &raw mut wanted, &raw const efa, size_of_val(&efa) as u32)
        };
        assert!(!pair.is_null(), "{}", errno());
        pair
    }

    /// A pair that may send.
    fn pair(&self, queue: *mut ibv_cq_ex) -> *mut ibv_qp {
        let pair = self.new_pair(queue);
        ready(pair);
        pair
    }

    fn handle(&self, to: ibv_gid) -> *mut ibv_ah {
        let mut wanted: ibv_ah_attr = unsafe { zeroed() };
        wanted.grh.dgid = to;
        wanted.is_global = 1;
        wanted.port_num = 1;
        let handle = unsafe { ibv_create_ah(self.domain, &raw mut wanted) };
        assert!(!handle.is_null(), "{}", errno());
        handle
    }

    fn region(&self, memory: &mut [u8]) -> *mut ibv_mr {
        let region = unsafe { ibv_reg_mr(self.domain, memory.as_mut_ptr().cast(), memory.len(), 7) };
        assert!(!region.is_null(), "{}", errno());
        region
    }
}

const QKEY: u32 = 0x1234_5678;

fn step(pair: *mut ibv_qp, state: c_uint, mask: c_int) -> c_int {
    // SAFETY: integers.
    let mut wanted: ibv_qp_attr = unsafe { zeroed() };
    wanted.qp_state = state;
    wanted.port_num = 1;
    wanted.qkey = QKEY;
    wanted.sq_psn = 5;
    wanted.rnr_retry = 3;
    // SAFETY: a live pair and a local structure.
    unsafe { ibv_modify_qp(pair, &raw mut wanted, IBV_QP_STATE | mask) }
}

fn ready(pair: *mut ibv_qp) {
    assert_eq!(step(pair, IBV_QPS_INIT, IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY), 0);
    assert_eq!(step(pair, IBV_QPS_RTR, 0), 0);
    assert_eq!(step(pair, IBV_QPS_RTS, IBV_QP_SQ_PSN | IBV_QP_RNR_RETRY), 0);
}

fn receive(pair: *mut ibv_qp, id: u64, entry: ibv_sge) -> c_int {
    let mut entry = entry;
    let mut wr = ibv_recv_wr { wr_id: id, next: null_mut(), sg_list: &raw mut entry, num_sge: 1 };
    let mut bad = null_mut();
    // SAFETY: a live pair and local structures.
    unsafe { (*(*pair).context).ops.post_recv.unwrap()(pair, &raw mut wr, &raw mut bad) }
}

/// Waits for the next completion and hands it to `look` between start and end of polling.
fn polled<R>(queue: *mut ibv_cq_ex, look: impl FnOnce(&ibv_cq_ex) -> R) -> R {
    let mut attributes = ibv_poll_cq_attr { comp_mask: 0 };
    let deadline = Instant::now() + Duration::from_secs(10);
    unsafe {
        loop {
            match (*queue).start_poll.unwrap()(queue, &raw mut attributes) {
                0 => break,
                libc::ENOENT => assert!(Instant::now() < deadline, "no completion"),
                error => panic!("{error}"),
            }
        }
        let result = look(&*queue);
        (*queue).end_poll.unwrap()(queue);
        result
    }
}

fn entry_of(memory: &mut [u8], region: *mut ibv_mr) -> ibv_sge {
    // SAFETY: a live region.
    let key = unsafe { (*region).lkey };
    ibv_sge { addr: memory.as_mut_ptr() as u64, length: memory.len() as u32, lkey: key }
}

#[test]
fn a_message_crosses_with_its_immediate_and_tells_who_sent_it() {
    let (a, b) = (Opened::nic(0), Opened::nic(1));
    let (a_queue, b_queue) = (a.queue(null_mut()), b.queue(null_mut()));
    let (from, to) = (a.pair(a_queue), b.pair(b_queue));
    let mut into = vec![0_u8; 64];
    let region = b.region(&mut into);
    let handle = a.handle(b.gid);
    let immediate = 0xabcd_1234_u32.to_be();
    for known in [false, true] {
        // The second time the receiver has an address handle for the sender.
        let back = known.then(|| b.handle(a.gid));
        assert_eq!(receive(to, 21, entry_of(&mut into, region)), 0);
        unsafe {
            let ex = ibv_qp_to_qp_ex(from);
            (*ex).wr_start.unwrap()(ex);
            (*ex).wr_id = 11;
            (*ex).wr_send_imm.unwrap()(ex, immediate);
            (*ex).wr_set_inline_data.unwrap()(ex, c"hello".as_ptr().cast_mut().cast(), 5);
            (*ex).wr_set_ud_addr.unwrap()(ex, handle, (*to).qp_num, QKEY);
            assert_eq!((*ex).wr_complete.unwrap()(ex), 0);
        }
        polled(b_queue, |seen| unsafe {
            assert_eq!((seen.wr_id, seen.status), (21, IBV_WC_SUCCESS));
            assert_eq!(seen.read_opcode.unwrap()(b_queue), IBV_WC_RECV);
            assert_eq!(seen.read_byte_len.unwrap()(b_queue), 5);
            assert_eq!(seen.read_wc_flags.unwrap()(b_queue), IBV_WC_WITH_IMM);
            assert_eq!(seen.read_imm_data.unwrap()(b_queue), immediate);
            assert_eq!(seen.read_src_qp.unwrap()(b_queue), (*from).qp_num);
            assert_eq!(seen.read_qp_num.unwrap()(b_queue), (*to).qp_num);
            let efa = efadv_cq_from_ibv_cq_ex(b_queue);
            let mut sender = ibv_gid { raw: [0; 16] };
            let told = (*efa).wc_read_sgid.unwrap()(efa, &raw mut sender);
            assert!((*efa).wc_is_unsolicited.is_none(), "it was not asked for");
            match back {
                None => {
                    assert_eq!(seen.read_slid.unwrap()(b_queue), 0xffff);
                    assert_eq!((told, sender.raw), (0, a.gid.raw));
                }
                Some(back) => {
                    let mut number = efadv_ah_attr::default();
                    assert_eq!(efadv_query_ah(back, &raw mut number, size_of_val(&number) as u32), 0);
                    assert_eq!(seen.read_slid.unwrap()(b_queue), number.ahn.into());
                    assert_eq!(told, -libc::ENOENT);
                }
            }
        });
        assert_eq!(&into[..5], b"hello");
        polled(a_queue, |seen| unsafe {
            assert_eq!((seen.wr_id, seen.status), (11, IBV_WC_SUCCESS));
            assert_eq!(seen.read_opcode.unwrap()(a_queue), IBV_WC_SEND);
            assert_eq!(seen.read_vendor_err.unwrap()(a_queue), 0);
        });
        into.fill(0);
    }
}

#[test]
fn classic_posting_and_polling_do_the_same_work() {
    let (a, b) = (Opened::nic(0), Opened::nic(1));
    let (a_queue, b_queue) = (a.queue(null_mut()), b.queue(null_mut()));
    let (from, to) = (a.pair(a_queue), b.pair(b_queue));
    let (mut out, mut into) = (vec![7_u8; 3000], vec![0_u8; 3000]);
    let (out_region, into_region) = (a.region(&mut out), b.region(&mut into));
    assert_eq!(receive(to, 5, entry_of(&mut into, into_region)), 0);
    let whole = entry_of(&mut out, out_region);
    let mut halves =
        [ibv_sge { length: 1000, ..whole }, ibv_sge { addr: whole.addr + 1000, length: 2000, ..whole }];
    unsafe {
        let mut wr: ibv_send_wr = zeroed();
        wr.wr_id = 6;
        wr.sg_list = halves.as_mut_ptr();
        wr.num_sge = 2;
        wr.opcode = IBV_WR_SEND;
        wr.wr.ud = ibv_send_wr_ud { ah: a.handle(b.gid), remote_qpn: (*to).qp_num, remote_qkey: QKEY };
        let mut second = wr;
        second.opcode = IBV_WR_RDMA_WRITE;
        wr.next = &raw mut second;
        let mut bad = null_mut();
        let post = (*a.context).ops.post_send.unwrap();
        assert_eq!(post(from, &raw mut wr, &raw mut bad), libc::EINVAL, "RDMA is not posted this way");
        assert_eq!(bad, &raw mut second, "the first was taken");
        let mut seen: [ibv_wc; 4] = zeroed();
        let deadline = Instant::now() + Duration::from_secs(10);
        let poll = (*b.context).ops.poll_cq.unwrap();
        while poll(b_queue.cast(), 4, seen.as_mut_ptr()) == 0 {
            assert!(Instant::now() < deadline);
        }
        assert_eq!((seen[0].wr_id, seen[0].byte_len, seen[0].opcode), (5, 3000, IBV_WC_RECV));
    }
    assert_eq!(into, out);
}

#[test]
fn what_is_in_use_is_busy_and_what_is_gone_is_refused() {
    let nic = Opened::nic(0);
    let mut memory = vec![0_u8; 4096];
    unsafe {
        let channel = ibv_create_comp_channel(nic.context);
        let queue = nic.queue(channel);
        let pair = nic.new_pair(queue);
        let region = nic.region(&mut memory);
        let handle = nic.handle(nic.gid);
        assert_eq!(ibv_destroy_comp_channel(channel), libc::EBUSY);
        assert_eq!(ibv_destroy_cq(queue.cast()), libc::EBUSY);
        assert_eq!(ibv_dealloc_pd(nic.domain), libc::EBUSY);
        assert_eq!(ibv_destroy_qp(pair), 0);
        assert_eq!(ibv_dereg_mr(region), 0);
        assert_eq!(ibv_dealloc_pd(nic.domain), libc::EBUSY, "the address handle");
        assert_eq!(ibv_destroy_ah(handle), 0);
        assert_eq!(ibv_dealloc_pd(nic.domain), 0);
        assert_eq!(ibv_destroy_cq(queue.cast()), 0);
        assert_eq!(ibv_destroy_comp_channel(channel), 0);
        assert_eq!(ibv_destroy_qp(pair), libc::EINVAL);
        assert_eq!(ibv_dereg_mr(region), libc::EINVAL);
        assert_eq!(ibv_destroy_ah(handle), libc::EINVAL);
        assert_eq!(ibv_dealloc_pd(nic.domain), libc::EINVAL);
        assert_eq!(ibv_destroy_cq(queue.cast()), libc::EINVAL);
        assert_eq!(ibv_destroy_comp_channel(channel), libc::EINVAL);
        assert_eq!(ibv_dealloc_pd(memory.as_mut_ptr().cast()), libc::EINVAL, "never was one");
        assert!(ibv_reg_mr(nic.domain, memory.as_mut_ptr().cast(), 1, 1).is_null());
        assert_eq!(errno(), libc::EINVAL);
        assert_eq!(ibv_close_device(nic.context), 0);
        assert_eq!(ibv_close_device(nic.context), -1);
    }
}

#[test]
fn a_batch_with_something_wrong_is_not_posted_at_all() {
    let nic = Opened::nic(0);
    let queue = nic.queue(null_mut());
    let early = nic.new_pair(queue);
    let pair = nic.pair(queue);
    let handle = nic.handle(Opened::nic(1).gid);
    let batch = |pair: *mut ibv_qp, count: usize, flags: c_uint, inline: usize| unsafe {
        let ex = ibv_qp_to_qp_ex(pair);
        let bytes = [0_u8; 64];
        (*ex).wr_start.unwrap()(ex);
        for id in 0..count {
            (*ex).wr_id = id as u64;
            (*ex).wr_flags = flags;
            (*ex).wr_send.unwrap()(ex);
            (*ex).wr_set_inline_data.unwrap()(ex, bytes.as_ptr().cast_mut().cast(), inline);
            (*ex).wr_set_ud_addr.unwrap()(ex, handle, 3, QKEY);
        }
        (*ex).wr_complete.unwrap()(ex)
    };
    assert_eq!(batch(early, 1, 0, 1), libc::EINVAL, "not ready to send");
    assert_eq!(batch(pair, 1, 0, 33), libc::EINVAL, "more than may be inline");
    assert_eq!(batch(pair, 1, 1 << 2, 1), libc::EINVAL, "solicited events");
    assert_eq!(batch(pair, 9, 0, 1), libc::ENOMEM, "more than the queue has");
    unsafe {
        let ex = ibv_qp_to_qp_ex(pair);
        (*ex).wr_start.unwrap()(ex);
        (*ex).wr_set_sge.unwrap()(ex, 1, 1, 1);
        assert_eq!((*ex).wr_complete.unwrap()(ex), libc::EINVAL, "there is no request to set it on");
        (*ex).wr_start.unwrap()(ex);
        (*ex).wr_rdma_read.unwrap()(ex, 1, 1);
        (*ex).wr_set_inline_data.unwrap()(ex, null_mut(), 0);
        assert_eq!((*ex).wr_complete.unwrap()(ex), libc::EINVAL, "a read cannot be inline");
        (*ex).wr_start.unwrap()(ex);
        (*ex).wr_send.unwrap()(ex);
        (*ex).wr_abort.unwrap()(ex);
        (*ex).wr_start.unwrap()(ex);
        assert_eq!((*ex).wr_complete.unwrap()(ex), 0, "nothing was left of the aborted batch");
        let mut attributes = ibv_poll_cq_attr { comp_mask: 0 };
        assert_eq!((*queue).start_poll.unwrap()(queue, &raw mut attributes), libc::ENOENT);
        attributes.comp_mask = 1;
        assert_eq!((*queue).start_poll.unwrap()(queue, &raw mut attributes), libc::EINVAL);
    }
}

#[test]
fn a_pair_goes_through_its_states_in_order() {
    let nic = Opened::nic(0);
    let pair = nic.new_pair(nic.queue(null_mut()));
    assert_eq!(step(pair, IBV_QPS_RTR, 0), libc::EINVAL, "not from reset");
    assert_eq!(step(pair, IBV_QPS_INIT, IBV_QP_PORT), libc::EINVAL, "keys are missing");
    assert_eq!(step(pair, IBV_QPS_INIT, 1 << 8), libc::EOPNOTSUPP, "EFA has no path MTU");
    ready(pair);
    unsafe {
        let mut seen: ibv_qp_attr = zeroed();
        let mut init: ibv_qp_init_attr = zeroed();
        assert_eq!(ibv_query_qp(pair, &raw mut seen, IBV_QP_STATE | IBV_QP_QKEY, &raw mut init), 0);
        assert_eq!((seen.qp_state, seen.qkey, seen.sq_psn, seen.rnr_retry), (IBV_QPS_RTS, QKEY, 5, 3));
        assert_eq!((init.cap.max_send_wr, init.cap.max_inline_data, init.qp_type), (8, 32, IBV_QPT_DRIVER));
        assert_eq!((*pair).state, IBV_QPS_RTS);
        assert_eq!(ibv_query_qp(pair, &raw mut seen, 1 << 8, &raw mut init), libc::EOPNOTSUPP);
        assert_eq!(step(pair, IBV_QPS_INIT, 0), libc::EINVAL, "only forward");
        assert_eq!(step(pair, IBV_QPS_ERR, 0), 0);
        let nothing = ibv_sge { addr: 0, length: 0, lkey: 0 };
        assert_eq!(receive(pair, 1, nothing), libc::EINVAL, "not in the error state");
        assert_eq!(step(pair, IBV_QPS_RESET, 0), 0);
        ready(pair);
    }
}

#[test]
fn structures_of_older_and_newer_headers_are_understood() {
    let nic = Opened::nic(0);
    unsafe {
        // Debian 12's header and a future one: as much as the caller has is written, the rest is zero.
        for len in [28_usize, 32, 36, 40, 64] {
            let mut bytes = [0xff_u8; 80];
            let result = efadv_query_device(nic.context, bytes.as_mut_ptr().cast(), len as u32);
            assert_eq!(result, 0, "{len}");
            assert!(bytes[len..].iter().all(|&byte| byte == 0xff), "{len}: not a byte more");
            let attributes: efadv_device_attr = bytes.as_ptr().cast::<efadv_device_attr>().read_unaligned();
            assert_eq!(attributes.max_sq_wr, 4096);
            if len == 40 {
                assert_eq!(attributes.max_rdma_size, 1 << 30);
            }
            if len == 64 {
                assert!(bytes[40..64].iter().all(|&byte| byte == 0));
            }
        }
        let mut attributes = efadv_device_attr::default();
        assert_eq!(efadv_query_device(nic.context, &raw mut attributes, 16), libc::EINVAL);

        let queue = nic.queue(null_mut());
        let create = |bytes: &[u64; 6], len: u32| {
            let mut wanted = nic.pair_attributes(queue);
            let pair = efadv_create_qp_ex(nic.context, &raw mut wanted, bytes.as_ptr().cast(), len);
            if pair.is_null() { Err(errno()) } else { Ok(ibv_destroy_qp(pair)) }
        };
        assert_eq!(create(&[0; 6], 16), Ok(0), "rdma-core 44");
        assert_eq!(create(&[0; 6], 48), Ok(0), "a longer one that asks for nothing more");
        assert_eq!(create(&[0, 0, 0, 0, 1, 0], 48), Err(libc::EINVAL), "it asks for something unknown");
        assert_eq!(create(&[1, 0, 0, 0, 0, 0], 24), Err(libc::EINVAL), "an unknown mask");
        assert_eq!(create(&[0, 1, 0, 0, 0, 0], 24), Err(libc::EOPNOTSUPP), "another driver's type");
        assert_eq!(create(&[0, 1 << 40, 0, 0, 0, 0], 24), Err(libc::EOPNOTSUPP), "an unknown flag");

        let create = |change: fn(&mut ibv_cq_init_attr_ex), efa: efadv_cq_init_attr| {
            let mut wanted = nic.queue_attributes();
            change(&mut wanted);
            let queue =
                efadv_create_cq(nic.context, &raw mut wanted, &raw const efa, size_of_val(&efa) as u32);
            if queue.is_null() { Err(errno()) } else { Ok(ibv_destroy_cq(queue.cast())) }
        };
        let plain = efadv_cq_init_attr::default();
        assert_eq!(create(|_| (), plain), Ok(0));
        assert_eq!(create(|wanted| wanted.cqe = 0, plain), Err(libc::EINVAL));
        assert_eq!(create(|wanted| wanted.cqe = 32_769, plain), Err(libc::EINVAL));
        assert_eq!(create(|wanted| wanted.comp_vector = 1, plain), Err(libc::EINVAL));
        assert_eq!(create(|wanted| wanted.wc_flags = 1 << 7, plain), Err(libc::EOPNOTSUPP));
        assert_eq!(create(|wanted| wanted.comp_mask = 1 << 5, plain), Err(libc::EOPNOTSUPP));
        assert_eq!(create(|_| (), efadv_cq_init_attr { flags: 1, ..plain }), Err(libc::EOPNOTSUPP));
        assert_eq!(create(|_| (), efadv_cq_init_attr { wc_flags: 4, ..plain }), Err(libc::EOPNOTSUPP));

        let query = (*nic.tables()).query_device_ex.unwrap();
        let mut bytes = [0xff_u8; 512];
        assert_eq!(query(nic.context, null(), bytes.as_mut_ptr().cast(), 240), 0);
        assert!(bytes[240..].iter().all(|&byte| byte == 0xff));
        let mask = 1_u32;
        let asked = (&raw const mask).cast();
        assert_eq!(query(nic.context, asked, bytes.as_mut_ptr().cast(), 400), libc::EINVAL);
    }
}

#[test]
fn an_armed_queue_wakes_the_channel_once() {
    let (a, b) = (Opened::nic(0), Opened::nic(1));
    unsafe {
        let channel = ibv_create_comp_channel(b.context);
        let (a_queue, b_queue) = (a.queue(null_mut()), b.queue(channel));
        let (from, to) = (a.pair(a_queue), b.pair(b_queue));
        let notify = (*b.context).ops.req_notify_cq.unwrap();
        assert_eq!(notify(b_queue.cast(), 1), libc::EOPNOTSUPP, "solicited events");
        assert_eq!(notify(b_queue.cast(), 0), 0);
        let handle = a.handle(b.gid);
        for id in 0..2 {
            assert_eq!(receive(to, id, ibv_sge { addr: 0, length: 0, lkey: 0 }), 0);
            let ex = ibv_qp_to_qp_ex(from);
            (*ex).wr_start.unwrap()(ex);
            (*ex).wr_send.unwrap()(ex);
            (*ex).wr_set_ud_addr.unwrap()(ex, handle, (*to).qp_num, QKEY);
            assert_eq!((*ex).wr_complete.unwrap()(ex), 0);
        }
        let (mut woken, mut context) = (null_mut(), null_mut());
        let mut ready = libc::pollfd { fd: (*channel).fd, events: libc::POLLIN, revents: 0 };
        assert_eq!(libc::poll(&raw mut ready, 1, 10_000), 1, "no event");
        assert_eq!(ibv_get_cq_event(channel, &raw mut woken, &raw mut context), 0);
        assert_eq!((woken, context), (b_queue.cast(), 0x77 as *mut c_void));
        for _ in 0..2 {
            polled(b_queue, |seen| assert_eq!(seen.status, IBV_WC_SUCCESS));
        }
        let flags = libc::fcntl((*channel).fd, libc::F_GETFL);
        libc::fcntl((*channel).fd, libc::F_SETFL, flags | libc::O_NONBLOCK);
        assert_eq!(ibv_get_cq_event(channel, &raw mut woken, &raw mut context), -1);
        assert_eq!(errno(), libc::EAGAIN);
    }
}

#[test]
fn a_datagrams_receive_begins_with_room_for_a_header() {
    let (a, b) = (Opened::nic(0), Opened::nic(1));
    let (a_queue, b_queue) = (a.queue(null_mut()), b.queue(null_mut()));
    let pair = |nic: &Opened, queue: *mut ibv_cq_ex| unsafe {
        let cap = nic.pair_attributes(queue).cap;
        let mut wanted = ibv_qp_init_attr {
            send_cq: queue.cast(),
            recv_cq: queue.cast(),
            cap,
            qp_type: IBV_QPT_UD,
            sq_sig_all: 1,
            ..zeroed()
        };
        let pair = ibv_create_qp(nic.domain, &raw mut wanted);
        assert!(!pair.is_null());
        assert!(ibv_qp_to_qp_ex(pair).is_null(), "the new way of posting was not asked for");
        wanted.qp_type = 2;
        assert!(ibv_create_qp(nic.domain, &raw mut wanted).is_null(), "no reliable connections");
        ready(pair);
        pair
    };
    let (from, to) = (pair(&a, a_queue), pair(&b, b_queue));
    let mut into = vec![0xee_u8; 50];
    let region = b.region(&mut into);
    let whole = entry_of(&mut into, region);
    assert_eq!(receive(to, 1, ibv_sge { length: 39, ..whole }), libc::EINVAL);
    assert_eq!(receive(to, 2, whole), 0);
    let mut bytes = *b"datagram";
    unsafe {
        let mut entry = ibv_sge { addr: bytes.as_mut_ptr() as u64, length: 8, lkey: 0 };
        let mut wr: ibv_send_wr = zeroed();
        wr.sg_list = &raw mut entry;
        wr.num_sge = 1;
        wr.opcode = IBV_WR_SEND;
        wr.send_flags = IBV_SEND_INLINE;
        wr.wr.ud = ibv_send_wr_ud { ah: a.handle(b.gid), remote_qpn: (*to).qp_num, remote_qkey: QKEY };
        let mut bad = null_mut();
        assert_eq!((*a.context).ops.post_send.unwrap()(from, &raw mut wr, &raw mut bad), 0);
    }
    polled(b_queue, |seen| assert_eq!(unsafe { seen.read_byte_len.unwrap()(b_queue) }, 48));
    assert_eq!(&into[38..50], b"\xee\xeedatagram\xee\xee");
}

#[test]
fn a_forked_child_has_devices_of_its_own_and_none_of_its_parents_objects() {
    let nic = Opened::nic(0);
    let queue = nic.queue(null_mut());
    let pair = nic.pair(queue);
    unsafe {
        let child = libc::fork();
        if child == 0 {
            // No panic here: what the parent's harness holds, the child cannot use.
            let mut wrong = 0;
            let mut check = |bit: c_int, ok: bool| wrong |= if ok { 0 } else { 1 << bit };
            check(0, ibv_destroy_qp(pair) == libc::EINVAL);
            check(1, ibv_alloc_pd(nic.context).is_null());
            let ex = pair.cast::<ibv_qp_ex>();
            (*ex).wr_start.unwrap()(ex);
            (*ex).wr_send.unwrap()(ex);
            check(2, (*ex).wr_complete.unwrap()(ex) != 0);
            let list = ibv_get_device_list(null_mut());
            let context = if list.is_null() { null_mut() } else { ibv_open_device(*list) };
            check(3, !context.is_null());
            check(4, !context.is_null() && !ibv_alloc_pd(context).is_null());
            libc::_exit(wrong);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        assert!(libc::WIFEXITED(status), "it was killed");
        assert_eq!(libc::WEXITSTATUS(status), 0, "bits of what failed");
        assert_eq!(ibv_destroy_qp(pair), 0, "the parent's is untouched");
    }
}

#[test]
fn a_link_that_goes_down_and_comes_back_is_an_event_each() {
    let nic = Opened::nic(2);
    let fabric = Fabric::open(Path::new(&std::env::var_os("SOFTEFA_DIR").unwrap())).unwrap();
    let scope = Scope { node: Some(0), nic: Some(2), ..Scope::default() };
    let id = fabric.add_fault(&Fault { amount: 1, ..Fault::new(FaultKind::RailDown, scope) }).unwrap();
    for expected in [IBV_EVENT_PORT_ERR, IBV_EVENT_PORT_ACTIVE] {
        unsafe {
            let mut ready = libc::pollfd { fd: (*nic.context).async_fd, events: libc::POLLIN, revents: 0 };
            assert_eq!(libc::poll(&raw mut ready, 1, 10_000), 1, "no event");
            let mut event: ibv_async_event = zeroed();
            assert_eq!(ibv_get_async_event(nic.context, &raw mut event), 0);
            assert_eq!((event.event_type, event.element.port_num), (expected, 1));
        }
        fabric.clear_fault(id);
    }
}
