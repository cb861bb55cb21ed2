//! The device library as programs meet it: its symbols and their versions, loading it, and what rdma-core's tools show.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use object::elf::FileHeader64;
use object::read::elf::{ElfFile64, FileHeader as _};
use object::{LittleEndian, Object as _};
use softefa::library;
use softefa_fabric::{Fabric, Limits, Model, NicSpec, SEGMENT_FILE, Spec};

/// What libfabric's `efa` provider imports, of releases 2.5 to 2.7: `nm -D libefa-fi.so`.
const PROVIDER_IMPORTS: &[(&str, &str)] = &[
    ("EFA_1.1", "efadv_create_qp_ex"),
    ("EFA_1.1", "efadv_query_ah"),
    ("EFA_1.1", "efadv_query_device"),
    ("EFA_1.2", "efadv_cq_from_ibv_cq_ex"),
    ("EFA_1.2", "efadv_create_cq"),
    ("EFA_1.3", "efadv_query_mr"),
    ("EFA_1.4", "efadv_query_cq"),
    ("EFA_1.4", "efadv_query_qp_wqs"),
    ("EFA_1.5", "efadv_get_max_sq_depth"),
    ("EFA_1.6", "efadv_qp_from_ibv_qp_ex"),
    ("EFA_1.7", "efadv_create_comp_cntr"),
    ("IBVERBS_1.0", "ibv_create_comp_channel"),
    ("IBVERBS_1.0", "ibv_destroy_comp_channel"),
    ("IBVERBS_1.1", "ibv_ack_cq_events"),
    ("IBVERBS_1.1", "ibv_alloc_pd"),
    ("IBVERBS_1.1", "ibv_close_device"),
    ("IBVERBS_1.1", "ibv_create_ah"),
    ("IBVERBS_1.1", "ibv_dealloc_pd"),
    ("IBVERBS_1.1", "ibv_dereg_mr"),
    ("IBVERBS_1.1", "ibv_destroy_ah"),
    ("IBVERBS_1.1", "ibv_destroy_cq"),
    ("IBVERBS_1.1", "ibv_destroy_qp"),
    ("IBVERBS_1.1", "ibv_fork_init"),
    ("IBVERBS_1.1", "ibv_free_device_list"),
    ("IBVERBS_1.1", "ibv_get_cq_event"),
    ("IBVERBS_1.1", "ibv_get_device_list"),
    ("IBVERBS_1.1", "ibv_modify_qp"),
    ("IBVERBS_1.1", "ibv_open_device"),
    ("IBVERBS_1.1", "ibv_query_device"),
    ("IBVERBS_1.1", "ibv_query_gid"),
    ("IBVERBS_1.1", "ibv_query_port"),
    ("IBVERBS_1.1", "ibv_reg_mr"),
    ("IBVERBS_1.6", "ibv_qp_to_qp_ex"),
    ("IBVERBS_1.8", "ibv_reg_mr_iova2"),
    ("IBVERBS_1.12", "ibv_reg_dmabuf_mr"),
    ("IBVERBS_1.13", "ibv_is_fork_initialized"),
    ("IBVERBS_1.14", "ibv_query_qp_data_in_order"),
    ("IBVERBS_1.18", "_ibv_query_comp_cntr_caps"),
    ("IBVERBS_1.18", "ibv_destroy_comp_cntr"),
    ("IBVERBS_1.18", "ibv_inc_comp_cntr"),
    ("IBVERBS_1.18", "ibv_inc_err_comp_cntr"),
    ("IBVERBS_1.18", "ibv_qp_attach_comp_cntr"),
    ("IBVERBS_1.18", "ibv_read_comp_cntr"),
    ("IBVERBS_1.18", "ibv_read_err_comp_cntr"),
    ("IBVERBS_1.18", "ibv_set_comp_cntr"),
    ("IBVERBS_1.18", "ibv_set_err_comp_cntr"),
];

/// Private versions under which `ibv_devinfo` of different releases imports a function: rdma-core 34 to 56, 57, 59, 64, 65.
const TOOL_IMPORTS: &[(&str, &str)] = &[
    ("IBVERBS_PRIVATE_34", "ibv_query_gid_type"),
    ("IBVERBS_PRIVATE_57", "ibv_query_gid_type"),
    ("IBVERBS_PRIVATE_59", "ibv_query_gid_type"),
    ("IBVERBS_PRIVATE_64", "ibv_query_gid_type"),
    ("IBVERBS_PRIVATE_65", "ibv_query_gid_type"),
];

/// The library's functions: versions and names.
fn exported() -> BTreeSet<(String, String)> {
    let header = FileHeader64::<LittleEndian>::parse(library::DEVICE).unwrap();
    let endian = header.endian().unwrap();
    let sections = header.sections(endian, library::DEVICE).unwrap();
    let versions = sections.versions(endian, library::DEVICE).unwrap().expect("symbol versions");
    let symbols = sections.symbols(endian, library::DEVICE, object::elf::SHT_DYNSYM).unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_owned()).unwrap();
    let mut all = BTreeSet::new();
    for (index, symbol) in symbols.enumerate() {
        use object::read::elf::Sym as _;
        if symbol.is_undefined(endian) || symbol.st_type() != object::elf::STT_FUNC {
            continue;
        }
        let name = text(symbol.name(endian, symbols.strings()).unwrap());
        let version = versions.version(versions.version_index(endian, index)).unwrap();
        all.insert((version.map(|version| text(version.name())).unwrap_or_default(), name));
    }
    all
}

