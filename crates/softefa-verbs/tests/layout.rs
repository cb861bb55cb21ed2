//! The hand-written types of the verbs ABI against the installed headers: a C program asserts the size of every structure, the place of every
//! field and the value of every constant, as Rust has them.
//!
//! Debian 12's headers are of rdma-core 44. Fields that came later are compared where the header has them; `VERBS_INCLUDE` names a directory
//! with other headers (rdma-core's `build/include`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::mem::offset_of;
use std::path::Path;
use std::process::{Command, Stdio};

use softefa_verbs::ffi::*;

/// One figure, as Rust has it and as C says it.
struct Figure {
    label: String,
    rust: u64,
    c: String,
}

/// Structures and all their fields: `field = "name"` where C has another name at that place.
macro_rules! structures {
    ($( $c:literal $name:ident { $( $field:ident $(= $c_field:literal)? ),* } )*) => {
        /// The structures' fields, by name of the structure.
        fn fields() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
            BTreeMap::from([$( (stringify!($name), BTreeSet::from([$( stringify!($field) ),*])) ),*])
        }

        fn places() -> Vec<Figure> {
            let mut all = Vec::new();
            $(
                all.push(Figure {
                    label: format!("size of {}", stringify!($name)),
                    rust: size_of::<$name>() as u64,
                    c: format!("sizeof({})", $c),
                });
                $(
                    #[allow(unused_assignments, unused_mut)]
                    let mut c_field = stringify!($field);
                    $( c_field = $c_field; )?
                    all.push(Figure {
                        label: format!("{}.{}", stringify!($name), stringify!($field)),
                        rust: offset_of!($name, $field) as u64,
                        c: format!("offsetof({}, {c_field})", $c),
                    });
                )*
            )*
            all
        }
    };
}

