use super::*;

const ME: Incarnation = Incarnation(1);

fn record(rank: u32, life: u64, parting: Option<Parting>) -> Arc<[u8]> {
    let member = Member { rank, host: "h".into(), pid: 7, incarnation: Incarnation(life) };
    Record { member, world_size: 2, parting }.encode().into()
}

fn seat(rank: u32, life: u64) -> Event {
    Event::Put { key: Key::Member(rank).to_string(), value: record(rank, life, None), owner: life }
}

fn ready(life: u64, digest: u64) -> Event {
    let value = format!("{digest:016x}").into_bytes().into();
    Event::Put { key: Key::Ready(Incarnation(life)).to_string(), value, owner: life }
}

fn value(life: u64, name: &str, bytes: &[u8]) -> Event {
    let key = Key::Value { owner: Incarnation(life), name }.to_string();
    Event::Put { key, value: bytes.into(), owner: life }
}

fn delete(key: Key<'_>) -> Event {
    Event::Delete { key: key.to_string() }
}

/// A view of a group of two whose lives are 1 and `other`.
fn sealed(other: u64) -> View {
    let mut view = View::new(ME, 2);
    for event in [seat(0, 1), seat(1, other)] {
        view.apply(event);
    }
    let digest = view.candidate().expect("both seats are held");
    for event in [ready(1, digest), ready(other, digest)] {
        view.apply(event);
    }
    assert!(view.sealed.is_some());
    view
}

#[test]
fn what_a_killed_run_left_behind_does_not_complete_a_group() {
    let mut view = View::new(ME, 2);
    // The earlier run: lives 8 and 9 had agreed.
    for event in [seat(0, 8), seat(1, 9)] {
        view.apply(event);
    }
    let old = view.candidate().expect("both seats are held");
    for event in [ready(8, old), ready(9, old)] {
        view.apply(event);
    }
    assert!(view.sealed.is_none(), "it was a group, and not this member's");
    // This member took seat 0 over.
    view.apply(delete(Key::Member(0)));
    view.apply(seat(0, 1));
    let new = view.candidate().expect("both seats are held");
    assert_ne!(new, old);
    view.apply(ready(1, new));
    assert!(view.sealed.is_none(), "rank 1 is dead and has not agreed");
    view.apply(seat(1, 2));
    let right = view.candidate().expect("both seats are held");
    view.apply(ready(1, right));
    view.apply(ready(2, right));
    let lives = view.sealed.as_ref().expect("both agree").iter().map(|m| m.incarnation.0).collect::<Vec<_>>();
    assert_eq!(lives, [1, 2]);
}

#[test]
fn a_seat_that_empties_is_a_loss_unless_its_member_said_goodbye() {
    let mut view = sealed(2);
    view.apply(delete(Key::Member(1)));
    assert_eq!(view.lost, Some((1, Loss::Vanished)));

    let mut view = sealed(2);
    view.apply(value(2, "u/a", b"x"));
    let left = record(1, 2, Some(Parting::Left));
    view.apply(Event::Put { key: Key::Member(1).to_string(), value: left, owner: 2 });
    view.apply(delete(Key::Member(1)));
    view.apply(delete(Key::Value { owner: Incarnation(2), name: "u/a" }));
    assert_eq!(view.lost, None);
    assert!(view.value(Incarnation(2), "u/a").is_some(), "what it said may still be read");
}

#[test]
fn a_seat_that_changes_hands_is_a_loss() {
    let mut view = sealed(2);
    view.apply(seat(1, 3));
    assert!(matches!(&view.lost, Some((1, Loss::Replaced { by })) if by.incarnation.0 == 3));
}

#[test]
fn the_first_loss_is_the_one_that_is_told() {
    let mut view = sealed(2);
    view.apply(delete(Key::Member(1)));
    view.apply(delete(Key::Member(0)));
    assert_eq!(view.lost, Some((1, Loss::Vanished)));
}

#[test]
fn changes_may_be_seen_twice() {
    let mut view = sealed(2);
    view.apply(value(2, "u/a", b"xyz"));
    let events = [seat(1, 2), value(2, "u/a", b"xyz")];
    for event in events {
        view.apply(event);
    }
    assert_eq!((view.keys, view.value_bytes, &view.lost), (1, 3, &None));
}

#[test]
fn after_a_gap_in_the_history_what_is_there_counts() {
    let shared = Shared::new(ME, 2);
    shared.apply([seat(0, 1), seat(1, 2), value(2, "u/a", b"xyz"), value(2, "u/b", b"z")]);
    shared.replace(vec![seat(0, 1), value(2, "u/b", b"z")]);
    shared.look(|view| {
        assert_eq!(view.seats.keys().copied().collect::<Vec<_>>(), [0]);
        assert!(view.value(Incarnation(2), "u/a").is_none());
        assert_eq!((view.keys, view.value_bytes), (1, 1));
    });
}

#[test]
fn a_challenge_is_handed_to_who_must_answer_it() {
    let shared = Shared::new(ME, 2);
    let challenge = |holder, from| Event::Put {
        key: Key::Challenge { holder: Incarnation(holder), from: Incarnation(from) }.to_string(),
        value: Arc::default(),
        owner: from,
    };
    assert_eq!(shared.apply([challenge(1, 5), challenge(2, 6)]), [Incarnation(5)]);
}

#[test]
fn keys_and_records_of_others_are_left_alone() {
    let mut view = View::new(ME, 2);
    for key in ["", "member/x", "member/0/1", "unknown/1", "value/zz/a"] {
        view.apply(Event::Put { key: key.into(), value: Arc::default(), owner: 0 });
        view.apply(Event::Delete { key: key.into() });
    }
    view.apply(Event::Put { key: "member/0".into(), value: b"size=2".as_slice().into(), owner: 0 });
    assert!(view.seats.is_empty() && view.foreign.contains(&0));
    view.apply(seat(0, 1));
    assert!(view.foreign.is_empty());
}

#[test]
fn a_run_that_floods_the_store_fails_and_does_not_fill_the_memory() {
    let mut view = View::new(ME, 2);
    let bytes: Arc<[u8]> = vec![0; RUN_BYTES_MAX / 4].into();
    for name in ["a", "b", "c", "d"] {
        let key = Key::Value { owner: Incarnation(9), name }.to_string();
        view.apply(Event::Put { key, value: bytes.clone(), owner: 9 });
    }
    assert_eq!(view.failed, None);
    view.apply(value(9, "e", b"x"));
    assert!(matches!(view.failed, Some(ServiceError::TooMuch { keys: 5, .. })));
}
