//! Names that the systems below the transfers know: environment variables, NIXL backends, vLLM's settings, instance types.
//!
//! One list for whoever compares what was written with what is read: a name that is not here and looks like one that is was most
//! likely misspelt. Nothing tells a user so otherwise, since a library does not see a variable that it does not ask for.

/// Variables that libfabric's core and its providers for these systems read.
pub const LIBFABRIC: &[&str] = &[
    "FI_ADDR_FORMAT",
    "FI_AV_REMOVE_CLEANUP",
    "FI_FORK_UNSAFE",
    "FI_HMEM",
    "FI_HMEM_CUDA_ENABLE_ASYNC_COPY",
    "FI_HMEM_CUDA_ENABLE_XFER",
    "FI_HMEM_CUDA_USE_DMABUF",
    "FI_HMEM_CUDA_USE_GDRCOPY",
    "FI_HMEM_DISABLE_P2P",
    "FI_HMEM_NEURON_USE_DMABUF",
    "FI_HMEM_ROCR_USE_DMABUF",
    "FI_HMEM_SYNAPSEAI_USE_DMABUF",
    "FI_HMEM_ZE_COPY_ENGINE",
    "FI_HMEM_ZE_USE_DMABUF",
    "FI_HOOK",
    "FI_LOG_INTERVAL",
    "FI_LOG_LEVEL",
    "FI_LOG_LOCATION",
    "FI_LOG_LOCATION_MODE",
    "FI_LOG_PROV",
    "FI_LOG_SUBSYS",
    "FI_MR_CACHE_MAX_COUNT",
    "FI_MR_CACHE_MAX_SIZE",
    "FI_MR_CACHE_MONITOR",
    "FI_MR_CUDA_CACHE_MONITOR_ENABLED",
    "FI_MR_ROCR_CACHE_MONITOR_ENABLED",
    "FI_MR_ZE_CACHE_MONITOR_ENABLED",
    "FI_OFFLOAD_COLL_PROVIDER",
    "FI_PERF_CNTR",
    "FI_PREFER_SYSCONFIG",
    "FI_PROVIDER",
    "FI_PROVIDER_PATH",
    "FI_UNIVERSE_SIZE",
    "FI_XPMEM_MEMCPY_CHUNKSIZE",
    "FI_EFA_CQ_SIZE",
    "FI_EFA_EFA_CQ_READ_SIZE",
    "FI_EFA_ENABLE_SHM_TRANSFER",
    "FI_EFA_FORK_SAFE",
    "FI_EFA_HOMOGENEOUS_PEERS",
    "FI_EFA_IFACE",
    "FI_EFA_IMPLICIT_AV_SIZE",
    "FI_EFA_INTERNAL_RX_REFILL_THRESHOLD",
    "FI_EFA_INTER_MAX_GDRCOPY_MESSAGE_SIZE",
    "FI_EFA_INTER_MAX_MEDIUM_MESSAGE_SIZE",
    "FI_EFA_INTER_MIN_READ_MESSAGE_SIZE",
    "FI_EFA_INTER_MIN_READ_WRITE_SIZE",
    "FI_EFA_INTER_READ_SEGMENT_SIZE",
    "FI_EFA_MAX_MEMCPY_SIZE",
    "FI_EFA_MAX_TIMEOUT",
    "FI_EFA_MR_CACHE_ENABLE",
    "FI_EFA_MR_MAX_CACHED_COUNT",
    "FI_EFA_MR_MAX_CACHED_SIZE",
    "FI_EFA_MTU_SIZE",
    "FI_EFA_READCOPY_POOL_SIZE",
    "FI_EFA_RECVWIN_SIZE",
    "FI_EFA_RUNT_SIZE",
    "FI_EFA_RX_COPY_OOO",
    "FI_EFA_RX_COPY_UNEXP",
    "FI_EFA_RX_IOV_LIMIT",
    "FI_EFA_RX_SIZE",
    "FI_EFA_RX_WINDOW_SIZE",
    "FI_EFA_SET_CUDA_SYNC_MEMOPS",
    "FI_EFA_SHM_AV_SIZE",
    "FI_EFA_SHM_CQ_READ_SIZE",
    "FI_EFA_SHM_MAX_MEDIUM_SIZE",
    "FI_EFA_TIMEOUT_INTERVAL",
    "FI_EFA_TRACK_MR",
    "FI_EFA_TX_IOV_LIMIT",
    "FI_EFA_TX_MIN_CREDITS",
    "FI_EFA_TX_QUEUE_SIZE",
    "FI_EFA_TX_SIZE",
    "FI_EFA_USE_DATA_PATH_DIRECT",
    "FI_EFA_USE_DEVICE_RDMA",
    "FI_EFA_USE_HUGE_PAGE",
    "FI_EFA_USE_SM2",
    "FI_EFA_USE_UNSOLICITED_WRITE_RECV",
    "FI_EFA_USE_ZCPY_RX",
    "FI_EFA_WR_HIGH_PPS",
    "FI_SHM_BUFFER_THRESHOLD",
    "FI_SHM_DISABLE_CMA",
    "FI_SHM_MAX_GDRCOPY_SIZE",
    "FI_SHM_RX_SIZE",
    "FI_SHM_TX_SIZE",
    "FI_SHM_USE_DSA_SAR",
    "FI_SHM_USE_XPMEM",
    "FI_TCP_IFACE",
    "FI_TCP_IO_URING",
    "FI_TCP_MAX_INJECT",
    "FI_TCP_NODELAY",
    "FI_TCP_PORT_HIGH_RANGE",
    "FI_TCP_PORT_LOW_RANGE",
    "FI_TCP_PREFETCH_RBUF_SIZE",
    "FI_TCP_RX_SIZE",
    "FI_TCP_STAGING_SBUF_SIZE",
    "FI_TCP_TX_SIZE",
    "FI_TCP_ZEROCOPY_SIZE",
];