structures! {
    "struct ibv_device" ibv_device { _ops, node_type, transport_type, name, dev_name, dev_path, ibdev_path }
    "union ibv_gid" ibv_gid { raw }
    "struct ibv_gid_entry" ibv_gid_entry { gid, gid_index, port_num, gid_type, ndev_ifindex }
    "struct ibv_device_attr" ibv_device_attr { fw_ver, node_guid, sys_image_guid, max_mr_size, page_size_cap, vendor_id, vendor_part_id, hw_ver, max_qp, max_qp_wr, device_cap_flags, max_sge, max_sge_rd, max_cq, max_cqe, max_mr, max_pd, max_qp_rd_atom, max_ee_rd_atom, max_res_rd_atom, max_qp_init_rd_atom, max_ee_init_rd_atom, atomic_cap, max_ee, max_rdd, max_mw, max_raw_ipv6_qp, max_raw_ethy_qp, max_mcast_grp, max_mcast_qp_attach, max_total_mcast_qp_attach, max_ah, max_fmr, max_map_per_fmr, max_srq, max_srq_wr, max_srq_sge, max_pkeys, local_ca_ack_delay, phys_port_cnt }
    "struct ibv_device_attr_ex" ibv_device_attr_ex { orig_attr, comp_mask, absent = "odp_caps", xrc_odp_caps, phys_port_cnt_ex }
    "struct ibv_port_attr" ibv_port_attr { state, max_mtu, active_mtu, gid_tbl_len, port_cap_flags, max_msg_sz, bad_pkey_cntr, qkey_viol_cntr, pkey_tbl_len, lid, sm_lid, lmc, max_vl_num, sm_sl, subnet_timeout, init_type_reply, active_width, active_speed, phys_state, link_layer, flags, port_cap_flags2, active_speed_ex }
    "struct ibv_pd" ibv_pd { context, handle }
    "struct ibv_td" ibv_td { context }
    "struct ibv_td_init_attr" ibv_td_init_attr { comp_mask }
    "struct ibv_parent_domain_init_attr" ibv_parent_domain_init_attr { pd, td, comp_mask, alloc, free, pd_context }
    "struct ibv_mr" ibv_mr { context, pd, addr, length, handle, lkey, rkey }
    "struct ibv_mr_init_attr" ibv_mr_init_attr { length, access, comp_mask, iova, addr, fd, fd_offset, dmah, buf }
    "struct ibv_global_route" ibv_global_route { dgid, flow_label, sgid_index, hop_limit, traffic_class }
    "struct ibv_ah_attr" ibv_ah_attr { grh, dlid, sl, src_path_bits, static_rate, is_global, port_num }
    "struct ibv_ah" ibv_ah { context, pd, handle }
    "struct ibv_async_event" ibv_async_event { element, event_type }
    "struct ibv_ece" ibv_ece { vendor_id, options, comp_mask }
    "struct ibv_context_ops" ibv_context_ops { _compat_query_device, _compat_query_port, _compat_alloc_pd, _compat_dealloc_pd, _compat_reg_mr, _compat_rereg_mr, _compat_dereg_mr, alloc_mw, bind_mw, dealloc_mw, _compat_create_cq, poll_cq, req_notify_cq, _compat_cq_event, _compat_resize_cq, _compat_destroy_cq, _compat_create_srq, _compat_modify_srq, _compat_query_srq, _compat_destroy_srq, post_srq_recv, _compat_create_qp, _compat_query_qp, _compat_modify_qp, _compat_destroy_qp, post_send, post_recv, _compat_create_ah, _compat_destroy_ah, _compat_attach_mcast, _compat_detach_mcast, _compat_async_event }
    "struct ibv_context" ibv_context { device, ops, cmd_fd, async_fd, num_comp_vectors, mutex, abi_compat }
    "struct ibv_comp_channel" ibv_comp_channel { context, fd, refcnt }
    "struct ibv_cq" ibv_cq { context, channel, cq_context, handle, cqe, mutex, cond, comp_events_completed, async_events_completed }
    "struct ibv_poll_cq_attr" ibv_poll_cq_attr { comp_mask }
    "struct ibv_cq_ex" ibv_cq_ex { base = "context", comp_mask, status, wr_id, start_poll, next_poll, end_poll, read_opcode, read_vendor_err, read_byte_len, read_imm_data, read_qp_num, read_src_qp, read_wc_flags, read_slid, read_sl, read_dlid_path_bits, read_completion_ts, read_cvlan, read_flow_tag, read_tm_info, read_completion_wallclock_ns }
    "struct ibv_cq_init_attr_ex" ibv_cq_init_attr_ex { cqe, cq_context, channel, comp_vector, wc_flags, comp_mask, flags, parent_domain }
    "struct ibv_wc" ibv_wc { wr_id, status, opcode, vendor_err, byte_len, imm_data, qp_num, src_qp, wc_flags, pkey_index, slid, sl, dlid_path_bits }
    "struct ibv_qp_cap" ibv_qp_cap { max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data }
    "struct ibv_qp_init_attr" ibv_qp_init_attr { qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all }
    "struct ibv_rx_hash_conf" ibv_rx_hash_conf { rx_hash_function, rx_hash_key_len, rx_hash_key, rx_hash_fields_mask }
    "struct ibv_qp_init_attr_ex" ibv_qp_init_attr_ex { qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all, comp_mask, pd, xrcd, create_flags, max_tso_header, rwq_ind_tbl, rx_hash_conf, source_qpn, send_ops_flags }
    "struct ibv_qp_attr" ibv_qp_attr { qp_state, cur_qp_state, path_mtu, path_mig_state, qkey, rq_psn, sq_psn, dest_qp_num, qp_access_flags, cap, ah_attr, alt_ah_attr, pkey_index, alt_pkey_index, en_sqd_async_notify, sq_draining, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer, port_num, timeout, retry_cnt, rnr_retry, alt_port_num, alt_timeout, rate_limit }
    "struct ibv_qp" ibv_qp { context, qp_context, pd, send_cq, recv_cq, srq, handle, qp_num, state, qp_type, mutex, cond, events_completed }
    "struct ibv_qp_ex" ibv_qp_ex { qp_base, comp_mask, wr_id, wr_flags, wr_atomic_cmp_swp, wr_atomic_fetch_add, wr_bind_mw, wr_local_inv, wr_rdma_read, wr_rdma_write, wr_rdma_write_imm, wr_send, wr_send_imm, wr_send_inv, wr_send_tso, wr_set_ud_addr, wr_set_xrc_srqn, wr_set_inline_data, wr_set_inline_data_list, wr_set_sge, wr_set_sge_list, wr_start, wr_complete, wr_abort, wr_atomic_write, wr_flush }
    "struct ibv_data_buf" ibv_data_buf { addr, length }
    "struct ibv_sge" ibv_sge { addr, length, lkey }
    "struct ibv_send_wr" ibv_send_wr { wr_id, next, sg_list, num_sge, opcode, send_flags, imm_data, wr, qp_type, other = "bind_mw" }
    "struct ibv_recv_wr" ibv_recv_wr { wr_id, next, sg_list, num_sge }
    "struct efadv_device_attr" efadv_device_attr { comp_mask, max_sq_wr, max_rq_wr, max_sq_sge, max_rq_sge, inline_buf_size, inline_buf_size_ex, device_caps, max_rdma_size }
    "struct efadv_ah_attr" efadv_ah_attr { comp_mask, ahn, reserved }
    "struct efadv_qp_init_attr" efadv_qp_init_attr { comp_mask, driver_qp_type, flags, sl, reserved, wr_flags }
    "struct efadv_qp" efadv_qp { comp_mask, wr_set_processing_hints }
    "struct efadv_cq_init_attr" efadv_cq_init_attr { comp_mask, wc_flags, flags, ext_mem_dmabuf }
    "struct efadv_cq" efadv_cq { comp_mask, wc_read_sgid, wc_is_unsolicited }
    "struct efadv_mr_attr" efadv_mr_attr { comp_mask, ic_id_validity, recv_ic_id, rdma_read_ic_id, rdma_recv_ic_id }
    "struct efadv_sq_depth_attr" efadv_sq_depth_attr { comp_mask, flags, max_send_sge, max_rdma_sge, max_inline_data }
    "struct efadv_rq_depth_attr" efadv_rq_depth_attr { comp_mask, max_recv_sge }
}

