//! An initiator on node 0 and a target on node 1 that know each other, one rail per NIC, with a buffer each.

use std::time::Duration;

use super::probe::{Answer, Line, Probe, Refusal};
use super::{Bench, Fabric};

/// Each side's buffer, bytes.
pub(crate) const BUFFER_BYTES: u64 = 4 << 20;
/// What the initiator's buffer is filled with, and the target's.
pub(crate) const OURS: u64 = 5;
pub(crate) const THEIRS: u64 = 9;
/// Long enough for whatever is expected to come on a busy machine.
const COMES: Duration = Duration::from_secs(10);

/// How a pair's rails are opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rails<'a> {
    pub(crate) fabric: &'a str,
    pub(crate) count: u32,
    /// Further keys of the probe's `open`.
    pub(crate) options: &'a str,
    /// Whether the target's address vector has the initiator.
    pub(crate) target_knows_initiator: bool,
}

/// The provider's protocol above the device.
pub(crate) const EFA: Rails<'_> =
    Rails { fabric: "efa", count: 1, options: "", target_knows_initiator: true };
/// The device's own operations. The wheel's libfabric is compiled without unsolicited receives, and offers
/// `efa-direct` only to those who post a receive for each immediate.
pub(crate) const DIRECT: Rails<'_> =
    Rails { fabric: "efa-direct", count: 1, options: "rx_cq_data=1", target_knows_initiator: true };

impl Rails<'_> {
    pub(crate) const fn of(mut self, count: u32) -> Self {
        self.count = count;
        self
    }
}

/// Both ends. Buffer 0 of each is registered on each of its rails.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) initiator: Probe,
    pub(crate) target: Probe,
    /// Keys of the target's buffer, one per rail, and of the initiator's.
    pub(crate) target_keys: Vec<u64>,
    pub(crate) initiator_keys: Vec<u64>,
    target_base: u64,
    initiator_base: u64,
    next_ctx: u64,
}

/// What an operation came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    /// libfabric's error and the provider's, which is the device's status up to 4095.
    Failed {
        err: u64,
        prov_errno: u64,
    },
    /// Nothing until the deadline.
    Silent,
}

impl Pair {
    /// Opens both ends on nodes 0 and 1.
    #[track_caller]
    pub(crate) fn open(bench: &Bench, fabric: &Fabric, rails: Rails<'_>) -> Self {
        let mut initiator = fabric.probe(bench, 0);
        let mut target = fabric.probe(bench, 1);
        let initiator_base = initiator.tell(&format!("buffer buf=0 len={BUFFER_BYTES} seed={OURS}"));
        let target_base = target.tell(&format!("buffer buf=0 len={BUFFER_BYTES} seed={THEIRS}"));
        let (mut target_keys, mut initiator_keys) = (Vec::new(), Vec::new());
        for rail in 0..rails.count {
            let open = format!("open rail={rail} nic={rail} fabric={} {}", rails.fabric, rails.options);
            let mut names = [&mut initiator, &mut target].map(|side| {
                side.tell(&open);
                side.tell(&format!("name rail={rail}")).last.text("addr").to_owned()
            });
            initiator.tell(&format!("av rail={rail} addr={}", std::mem::take(&mut names[1])));
            if rails.target_knows_initiator {
                target.tell(&format!("av rail={rail} addr={}", names[0]));
            }
            initiator_keys.push(initiator.tell(&format!("mr rail={rail} buf=0")).last.number("key"));
            target_keys.push(target.tell(&format!("mr rail={rail} buf=0")).last.number("key"));
        }
        Self {
            initiator,
            target,
            target_keys,
            initiator_keys,
            target_base: target_base.last.number("addr"),
            initiator_base: initiator_base.last.number("addr"),
            next_ctx: 1,
        }
    }

    /// An RDMA operation of the initiator's part of the buffer at `off`, to or from the same place in the target's.
    #[track_caller]
    pub(crate) fn post(&mut self, rail: u32, op: &str, off: u64, len: u64, more: &str) -> u64 {
        let key = self.target_keys[rail as usize];
        self.post_with_key(rail, op, off, len, key, more)
    }

