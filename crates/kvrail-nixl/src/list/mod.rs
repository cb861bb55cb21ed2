//! Descriptor lists: memory by address, as callers of NIXL name it.

mod codec;

pub use codec::{AnyList, DecodeError, Wire};

/// Kinds of memory, by NIXL's numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum MemoryKind {
    /// Host memory.
    Dram = 0,
    /// Memory of a GPU.
    Vram = 1,
    /// A block device.
    Block = 2,
    /// An object store.
    Object = 3,
    /// A file.
    File = 4,
}

impl MemoryKind {
    /// All of them, by number.
    pub const ALL: [Self; 5] = [Self::Dram, Self::Vram, Self::Block, Self::Object, Self::File];

    /// The kind of that number.
    #[must_use]
    pub fn of(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }

    /// NIXL's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dram => "DRAM_SEG",
            Self::Vram => "VRAM_SEG",
            Self::Block => "BLK_SEG",
            Self::Object => "OBJ_SEG",
            Self::File => "FILE_SEG",
        }
    }
}

/// Memory to be moved: `len` bytes at `addr` of device `device`. Of a file: `addr` is the offset, `device` the file's number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Desc {
    /// Address of the first byte.
    pub addr: u64,
    /// Bytes.
    pub len: u64,
    /// Which device of its kind.
    pub device: u64,
}

impl Desc {
    /// The address after the last byte; none when there is no such address.
    #[must_use]
    pub fn end(&self) -> Option<u64> {
        self.addr.checked_add(self.len)
    }
}

/// Memory to be registered: a descriptor with what its backend wants to know besides (a path, a key, a label).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RegDesc {
    /// The memory.
    pub desc: Desc,
    /// For the backend.
    pub meta: Vec<u8>,
}

/// Memory of a named agent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RemoteDesc {
    /// The memory, in that agent's address space.
    pub desc: Desc,
    /// The agent.
    pub agent: Vec<u8>,
}

/// `count` pieces of `len` bytes, the first at `addr`, each further one `stride` bytes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Strided {
    /// Address of the first piece.
    pub addr: u64,
    /// Bytes of each piece.
    pub len: u64,
    /// Which device.
    pub device: u64,
    /// Bytes from one piece's start to the next one's.
    pub stride: u64,
    /// Number of pieces.
    pub count: u64,
}

/// Descriptors of one kind of memory, in the order in which they are paired and numbered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct List<D> {
    /// What kind of memory they are of.
    pub kind: MemoryKind,
    /// They.
    pub descs: Vec<D>,
}

/// What is moved.
pub type XferList = List<Desc>;
/// What is registered.
pub type RegList = List<RegDesc>;
/// What agents are named for.
pub type RemoteList = List<RemoteDesc>;

impl<D> List<D> {
    /// An empty list.
    #[must_use]
    pub fn new(kind: MemoryKind) -> Self {
        Self { kind, descs: Vec::new() }
    }
}

impl RegList {
    /// The same memory without what was for the backend.
    #[must_use]
    pub fn trim(&self) -> XferList {
        XferList { kind: self.kind, descs: self.descs.iter().map(|reg| reg.desc).collect() }
    }
}