/// `verbs_context` grows at its beginning, so that a field's place counts from the end.
macro_rules! from_the_end {
    ($( $field:ident $(= $c_field:literal)? ),*) => {
        fn context_fields() -> BTreeSet<&'static str> {
            BTreeSet::from([$( stringify!($field) ),*])
        }

        fn context_places() -> Vec<Figure> {
            vec![$( {
                #[allow(unused_assignments, unused_mut)]
                let mut c_field = stringify!($field);
                $( c_field = $c_field; )?
                Figure {
                    label: format!("verbs_context.{} from the end", stringify!($field)),
                    rust: (size_of::<verbs_context>() - offset_of!(verbs_context, $field)) as u64,
                    c: format!("sizeof(struct verbs_context) - offsetof(struct verbs_context, {c_field})"),
                }
            } ),*]
        }
    };
}

from_the_end!(
    query_port,
    advise_mr,
    alloc_null_mr,
    read_counters,
    attach_counters_point_flow,
    create_counters,
    destroy_counters,
    reg_dm_mr,
    alloc_dm,
    free_dm,
    modify_flow_action_esp,
    destroy_flow_action,
    create_flow_action_esp,
    modify_qp_rate_limit,
    alloc_parent_domain,
    dealloc_td,
    alloc_td,
    modify_cq,
    post_srq_ops,
    destroy_rwq_ind_table,
    create_rwq_ind_table,
    destroy_wq,
    modify_wq,
    create_wq,
    query_rt_values,
    create_cq_ex,
    priv_ = "priv",
    query_device_ex,
    ibv_destroy_flow,
    ABI_placeholder2,
    ibv_create_flow,
    ABI_placeholder1,
    open_qp,
    create_qp_ex,
    get_srq_num,
    create_srq_ex,
    open_xrcd,
    close_xrcd,
    _ABI_placeholder3,
    sz,
    context
);

macro_rules! constants {
    ($( $name:ident ),*) => {
        fn constants() -> Vec<Figure> {
            vec![$( Figure { label: stringify!($name).into(), rust: $name as u64, c: stringify!($name).into() } ),*]
        }
    };
}

