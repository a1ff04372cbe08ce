//! LSPO: Latent Space Policy Optimization for Werewolf agents (arXiv 2502.04686). Not the length-sampling method
//! of the same letters.
//!
//! Base: counterfactual regret minimisation (CFR) and DPO; no policy gradient. Each iteration clusters the model's
//! utterances per role into k latent strategies, solves the abstract game over them, and tunes the model towards
//! utterances of better strategies:
//!
//! ```text
//! latent space  k-means on embeddings, per role: an utterance's latent id is its nearest centre
//! solution      sigma(a) = max(R(a), 0) / sum max(R, 0), uniform when that sum is 0;
//!               R(a) += v(a) - sum_b sigma(b) v(b)
//! regret net    mean over rows (or weighted by the CFR iteration t) of the mean over legal actions of (pred - R)^2
//! pairs         chosen = candidate whose latent strategy has the LARGEST regret, rejected = the smallest;
//!               none on a tie
//! DPO           -log sigmoid(beta ((s_c - ref_c) - (s_r - ref_r))),  s = sum of the response's log-probabilities
//! ```
//!
//! Regret is the gain of switching to an action, so larger is better. The reference is the model of the previous
//! iteration. After re-clustering the latent ids mean something else: start [`MatrixCfr`] or the regret memory
//! anew.
//!
//! Shapes: `log_probs`, `ref_log_probs` [2P, T] in nats; `pair_ids` [2P], two rows per pair, the chosen one first.
//!
//! There is no authors' code; k-means' details, beta, the number of candidates and CFR's sizes are reconstructed.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::Paper;
use crate::aggregation::Aggregation;
use crate::batch::{Batch, Input, LOG_PROBS, PAIR_IDS, REF_LOG_PROBS};
use crate::block::{Block, BlockKind, Kind, Surrogate, SurrogateLoss, Terms};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::pairs::Pairs;
use crate::surrogate::log_sigmoid;
use crate::table::Table;

/// The paper.
pub const PAPER: Paper = Paper {
    id: "lspo",
    title: "Learning Strategic Language Agents in the Werewolf Game with Iterative Latent Space Policy Optimization",
    arxiv: "2502.04686",
    summary: "Utterances cluster into strategies, CFR solves the game over them, DPO follows the regrets.",
    blocks: &[BlockKind::surrogate::<LatentDpo>()],
    recipe,
    vectors: Some(("lspo.json", 7)),
    end_to_end: None,
};

/// DPO on pairs chosen by regret.
pub fn recipe() -> Composition {
    Composition::new(&LatentDpo::default(), Aggregation::TokenMean)
}

/// DPO (2305.18290) with label smoothing: z = beta ((s_c - ref_c) - (s_r - ref_r)),
/// loss = -(1 - e) log sigmoid(z) - e log sigmoid(-z). Reads no advantages.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LatentDpo {
    /// How strongly log-ratios count, greater than 0.
    pub beta: f64,
    /// e, the share of pairs whose order is taken to be wrong, 0 to below 0.5.
    pub label_smoothing: f64,
}

impl Default for LatentDpo {
    fn default() -> Self {
        Self { beta: 0.1, label_smoothing: 0.0 }
    }
}

/// What DPO computed, one number per pair, pairs in the order of their chosen rows.
pub struct PairOutcome {
    /// Loss, [P], with gradient.
    pub loss: Tensor,
    /// beta (s - ref) of the chosen row, [P].
    pub chosen_rewards: Vec<f64>,
    /// The same of the rejected row, [P].
    pub rejected_rewards: Vec<f64>,
}

impl LatentDpo {
    /// Loss and implicit rewards of every pair.
    ///
    /// # Errors
    /// A missing input; a pair id that does not stand on exactly two rows.
    pub fn pairs(&self, batch: &Batch) -> Result<PairOutcome> {
        let log_ratio = (batch.tensor(LOG_PROBS)? - batch.tensor(REF_LOG_PROBS)?.detach())?;
        let rewards = (log_ratio.sum(1)? * self.beta)?;
        let (chosen, rejected) = Pairs::of(batch)?.split(&rewards)?;
        let z = (&chosen - &rejected)?;
        let (right, wrong) = (log_sigmoid(&z)?, log_sigmoid(&z.neg()?)?);
        let loss = ((right * (self.label_smoothing - 1.0))? - (wrong * self.label_smoothing)?)?;
        let numbers = |x: &Tensor| Ok::<_, Error>(x.detach().to_dtype(DType::F64)?.to_vec1()?);
        Ok(PairOutcome { loss, chosen_rewards: numbers(&chosen)?, rejected_rewards: numbers(&rejected)? })
    }
}

