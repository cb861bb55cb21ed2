//! How the metadata of the plain engines is wrapped: who wrote it, in which version, and no more than a bound.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::engine::Name;
use crate::error::{EngineError, Kind};

/// What every metadata begins with.
const MAGIC: &[u8; 4] = b"kvEn";
/// Bytes at most: 64 rails of 64 threads with the longest addresses stay below.
const BYTES_MAX: usize = 8 << 20;
/// Bytes of the head: magic, length of the engine's name, version.
const HEAD: usize = MAGIC.len() + 1 + 2;

/// Wraps what an engine says.
///
/// # Errors
/// When it is longer than the other side would take.
pub(crate) fn seal(name: Name, version: u16, value: &impl Serialize) -> Result<Vec<u8>, EngineError> {
    let mut bytes = MAGIC.to_vec();
    // Names are short words of this crate.
    bytes.push(name.as_str().len() as u8);
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(name.as_str().as_bytes());
    let refused = |why: String| EngineError::new(Kind::Engine, format!("the metadata of {name} is {why}"));
    serde_json::to_writer(&mut bytes, value).map_err(|e| refused(format!("not written: {e}")))?;
    if bytes.len() > BYTES_MAX {
        return Err(refused(format!("{} bytes, more than {BYTES_MAX}", bytes.len())));
    }
    Ok(bytes)
}

/// Unwraps what the other side said.
///
/// # Errors
/// Whatever these bytes are instead.
pub(crate) fn open<T: DeserializeOwned>(name: Name, version: u16, bytes: &[u8]) -> Result<T, EngineError> {
    let refused =
        |why: String| EngineError::new(Kind::Peer, format!("the peer sent no metadata of {name}: {why}"));
    if bytes.len() > BYTES_MAX {
        return Err(refused(format!("{} bytes are more than {BYTES_MAX}", bytes.len())));
    }
    let (Some(magic), Some(head)) = (bytes.get(..MAGIC.len()), bytes.get(MAGIC.len()..HEAD)) else {
        return Err(refused(format!("{} bytes are too few", bytes.len())));
    };
    if magic != MAGIC {
        return Err(refused("it begins otherwise".into()));
    }
    let (wrote, theirs) = (usize::from(head[0]), u16::from_le_bytes([head[1], head[2]]));
    let (Some(wrote), Some(body)) = (bytes.get(HEAD..HEAD + wrote), bytes.get(HEAD + wrote..)) else {
        return Err(refused("it ends in its head".into()));
    };
    if wrote != name.as_str().as_bytes() {
        let wrote = String::from_utf8_lossy(wrote).escape_debug().to_string();
        return Err(refused(format!("it is of engine `{wrote}`")).hint("both sides run the same --engine"));
    }
    if theirs != version {
        return Err(refused(format!("its version is {theirs}, this side's is {version}"))
            .hint("run the same kvrail on both sides"));
    }
    serde_json::from_slice(body).map_err(|e| refused(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_is_opened_by_the_same_engine_and_version_only() {
        let sealed = seal(Name::Memcpy, 1, &vec![1u32, 2]).unwrap();
        assert_eq!(open::<Vec<u32>>(Name::Memcpy, 1, &sealed).unwrap(), [1, 2]);
        let says = |name, version, bytes: &[u8]| open::<Vec<u32>>(name, version, bytes).unwrap_err().what;
        assert!(says(Name::Libfabric, 1, &sealed).contains("it is of engine `memcpy`"));
        assert!(says(Name::Memcpy, 2, &sealed).contains("its version is 1, this side's is 2"));
        assert!(says(Name::Memcpy, 1, b"GET / HTTP/1.1").contains("begins otherwise"));
    }

    #[test]
    fn damaged_bytes_are_errors() {
        let sealed = seal(Name::Memcpy, 1, &vec![1u32, 2]).unwrap();
        for len in 0..sealed.len() {
            assert!(open::<Vec<u32>>(Name::Memcpy, 1, &sealed[..len]).is_err(), "{len}");
        }
        assert!(open::<Vec<u32>>(Name::Memcpy, 1, &vec![0; BYTES_MAX + 1]).is_err());
    }
}
