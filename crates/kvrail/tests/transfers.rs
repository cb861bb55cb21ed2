//! A transfer's life, on a fabric whose ops end when the test says so.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{MODES, Net, PATIENCE, blocks, blocks_of, pair};
use kvrail::engine_error::{PlanError, PostTransferError, RemoveRegionError, SideName};
use kvrail::{
    Agent, Awaited, DeregisterError, Descriptors, Hints, Memory, PeerEvent, PeerLostCause, PeerState,
    PostError, PrepareError, Progress, RegisterError, TransferError, engine_error,
};

#[test]
fn a_transfer_ends_and_its_notification_arrives() {
    for mode in MODES {
        let pair = pair(mode);
        let report = pair.plan.write().notify("done").post().unwrap().wait().unwrap();
        assert_eq!((report.bytes, report.ops, report.retried_ops), (4 * 4096, 4, 0));
        pair.here.progress();
        let notification = pair.there.wait_notification(PATIENCE).unwrap();
        assert_eq!((&*notification.peer_name, &*notification.message), ("here", &b"done"[..]));
        let stats = pair.here.stats();
        assert_eq!((stats.bytes(), stats.transfers(), stats.ops()), (4 * 4096, 1, 4));
        let gate = &stats.transports[0];
        assert_eq!((gate.prepare.count(), gate.post.count(), gate.wire.count()), (1, 1, 1));
    }
}

#[test]
fn one_handle_is_posted_again_and_again_but_not_while_it_is_in_flight() {
    for mode in MODES {
        let pair = pair(mode);
        let mut transfer = pair.plan.read().post().unwrap();
        transfer.wait().unwrap();
        for _ in 0..100 {
            transfer.post().unwrap();
            transfer.wait().unwrap();
        }
        pair.net.close_gate(0);
        transfer.post().unwrap();
        assert!(matches!(transfer.post(), Err(PostError::InFlight { .. })));
        assert!(transfer.wait_timeout(Duration::from_millis(5)).is_none());
        pair.net.open_gate(0);
        transfer.wait().unwrap();
        assert_eq!(pair.here.stats().transfers(), 102);
    }
}

#[test]
fn a_deadline_says_what_was_awaited_and_how_far_it_came() {
    for mode in MODES {
        let pair = pair(mode);
        pair.net.close_gate(0);
        let started = Instant::now();
        let transfer = pair.plan.write().timeout(Duration::from_millis(30)).post().unwrap();
        let error = transfer.wait().unwrap_err();
        assert!(started.elapsed() >= Duration::from_millis(30));
        assert!(error.is_deadline() && error.is_retryable(), "{error}");
        let text = error.to_string();
        assert!(text.contains("there") && text.contains("0 of 4 ops"), "{text}");
        assert!(text.contains("completions of 4 ops in flight"), "{text}");
        assert_eq!(error.silence().unwrap().rails.len(), 1, "what the rails counted: {text}");
        assert!(error.hints().iter().any(|hint| hint.starts_with("rail ")), "{:?}", error.hints());
    }
}

#[test]
fn a_peer_that_never_answers_is_named_by_the_deadline_and_the_hint() {
    for mode in MODES {
        let net = Net::default();
        let build = |name: &str| {
            Agent::builder(name)
                .transports([net.transport()])
                .progress(mode)
                .ignore_environment()
                .build()
                .unwrap()
        };
        let (here, there) = (build("here"), build("there"));
        let source = here.register(Memory::private(4096).unwrap()).unwrap();
        let target = there.register(Memory::private(4096).unwrap()).unwrap();
        let metadata = there.metadata().unwrap();
        net.kill(1);
        let peer = here.connect(&metadata).unwrap();
        let (local, remote) = (source.slice(0, 64).unwrap(), target.slice(0, 64).unwrap());
        let plan = here.prepare(&peer, &local, &remote).unwrap();
        let error = plan.write().timeout(Duration::from_millis(20)).post().unwrap().wait().unwrap_err();
        let TransferError::Failed { error: cause, .. } = &error else { panic!("{error}") };
        let greeting = Awaited::Greeting;
        assert!(
            matches!(cause, engine_error::TransferError::DeadlineExceeded { awaited, .. } if *awaited == greeting),
            "{error}"
        );
        assert!(!error.hints().is_empty());
    }
}

