//! The gate: how one side takes permission back from another that may be using it right now.
//!
//! Two words. The *permit* belongs to whoever grants: a region's generation, a job's number. The *busy* word belongs
//! to whoever uses: odd while it is inside. The user announces itself, then looks at the permit; the owner changes
//! the permit, then looks whether the user is inside. Each puts a sequentially consistent fence between its store
//! and its load, so at least one of them sees the other (Dekker): after [`revoke`], either the user finds the permit
//! gone and touches nothing, or the owner finds it inside and waits until it has left. That is how deregistration
//! promises that no peer's op touches the memory any more (KR-7), and how a cooperative copy is taken back.

use std::sync::atomic::Ordering;

use super::word::Word;

/// The user's side: goes in. The permit must be looked at after this and before anything is touched.
///
/// `turn` counts the visits; returns the number of this one.
#[inline]
pub(super) fn enter<W: Word>(busy: &W, turn: u32) -> u32 {
    let turn = turn.wrapping_add(1) | 1;
    busy.store(turn, Ordering::Relaxed);
    W::fence();
    turn
}

/// The user's side: looks at the permit, inside.
#[inline]
pub(super) fn permits<W: Word>(permit: &W, expected: u32) -> bool {
    permit.load(Ordering::Acquire) == expected
}

/// The user's side: goes out, after the last access.
#[inline]
pub(super) fn leave<W: Word>(busy: &W, turn: u32) {
    busy.store(turn.wrapping_add(1), Ordering::Release);
}

/// The owner's side: changes the permit. Then ask [`inside`] of each user.
pub(super) fn revoke<W: Word>(permit: &W, new: u32) {
    permit.store(new, Ordering::Relaxed);
    W::fence();
}

/// The owner's side: the visit that is going on, if any. A user that is seen outside, or in another visit than one
/// seen before, can no longer be acting on what was revoked.
pub(super) fn inside<W: Word>(busy: &W) -> Option<u32> {
    let turn = busy.load(Ordering::Acquire);
    (turn & 1 == 1).then_some(turn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU32;

    struct Shared {
        busy: AtomicU32,
        permit: AtomicU32,
        memory: UnsafeCell<u32>,
    }

    fn shared() -> Arc<Shared> {
        Arc::new(Shared { busy: AtomicU32::new(0), permit: AtomicU32::new(7), memory: UnsafeCell::new(0) })
    }

    /// Loom reports a conflicting access of `memory` as a failure.
    #[test]
    fn the_owner_never_reuses_memory_while_a_peer_is_inside() {
        loom::model(|| {
            let it = shared();
            let user = {
                let it = it.clone();
                loom::thread::spawn(move || {
                    let mut turn = 0;
                    for _ in 0..2 {
                        turn = enter(&it.busy, turn);
                        if permits(&it.permit, 7) {
                            // SAFETY: what the test is about.
                            it.memory.with_mut(|p| unsafe { *p = 1 });
                        }
                        leave(&it.busy, turn);
                        turn = turn.wrapping_add(1);
                    }
                })
            };
            revoke(&it.permit, 0);
            while inside(&it.busy).is_some() {
                loom::thread::yield_now();
            }
            // SAFETY: what the test is about.
            it.memory.with_mut(|p| unsafe { *p = 2 });
            user.join().unwrap();
        });
    }

    /// The canary: without the announcement the same test must fail.
    #[test]
    #[should_panic(expected = "Causality violation")]
    fn without_the_announcement_the_model_finds_the_race() {
        loom::model(|| {
            let it = shared();
            let user = {
                let it = it.clone();
                loom::thread::spawn(move || {
                    if permits(&it.permit, 7) {
                        // SAFETY: the race is the point.
                        it.memory.with_mut(|p| unsafe { *p = 1 });
                    }
                })
            };
            revoke(&it.permit, 0);
            while inside(&it.busy).is_some() {
                loom::thread::yield_now();
            }
            // SAFETY: the race is the point.
            it.memory.with_mut(|p| unsafe { *p = 2 });
            user.join().unwrap();
        });
    }
}