impl Block for LatentDpo {
    fn needs(&self) -> Vec<Input> {
        vec![LOG_PROBS, REF_LOG_PROBS, PAIR_IDS]
    }

    fn validate(&self) -> Result<()> {
        let wrong = |name, got, expected| Err(Error::Setting { name, got, expected });
        match self {
            s if !(s.beta > 0.0 && s.beta.is_finite()) => wrong("beta", s.beta, "greater than 0"),
            s if !(0.0..0.5).contains(&s.label_smoothing) => {
                wrong("label_smoothing", s.label_smoothing, "0 to below 0.5")
            }
            _ => Ok(()),
        }
    }

    fn describe(&self) -> String {
        format!("DPO on pairs of utterances, beta {}", self.beta)
    }
}

impl Kind for LatentDpo {
    const KIND: &'static str = "latent_dpo";
}

impl Surrogate for LatentDpo {
    fn loss(&self, batch: &Batch, _signals: &crate::batch::Signals) -> Result<SurrogateLoss> {
        Ok(Terms::Pairs(self.pairs(batch)?.loss).into())
    }

    fn uses_advantages(&self) -> bool {
        false
    }
}

/// Chosen and rejected among candidates with latent ids `latent`, by the regrets of the latent strategies: the
/// first with the largest and the first with the smallest. Nothing when they are no further apart than `margin` (0
/// skips ties only; DPO on near ties is noise).
///
/// # Errors
/// A latent id without regret, or a regret that is not finite.
pub fn preference(latent: &[usize], regrets: &[f64], margin: f64) -> Result<Option<(usize, usize)>> {
    let mut found: Option<((usize, f64), (usize, f64))> = None;
    for (i, &id) in latent.iter().enumerate() {
        let Some(&regret) = regrets.get(id) else {
            let reason = format!("candidate {i} has id {id}, there are {} regrets", regrets.len());
            return Err(Error::Invalid { what: "latent ids", reason });
        };
        if !regret.is_finite() {
            return Err(Error::NotFinite { name: "regrets", index: id, got: regret });
        }
        let (best, worst) = found.get_or_insert(((i, regret), (i, regret)));
        if regret > best.1 {
            *best = (i, regret);
        }
        if regret < worst.1 {
            *worst = (i, regret);
        }
    }
    Ok(found.filter(|(best, worst)| best.1 - worst.1 > margin).map(|(best, worst)| (best.0, worst.0)))
}

/// A latent space: clusters of embeddings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatentSpace {
    /// Centres, [k][D].
    pub centres: Vec<Vec<f64>>,
    /// Nearest centre of every embedding, [N].
    pub labels: Vec<usize>,
    /// Sum of squared distances to the nearest centres.
    pub inertia: f64,
    /// Assignments made.
    pub iterations: usize,
}

/// Lloyd's k-means from the given centres until the labels repeat, or for `most` assignments. `embeddings` [N][D]
/// of ONE role (a shared space gives roles away), `centres` [k][D]. An empty cluster keeps its centre; ties go to
/// the first.
///
/// # Errors
/// No centre, lengths that differ, or numbers that are not finite.
pub fn k_means(embeddings: &[Vec<f64>], centres: &[Vec<f64>], most: usize) -> Result<LatentSpace> {
    let Some(width) = centres.first().map(Vec::len) else {
        return Err(Error::Invalid { what: "k-means", reason: "there is no centre".into() });
    };
    for (index, row) in embeddings.iter().chain(centres).enumerate() {
        if row.len() != width {
            let expected = format!("{width} numbers, like the first centre");
            return Err(Error::Shape { name: "embeddings", got: vec![row.len()], expected });
        }
        if let Some(&got) = row.iter().find(|x| !x.is_finite()) {
            return Err(Error::NotFinite { name: "embeddings", index, got });
        }
    }
    let mut space =
        LatentSpace { centres: centres.to_vec(), labels: Vec::new(), inertia: 0.0, iterations: 0 };
    loop {
        let nearest: Vec<(usize, f64)> = embeddings.iter().map(|e| space.nearest(e)).collect();
        let labels: Vec<usize> = nearest.iter().map(|(label, _)| *label).collect();
        let done = space.iterations > 0 && labels == space.labels;
        space.inertia = nearest.iter().map(|(_, d)| d).sum();
        (space.labels, space.iterations) = (labels, space.iterations + 1);
        if done || space.iterations >= most {
            return Ok(space);
        }
        for (label, centre) in space.centres.iter_mut().enumerate() {
            let own: Vec<&Vec<f64>> =
                embeddings.iter().zip(&space.labels).filter(|(_, l)| **l == label).map(|(e, _)| e).collect();
            if !own.is_empty() {
                let mean = |d: usize| own.iter().map(|e| e[d]).sum::<f64>() / own.len() as f64;
                *centre = (0..width).map(mean).collect();
            }
        }
    }
}