#[test]
fn cancelling_drains_before_it_ends() {
    for mode in MODES {
        let pair = pair(mode);
        pair.net.close_gate(0);
        pair.net.make_stubborn(0);
        let transfer = pair.plan.write().post().unwrap();
        assert!(transfer.wait_timeout(Duration::from_millis(5)).is_none());
        assert_eq!(transfer.progress().unwrap().ops_in_flight, 4);
        transfer.cancel();
        transfer.cancel();
        assert!(transfer.wait_timeout(Duration::from_millis(20)).is_none(), "ended with ops in flight");
        pair.net.open_gate(0);
        let error = transfer.wait().map(|_| ()).err();
        // The last byte had moved when the fabric let go: either is the truth.
        assert!(error.is_none_or(|error| error.is_cancelled()));
        assert_eq!(pair.net.in_flight(0), 0);
    }
}

#[test]
fn memory_outlives_its_region_and_a_dropped_handle_until_the_last_op_has_ended() {
    for mode in MODES {
        let mut pair = pair(mode);
        let owner = Arc::new(());
        pair.net.close_gate(0);
        pair.net.make_stubborn(0);
        let memory = Memory::private(64 << 10).unwrap();
        let watched = Watched(memory.clone(), owner.clone());
        let region = pair.here.register(watched.into_memory()).unwrap();
        let plan = pair.here.prepare(&pair.peer, &blocks(&region), &blocks(&pair.target)).unwrap();
        drop(plan.write().post().unwrap());
        pair.here.progress();
        let DeregisterError { reason, .. } = region.deregister(Duration::from_millis(20)).unwrap_err();
        assert!(matches!(reason, RemoveRegionError::Busy(_)), "{reason}");
        assert_eq!(Arc::strong_count(&owner), 2, "the memory was freed under a transfer");
        assert_eq!(pair.here.stats().regions, 1, "a region that ends is no longer offered to peers");
        pair.net.open_gate(0);
        let deadline = Instant::now() + PATIENCE;
        while Arc::strong_count(&owner) == 2 && Instant::now() < deadline {
            pair.here.progress();
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(Arc::strong_count(&owner), 1, "the memory was never freed");
        assert!(matches!(
            plan.write().post(),
            Err(PostError::Refused { error: PostTransferError::StaleLocalRegion(_), .. })
        ));
        pair.net.open_gate(0);
        pair.plan = plan;
    }
}

/// Memory whose end can be seen.
struct Watched(Memory, #[allow(dead_code)] Arc<()>);

impl Watched {
    fn into_memory(self) -> Memory {
        let (base, len) = (self.0.base() as *mut u8, self.0.len());
        // SAFETY: the memory's owner goes with it.
        unsafe { kvrail::memory::RawMemory::new(base, len) }.owned_by(self).into()
    }
}

#[test]
fn an_idle_region_is_deregistered_at_once_and_gives_its_memory_back() {
    let pair = pair(Progress::Inline);
    let before = pair.net.registered(0);
    let region = pair.here.register(Memory::private(4096).unwrap()).unwrap();
    region.write(4000, b"bytes").unwrap();
    let memory = region.deregister(Duration::ZERO).unwrap();
    let mut bytes = [0; 5];
    memory.read(4000, &mut bytes).unwrap();
    assert_eq!((&bytes, pair.net.registered(0)), (b"bytes", before));
}

#[test]
fn a_list_is_registered_whole_or_not_at_all() {
    let pair = pair(Progress::Thread);
    pair.net.refuse_registration_at(0, 8);
    let whole = Memory::private(1 << 20).unwrap();
    let list: Vec<_> = (0..20).map(|i| whole.slice(i << 12, 4096).unwrap()).collect();
    let error = pair.here.register_many(list.clone()).unwrap_err();
    assert!(
        matches!(&error, RegisterError::Transport { transport: "gate", .. }) && error.is_retryable(),
        "{error}"
    );
    assert_eq!((pair.net.registered(0), pair.here.stats().regions), (1, 1));
    assert_eq!(pair.here.register_many(list[..7].to_vec()).unwrap().len(), 7);
}

#[test]
fn plans_name_the_slice_at_fault() {
    let pair = pair(Progress::Inline);
    let prepare =
        |local: Descriptors, remote: Descriptors| match pair.here.prepare(&pair.peer, &local, &remote) {
            Err(PrepareError::Plan { error, .. }) => error,
            other => panic!("{other:?}"),
        };
    let fits = || blocks(&pair.source);
    let outside: Descriptors = (0..4).map(|i| (pair.target.id(), (i << 14) + 4097, 16 << 10)).collect();
    let long: Descriptors = (0..4).map(|i| (pair.source.id(), i << 14, 16 << 10)).collect();
    assert!(matches!(
        prepare(long, outside),
        PlanError::OutOfBounds { side: SideName::Remote, index: 3, region_len: 65_536, .. }
    ));
    let unknown = blocks_of(kvrail::RegionId(77));
    assert!(matches!(prepare(fits(), unknown), PlanError::UnknownRegion { side: SideName::Remote, .. }));
    let other = common::pair(Progress::Inline);
    assert!(matches!(
        pair.here.prepare(&other.peer, &fits(), &fits()),
        Err(PrepareError::ForeignPeer { .. })
    ));
}

#[test]
fn futures_complete_under_any_executor() {
    for mode in MODES {
        let pair = pair(mode);
        let report = pollster::block_on(async { pair.plan.write().post().unwrap().await }).unwrap();
        assert_eq!(report.ops, 4);
        pair.net.close_gate(0);
        let transfers: Vec<_> = (0..8).map(|_| pair.plan.write().post().unwrap()).collect();
        let opener = {
            let net = pair.net.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                net.open_gate(0);
            })
        };
        let reports = futures::executor::block_on(futures::future::join_all(transfers));
        assert!(reports.iter().all(Result::is_ok));
        opener.join().unwrap();
        let late = pair.plan.write().timeout(Duration::from_millis(10));
        pair.net.close_gate(0);
        assert!(pollster::block_on(late.post().unwrap()).unwrap_err().is_deadline());
    }
}

