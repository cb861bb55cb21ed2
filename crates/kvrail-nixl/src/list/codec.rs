//! Lists as bytes, for peers: a format of our own that no byte string makes execute or allocate more than it is long, and
//! the reading half of NIXL's own format, so that what a NIXL process serialised can be read.
//!
//! Own format, little-endian: magic `KVRD`, version 1, shape (0 xfer, 1 reg, 2 remote), kind, a zero, count as u32; then per descriptor addr, len and device
//! as u64 and, but for shape 0, the length of its text as u32 and the text.

use super::{Desc, List, MemoryKind, RegDesc, RegList, RemoteDesc, RemoteList, XferList};

/// First bytes of our own format.
pub(super) const MAGIC: &[u8; 4] = b"KVRD";
const VERSION: u8 = 1;
/// First bytes of NIXL's format.
const NIXL: &[u8] = b"nixlSerDes|";

/// Why bytes are not a descriptor list.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// They begin with no format's magic.
    #[error("not a descriptor list: it begins with neither kvrail's nor NIXL's magic")]
    Magic,
    /// A newer kvrail's.
    #[error("a descriptor list of format version {0}; this kvrail reads version {VERSION}")]
    Version(u8),
    /// Of another shape.
    #[error("a list of shape {found} where {wanted} was expected (0 transfer, 1 registration, 2 remote)")]
    Shape {
        /// What was asked for.
        wanted: u8,
        /// What it is.
        found: u8,
    },
    /// There is no such kind of memory.
    #[error("there is no memory kind {0}")]
    Kind(u32),
    /// They end too early, go on too long, or contradict themselves.
    #[error("a damaged descriptor list: {what} at byte {at}")]
    Damaged {
        /// What is wrong.
        what: &'static str,
        /// Where.
        at: usize,
    },
}

/// A descriptor that can be written and read.
pub trait Wire: Sized {
    /// Number of the shape.
    const SHAPE: u8;
    /// NIXL's name for the list; none when NIXL does not serialise it.
    const NIXL_NAME: Option<&'static str>;
    /// Its three numbers.
    fn desc(&self) -> Desc;
    /// Its text.
    fn text(&self) -> Option<&[u8]>;
    /// Of its parts.
    fn of(desc: Desc, text: &[u8]) -> Self;
}

impl Wire for Desc {
    const SHAPE: u8 = 0;
    const NIXL_NAME: Option<&'static str> = Some("nixlBDList");
    fn desc(&self) -> Desc {
        *self
    }
    fn text(&self) -> Option<&[u8]> {
        None
    }
    fn of(desc: Desc, _: &[u8]) -> Self {
        desc
    }
}

impl Wire for RegDesc {
    const SHAPE: u8 = 1;
    const NIXL_NAME: Option<&'static str> = Some("nixlSDList");
    fn desc(&self) -> Desc {
        self.desc
    }
    fn text(&self) -> Option<&[u8]> {
        Some(&self.meta)
    }
    fn of(desc: Desc, text: &[u8]) -> Self {
        Self { desc, meta: text.to_vec() }
    }
}

impl Wire for RemoteDesc {
    const SHAPE: u8 = 2;
    const NIXL_NAME: Option<&'static str> = None;
    fn desc(&self) -> Desc {
        self.desc
    }
    fn text(&self) -> Option<&[u8]> {
        Some(&self.agent)
    }
    fn of(desc: Desc, text: &[u8]) -> Self {
        Self { desc, agent: text.to_vec() }
    }
}

/// What is left to read, and where.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn damaged<T>(&self, what: &'static str) -> Result<T, DecodeError> {
        Err(DecodeError::Damaged { what, at: self.at })
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        if len > self.left() {
            return self.damaged("the bytes end");
        }
        let taken = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        Ok(self.take(N)?.try_into().expect("taken with that length"))
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    fn desc(&mut self) -> Result<Desc, DecodeError> {
        Ok(Desc { addr: self.u64()?, len: self.u64()?, device: self.u64()? })
    }

    /// NIXL's field: tag, length, bytes, a bar.
    fn field(&mut self, tag: &[u8]) -> Result<&'a [u8], DecodeError> {
        if self.take(tag.len())? != tag {
            return self.damaged("another field was expected");
        }
        let len = self.u64()?;
        let Ok(len) = usize::try_from(len) else { return self.damaged("a length") };
        let bytes = self.take(len)?;
        if self.take(1)? != b"|" {
            return self.damaged("a field does not end with its bar");
        }
        Ok(bytes)
    }

    fn end(&self) -> Result<(), DecodeError> {
        if self.left() > 0 { self.damaged("bytes follow") } else { Ok(()) }
    }
}