impl LatentSpace {
    /// Nearest centre of a new embedding, [D], and its squared distance.
    pub fn nearest(&self, embedding: &[f64]) -> (usize, f64) {
        let squared = |c: &Vec<f64>| c.iter().zip(embedding).map(|(x, y)| (x - y) * (x - y)).sum::<f64>();
        let better = |best: (usize, f64), (i, d): (usize, f64)| if d < best.1 { (i, d) } else { best };
        self.centres.iter().map(squared).enumerate().fold((0, f64::INFINITY), better)
    }
}

/// Regret matching: probabilities in proportion to positive regrets, uniform without one.
pub fn regret_matching(regrets: &[f64]) -> Vec<f64> {
    let positive: Vec<f64> = regrets.iter().map(|r| r.max(0.0)).collect();
    let sum: f64 = positive.iter().sum();
    if sum > 0.0 {
        positive.iter().map(|r| r / sum).collect()
    } else {
        vec![1.0 / regrets.len().max(1) as f64; regrets.len()]
    }
}

/// Regrets of one node: v(a) - sum_b policy(b) v(b). What a traversal stores for the regret network.
pub fn instant_regrets(values: &[f64], policy: &[f64]) -> Vec<f64> {
    let mean: f64 = values.iter().zip(policy).map(|(v, p)| v * p).sum();
    values.iter().map(|v| v - mean).collect()
}

/// CFR on a zero-sum matrix game, both players at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MatrixCfr {
    /// Payoffs of the row player, [A1][A2].
    payoffs: Vec<Vec<f64>>,
    /// Summed regrets of both players.
    pub regrets: [Vec<f64>; 2],
    /// Summed policies of both players.
    policies: [Vec<f64>; 2],
    /// Iterations done.
    pub iterations: usize,
}

impl MatrixCfr {
    /// A game with regrets to begin with, [A1] and [A2].
    ///
    /// # Errors
    /// Lengths that differ, a player without an action, or payoffs that are not finite.
    pub fn new(payoffs: Vec<Vec<f64>>, regrets: [Vec<f64>; 2]) -> Result<Self> {
        let [rows, cols] = [regrets[0].len(), regrets[1].len()];
        if rows == 0 || cols == 0 || payoffs.len() != rows || payoffs.iter().any(|row| row.len() != cols) {
            let got = vec![payoffs.len(), payoffs.first().map_or(0, Vec::len)];
            return Err(Error::Shape {
                name: "payoffs",
                got,
                expected: format!("[{rows}, {cols}], not empty"),
            });
        }
        if let Some((index, &got)) = payoffs.iter().flatten().enumerate().find(|(_, x)| !x.is_finite()) {
            return Err(Error::NotFinite { name: "payoffs", index, got });
        }
        Ok(Self { payoffs, regrets, policies: [vec![0.0; rows], vec![0.0; cols]], iterations: 0 })
    }

    /// One iteration.
    pub fn step(&mut self) {
        let now = [regret_matching(&self.regrets[0]), regret_matching(&self.regrets[1])];
        let values = [self.row_values(&now[1]), self.column_values(&now[0])];
        for player in 0..2 {
            let gains = instant_regrets(&values[player], &now[player]);
            self.regrets[player].iter_mut().zip(gains).for_each(|(r, gain)| *r += gain);
            self.policies[player].iter_mut().zip(&now[player]).for_each(|(sum, p)| *sum += p);
        }
        self.iterations += 1;
    }