/// Variables that NIXL reads.
pub const NIXL: &[&str] = &[
    "NIXL_CONFIG_FILE",
    "NIXL_DEBUG_LOGGING",
    "NIXL_DISABLE_CUDA_ADDR_WA",
    "NIXL_ETCD_ENDPOINTS",
    "NIXL_ETCD_NAMESPACE",
    "NIXL_LIBFABRIC_MAX_BW_PER_DRAM_SEG",
    "NIXL_LOG_LEVEL",
    "NIXL_PLUGIN_DIR",
    "NIXL_PREFIX",
    "NIXL_TCPSTORE_ENDPOINT",
    "NIXL_TCPSTORE_OP_TIMEOUT_MS",
    "NIXL_TCPSTORE_TIMEOUT_MS",
    "NIXL_TELEMETRY_BUFFER_SIZE",
    "NIXL_TELEMETRY_CSV_FILE",
    "NIXL_TELEMETRY_DIR",
    "NIXL_TELEMETRY_ENABLE",
    "NIXL_TELEMETRY_EXPORTER",
    "NIXL_TELEMETRY_PROMETHEUS_LOCAL",
    "NIXL_TELEMETRY_PROMETHEUS_PORT",
    "NIXL_TELEMETRY_RUN_INTERVAL",
    "NIXL_TRACE_BACKENDS",
    "NIXL_UCX_SGL_ENABLE",
    "NIXL_UCX_WARNING_TIMEOUT",
];

/// Variables of UCX that users set. UCX itself has many more, made of a transport's name and a setting's.
pub const UCX: &[&str] = &[
    "UCX_CUDA_COPY_DMABUF",
    "UCX_CUDA_IPC_CACHE",
    "UCX_CUDA_IPC_ENABLE_MNNVL",
    "UCX_HANDLE_ERRORS",
    "UCX_IB_GPU_DIRECT_RDMA",
    "UCX_IB_PCI_RELAXED_ORDERING",
    "UCX_IB_REG_METHODS",
    "UCX_IB_ROCE_REACHABILITY_MODE",
    "UCX_IB_TRAFFIC_CLASS",
    "UCX_LOG_FILE",
    "UCX_LOG_LEVEL",
    "UCX_MAX_RMA_LANES",
    "UCX_MAX_RMA_RAILS",
    "UCX_MAX_RNDV_LANES",
    "UCX_MAX_RNDV_RAILS",
    "UCX_MEMTYPE_CACHE",
    "UCX_MODULE_DIR",
    "UCX_NET_DEVICES",
    "UCX_PROTO_ENABLE",
    "UCX_PROTO_INFO",
    "UCX_RCACHE_MAX_UNRELEASED",
    "UCX_RNDV_FRAG_MEM_TYPE",
    "UCX_RNDV_SCHEME",
    "UCX_RNDV_THRESH",
    "UCX_SOCKADDR_TLS_PRIORITY",
    "UCX_TLS",
    "UCX_WARN_UNUSED_ENV_VARS",
    "UCX_ZCOPY_THRESH",
];

