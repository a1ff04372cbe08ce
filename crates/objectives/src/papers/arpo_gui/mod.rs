//! ARPO: end-to-end policy optimisation for GUI agents with experience replay (arXiv 2505.16282).
//!
//! Base: GRPO where a whole multi-turn trajectory on a live desktop is one sequence with one outcome, and the group
//! is the rollouts of one task. New: a buffer of successes per task; when all fresh rollouts of a task failed, one
//! stored success takes the place of the first of them, so that the group's rewards vary. DAPO-like: clip-higher,
//! token mean, no KL. (Not the ARPO of agentic tool use.)
//!
//! ```text
//! per task, over the environment's scores e of the fresh rollouts (without the format term):
//!   std(e) < 0.05 (population), mean(e) < 0.2, buffer not empty  ->  group = [random stored success] + fresh[1..]
//! after all tasks: every fresh trajectory with e > 0.1 enters its task's buffer; the oldest leaves above 8
//! R = e + 0.5 f          f = -1 when the last action could not be parsed, else 0;   [B]
//! A = (R - mean) / (std + 1e-6) over the task, on the tokens of all assistant turns
//! loss = clipped ratio [0.8, 1.3], dual clip 3, token mean
//! ```
//!
//! The batch may hold replayed trajectories: [`SuccessReplay::compose`] says which, before advantages are computed.
//! Old log-probabilities must be recomputed AFTER replay, so that the ratio of a replayed trajectory begins at 1;
//! there is no other correction. Groups without variance stay and teach nothing. Log-probabilities of whole
//! sequences are those of the NEXT token, [B, S - 1]: masks and advantages are read from the second token on
//! ([`next_token`]).
//!
//! Tokens that the chat template writes around a turn are in the authors' loss and by default not in ours
//! ([`turn_mask`]). The authors' switch for replay is never read; `enabled` is. The threshold on the mean lets
//! groups of uniformly small scores (0.1 to 0.2) count as failed although they are stored as successes. One task
//! must appear once per batch: its rollouts are found by its name. Source: dvlab-research/ARPO (on EasyR1).

pub mod actions;

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::GroupNorm;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, REWARDS};
use crate::block::{Block, BlockKind, Kind, Reward};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

/// The environment's final score.
pub const EVAL_RESULTS: Input = Input::new("eval_results", "[B]", "final score of the environment, 0 to 1");
/// Whether the last action could be parsed.
pub const FORMAT_REWARDS: Input =
    Input::new("format_rewards", "[B]", "-1 when the last action could not be parsed, else 0");

/// The paper.
pub const PAPER: Paper = Paper {
    id: "arpo_gui",
    title: "ARPO: End-to-End Policy Optimization for GUI Agents with Experience Replay",
    arxiv: "2505.16282",
    summary: "A stored success joins a group whose rollouts all failed.",
    blocks: &[BlockKind::reward::<OutcomeWithFormat>()],
    recipe,
    vectors: Some(("arpo_gui.json", 7)),
    end_to_end: None,
};

/// Outcome plus format, group-standardised, clip-higher 0.3, dual clip, token mean.
pub fn recipe() -> Composition {
    let surrogate = ClippedRatio { clip_low: 0.2, clip_high: 0.3, dual_clip: Some(3.0) };
    Composition::new(&surrogate, Aggregation::TokenMean)
        .reward(&OutcomeWithFormat::default())
        .advantage(&GroupNorm::default())
}

/// The environment's score plus a weight times the format's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutcomeWithFormat {
    /// Weight of the format reward.
    pub format_weight: f64,
}

impl Default for OutcomeWithFormat {
    fn default() -> Self {
        Self { format_weight: 0.5 }
    }
}

impl Block for OutcomeWithFormat {
    fn needs(&self) -> Vec<Input> {
        vec![EVAL_RESULTS, FORMAT_REWARDS]
    }

    fn gives(&self) -> Vec<Input> {
        vec![REWARDS]
    }

    fn validate(&self) -> Result<()> {
        if self.format_weight.is_finite() {
            return Ok(());
        }
        Err(Error::Setting { name: "format_weight", got: self.format_weight, expected: "a finite number" })
    }

