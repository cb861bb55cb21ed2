//! The threads that move bytes: started when there is work that no idle one takes, ended with the backend.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::error::FileError;
use super::job::{Job, Work};

/// How long the end of a backend waits for system calls that do not return: a network filesystem may be gone.
const END_WAIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Pool {
    shared: Arc<Shared>,
    waiting_max: usize,
    /// Moves that wait or are under way.
    waiting: Arc<AtomicUsize>,
    process: u32,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    threads_max: usize,
    work: Condvar,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    /// Work that is not taken wholly: a thread takes a part of the first and puts it last.
    waiting: VecDeque<Arc<Work>>,
    threads: usize,
    idle: usize,
    closed: bool,
}

/// Room for the moves of a job; given back when dropped.
#[derive(Debug)]
pub(super) struct Room {
    waiting: Arc<AtomicUsize>,
    moves: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.moves, Ordering::Relaxed);
    }
}

impl Pool {
    pub(super) fn new(threads_max: usize, waiting_max: usize) -> Self {
        let shared =
            Shared { queue: Mutex::default(), threads_max, work: Condvar::new(), ended: Condvar::new() };
        Self { shared: Arc::new(shared), waiting_max, waiting: Arc::default(), process: std::process::id() }
    }

    pub(super) fn submit(&self, work: Arc<Work>) -> Result<Job, FileError> {
        if self.process != std::process::id() {
            return Err(FileError::Forked);
        }
        if work.moves() == 0 {
            return Ok(Job::new(work));
        }
        work.admit(self.room(work.moves())?);
        let mut queue = self.shared.queue.lock();
        queue.waiting.push_back(work.clone());
        if let Err(error) = self.shared.grow(&mut queue) {
            queue.waiting.pop_back();
            return Err(error);
        }
        drop(queue);
        self.shared.work.notify_one();
        Ok(Job::new(work))
    }

    fn room(&self, moves: usize) -> Result<Room, FileError> {
        let fits = |waiting: usize| waiting.checked_add(moves).filter(|sum| *sum <= self.waiting_max);
        match self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(Room { waiting: self.waiting.clone(), moves }),
            Err(waiting) => Err(FileError::Full { moves, waiting, waiting_max: self.waiting_max }),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // Forked: the threads, and perhaps a holder of the lock, are not here.
            return;
        }
        let mut queue = self.shared.queue.lock();
        queue.closed = true;
        for work in queue.waiting.drain(..) {
            work.stop();
        }
        self.shared.work.notify_all();
        let deadline = Instant::now() + END_WAIT;
        while queue.threads > 0 {
            if self.shared.ended.wait_until(&mut queue, deadline).timed_out() {
                tracing::warn!(
                    "{} threads of backend POSIX are still inside the system at its end",
                    queue.threads
                );
                return;
            }
        }
    }
}

impl Shared {
    /// Starts one more thread where there is more work than idle threads, which may all have been woken for it already. Where
    /// there is none and none can be had nothing would ever move.
    fn grow(self: &Arc<Self>, queue: &mut Queue) -> Result<(), FileError> {
        if queue.idle >= queue.waiting.len() || queue.threads >= self.threads_max {
            return Ok(());
        }
        let shared = self.clone();
        let thread = std::thread::Builder::new().name("kvrail-files".to_owned());
        match thread.spawn(move || shared.run()) {
            Ok(_) => queue.threads += 1,
            Err(source) if queue.threads == 0 => return Err(FileError::Thread { source }),
            Err(error) => tracing::debug!("cannot start one more thread for files: {error}"),
        }
        Ok(())
    }

    fn run(self: &Arc<Self>) {
        let mut memory = Vec::new();
        let mut queue = self.queue.lock();
        loop {
            let Some(work) = queue.waiting.pop_front() else {
                if queue.closed {
                    queue.threads -= 1;
                    self.ended.notify_all();
                    return;
                }
                queue.idle += 1;
                self.work.wait(&mut queue);
                queue.idle -= 1;
                continue;
            };
            // None when it was stopped.
            let Some(call) = work.take(&mut memory) else { continue };
            if call.more {
                queue.waiting.push_back(work.clone());
                self.work.notify_one();
                // This thread goes on; that it could have help is not worth an error.
                let _ = self.grow(&mut queue);
            }
            drop(queue);
            work.perform(&call, &mut memory);
            drop(work);
            queue = self.queue.lock();
        }
    }
}
