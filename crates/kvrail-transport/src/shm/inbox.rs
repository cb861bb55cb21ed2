//! The inbox: a bounded ring of records of any length, written by every peer, read by its owner.
//!
//! Writers take turns by a lock word that holds the writer's number. A record becomes visible only when the tail
//! moves, as the last act under the lock, so a writer that dies in the middle leaves nothing behind but the lock;
//! the owner, who learns of the death from the kernel, takes the lock away from the dead ([`release_of`]). Nobody
//! waits for the lock without bound: a writer that does not get it is told "full" (KR-8).
//!
//! What a record holds is input from outside: a length that cannot be is answered by dropping what is in the ring.

use std::sync::atomic::Ordering;

use super::word::Word;
use crate::memory::Mapping;

/// Bytes before each record: its length and its kind.
const HEADER_BYTES: usize = 8;

/// How often a writer tries to get its turn. A turn takes about a microsecond at most.
const TRIES: u32 = 400;

/// The words of an inbox.
pub(super) struct Words<'a, W> {
    pub(super) lock: &'a W,
    pub(super) head: &'a W,
    pub(super) tail: &'a W,
    pub(super) asleep: &'a W,
}

/// How a write ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pushed {
    /// It is in. `wake` says that the owner sleeps and nobody else has undertaken to wake it.
    In { wake: bool },
    /// No room, or no turn: try later.
    Full,
}

/// Writes `need` bytes at the position that `write` is given.
pub(super) fn push<W: Word>(
    words: &Words<'_, W>,
    writer: u32,
    need: u32,
    capacity: u32,
    tries: u32,
    write: impl FnOnce(u32),
) -> Pushed {
    let mut left = tries;
    while !words.lock.swap_if(0, writer, Ordering::Acquire) {
        left -= 1;
        if left == 0 {
            return Pushed::Full;
        }
        std::hint::spin_loop();
    }
    let tail = words.tail.load(Ordering::Relaxed);
    let used = tail.wrapping_sub(words.head.load(Ordering::Acquire));
    let fits = used <= capacity && need <= capacity - used;
    if fits {
        write(tail);
        words.tail.store(tail.wrapping_add(need), Ordering::Release);
    }
    words.lock.store(0, Ordering::Release);
    if fits { Pushed::In { wake: must_wake(words.asleep) } } else { Pushed::Full }
}

/// After something was made visible to a process: whether it sleeps and it is on the caller to wake it.
pub(super) fn must_wake<W: Word>(asleep: &W) -> bool {
    W::fence();
    asleep.load(Ordering::Relaxed) != 0 && asleep.swap_if(1, 0, Ordering::Relaxed)
}

/// The owner announces that it is going to sleep. False: something is there already, do not.
pub(super) fn fall_asleep<W: Word>(words: &Words<'_, W>) -> bool {
    words.asleep.store(1, Ordering::Relaxed);
    W::fence();
    if words.tail.load(Ordering::Relaxed) == words.head.load(Ordering::Relaxed) {
        return true;
    }
    words.asleep.store(0, Ordering::Relaxed);
    false
}

/// Reads one record: `read` is given its position and how many bytes are there, and says how many it took; `None`
/// when they make no sense. Returns false when there was nothing, `None` when the ring had to be emptied.
pub(super) fn pop<W: Word>(
    words: &Words<'_, W>,
    capacity: u32,
    read: impl FnOnce(u32, u32) -> Option<u32>,
) -> Option<bool> {
    let head = words.head.load(Ordering::Relaxed);
    let tail = words.tail.load(Ordering::Acquire);
    if head == tail {
        return Some(false);
    }
    let there = tail.wrapping_sub(head);
    let took = if there <= capacity { read(head, there) } else { None };
    match took {
        Some(took) if took > 0 && took <= there => {
            words.head.store(head.wrapping_add(took), Ordering::Release);
            Some(true)
        }
        _ => {
            words.head.store(tail, Ordering::Release);
            None
        }
    }
}

/// Takes the lock away from a writer whose process is known to be dead.
pub(super) fn release_of<W: Word>(lock: &W, writer: u32) {
    lock.swap_if(writer, 0, Ordering::AcqRel);
}