    fn describe(&self) -> String {
        format!("score + {} format", self.format_weight)
    }
}

impl Kind for OutcomeWithFormat {
    const KIND: &'static str = "outcome_with_format";
}

impl Reward for OutcomeWithFormat {
    fn shape(&self, batch: &mut Batch, _state: &mut State) -> Result<()> {
        let format = batch.numbers(FORMAT_REWARDS)?;
        let scores = batch.numbers(EVAL_RESULTS)?;
        let rewards =
            scores.iter().zip(format).map(|(e, f)| e + self.format_weight * f).collect::<Vec<f64>>();
        batch.set(REWARDS, rewards)
    }
}

/// A finished rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// By which its trajectory can be found again.
    pub id: String,
    /// Task.
    pub task: String,
    /// The environment's score.
    pub eval: f64,
    /// The format's, 0 or -1.
    pub format: f64,
}

/// When a stored success is replayed, and which rollouts are stored.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SuccessReplay {
    /// Off stores and replays nothing.
    pub enabled: bool,
    /// Rollouts kept per task; the oldest leave.
    pub capacity: usize,
    /// A rollout with a higher score is stored.
    pub success_above: f64,
    /// A group has failed when its population deviation is below this ...
    pub spread_below: f64,
    /// ... and its mean below this.
    pub mean_below: f64,
    /// How many stored rollouts join a failed group, each drawn anew; as many of its first members leave.
    pub injected: usize,
}

impl Default for SuccessReplay {
    fn default() -> Self {
        Self {
            enabled: true,
            capacity: 8,
            success_above: 0.1,
            spread_below: 0.05,
            mean_below: 0.2,
            injected: 1,
        }
    }
}

/// Stored successes by task, oldest first. Trajectories themselves are the caller's, by id.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplayBuffer {
    /// By task.
    pub tasks: BTreeMap<String, VecDeque<Rollout>>,
}

impl ReplayBuffer {
    /// Its name in a [`State`].
    pub const KIND: &'static str = "success_replay";

    /// What `state` holds.
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn load(state: &State) -> Result<Self> {
        state.get(Self::KIND)
    }

    /// Writes it to `state`.
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn save(&self, state: &mut State) -> Result<()> {
        state.set(Self::KIND, self)
    }
}

/// One place of the batch after replay.
#[derive(Clone, Debug, PartialEq)]
pub enum Slot {
    /// The fresh rollout of this index.
    Fresh(usize),
    /// A stored one.
    Stored(Rollout),
}

impl SuccessReplay {
    /// The batch after replay, place by place. `draw(n)` returns a uniform index below n. Fresh successes enter the
    /// buffer afterwards, so that none is replayed in its own iteration.
    ///
    /// # Errors
    /// [`Error::NotFinite`]: a score.
    pub fn compose(
        &self,
        fresh: &[Rollout],
        buffer: &mut ReplayBuffer,
        mut draw: impl FnMut(usize) -> usize,
    ) -> Result<Vec<Slot>> {
        if let Some(index) = fresh.iter().position(|r| !r.eval.is_finite() || !r.format.is_finite()) {
            return Err(Error::NotFinite { name: "eval_results", index, got: fresh[index].eval });
        }
        let mut slots: Vec<Slot> = (0..fresh.len()).map(Slot::Fresh).collect();
        if !self.enabled {
            return Ok(slots);
        }
        let mut groups: Vec<(&str, Vec<usize>)> = Vec::new();
        for (i, rollout) in fresh.iter().enumerate() {
            match groups.iter_mut().find(|(task, _)| *task == rollout.task) {
                Some((_, index)) => index.push(i),
                None => groups.push((&rollout.task, vec![i])),
            }
        }
        for (task, index) in groups {
            let scores: Vec<f64> = index.iter().map(|&i| fresh[i].eval).collect();
            let stored = buffer.tasks.get(task).filter(|stored| !stored.is_empty() && self.failed(&scores));
            let Some(stored) = stored else { continue };
            for &i in index.iter().take(self.injected) {
                slots[i] = Slot::Stored(stored[draw(stored.len()) % stored.len()].clone());
            }
        }
        for rollout in fresh.iter().filter(|r| r.eval > self.success_above) {
            let stored = buffer.tasks.entry(rollout.task.clone()).or_default();
            stored.push_back(rollout.clone());
            while stored.len() > self.capacity {
                stored.pop_front();
            }
        }
        Ok(slots)
    }

