//! Who may touch which bytes: every range that the fabric reads or writes must belong to a live transfer, at the place
//! that the transfer's plan says.
//!
//! The driver stakes a claim for a transfer's targets and sources before it posts, and gives it up the moment the
//! application owns the range again. The fabric asks for every packet. So a stray write, a write to a wrong offset, a late
//! write into a recycled buffer (KR-7) and a late read of one are seen at the packet that does it, not by luck later.

use kvrail_core::time::Time;

use crate::violation::Checker;

/// Bytes that move from one place to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// First address at the source.
    pub source: u64,
    /// First address at the target.
    pub target: u64,
    /// Bytes.
    pub len: u64,
}

/// One transfer's right to move its bytes.
#[derive(Clone, Debug)]
struct Claim {
    /// The driver's number of the transfer.
    transfer: u64,
    initiator: (usize, u64),
    source_node: usize,
    target_node: usize,
    since: Time,
    /// Sorted by target address.
    spans: Vec<Span>,
    target_open: bool,
    source_open: bool,
}

/// What the fabric does with bytes; the question it asks.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Who posted the op: node and incarnation.
    pub initiator: (usize, u64),
    /// When the op was posted.
    pub posted: Time,
    /// Where bytes are read.
    pub source_node: usize,
    /// Address there.
    pub source: u64,
    /// Where bytes land.
    pub target_node: usize,
    /// Address there.
    pub target: u64,
    /// Bytes.
    pub len: u64,
}

/// Why an access is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trespass {
    /// Which rule it breaks.
    pub checker: Checker,
    /// With numbers.
    pub what: String,
}

/// All claims, live and given up.
#[derive(Clone, Debug, Default)]
pub struct Territory {
    claims: Vec<Claim>,
    enabled: bool,
}

impl Territory {
    /// From now on every access must be covered by a claim.
    pub fn enable(&mut self) {
        self.enabled = true;
    }

    /// Stakes a claim for a transfer that is about to be posted.
    pub fn claim(
        &mut self,
        transfer: u64,
        initiator: (usize, u64),
        (source_node, target_node): (usize, usize),
        since: Time,
        mut spans: Vec<Span>,
    ) {
        spans.sort_unstable_by_key(|span| span.target);
        // Ranges that go on at both ends may move as one op.
        spans.dedup_by(|next, span| {
            let goes_on = next.target == span.target + span.len && next.source == span.source + span.len;
            if goes_on {
                span.len += next.len;
            }
            goes_on
        });
        let (target_open, source_open) = (true, true);
        self.claims.push(Claim {
            transfer,
            initiator,
            source_node,
            target_node,
            since,
            spans,
            target_open,
            source_open,
        });
    }

    /// The targets of a transfer belong to the application again: nothing may land from now on.
    pub fn release_target(&mut self, transfer: u64) {
        for claim in self.claims.iter_mut().filter(|claim| claim.transfer == transfer) {
            claim.target_open = false;
        }
    }

    /// The sources of a transfer belong to the application again: nothing may be read from now on.
    pub fn release_source(&mut self, transfer: u64) {
        for claim in self.claims.iter_mut().filter(|claim| claim.transfer == transfer) {
            claim.source_open = false;
        }
    }

    /// A node took `len` bytes at `base` away from a transfer, whose other ranges it leaves alone.
    pub fn retire(&mut self, transfer: u64, node: usize, base: u64, len: u64) {
        for claim in self.claims.iter_mut().filter(|claim| claim.transfer == transfer) {
            let is_target = claim.target_node == node;
            claim.spans.retain(|span| {
                let at = if is_target { span.target } else { span.source };
                !(base..base + len).contains(&at)
            });
        }
    }

    /// Drops claims that are given up on both ends and older than `before`: for long runs.
    pub fn prune(&mut self, before: Time) {
        self.claims.retain(|claim| claim.target_open || claim.source_open || claim.since >= before);
    }

