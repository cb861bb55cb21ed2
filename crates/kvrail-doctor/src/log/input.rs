//! What a log may be wrapped in: gzip, UTF-16; and what is no log at all.

use std::io::{Cursor, ErrorKind, Read};

use flate2::read::MultiGzDecoder;

/// Bytes by which it is told what something is.
const SNIFF: usize = 8192;
/// Control characters, in a thousand bytes, beyond which something is no text.
const CONTROLS_PER_MILLE: usize = 50;

/// Something that cannot be read as a log.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum NotRead {
    /// The file cannot be read, or not to its end.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It is no text.
    #[error("it is no text, but binary data")]
    Binary,
    /// It is compressed in a way that is not understood here.
    #[error("it is compressed with {0}: `{0} -dc FILE | kvrail doctor log -` reads it")]
    Compressed(&'static str),
}

/// The text in something, whatever it is wrapped in.
pub(super) fn text<'r>(mut from: Box<dyn Read + 'r>) -> Result<Box<dyn Read + 'r>, NotRead> {
    // Text in gzip; gzip in gzip is somebody's mistake, and binary.
    for may_unwrap in [true, false] {
        let (head, broke) = head(&mut *from)?;
        let whole = Cursor::new(head.clone()).chain(Broke(broke)).chain(from);
        match kind(&head) {
            Kind::Gzip if may_unwrap => from = Box::new(MultiGzDecoder::new(whole)),
            Kind::Gzip | Kind::Binary => return Err(NotRead::Binary),
            Kind::Compressed(with) => return Err(NotRead::Compressed(with)),
            Kind::Utf16 { big } => return Ok(Box::new(Utf16::new(whole, big))),
            Kind::Text => return Ok(Box::new(whole)),
        }
    }
    Err(NotRead::Binary)
}

/// The first bytes, as many as are asked for if there are so many, however they arrive; and why there are not more, if reading broke
/// off after some: those count.
fn head(from: &mut dyn Read) -> std::io::Result<(Vec<u8>, Option<std::io::Error>)> {
    let mut head = Vec::new();
    match from.take(SNIFF as u64).read_to_end(&mut head) {
        Ok(_) => Ok((head, None)),
        Err(error) if head.is_empty() => Err(error),
        Err(error) => Ok((head, Some(error))),
    }
}

/// Fails once, if there is something to fail with.
struct Broke(Option<std::io::Error>);

impl Read for Broke {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}

#[derive(PartialEq, Debug)]
enum Kind {
    Text,
    Gzip,
    Utf16 { big: bool },
    Compressed(&'static str),
    Binary,
}

fn kind(head: &[u8]) -> Kind {
    match head {
        [0x1f, 0x8b, 8, ..] => return Kind::Gzip,
        [0xff, 0xfe, ..] => return Kind::Utf16 { big: false },
        [0xfe, 0xff, ..] => return Kind::Utf16 { big: true },
        [0x28, 0xb5, 0x2f, 0xfd, ..] => return Kind::Compressed("zstd"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => return Kind::Compressed("xz"),
        [b'B', b'Z', b'h', b'1'..=b'9', b'1', b'A', b'Y', ..] => return Kind::Compressed("bzip2"),
        [0x7f, b'E', b'L', b'F', ..] => return Kind::Binary,
        _ => {}
    }
    // A log that was truncated while it was written to begins with zeros; colours begin with ESC.
    let control = |b: &&u8| matches!(b, 1..=7 | 0x0e..=0x1a | 0x1c..=0x1f);
    let controls = head.iter().filter(control).count();
    if controls * 1000 > head.len() * CONTROLS_PER_MILLE { Kind::Binary } else { Kind::Text }
}

/// UTF-16 as UTF-8.
struct Utf16<R> {
    from: R,
    big: bool,
    /// Bytes read and not yet decoded, an odd one or half of a pair.
    raw: Vec<u8>,
    /// Decoded and not yet given.
    ready: Vec<u8>,
    given: usize,
    ended: bool,
}

impl<R: Read> Utf16<R> {
    fn new(from: R, big: bool) -> Self {
        Self { from, big, raw: Vec::new(), ready: Vec::new(), given: 0, ended: false }
    }

    fn refill(&mut self) -> std::io::Result<()> {
        self.ready.clear();
        self.given = 0;
        let mut block = [0; SNIFF];
        let n = match self.from.read(&mut block) {
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        };
        self.ended = n == 0;
        self.raw.extend_from_slice(&block[..n]);
        let unit = |pair: &[u8]| {
            let pair = [pair[0], pair[1]];
            if self.big { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) }
        };
        let mut units: Vec<u16> = self.raw.chunks_exact(2).map(unit).collect();
        // The first half of a pair waits for the second.
        if !self.ended && units.last().is_some_and(|unit| (0xd800..0xdc00).contains(unit)) {
            units.pop();
        }
        for c in char::decode_utf16(units.iter().copied()) {
            let c = c.unwrap_or(char::REPLACEMENT_CHARACTER);
            self.ready.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
        self.raw.drain(..units.len() * 2);
        Ok(())
    }
}

impl<R: Read> Read for Utf16<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.given == self.ready.len() && !self.ended {
            self.refill()?;
        }
        let n = into.len().min(self.ready.len() - self.given);
        into[..n].copy_from_slice(&self.ready[self.given..self.given + n]);
        self.given += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read(bytes: &[u8]) -> Result<String, NotRead> {
        let mut out = String::new();
        text(Box::new(bytes))?.read_to_string(&mut out)?;
        Ok(out)
    }

    #[test]
    fn text_is_read_out_of_gzip_and_utf_16() {
        let said = "a log with a é and a 😀\r\n";
        let gzip = |bytes: &[u8]| {
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gz.write_all(bytes).unwrap();
            gz.finish().unwrap()
        };
        let little: Vec<u8> =
            "\u{feff}".encode_utf16().chain(said.encode_utf16()).flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> =
            "\u{feff}".encode_utf16().chain(said.encode_utf16()).flat_map(u16::to_be_bytes).collect();
        assert_eq!(read(said.as_bytes()).unwrap(), said);
        assert_eq!(read(&gzip(said.as_bytes())).unwrap(), said);
        // Rotated logs are often concatenated.
        assert_eq!(read(&[gzip(b"one\n"), gzip(b"two\n")].concat()).unwrap(), "one\ntwo\n");
        for wrapped in [little.clone(), big, gzip(&little)] {
            assert_eq!(read(&wrapped).unwrap().trim_start_matches('\u{feff}'), said);
        }
        assert_eq!(read(&[]).unwrap(), "");
    }

    #[test]
    fn what_is_no_text_is_named() {
        let noise: Vec<u8> = (0..4096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        assert!(matches!(read(&noise), Err(NotRead::Binary)));
        assert!(matches!(read(b"\x7fELF\x02\x01"), Err(NotRead::Binary)));
        assert!(read(b"\x28\xb5\x2f\xfd....").unwrap_err().to_string().contains("zstd -dc"));
        // Truncated while it was written to.
        assert!(read(&[vec![0; 4096], b"2026-02-06 a line\n".to_vec()].concat()).is_ok());
        assert!(matches!(read(b"\x1f\x8b\x08\x00 not gzip after all"), Err(NotRead::Io(_))));
    }
}