    /// Whether a group of these scores has failed: low and without variance.
    pub fn failed(&self, scores: &[f64]) -> bool {
        let n = scores.len().max(1) as f64;
        let mean = scores.iter().sum::<f64>() / n;
        let variance = scores.iter().map(|e| (e - mean) * (e - mean)).sum::<f64>() / n;
        variance.sqrt() < self.spread_below && mean < self.mean_below
    }
}

/// Unbiased deviation of each group's rewards, groups in order of id, and how many are below 0.01: groups that teach
/// nothing. A lone member's deviation is 0.
///
/// # Errors
/// Lengths differ.
pub fn group_spread(rewards: &[f64], group_ids: &[u64]) -> Result<(Vec<f64>, usize)> {
    if rewards.len() != group_ids.len() {
        let expected = format!("[{}], like `group_ids`", group_ids.len());
        return Err(Error::Shape { name: "rewards", got: vec![rewards.len()], expected });
    }
    let spread = |index: &Vec<usize>| {
        let n = index.len() as f64;
        let mean = index.iter().map(|&i| rewards[i]).sum::<f64>() / n;
        let squares: f64 = index.iter().map(|&i| (rewards[i] - mean) * (rewards[i] - mean)).sum();
        (squares / (n - 1.0).max(1.0)).sqrt()
    };
    let spreads: Vec<f64> = crate::advantage::members(group_ids).values().map(spread).collect();
    let flat = spreads.iter().filter(|&&s| s < 0.01).count();
    Ok((spreads, flat))
}

/// Tokens of an assistant turn inside a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnSpan {
    /// First token, that of the header.
    pub start: usize,
    /// Tokens of the header (role and newline), which the template writes.
    pub header: usize,
    /// Tokens that were sampled, the end token included.
    pub sampled: usize,
    /// Tokens behind them (a newline), which the template writes.
    pub trailing: usize,
}

/// The response mask of one sequence, [S]: 1 on sampled tokens. `with_template` also sets it on the tokens around
/// them that were NOT sampled, as the authors do. What lies beyond `len` was cut off.
pub fn turn_mask(turns: &[TurnSpan], len: usize, with_template: bool) -> Vec<f64> {
    let mut mask = vec![0.0; len];
    for turn in turns {
        let sampled = turn.start + turn.header;
        let (first, end) = match with_template {
            true => (turn.start, sampled + turn.sampled + turn.trailing),
            false => (sampled, sampled + turn.sampled),
        };
        mask.iter_mut().take(end).skip(first).for_each(|m| *m = 1.0);
    }
    mask
}

/// A table over tokens, [B, S], as one over next-token log-probabilities, [B, S - 1]: without its first column.
pub fn next_token(table: &Table) -> Table {
    let cols = table.cols.saturating_sub(1);
    let values = (0..table.rows).flat_map(|i| table.row(i).iter().skip(1).copied()).collect();
    Table { rows: table.rows, cols, values }
}

