//! nixlbench's flags and ours, each declared once: name, type, default, unit, what it does, and whether it can apply here at all.
//!
//! The parsers ([`super::parse`]), the help ([`super::help`]) and the check of what contradicts what ([`super::settings`]) all read
//! this list, so that none of them can drift from it. Help texts are ours; names, types and defaults are nixlbench's, because
//! scripts depend on them.

use std::path::PathBuf;
use std::time::Duration;

use kvrail_engines::{Name, Plant};
use kvrail_report::Memory;

use crate::units;

/// Where a flag stands in the help, and what becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Group {
    /// What moves.
    Workload,
    /// How it is moved.
    Method,
    /// Who meets whom, and where.
    Rendezvous,
    /// The NIXL backend.
    Backend,
    /// Of storage backends: understood, and without effect on network transfers.
    Storage,
    /// Of GPU memory and kernels: understood, and refused where they would change what is measured.
    Gpu,
    /// nixlbench does not have these.
    Ours,
    /// For tests of this program; not in the help.
    Hidden,
}

/// How the result is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    /// nixlbench's own table.
    Nixlbench,
    /// Schema `kvrail.bench.v1`.
    Json,
    /// One line per row.
    Csv,
}

/// What a flag can hold: read from a word, or from a value of TOML, and shown as its default.
pub(crate) trait Value: Sized {
    /// The placeholder in the help; empty for a boolean.
    const PLACEHOLDER: &'static str;
    /// Whether the flag may stand alone.
    const IS_SWITCH: bool = false;
    /// From a word of the command line.
    ///
    /// # Errors
    /// What the word should have been.
    fn read(word: &str) -> Result<Self, String>;
    /// As its default is written in the help.
    fn show(&self) -> String;
}

/// An integer as gflags reads them: decimal, or hexadecimal after `0x`.
fn integer(word: &str) -> Option<i128> {
    let (sign, digits) = match word.as_bytes().first()? {
        b'-' => (-1, &word[1..]),
        b'+' => (1, &word[1..]),
        _ => (1, word),
    };
    // Signs within the digits would be taken by the parser of the standard library.
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let value = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hex) if !hex.starts_with(['+', '-']) => i128::from_str_radix(hex, 16).ok()?,
        Some(_) => return None,
        None => digits.parse::<i128>().ok()?,
    };
    value.checked_mul(sign)
}

macro_rules! integers {
    ($($type:ty, $from:literal, $to:literal;)*) => { $(
        impl Value for $type {
            const PLACEHOLDER: &'static str = "N";
            fn read(word: &str) -> Result<Self, String> {
                integer(word)
                    .and_then(|value| Self::try_from(value).ok())
                    .ok_or_else(|| format!("`{word}` is no whole number from {} to {}", $from, $to))
            }
            fn show(&self) -> String {
                self.to_string()
            }
        }
    )* };
}

integers! {
    u64, "0", "2^64 - 1";
    u32, "0", "2^32 - 1";
    u16, "0", "65,535";
    i32, "-2^31", "2^31 - 1";
}

