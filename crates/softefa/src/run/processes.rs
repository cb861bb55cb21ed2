//! Which processes belong to a fabric, read from /proc, and how they are ended.
//!
//! Two ways to belong: to descend from a process (orphans come back to their sub-reaper, so nothing slips out of that
//! tree), or to carry the fabric's directory in the environment (which also finds what has lost its ancestors). A
//! process is ended through a pidfd, opened before it is looked at again, so that a reused id is never hit.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use softefa_fabric::NODE_VARIABLE;

/// Longest environment of a process that is searched, bytes: the kernel's own limit for one.
const ENVIRONMENT_BYTES_MAX: u64 = 6 << 20;
/// Pause between two rounds of ending, so that the kernel gets to it.
const ROUND: Duration = Duration::from_millis(2);

/// Ids of all processes.
fn all() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| Pid::from_raw(e.file_name().to_str()?.parse().ok()?))
}

/// State letter and parent, from /proc/PID/stat. The name in parentheses may hold anything, also parentheses.
fn stat(pid: Pid) -> Option<(char, i32)> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let end = text.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(&text[end + 1..]).ok()?;
    let mut fields = rest.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Whether a process runs (a zombie does not).
pub(super) fn runs(pid: Pid) -> bool {
    stat(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

/// All descendants of a process that still run.
pub(super) fn descendants(root: Pid) -> Vec<Pid> {
    let mut children: HashMap<i32, Vec<(Pid, char)>> = HashMap::new();
    for pid in all() {
        if let Some((state, parent)) = stat(pid) {
            children.entry(parent).or_default().push((pid, state));
        }
    }
    let (mut found, mut next) = (Vec::new(), vec![root.as_raw_nonzero().get()]);
    let mut seen = HashSet::new();
    while let Some(parent) = next.pop() {
        for (pid, state) in children.get(&parent).into_iter().flatten() {
            // A tree that changes while it is read may show a process twice.
            if seen.insert(*pid) {
                next.push(pid.as_raw_nonzero().get());
                if !matches!(state, 'Z' | 'X') {
                    found.push(*pid);
                }
            }
        }
    }
    found
}

/// Processes of this user in whose environment the fabric's directory occurs, without the caller.
///
/// It is the value of one variable and part of several others, so that a command which clears some is still found.
pub(super) fn marked(directory: &Path) -> Vec<Pid> {
    let path = directory.as_os_str().as_bytes();
    let (me, uid) = (rustix::process::getpid(), rustix::process::geteuid().as_raw());
    let marked = |pid: &Pid| environment(*pid).is_some_and(|text| mentions(&text, path));
    all().filter(|pid| *pid != me && runs(*pid) && owner(*pid) == Some(uid)).filter(marked).collect()
}

/// Whether a path occurs in an environment, as a whole or with something below it.
fn mentions(text: &[u8], path: &[u8]) -> bool {
    let ends = |at: usize| matches!(text.get(at + path.len()), None | Some(b'/' | b':' | 0));
    let begins =
        |at: usize| matches!(at.checked_sub(1).map(|before| text[before]), None | Some(b'=' | b':' | 0));
    let found = |(at, window): (usize, &[u8])| window == path && begins(at) && ends(at);
    !path.is_empty() && text.windows(path.len()).enumerate().any(found)
}

fn owner(pid: Pid) -> Option<u32> {
    fs::metadata(format!("/proc/{pid}")).ok().map(|meta| meta.uid())
}

/// The environment with which a process was started.
fn environment(pid: Pid) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    let file = fs::File::open(format!("/proc/{pid}/environ")).ok()?;
    file.take(ENVIRONMENT_BYTES_MAX).read_to_end(&mut text).ok().map(|_| text)
}

/// Whether a process was started as one of this node.
pub(super) fn is_on_node(pid: Pid, node: u32) -> bool {
    let entry = format!("{NODE_VARIABLE}={node}").into_bytes();
    environment(pid).is_some_and(|text| text.split(|b| *b == 0).any(|e| e == entry))
}

/// A handle on a process that a reused id cannot replace.
pub(super) fn handle(pid: Pid) -> Option<OwnedFd> {
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Ends all processes that `select` names, and those that come while it looks, with SIGKILL; reaps what becomes this
/// process's child. `select` is asked again until it names nobody. Returns how many were ended.
///
/// # Errors
/// Those that still run at the deadline.
pub(super) fn end_all(deadline: Instant, select: impl Fn() -> Vec<Pid>) -> Result<usize, Vec<Pid>> {
    let mut ended = HashSet::new();
    loop {
        let chosen = select();
        if chosen.is_empty() {
            reap();
            return Ok(ended.len());
        }
        // Handles first, then the question again: whoever is named both times is who the handle stands for.
        let handles: Vec<_> = chosen.iter().filter_map(|pid| Some((*pid, handle(*pid)?))).collect();
        let again: HashSet<Pid> = select().into_iter().collect();
        for (pid, handle) in handles.iter().filter(|(pid, _)| again.contains(pid)) {
            // It may be gone by now: that is what is wanted.
            let _ = rustix::process::pidfd_send_signal(handle, Signal::KILL);
            ended.insert(*pid);
        }
        reap();
        if Instant::now() > deadline {
            return Err(chosen);
        }
        thread::sleep(ROUND);
    }
}

/// Reaps children that have ended.
fn reap() {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use softefa_fabric::DIR_VARIABLE;

    use super::*;

    fn sleeper(variables: &[(&str, &str)]) -> Child {
        Command::new("sleep").arg("30").envs(variables.iter().copied()).stdout(Stdio::null()).spawn().unwrap()
    }

    #[test]
    fn processes_are_found_by_their_environment_and_only_by_the_whole_path() {
        let unique = format!("/nowhere/softefa-test-{}", std::process::id());
        let mut mine = sleeper(&[(DIR_VARIABLE, &unique), (NODE_VARIABLE, "3")]);
        let mut other = sleeper(&[(DIR_VARIABLE, &format!("{unique}0"))]);
        let pid = Pid::from_child(&mine);
        // The environment is there as soon as the program was replaced, a moment after the fork.
        let deadline = Instant::now() + Duration::from_secs(5);
        while marked(Path::new(&unique)).is_empty() && Instant::now() < deadline {
            thread::sleep(ROUND);
        }
        assert_eq!(marked(Path::new(&unique)), [pid]);
        assert!(is_on_node(pid, 3) && !is_on_node(pid, 30) && runs(pid));
        assert!(descendants(rustix::process::getpid()).contains(&pid));
        for child in [&mut mine, &mut other] {
            child.kill().unwrap();
        }
        let _ = mine.wait();
        let _ = other.wait();
        assert!(!runs(pid));
    }

    #[test]
    fn a_path_is_found_in_lists_and_above_others_but_not_in_longer_names() {
        let is_in = |text: &str| mentions(text.as_bytes(), b"/r/a");
        assert!(is_in("X=/r/a\0") && is_in("X=/x:/r/a/lib:/y\0") && is_in("X=/r/a"));
        assert!(!is_in("X=/r/ab\0") && !is_in("X=/q/r/a\0") && !is_in("") && !is_in("/r/"));
    }

    #[test]
    fn the_parent_is_read_behind_any_name() {
        let (state, parent) = stat(rustix::process::getpid()).unwrap();
        assert!(matches!(state, 'R' | 'S'), "{state}");
        assert_eq!(parent, std::os::unix::process::parent_id() as i32);
    }
}