/// What `versions.map` lists.
fn mapped() -> BTreeSet<(String, String)> {
    let map = Path::new(env!("CARGO_MANIFEST_DIR")).join("../softefa-verbs/versions.map");
    let text = std::fs::read_to_string(map).unwrap();
    let mut version = String::new();
    let mut all = BTreeSet::new();
    for line in text.lines().map(str::trim) {
        if let Some(node) = line.strip_suffix(" {") {
            version = node.to_owned();
        } else if let Some(name) =
            line.strip_suffix(';').filter(|name| *name != "*" && !name.starts_with('}'))
        {
            all.insert((version.clone(), name.to_owned()));
        }
    }
    all
}

#[test]
fn every_symbol_that_libfabric_imports_has_its_version() {
    let exported = exported();
    for (version, name) in PROVIDER_IMPORTS {
        assert!(exported.contains(&((*version).to_owned(), (*name).to_owned())), "{name}@{version}");
    }
}

#[test]
fn the_library_exports_what_its_version_map_lists_and_nothing_else() {
    let mut mapped = mapped();
    assert!(mapped.len() > 100, "{} symbols", mapped.len());
    mapped.extend(TOOL_IMPORTS.iter().map(|(version, name)| ((*version).to_owned(), (*name).to_owned())));
    assert_eq!(exported(), mapped);
}

#[test]
fn the_library_needs_nothing_but_the_c_library_and_its_compilers() {
    let file = ElfFile64::<LittleEndian>::parse(library::DEVICE).unwrap();
    let header = FileHeader64::<LittleEndian>::parse(library::DEVICE).unwrap();
    let endian = header.endian().unwrap();
    let sections = header.sections(endian, library::DEVICE).unwrap();
    let (dynamic, strings) = sections.dynamic(endian, library::DEVICE).unwrap().expect("a dynamic section");
    let strings = sections.strings(endian, library::DEVICE, strings).unwrap();
    for entry in dynamic {
        use object::read::elf::Dyn as _;
        let name = || String::from_utf8(entry.string(endian, strings).unwrap().to_owned()).unwrap();
        match entry.tag32(endian) {
            Some(object::elf::DT_NEEDED) => {
                let name = name();
                let known = ["libc.so", "libgcc_s.so", "libm.so", "libdl.so", "libpthread.so", "ld-linux"];
                assert!(known.iter().any(|known| name.starts_with(known)), "{name}");
            }
            Some(object::elf::DT_SONAME) => assert_eq!(name(), library::FILE),
            Some(object::elf::DT_TEXTREL) => panic!("relocations in the text"),
            _ => {}
        }
    }
    assert!(file.section_by_name(".debug_info").is_none(), "debugging information is not for embedding");
}

/// A library directory and a fabric of one node with three NICs.
struct Place {
    dir: tempfile::TempDir,
    lib: PathBuf,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let lib = dir.path().join("lib");
        library::install(&lib).unwrap();
        let rates = [100, 200, 400];
        let nics = rates
            .iter()
            .enumerate()
            .map(|(i, rate)| NicSpec { name: format!("rdmap{}s27", 16 + i), rate_bps: rate * 1_000_000_000 });
        let spec = Spec {
            nodes: 1,
            nics: nics.collect(),
            seed: 1,
            model: Model::default(),
            limits: Limits::default(),
        };
        Fabric::create(&dir.path().join(SEGMENT_FILE), &spec).unwrap();
        Place { dir, lib }
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("LD_LIBRARY_PATH", &self.lib)
            .env("SOFTEFA_DIR", self.dir.path())
            .env("SOFTEFA_NODE", "0");
        command
    }
}