constants!(
    IBV_NODE_UNSPECIFIED,
    IBV_TRANSPORT_UNSPECIFIED,
    IBV_MTU_4096,
    IBV_PORT_DOWN,
    IBV_PORT_ACTIVE,
    IBV_LINK_LAYER_UNSPECIFIED,
    IBV_GID_TYPE_IB,
    IBV_EVENT_CQ_ERR,
    IBV_EVENT_QP_FATAL,
    IBV_EVENT_PORT_ACTIVE,
    IBV_EVENT_PORT_ERR,
    IBV_WC_SUCCESS,
    IBV_WC_LOC_LEN_ERR,
    IBV_WC_LOC_QP_OP_ERR,
    IBV_WC_LOC_PROT_ERR,
    IBV_WC_WR_FLUSH_ERR,
    IBV_WC_BAD_RESP_ERR,
    IBV_WC_REM_INV_REQ_ERR,
    IBV_WC_REM_ACCESS_ERR,
    IBV_WC_REM_OP_ERR,
    IBV_WC_RNR_RETRY_EXC_ERR,
    IBV_WC_REM_INV_RD_REQ_ERR,
    IBV_WC_REM_ABORT_ERR,
    IBV_WC_RESP_TIMEOUT_ERR,
    IBV_WC_GENERAL_ERR,
    IBV_WC_SEND,
    IBV_WC_RDMA_WRITE,
    IBV_WC_RDMA_READ,
    IBV_WC_RECV,
    IBV_WC_RECV_RDMA_WITH_IMM,
    IBV_WC_WITH_IMM,
    IBV_WC_EX_WITH_BYTE_LEN,
    IBV_WC_EX_WITH_IMM,
    IBV_WC_EX_WITH_QP_NUM,
    IBV_WC_EX_WITH_SRC_QP,
    IBV_WC_EX_WITH_SLID,
    IBV_WC_EX_WITH_SL,
    IBV_WC_EX_WITH_DLID_PATH_BITS,
    IBV_WC_STANDARD_FLAGS,
    IBV_ACCESS_LOCAL_WRITE,
    IBV_ACCESS_REMOTE_WRITE,
    IBV_ACCESS_REMOTE_READ,
    IBV_ACCESS_OPTIONAL_RANGE,
    IBV_REG_MR_MASK_IOVA,
    IBV_REG_MR_MASK_ADDR,
    IBV_PARENT_DOMAIN_INIT_ATTR_PD_CONTEXT,
    IBV_CQ_INIT_ATTR_MASK_FLAGS,
    IBV_CQ_INIT_ATTR_MASK_PD,
    IBV_CREATE_CQ_ATTR_SINGLE_THREADED,
    IBV_QPT_UD,
    IBV_QPT_DRIVER,
    IBV_QP_INIT_ATTR_PD,
    IBV_QP_INIT_ATTR_SEND_OPS_FLAGS,
    IBV_QP_EX_WITH_RDMA_WRITE,
    IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM,
    IBV_QP_EX_WITH_SEND,
    IBV_QP_EX_WITH_SEND_WITH_IMM,
    IBV_QP_EX_WITH_RDMA_READ,
    IBV_QP_STATE,
    IBV_QP_CUR_STATE,
    IBV_QP_EN_SQD_ASYNC_NOTIFY,
    IBV_QP_PKEY_INDEX,
    IBV_QP_PORT,
    IBV_QP_QKEY,
    IBV_QP_RNR_RETRY,
    IBV_QP_SQ_PSN,
    IBV_QP_CAP,
    IBV_QPS_RESET,
    IBV_QPS_INIT,
    IBV_QPS_RTR,
    IBV_QPS_RTS,
    IBV_QPS_SQD,
    IBV_QPS_ERR,
    IBV_WR_RDMA_WRITE,
    IBV_WR_RDMA_WRITE_WITH_IMM,
    IBV_WR_SEND,
    IBV_WR_SEND_WITH_IMM,
    IBV_WR_RDMA_READ,
    IBV_SEND_SIGNALED,
    IBV_SEND_INLINE,
    IBV_FORK_UNNEEDED,
    EFADV_QP_DRIVER_TYPE_SRD,
    EFADV_DEVICE_ATTR_CAPS_RDMA_READ,
    EFADV_DEVICE_ATTR_CAPS_RNR_RETRY,
    EFADV_DEVICE_ATTR_CAPS_CQ_WITH_SGID,
    EFADV_DEVICE_ATTR_CAPS_RDMA_WRITE,
    EFADV_DEVICE_ATTR_CAPS_UNSOLICITED_WRITE_RECV,
    EFADV_QP_FLAGS_UNSOLICITED_WRITE_RECV,
    EFADV_QP_FLAGS_INLINE_WRITE,
    EFADV_WR_EX_WITH_PROCESSING_HINTS,
    EFADV_SQ_DEPTH_ATTR_INLINE_WRITE,
    EFADV_WC_EX_WITH_SGID,
    EFADV_WC_EX_WITH_IS_UNSOLICITED
);