    #[track_caller]
    pub(crate) fn post_with_key(
        &mut self,
        rail: u32,
        op: &str,
        off: u64,
        len: u64,
        key: u64,
        more: &str,
    ) -> u64 {
        let ctx = self.next_ctx;
        let raddr = self.target_base + off;
        self.next_ctx += 1;
        self.initiator.tell(&format!(
            "post op={op} rail={rail} ctx={ctx} buf=0 off={off} len={len} peer=0 raddr={raddr} rkey={key} {more}"
        ));
        ctx
    }

    /// Posts one operation and waits for its end.
    #[track_caller]
    pub(crate) fn run(&mut self, rail: u32, op: &str, off: u64, len: u64) -> Outcome {
        let ctx = self.post(rail, op, off, len, "");
        self.outcome(rail, ctx, COMES)
    }

    /// What becomes of an operation of the initiator within `within`.
    #[track_caller]
    pub(crate) fn outcome(&mut self, rail: u32, ctx: u64, within: Duration) -> Outcome {
        let answer = self.initiator.tell(&poll(rail, 1, within));
        let Some(line) = answer.lines.iter().find(|line| line.kind == "comp" || line.kind == "error") else {
            return Outcome::Silent;
        };
        assert_eq!(line.text("ctx"), ctx.to_string(), "another operation's end came: {line:?}");
        if line.kind == "comp" {
            return Outcome::Done;
        }
        Outcome::Failed { err: line.number("err"), prov_errno: line.number("prov_errno") }
    }

    /// Polls the target for `want` completions or errors.
    #[track_caller]
    pub(crate) fn at_target(&mut self, rail: u32, want: u64, within: Duration) -> Vec<Line> {
        let answer: Answer = self.target.tell(&poll(rail, want, within));
        answer.lines
    }

    /// Whether the target's bytes are the initiator's, for every byte of the part.
    #[track_caller]
    pub(crate) fn target_has_ours(&mut self, off: u64, len: u64) -> bool {
        let verified = self.target.tell(&format!("verify buf=0 seed={OURS} off={off} len={len}"));
        verified.last.number("same") == 1
    }

    /// Whether the initiator's bytes are the target's.
    #[track_caller]
    pub(crate) fn initiator_has_theirs(&mut self, off: u64, len: u64) -> bool {
        let verified = self.initiator.tell(&format!("verify buf=0 seed={THEIRS} off={off} len={len}"));
        verified.last.number("same") == 1
    }

    /// What the event queue of a rail tells the initiator.
    #[track_caller]
    pub(crate) fn event(&mut self, rail: u32, within: Duration) -> Option<Line> {
        let answer = self.initiator.tell(&format!("eq rail={rail} ms={}", within.as_millis()));
        answer.of_kind("eq_error").next().cloned()
    }

    /// As [`Self::run`], where the process itself may end.
    #[track_caller]
    pub(crate) fn try_run(&mut self, rail: u32, op: &str, off: u64, len: u64) -> Result<Outcome, Refusal> {
        let key = self.target_keys[rail as usize];
        let raddr = self.target_base + off;
        self.initiator.try_tell(&format!(
            "post op={op} rail={rail} ctx=0 buf=0 off={off} len={len} peer=0 raddr={raddr} rkey={key}"
        ))?;
        let answer = self.initiator.try_tell(&poll(rail, 1, COMES))?;
        Ok(match answer.lines.first() {
            None => Outcome::Silent,
            Some(line) if line.kind == "comp" => Outcome::Done,
            Some(line) => Outcome::Failed { err: line.number("err"), prov_errno: line.number("prov_errno") },
        })
    }

    /// Ends the target's process as a crash would.
    pub(crate) fn kill_target(&mut self) {
        self.target.kill();
    }

    /// The initiator's own buffer as the target would name it.
    pub(crate) const fn initiator_base(&self) -> u64 {
        self.initiator_base
    }

    pub(crate) const fn target_base(&self) -> u64 {
        self.target_base
    }
}

fn poll(rail: u32, want: u64, within: Duration) -> String {
    format!("poll rail={rail} want={want} ms={}", within.as_millis())
}