/// Bytes of a descriptor's three numbers.
const DESC_BYTES: usize = size_of::<Desc>();

impl<D: Wire> List<D> {
    /// The list as bytes.
    ///
    /// # Panics
    /// With more than 2³² descriptors, or a text of more than 4 GiB.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let count = u32::try_from(self.descs.len()).expect("lists are shorter");
        let mut bytes = Vec::with_capacity(12 + self.descs.len() * DESC_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[VERSION, D::SHAPE, self.kind as u8, 0]);
        bytes.extend_from_slice(&count.to_le_bytes());
        for one in &self.descs {
            let Desc { addr, len, device } = one.desc();
            [addr, len, device].iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
            if let Some(text) = one.text() {
                let len = u32::try_from(text.len()).expect("texts are shorter");
                bytes.extend_from_slice(&len.to_le_bytes());
                bytes.extend_from_slice(text);
            }
        }
        bytes
    }

    /// A list from bytes of ours or of NIXL's.
    ///
    /// # Errors
    /// [`DecodeError`]. The bytes are input from outside.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.starts_with(NIXL) {
            return Self::from_nixl(bytes);
        }
        let mut reader = Reader { bytes, at: 0 };
        if !bytes.starts_with(MAGIC) {
            return Err(DecodeError::Magic);
        }
        reader.at = MAGIC.len();
        let [version, shape, kind, _] = reader.array()?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        if shape != D::SHAPE {
            return Err(DecodeError::Shape { wanted: D::SHAPE, found: shape });
        }
        let kind = MemoryKind::of(kind.into()).ok_or(DecodeError::Kind(kind.into()))?;
        let count = reader.u32()? as usize;
        // Each takes bytes that are there: a count cannot make us allocate more than a small multiple of the input.
        if count > reader.left() / DESC_BYTES {
            return reader.damaged("more descriptors are announced than there are bytes for");
        }
        let mut descs = Vec::with_capacity(count);
        for _ in 0..count {
            let desc = reader.desc()?;
            let text = if D::SHAPE == Desc::SHAPE {
                &[]
            } else {
                let len = reader.u32()? as usize;
                reader.take(len)?
            };
            descs.push(D::of(desc, text));
        }
        reader.end()?;
        Ok(Self { kind, descs })
    }

    fn from_nixl(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader { bytes, at: NIXL.len() };
        let name = reader.field(b"nixlDList")?;
        let Some(wanted) = D::NIXL_NAME.filter(|wanted| wanted.as_bytes() == name) else {
            let found = if name == b"nixlBDList" { Desc::SHAPE } else { RegDesc::SHAPE };
            return Err(DecodeError::Shape { wanted: D::SHAPE, found });
        };
        debug_assert!(!wanted.is_empty());
        let kind = reader.field(b"t")?;
        let Ok(kind) = kind.try_into().map(u32::from_le_bytes) else { return reader.damaged("the kind") };
        let kind = MemoryKind::of(kind).ok_or(DecodeError::Kind(kind))?;
        let count = reader.field(b"n")?;
        let Ok(count) = count.try_into().map(u64::from_le_bytes) else { return reader.damaged("the count") };
        if count > (reader.left() / DESC_BYTES) as u64 {
            return reader.damaged("more descriptors are announced than there are bytes for");
        }
        let mut descs = Vec::with_capacity(count as usize);
        if D::SHAPE == Desc::SHAPE && count > 0 {
            let all = reader.field(b"")?;
            if all.len() as u64 != count * DESC_BYTES as u64 {
                return reader.damaged("the descriptors are not as many as announced");
            }
            let mut each = Reader { bytes: all, at: 0 };
            for _ in 0..count {
                descs.push(D::of(each.desc()?, &[]));
            }
        } else {
            for _ in 0..count {
                let one = reader.field(b"")?;
                let mut one = Reader { bytes: one, at: 0 };
                let desc = one.desc()?;
                let text = one.take(one.left())?;
                descs.push(D::of(desc, text));
            }
        }
        reader.end()?;
        Ok(Self { kind, descs })
    }
}