/// Variables of the engines that decide where and how KV caches travel.
pub const ENGINES: &[&str] = &[
    "VLLM_KV_CACHE_LAYOUT",
    "VLLM_NIXL_ABORT_REQUEST_TIMEOUT",
    "VLLM_NIXL_SIDE_CHANNEL_HOST",
    "VLLM_NIXL_SIDE_CHANNEL_PORT",
    "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT",
    "SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL",
    "SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE",
    "SGLANG_DISAGGREGATION_NIXL_BACKEND",
    "SGLANG_DISAGGREGATION_NIXL_BACKEND_PARAMS",
    "SGLANG_DISAGGREGATION_QUEUE_SIZE",
    "SGLANG_DISAGGREGATION_THREAD_POOL_SIZE",
    "SGLANG_DISAGGREGATION_WAITING_TIMEOUT",
    "TRTLLM_NIXL_KVCACHE_BACKEND",
];

/// Variables of libibverbs and rdma-core.
pub const VERBS: &[&str] =
    &["IBV_SHOW_WARNINGS", "IBV_FORK_SAFE", "RDMAV_DRIVERS", "RDMAV_FORK_SAFE", "RDMAV_HUGEPAGES_SAFE"];

/// Variables of kvrail: the settings of an agent, those of its metadata in etcd, its log.
pub const KVRAIL: &[&str] = &[
    "KVRAIL_CLOSE_TIMEOUT_MS",
    "KVRAIL_ETCD_CACERT",
    "KVRAIL_ETCD_CERT",
    "KVRAIL_ETCD_KEY",
    "KVRAIL_ETCD_LEASE_S",
    "KVRAIL_ETCD_PASSWORD",
    "KVRAIL_ETCD_SERVER_NAME",
    "KVRAIL_ETCD_USER",
    "KVRAIL_INBOX_MESSAGES_MAX",
    "KVRAIL_INLINE_BYTES_MAX",
    "KVRAIL_LIBFABRIC",
    "KVRAIL_LOG",
    "KVRAIL_OFI_AFFINITY",
    "KVRAIL_OFI_DEVICES",
    "KVRAIL_OFI_PROVIDER",
    "KVRAIL_OFI_RAILS",
    "KVRAIL_PEER_TIMEOUT_MS",
    "KVRAIL_SPIN_US",
    "KVRAIL_STRIPE_BYTES_MIN",
    "KVRAIL_TRANSFERS_MAX",
    "KVRAIL_TRANSFER_TIMEOUT_MS",
    "KVRAIL_TRANSPORT",
];

/// Variables whose value is the name of a NIXL backend.
pub const BACKEND_VARIABLES: &[&str] = &["SGLANG_DISAGGREGATION_NIXL_BACKEND", "TRTLLM_NIXL_KVCACHE_BACKEND"];

/// Beginnings of names that belong to one of the lists, so that a name with such a beginning can be misspelt.
const FAMILIES: &[(&str, &[&str], usize)] = &[
    ("FI_", LIBFABRIC, 2),
    ("NIXL_", NIXL, 2),
    // UCX makes names of transports and settings (UCX_RC_TX_QUEUE_LEN, UCX_UD_TX_QUEUE_LEN): two letters may be a transport.
    ("UCX_", UCX, 1),
    ("VLLM_NIXL_", ENGINES, 2),
    ("VLLM_KV_", ENGINES, 2),
    ("SGLANG_DISAGG", ENGINES, 2),
    ("TRTLLM_NIXL_", ENGINES, 2),
    ("IBV_", VERBS, 2),
    ("RDMAV_", VERBS, 2),
    ("KVRAIL_", KVRAIL, 2),
];

