//! KR-6 as bookkeeping: what was accepted, and how each op of it ended, once.

use std::collections::HashMap;

use kvrail_core::id::Token;
use kvrail_core::transport::OpError;

use crate::{Verdict, demand, violated};

/// How one accepted op stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    Open,
    Completed,
    Failed(OpError),
}

/// All ops that one node posted.
#[derive(Default, Debug)]
pub(crate) struct Ledger {
    accounts: HashMap<Token, Vec<Standing>>,
    open: usize,
}

impl Ledger {
    /// `count` more ops of `token` were accepted.
    pub(crate) fn accept(&mut self, token: Token, count: usize) {
        let account = self.accounts.entry(token).or_default();
        account.resize(account.len() + count, Standing::Open);
        self.open += count;
    }

    /// An event says how ops ended.
    pub(crate) fn resolve(&mut self, token: Token, first: u32, count: u32, how: Standing) -> Verdict {
        let Some(account) = self.accounts.get_mut(&token) else {
            violated!("an event names {token:?}, which was never posted");
        };
        demand!(count > 0, "an event of {token:?} resolves no op at all");
        for index in first..first.saturating_add(count) {
            let accepted = account.len();
            let Some(standing) = account.get_mut(index as usize) else {
                violated!("op {index} of {token:?} was resolved, but only {accepted} were accepted");
            };
            demand!(
                *standing == Standing::Open,
                "op {index} of {token:?} was resolved twice: {standing:?}, then {how:?}"
            );
            *standing = how;
            self.open -= 1;
        }
        Ok(())
    }

    /// Accepted and not resolved, all tokens together.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// How the ops of a token stand.
    pub(crate) fn of(&self, token: Token) -> &[Standing] {
        self.accounts.get(&token).map_or(&[], Vec::as_slice)
    }
}