/// A list whose shape is what its bytes say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AnyList {
    /// What is moved.
    Xfer(XferList),
    /// What is registered.
    Reg(RegList),
    /// What agents are named for.
    Remote(RemoteList),
}

impl AnyList {
    /// A list from bytes of ours or of NIXL's.
    ///
    /// # Errors
    /// [`DecodeError`]. The bytes are input from outside.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        match XferList::from_bytes(bytes) {
            Err(DecodeError::Shape { found: 1, .. }) => RegList::from_bytes(bytes).map(Self::Reg),
            Err(DecodeError::Shape { found: 2, .. }) => RemoteList::from_bytes(bytes).map(Self::Remote),
            list => list.map(Self::Xfer),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn desc() -> impl Strategy<Value = Desc> {
        any::<[u64; 3]>().prop_map(|[addr, len, device]| Desc { addr, len, device })
    }

    fn kind() -> impl Strategy<Value = MemoryKind> {
        proptest::sample::select(&MemoryKind::ALL[..])
    }

    /// What NIXL writes, by its documented layout of fields.
    fn as_nixl(list: &RegList, name: &str) -> Vec<u8> {
        let mut bytes = NIXL.to_vec();
        let mut field = |tag: &str, value: &[u8]| {
            bytes.extend_from_slice(tag.as_bytes());
            bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
            bytes.extend_from_slice(value);
            bytes.push(b'|');
        };
        field("nixlDList", name.as_bytes());
        field("t", &(list.kind as u32).to_le_bytes());
        field("n", &(list.descs.len() as u64).to_le_bytes());
        let numbers =
            |d: &Desc| [d.addr, d.len, d.device].iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
        if name == "nixlBDList" {
            if !list.descs.is_empty() {
                field("", &list.descs.iter().flat_map(|d| numbers(&d.desc)).collect::<Vec<u8>>());
            }
        } else {
            list.descs.iter().for_each(|d| field("", &[numbers(&d.desc), d.meta.clone()].concat()));
        }
        bytes
    }

    proptest! {
        #[test]
        fn lists_come_back_as_they_were(kind in kind(), descs in prop::collection::vec((desc(), any::<Vec<u8>>()), 0..20)) {
            let reg = RegList { kind, descs: descs.into_iter().map(|(desc, meta)| RegDesc { desc, meta }).collect() };
            let remote = RemoteList { kind, descs: reg.descs.iter().map(|d| RemoteDesc { desc: d.desc, agent: d.meta.clone() }).collect() };
            let xfer = reg.trim();
            prop_assert_eq!(AnyList::from_bytes(&xfer.to_bytes()), Ok(AnyList::Xfer(xfer.clone())));
            prop_assert_eq!(AnyList::from_bytes(&reg.to_bytes()), Ok(AnyList::Reg(reg.clone())));
            prop_assert_eq!(AnyList::from_bytes(&remote.to_bytes()), Ok(AnyList::Remote(remote)));
            prop_assert_eq!(AnyList::from_bytes(&as_nixl(&reg, "nixlBDList")), Ok(AnyList::Xfer(xfer)));
            prop_assert_eq!(AnyList::from_bytes(&as_nixl(&reg, "nixlSDList")), Ok(AnyList::Reg(reg)));
        }

        #[test]
        fn any_bytes_are_a_list_or_an_error(mut bytes: Vec<u8>, magic in 0..3usize) {
            let _ = AnyList::from_bytes(&bytes);
            bytes.splice(0..0, [&b"KVRD\x01"[..], NIXL, b"nixlSerDes|nixlDList\x0a\0\0\0\0\0\0\0nixlBDList|"][magic].iter().copied());
            let _ = AnyList::from_bytes(&bytes);
        }

        #[test]
        fn a_list_cut_short_or_lengthened_is_an_error(descs in prop::collection::vec(desc(), 1..9), cut in any::<prop::sample::Index>()) {
            let bytes = XferList { kind: MemoryKind::Dram, descs }.to_bytes();
            prop_assert!(AnyList::from_bytes(&bytes[..cut.index(bytes.len())]).is_err());
            prop_assert!(AnyList::from_bytes(&[bytes, vec![0]].concat()).is_err());
        }
    }
}