impl Value for bool {
    const PLACEHOLDER: &'static str = "";
    const IS_SWITCH: bool = true;
    fn read(word: &str) -> Result<Self, String> {
        match word.to_ascii_lowercase().as_str() {
            "1" | "t" | "true" | "y" | "yes" => Ok(true),
            "0" | "f" | "false" | "n" | "no" => Ok(false),
            _ => Err(format!("`{word}` is neither true (1, t, y, yes) nor false (0, f, n, no)")),
        }
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for String {
    const PLACEHOLDER: &'static str = "TEXT";
    fn read(word: &str) -> Result<Self, String> {
        Ok(word.to_owned())
    }
    fn show(&self) -> String {
        self.clone()
    }
}

impl Value for PathBuf {
    const PLACEHOLDER: &'static str = "FILE";
    fn read(word: &str) -> Result<Self, String> {
        Ok(word.into())
    }
    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Value for Duration {
    const PLACEHOLDER: &'static str = "DURATION";
    fn read(word: &str) -> Result<Self, String> {
        units::duration(word)
    }
    fn show(&self) -> String {
        units::span(*self)
    }
}

impl Value for Name {
    const PLACEHOLDER: &'static str = "NAME";
    fn read(word: &str) -> Result<Self, String> {
        word.parse()
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for Format {
    const PLACEHOLDER: &'static str = "NAME";
    fn read(word: &str) -> Result<Self, String> {
        [Self::Nixlbench, Self::Json, Self::Csv]
            .into_iter()
            .find(|format| format.show() == word.to_ascii_lowercase())
            .ok_or_else(|| format!("there is no format `{word}`; there are nixlbench, json, csv"))
    }
    fn show(&self) -> String {
        match self {
            Self::Nixlbench => "nixlbench",
            Self::Json => "json",
            Self::Csv => "csv",
        }
        .into()
    }
}

impl Value for Plant {
    const PLACEHOLDER: &'static str = "NAME";
    fn read(word: &str) -> Result<Self, String> {
        word.parse()
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for Memory {
    const PLACEHOLDER: &'static str = "NAME";
    fn read(word: &str) -> Result<Self, String> {
        [Self::Private, Self::Shared]
            .into_iter()
            .find(|memory| memory.word().eq_ignore_ascii_case(word))
            .ok_or_else(|| format!("`{word}` is neither private nor shared"))
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl<T: Value> Value for Option<T> {
    const PLACEHOLDER: &'static str = T::PLACEHOLDER;
    fn read(word: &str) -> Result<Self, String> {
        T::read(word).map(Some)
    }
    fn show(&self) -> String {
        self.as_ref().map(T::show).unwrap_or_default()
    }
}

/// One flag, without its value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Declared {
    /// As nixlbench spells it, with underscores.
    pub(crate) name: &'static str,
    pub(crate) group: Group,
    /// May it stand alone?
    pub(crate) is_switch: bool,
    /// What stands for its value in the help.
    pub(crate) placeholder: &'static str,
    /// One or two sentences, with the unit.
    pub(crate) help: &'static str,
}

macro_rules! flags {
    ($($group:ident { $($name:ident : $type:ty = $default:expr, $help:literal;)* })*) => {
        /// The value of every flag.
        #[derive(Clone, PartialEq, Debug)]
        pub(crate) struct Flags {
            $($(pub(crate) $name: $type,)*)*
        }

        impl Default for Flags {
            fn default() -> Self {
                Self { $($($name: $default,)*)* }
            }
        }

        /// Every flag there is, in the order of the help.
        pub(crate) const FLAGS: &[Declared] = &[
            $($(Declared {
                name: stringify!($name),
                group: Group::$group,
                is_switch: <$type as Value>::IS_SWITCH,
                placeholder: <$type as Value>::PLACEHOLDER,
                help: $help,
            },)*)*
        ];

        impl Flags {
            /// Sets the flag of this name.
            ///
            /// # Errors
            /// What the word should have been. A name that is not in [`FLAGS`] is answered like a bad word.
            pub(crate) fn set(&mut self, name: &str, word: &str) -> Result<(), String> {
                match name {
                    $($(stringify!($name) => self.$name = <$type as Value>::read(word)?,)*)*
                    _ => return Err(format!("there is no flag `{name}`")),
                }
                Ok(())
            }

            /// The value of the flag of this name, as it is typed; empty for none.
            pub(crate) fn show(&self, name: &str) -> String {
                match name {
                    $($(stringify!($name) => self.$name.show(),)*)*
                    _ => String::new(),
                }
            }
        }
    };
}

flags! {
    Workload {
        op_type: String = "WRITE".into(), "WRITE: initiators write into targets' memory; READ: they read from it.";
        scheme: String = "pairwise".into(), "Who moves to whom: pairwise (initiator i and target i, round robin where counts differ), onetomany and manytoone (every initiator and every target, buffers divided among them), tp (one buffer divided over all initiators and over all targets; those move whose parts overlap).";
        mode: String = "SG".into(), "SG: a process per device; MG: two processes, each with all devices of its side.";
        num_initiator_dev: i32 = 1, "Initiators: processes in mode SG, buffers of the one process in mode MG.";
        num_target_dev: i32 = 1, "Targets, likewise.";
        total_buffer_size: u64 = 8 << 30, "Bytes divided evenly among the devices of a side and the threads.";
        start_block_size: u64 = 4 << 10, "Smallest block, bytes; doubled up to --max_block_size.";
        max_block_size: u64 = 64 << 20, "Largest block, bytes.";
        start_batch_size: u64 = 1, "Fewest blocks per transfer; doubled up to --max_batch_size.";
        max_batch_size: u64 = 1, "Most blocks per transfer.";
        num_iter: i32 = 1000, "Timed transfers of an initiator for each block and batch size, over all threads. Rounded up to a multiple of num_threads x large_blk_iter_ftr.";
        warmup_iter: i32 = 100, "Untimed transfers before those, rounded up likewise.";
        large_blk_iter_ftr: i32 = 16, "Blocks above 1 MiB get this many times fewer transfers.";
        check_consistency: bool = false, "Check the bytes of the warm-up too, in a pattern of their own. Those of the timed transfers are always checked.";
    }
    Method {
        num_threads: i32 = 1, "Posting threads of an initiator, each with its own blocks.";
        pipeline_depth: i32 = 1, "Transfers of a thread in flight at a time, each with blocks of its own.";
        recreate_xfer: bool = false, "Prepare each transfer anew instead of posting the first again.";
        reregister_mem: bool = false, "Register the transfer's local blocks once more before each transfer, and deregister them after it. Implies --recreate_xfer.";
        prepared_xfer: bool = false, "Prepare from prepared descriptor lists; excludes --reregister_mem. Engines whose only way it is do it always.";
        use_hugepages: bool = false, "Buffers in pages of 2 MiB; total_buffer_size is rounded up to a multiple of that.";
        enable_pt: bool = false, "A progress thread in the engine.";
        progress_threads: u64 = 0, "Progress threads of the NIXL backend.";
    }
    Rendezvous {
        runtime_type: String = "ETCD".into(), "How participants meet. ETCD: at --etcd_endpoints; ASIO: without etcd, at --asio_address (whoever binds it first serves it), any number of participants.";
        etcd_endpoints: String = String::new(), "etcd's client addresses, comma-separated [default with --runtime_type ETCD: http://localhost:2379].";
        asio_address: String = "127.0.0.1".into(), "Address of the embedded rendezvous: one of a host that takes part.";
        asio_port: u16 = 12345, "Its TCP port.";
        benchmark_group: String = "default".into(), "Participants of one group meet; runs at the same time need groups of their own.";
    }
    Backend {
        config_file: String = String::new(), "TOML file with any of these flags as keys; the command line wins.";
        worker_type: String = "nixl".into(), "nixl; nvshmem is refused.";
        backend: String = "UCX".into(), "NIXL backend: UCX, LIBFABRIC, Mooncake, UCCL… as --engine nixl finds it. --engine kvrail answers to UCX (best transport here) and LIBFABRIC (libfabric).";
        device_list: String = "all".into(), "Comma-separated NIC of each device, or all. With scheme pairwise, as many as devices on each side.";
        initiator_seg_type: String = "DRAM".into(), "Memory of initiators: DRAM; VRAM is refused.";
        target_seg_type: String = "DRAM".into(), "Memory of targets: DRAM; VRAM is refused.";
    }
    Ours {
        engine: Name = Name::Nixl, "What moves the bytes: nixl (the real NIXL, with --backend), kvrail, ucx, libfabric, memcpy.";
        engine_library: Option<PathBuf> = None, "The engine's library, if it is not found by itself: libnixl_capi.so (or a folder of the wheel), libucp.so, libfabric.so.";
        engine_options: String = String::new(), "Comma-separated key=value for the engine: parameters of the NIXL backend, provider=… and such of libfabric.";
        memory: Memory = Memory::Private, "Of the buffers: private, as nixlbench allocates them, or shared, which a peer on the same host can map.";
        run_id: Option<String> = None, "Name of this run at the rendezvous, instead of --benchmark_group.";
        rank: Option<u32> = None, "This participant's rank: initiators from 0 on, then targets [default: from Slurm, Open MPI, torchrun or a Kubernetes job, else first come, first served].";
        world_size: Option<u32> = None, "Participants; must agree with the devices [default: initiators + targets, 2 in mode MG].";
        etcd_ca: Option<PathBuf> = None, "Certificate authority (PEM) that etcd's certificate is checked against.";
        etcd_cert: Option<PathBuf> = None, "Client certificate (PEM) for etcd, with --etcd_key.";
        etcd_key: Option<PathBuf> = None, "Key (PEM) of --etcd_cert.";
        etcd_user: Option<String> = None, "User of etcd; the password is taken from the environment, KVRAIL_ETCD_PASSWORD.";
        timeout: Duration = Duration::from_secs(60), "Longest wait for participants, for one step of them and for one transfer.";
        seed: Option<u64> = None, "Seed of the pattern of bytes [default: random].";
        format: Format = Format::Nixlbench, "On stdout of rank 0: nixlbench (its table), json, csv.";
        quiet: bool = false, "Say nothing on stderr.";
        output: Option<PathBuf> = None, "Write the result as JSON (schema kvrail.bench.v1) to a file too.";
    }
    Hidden {
        plant: Option<Plant> = None, "A defect on the engine's path, to see it found.";
    }
    Gpu {
        enable_vmm: bool = false, "Allocate by CUDA's virtual memory management.";
        use_device_api: bool = false, "Transfers from GPU kernels.";
        gpunetio_device_list: String = "0".into(), "CUDA devices of backend GPUNETIO.";
        gpunetio_oob_list: String = String::new(), "Network interfaces of backend GPUNETIO.";
    }
    Storage {
        filepath: String = String::new(), "Folder of files.";
        filenames: String = String::new(), "Comma-separated files.";
        num_files: i32 = 1, "Number of files.";
        storage_enable_direct: bool = false, "Direct I/O.";
        randomize_location_mode: String = "none".into(), "Where in the files: none, blockaligned, bytealigned.";
        randomize_location_mode_seed: u64 = 0, "Seed of that.";
        gds_batch_pool_size: i32 = 32, "Backend GDS: pool of batches.";
        gds_batch_limit: i32 = 128, "Backend GDS: entries of a batch.";
        gds_mt_num_threads: i32 = 1, "Backend GDS_MT: threads.";
        posix_api_type: String = "AIO".into(), "Backend POSIX: AIO, URING or POSIXAIO.";
        posix_ios_pool_size: i32 = 65536, "Backend POSIX: pool of requests.";
        posix_kernel_queue_size: i32 = 256, "Backend POSIX: entries of the kernel's queue.";
        obj_access_key: String = String::new(), "Backend OBJ: access key.";
        obj_secret_key: String = String::new(), "Backend OBJ: secret key.";
        obj_session_token: String = String::new(), "Backend OBJ: session token.";
        obj_bucket_name: String = String::new(), "Backend OBJ: bucket.";
        obj_scheme: String = "http".into(), "Backend OBJ: http or https.";
        obj_region: String = "eu-central-1".into(), "Backend OBJ: region.";
        obj_use_virtual_addressing: bool = false, "Backend OBJ: bucket in the host's name.";
        obj_endpoint_override: String = String::new(), "Backend OBJ: address of the service.";
        obj_req_checksum: String = "supported".into(), "Backend OBJ: supported or required.";
        obj_ca_bundle: String = String::new(), "Backend OBJ: certificate authorities.";
        obj_crt_min_limit: u64 = 0, "Backend OBJ: bytes from which the CRT client is used, 0 for never.";
        obj_accelerated_enable: bool = false, "Backend OBJ: accelerated client.";
        obj_accelerated_type: String = String::new(), "Backend OBJ: which.";
        azure_blob_account_url: String = String::new(), "Backend AZURE_BLOB: account.";
        azure_blob_container_name: String = String::new(), "Backend AZURE_BLOB: container.";
        azure_blob_connection_string: String = String::new(), "Backend AZURE_BLOB: connection.";
        infinia_config_file: String = String::new(), "Backend INFINIA: configuration.";
        hf3fs_iopool_size: i32 = 64, "Backend HF3FS: pool of requests.";
        gusli_client_name: String = "NIXLBench".into(), "Backend GUSLI: client.";
        gusli_max_simultaneous_requests: i32 = 32, "Backend GUSLI: requests in flight.";
        gusli_config_file: String = String::new(), "Backend GUSLI: configuration.";
        gusli_device_byte_offsets: String = String::new(), "Backend GUSLI: offset in each device.";
        gusli_device_security: String = String::new(), "Backend GUSLI: security flags of each device.";
        gusli_try_use_uring: bool = false, "Backend GUSLI: io_uring.";
    }
}

/// The flag of this name, spelled with underscores or hyphens.
pub(crate) fn find(name: &str) -> Option<&'static Declared> {
    let name = name.replace('-', "_");
    FLAGS.iter().find(|flag| flag.name == name)
}

/// The flag whose name is nearest, if one is near enough to have been meant.
pub(crate) fn nearest(name: &str) -> Option<&'static str> {
    let name = name.replace('-', "_");
    FLAGS
        .iter()
        .map(|flag| (strsim::damerau_levenshtein(&name, flag.name), flag.name))
        .min()
        .filter(|(distance, found)| *distance <= found.len().max(name.len()) / 3)
        .map(|(_, found)| found)
}