#[test]
fn a_transfer_that_several_hold_is_awaited_by_reference_as_often_as_wanted() {
    for mode in MODES {
        let pair = pair(mode);
        let transfer = pair.plan.write().post().unwrap();
        let first = pollster::block_on(&transfer).unwrap();
        assert_eq!(pollster::block_on(&transfer).unwrap(), first);
        assert_eq!(transfer.wait().unwrap(), first);
    }
}

#[test]
fn a_task_that_found_no_notification_is_woken_by_the_next_and_by_the_end() {
    let pair = pair(Progress::Thread);
    let next = || {
        let there = &pair.there;
        futures::future::poll_fn(|context| there.poll_next_notification(context))
    };
    for round in 0..100u8 {
        let sender = std::thread::scope(|scope| {
            let sender = scope.spawn(|| pair.here.send(&pair.peer, [round]));
            assert_eq!(pollster::block_on(next()).unwrap().message, [round]);
            sender.join().unwrap()
        });
        sender.unwrap();
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            pair.there.close().unwrap();
        });
        assert!(matches!(pollster::block_on(next()), Err(kvrail::WaitNotificationError::AgentClosed)));
    });
}

#[test]
fn one_region_of_a_peer_is_the_one_of_its_list() {
    let pair = pair(Progress::Inline);
    let regions = pair.peer.regions();
    assert_eq!(pair.peer.region(pair.target.id()), Some(regions[0]));
    assert_eq!(pair.peer.region(kvrail::RegionId(77)), None);
}