/// Runs one of rdma-core's tools, or skips the test, by name, where it is not installed.
fn tool(command: &mut Command, test: &str) -> Option<Output> {
    match command.output() {
        Ok(output) => Some(output),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "ibverbs-utils is needed: {error}");
            // Past the test harness, which keeps to itself what a passing test prints.
            let program = command.get_program().display();
            let _ = std::io::Write::write_fmt(
                &mut std::io::stderr(),
                format_args!("skipped: {test}: no {program}\n"),
            );
            None
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn ibv_devinfo_shows_every_nic_with_rate_address_and_limits() {
    let place = Place::new();
    let mut command = place.command("ibv_devinfo");
    command.arg("-v");
    let Some(output) = tool(&mut command, "ibv_devinfo_shows_every_nic_with_rate_address_and_limits") else {
        return;
    };
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{shown}{}", text(&output.stderr));
    let parts: Vec<&str> = shown.split("hca_id:").skip(1).collect();
    assert_eq!(parts.len(), 3, "{shown}");
    let links = [("4X (2)", "25.0 Gbps (32)"), ("4X (2)", "50.0 Gbps (64)"), ("8X (4)", "50.0 Gbps (64)")];
    for (i, (part, (width, speed))) in parts.iter().zip(links).enumerate() {
        let value = |name: &str| {
            let line = part.lines().find(|line| line.trim_start().starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
        };
        assert!(part.trim_start().starts_with(&format!("rdmap{}s27", 16 + i)), "{part}");
        assert_eq!(value("vendor_id").as_deref(), Some("0x1d0f"));
        assert_eq!(value("vendor_part_id").as_deref(), Some("61346"), "0xefa2");
        assert_eq!(value("node_guid"), Some(format!("02ef:a0ff:fe00:000{i}")));
        assert_eq!(value("max_qp").as_deref(), Some("256"));
        assert_eq!(value("max_qp_wr").as_deref(), Some("4096"));
        assert_eq!(value("max_cqe").as_deref(), Some("32768"));
        assert_eq!(value("state").as_deref(), Some("PORT_ACTIVE (4)"));
        assert_eq!(value("active_mtu").as_deref(), Some("4096 (5)"));
        assert_eq!(value("max_msg_sz").as_deref(), Some("0x22e0"), "8,928 bytes");
        assert_eq!(value("active_width").as_deref(), Some(width));
        assert_eq!(value("active_speed").as_deref(), Some(speed));
        assert!(part.contains(&format!("fe80:0000:0000:0000:02ef:a0ff:fe00:000{i}")), "{part}");
    }
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn ibv_devices_without_a_fabric_lists_nothing_and_says_what_to_do() {
    let place = Place::new();
    let test = "ibv_devices_without_a_fabric_lists_nothing_and_says_what_to_do";
    let mut command = place.command("ibv_devices");
    command.env_remove("SOFTEFA_DIR");
    let Some(output) = tool(&mut command, test) else { return };
    assert!(output.status.success());
    assert!(!text(&output.stdout).contains("rdmap"));
    let said = text(&output.stderr);
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("SOFTEFA_DIR") && said.contains("kvrail softefa run"), "{said}");
}

#[test]
fn a_fabric_that_is_none_is_an_error_of_one_line() {
    let place = Place::new();
    std::fs::write(place.dir.path().join(SEGMENT_FILE), vec![7; 1 << 16]).unwrap();
    let Some(output) =
        tool(&mut place.command("ibv_devices"), "a_fabric_that_is_none_is_an_error_of_one_line")
    else {
        return;
    };
    assert!(!output.status.success());
    let said = text(&output.stderr);
    let ours: Vec<&str> = said.lines().filter(|line| line.starts_with("softefa:")).collect();
    assert_eq!(ours.len(), 1, "{said}");
    assert!(ours[0].contains(SEGMENT_FILE), "{said}");
}

/// Set in the process that [`both_names_load_as_one_library_that_stays`] starts: the library's directory.
const CHILD: &str = "SOFTEFA_TEST_CHILD";

#[test]
fn both_names_load_as_one_library_that_stays() {
    if let Some(lib) = std::env::var_os(CHILD) {
        return child(Path::new(&lib));
    }
    let place = Place::new();
    let mut command = place.command(std::env::current_exe().unwrap());
    command
        .args(["--exact", "both_names_load_as_one_library_that_stays", "--nocapture"])
        .env(CHILD, &place.lib);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

/// Loads the library under both names, counts devices through it, and unloads it.
fn child(lib: &Path) {
    let open = |name: &str| {
        let path = CString::new(lib.join(name).to_str().unwrap()).unwrap();
        // SAFETY: a string; the library's initializers are the C library's and ours.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null(), "{name}");
        handle
    };
    let (verbs, efa) = (open(library::FILE), open(library::EFA_LINK));
    assert_eq!(verbs, efa, "the loader maps it once");
    let find = |name: &str, version: &str| {
        let (name, version) = (CString::new(name).unwrap(), CString::new(version).unwrap());
        // SAFETY: a handle that is open, and strings.
        unsafe { libc::dlvsym(verbs, name.as_ptr(), version.as_ptr()) }
    };
    for (version, name) in PROVIDER_IMPORTS.iter().chain(TOOL_IMPORTS) {
        assert!(!find(name, version).is_null(), "{name}@{version}");
    }
    assert!(find("ibv_open_device", "IBVERBS_1.0").is_null(), "the ABI of 2005 is not offered");
    let list = find("ibv_get_device_list", "IBVERBS_1.1");
    // SAFETY: the function of this name has this type.
    let list: extern "C" fn(*mut i32) -> *mut *mut u8 = unsafe { std::mem::transmute(list) };
    let mut count = 0;
    assert!(!list(&raw mut count).is_null());
    assert_eq!(count, 3);
    // SAFETY: handles that are open; the library stays mapped because its thread runs its code.
    unsafe { libc::dlclose(verbs) };
    // SAFETY: as above.
    unsafe { libc::dlclose(efa) };
    assert!(!list(&raw mut count).is_null(), "it is never unloaded");
}
