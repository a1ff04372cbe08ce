//! INPO: Iterative Nash Policy Optimization (arXiv 2407.00617).
//!
//! Base: IPO, iterated. For preferences that need not come from a reward (A over B over C over A): the policy plays
//! against itself, and each iteration is one step of online mirror descent, written as a squared loss on pairs that the
//! policy sampled itself. New: the reference is a MIXTURE of the fixed reference (weight rho = tau/eta) and the previous
//! iterate (1 - rho). No win rates are estimated; an oracle says which of two answers it prefers.
//!
//! ```text
//! c, r   = summed log-probabilities of chosen and rejected (no length normalisation), [P]
//! h      = (c - r) - rho (ref_c - ref_r) - (1 - rho) (old_c - old_r)
//! loss   = mean over pairs of (h - 1/(2 eta))^2
//! exact: log p'(y) = P(y beats p)/eta + rho log ref(y) + (1 - rho) log p(y) - log Z                 [`mirror_step`]
//! ```
//!
//! `old_log_probs` are those of the PREVIOUS ITERATION, which sampled the answers. With eta = 0.005 the target is 100
//! nats and the loss starts near 10^4: that is intended (small models: eta 0.05 to 0.5). rho = 1 is IPO against the
//! reference, rho = 0 against the previous iterate. Source: COMAL's implementation of the loss (2410.23223), which
//! agrees with the paper; the paper's tournament of eight answers ([`select_pair`]). COMAL replaces the reference every
//! few iterations: [`replaces_reference`].
//!
//! Pairs of equal answers teach nothing; `select_pair` drops them.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::Paper;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, LOG_PROBS, OLD_LOG_PROBS, PAIR_IDS, REF_LOG_PROBS, Signals};
use crate::block::{Block, BlockKind, Kind, Surrogate, SurrogateLoss, Terms};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::pairs::{Pairs, row_sums};
use crate::table::Table;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "inpo",
    title: "Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning",
    arxiv: "2407.00617",
    summary: "Self-play: margins are regressed on a target against a mixture of reference and previous iterate.",
    blocks: &[BlockKind::surrogate::<NashPairs>()],
    recipe,
    vectors: Some(("inpo.json", 10)),
    end_to_end: None,
};

/// eta 0.005, a third of the reference.
pub fn recipe() -> Composition {
    Composition::new(&NashPairs::default(), Aggregation::TokenMean)
}

/// INPO's loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NashPairs {
    /// Inverse step of mirror descent, greater than 0; the target is 1/(2 eta) nats.
    pub eta: f64,
    /// rho: weight of the fixed reference, 0 or more; beyond 1 the previous iterate counts negatively.
    pub tau_over_eta: f64,
}

impl Default for NashPairs {
    fn default() -> Self {
        Self { eta: 0.005, tau_over_eta: 1.0 / 3.0 }
    }
}

impl NashPairs {
    /// h of every pair, [P], with gradient.
    ///
    /// # Errors
    /// A missing input, a torn pair.
    pub fn margins(&self, batch: &Batch, pairs: &Pairs) -> Result<Tensor> {
        let margin = |sums: &Tensor| -> Result<Tensor> {
            let (chosen, rejected) = pairs.split(sums)?;
            Ok((chosen - rejected)?)
        };
        let reference = (margin(&row_sums(batch, REF_LOG_PROBS)?.detach())? * self.tau_over_eta)?;
        let last = (margin(&row_sums(batch, OLD_LOG_PROBS)?.detach())? * (1.0 - self.tau_over_eta))?;
        Ok(((margin(&row_sums(batch, LOG_PROBS)?)? - reference)? - last)?)
    }

    /// (h - 1/(2 eta))^2, elementwise.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn squared_error(&self, margins: &Tensor) -> Result<Tensor> {
        self.validate()?;
        Ok((margins - 0.5 / self.eta)?.sqr()?)
    }
}

impl Block for NashPairs {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, REF_LOG_PROBS, OLD_LOG_PROBS, PAIR_IDS]
    }

    fn validate(&self) -> Result<()> {
        if !(self.eta > 0.0 && self.eta.is_finite()) {
            return Err(Error::Setting { name: "eta", got: self.eta, expected: "greater than 0" });
        }
        if !(self.tau_over_eta >= 0.0 && self.tau_over_eta.is_finite()) {
            let got = self.tau_over_eta;
            return Err(Error::Setting {
                name: "tau_over_eta",
                got,
                expected: "0 or more, usually at most 1",
            });
        }
        Ok(())
    }

    fn describe(&self) -> String {
        format!("margins towards {} nats, reference share {:.3}", 0.5 / self.eta, self.tau_over_eta)
    }
}

