//! Files: bytes between memory and files, and everything that goes wrong with them.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use kvrail_core::transport::Direction;
use kvrail_nixl::files::{FileError, FileMove, Files, Job, query};
use kvrail_nixl::list::{Desc, RegDesc};
use kvrail_nixl::{Error, Status};
use proptest::prelude::*;

fn params(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn files() -> Files {
    Files::create(&BTreeMap::new()).unwrap()
}

fn by_number(device: u64) -> RegDesc {
    RegDesc { desc: Desc { addr: 0, len: 1 << 40, device }, meta: Vec::new() }
}

fn by_path(device: u64, modes: &str, path: &Path) -> RegDesc {
    RegDesc { meta: format!("{modes}:{}", path.display()).into(), ..by_number(device) }
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn number(file: &File) -> u64 {
    file.as_raw_fd() as u64
}

/// Submits moves of memory that the test owns and keeps.
fn submit(files: &Files, moves: &[FileMove], direction: Direction) -> Result<Job, FileError> {
    // SAFETY: the tests keep what they move until they saw the end of the job.
    unsafe { files.submit(moves, direction) }
}

fn finish(job: &Job) -> Result<(), Error> {
    job.drain(Instant::now() + Duration::from_secs(20)).unwrap();
    job.poll().expect("it is drained")
}

fn run(files: &Files, moves: &[FileMove], direction: Direction) -> Result<(), Error> {
    finish(&submit(files, moves, direction)?)
}

fn address(bytes: &mut [u8]) -> u64 {
    bytes.as_mut_ptr().expose_provenance() as u64
}

/// A byte that tells its place.
fn pattern(place: usize) -> u8 {
    (place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn scattered_blocks_come_back_as_they_went(
        lens in prop::collection::vec(0..9000_usize, 1..200),
        gaps in prop::collection::vec(prop_oneof![3 => Just(0_usize), 1 => 1..5000_usize], 200),
        shuffle: u64,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let on_disk = open(&dir.path().join("f"));
        let files = files();
        files.register(&by_number(number(&on_disk))).unwrap();
        let total: usize = lens.iter().sum();
        let mut source: Vec<u8> = (0..total).map(pattern).collect();
        let base = address(&mut source);
        // Blocks in memory are in another order than in the file, with gaps there.
        let mut order: Vec<usize> = (0..lens.len()).collect();
        order.sort_by_key(|block| (*block as u64).wrapping_mul(shuffle | 1));
        let starts: Vec<usize> = lens.iter().scan(0, |sum, len| { *sum += len; Some(*sum - len) }).collect();
        let mut offset = 0;
        let moves: Vec<_> = order.iter().zip(&gaps).map(|(block, gap)| {
            let len = lens[*block] as u64;
            let place = offset + *gap as u64;
            offset = place + len;
            FileMove { memory: base + starts[*block] as u64, len, device: number(&on_disk), offset: place }
        }).collect();
        run(&files, &moves, Direction::Write).unwrap();
        for one in moves.iter().filter(|one| one.len > 0) {
            let mut bytes = vec![0; one.len as usize];
            on_disk.read_exact_at(&mut bytes, one.offset).unwrap();
            let start = (one.memory - base) as usize;
            prop_assert!(bytes.iter().zip(start..).all(|(byte, place)| *byte == pattern(place)));
        }
        let mut target = vec![0xee; total];
        let new = address(&mut target);
        let back: Vec<_> = moves.iter().map(|one| FileMove { memory: one.memory - base + new, ..*one }).collect();
        run(&files, &back, Direction::Read).unwrap();
        prop_assert!(target == source);
    }
}

#[test]
fn long_moves_and_many_jobs_at_once_are_whole() {
    const LEN: usize = 37 << 20;
    let dir = tempfile::tempdir().unwrap();
    let files = files();
    let mut source: Vec<u8> = (0..LEN).map(pattern).collect();
    let memory = address(&mut source);
    let jobs: Vec<_> = (0..4_u64)
        .map(|device| {
            files.register(&by_path(device, "rw,create", &dir.path().join(device.to_string()))).unwrap();
            let one = FileMove { memory, len: LEN as u64, device, offset: 13 * device };
            submit(&files, &[one], Direction::Write).unwrap()
        })
        .collect();
    for (device, job) in jobs.iter().enumerate() {
        finish(job).unwrap();
        let written = std::fs::read(dir.path().join(device.to_string())).unwrap();
        assert!(written[13 * device..] == source);
    }
}

#[test]
fn the_end_of_a_file_is_told_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = open(&dir.path().join("f"));
    file.set_len(1000).unwrap();
    let files = files();
    files.register(&by_number(number(&file))).unwrap();
    let mut memory = vec![0; 4096];
    let one = FileMove { memory: address(&mut memory), len: 4096, device: number(&file), offset: 0 };
    let error = run(&files, &[one], Direction::Read).unwrap_err();
    assert_eq!(error.status, Status::Backend);
    assert!(error.what.contains("ends at offset 1000, 3096 bytes short"), "{error}");
}

#[test]
fn memory_that_is_not_mapped_is_an_error_and_no_signal() {
    const LEN: usize = 1 << 16;
    // SAFETY: asks for new pages anywhere.
    let pages = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(std::ptr::null_mut(), LEN, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    };
    assert_ne!(pages, libc::MAP_FAILED);
    let memory = pages.expose_provenance() as u64;
    // SAFETY: nothing refers to the second half.
    assert_eq!(unsafe { libc::munmap(pages.wrapping_byte_add(LEN / 2), LEN / 2) }, 0);
    let dir = tempfile::tempdir().unwrap();
    let file = open(&dir.path().join("f"));
    file.set_len(1 << 20).unwrap();
    let files = files();
    files.register(&by_number(number(&file))).unwrap();
    for direction in [Direction::Write, Direction::Read] {
        for memory in [0, 4096, memory, u64::MAX - (1 << 20)] {
            let one = FileMove { memory, len: LEN as u64, device: number(&file), offset: 0 };
            let error = run(&files, &[one], direction).unwrap_err();
            assert_eq!(error.status, Status::Backend);
            assert!(error.what.contains("Bad address") && error.hints[0].contains("not mapped"), "{error}");
        }
    }
    // SAFETY: nothing refers to the first half.
    assert_eq!(unsafe { libc::munmap(pages, LEN / 2) }, 0);
}

#[test]
fn a_full_disk_is_an_error_that_says_so() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let files = files();
    files.register(&by_number(number(&full))).unwrap();
    let mut memory = vec![0; 100];
    let one = FileMove { memory: address(&mut memory), len: 100, device: number(&full), offset: 0 };
    let error = run(&files, &[one], Direction::Write).unwrap_err();
    assert!(error.what.contains("No space left") && error.hints[0].contains("free space"), "{error}");
}

#[test]
fn a_closed_number_is_an_error_and_a_number_of_another_file_too() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (open(&dir.path().join("first")), open(&dir.path().join("second")));
    // A number that nobody else gets meanwhile.
    let device = 900;
    let dup = |file: &File| {
        // SAFETY: both numbers are this test's.
        assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), device) }, device);
    };
    let files = files();
    let absent = files.register(&by_number(device as u64)).unwrap_err();
    assert!(matches!(absent, FileError::NotOpen { device: 900, .. }), "{absent}");
    dup(&first);
    files.register(&by_number(device as u64)).unwrap();
    let mut memory = vec![7; 100];
    let one = FileMove { memory: address(&mut memory), len: 100, device: device as u64, offset: 0 };
    run(&files, &[one], Direction::Write).unwrap();
    dup(&second);
    let replaced = submit(&files, &[one], Direction::Write).unwrap_err();
    assert!(matches!(replaced, FileError::Replaced { device: 900 }), "{replaced}");
    // SAFETY: the number is this test's.
    assert_eq!(unsafe { libc::close(device) }, 0);
    let closed = submit(&files, &[one], Direction::Write).unwrap_err();
    assert!(matches!(closed, FileError::NotOpen { device: 900, .. }), "{closed}");
    assert_eq!(second.metadata().unwrap().len(), 0, "nothing went to the wrong file");
}