/// The score of an OSWorld task after its episode.
///
/// `infeasible` tasks score 1 exactly when the agent gave up (`FAIL`); any other task scores 0 then. Several
/// metrics are joined by `conj`: `and` is 0 when one is 0 and else their mean, `or` is 1 when one is 1 and else
/// their maximum. A metric whose file is missing (`None`) counts as 0.
pub fn osworld_score(
    infeasible: bool,
    metrics: &[Option<f64>],
    conj: &str,
    last_action: Option<&str>,
) -> f64 {
    let gave_up = last_action == Some("FAIL");
    if infeasible || gave_up {
        return f64::from(u8::from(infeasible && gave_up));
    }
    let values: Vec<f64> = metrics.iter().map(|m| m.unwrap_or(0.0)).collect();
    match values[..] {
        [] => 0.0,
        [one] => one,
        _ if conj == "or" => {
            if values.contains(&1.0) {
                1.0
            } else {
                values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
            }
        }
        _ if values.contains(&0.0) => 0.0,
        _ => values.iter().sum::<f64>() / values.len() as f64,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn rollouts(round: usize, scores: &[f64]) -> Vec<Rollout> {
        let rollout = |(i, &eval): (usize, &f64)| Rollout {
            id: format!("{round}.{i}"),
            task: format!("t{}", i % 2),
            eval,
            format: 0.0,
        };
        scores.iter().enumerate().map(rollout).collect()
    }

    #[test]
    fn a_replayed_success_gets_the_advantage_that_the_authors_report() {
        let replay = SuccessReplay::default();
        let mut buffer = ReplayBuffer::default();
        let one = |eval: f64, i: usize| Rollout { id: i.to_string(), task: "t".into(), eval, format: 0.0 };
        replay.compose(&[one(1.0, 99)], &mut buffer, |_| 0).unwrap();
        let failed: Vec<Rollout> = (0..8).map(|i| one(0.0, i)).collect();
        let slots = replay.compose(&failed, &mut buffer, |_| 0).unwrap();
        assert!(matches!(&slots[0], Slot::Stored(r) if r.id == "99"));
        assert_eq!(slots[1], Slot::Fresh(1));
        let rewards = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let a = crate::advantage::group_norm(&rewards, &[0; 8], &GroupNorm::default()).unwrap();
        assert!((a[0] - 2.47).abs() < 0.01 && (a[1] + 0.354).abs() < 0.001, "{a:?}");
    }

    #[test]
    fn template_tokens_count_only_on_request() {
        let turns = [
            TurnSpan { start: 1, header: 1, sampled: 1, trailing: 1 },
            TurnSpan { start: 5, header: 1, sampled: 3, trailing: 1 },
        ];
        assert_eq!(turn_mask(&turns, 8, false), [0., 0., 1., 0., 0., 0., 1., 1.]);
        assert_eq!(turn_mask(&turns, 8, true), [0., 1., 1., 1., 0., 1., 1., 1.]);
    }

    #[test]
    fn a_checkpoint_keeps_the_buffer_bit_for_bit_and_off_is_off() {
        let replay = SuccessReplay { capacity: 2, ..SuccessReplay::default() };
        let (mut state, mut buffer) = (State::default(), ReplayBuffer::default());
        replay
            .compose(&rollouts(0, &[0.1 + 0.2, 0.0, 0.9, 1.0 / 3.0, 0.7, 0.0]), &mut buffer, |_| 0)
            .unwrap();
        buffer.save(&mut state).unwrap();
        let text = serde_json::to_string(&state).unwrap();
        let mut restored = ReplayBuffer::load(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(restored, buffer);
        assert_eq!(buffer.tasks["t0"].iter().map(|r| r.id.as_str()).collect::<Vec<_>>(), ["0.2", "0.4"]);
        let next = rollouts(1, &[0.0; 4]);
        let a = replay.compose(&next, &mut buffer, |n| n - 1).unwrap();
        assert_eq!(a, replay.compose(&next, &mut restored, |n| n - 1).unwrap());
        let off = SuccessReplay { enabled: false, ..replay };
        assert!(off.compose(&next, &mut buffer, |_| 0).unwrap().iter().all(|s| matches!(s, Slot::Fresh(_))));
    }

    proptest! {
        #[test]
        fn only_the_first_of_a_failed_group_is_replaced(
            scores in proptest::collection::vec(prop_oneof![Just(0.0), Just(1.0), 0.0f64..1.0], 2..12),
            pick in 0usize..9,
        ) {
            let mut buffer = ReplayBuffer::default();
            let replay = SuccessReplay::default();
            replay.compose(&rollouts(0, &[1.0, 1.0, 1.0]), &mut buffer, |_| pick).unwrap();
            let fresh = rollouts(1, &scores);
            let slots = replay.compose(&fresh, &mut buffer, |_| pick).unwrap();
            for (i, slot) in slots.iter().enumerate() {
                match slot {
                    Slot::Fresh(j) => prop_assert_eq!(i, *j),
                    Slot::Stored(r) => prop_assert!(i < 2 && r.task == fresh[i].task && r.eval > 0.1),
                }
            }
            prop_assert!(buffer.tasks.values().all(|stored| stored.len() <= 8));
        }
    }
}