    /// Says whether an access is covered by a live claim.
    ///
    /// # Errors
    /// The rule it breaks.
    pub fn check(&self, access: &Access) -> Result<(), Trespass> {
        if !self.enabled {
            return Ok(());
        }
        let mut late = None;
        let mut misplaced = None;
        for claim in self.claims.iter().rev() {
            if claim.target_node != access.target_node || claim.source_node != access.source_node {
                continue;
            }
            let after = claim.spans.partition_point(|span| span.target <= access.target);
            let Some(span) = after.checked_sub(1).map(|i| claim.spans[i]) else { continue };
            if access.target >= span.target + span.len {
                continue;
            }
            // The range has (or had) an owner. Is it this op's transfer?
            if claim.initiator != access.initiator || access.posted < claim.since {
                late.get_or_insert_with(|| Trespass {
                    checker: Checker::LateWrite,
                    what: format!(
                        "{} bytes of an op that node {} posted at {} landed at {:#x} of node {}, which belongs to transfer \
                         {} since {}",
                        access.len,
                        access.initiator.0,
                        access.posted,
                        access.target,
                        access.target_node,
                        claim.transfer,
                        claim.since
                    ),
                });
                continue;
            }
            let delta = access.target - span.target;
            if delta + access.len > span.len || span.source + delta != access.source {
                misplaced.get_or_insert_with(|| Trespass {
                    checker: Checker::Territory,
                    what: format!(
                        "{} bytes from {:#x} of node {} landed at {:#x} of node {}; transfer {} maps that place to {:#x} \
                         for {} bytes",
                        access.len,
                        access.source,
                        access.source_node,
                        access.target,
                        access.target_node,
                        claim.transfer,
                        span.source + delta,
                        span.len - delta
                    ),
                });
                continue;
            }
            if !claim.target_open {
                late.get_or_insert_with(|| Trespass {
                    checker: Checker::LateWrite,
                    what: format!(
                        "{} bytes landed at {:#x} of node {} after transfer {} had ended there",
                        access.len, access.target, access.target_node, claim.transfer
                    ),
                });
                continue;
            }
            if !claim.source_open {
                return Err(Trespass {
                    checker: Checker::LateRead,
                    what: format!(
                        "{} bytes were read at {:#x} of node {} after transfer {} had ended there",
                        access.len, access.source, access.source_node, claim.transfer
                    ),
                });
            }
            return Ok(());
        }
        Err(late.or(misplaced).unwrap_or_else(|| Trespass {
            checker: Checker::Territory,
            what: format!(
                "{} bytes landed at {:#x} of node {}, which no transfer ever had as target from node {}",
                access.len, access.target, access.target_node, access.source_node
            ),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: (usize, u64) = (0, 1);

    fn territory() -> Territory {
        let mut t = Territory::default();
        t.enable();
        t.claim(1, A, (0, 1), Time(10), vec![Span { source: 0x100, target: 0x900, len: 64 }]);
        t
    }

    fn access(source: u64, target: u64, len: u64) -> Access {
        Access { initiator: A, posted: Time(11), source_node: 0, source, target_node: 1, target, len }
    }

    fn checker(result: Result<(), Trespass>) -> Option<Checker> {
        result.err().map(|trespass| trespass.checker)
    }

    #[test]
    fn bytes_that_follow_the_plan_are_welcome() {
        assert_eq!(territory().check(&access(0x110, 0x910, 16)), Ok(()));
    }

    #[test]
    fn a_wrong_offset_is_seen_at_once() {
        let t = territory();
        assert_eq!(checker(t.check(&access(0x100, 0x910, 16))), Some(Checker::Territory));
        assert_eq!(checker(t.check(&access(0x130, 0x930, 17))), Some(Checker::Territory));
        assert_eq!(checker(t.check(&access(0x100, 0x800, 16))), Some(Checker::Territory));
    }

    #[test]
    fn a_write_after_the_end_is_late_also_when_the_range_has_a_new_owner() {
        let mut t = territory();
        t.release_target(1);
        assert_eq!(checker(t.check(&access(0x110, 0x910, 16))), Some(Checker::LateWrite));
        t.claim(2, A, (0, 1), Time(20), vec![Span { source: 0x100, target: 0x900, len: 64 }]);
        assert_eq!(checker(t.check(&access(0x110, 0x910, 16))), Some(Checker::LateWrite));
        assert_eq!(t.check(&Access { posted: Time(21), ..access(0x110, 0x910, 16) }), Ok(()));
    }

    #[test]
    fn a_read_after_the_end_is_late() {
        let mut t = territory();
        t.release_source(1);
        assert_eq!(checker(t.check(&access(0x110, 0x910, 16))), Some(Checker::LateRead));
    }
}
