//! What a figure means: its ceilings, and the verdicts that figure and ceilings give together. Pure functions of the
//! document.

mod ceilings;
mod verdicts;

pub(crate) use verdicts::{carried_on_one_host, number, shape, verdict};

use crate::Document;

impl Document {
    /// Computes from the rows what follows from them, anew: ratios, ceilings, and the verdicts that need no expectation.
    pub fn judge(&mut self) {
        self.ratios = crate::ratios(&self.results);
        let judged: Vec<_> = self
            .results
            .iter()
            .map(|row| {
                let ceilings = ceilings::of_row(self, row);
                let verdicts = verdicts::of_row(self, row, &ceilings);
                (ceilings, verdicts)
            })
            .collect();
        for (row, (ceilings, verdicts)) in self.results.iter_mut().zip(judged) {
            (row.ceilings, row.verdicts) = (ceilings, verdicts);
        }
    }
}
