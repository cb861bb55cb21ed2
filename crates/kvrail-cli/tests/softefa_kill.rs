//! Black box: whoever is killed, a fabric leaves no process and no file.

mod fabric;

use fabric::{Place, signal, until};

/// A command that hides from every easy way to be found: a daemon in a session of its own, its parent gone, without the
/// fabric in its environment; and a child that ignores what can be ignored.
fn stubborn(place: &Place) -> String {
    let mark = &place.mark;
    format!(
        "env -u SOFTEFA_DIR setsid sh -c 'sleep {mark} & sleep {mark}' & trap '' INT TERM HUP; sleep {mark} & wait; wait"
    )
}

/// As many processes as `stubborn` starts on each of two nodes.
fn all_run(place: &Place) {
    until("all processes run", || place.processes().len() >= 2 * 4);
}

#[test]
fn ctrl_c_ends_the_commands_and_leaves_nothing() {
    let place = Place::new();
    let run = place.run_ready(&[], 2, &format!("sleep {}", place.mark));
    signal(-run.pid(), "INT");
    let ended = run.end();
    ended.exits(2);
    assert!(ended.stderr.contains("ended by SIGINT"), "{}", ended.stderr);
    place.is_empty();
}

#[test]
fn sigterm_and_sighup_reach_the_commands_which_may_end_in_order() {
    for name in ["TERM", "HUP"] {
        let place = Place::new();
        let script = format!("trap 'echo in order; exit 0' {name}; @ready; sleep {} & wait", place.mark);
        let run = place.run_ready(&[], 2, &script);
        signal(run.pid(), name);
        let ended = run.end();
        ended.exits(2);
        assert_eq!(ended.stdout.matches("in order").count(), 2, "{}", ended.stdout);
        place.is_empty();
    }
}

#[test]
fn a_second_ctrl_c_kills_what_ignores_the_first() {
    let place = Place::new();
    let run = place.run_ready(&[], 2, &stubborn(&place));
    all_run(&place);
    signal(run.pid(), "INT");
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(!place.processes().is_empty());
    signal(run.pid(), "INT");
    run.end().exits(2);
    place.is_empty();
}

#[test]
fn what_a_command_leaves_running_ends_with_the_fabric() {
    let place = Place::new();
    let mark = &place.mark;
    let script = format!("env -u SOFTEFA_DIR setsid sleep {mark} & sleep {mark} & exit 0");
    let run = place.run_ready(&[], 2, &script);
    run.end().exits(0);
    place.is_empty();
}

#[test]
fn a_killed_front_leaves_nothing() {
    let place = Place::new();
    let run = place.run_ready(&[], 2, &stubborn(&place));
    all_run(&place);
    signal(run.pid(), "KILL");
    until("the directory is gone", || place.directories().is_empty());
    place.is_empty();
}

#[test]
fn a_killed_keeper_leaves_nothing_and_the_front_says_so() {
    let place = Place::new();
    let run = place.run_ready(&[], 2, &stubborn(&place));
    all_run(&place);
    signal(place.keeper(), "KILL");
    let ended = run.end();
    ended.exits(2);
    assert!(ended.stderr.contains("the keeper of the fabric was killed"), "{}", ended.stderr);
    place.is_empty();
}

#[test]
fn what_front_and_keeper_leave_when_both_are_killed_the_next_command_removes() {
    for next in [&["run", "--libfabric", "none", "--", "true"][..], &["status"]] {
        let place = Place::new();
        // In the background and without the keeper as parent: only the environment tells where it belongs.
        let script = format!("setsid sleep {0} & sleep {0}", place.mark);
        let run = place.run_ready(&[], 2, &script);
        until("the daemons run", || place.processes().len() >= 2 * 3);
        let keeper = place.keeper();
        // Stopped first, so that neither sees the other's end.
        for pid in [keeper, run.pid()] {
            signal(pid, "STOP");
        }
        for pid in [keeper, run.pid()] {
            signal(pid, "KILL");
        }
        drop(run);
        until("only what the commands started is left", || place.processes().len() == 4);
        assert_eq!(place.directories().len(), 1);
        let ended = place.softefa(next);
        ended.exits(0);
        assert!(ended.stderr.contains("the killed fabric"), "{}", ended.stderr);
        assert!(ended.stderr.contains("ended 4 processes"), "{}", ended.stderr);
        place.is_empty();
    }
}

#[test]
fn a_hung_command_ends_at_the_deadline() {
    let place = Place::new();
    let run = place.run_ready(&["--deadline", "300ms"], 2, &stubborn(&place));
    let ended = run.end();
    ended.exits(1);
    assert!(ended.stderr.contains("still running after 300 ms"), "{}", ended.stderr);
    place.is_empty();
}

#[test]
fn a_shell_that_joined_ends_with_the_fabric() {
    let place = Place::new();
    let run = place.run_ready(&[], 1, &format!("sleep {}", place.mark));
    let guest = place.start(&["shell", "--", "sh", "-c", &format!("sleep {} & wait", place.mark)]);
    until("the guest runs", || place.processes().len() >= 4);
    signal(run.pid(), "INT");
    run.end().exits(2);
    assert!(!guest.end().status.success());
    place.is_empty();
}