#[test]
fn what_cannot_be_registered_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let files = files();
    let error = files.register(&by_path(1, "rw", &path)).unwrap_err();
    assert!(matches!(error, FileError::Open { .. }), "{error}");
    assert!(Error::from(error).hints[0].contains("create"));
    files.register(&by_path(1, "rw,create", &path)).unwrap();
    assert!(matches!(files.register(&by_path(1, "ro", &path)), Err(FileError::Taken { device: 1 })));
    files.deregister(&by_path(1, "rw,create", &path));
    files.register(&by_path(1, "ro", &path)).unwrap();
    let appends = OpenOptions::new().append(true).open(&path).unwrap();
    let error = files.register(&by_number(number(&appends))).unwrap_err();
    assert!(matches!(error, FileError::Appends { .. }), "{error}");
    for device in [u64::MAX, 1 << 31, 1 << 32] {
        assert!(matches!(files.register(&by_number(device)), Err(FileError::NotOpen { .. })));
    }
    let mut memory = vec![0; 10];
    let one = FileMove { memory: address(&mut memory), len: 10, device: 1, offset: 0 };
    let error = run(&files, &[one], Direction::Write).unwrap_err();
    assert!(error.hints[0].contains("reading only"), "{error}");
    let unknown = submit(&files, &[FileMove { device: 2, ..one }], Direction::Read).unwrap_err();
    assert_eq!(unknown.status(), Status::NotFound);
    let (far, negative) = (FileMove { offset: u64::MAX, ..one }, FileMove { offset: 1 << 63, ..one });
    for beyond in [far, negative, FileMove { memory: u64::MAX, ..one }] {
        let error = submit(&files, &[beyond], Direction::Read).unwrap_err();
        assert_eq!(error.status(), Status::InvalidParam, "{error}");
    }
    for (name, value) in [("use_uring", "perhaps"), ("ios_pool_size", "-1"), ("kernel_queue_size", "many")] {
        let error = Files::create(&params(&[(name, value)])).unwrap_err();
        assert_eq!(error.status(), Status::InvalidParam, "{error}");
    }
}

