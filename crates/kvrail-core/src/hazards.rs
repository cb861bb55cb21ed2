//! Defects that the simulator plants to prove that its checkers see them.
//!
//! The engine is generic over [`Hazards`]; production uses [`Correct`], in which every question is answered by a
//! constant and costs nothing. Each method is one defect that the field has shipped.

/// Which defects the engine has.
pub trait Hazards {
    /// A control message that arrives twice is handled twice.
    fn skip_control_dedup(&self) -> bool {
        false
    }

    /// Ops on a stalled route are written off and repeated elsewhere while the fabric may still deliver them, and
    /// failed ops are not waited out.
    fn skip_fence(&self) -> bool {
        false
    }

    /// A write is done when its completions are, although completion is local (KR-2).
    fn trust_local_completion(&self) -> bool {
        false
    }

    /// Transfer ids are cut to this mask (KR-3): the field's 16 bits, scaled to what a run can wrap.
    fn id_mask(&self) -> u64 {
        u64::MAX
    }

    /// A cancelled transfer ends at once, with ops in flight (KR-7).
    fn release_in_flight(&self) -> bool {
        false
    }
}

/// No defect that we know of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Correct;

impl Hazards for Correct {}