#[test]
fn a_registration_that_is_in_use_ends_later_and_says_when() {
    let pair = pair(Progress::Thread);
    pair.net.close_gate(0);
    let transfer = pair.plan.write().post().unwrap();
    let ending = pair.source.condemn();
    assert!(!ending.is_ended());
    pair.net.open_gate(0);
    assert!(transfer.wait().is_ok());
    assert_eq!(ending.wait(PATIENCE).unwrap().device(), kvrail::Device::Host);
}

#[test]
fn a_killed_peer_ends_its_transfers_and_is_lost() {
    for mode in MODES {
        let pair = pair(mode);
        pair.net.close_gate(0);
        let transfer = pair.plan.write().post().unwrap();
        pair.net.kill(1);
        let error = transfer.wait().unwrap_err();
        let gone = engine_error::TransferError::PeerLost(PeerLostCause::Gone);
        assert_eq!(error, TransferError::Failed { peer_name: "there".into(), error: gone, silence: None });
        assert!(!error.is_retryable());
        assert_eq!(pair.peer.state(), PeerState::Lost(PeerLostCause::Gone));
        assert!(matches!(
            pair.plan.write().post(),
            Err(PostError::Refused { error: PostTransferError::UnknownPeer(_), .. })
        ));
        let events: Vec<_> = std::iter::from_fn(|| pair.here.poll_event()).collect();
        let peer_name = "there".into();
        assert!(events.contains(&PeerEvent::Lost { peer_name, cause: PeerLostCause::Gone }), "{events:?}");
    }
}

#[test]
fn a_restarted_peer_is_a_new_peer_and_the_old_ones_plans_are_errors() {
    for mode in MODES {
        let pair = pair(mode);
        pair.net.close_gate(0);
        let old = pair.plan.write().post().unwrap();
        let again = Agent::builder("there").transports([pair.net.transport()]).progress(mode);
        let again = again.ignore_environment().build().unwrap();
        let target = again.register(Memory::private(64 << 10).unwrap()).unwrap();
        let peer = pair.here.connect(&again.metadata().unwrap()).unwrap();
        assert_ne!(peer, pair.peer);
        assert_ne!(peer.incarnation(), pair.peer.incarnation());
        assert!(matches!(old.wait(), Err(TransferError::Failed { .. })));
        assert!(matches!(pair.peer.state(), PeerState::Lost(_)), "{:?}", pair.peer.state());
        assert!(pair.plan.write().post().is_err());
        pair.net.open_gate(0);
        let plan = pair.here.prepare(&peer, &blocks(&pair.source), &blocks(&target)).unwrap();
        let transfer = plan.write().post().unwrap();
        while !transfer.is_ended() {
            pair.here.progress();
            again.progress();
        }
        transfer.wait().unwrap();
        assert_eq!(pair.here.peer("there"), Some(peer));
    }
}

#[test]
fn metadata_of_a_known_peer_adds_to_its_regions() {
    let pair = pair(Progress::Thread);
    let more = pair.there.register(Memory::private(8192).unwrap()).unwrap();
    let partial = pair.there.metadata_of(&[&more]).unwrap();
    assert!(partial.len() < pair.there.metadata().unwrap().len() + 16);
    let again = pair.here.connect(&partial).unwrap();
    assert_eq!(again, pair.peer);
    let lens: Vec<_> = again.regions().iter().map(|region| region.len).collect();
    assert_eq!(lens, [64 << 10, 8192]);
}

#[test]
fn closing_ends_transfers_and_answers_that_the_agent_is_closed() {
    for mode in MODES {
        let pair = pair(mode);
        pair.net.close_gate(0);
        let transfer = pair.plan.write().post().unwrap();
        pair.here.close().unwrap();
        assert!(transfer.wait().unwrap_err().is_cancelled());
        pair.here.close().unwrap();
        assert!(matches!(pair.plan.write().post(), Err(PostError::AgentClosed)));
        assert!(pair.here.register(Memory::private(4096).unwrap()).is_err());
        assert!(pair.here.wait_notification(PATIENCE).is_err());
        assert!(pair.here.metadata().is_err());
    }
}

