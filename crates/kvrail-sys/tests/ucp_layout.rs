//! The hand-written types of UCP's ABI against installed headers: a C program asserts the size of every structure, the place of every field
//! and the value of every constant, as Rust has them.
//!
//! `KVRAIL_UCX_INCLUDE` names directories with other headers, separated by colons; each is compared on its own, beside the installed
//! ones. What a header lacks must have come with a later release: nothing is passed over in silence.

#[path = "common/headers.rs"]
mod headers;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::mem::offset_of;
use std::path::{Path, PathBuf};

use headers::{Figure, agree, compile, lacking, say};
use kvrail_sys::ucp::abi::*;

const HEADERS: &str = "#include <stddef.h>\n#include <ucp/api/ucp.h>\n";

/// Environment variable with directories of other headers.
const INCLUDE: &str = "KVRAIL_UCX_INCLUDE";

/// What came after the oldest supported release, with the minor number of the release that brought it. Sizes grow with their last field.
const YOUNGER: &[(u32, &[&str])] = &[
    (
        13,
        &[
            "ucp_ep_params_t.local_sockaddr",
            "size of ucp_ep_params_t",
            "ucp_request_param_t.memh",
            "UCP_OP_ATTR_FIELD_MEMH",
        ],
    ),
    (
        14,
        &[
            "ucp_mem_map_params_t.exported_memh_buffer",
            "size of ucp_mem_map_params_t",
            "ucp_transport_entry_t.transport_name",
            "ucp_transport_entry_t.device_name",
            "size of ucp_transport_entry_t",
            "ucp_transports_t.entries",
            "ucp_transports_t.num_entries",
            "ucp_transports_t.entry_size",
            "size of ucp_transports_t",
            "ucp_ep_attr_t.transports",
            "UCP_EP_ATTR_FIELD_TRANSPORTS",
        ],
    ),
    (18, &["ucp_ep_attr_t.user_data", "size of ucp_ep_attr_t"]),
    (
        20,
        &[
            "ucp_params_t.node_local_id",
            "size of ucp_params_t",
            "ucp_context_attr_t.device_counter_size",
            "size of ucp_context_attr_t",
        ],
    ),
    (
        22,
        &[
            "ucp_request_param_t.remote_datatype",
            "ucp_request_param_t.remote",
            "ucp_request_param_t.remote_count",
            "size of ucp_request_param_t",
        ],
    ),
];

/// Structures and all their fields: `field = "name"` where C has another name at that place.
macro_rules! structures {
    ($( $name:ident { $( $field:ident $(= $c_field:literal)? ),* } )*) => {
        fn fields() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
            BTreeMap::from([$( (stringify!($name), BTreeSet::from([$( stringify!($field) ),*])) ),*])
        }

        fn places() -> Vec<Figure> {
            let mut all = Vec::new();
            $(
                all.push(Figure {
                    label: concat!("size of ", stringify!($name)).into(),
                    rust: size_of::<$name>() as i64,
                    c: concat!("sizeof(", stringify!($name), ")").into(),
                });
                $({
                    #[allow(unused_assignments, unused_mut)]
                    let mut c_field = stringify!($field);
                    $( c_field = $c_field; )?
                    all.push(Figure {
                        label: concat!(stringify!($name), ".", stringify!($field)).into(),
                        rust: offset_of!($name, $field) as i64,
                        c: format!(concat!("offsetof(", stringify!($name), ", {})"), c_field),
                    });
                })*
            )*
            all
        }
    };
}

structures! {
    ucp_params_t { field_mask, features, request_size, request_init, request_cleanup, tag_sender_mask, mt_workers_shared, estimated_num_eps, estimated_num_ppn, name, node_local_id }
    ucp_context_attr_t { field_mask, request_size, thread_mode, memory_types, name, device_counter_size }
    ucs_cpu_set_t { ucs_bits }
    ucp_worker_params_t { field_mask, thread_mode, cpu_mask, events, user_data, event_fd, flags, name, am_alignment, client_id }
    ucp_worker_attr_t { field_mask, thread_mode, address_flags, address, address_length, max_am_header, name, max_debug_string }
    ucp_err_handler_t { cb, arg }
    ucs_sock_addr_t { addr, addrlen }
    ucp_ep_params_t { field_mask, address, err_mode, err_handler, user_data, flags, sockaddr, conn_request, name, local_sockaddr }
    ucp_transport_entry_t { transport_name, device_name }
    ucp_transports_t { entries, num_entries, entry_size }
    ucp_ep_attr_t { field_mask, name, local_sockaddr, remote_sockaddr, transports, user_data }
    ucp_mem_map_params_t { field_mask, address, length, flags, prot, memory_type, exported_memh_buffer }
    ucp_request_param_t { op_attr_mask, flags, request, cb, datatype, user_data, reply_buffer, memory_type, recv_info, memh, remote_datatype, remote, remote_count }
    ucp_request_attr_t { field_mask, debug_string, debug_string_size, status, mem_type }
    ucp_am_handler_param_t { field_mask, id, flags, cb, arg }
}