/// Parts of unions, which C has no names for.
fn parts() -> Vec<Figure> {
    let figure =
        |label: &str, rust: usize, c: &str| Figure { label: label.into(), rust: rust as u64, c: c.into() };
    let wr = "offsetof(struct ibv_send_wr, wr)";
    vec![
        figure("send target", size_of::<ibv_send_wr_target>(), "sizeof(((struct ibv_send_wr *)0)->wr)"),
        figure(
            "rdma.remote_addr",
            offset_of!(ibv_send_wr_rdma, remote_addr),
            &format!("offsetof(struct ibv_send_wr, wr.rdma.remote_addr) - {wr}"),
        ),
        figure(
            "rdma.rkey",
            offset_of!(ibv_send_wr_rdma, rkey),
            &format!("offsetof(struct ibv_send_wr, wr.rdma.rkey) - {wr}"),
        ),
        figure(
            "ud.ah",
            offset_of!(ibv_send_wr_ud, ah),
            &format!("offsetof(struct ibv_send_wr, wr.ud.ah) - {wr}"),
        ),
        figure(
            "ud.remote_qpn",
            offset_of!(ibv_send_wr_ud, remote_qpn),
            &format!("offsetof(struct ibv_send_wr, wr.ud.remote_qpn) - {wr}"),
        ),
        figure(
            "ud.remote_qkey",
            offset_of!(ibv_send_wr_ud, remote_qkey),
            &format!("offsetof(struct ibv_send_wr, wr.ud.remote_qkey) - {wr}"),
        ),
        figure(
            "event element",
            size_of::<ibv_async_element>(),
            "sizeof(((struct ibv_async_event *)0)->element)",
        ),
        // The first version of the port's attributes ends after `flags`, with padding to its 4-byte fields.
        figure(
            "first port attributes",
            offset_of!(_compat_ibv_port_attr, flags),
            "offsetof(struct ibv_port_attr, flags)",
        ),
        figure("extended contexts", VERBS_ABI_IS_EXTENDED as usize, "(size_t)__VERBS_ABI_IS_EXTENDED"),
    ]
}

/// What came after rdma-core 44 and is only compared where the header has it: the figure's label begins so.
const NEWER: &[&str] = &[
    "ibv_port_attr.active_speed_ex",
    "size of ibv_port_attr",
    "ibv_qp_ex.wr_flush",
    "size of ibv_qp_ex",
    "ibv_mr_init_attr",
    "size of ibv_mr_init_attr",
    "IBV_REG_MR_",
    "efadv_",
    "size of efadv_",
    "EFADV_",
];

/// A figure's size counts only when the header has this field of the structure.
const GROWN: &[(&str, &str)] = &[
    ("size of ibv_port_attr", "ibv_port_attr.active_speed_ex"),
    ("size of ibv_qp_ex", "ibv_qp_ex.wr_flush"),
    ("size of efadv_cq_init_attr", "efadv_cq_init_attr.ext_mem_dmabuf"),
    ("size of efadv_cq", "efadv_cq.wc_is_unsolicited"),
    ("size of efadv_qp_init_attr", "efadv_qp_init_attr.wr_flags"),
    ("efadv_qp_init_attr.reserved", "efadv_qp_init_attr.wr_flags"),
];