impl Kind for NashPairs {
    const KIND: &'static str = "nash_pairs";
}

impl Surrogate for NashPairs {
    fn loss(&self, batch: &Batch, _signals: &Signals) -> Result<SurrogateLoss> {
        let pairs = Pairs::of(batch)?;
        Ok(Terms::Pairs(self.squared_error(&self.margins(batch, &pairs)?)?).into())
    }

    fn uses_advantages(&self) -> bool {
        false
    }
}

/// A pair of answers to one prompt, and the questions that chose it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Index of the answer that is preferred.
    pub winner: usize,
    /// Index of the answer that is not.
    pub loser: usize,
    /// What the oracle was asked, in order.
    pub queries: Vec<(usize, usize)>,
    /// Whether the pair is trained on: winner and loser differ, and the oracle confirms it with more than 0.5.
    pub kept: bool,
}

/// Chooses the best and the worst of `k` answers. `beats(i, j)` is the probability that answer i beats answer j,
/// averaged over both orders of presentation; at 0.5 the first argument wins.
///
/// Eight answers play a tournament: winners of neighbours play on for the best, losers of the first round for the worst,
/// 10 questions in all. Two answers are labelled. Any other number is scanned for the best, then for the worst.
///
/// # Errors
/// [`Error::Invalid`]: fewer than two answers; [`Error::NotFinite`]: a probability that is not a number.
pub fn select_pair(k: usize, beats: &dyn Fn(usize, usize) -> f64) -> Result<Selection> {
    if k < 2 {
        return Err(Error::Invalid { what: "answers", reason: format!("a pair cannot be chosen of {k}") });
    }
    let mut queries = Vec::new();
    let mut play = |a: usize, b: usize| -> Result<(usize, usize)> {
        let p = beats(a, b);
        if !p.is_finite() {
            return Err(Error::NotFinite { name: "preference", index: queries.len(), got: p });
        }
        queries.push((a, b));
        Ok(if p >= 0.5 { (a, b) } else { (b, a) })
    };
    let (winner, loser) = if k == 8 {
        let (mut best, mut worst) = (Vec::new(), Vec::new());
        for i in (0..k).step_by(2) {
            let (won, lost) = play(i, i + 1)?;
            best.push(won);
            worst.push(lost);
        }
        let mut last_of = |mut round: Vec<usize>, winners: bool| -> Result<usize> {
            while round.len() > 1 {
                let mut next = Vec::with_capacity(round.len() / 2);
                for match_ in round.chunks_exact(2) {
                    let (won, lost) = play(match_[0], match_[1])?;
                    next.push(if winners { won } else { lost });
                }
                round = next;
            }
            Ok(round[0])
        };
        (last_of(best, true)?, last_of(worst, false)?)
    } else if k == 2 {
        play(0, 1)?
    } else {
        let (mut best, mut worst) = (0, 0);
        for i in 1..k {
            best = play(best, i)?.0;
        }
        for i in 1..k {
            worst = play(worst, i)?.1;
        }
        (best, worst)
    };
    let kept = winner != loser && beats(winner, loser) > 0.5;
    Ok(Selection { winner, loser, queries, kept })
}

/// COMAL's choice: the answers with the best and the SECOND best mean probability of beating the others; the earlier one
/// at a tie. Asks about every ordered pair.
///
/// # Errors
/// As [`select_pair`].
pub fn select_top_two(k: usize, beats: &dyn Fn(usize, usize) -> f64) -> Result<Selection> {
    if k < 2 {
        return Err(Error::Invalid { what: "answers", reason: format!("a pair cannot be chosen of {k}") });
    }
    let (mut queries, mut scores) = (Vec::new(), vec![0.0; k]);
    for (i, score) in scores.iter_mut().enumerate() {
        for j in (0..k).filter(|&j| j != i) {
            let p = beats(i, j);
            if !p.is_finite() {
                return Err(Error::NotFinite { name: "preference", index: queries.len(), got: p });
            }
            queries.push((i, j));
            *score += p;
        }
    }
    let mut order: Vec<usize> = (0..k).collect();
    order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]));
    let (winner, loser) = (order[0], order[1]);
    Ok(Selection { winner, loser, queries, kept: beats(winner, loser) > 0.5 })
}

/// An oracle's probability averaged over both orders: (P(a over b) + 1 - P(b over a)) / 2.
pub fn both_orders(a_over_b: f64, b_over_a: f64) -> f64 {
    (a_over_b + 1.0 - b_over_a) / 2.0
}