/// The variable that was most likely meant by a name that no library reads; `None` for names that are known, and for those that are
/// like none.
#[must_use]
pub fn meant_variable(name: &str) -> Option<&'static str> {
    let folded = name.to_ascii_uppercase().replace('-', "_");
    let every = || [LIBFABRIC, NIXL, UCX, ENGINES, VERBS, KVRAIL].into_iter().flatten().copied();
    if every().any(|known| known == name) || name.len() > 64 {
        return None;
    }
    if let Some(known) = every().find(|known| *known == folded) {
        return Some(known);
    }
    // What libfabric's and UCX's own users write most: the first letters swapped or one lost, `F_PROVIDER`, `UXC_TLS`.
    let family = FAMILIES.iter().find(|(beginning, ..)| folded.starts_with(beginning));
    let (candidates, distance_max): (Vec<&'static str>, usize) = match family {
        Some((_, names, distance)) => (names.to_vec(), *distance),
        None if ["UXC_", "UCX", "NXIL_", "NIX_", "FL_", "VLLM_NXIL", "VLM_NIXL"]
            .iter()
            .any(|b| folded.starts_with(b)) =>
        {
            (every().collect(), 2)
        }
        None => return None,
    };
    let near = candidates
        .into_iter()
        .filter(|known| known.len().abs_diff(folded.len()) <= distance_max)
        .map(|known| (strsim::damerau_levenshtein(known, &folded), known));
    near.filter(|(distance, known)| *distance <= distance_max.min(known.len() / 4))
        .min()
        .map(|(_, known)| known)
}

/// NIXL's backends by the names that it takes. It compares them letter by letter.
pub const BACKENDS: &[&str] = &[
    "AZURE_BLOB",
    "GDS",
    "GDS_MT",
    "GPUNETIO",
    "GUSLI",
    "HF3FS",
    "INFINIA",
    "LIBFABRIC",
    "MOONCAKE",
    "Mooncake",
    "OBJ",
    "POSIX",
    "UCCL",
    "UCX",
];