    /// Mean policies over all iterations: these approach an equilibrium. Uniform before the first.
    pub fn average_policies(&self) -> [Vec<f64>; 2] {
        [regret_matching(&self.policies[0]), regret_matching(&self.policies[1])]
    }

    /// What best responses to both `policies` gain together; 0 in equilibrium.
    pub fn exploitability(&self, policies: &[Vec<f64>; 2]) -> f64 {
        let best = |values: Vec<f64>| values.into_iter().fold(f64::NEG_INFINITY, f64::max);
        best(self.row_values(&policies[1])) + best(self.column_values(&policies[0]))
    }

    fn row_values(&self, columns: &[f64]) -> Vec<f64> {
        self.payoffs.iter().map(|row| row.iter().zip(columns).map(|(u, p)| u * p).sum()).collect()
    }

    fn column_values(&self, rows: &[f64]) -> Vec<f64> {
        let value = |j: usize| -> f64 { self.payoffs.iter().zip(rows).map(|(row, p)| -row[j] * p).sum() };
        (0..self.regrets[1].len()).map(value).collect()
    }
}

/// What a sample of the regret memory counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegretWeighting {
    /// All alike.
    #[default]
    Uniform,
    /// In proportion to the CFR iteration that made it (linear CFR).
    Linear,
}

