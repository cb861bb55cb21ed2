//! Memory that transfers like: shareable with peers of the same host, in huge pages when there are any.
//!
//! A region that lies inside a [`SharedMemory`] is mapped by peers and copied without a system call; any other
//! memory is reached through the kernel. What kind of pages was obtained is always reported (KR-13).

pub mod copy;
mod mapping;
pub(crate) mod registry;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
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

    /// Maps what another process has allocated as [`SharedMemory`]: `file` is its memory, for instance as opened from
    /// `/proc/<pid>/fd/<n>`, and the first `len` bytes of it are mapped. Bytes that are there stay.
    ///
    /// # Errors
    /// [`AllocateError`]: the file is no memory of a fixed size (it could be shrunk under its users), or holds less.
    pub fn open(file: OwnedFd, len: usize, options: Options) -> Result<Self, AllocateError> {
        let system = |step, source| AllocateError::System { len, step, source };
        // SAFETY: no memory is involved.
        let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
        if seals < 0 {
            return Err(system("F_GET_SEALS", io::Error::last_os_error()));
        }
        if seals & libc::F_SEAL_SHRINK == 0 {
            let source = io::Error::other("the file is not sealed against shrinking");
            return Err(system("F_GET_SEALS", source));
        }
        let file = std::fs::File::from(file);
        let facts = file.metadata().map_err(|e| system("fstat", e))?;
        let page = match options.huge_pages {
            HugePages::Never => page_bytes(),
            _ => usize::try_from(facts.blksize()).map_or(page_bytes(), |bytes| bytes.max(page_bytes())),
        };
        let rounded = round_up(len, page).filter(|_| len > 0).ok_or(AllocateError::Empty)?;
        if facts.len() < rounded as u64 {
            let source = io::Error::other(format!("the file holds {} bytes", facts.len()));
            return Err(system("fstat", source));
        }
        let file = OwnedFd::from(file);
        let reserved = page > page_bytes();
        let align = !reserved && rounded >= HUGE_PAGE_BYTES;
        let mapping = Mapping::shared(file.as_fd(), rounded, align).map_err(|e| system("mmap", e))?;
        let advised = !reserved && options.huge_pages != HugePages::Never && align;
        let transparent = advised && shmem_huge_pages_allowed() && mapping.advise_huge().is_ok();
        if options.prefault {
            mapping.prefault().map_err(|e| system("prefault", e))?;
        }
        let pages = match (reserved, transparent) {
            (true, _) => Pages::Reserved(page),
            (false, true) => Pages::Transparent,
            (false, false) => Pages::Base,
        };
        Ok(Self::publish(len, pages, mapping, file))
    }

    /// The file behind it: what another process opens.
    ///
    /// # Panics
    /// Never: it is registered for as long as it lives.
    #[must_use]
    pub fn file(&self) -> Arc<OwnedFd> {
        let found = registry::find(self.mapping.as_ptr() as u64, self.mapping.len() as u64);
        found.map_or_else(|| unreachable!("a live memory is registered"), |backing| backing.fd)
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
    fn what_one_allocates_another_opens_and_both_see_the_same_bytes() {
        let memory = SharedMemory::allocate(1 << 20, Options::default()).unwrap();
        memory.write(4096, b"kv");
        let file = || memory.file().try_clone().unwrap();
        let opened = SharedMemory::open(file(), 1 << 20, Options::default()).unwrap();
        let mut bytes = [0; 2];
        opened.read(4096, &mut bytes);
        assert_eq!((&bytes, opened.len()), (b"kv", 1 << 20));
        opened.write(0, b"x");
        memory.read(0, &mut bytes[..1]);
        assert_eq!(bytes[0], b'x');
        assert!(SharedMemory::open(file(), 2 << 20, Options::default()).is_err(), "beyond its end");
        assert!(SharedMemory::open(file(), 0, Options::default()).is_err());
    }

    #[test]
    fn a_file_that_can_shrink_is_no_memory() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(SharedMemory::open(file.into(), 4096, Options::default()).is_err());
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
