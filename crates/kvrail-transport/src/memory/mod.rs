//! Memory that transfers like: shareable with peers of the same host, in huge pages when there are any.
//!
//! A region that lies inside a [`SharedMemory`] is mapped by peers and copied without a system call; any other
//! memory is reached through the kernel. What kind of pages was obtained is always reported (KR-13).

pub mod copy;
mod mapping;
pub(crate) mod own;
pub(crate) mod registry;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

pub use mapping::{Mapping, page_bytes};

/// Bytes of the huge pages that are asked for.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Whether huge pages are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HugePages {
    /// Base pages only.
    Never,
    /// Reserved huge pages if enough are free, else transparent ones where the system allows them, else base pages.
    #[default]
    Prefer,
    /// Reserved or transparent huge pages, or an error.
    Require,
}

/// What pages an allocation consists of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Pages {
    /// Reserved huge pages of this many bytes (hugetlbfs).
    Reserved(usize),
    /// Transparent huge pages: the kernel was asked and uses them where it finds any.
    Transparent,
    /// Base pages.
    Base,
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reserved(bytes) => write!(f, "huge pages of {} KiB", bytes >> 10),
            Self::Transparent => f.write_str("transparent huge pages"),
            Self::Base => write!(f, "pages of {} KiB", page_bytes() >> 10),
        }
    }
}

/// How to allocate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Whether huge pages are wanted.
    pub huge_pages: HugePages,
    /// Touch every page now, so that no transfer pays for it. Reserved huge pages are always touched.
    pub prefault: bool,
}

/// Why memory could not be allocated.
#[derive(Debug)]
#[non_exhaustive]
pub enum AllocateError {
    /// Zero bytes were asked for.
    Empty,
    /// The system refused.
    System {
        /// Bytes asked for.
        len: usize,
        /// What was tried.
        step: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// [`HugePages::Require`] and there are none.
    NoHugePages {
        /// Bytes asked for.
        len: usize,
        /// The system's last answer.
        source: io::Error,
    },
}

impl fmt::Display for AllocateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("an allocation of zero bytes"),
            Self::System { len, step, source } => write!(f, "cannot allocate {len} bytes: {step}: {source}"),
            Self::NoHugePages { len, source } => {
                write!(f, "cannot allocate {len} bytes in huge pages: {source} (see vm.nr_hugepages)")
            }
        }
    }
}

impl std::error::Error for AllocateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Empty => None,
            Self::System { source, .. } | Self::NoHugePages { source, .. } => Some(source),
        }
    }
}

/// Zeroed memory that peers of the same host can map.
///
/// It dereferences to its [`Mapping`], through which bytes go in and out.
#[derive(Debug)]
pub struct SharedMemory {
    id: u32,
    pages: Pages,
    len: usize,
    mapping: Mapping,
}