/// COMAL: whether the reference becomes the current policy after `iteration` (from 1); `interval` 0 never does.
pub fn replaces_reference(iteration: u64, interval: u64) -> bool {
    interval > 0 && iteration > 0 && iteration.is_multiple_of(interval)
}

/// A game of preferences over n actions: everything about it that has a closed form.
#[derive(Clone, Debug, PartialEq)]
pub struct PreferenceGame {
    /// Probability that the row's action beats the column's, [n, n].
    pub beats: Table,
    /// Reference policy, [n], positive.
    pub reference: Vec<f64>,
    /// Weight of the KL to the reference in the game's value.
    pub tau: f64,
}

impl PreferenceGame {
    /// Checks sizes and signs.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Setting`], [`Error::NotFinite`].
    pub fn new(beats: Table, reference: Vec<f64>, tau: f64) -> Result<Self> {
        let n = reference.len();
        if n == 0 || (beats.rows, beats.cols) != (n, n) {
            let expected = format!("[{n}, {n}], like the reference, not empty");
            return Err(Error::Shape {
                name: "preference_matrix",
                got: vec![beats.rows, beats.cols],
                expected,
            });
        }
        if let Some(index) = reference.iter().position(|p| !(*p > 0.0 && p.is_finite())) {
            return Err(Error::NotFinite { name: "log reference", index, got: reference[index].ln() });
        }
        if !(tau >= 0.0 && tau.is_finite()) {
            return Err(Error::Setting { name: "tau", got: tau, expected: "0 or more" });
        }
        Ok(Self { beats, reference, tau })
    }

    /// P(action beats `policy`) of every action, [n].
    fn win_rates(&self, policy: &[f64]) -> Vec<f64> {
        let against = |row: &[f64]| row.iter().zip(policy).map(|(p, q)| p * q).sum();
        self.beats.iter().map(against).collect()
    }

    fn check(&self, policy: &[f64]) -> Result<()> {
        let (got, n) = (policy.len(), self.reference.len());
        if got == n {
            return Ok(());
        }
        Err(Error::Shape { name: "policy", got: vec![got], expected: format!("[{n}], like the reference") })
    }

    /// One exact step: p'(y) proportional to exp(P(y beats p)/eta) ref(y)^rho p(y)^(1 - rho), rho = tau/eta.
    ///
    /// # Errors
    /// [`Error::Shape`]; [`Error::Setting`] for an eta that is not positive.
    pub fn mirror_step(&self, policy: &[f64], eta: f64) -> Result<Vec<f64>> {
        self.check(policy)?;
        if !(eta > 0.0 && eta.is_finite()) {
            return Err(Error::Setting { name: "eta", got: eta, expected: "greater than 0" });
        }
        let rho = self.tau / eta;
        // A power of 0 is 1 also where the policy is 0, whose logarithm is infinite.
        let part = |weight: f64, p: f64| if weight == 0.0 { 0.0 } else { weight * p.ln() };
        let logits: Vec<f64> = self
            .win_rates(policy)
            .iter()
            .zip(self.reference.iter().zip(policy))
            .map(|(wins, (reference, p))| wins / eta + part(rho, *reference) + part(1.0 - rho, *p))
            .collect();
        let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = logits.iter().map(|l| (l - top).exp()).collect();
        let total: f64 = weights.iter().sum();
        Ok(weights.iter().map(|w| w / total).collect())
    }

