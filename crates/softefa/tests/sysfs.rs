//! The private root of a node: what is in it, how its counters change, that it goes away.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use softefa::shape::Shape;
use softefa::sysfs::{CounterNames, Root, SysfsError};
use softefa_fabric::{Counter, Gid};

/// A directory that goes away with the test, whatever happens in it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // In memory where there is such a file system, as the supervisor does: some disks make 1,000 files a second.
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let path = base.join(format!("softefa-sysfs-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    fn node(&self, node: u32) -> PathBuf {
        self.0.join(format!("node{node}"))
    }

    fn root(&self, shape: &Shape, node: u32) -> Root {
        create(&self.node(node), shape, node, shape.nics.len()).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn create(path: &Path, shape: &Shape, node: u32, nics: usize) -> Result<Root, SysfsError> {
    Root::create(path, shape, node, nics, |nic| Gid::of(node, nic as u32).0, CounterNames::EFA)
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn a_device_reads_as_the_efa_driver_shows_it() {
    let scratch = Scratch::new();
    let root = scratch.root(&Shape::named("p5").unwrap(), 3);
    let device = root.sys().join("class/infiniband/rdmap79s0");
    for (file, content) in [
        ("node_type", "7: unspecified"),
        ("node_guid", "02ef:a0ff:fe00:0300"),
        ("sys_image_guid", "0000:0000:0000:0000"),
        ("ports/1/state", "4: ACTIVE"),
        ("ports/1/phys_state", "5: LinkUp"),
        ("ports/1/rate", "100 Gb/sec (4X EDR)"),
        ("ports/1/gids/0", "fe80:0000:0000:0000:02ef:a0ff:fe00:0300"),
        ("ports/1/pkeys/0", "0xffff"),
        ("ports/1/lid", "0x0"),
        ("ports/1/hw_counters/tx_bytes", "0"),
        ("hw_counters/submitted_cmds", "0"),
        ("device/vendor", "0x1d0f"),
        ("device/device", "0xefa1"),
        ("device/class", "0x020000"),
        ("device/numa_node", "0"),
        ("device/local_cpulist", "0-47,96-143"),
        ("device/current_link_speed", "16.0 GT/s PCIe"),
        ("device/current_link_width", "8"),
        ("device/infiniband_verbs/uverbs0/ibdev", "rdmap79s0"),
    ] {
        assert_eq!(read(device.join(file)), format!("{content}\n"), "{file}");
    }
    assert_eq!(read(root.sys().join("class/infiniband_verbs/abi_version")), "6\n");
    assert_eq!(read(root.sys().join("class/infiniband_verbs/uverbs31/ibdev")), "rdmap201s0\n");
    assert_eq!(read(root.sys().join("class/dmi/id/product_name")), "p5.48xlarge\n");
    // What libfabric's efa provider reads: the last part of each link is the PCI address and the driver's name.
    let last = |link: &str| fs::read_link(device.join(link)).unwrap().file_name().unwrap().to_owned();
    assert_eq!(last("device"), "0000:4f:00.0");
    assert_eq!(last("device/driver"), "efa");
    let uevent = read(device.join("device/uevent"));
    assert!(uevent.contains("PCI_SLOT_NAME=0000:4f:00.0\n"), "{uevent}");
}

/// Every regular file and link below `path`.
fn walk(path: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            walk(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}

#[test]
fn no_link_dangles_or_leaves_the_root() {
    for name in ["p4d", "p5", "gb200", "generic"] {
        let scratch = Scratch::new();
        let root = scratch.root(&Shape::named(name).unwrap(), 0);
        let (inside, mut found) = (root.path().canonicalize().unwrap(), Vec::new());
        walk(root.path(), &mut found);
        // Only a link can lead elsewhere.
        for path in found.into_iter().filter(|path| path.is_symlink()) {
            let target = path.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(target.starts_with(&inside), "{} leads to {}", path.display(), target.display());
        }
    }
}

#[test]
fn configuration_space_agrees_with_the_files_next_to_it() {
    let scratch = Scratch::new();
    let root = scratch.root(&Shape::named("p6-b200").unwrap(), 0);
    let mut bridges = 0;
    for entry in fs::read_dir(root.sys().join("bus/pci/devices")).unwrap() {
        let path = entry.unwrap().path();
        let config = fs::read(path.join("config")).unwrap();
        let word = |at: usize| u32::from(u16::from_le_bytes([config[at], config[at + 1]]));
        let number = |file: &str| {
            let text = read(path.join(file));
            let digits = text.trim();
            match digits.strip_prefix("0x") {
                Some(hex) => u32::from_str_radix(hex, 16).unwrap(),
                None => digits.parse().unwrap(),
            }
        };
        assert_eq!((word(0), word(2)), (number("vendor"), number("device")));
        assert_eq!(word(0x0a) << 8 | word(0x08) >> 8, number("class"));
        let express = usize::from(config[0x34]);
        assert_eq!(word(express + 0x12) >> 4 & 0x3f, number("current_link_width"));
        if config[0x0e] & 0x7f == 1 {
            bridges += 1;
            assert_eq!(u32::from(config[0x19]), number("secondary_bus_number"));
            assert_eq!(u32::from(config[0x1a]), number("subordinate_bus_number"));
        }
    }
    assert_eq!(bridges, 4 * 2 + 8 + 8);
}

#[test]
fn only_changed_counters_are_written() {
    let scratch = Scratch::new();
    let mut root = scratch.root(&Shape::named("p4d").unwrap(), 0);
    let device = root.sys().join("class/infiniband/rdmap32s27");
    let snapshot =
        |tx| [(0, "tx_bytes", 0), (1, "tx_bytes", tx), (1, "cmds_err", 2), (1, "from_the_future", 9)];
    assert_eq!(root.counters().update(snapshot(123_456)).unwrap(), 2);
    assert_eq!(root.counters().update(snapshot(123_456)).unwrap(), 0);
    assert_eq!(root.counters().update(snapshot(123_457)).unwrap(), 1);
    assert_eq!(read(device.join("ports/1/hw_counters/tx_bytes")), "123457\n");
    assert_eq!(read(device.join("hw_counters/cmds_err")), "2\n");
    assert_eq!(read(root.sys().join("class/infiniband/rdmap16s27/ports/1/hw_counters/tx_bytes")), "0\n");
    assert!(matches!(
        root.counters().update([(4, "tx_bytes", 1)]),
        Err(SysfsError::NoSuchNic { nic: 4, nics: 4 })
    ));

    // Another process goes on where this one stopped.
    let mut taken_over = Root::open(root.path(), root.shape(), 4, CounterNames::EFA).unwrap();
    assert_eq!(taken_over.counters().update(snapshot(123_457)).unwrap(), 0);
    assert_eq!(taken_over.counters().update(snapshot(5)).unwrap(), 1);
    assert_eq!(read(device.join("ports/1/hw_counters/tx_bytes")), "5\n");
}

#[test]
fn a_reader_that_keeps_a_counter_open_sees_it_change() {
    let scratch = Scratch::new();
    let mut root = scratch.root(&Shape::generic(1).unwrap(), 0);
    let path = root.sys().join("class/infiniband/rdmap19s0/ports/1/hw_counters/rx_bytes");
    let held_from_the_start = File::open(&path).unwrap();
    let mut held_later = None;
    for value in [1, 20, 300, 4_000, 4_001, u64::MAX, 7] {
        root.counters().update([(0, "rx_bytes", value)]).unwrap();
        assert_eq!(read(path.clone()), format!("{value}\n"));
        let held_later = held_later.get_or_insert_with(|| File::open(&path).unwrap());
        // The next update catches up, although nothing changes.
        root.counters().update([(0, "rx_bytes", value)]).unwrap();
        for held in [&held_from_the_start, held_later] {
            let mut bytes = [0; 32];
            let length = held.read_at(&mut bytes, 0).unwrap();
            assert_eq!(std::str::from_utf8(&bytes[..length]).unwrap(), format!("{value}\n"));
        }
    }
}

#[test]
fn whoever_opens_and_reads_gets_a_whole_number() {
    const GAP: Duration = Duration::from_micros(200);
    let scratch = Scratch::new();
    let mut root = scratch.root(&Shape::generic(1).unwrap(), 0);
    let path = root.sys().join("class/infiniband/rdmap19s0/ports/1/hw_counters/tx_bytes");
    // Only numbers of one repeated digit are written, so that any mixture of two shows.
    let lengths = [1, 2, 5, 9, 14, 19];
    let repeated = |digit: usize, length: usize| digit.to_string().repeat(length).parse::<u64>().unwrap();
    let values: Vec<u64> =
        lengths.into_iter().flat_map(|length| (1..=9).map(move |digit| repeated(digit, length))).collect();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                let start = Instant::now();
                let text = fs::read_to_string(&path).unwrap();
                // One that sleeps between opening and reading is one that keeps the file open.
                if start.elapsed() < GAP {
                    let value: u64 = text
                        .strip_suffix('\n')
                        .and_then(|digits| digits.parse().ok())
                        .unwrap_or_else(|| panic!("read {text:?}"));
                    assert!(value == 0 || values.contains(&value), "read {value}, which nobody wrote");
                    seen.insert(value);
                }
            }
            seen.len()
        });
        for turn in 0..2_000usize {
            root.counters().update([(0, "tx_bytes", values[turn * 31 % values.len()])]).unwrap();
            thread::sleep(GAP);
        }
        done.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 5, "the reader saw too little to prove anything");
    });
}