impl SharedMemory {
    /// Allocates `len` bytes.
    ///
    /// # Errors
    /// [`AllocateError`].
    pub fn allocate(len: usize, options: Options) -> Result<Self, AllocateError> {
        if len == 0 {
            return Err(AllocateError::Empty);
        }
        let mut refusal = None;
        if options.huge_pages != HugePages::Never {
            match Self::reserved(len) {
                Ok(memory) => return Ok(memory),
                Err(error) => refusal = Some(error),
            }
        }
        let system = |step, source| AllocateError::System { len, step, source };
        let rounded = round_up(len, page_bytes()).ok_or(AllocateError::Empty)?;
        let fd = memfd(rounded, libc::MFD_ALLOW_SEALING).map_err(|e| system("memfd_create", e))?;
        let align = rounded >= HUGE_PAGE_BYTES;
        let mapping = Mapping::shared(fd.as_fd(), rounded, align).map_err(|e| system("mmap", e))?;
        let transparent = options.huge_pages != HugePages::Never
            && align
            && shmem_huge_pages_allowed()
            && mapping.advise_huge().is_ok();
        if options.huge_pages == HugePages::Require && !transparent {
            let source = refusal.unwrap_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM));
            return Err(AllocateError::NoHugePages { len, source });
        }
        if options.prefault {
            mapping.prefault().map_err(|e| system("prefault", e))?;
        }
        let pages = if transparent { Pages::Transparent } else { Pages::Base };
        Ok(Self::publish(len, pages, mapping, fd))
    }

    fn reserved(len: usize) -> io::Result<Self> {
        let rounded =
            round_up(len, HUGE_PAGE_BYTES).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let fd = memfd(rounded, libc::MFD_ALLOW_SEALING | libc::MFD_HUGETLB)?;
        let mapping = Mapping::shared_reserved(fd.as_fd(), rounded)?;
        // A limit on a control group shows only at the first touch, and then as a signal: find out now.
        mapping.prefault()?;
        Ok(Self::publish(len, Pages::Reserved(HUGE_PAGE_BYTES), mapping, fd))
    }

    /// Maps memory that another process allocated so, or this one: the first `len` bytes of its file, see [`Share`].
    ///
    /// # Errors
    /// [`AllocateError`]: also for a file that is shorter, or that its owner could make shorter under this mapping.
    pub fn map(file: OwnedFd, len: usize) -> Result<Self, AllocateError> {
        let system = |step, source| AllocateError::System { len, step, source };
        let seals = seals_of(&file).map_err(|e| system("reading the file's seals", e))?;
        if seals & libc::F_SEAL_SHRINK == 0 {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "not sealed against becoming shorter");
            return Err(system("mapping a file", source));
        }
        let file = File::from(file);
        let about = file.metadata().map_err(|e| system("fstat", e))?;
        let reserved = reserved_page_bytes(&file).map_err(|e| system("fstatfs", e))?;
        let page = reserved.unwrap_or_else(page_bytes);
        let rounded = round_up(len, page).filter(|&n| n > 0).ok_or(AllocateError::Empty)?;
        if (about.len() as usize) < rounded {
            let source = io::Error::new(io::ErrorKind::InvalidInput, format!("it has {} bytes", about.len()));
            return Err(system("mapping a file", source));
        }
        let align = reserved.is_none() && rounded >= HUGE_PAGE_BYTES;
        let mapping = Mapping::shared(file.as_fd(), rounded, align).map_err(|e| system("mmap", e))?;
        let pages = reserved.map_or(Pages::Base, Pages::Reserved);
        Ok(Self::publish(len, pages, mapping, file.into()))
    }

    fn publish(len: usize, pages: Pages, mapping: Mapping, fd: OwnedFd) -> Self {
        let id = registry::insert(mapping.as_ptr() as usize, mapping.len(), Arc::new(fd));
        Self { id, pages, len, mapping }
    }

    /// What pages it consists of.
    #[must_use]
    pub fn pages(&self) -> Pages {
        self.pages
    }

    /// Bytes asked for; the mapping itself is rounded up to whole pages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: see [`AllocateError::Empty`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its number in this process; never reused.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl std::ops::Deref for SharedMemory {
    type Target = Mapping;
    fn deref(&self) -> &Mapping {
        &self.mapping
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // Before the address range is given back, so that no one finds it here when it belongs to someone else.
        registry::remove(self.mapping.as_ptr() as usize);
    }
}

/// Zeroed memory that no peer can map: what `malloc` gives, page-aligned.
#[derive(Debug)]
pub struct PrivateMemory {
    pages: Pages,
    mapping: Mapping,
}

impl PrivateMemory {
    /// Allocates `len` bytes. Huge pages here are transparent ones.
    ///
    /// # Errors
    /// [`AllocateError`].
    pub fn allocate(len: usize, options: Options) -> Result<Self, AllocateError> {
        if len == 0 {
            return Err(AllocateError::Empty);
        }
        let mapping =
            Mapping::anonymous(len).map_err(|source| AllocateError::System { len, step: "mmap", source })?;
        let advised = match options.huge_pages {
            HugePages::Never => Err(io::Error::from_raw_os_error(libc::ENOMEM)),
            _ if len < HUGE_PAGE_BYTES => Err(io::Error::from_raw_os_error(libc::ENOMEM)),
            _ => mapping.advise_huge(),
        };
        let pages = match advised {
            Ok(()) => Pages::Transparent,
            Err(source) if options.huge_pages == HugePages::Require => {
                return Err(AllocateError::NoHugePages { len, source });
            }
            Err(_) => Pages::Base,
        };
        if options.prefault {
            mapping.prefault().map_err(|source| AllocateError::System { len, step: "prefault", source })?;
        }
        Ok(Self { pages, mapping })
    }

    /// What pages it consists of.
    #[must_use]
    pub fn pages(&self) -> Pages {
        self.pages
    }
}

impl std::ops::Deref for PrivateMemory {
    type Target = Mapping;
    fn deref(&self) -> &Mapping {
        &self.mapping
    }
}

