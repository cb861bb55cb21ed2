//! What holds for every group, whatever it meets over: each test runs over the embedded service and over a real etcd.

mod common;

use std::time::{Duration, Instant};

use common::{LONG, Place, Process};
use kvrail_rendezvous::limits::VALUE_BYTES_MAX;
use kvrail_rendezvous::{Group, GroupError, JoinError, Loss};

macro_rules! over_both {
    ($($test:ident)*) => {
        mod embedded { $(#[test] fn $test() { super::over(super::Place::embedded(concat!("embedded::", stringify!($test))), super::$test); })* }
        mod etcd { $(#[test] fn $test() { super::over(super::Place::etcd(concat!("etcd::", stringify!($test))), super::$test); })* }
    };
}

over_both! {
    eight_members_that_start_in_any_order_meet
    ranks_are_taken_first_come_first_served
    a_member_too_many_is_told_who_has_the_seats
    who_is_missing_is_named_at_the_deadline
    two_processes_of_one_rank_are_both_named
    members_that_expect_groups_of_different_sizes_are_told
    a_value_is_published_once_and_outlives_its_member
    a_wait_for_one_who_left_ends_at_once
    a_wait_for_one_who_is_alive_ends_at_its_deadline_and_can_be_repeated
    one_who_gives_up_tells_the_others_why
    one_who_is_dropped_does_not_leave_in_silence
    what_is_published_is_bounded
    a_killed_member_is_named_in_whatever_the_others_wait_for
    a_run_that_was_killed_anywhere_does_not_hurt_the_next_of_its_name
    one_killed_while_joining_is_replaced_by_its_successor
}

fn over(place: Option<Place>, test: fn(&Place)) {
    if let Some(place) = place {
        test(&place);
    }
}

#[test]
#[ignore = "a member in a process of its own; other tests start it"]
fn participant() {
    common::participate();
}

fn eight_members_that_start_in_any_order_meet(place: &Place) {
    let order = [5, 0, 7, 3, 1, 6, 2, 4];
    std::thread::scope(|scope| {
        for (i, rank) in order.into_iter().enumerate() {
            let config = place.config(8, rank);
            std::thread::sleep(Duration::from_millis(10 * (i as u64 % 3)));
            scope.spawn(move || {
                let group = Group::join(&config).expect("all join");
                assert_eq!((group.rank(), group.world_size()), (rank, 8));
                let ranks: Vec<u32> = group.members().iter().map(|member| member.rank).collect();
                assert_eq!(ranks, (0..8).collect::<Vec<_>>());
                // More rounds than there would be keys left, were they kept.
                for round in 0..40_u32 {
                    let mine = [rank, round].map(u32::to_le_bytes).concat();
                    let all = group.gather("addresses", &mine, LONG).expect("all give");
                    for (from, value) in (0..).zip(&all) {
                        assert_eq!(**value, *[from, round].map(u32::to_le_bytes).concat());
                    }
                }
                let root = group.broadcast("plan", 6, &[rank as u8], LONG).expect("rank 6 gives");
                assert_eq!(*root, [6]);
                group.barrier("end", LONG).expect("all come");
                group.leave(LONG).expect("the service is told");
            });
        }
    });
}

fn ranks_are_taken_first_come_first_served(place: &Place) {
    let mut ranks: Vec<u32> = std::thread::scope(|scope| {
        let join = || {
            let group = Group::join(&place.config(8, None)).expect("there are seats for all");
            group.barrier("all", LONG).expect("all come");
            let rank = group.rank();
            group.leave(LONG).expect("the service is told");
            rank
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(join)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no member panics")).collect()
    });
    ranks.sort_unstable();
    assert_eq!(ranks, (0..8).collect::<Vec<_>>());
}

fn a_member_too_many_is_told_who_has_the_seats(place: &Place) {
    let errors = place.members(2, |rank, group| {
        let error =
            (rank == 1).then(|| Group::join(&place.config(2, None)).expect_err("both seats are held"));
        group.barrier("end", LONG).expect("the group is unharmed");
        group.leave(LONG).expect("the service is told");
        error
    });
    let error = errors.into_iter().flatten().next().expect("one was too many");
    assert!(matches!(&error, JoinError::Full { holders, .. } if holders.len() == 2), "{error}");
    assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
}

fn who_is_missing_is_named_at_the_deadline(place: &Place) {
    let errors: Vec<JoinError> = std::thread::scope(|scope| {
        let threads: Vec<_> = [0, 1, 2, 4, 5, 6, 7]
            .map(|rank| {
                let mut config = place.config(8, rank);
                config.deadline = Duration::from_millis(1500);
                scope.spawn(move || Group::join(&config).expect_err("rank 3 never comes"))
            })
            .into_iter()
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no member panics")).collect()
    });
    // The first whose time is up sees all others; the last may see them leave.
    let best = errors.iter().find(|error| matches!(error, JoinError::Missing { missing, there, .. } if missing == &[3] && there.len() == 7));
    let text = best.unwrap_or_else(|| panic!("{errors:?}")).to_string();
    let begins =
        format!("rank 3 of 8 has not joined run {} within 1.5s; 7 are there: rank 0 (", place.run_id);
    assert!(text.starts_with(&begins), "{text}");
}

fn two_processes_of_one_rank_are_both_named(place: &Place) {
    let mut holder = Process::start(place, 2, 1, "joining");
    holder.await_line("joining");
    let mut config = place.config(2, 0);
    let group = std::thread::scope(|scope| {
        let first = scope.spawn(|| Group::join(&config));
        first.join().expect("no panic").expect("two make a group")
    });
    holder.await_line("joined");
    config.rank = Some(1);
    let began = Instant::now();
    let error = Group::join(&config).expect_err("rank 1 is held");
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "a living holder answers at once: {:?}",
        began.elapsed()
    );
    assert!(matches!(error, JoinError::RankTaken { .. }), "{error}");
    let text = error.to_string();
    for pid in [holder.pid(), std::process::id()] {
        assert!(text.contains(&format!("pid {pid}")), "{text}");
    }
    group.check().expect("the group is unharmed");
    holder.kill();
}

fn members_that_expect_groups_of_different_sizes_are_told(place: &Place) {
    std::thread::scope(|scope| {
        let mut patient = place.config(3, 0);
        patient.deadline = Duration::from_secs(3);
        let first = scope.spawn(move || Group::join(&patient).expect_err("nobody else expects three"));
        std::thread::sleep(Duration::from_millis(300));
        let error = Group::join(&place.config(2, 1)).expect_err("the sizes differ");
        assert!(matches!(error, JoinError::WorldSizeDiffers { theirs: 3, ours: 2, .. }), "{error}");
        first.join().expect("no panic");
    });
}

fn a_value_is_published_once_and_outlives_its_member(place: &Place) {
    place.members(3, |rank, group| {
        if rank == 1 {
            group.publish("address", b"10.0.0.7:5555", LONG).expect("it is taken");
            let again = group.publish("address", b"other", LONG).expect_err("it is there");
            assert!(matches!(again, GroupError::AlreadyPublished { .. }), "{again}");
            group.leave(LONG).expect("the service is told");
            return;
        }
        let value = group.await_value(1, "address", LONG).expect("rank 1 publishes");
        assert_eq!(*value, *b"10.0.0.7:5555");
        // Long after its member has gone.
        std::thread::sleep(Duration::from_millis(300));
        assert!(group.await_value(1, "address", LONG).is_ok());
        assert!(matches!(group.await_value(3, "address", LONG), Err(GroupError::NoSuchRank { rank: 3, .. })));
        assert!(matches!(group.publish("a/b", b"", LONG), Err(GroupError::Name(_))));
        group.leave(LONG).expect("the service is told");
    });
}

fn a_wait_for_one_who_left_ends_at_once(place: &Place) {
    place.members(2, |rank, group| {
        if rank == 0 {
            let began = Instant::now();
            let error = group.await_value(1, "never", LONG).expect_err("rank 1 leaves");
            assert!(matches!(&error, GroupError::MemberLeft { member, .. } if member.rank == 1), "{error}");
            let error = group.barrier("never", LONG).expect_err("rank 1 leaves");
            assert!(matches!(&error, GroupError::MemberLeft { .. }), "{error}");
            assert!(began.elapsed() < Duration::from_secs(5));
            group.check().expect("to leave in order is no failure");
        } else {
            std::thread::sleep(Duration::from_millis(100));
        }
        group.leave(LONG).expect("the service is told");
    });
}

fn a_wait_for_one_who_is_alive_ends_at_its_deadline_and_can_be_repeated(place: &Place) {
    let short = Duration::from_secs(1);
    place.members(2, |rank, group| {
        if rank == 0 {
            let error = group.await_value(1, "late", short).expect_err("it is not there yet");
            assert!(error.to_string().starts_with("rank 1 ("), "{error}");
            assert!(matches!(error, GroupError::NotPublished { .. }), "{error}");
            let error = group.barrier("late", short).expect_err("rank 1 is late");
            assert!(
                matches!(&error, GroupError::NotArrived { missing, .. } if missing[0].rank == 1),
                "{error}"
            );
            let begins =
                format!("rank 1 of 2 has not come to barrier \"late\" of run {} within 1.", place.run_id);
            assert!(error.to_string().starts_with(&begins), "{error}");
        } else {
            std::thread::sleep(short * 5 / 2);
        }
        group.barrier("late", LONG).expect("the same round goes on");
        group.barrier("late", LONG).expect("and the next one is the next for both");
        group.leave(LONG).expect("the service is told");
    });
}

fn one_who_gives_up_tells_the_others_why(place: &Place) {
    place.members(3, |rank, group| {
        if rank == 2 {
            return group.give_up("the rail rdmap0s0 is\ngone").expect("the service is told");
        }
        let error = group.barrier("never", LONG).expect_err("rank 2 gives up");
        assert!(matches!(&error, GroupError::MemberLost { how: Loss::GaveUp { .. }, .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("gave up: the rail rdmap0s0 is gone; this member waited for barrier \"never\""),
            "{text}"
        );
    });
}

fn one_who_is_dropped_does_not_leave_in_silence(place: &Place) {
    place.members(2, |rank, group| {
        if rank == 0 {
            let error = group.barrier("never", LONG).expect_err("rank 1 is gone");
            assert_eq!(error.member().map(|member| member.rank), Some(1), "{error}");
            assert!(error.to_string().contains("without leaving"), "{error}");
        }
    });
}

fn what_is_published_is_bounded(place: &Place) {
    place.members(1, |_, group| {
        let error = group.publish("long", &vec![0; VALUE_BYTES_MAX + 1], LONG).expect_err("it is too long");
        assert!(matches!(error, GroupError::ValueTooLong { .. }), "{error}");
        let longest = vec![7; VALUE_BYTES_MAX];
        for i in 0..16 {
            group.publish(&format!("long-{i}"), &longest, LONG).expect("it is within the limit");
        }
        let error = group.publish("long-16", &longest, LONG).expect_err("it is too much");
        assert!(matches!(error, GroupError::TooMuch { .. }), "{error}");
        assert_eq!(*group.await_value(0, "long-15", LONG).expect("it is there"), *longest);
        group.leave(LONG).expect("the service is told");
    });
}

fn a_killed_member_is_named_in_whatever_the_others_wait_for(place: &Place) {
    std::thread::scope(|scope| {
        type Wait = fn(&Group) -> Result<(), GroupError>;
        let waits: [Wait; 3] = [
            |group| group.barrier("never", LONG),
            |group| group.await_value(3, "never", LONG).map(|_| ()),
            // Waiting for one who lives, while another died.
            |group| group.await_value(0, "never", LONG).map(|_| ()),
        ];
        let threads: Vec<_> = (0..)
            .zip(waits)
            .map(|(rank, wait)| {
                let config = place.config(4, rank);
                scope.spawn(move || {
                    let group = Group::join(&config).expect("all join");
                    let error = wait(&group).expect_err("rank 3 is killed");
                    let when = Instant::now();
                    assert!(group.check().is_err());
                    // Who hosts an embedded service tells the others by leaving last.
                    group.leave(LONG).expect("the service is told");
                    (error, when)
                })
            })
            .collect();
        let mut process = Process::start(place, 4, 3, "joined");
        process.await_line("joined");
        let pid = process.pid();
        std::thread::sleep(Duration::from_millis(100));
        let killed = Instant::now();
        process.kill();
        for thread in threads {
            let (error, when) = thread.join().expect("no member panics");
            let GroupError::MemberLost { member, how, .. } = &error else { panic!("{error}") };
            assert_eq!((member.rank, member.pid, how), (3, pid, &Loss::Vanished), "{error}");
            assert!(!member.host.is_empty());
            let took = when - killed;
            assert!(took < Duration::from_secs(6), "noticed after {took:?}");
        }
    });
}

fn a_run_that_was_killed_anywhere_does_not_hurt_the_next_of_its_name(place: &Place) {
    for step in ["joining", "joined", "published", "barrier"] {
        // While joining, one is missing, so that the others are killed in the middle of it.
        let started = if step == "joining" { 3 } else { 4 };
        let mut processes: Vec<_> = (0..started).map(|rank| Process::start(place, 4, rank, step)).collect();
        for process in &mut processes {
            process.await_line(step);
        }
        if step == "joining" {
            std::thread::sleep(Duration::from_millis(150));
        }
        for process in processes {
            process.kill();
        }
        let began = Instant::now();
        place.members(4, |rank, group| {
            // What the killed ones published under the same name is not seen.
            if rank == 2 {
                group.publish("address", b"new", LONG).expect("it is taken");
            }
            let value = group.await_value(2, "address", LONG).expect("rank 2 publishes");
            assert_eq!(*value, *b"new");
            group.barrier("never", LONG).expect("all come");
            group.leave(LONG).expect("the service is told");
        });
        assert!(began.elapsed() < Duration::from_secs(4), "after a kill at {step}: {:?}", began.elapsed());
    }
}

fn one_killed_while_joining_is_replaced_by_its_successor(place: &Place) {
    std::thread::scope(|scope| {
        let first = scope.spawn(|| Group::join(&place.config(3, 0)));
        std::thread::sleep(Duration::from_millis(200));
        let mut doomed = Process::start(place, 3, 1, "joining");
        doomed.await_line("joining");
        std::thread::sleep(Duration::from_millis(150));
        doomed.kill();
        let successor = scope.spawn(|| Group::join(&place.config(3, 1)));
        let last = scope.spawn(|| Group::join(&place.config(3, 2)));
        let groups =
            [first, successor, last].map(|thread| thread.join().expect("no panic").expect("all join"));
        let pids: Vec<u32> = groups[0].members().iter().map(|member| member.pid).collect();
        assert_eq!(pids, [std::process::id(); 3]);
        scope.spawn(move || {
            let [host, one, two] = groups;
            one.leave(LONG).expect("the service is told");
            two.leave(LONG).expect("the service is told");
            host.leave(LONG).expect("the service is told");
        });
    });
}