/// A backend's name as NIXL takes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// As it should be.
    Exact(&'static str),
    /// Another case, or a slip: what was meant.
    Meant(&'static str),
    /// None that is known: a plugin of somebody's own, perhaps.
    Foreign,
}

/// What a backend's name means.
#[must_use]
pub fn backend(name: &str) -> Backend {
    if let Some(exact) = BACKENDS.iter().find(|known| **known == name) {
        return Backend::Exact(exact);
    }
    if name.len() > 32 {
        return Backend::Foreign;
    }
    let folded = name.to_ascii_uppercase().replace('-', "_");
    match folded.as_str() {
        "OFI" | "EFA" | "LIB_FABRIC" | "FABRIC" => return Backend::Meant("LIBFABRIC"),
        _ => {}
    }
    let near = BACKENDS.iter().map(|known| (strsim::damerau_levenshtein(known, &folded), *known));
    let near = near.filter(|(distance, known)| *distance <= usize::from(known.len() > 4)).min();
    near.map_or(Backend::Foreign, |(_, known)| Backend::Meant(known))
}

/// The fields of vLLM's `--kv-transfer-config`.
pub const KV_TRANSFER_KEYS: &[&str] = &[
    "enable_permute_local_kv",
    "engine_id",
    "kv_buffer_device",
    "kv_buffer_size",
    "kv_connector",
    "kv_connector_extra_config",
    "kv_connector_module_path",
    "kv_ip",
    "kv_load_failure_policy",
    "kv_parallel_size",
    "kv_port",
    "kv_rank",
    "kv_role",
];

/// Connectors that vLLM registers under a name.
pub const KV_CONNECTORS: &[&str] = &[
    "DecodeBenchConnector",
    "ExampleConnector",
    "ExampleHiddenStatesConnector",
    "FlexKVConnectorV1",
    "HF3FSKVConnector",
    "LMCacheConnector",
    "LMCacheConnectorV1",
    "LMCacheMPConnector",
    "MooncakeConnector",
    "MooncakeStoreConnector",
    "MoRIIOConnector",
    "MultiConnector",
    "NixlConnector",
    "NixlPullConnector",
    "NixlPushConnector",
    "OffloadingConnector",
    "P2pNcclConnector",
    "SharedStorageConnector",
    "SimpleCPUOffloadConnector",
];

/// The roles that vLLM takes.
pub const KV_ROLES: &[&str] = &["kv_producer", "kv_consumer", "kv_both"];

/// The known name that is most like one that is none.
#[must_use]
pub fn alike(name: &str, known: &[&'static str]) -> Option<&'static str> {
    if name.len() > 64 {
        return None;
    }
    let folded = name.to_ascii_lowercase().replace('-', "_");
    let near = known.iter().map(|k| (strsim::damerau_levenshtein(&k.to_ascii_lowercase(), &folded), *k));
    near.filter(|(distance, k)| *distance <= 2.max(k.len() / 5)).min().map(|(_, known)| known)
}

/// What an instance type has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Instance {
    /// As in `p5.48xlarge`.
    pub name: &'static str,
    /// EFA devices, one for each network card that takes one.
    pub efas: usize,
    /// GPUs.
    pub gpus: usize,
    /// Line rate of one EFA device, in Gb/s.
    pub efa_gbps: usize,
}

impl Instance {
    const fn new(name: &'static str, efas: usize, gpus: usize, efa_gbps: usize) -> Self {
        Self { name, efas, gpus, efa_gbps }
    }

    /// EFA devices near each GPU, where it has GPUs.
    #[must_use]
    pub fn efas_per_gpu(&self) -> Option<f64> {
        (self.gpus > 0).then(|| self.efas as f64 / self.gpus as f64)
    }

    /// GB/s of some of its EFA devices, as people write it.
    #[must_use]
    pub fn gbytes(&self, devices: usize) -> String {
        format!("{:.1} GB/s", (devices * self.efa_gbps) as f64 / 8.0)
    }
}

/// Instance types that are used with EFA. Sources: AWS's tables of network cards and of accelerated instances.
pub const INSTANCES: &[Instance] = &[
    Instance::new("p3dn.24xlarge", 1, 8, 100),
    Instance::new("p4d.24xlarge", 4, 8, 100),
    Instance::new("p4de.24xlarge", 4, 8, 100),
    Instance::new("p5.48xlarge", 32, 8, 100),
    Instance::new("p5e.48xlarge", 32, 8, 100),
    Instance::new("p5en.48xlarge", 16, 8, 200),
    Instance::new("p6-b200.48xlarge", 8, 8, 400),
    Instance::new("p6-b300.48xlarge", 16, 8, 400),
    Instance::new("p6e-gb200.36xlarge", 16, 4, 200),
    Instance::new("trn1.32xlarge", 8, 0, 100),
    Instance::new("trn1n.32xlarge", 16, 0, 100),
    Instance::new("trn2.48xlarge", 16, 0, 200),
];

/// An instance type by its name, in any case.
#[must_use]
pub fn instance(name: &str) -> Option<&'static Instance> {
    INSTANCES.iter().find(|instance| instance.name.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_variable_is_told_from_one_that_is_only_unknown() {
        for (name, meant) in [
            ("FI_PROVDER", "FI_PROVIDER"),
            ("FI_EFA_USE_DEVICE_RMDA", "FI_EFA_USE_DEVICE_RDMA"),
            ("FI_HMEM_DISABLE_P2P_", "FI_HMEM_DISABLE_P2P"),
            ("NIXL_PLUGINS_DIR", "NIXL_PLUGIN_DIR"),
            ("UCX_TSL", "UCX_TLS"),
            ("VLLM_NIXL_SIDECHANNEL_HOST", "VLLM_NIXL_SIDE_CHANNEL_HOST"),
            ("fi_provider", "FI_PROVIDER"),
            ("UXC_NET_DEVICES", "UCX_NET_DEVICES"),
        ] {
            assert_eq!(meant_variable(name), Some(meant), "{name}");
        }
        for name in [
            "FI_PROVIDER",
            "FI_EFA_TX_SIZE",
            "FI_EFA_RX_SIZE",
            "UCX_RC_TX_QUEUE_LEN",
            "UCX_RC_MLX5_TM_ENABLE",
            "FI_CXI_ODP",
            "NIXL_VERSION",
            "VLLM_USE_V1",
            "HOME",
            "FILES",
            "VLLM_LOGGING_LEVEL",
            "NIXL_REPO",
            "UCX_HOME",
            "",
        ] {
            assert_eq!(meant_variable(name), None, "{name}");
        }
    }

    #[test]
    fn a_backend_in_the_wrong_case_is_recognised() {
        assert_eq!(backend("LIBFABRIC"), Backend::Exact("LIBFABRIC"));
        for name in ["Libfabric", "libfabric", "LIBFABRICS", "efa"] {
            assert_eq!(backend(name), Backend::Meant("LIBFABRIC"), "{name}");
        }
        assert_eq!(backend("ucx"), Backend::Meant("UCX"));
        assert_eq!(backend("KVRAIL"), Backend::Foreign);
    }
}