/// Constants, by name, out of the sources.
macro_rules! constants {
    ($( $name:ident ),* $(,)?) => {
        fn constants() -> Vec<Figure> {
            vec![$( Figure { label: stringify!($name).into(), rust: $name as i64, c: stringify!($name).into() } ),*]
        }
    };
}

constants!(
    UCP_ENTITY_NAME_MAX,
    UCP_PARAM_FIELD_FEATURES,
    UCP_PARAM_FIELD_MT_WORKERS_SHARED,
    UCP_FEATURE_RMA,
    UCP_FEATURE_AM,
    UCP_ATTR_FIELD_THREAD_MODE,
    UCP_WORKER_PARAM_FIELD_THREAD_MODE,
    UCP_WORKER_ATTR_FIELD_ADDRESS,
    UCS_THREAD_MODE_SINGLE,
    UCS_THREAD_MODE_SERIALIZED,
    UCP_EP_PARAM_FIELD_REMOTE_ADDRESS,
    UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE,
    UCP_EP_PARAM_FIELD_ERR_HANDLER,
    UCP_ERR_HANDLING_MODE_NONE,
    UCP_ERR_HANDLING_MODE_PEER,
    UCP_EP_CLOSE_FLAG_FORCE,
    UCP_EP_ATTR_FIELD_TRANSPORTS,
    UCP_MEM_MAP_PARAM_FIELD_ADDRESS,
    UCP_MEM_MAP_PARAM_FIELD_LENGTH,
    UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE,
    UCS_MEMORY_TYPE_HOST,
    UCP_OP_ATTR_FIELD_CALLBACK,
    UCP_OP_ATTR_FIELD_USER_DATA,
    UCP_OP_ATTR_FIELD_FLAGS,
    UCP_OP_ATTR_FIELD_MEMORY_TYPE,
    UCP_OP_ATTR_FIELD_MEMH,
    UCP_REQUEST_ATTR_FIELD_INFO_STRING,
    UCP_REQUEST_ATTR_FIELD_INFO_STRING_SIZE,
    UCP_AM_HANDLER_PARAM_FIELD_ID,
    UCP_AM_HANDLER_PARAM_FIELD_FLAGS,
    UCP_AM_HANDLER_PARAM_FIELD_CB,
    UCP_AM_HANDLER_PARAM_FIELD_ARG,
    UCP_AM_FLAG_WHOLE_MSG,
    UCP_AM_SEND_FLAG_EAGER,
    UCS_OK,
    UCS_INPROGRESS,
    UCS_ERR_NO_MESSAGE,
    UCS_ERR_NO_RESOURCE,
    UCS_ERR_IO_ERROR,
    UCS_ERR_NO_MEMORY,
    UCS_ERR_INVALID_PARAM,
    UCS_ERR_UNREACHABLE,
    UCS_ERR_INVALID_ADDR,
    UCS_ERR_NOT_IMPLEMENTED,
    UCS_ERR_MESSAGE_TRUNCATED,
    UCS_ERR_NO_PROGRESS,
    UCS_ERR_BUFFER_TOO_SMALL,
    UCS_ERR_NO_ELEM,
    UCS_ERR_SOME_CONNECTS_FAILED,
    UCS_ERR_NO_DEVICE,
    UCS_ERR_BUSY,
    UCS_ERR_CANCELED,
    UCS_ERR_SHMEM_SEGMENT,
    UCS_ERR_ALREADY_EXISTS,
    UCS_ERR_OUT_OF_RANGE,
    UCS_ERR_TIMED_OUT,
    UCS_ERR_EXCEEDS_LIMIT,
    UCS_ERR_UNSUPPORTED,
    UCS_ERR_REJECTED,
    UCS_ERR_NOT_CONNECTED,
    UCS_ERR_CONNECTION_RESET,
    UCS_ERR_FIRST_LINK_FAILURE,
    UCS_ERR_LAST_LINK_FAILURE,
    UCS_ERR_FIRST_ENDPOINT_FAILURE,
    UCS_ERR_ENDPOINT_TIMEOUT,
    UCS_ERR_LAST_ENDPOINT_FAILURE,
    UCS_ERR_LAST,
);