/// Loss of a regret network, a scalar with gradient. `predictions` [B, A]; `targets`, `legal` (0 or 1) [B, A];
/// `iterations` [B], read with linear weights only. A row without a legal action adds 0.
///
/// # Errors
/// Shapes that differ.
pub fn regret_loss(
    predictions: &Tensor,
    targets: &Table,
    legal: &Table,
    iterations: &[f64],
    weighting: RegretWeighting,
) -> Result<Tensor> {
    targets.same_shape("regret_targets", legal)?;
    let wrong = |name, got, expected: String| Err(Error::Shape { name, got, expected });
    if predictions.dims() != [legal.rows, legal.cols] {
        return wrong(
            "predictions",
            predictions.dims().to_vec(),
            format!("[{}, {}]", legal.rows, legal.cols),
        );
    }
    let rows: Vec<f64> = match weighting {
        RegretWeighting::Uniform => vec![1.0; legal.rows],
        RegretWeighting::Linear if iterations.len() == legal.rows => iterations.to_vec(),
        RegretWeighting::Linear => {
            return wrong("iteration_index", vec![iterations.len()], format!("[{}]", legal.rows));
        }
    };
    let total: f64 = rows.iter().sum();
    let over = |x: f64| if x > 0.0 { 1.0 / x } else { 0.0 };
    let per_row: Vec<f64> =
        rows.iter().zip(legal.row_sums()).map(|(w, n)| w * over(total) * over(n)).collect();
    let weights = Table::broadcast(&per_row, legal)?.to_tensor(predictions)?;
    let errors = crate::batch::keep_where(&(predictions - targets.to_tensor(predictions)?)?, legal)?;
    Ok((errors.sqr()? * weights)?.sum_all()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::objective::Objective;
    use crate::state::State;
    use candle_core::{Device, Var};

    fn pairs(p: &Var, reference: &[f64]) -> Batch {
        let table = |values: &[f64]| Table { rows: 4, cols: 2, values: values.to_vec() };
        let mut mask = table(&[1.0; 8]);
        mask.values[7] = 0.0;
        Batch::new(mask)
            .with(LOG_PROBS, p.as_tensor().clone())
            .unwrap()
            .with(REF_LOG_PROBS, Tensor::from_vec(reference.to_vec(), (4, 2), &Device::Cpu).unwrap())
            .unwrap()
            .with(PAIR_IDS, vec![9, 2, 9, 2])
            .unwrap()
    }

    fn objective() -> Objective {
        recipe().build().unwrap()
    }

    #[test]
    fn at_the_reference_the_loss_is_log_two() {
        let values = [-1.0, -0.5, -2.0, -0.1, -1.0, -3.0, -0.2, f64::NEG_INFINITY];
        let p = Var::from_vec(values.to_vec(), (4, 2), &Device::Cpu).unwrap();
        let batch = pairs(&p, &values);
        let ready = objective().prepare(batch, &mut State::default()).unwrap();
        let whole = ready.batch.normaliser();
        let loss = objective().loss(&ready.batch, &ready.signals, &whole, &State::default()).unwrap().loss;
        assert!((loss.to_scalar::<f64>().unwrap() - 2f64.ln()).abs() < 1e-12);
        let grad: Vec<f64> =
            loss.backward().unwrap().get(p.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        for (i, g) in grad.iter().enumerate() {
            let expected = if i == 7 { 0.0 } else { (if i < 4 { -0.1 } else { 0.1 }) / 4.0 };
            assert!((g - expected).abs() < 1e-12, "{i}: {g}");
        }
        let torn = ready.batch.select(&[0, 1, 2]).unwrap();
        assert!(
            objective().loss(&torn, &ready.signals.select(&[0, 1, 2]), &whole, &State::default()).is_err()
        );
    }

    #[test]
    fn a_sure_pair_overflows_nowhere() {
        let x = Tensor::new(&[-800.0f64, 0.0, 800.0], &Device::Cpu).unwrap();
        let y: Vec<f64> = log_sigmoid(&x).unwrap().to_vec1().unwrap();
        assert_eq!((y[0], y[2]), (-800.0, 0.0));
        assert!((y[1] + 2f64.ln()).abs() < 1e-15);
    }

    #[test]
    fn preferences() {
        assert_eq!(preference(&[0, 1, 2], &[0.1, 0.5, -0.2], 0.0).unwrap(), Some((1, 2)));
        assert_eq!(preference(&[1, 1], &[0.1, 0.5], 0.0).unwrap(), None);
        assert_eq!(preference(&[0, 1], &[0.1, 0.5], 0.4).unwrap(), None);
        assert_eq!(preference(&[], &[0.1], 0.0).unwrap(), None);
        assert!(preference(&[4], &[0.1], 0.0).is_err());
    }

    /// Rock, paper, scissors: the mean policy approaches the uniform equilibrium, and the memory survives JSON.
    #[test]
    fn cfr_approaches_the_equilibrium_and_resumes_bit_by_bit() {
        let game = vec![vec![0.0, -1.0, 1.0], vec![1.0, 0.0, -1.0], vec![-1.0, 1.0, 0.0]];
        let mut cfr = MatrixCfr::new(game.clone(), [vec![1.0, 0.0, 0.0], vec![0.0; 3]]).unwrap();
        (0..100).for_each(|_| cfr.step());
        let early = cfr.exploitability(&cfr.average_policies());
        let mut resumed: MatrixCfr = serde_json::from_str(&serde_json::to_string(&cfr).unwrap()).unwrap();
        (0..10_000).for_each(|_| cfr.step());
        (0..10_000).for_each(|_| resumed.step());
        assert_eq!(cfr, resumed);
        let late = cfr.exploitability(&cfr.average_policies());
        assert!(late < 0.03 && late < early, "{early} {late}");
        assert!(MatrixCfr::new(game, [vec![], vec![]]).is_err());
    }

    #[test]
    fn clusters_and_masks() {
        let points: Vec<Vec<f64>> = [0.0, 1.0, 10.0, 11.0].iter().map(|&x| vec![x]).collect();
        let space = k_means(&points, &[vec![0.0], vec![1.0], vec![99.0]], 100).unwrap();
        assert_eq!(space.labels, [0, 0, 1, 1]);
        assert_eq!(space.centres[2], [99.0], "an empty cluster keeps its centre");
        assert_eq!(space.nearest(&[9.0]).0, 1);
        assert!(k_means(&points, &[], 9).is_err());
        let predictions = Var::from_vec(vec![1.0, f64::NAN, 2.0, 3.0], (2, 2), &Device::Cpu).unwrap();
        let table = |values: &[f64]| Table { rows: 2, cols: 2, values: values.to_vec() };
        let (targets, legal) = (table(&[0.0; 4]), table(&[1.0, 0.0, 0.0, 0.0]));
        let loss = regret_loss(&predictions, &targets, &legal, &[], RegretWeighting::Uniform).unwrap();
        assert_eq!(loss.to_scalar::<f64>().unwrap(), 0.5);
        let grads = loss.backward().unwrap();
        let grad = grads.get(predictions.as_tensor()).unwrap().flatten_all().unwrap();
        assert_eq!(grad.to_vec1::<f64>().unwrap(), [1.0, 0.0, 0.0, 0.0]);
    }
}