/// The ring's bytes inside a control segment.
pub(super) struct Ring<'a> {
    pub(super) memory: &'a Mapping,
    pub(super) offset: usize,
    /// A power of two.
    pub(super) capacity: u32,
}

impl Ring<'_> {
    /// Room that a record of `len` bytes takes.
    pub(super) fn room(len: usize) -> u32 {
        (HEADER_BYTES + len).next_multiple_of(HEADER_BYTES) as u32
    }

    pub(super) fn push<W: Word>(&self, words: &Words<'_, W>, writer: u32, kind: u32, bytes: &[u8]) -> Pushed {
        let need = Self::room(bytes.len());
        push(words, writer, need, self.capacity, TRIES, |at| {
            let mut header = [0; HEADER_BYTES];
            header[..4].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
            header[4..].copy_from_slice(&kind.to_le_bytes());
            self.write(at, &header);
            self.write(at.wrapping_add(HEADER_BYTES as u32), bytes);
        })
    }

    /// The next record: its kind and its bytes. The outer `None`: the ring made no sense and was emptied.
    pub(super) fn pop<W: Word>(
        &self,
        words: &Words<'_, W>,
        len_max: usize,
    ) -> Option<Option<(u32, Vec<u8>)>> {
        let mut record = None;
        pop(words, self.capacity, |at, there| {
            let mut header = [0; HEADER_BYTES];
            self.read(at, &mut header);
            let [a, b, c, d, e, f, g, h] = header;
            let len = u32::from_le_bytes([a, b, c, d]) as usize;
            if len > len_max || Self::room(len) > there {
                return None;
            }
            let mut bytes = vec![0; len];
            self.read(at.wrapping_add(HEADER_BYTES as u32), &mut bytes);
            record = Some((u32::from_le_bytes([e, f, g, h]), bytes));
            Some(Self::room(len))
        })?;
        Some(record)
    }

    fn write(&self, at: u32, bytes: &[u8]) {
        let at = (at & (self.capacity - 1)) as usize;
        let first = bytes.len().min(self.capacity as usize - at);
        self.memory.write(self.offset + at, &bytes[..first]);
        self.memory.write(self.offset, &bytes[first..]);
    }

    fn read(&self, at: u32, bytes: &mut [u8]) {
        let at = (at & (self.capacity - 1)) as usize;
        let first = bytes.len().min(self.capacity as usize - at);
        self.memory.read(self.offset + at, &mut bytes[..first]);
        self.memory.read(self.offset, &mut bytes[first..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    fn words(w: &[AtomicU32; 4]) -> Words<'_, AtomicU32> {
        Words { lock: &w[0], head: &w[1], tail: &w[2], asleep: &w[3] }
    }

    fn fresh(start: u32) -> [AtomicU32; 4] {
        [AtomicU32::new(0), AtomicU32::new(start), AtomicU32::new(start), AtomicU32::new(0)]
    }

    fn memory() -> Mapping {
        Mapping::anonymous(4096).unwrap()
    }

    #[test]
    fn records_of_every_length_come_out_in_order_across_the_wrap() {
        let memory = memory();
        let ring = Ring { memory: &memory, offset: 64, capacity: 1024 };
        let w = fresh(u32::MAX - 500);
        let words = words(&w);
        let mut sent = std::collections::VecDeque::new();
        for i in 0..5_000u32 {
            let bytes: Vec<u8> = (0..(i * 37) % 900).map(|j| (i + j) as u8).collect();
            while ring.push(&words, 1, i, &bytes) == Pushed::Full {
                let got = ring.pop(&words, 1000).unwrap().expect("full, so not empty");
                assert_eq!(Some(got), sent.pop_front());
            }
            sent.push_back((i, bytes));
        }
        while let Some(expected) = sent.pop_front() {
            assert_eq!(ring.pop(&words, 1000).unwrap(), Some(expected));
        }
        assert_eq!(ring.pop(&words, 1000), Some(None));
    }

    #[test]
    fn a_writer_that_died_inside_wedges_nobody() {
        let memory = memory();
        let ring = Ring { memory: &memory, offset: 0, capacity: 1024 };
        let w = fresh(0);
        let words = words(&w);
        w[0].store(5, Ordering::Relaxed);
        assert_eq!(ring.push(&words, 1, 0, b"held up"), Pushed::Full);
        release_of(words.lock, 4);
        assert_eq!(ring.push(&words, 1, 0, b"another's death frees nothing"), Pushed::Full);
        release_of(words.lock, 5);
        assert_eq!(ring.push(&words, 1, 3, b"through"), Pushed::In { wake: false });
        assert_eq!(ring.pop(&words, 100), Some(Some((3, b"through".to_vec()))));
    }

    #[test]
    fn a_sleeper_is_woken_once() {
        let memory = memory();
        let ring = Ring { memory: &memory, offset: 0, capacity: 1024 };
        let w = fresh(0);
        let words = words(&w);
        assert!(fall_asleep(&words));
        assert_eq!(ring.push(&words, 1, 0, b"a"), Pushed::In { wake: true });
        assert_eq!(ring.push(&words, 1, 0, b"b"), Pushed::In { wake: false });
        assert!(!fall_asleep(&words), "something is there");
    }

    #[test]
    fn any_bytes_in_the_ring_are_survived() {
        let memory = memory();
        let ring = Ring { memory: &memory, offset: 0, capacity: 1024 };
        let mut state = 0x9E37_79B9_7F4A_7C15u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..20_000 {
            for i in 0..128 {
                memory.write(i * 8, &random().to_le_bytes());
            }
            memory.write(0, &(random() as u32 % 1100).to_le_bytes());
            let w = fresh(0);
            w[2].store(
                if random() % 2 == 0 { random() as u32 % 1100 } else { random() as u32 },
                Ordering::Relaxed,
            );
            let words = words(&w);
            while ring.pop(&words, 900).is_some_and(|record| record.is_some()) {}
            assert_eq!(ring.push(&words, 1, 9, b"on"), Pushed::In { wake: false });
            assert_eq!(ring.pop(&words, 900), Some(Some((9, b"on".to_vec()))));
        }
    }

    mod model {
        use super::super::*;
        use loom::cell::UnsafeCell;
        use loom::sync::Arc;
        use loom::sync::atomic::AtomicU32;

        struct Shared {
            words: [AtomicU32; 4],
            cells: [UnsafeCell<u32>; 2],
        }

        fn words(it: &Shared) -> Words<'_, AtomicU32> {
            let [lock, head, tail, asleep] = &it.words;
            Words { lock, head, tail, asleep }
        }

        /// Two writers and the owner: no record is lost, doubled or torn, and whoever falls asleep is woken.
        #[test]
        fn in_every_interleaving_each_record_arrives_once_and_wakes_the_owner() {
            // Every interleaving with up to three preemptions: all that a second would find, in a second.
            let mut model = loom::model::Builder::new();
            model.preemption_bound = Some(3);
            model.check(|| {
                let it = Arc::new(Shared {
                    words: std::array::from_fn(|_| AtomicU32::new(0)),
                    cells: std::array::from_fn(|_| UnsafeCell::new(0)),
                });
                let woken = Arc::new(AtomicU32::new(0));
                let writers: Vec<_> = [1u32, 2]
                    .into_iter()
                    .map(|me| {
                        let (it, woken) = (it.clone(), woken.clone());
                        loom::thread::spawn(move || {
                            let pushed = push(&words(&it), me, 1, 2, 2, |at| {
                                // SAFETY: what the test is about.
                                it.cells[at as usize & 1].with_mut(|p| unsafe { *p = me });
                            });
                            if pushed == (Pushed::In { wake: true }) {
                                woken.fetch_add(1, Ordering::SeqCst);
                            }
                            pushed != Pushed::Full
                        })
                    })
                    .collect();
                let slept = fall_asleep(&words(&it));
                let pushed: u32 = writers.into_iter().map(|w| u32::from(w.join().unwrap())).sum();
                let mut got = Vec::new();
                while pop(&words(&it), 2, |at, _| {
                    // SAFETY: what the test is about.
                    got.push(it.cells[at as usize & 1].with(|p| unsafe { *p }));
                    Some(1)
                }) == Some(true)
                {}
                assert_eq!(got.len() as u32, pushed);
                got.dedup();
                assert_eq!(got.len() as u32, pushed, "one record came twice");
                if slept && pushed > 0 {
                    assert_eq!(woken.load(Ordering::SeqCst), 1, "asleep, and not woken exactly once");
                }
            });
        }
    }
}