#[test]
fn a_failed_creation_leaves_nothing() {
    let scratch = Scratch::new();
    let p5 = Shape::named("p5").unwrap();
    let path = scratch.node(0);
    let left = || fs::read_dir(&scratch.0).unwrap().count();

    assert!(matches!(create(&path, &p5, 0, 33), Err(SysfsError::Shape(_))));
    let mut broken = p5.clone();
    broken.nics[0].name = "../outside".to_string();
    assert!(matches!(create(&path, &broken, 0, 1), Err(SysfsError::Shape(_))));
    for port in [&["tx/bytes"][..], &["tx_bytes", "tx_bytes"], &["lifespan"], &[""]] {
        let names = CounterNames { port, device: &[] };
        let error = Root::create(&path, &p5, 0, 1, |_| [0; 16], names).unwrap_err();
        assert!(matches!(error, SysfsError::CounterName { .. }), "{error}");
    }
    // Fails in the middle: no path may be that long, and the device's is longer than the processors'.
    let deep = scratch.0.join("x".repeat(250));
    let deeper = (0..14).fold(deep.clone(), |path, _| path.join("y".repeat(250)));
    let long = deeper.join("z".repeat(4096 - deeper.as_os_str().len() - 140));
    fs::create_dir_all(long.parent().unwrap()).unwrap();
    let error = create(&long, &p5, 0, 1).unwrap_err();
    assert!(matches!(error, SysfsError::Io { .. }), "{error}");
    assert!(!long.exists());
    fs::remove_dir_all(deep).unwrap();

    assert_eq!(left(), 0);
    let missing = scratch.0.join("missing/node0");
    assert!(matches!(create(&missing, &p5, 0, 1), Err(SysfsError::Io { .. })));
    let root = create(&path, &p5, 0, 1).unwrap();
    assert!(matches!(create(&path, &p5, 0, 1), Err(SysfsError::Exists { .. })));
    assert!(root.sys().join("class/infiniband/rdmap79s0").exists(), "an existing root is not touched");
    root.remove().unwrap();
    assert_eq!(left(), 0);
    Root::remove_at(&path).unwrap();
}

