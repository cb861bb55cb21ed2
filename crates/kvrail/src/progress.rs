//! Progress: who drives the lanes, and how those who wait sleep without burning a core.
//!
//! With [`Progress::Thread`] a thread of the agent sleeps on the fabrics and drives whatever arrives. With
//! [`Progress::Inline`] every call drives, and of the callers that wait one (the leader) sleeps on the fabrics for
//! all. In both modes a waiting caller first drives the lanes itself for a short while: when the answer is near, no
//! thread switch stands in between.

use std::cell::OnceCell;
use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Wake, Waker};
use std::thread::Thread;

use kvrail_core::time::Time;

use crate::core::Core;

/// Who makes progress.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Progress {
    /// A background thread of the agent; it sleeps while nothing moves. Peers' requests are answered, notifications
    /// arrive and futures complete without any call.
    #[default]
    Thread,
    /// Every call into the agent, and nothing between calls: the lowest latency for a caller that has a loop of its
    /// own. Deadlines are judged, peers answered and futures completed only while somebody calls.
    Inline,
}

/// Rounds that one turn may take while others want the token.
const ROUNDS_MAX: usize = 16;

/// Wakes a thread that is parked.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

/// Wakes whoever sleeps on the fabrics.
pub(crate) struct Kick(pub(crate) Arc<Core>);

impl Wake for Kick {
    fn wake(self: Arc<Self>) {
        self.0.sleeper.kick();
    }
}

thread_local! {
    static UNPARK: OnceCell<Waker> = const { OnceCell::new() };
}

fn with_unpark<T>(body: impl FnOnce(&Waker) -> T) -> T {
    UNPARK.with(|waker| body(waker.get_or_init(|| Arc::new(Unpark(std::thread::current())).into())))
}

/// What a blocked caller waits for.
pub(crate) trait Awaited {
    /// What the wait is for.
    type Output;
    /// It, when it is there.
    fn ready(&mut self) -> Option<Self::Output>;
    /// Registers a waker to be woken when it may be there; looked at once more afterwards.
    fn register(&mut self, waker: &Waker);
}

impl Core {
    /// Drives each lane whose token is free once. True: something happened.
    pub(crate) fn drive(&self, now: Time) -> bool {
        let mut moved = false;
        for lane in &self.lanes {
            if let Some(mut turn) = lane.try_turn(self) {
                moved |= turn.drive(now);
            }
        }
        self.bury_if_due(now);
        moved
    }

    #[inline]
    fn bury_if_due(&self, now: Time) {
        if self.graveyard.due().is_some_and(|due| now >= due) {
            self.bury(now);
        }
    }

    /// Blocks until `awaited` is ready or the deadline has passed.
    pub(crate) fn wait_until<A: Awaited>(
        self: &Arc<Self>,
        deadline: Time,
        mut awaited: A,
    ) -> Option<A::Output> {
        if let Some(output) = awaited.ready() {
            return Some(output);
        }
        if let Some(output) = self.spin(deadline, &mut awaited) {
            return Some(output);
        }
        loop {
            let done = match self.progress {
                Progress::Thread => self.follow(deadline, &mut awaited),
                Progress::Inline => match self.leader.try_lock() {
                    Some(role) => {
                        let done = self.lead(deadline, &mut awaited);
                        drop(role);
                        self.leader_left.wake();
                        done
                    }
                    None => self.follow(deadline, &mut awaited),
                },
            };
            if done.is_some() {
                return done;
            }
            if self.clock.now() >= deadline {
                return awaited.ready();
            }
        }
    }

    /// Drives for a short while: until nothing has happened for the spin time.
    fn spin<A: Awaited>(&self, deadline: Time, awaited: &mut A) -> Option<A::Output> {
        let mut until = None;
        loop {
            let now = self.clock.now();
            let moved = self.drive(now);
            if let Some(output) = awaited.ready() {
                return Some(output);
            }
            if moved || until.is_none() {
                until = Some(now + self.spin_time);
            }
            if now >= deadline || until.is_some_and(|until| now >= until) {
                return None;
            }
            spin_loop();
        }
    }

    /// Sleeps until somebody else makes it ready, or (inline) the leader leaves.
    fn follow<A: Awaited>(&self, deadline: Time, awaited: &mut A) -> Option<A::Output> {
        with_unpark(|waker| {
            awaited.register(waker);
            if self.progress == Progress::Inline {
                self.leader_left.register(waker);
                if !self.leader.is_locked() {
                    return awaited.ready();
                }
            }
            if let Some(output) = awaited.ready() {
                return Some(output);
            }
            let now = self.clock.now();
            if now < deadline {
                match deadline {
                    Time::NEVER => std::thread::park(),
                    _ => std::thread::park_timeout(deadline.since(now)),
                }
            }
            awaited.ready()
        })
    }

    /// Sleeps on the fabrics for all that wait, and drives what arrives, until the own wait is over.
    fn lead<A: Awaited>(self: &Arc<Self>, deadline: Time, awaited: &mut A) -> Option<A::Output> {
        let kick = Waker::from(Arc::new(Kick(self.clone())));
        loop {
            awaited.register(&kick);
            self.rest(deadline, || awaited.ready().is_none());
            let now = self.clock.now();
            while self.drive(self.clock.now()) {}
            if let Some(output) = awaited.ready() {
                return Some(output);
            }
            if now >= deadline {
                return None;
            }
        }
    }

    /// Sleeps until a fabric or a timer wants attention, a kick, or `deadline`; not at all when a look after the
    /// announcement finds work, or `tired` says no.
    fn rest(&self, deadline: Time, mut tired: impl FnMut() -> bool) {
        self.sleeper.announce();
        let mut until = deadline;
        let mut work = !tired();
        for lane in &self.lanes {
            let mut turn = lane.turn(self);
            turn.disarm();
            work |= turn.drive(self.clock.now());
            match turn.arm(deadline) {
                Some(time) => until = until.min(time),
                None => work = true,
            }
            turn.stay_armed();
        }
        if let Some(due) = self.graveyard.due() {
            until = until.min(due);
        }
        let now = self.clock.now();
        if work || now >= until {
            self.sleeper.stay_awake();
        } else {
            let timeout = (until != Time::NEVER).then(|| until.since(now));
            self.sleeper.sleep(timeout);
        }
        for lane in &self.lanes {
            lane.turn(self).disarm();
        }
    }

    /// The progress thread's life.
    pub(crate) fn run(&self) {
        let mut spin_until = Time::ZERO;
        while !self.stop.load(Ordering::Acquire) {
            let mut moved = false;
            for lane in &self.lanes {
                let mut turn = lane.turn(self);
                for _ in 0..ROUNDS_MAX {
                    let again = turn.drive(self.clock.now());
                    moved |= again;
                    // Those who were woken run at once, and callers who want the token get it.
                    turn.yield_token();
                    if !again {
                        break;
                    }
                }
            }
            let now = self.clock.now();
            self.bury_if_due(now);
            if moved {
                spin_until = now + self.spin_time;
            } else if now >= spin_until {
                self.rest(Time::NEVER, || !self.stop.load(Ordering::Acquire));
            } else {
                spin_loop();
            }
        }
    }
}
