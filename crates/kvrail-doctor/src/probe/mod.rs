//! What two hosts see of each other: small verified transfers over every rail, and what their devices counted meanwhile.
//!
//! Who moves the bytes fills [`Facts`]; everything here is a pure function of them: [`judge`] says what is wrong, [`table`]
//! shows the rails.

mod facts;
mod judge;
mod rules;
mod table;

pub use facts::{Counted, End, Facts, Figures, Libfabric, Nic, Place, Rail, SCHEMA, Side, Wrong};
pub use judge::{far_below, judge};
pub use rules::RULES;
pub use table::table;