const HEADERS: &str = "#include <stddef.h>\n#include <infiniband/verbs.h>\n#include <infiniband/efadv.h>\n";

/// The C compiler: `CC`, else `cc`. It only checks, so that a cross compiler checks another machine's layout.
fn cc() -> Command {
    let mut command = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    if let Some(include) = std::env::var_os("VERBS_INCLUDE") {
        command.arg("-I").arg(include);
    }
    command.args(["-fsyntax-only", "-x", "c", "-"]);
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What the compiler says of a program; `Ok` when it has no objection.
fn compile(program: &str) -> Result<(), String> {
    let mut child = cc().spawn().map_err(|error| error.to_string())?;
    let mut stdin = child.stdin.take().ok_or("no input")?;
    stdin.write_all(program.as_bytes()).map_err(|error| error.to_string())?;
    drop(stdin);
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn header_has(expression: &str) -> bool {
    compile(&format!("{HEADERS}long long it = (long long)({expression});\n")).is_ok()
}

#[test]
fn every_structure_lies_in_memory_as_the_installed_headers_have_it() {
    if !header_has("sizeof(struct efadv_cq)") {
        assert!(std::env::var_os("CI").is_none(), "a C compiler and libibverbs-dev are needed");
        // Past the test harness, which keeps to itself what a passing test prints.
        let _ = std::io::Write::write_all(
            &mut std::io::stderr(),
            b"skipped: the ABI's layout against the installed headers: no C compiler or no libibverbs-dev\n",
        );
        return;
    }
    let mut all = places();
    all.extend(context_places());
    all.extend(constants());
    all.extend(parts());
    let optional = |figure: &Figure| NEWER.iter().any(|newer| figure.label.starts_with(newer));
    let c_of = |label: &str| all.iter().find(|figure| figure.label == label).map(|figure| figure.c.clone());
    let compared: Vec<&Figure> = all
        .iter()
        .filter(|figure| !optional(figure) || header_has(&figure.c))
        .filter(|figure| {
            let grown = GROWN.iter().find(|(label, _)| *label == figure.label);
            grown.is_none_or(|(_, field)| header_has(&c_of(field).expect("a figure of this name")))
        })
        .collect();
    assert!(compared.len() > 500, "only {} figures were compared", compared.len());
    let mut program = HEADERS.to_owned();
    for Figure { label, rust, c } in &compared {
        program.push_str(&format!(
            "_Static_assert((unsigned long long)({c}) == {rust}ULL, \"{label}: {rust} here\");\n"
        ));
    }
    if let Err(said) = compile(&program) {
        panic!("{said}");
    }
    eprintln!("{} of {} figures compared", compared.len(), all.len());
}

/// The structures in the sources and their fields.
fn fields_in_sources() -> BTreeMap<String, BTreeSet<String>> {
    let mut all = BTreeMap::new();
    for file in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ffi")).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        let mut current = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("pub struct ") {
                current = rest.trim_end_matches(" {").to_owned();
                all.insert(current.clone(), BTreeSet::new());
            } else if line == "}" {
                current.clear();
            } else if let Some((field, _)) =
                line.strip_prefix("    pub ").and_then(|line| line.split_once(':'))
                && let Some(fields) = all.get_mut(&current)
            {
                fields.insert(field.to_owned());
            }
        }
    }
    all
}

#[test]
fn no_field_is_left_out_of_the_comparison() {
    let mut compared = fields();
    compared.insert("verbs_context", context_fields());
    let by_parts = ["ibv_send_wr_rdma", "ibv_send_wr_ud", "_compat_ibv_port_attr"];
    for (name, in_source) in fields_in_sources() {
        if by_parts.contains(&name.as_str()) {
            continue;
        }
        let listed = compared.get(name.as_str()).unwrap_or_else(|| panic!("{name} is not compared"));
        let listed: BTreeSet<String> = listed.iter().map(|&field| field.to_owned()).collect();
        assert_eq!(in_source, listed, "{name}");
    }
}
