//! Sets of small numbers as the kernel (`0-47,96-143`) and hwloc (`0x0000ffff,0xffffffff`) write them.

use std::collections::BTreeSet;

/// One more than the largest member a set can have: the most CPUs Linux is built for, twice over.
const MEMBERS_MAX: u32 = 16_384;

/// Reads `0-47,96-143`; the empty text is the empty set.
pub(crate) fn parse_list(text: &str) -> Option<BTreeSet<u32>> {
    let mut set = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= MEMBERS_MAX {
            return None;
        }
        set.extend(first..=last);
    }
    Some(set)
}

/// Reads hwloc's bitmaps: words of 32 bits, most significant first, an empty word being 0. A leading `0xf...f` means that
/// all members from there on are in the set; they are left out, nothing here has that many.
pub(crate) fn parse_bitmap(text: &str) -> Option<BTreeSet<u32>> {
    let text = text.trim();
    let words: Vec<&str> = text.strip_prefix("0xf...f,").unwrap_or(text).split(',').collect();
    let mut set = BTreeSet::new();
    for (index, word) in words.iter().rev().enumerate() {
        if word.is_empty() {
            continue;
        }
        let bits = crate::pci::hex(word.strip_prefix("0x")?, 8)?;
        let base = u32::try_from(index).ok()?.checked_mul(32).filter(|base| *base < MEMBERS_MAX)?;
        set.extend((0..32).filter(|bit| bits >> bit & 1 == 1).map(|bit| base + bit));
    }
    Some(set)
}

/// Writes a set as the kernel does.
pub(crate) fn list(set: &BTreeSet<u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for member in set {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *member => *last = *member,
            _ => runs.push((*member, *member)),
        }
    }
    let run = |(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    runs.iter().map(run).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_read_as_they_are_written() {
        for text in ["0-47,96-143", "0", "", "1,3,5-6"] {
            assert_eq!(list(&parse_list(text).unwrap()), text);
        }
        let bitmap = |text| list(&parse_bitmap(text).unwrap());
        assert_eq!(bitmap("0x0000ffff,0xffffffff,,0x0000ffff,0xffffffff"), "0-47,96-143");
        assert_eq!(bitmap("0x00000003"), "0-1");
        assert_eq!(bitmap("0xf...f,0x00000001"), "0");
        for text in ["3-1", "x", "0-4000000000", "-1"] {
            assert_eq!(parse_list(text), None, "{text}");
        }
        assert!(parse_bitmap("0xzz").is_none() && parse_bitmap("3").is_none());
    }
}
