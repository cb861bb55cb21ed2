//! The script on emulated NICs, in real time.

use std::time::{Duration, Instant};

use super::script::{LATE_US, PEER_TIMEOUT_MS, RATE_BPS, REGION, STALL_MS, TIMEOUT_MS, UNRESPONSIVE_MS};
use super::{End, Event, Played, Script, Strike};
use crate::fleet::{Emulated, Place, Programs, fabric_name};
use crate::talk::{Part, Rails};
use crate::troupe::{Errand, Troupe};

/// How much later than its deadline a transfer may end.
const BOUND: Duration = Duration::from_secs(10);
/// Tries for a transfer that must succeed: the first may meet a route that is not yet up again.
const TRIES: usize = 3;

/// Plays a script on emulated NICs with this provider of libfabric.
///
/// # Errors
/// The place cannot be set up, or a worker does not answer.
pub fn play(programs: &Programs, provider: &str, script: &Script) -> Result<Played, String> {
    let wanted = Emulated {
        nodes: 2,
        nics: script.rails[0].max(script.rails[1]),
        seed: script.seed,
        unresponsive_ms: UNRESPONSIVE_MS,
        network: vec!["--rate".into(), format!("{}Mbps", RATE_BPS / 1_000_000)],
    };
    let place = Place::emulated(programs, &fabric_name("kvseeds"), &wanted)?;
    let mut world = World {
        troupe: Troupe::new(place, script.seed)?,
        script,
        ids: vec![None; script.posts.len()],
        played: Played { ends: vec![None; script.posts.len()], wrong: Vec::new() },
        set: Vec::new(),
    };
    for node in 0..2 {
        let part = Part {
            name: format!("node-{node}"),
            rails: Rails::Ofi {
                provider: provider.to_owned(),
                libfabric: programs.libfabric.clone(),
                count: Some(script.rails[node] as u16),
                stall_ms: Some(STALL_MS),
            },
            thread: true,
            regions: vec![REGION],
            seed: script.seed,
            peer_timeout_ms: PEER_TIMEOUT_MS,
            plant: None,
        };
        world.troupe.add(node, part)?;
    }
    world.troupe.acquaint(0, 1)?;
    world.play()?;
    let Played { ends, mut wrong } = world.played;
    if let Err(why) = world.troupe.end() {
        wrong.push(why);
    }
    Ok(Played { ends, wrong })
}

struct World<'a> {
    troupe: Troupe,
    script: &'a Script,
    /// The transfers under way.
    ids: Vec<Option<u64>>,
    played: Played,
    /// Faults that sit on one NIC: where, and their number.
    set: Vec<((usize, usize), String)>,
}

impl World<'_> {
    fn play(&mut self) -> Result<(), String> {
        let began = Instant::now();
        let until = |ms: u64| began + Duration::from_millis(ms);
        for (at, event) in &self.script.events {
            while Instant::now() < until(*at) {
                let left = until(*at).saturating_duration_since(Instant::now());
                self.troupe.listen(left.min(Duration::from_millis(5)))?;
            }
            match event {
                Event::Post(number) => self.post(*number)?,
                Event::Strike(strike) => self.strike(*strike)?,
            }
        }
        while Instant::now() < until(self.script.heal_ms) {
            self.troupe.listen(Duration::from_millis(5))?;
        }
        self.strike(Strike::Heal)?;
        for number in 0..self.script.demanded {
            self.finish(number)?;
        }
        // Who was lost meanwhile is met again.
        self.troupe.acquaint(0, 1)?;
        for number in self.script.demanded..self.script.posts.len() {
            for _ in 0..TRIES {
                self.post(number)?;
                self.finish(number)?;
                if matches!(self.played.ends[number], Some((End::Done, _))) {
                    break;
                }
                self.troupe.acquaint(0, 1)?;
            }
        }
        Ok(())
    }

    fn post(&mut self, number: usize) -> Result<(), String> {
        let post = self.script.posts[number];
        let errand = Errand {
            from: post.from,
            to: 1 - post.from,
            way: post.way,
            shape: post.shape,
            notify: post.notify,
            timeout_ms: TIMEOUT_MS,
            cancel_us: post.cancel_us,
        };
        self.ids[number] = Some(self.troupe.post(errand)?);
        Ok(())
    }

    fn finish(&mut self, number: usize) -> Result<(), String> {
        let Some(id) = self.ids[number].take() else { return Ok(()) };
        match self.troupe.finish(id, Duration::from_millis(TIMEOUT_MS) + BOUND) {
            Ok(end) => {
                let took = end.took.as_millis() as u64;
                let class = end.outcome.as_ref().map_or(End::Abandoned, End::from);
                self.played.ends[number] = Some((class, took));
                self.played.wrong.extend(end.wrong.iter().map(|wrong| format!("transfer {number}: {wrong}")));
            }
            Err(why) => self.played.wrong.push(format!("transfer {number}: {why}")),
        }
        Ok(())
    }

    fn strike(&mut self, strike: Strike) -> Result<(), String> {
        let text = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
        let at = |flag: &str, nic_flag: &str, (node, nic): (usize, usize)| {
            vec![flag.to_owned(), node.to_string(), nic_flag.to_owned(), nic.to_string()]
        };
        let here = |place| at("--node", "--nic", place);
        let there = |place| at("--peer-node", "--peer-nic", place);
        let orders: Vec<Vec<String>> = match strike {
            Strike::RailDown(node, rail) => vec![[text(&["rail-down"]), here((node, rail))].concat()],
            Strike::RailSilent(node, rail) => [here((node, rail)), there((node, rail))]
                .map(|place| [text(&["black-hole", "--silent"]), place].concat())
                .to_vec(),
            Strike::BlackHole(from, to) => {
                vec![[text(&["black-hole"]), here(from), there(to)].concat()]
            }
            Strike::Partition => (0..2)
                .map(|node: usize| {
                    let (node, peer) = (node.to_string(), (1 - node).to_string());
                    text(&["black-hole", "--node", &node, "--peer-node", &peer])
                })
                .collect(),
            Strike::Late => {
                let late = format!("{LATE_US}us");
                vec![text(&["delay", "0us", &late])]
            }
            Strike::Heal => vec![text(&["clear"])],
            Strike::RailUp(node, rail) => return self.mend(node, rail),
            Strike::Restart(node) => {
                self.troupe.restart(node)?;
                return self.troupe.acquaint(0, 1);
            }
        };
        let mendable = match strike {
            Strike::RailDown(node, rail) | Strike::RailSilent(node, rail) => Some((node, rail)),
            _ => None,
        };
        for words in &orders {
            let number = self.troupe.place().fault(words)?;
            self.set.extend(mendable.map(|place| (place, number)));
        }
        Ok(())
    }

    /// Ends the faults that sit on a NIC.
    fn mend(&mut self, node: usize, rail: usize) -> Result<(), String> {
        let (here, others): (Vec<_>, _) = self.set.drain(..).partition(|(place, _)| *place == (node, rail));
        self.set = others;
        for (_, number) in here {
            // One that a healing has ended is not there any more.
            let _ = self.troupe.place().fault(&["clear".to_owned(), number]);
        }
        Ok(())
    }
}