#[test]
fn closing_does_not_wait_for_ever_for_a_fabric_that_never_lets_go() {
    for mode in MODES {
        let pair = pair(mode);
        pair.net.close_gate(0);
        pair.net.make_stubborn(0);
        let transfer = pair.plan.write().post().unwrap();
        let started = Instant::now();
        assert_eq!(pair.here.close().unwrap_err().transfers, 1);
        assert!(started.elapsed() < Duration::from_secs(5));
        assert_eq!(transfer.wait(), Err(TransferError::AgentClosed));
    }
}

#[test]
fn unread_notifications_hold_peers_back_but_no_transfer() {
    for mode in MODES {
        let net = Net::default();
        let build = |name: &str| {
            let agent = Agent::builder(name).transports([net.transport()]).inbox_messages_max(16);
            agent.progress(mode).ignore_environment().build().unwrap()
        };
        let (here, there) = (build("here"), build("there"));
        let peer = here.connect(&there.metadata().unwrap()).unwrap();
        let back = there.connect(&here.metadata().unwrap()).unwrap();
        let mut sent = 0u32;
        let deadline = Instant::now() + Duration::from_millis(300);
        while Instant::now() < deadline {
            match here.send(&peer, sent.to_le_bytes()) {
                Ok(()) => sent += 1,
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
            there.progress();
        }
        assert!((16..200).contains(&sent), "{sent} messages were accepted");
        assert!(there.stats().notifications_waiting <= 16);
        // The other direction still works, with the inbox full.
        let (a, b) =
            (there.register(Memory::private(4096).unwrap()), here.register(Memory::private(4096).unwrap()));
        let (a, b) = (a.unwrap(), b.unwrap());
        let back = there.connect(&here.metadata().unwrap()).map(|again| (again == back, again)).unwrap();
        assert!(back.0);
        let (local, remote) = (a.slice(0, 64).unwrap(), b.slice(0, 64).unwrap());
        let transfer = there.prepare(&back.1, &local, &remote).unwrap().write().post().unwrap();
        while !transfer.is_ended() {
            here.progress();
            there.progress();
        }
        transfer.wait().unwrap();
        let mut seen = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while seen.len() < sent as usize && Instant::now() < deadline {
            here.progress();
            seen.extend(there.poll_notification().map(|n| u32::from_le_bytes(n.message.try_into().unwrap())));
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..sent).collect::<Vec<_>>(), "each message arrives exactly once");
    }
}

#[test]
fn threads_that_share_an_agent_lose_nothing() {
    for mode in MODES {
        let pair = pair(mode);
        let before = pair.here.stats().transfers();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let plan = pair.plan.clone();
                scope.spawn(move || {
                    for i in 0..500 {
                        let transfer = if i % 2 == 0 { plan.write().post() } else { plan.read().post() };
                        match (i + thread) % 3 {
                            0 => drop(transfer.unwrap()),
                            1 => transfer.unwrap().wait().map(|_| ()).unwrap(),
                            _ => pollster::block_on(transfer.unwrap()).map(|_| ()).unwrap(),
                        }
                    }
                });
            }
        });
        let ended = || pair.here.stats().transports[0].transfers_in_flight == 0;
        let deadline = Instant::now() + PATIENCE;
        while !ended() && Instant::now() < deadline {
            pair.here.progress();
        }
        assert!(ended());
        assert!(pair.here.stats().transfers() - before >= 1333);
    }
}

#[test]
fn inline_waiters_on_several_threads_all_wake() {
    let pair = pair(Progress::Inline);
    for _ in 0..20 {
        pair.net.close_gate(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let transfer = pair.plan.write().post().unwrap();
                scope.spawn(move || transfer.wait_timeout(PATIENCE).expect("slept for ever").unwrap());
            }
            std::thread::sleep(Duration::from_millis(2));
            pair.net.open_gate(0);
        });
    }
}