/// A file that stands for memory, of fixed size: nobody can shrink it under a peer that has it mapped.
pub(crate) fn memfd(len: usize, flags: libc::c_uint) -> io::Result<OwnedFd> {
    // SAFETY: the name is a constant string with its terminator.
    let fd = unsafe { libc::memfd_create(c"kvrail".as_ptr(), flags | libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let size = libc::off_t::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: no memory is involved.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), size) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: no memory is involved.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

/// What is sealed of a memory file: `F_SEAL_…`.
fn seals_of(file: &OwnedFd) -> io::Result<libc::c_int> {
    // SAFETY: no memory is involved.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 { Err(io::Error::last_os_error()) } else { Ok(seals) }
}

/// Bytes of the reserved huge pages that a memory file is made of; none for other pages.
fn reserved_page_bytes(file: &File) -> io::Result<Option<usize>> {
    // SAFETY: a structure of integers; all zeros is one.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure, which is alive and as large as it says.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut about) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let reserved = about.f_type == libc::HUGETLBFS_MAGIC;
    Ok(reserved.then_some(about.f_bsize as usize))
}

/// The file behind a range of shared memory: whoever has it can map the same bytes ([`SharedMemory::map`]).
#[derive(Clone, Debug)]
pub struct Share {
    /// The file, sealed against becoming shorter.
    pub file: Arc<OwnedFd>,
    /// Where in it the range begins, bytes.
    pub offset: u64,
}

/// The file behind `len` bytes at an address of this process, when they lie in a live [`SharedMemory`].
#[must_use]
pub fn share_of(base: u64, len: u64) -> Option<Share> {
    let found = registry::find(base, len)?;
    let offset = found.offset_of(base, len)?;
    Some(Share { file: found.fd, offset })
}

/// Whether the kernel backs shared memory with transparent huge pages when asked to.
fn shmem_huge_pages_allowed() -> bool {
    std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").is_ok_and(|text| {
        ["[always]", "[within_size]", "[advise]", "[force]"].iter().any(|mode| text.contains(mode))
    })
}

fn round_up(len: usize, to: usize) -> Option<usize> {
    len.checked_next_multiple_of(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_and_says_which_pages_it_got() {
        for huge_pages in [HugePages::Never, HugePages::Prefer] {
            let memory = SharedMemory::allocate(5 << 20, Options { huge_pages, prefault: true }).unwrap();
            let mut bytes = vec![1; memory.len()];
            memory.read(0, &mut bytes);
            assert!(bytes.iter().all(|b| *b == 0));
            if huge_pages == HugePages::Never {
                assert_eq!(memory.pages(), Pages::Base);
            }
        }
    }

    #[test]
    fn a_range_is_found_by_address_only_while_its_memory_lives() {
        let memory = SharedMemory::allocate(1 << 20, Options::default()).unwrap();
        let base = memory.as_ptr() as u64;
        let found = registry::find(base + 4096, 8192).unwrap();
        assert_eq!((found.id, found.offset_of(base + 4096, 8192)), (memory.id(), Some(4096)));
        assert!(registry::find(base, (memory.mapping.len() as u64) + 1).is_none(), "runs past the end");
        drop(memory);
        assert!(registry::find(base + 4096, 8192).is_none());
    }

    #[test]
    fn who_maps_the_file_of_a_memory_has_the_same_bytes_and_no_more_than_there_are() {
        let memory = SharedMemory::allocate(100_000, Options::default()).unwrap();
        let share = share_of(memory.as_ptr() as u64 + 4096, 100).unwrap();
        assert_eq!(share.offset, 4096);
        let file = || share.file.try_clone().unwrap();
        let other = SharedMemory::map(file(), 100_000).unwrap();
        assert_ne!(other.as_ptr(), memory.as_ptr());
        memory.write(99_999, &[7]);
        let mut seen = [0];
        other.read(99_999, &mut seen);
        assert_eq!((seen, other.len()), ([7], 100_000));
        let error = SharedMemory::map(file(), 10 << 20).unwrap_err().to_string();
        assert!(error.contains("it has "), "{error}");
        let plain = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(SharedMemory::map(plain.into(), 4096).is_err());
    }

    #[test]
    fn zero_bytes_are_refused() {
        assert!(matches!(SharedMemory::allocate(0, Options::default()), Err(AllocateError::Empty)));
        assert!(matches!(PrivateMemory::allocate(0, Options::default()), Err(AllocateError::Empty)));
    }

    #[test]
    fn an_impossible_amount_is_an_error_that_says_how_much() {
        let error = SharedMemory::allocate(1 << 60, Options::default()).unwrap_err();
        assert!(error.to_string().contains(&(1u64 << 60).to_string()), "{error}");
    }

    #[test]
    #[should_panic(expected = "outside a mapping")]
    fn a_copy_beyond_the_end_is_refused() {
        let memory = PrivateMemory::allocate(4096, Options::default()).unwrap();
        memory.write(4095, &[1, 2]);
    }
}