#[test]
fn two_nodes_of_32_nics_come_and_go_quickly() {
    let scratch = Scratch::new();
    let shape = Shape::named("p5").unwrap();
    let start = Instant::now();
    let mut roots = [0, 1].map(|node| scratch.root(&shape, node));
    let created = start.elapsed();
    let mut found = Vec::new();
    walk(&scratch.0, &mut found);
    let (inodes, bytes) = {
        use std::os::unix::fs::MetadataExt;
        let files = found.iter().map(|path| fs::symlink_metadata(path).unwrap());
        let blocks: BTreeMap<_, _> = files.map(|file| (file.ino(), file.blocks())).collect();
        (blocks.len(), blocks.values().sum::<u64>() * 512)
    };
    let updates = [1, 2, 2, 2].map(|value| {
        let start = Instant::now();
        for root in &mut roots {
            let all = (0..32).flat_map(|nic| Counter::ALL.iter().map(move |it| (nic, it.name(), value)));
            root.counters().update(all).unwrap();
        }
        start.elapsed()
    });
    let start = Instant::now();
    roots.into_iter().for_each(|root| root.remove().unwrap());
    let removed = start.elapsed();
    println!("{} names, {inodes} inodes of files, {bytes} bytes", found.len());
    println!("created in {created:?}, removed in {removed:?}");
    println!(
        "updates of {} counters: all for the first time, all, none but to catch up, none: {updates:?}",
        2 * 32 * Counter::ALL.len()
    );
    // 0.2 s in memory on a machine of two cores; the bound is for one that is shared, or a disk.
    assert!(created < Duration::from_secs(5) || !scratch.0.starts_with("/dev/shm"), "{created:?}");
    assert!(bytes < 32 << 20, "{bytes} bytes");
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 0);
}

#[test]
fn every_counter_of_the_device_has_a_file() {
    let scratch = Scratch::new();
    let mut root = scratch.root(&Shape::generic(64).unwrap(), 0);
    for counter in Counter::ALL {
        let id = root.counters().id(counter.name()).unwrap();
        let path = root.counters().path(63, id).unwrap();
        assert_eq!(read(path), "0\n", "{}", counter.name());
    }
}