fn all() -> Vec<Figure> {
    let widths = [
        ("width of ucs_status_t", size_of::<ucs_status_t>(), "sizeof(ucs_status_t)"),
        ("width of ucs_memory_type_t", size_of::<ucs_memory_type_t>(), "sizeof(ucs_memory_type_t)"),
        ("width of ucs_thread_mode_t", size_of::<ucs_thread_mode_t>(), "sizeof(ucs_thread_mode_t)"),
        (
            "width of ucp_err_handling_mode_t",
            size_of::<ucp_err_handling_mode_t>(),
            "sizeof(ucp_err_handling_mode_t)",
        ),
        ("width of ucp_datatype_t", size_of::<ucp_datatype_t>(), "sizeof(ucp_datatype_t)"),
    ];
    let widths = widths.into_iter().map(|(label, rust, c)| Figure {
        label: label.into(),
        rust: rust as i64,
        c: c.into(),
    });
    widths.chain(places()).chain(constants()).collect()
}

fn is_since(include: Option<&Path>, minor: u32) -> bool {
    let program =
        format!("{HEADERS}_Static_assert(UCP_API_VERSION >= UCP_VERSION(1, {minor}), \"older\");\n");
    compile(include, &program).is_ok()
}

#[test]
fn every_structure_lies_in_memory_as_the_headers_have_it() {
    let named: Vec<PathBuf> =
        std::env::var_os(INCLUDE).map(|value| std::env::split_paths(&value).collect()).unwrap_or_default();
    let installed = compile(None, HEADERS);
    if let (Err(why), true) = (&installed, named.is_empty()) {
        assert!(std::env::var_os("CI").is_none(), "a C compiler and libucx-dev are needed: {why}");
        say("skipped: UCP's layout against the installed headers: no C compiler or no libucx-dev");
        return;
    }
    let installed = installed.is_ok().then_some(None);
    for include in installed.into_iter().chain(named.iter().map(|path| Some(path.as_path()))) {
        let place = include.map_or_else(|| "installed headers".into(), |path| path.display().to_string());
        let younger: BTreeSet<&str> = YOUNGER
            .iter()
            .filter(|(minor, _)| !is_since(include, *minor))
            .flat_map(|(_, labels)| labels.iter().copied())
            .collect();
        let figures = all();
        let lacking = lacking(HEADERS, include, &figures);
        for label in &lacking {
            assert!(younger.contains(label.as_str()), "{label} is not in {place}, which should have it");
        }
        for label in younger.iter().filter(|label| !label.starts_with("size of ")) {
            assert!(
                lacking.contains(*label),
                "{label} is in {place} already: the table of releases is wrong"
            );
        }
        let compared: Vec<&Figure> =
            figures.iter().filter(|figure| !younger.contains(figure.label.as_str())).collect();
        agree(HEADERS, include, &compared);
        say(&format!("{place}: {} of {} figures agree", compared.len(), figures.len()));
        assert!(compared.len() > 130, "only {} figures were compared", compared.len());
    }
}

#[test]
fn no_field_and_no_constant_is_left_out_of_the_comparison() {
    let source = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ucp/abi.rs")).unwrap();
    let (compared, listed) = (fields(), all());
    let mut structure = "";
    let (mut fields, mut constants) = (0, 0);
    for line in source.lines() {
        if let Some(name) = line.strip_prefix("pub struct ").and_then(|rest| rest.strip_suffix(" {")) {
            structure = name;
        } else if line == "}" {
            structure = "";
        } else if let Some((field, _)) = line
            .strip_prefix("    pub ")
            .and_then(|rest| rest.split_once(':'))
            .filter(|_| !structure.is_empty())
        {
            let known = compared.get(structure).is_some_and(|fields| fields.contains(field));
            assert!(known, "{structure}.{field} is not compared");
            fields += 1;
        } else if let Some((name, _)) = line.strip_prefix("pub const ").and_then(|rest| rest.split_once(':'))
        {
            assert!(listed.iter().any(|figure| figure.label == name), "{name} is not compared");
            constants += 1;
        }
    }
    assert_eq!(fields, compared.values().map(BTreeSet::len).sum::<usize>());
    assert!(constants > 60, "{constants}");
}
