//! What ended and was not reported yet: each debt is entered once, when it is certain how it ended (KR-6).

use kvrail_core::id::Token;
use kvrail_core::transport::{Event, OpError};

/// Events until the next poll; runs of completions are one event.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    events: Vec<Event>,
}

impl Ledger {
    pub(super) fn completed(&mut self, token: Token, first: u32, count: u32) {
        if count == 0 {
            return;
        }
        match self.events.last_mut() {
            Some(Event::Completed { token: t, first: f, count: c }) if *t == token && *f + *c == first => {
                *c += count;
            }
            _ => self.events.push(Event::Completed { token, first, count }),
        }
    }

    pub(super) fn failed(&mut self, token: Token, first: u32, count: u32, error: OpError) {
        if count == 0 {
            return;
        }
        match self.events.last_mut() {
            Some(Event::Failed { token: t, first: f, count: c, error: e })
                if *t == token && *e == error && *f + *c == first =>
            {
                *c += count;
            }
            _ => self.events.push(Event::Failed { token, first, count, error }),
        }
    }

    pub(super) fn push(&mut self, event: Event) {
        self.events.push(event);
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    pub(super) fn drain_into(&mut self, events: &mut Vec<Event>) {
        events.append(&mut self.events);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvrail_core::id::Generation;

    #[test]
    fn runs_are_one_event_and_other_transfers_are_not_mixed_in() {
        let token = |slot| Token { slot, generation: Generation(1) };
        let mut ledger = Ledger::default();
        ledger.completed(token(1), 0, 4);
        ledger.completed(token(1), 4, 4);
        ledger.completed(token(2), 8, 1);
        ledger.failed(token(2), 9, 1, OpError::BadKey);
        ledger.failed(token(2), 10, 1, OpError::BadKey);
        ledger.failed(token(2), 11, 1, OpError::Fault(14));
        let mut events = Vec::new();
        ledger.drain_into(&mut events);
        assert_eq!(
            events,
            [
                Event::Completed { token: token(1), first: 0, count: 8 },
                Event::Completed { token: token(2), first: 8, count: 1 },
                Event::Failed { token: token(2), first: 9, count: 2, error: OpError::BadKey },
                Event::Failed { token: token(2), first: 11, count: 1, error: OpError::Fault(14) },
            ]
        );
    }
}