    /// How much either side could gain: max_p J(p, policy) - min_q J(policy, q), where
    /// J(p, q) = E P(p beats q) - tau KL(p || ref) + tau KL(q || ref). 0 at the Nash policy only.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn duality_gap(&self, policy: &[f64]) -> Result<f64> {
        self.check(policy)?;
        let n = self.reference.len();
        let wins = self.win_rates(policy);
        let beaten: Vec<f64> =
            (0..n).map(|b| (0..n).map(|a| policy[a] * self.beats.values[a * n + b]).sum()).collect();
        let kl: f64 = policy
            .iter()
            .zip(&self.reference)
            .map(|(p, r)| if *p > 0.0 { p * (p / r).ln() } else { 0.0 })
            .sum();
        // max_p <p, u> - tau KL(p || ref) = tau log sum ref exp(u / tau)
        let best = |u: &[f64]| {
            let top = u.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            if self.tau == 0.0 {
                return top;
            }
            let sum: f64 = u.iter().zip(&self.reference).map(|(u, r)| r * ((u - top) / self.tau).exp()).sum();
            top + self.tau * sum.ln()
        };
        let losses: Vec<f64> = beaten.iter().map(|u| -u).collect();
        Ok(best(&wins) + best(&losses) + 2.0 * self.tau * kl)
    }

    /// The expected loss of a softmax policy: sum_ab old_a old_b P(a beats b) (h_ab - 1/(2 eta))^2, a scalar with
    /// gradient in `logits` [n]. Its minimiser is [`PreferenceGame::mirror_step`] of `old`.
    ///
    /// # Errors
    /// [`Error::Shape`]; tensor errors.
    pub fn population_loss(&self, logits: &Tensor, old: &[f64], eta: f64) -> Result<Tensor> {
        self.check(old)?;
        let n = self.reference.len();
        if logits.dims() != [n] {
            let expected = format!("[{n}], like the reference");
            return Err(Error::Shape { name: "logits", got: logits.dims().to_vec(), expected });
        }
        let loss = NashPairs { eta, tau_over_eta: self.tau / eta };
        let rho = loss.tau_over_eta;
        // The normaliser of the softmax cancels in every margin.
        let fixed: Vec<f64> =
            self.reference.iter().zip(old).map(|(r, p)| rho * r.ln() + (1.0 - rho) * p.ln()).collect();
        let score = (logits - Tensor::from_slice(&fixed, n, logits.device())?.to_dtype(logits.dtype())?)?;
        let margins = score.unsqueeze(1)?.broadcast_sub(&score.unsqueeze(0)?)?;
        let weights = (0..n * n).map(|i| old[i / n] * old[i % n] * self.beats.values[i]).collect();
        let weights = Table { values: weights, ..self.beats }.to_tensor(logits)?;
        Ok((loss.squared_error(&margins)? * weights)?.sum_all()?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    use super::*;

    fn rock_paper_scissors(tau: f64) -> PreferenceGame {
        let beats = vec![0.5, 0.1, 0.9, 0.9, 0.5, 0.1, 0.1, 0.9, 0.5];
        PreferenceGame::new(Table { rows: 3, cols: 3, values: beats }, vec![0.6, 0.3, 0.1], tau).unwrap()
    }

    #[test]
    fn self_play_finds_the_regularised_nash_policy_of_a_cyclic_game() {
        let game = rock_paper_scissors(0.3);
        let mut policy = game.reference.clone();
        let start = game.duality_gap(&policy).unwrap();
        for _ in 0..400 {
            policy = game.mirror_step(&policy, 3.0).unwrap();
        }
        assert!(start > 0.05 && game.duality_gap(&policy).unwrap() < 1e-9);
    }

    #[test]
    fn the_exact_step_minimises_the_population_loss() {
        let (game, old) = (rock_paper_scissors(0.2), [0.5, 0.2, 0.3]);
        let next: Vec<f64> = game.mirror_step(&old, 0.7).unwrap().iter().map(|p| p.ln()).collect();
        let logits = Var::from_tensor(&Tensor::new(next, &Device::Cpu).unwrap()).unwrap();
        let grads = game.population_loss(logits.as_tensor(), &old, 0.7).unwrap().backward().unwrap();
        let grad: Vec<f64> = grads.get(logits.as_tensor()).unwrap().to_vec1().unwrap();
        assert!(grad.iter().all(|g| g.abs() < 1e-12), "{grad:?}");
    }

    #[test]
    fn ties_go_to_the_first_and_are_dropped() {
        for k in [2, 3, 8] {
            let tied = select_pair(k, &|_, _| 0.5).unwrap();
            assert_eq!((tied.winner, tied.kept), (0, false));
        }
        assert!(select_pair(1, &|_, _| 0.5).is_err());
        assert!(select_pair(2, &|_, _| f64::NAN).is_err());
        assert_eq!(both_orders(0.75, 0.25), 0.75);
        assert_eq!([1, 2, 3, 4].map(|i| replaces_reference(i, 2)), [false, true, false, true]);
    }

    proptest! {
        #[test]
        fn a_transitive_oracle_gives_the_best_and_the_worst(
            (k, strengths) in (2usize..10).prop_flat_map(|k| (Just(k), Just((0..k).collect::<Vec<_>>()).prop_shuffle()))
        ) {
            let chosen = select_pair(k, &|a, b| if strengths[a] > strengths[b] { 0.8 } else { 0.2 }).unwrap();
            prop_assert!(chosen.kept);
            prop_assert_eq!((strengths[chosen.winner], strengths[chosen.loser]), (k - 1, 0));
            let top = select_top_two(k, &|a, b| if strengths[a] > strengths[b] { 0.8 } else { 0.2 }).unwrap();
            prop_assert_eq!((strengths[top.winner], strengths[top.loser], top.kept), (k - 1, k - 2, true));
        }
    }
}
