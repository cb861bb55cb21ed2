//! Before anything moves: facts, silence, refusals.

use kvrail_core::id::{Generation, PeerId};
use kvrail_core::limits::{ADDRESS_BYTES_MAX, MESSAGE_BYTES_MIN, RAILS_MAX};
use kvrail_core::transport::Event;

use crate::{Rig, Verdict, demand};

/// The fixed facts respect the limits of the core, and the rails are there.
pub fn caps_are_sane(rig: &mut Rig<'_>) -> Verdict {
    let node = rig.node();
    let caps = rig.caps(node).clone();
    demand!(!caps.name.is_empty(), "the transport has no name");
    demand!(caps.op_bytes_max >= 4096, "ops of {} bytes are too small for a KV block", caps.op_bytes_max);
    demand!(
        caps.message_bytes_max >= MESSAGE_BYTES_MIN,
        "messages of {} bytes cannot carry a control message",
        caps.message_bytes_max
    );
    demand!(caps.ops_in_flight_max > 0 && caps.receives_max > 0, "a queue of no entries: {caps:?}");
    demand!(!caps.stall_timeout.is_zero(), "a stall timeout of zero gives up at once");
    let rails = rig.on(node, |t, _| t.rails().to_vec());
    demand!((1..=RAILS_MAX).contains(&rails.len()), "{} rails", rails.len());
    demand!(rails.iter().all(|r| !r.name.is_empty()), "a rail has no name: {rails:?}");
    let mut address = Vec::new();
    rig.on(node, |t, _| t.address(&mut address));
    demand!(address.len() <= ADDRESS_BYTES_MAX, "an address of {} bytes", address.len());
    Ok(())
}

/// Nobody there: no events, and no wish to be polled at once.
pub fn a_node_without_peers_is_quiet(rig: &mut Rig<'_>) -> Verdict {
    let node = rig.node();
    quiet(rig, &[node])
}

/// Two nodes that know each other and have nothing to say: no events, no wish to be polled at once.
pub fn an_idle_pair_is_quiet(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = rig.pair()?;
    rig.pump_for(rig.limits().vigil)?;
    quiet(rig, &[a, b])
}

fn quiet(rig: &mut Rig<'_>, nodes: &[usize]) -> Verdict {
    let mut events: Vec<Event> = Vec::new();
    let mut hurried = 0;
    for _ in 0..500 {
        for &node in nodes {
            let due = rig.on(node, |t, now| {
                t.poll(now, &mut events);
                t.poll_timeout().is_some_and(|at| at <= now)
            });
            hurried += u32::from(due);
        }
        rig.pump()?;
    }
    demand!(events.is_empty(), "events without a cause: {events:?}");
    demand!(hurried < 50, "poll_timeout asked to be polled at once {hurried} times in 500 idle polls");
    Ok(())
}

/// Input from outside: an address that is empty, cut short or nonsense is an error, not a panic and not a peer.
pub fn a_malformed_address_is_refused(rig: &mut Rig<'_>) -> Verdict {
    let (a, b) = (rig.node(), rig.node());
    let mut address = Vec::new();
    rig.on(b, |t, _| t.address(&mut address));
    let mut generation = Generation(1);
    let cuts = (0..address.len()).map(|n| address[..n].to_vec());
    let nonsense = [vec![0xff; address.len() + 1], vec![0x5a; 4096]];
    for bytes in cuts.chain(nonsense) {
        let peer = PeerId { slot: 1, generation };
        let answer = rig.on(a, |t, now| t.add_peer(now, peer, &bytes));
        demand!(
            answer.is_err(),
            "an address of {} bytes was taken, a whole one has {}",
            bytes.len(),
            address.len()
        );
        generation = generation.next();
    }
    rig.introduce(a, b)
}