#[test]
fn several_ranges_of_a_descriptor_are_one_file_until_the_last_is_deregistered() {
    let dir = tempfile::tempdir().unwrap();
    let file = open(&dir.path().join("f"));
    let (files, desc) = (files(), by_number(number(&file)));
    files.register(&desc).unwrap();
    files.register(&desc).unwrap();
    files.deregister(&desc);
    let mut memory = vec![1; 10];
    let one = FileMove { memory: address(&mut memory), len: 10, device: number(&file), offset: 0 };
    run(&files, &[one], Direction::Write).unwrap();
    files.deregister(&desc);
    assert!(matches!(submit(&files, &[one], Direction::Write), Err(FileError::Unregistered { .. })));
    files.deregister(&desc);
}

#[test]
fn too_much_at_once_is_refused_and_has_room_later() {
    let dir = tempfile::tempdir().unwrap();
    let file = open(&dir.path().join("f"));
    let files = Files::create(&params(&[("ios_pool_size", "64"), ("use_uring", "true")])).unwrap();
    files.register(&by_number(number(&file))).unwrap();
    let mut memory = vec![1; 65];
    let base = address(&mut memory);
    let moves: Vec<_> =
        (0..65).map(|i| FileMove { memory: base + i, len: 1, device: number(&file), offset: i }).collect();
    let error = submit(&files, &moves, Direction::Write).unwrap_err();
    assert!(matches!(error, FileError::Full { moves: 65, waiting: 0, waiting_max: 64 }), "{error}");
    for _ in 0..100 {
        run(&files, &moves[..64], Direction::Write).unwrap();
    }
    run(&files, &[], Direction::Write).unwrap();
}

#[test]
fn a_cancelled_job_is_quiet_and_says_that_it_was_cancelled() {
    const BLOCKS: u64 = 16_384;
    let dir = tempfile::tempdir().unwrap();
    let files = Files::create(&params(&[("kernel_queue_size", "1")])).unwrap();
    files.register(&by_path(5, "rw,create,sync", &dir.path().join("f"))).unwrap();
    let mut memory = vec![1; BLOCKS as usize * 4096];
    let base = address(&mut memory);
    // One call for each block: long enough to be cancelled in its middle.
    let moves: Vec<_> = (0..BLOCKS)
        .map(|i| FileMove { memory: base + i * 4096, len: 4096, device: 5, offset: i * 7919 % BLOCKS * 4096 })
        .collect();
    let job = submit(&files, &moves, Direction::Write).unwrap();
    assert!(job.poll().is_none());
    job.cancel_and_drain(Instant::now() + Duration::from_secs(20)).unwrap();
    let error = job.poll().expect("it is quiet").unwrap_err();
    assert_eq!(error.status, Status::Cancelled);
    let other = submit(&files, &moves[..1], Direction::Write).unwrap();
    finish(&other).unwrap();
    other.cancel_and_drain(Instant::now()).unwrap();
    assert_eq!(other.poll(), Some(Ok(())), "it was quicker");
    // The backend may go before its jobs.
    let job = submit(&files, &moves, Direction::Write).unwrap();
    drop(files);
    assert!(job.poll().is_some());
}

#[test]
fn a_file_opened_direct_moves_whole_blocks_and_refuses_parts() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, "").unwrap();
    // Not every filesystem has it.
    if let Err(error) = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path) {
        eprintln!("skipped: {} takes no O_DIRECT: {error}", dir.path().display());
        return;
    }
    let files = files();
    files.register(&by_path(3, "rw,direct", &path)).unwrap();
    let mut memory = vec![0; (9 << 20) + 4096];
    let base = address(&mut memory).next_multiple_of(4096);
    let one = FileMove { memory: base, len: 9 << 20, device: 3, offset: 4096 };
    run(&files, &[one], Direction::Write).unwrap();
    run(&files, &[one], Direction::Read).unwrap();
    if let Err(error) = run(&files, &[FileMove { memory: base + 1, len: 511, ..one }], Direction::Write) {
        assert!(error.hints[0].contains("O_DIRECT"), "{error}");
    }
}

#[test]
fn a_query_tells_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, [0; 1234]).unwrap();
    let facts = query(path.as_os_str().as_encoded_bytes()).unwrap();
    let names: Vec<_> = facts.keys().map(String::as_str).collect();
    assert_eq!(names, ["mode", "mtime", "size"]);
    assert_eq!(facts["size"], "1234");
    assert_eq!(facts["mode"].parse::<u32>().unwrap() & 0o170_000, 0o100_000);
    assert!(facts["mtime"].parse::<u64>().unwrap() > 1_700_000_000);
    for nothing in [&b""[..], b"/nonexistent", b"\0/tmp", b"\xff"] {
        assert_eq!(query(nothing), None);
    }
}
