//! SRPO: Self-Referential Policy Optimization for Vision-Language-Action models (arXiv 2511.15605).
//!
//! Base: GRPO on action tokens. New: a failed episode is paid by how close its embedding (a frozen video encoder's) is
//! to the successes of the SAME batch and task, instead of 0. Only the reward changes:
//!
//! ```text
//! per task:  centres = DBSCAN clusters of the standardised successes, or their mean when none forms
//!            d_i     = min over centres || E_i - centre ||                     (raw space), failures only
//! minmax:    x_i = (d_i - min d)/(max d - min d), 0.5 when all are equal;  reward = 0.6 sigmoid(10 (0.5 - x_i))
//! zscore:    z_i = (d_i - mean d)/(std d + 1e-8);                          reward = sigmoid(-alpha z_i)
//! success:   reward = 1
//! ```
//!
//! `minmax` is the authors' code (siiRL `utils/reward_score/embodied.py`), `zscore` the paper's formula; the published
//! numbers come from the code, so it is the default. Clipping 0.2 / 0.28, dual clip 10000 (in effect off), each
//! trajectory averaged over its own tokens; groups with mean success outside [0.1, 0.9] dropped.
//!
//! Where we differ: a success whose frames are missing scores 1, not 0 (`missing_success`); the reward is computed over
//! the full batch, never per device; `dbscan_eps` can scale with sqrt(E) (`scale_eps`), because in E dimensions two
//! independent standardised vectors are sqrt(2 E) apart and no cluster would ever form.

use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::{GroupNorm, members};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, EMBEDDINGS, Input, PROGRESS, REWARDS, SUCCESS, TASK_IDS};
use crate::block::{Block, BlockKind, Kind, Reward};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::filter::AccuracyFilter;
use crate::state::State;
use crate::surrogate::ClippedRatio;

/// How distances become rewards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProgressNorm {
    /// The authors' code.
    Minmax,
    /// The paper's formula.
    Zscore,
}

/// Settings of the progress reward.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Progress {
    /// Factor on the reward, which the group's standardisation cancels except for its epsilon.
    pub coef: f64,
    /// Which form.
    pub norm: ProgressNorm,
    /// Reward that the closest failure approaches (minmax), 0 to 1.
    pub fail_max: f64,
    /// Slope of the sigmoid (minmax).
    pub steepness: f64,
    /// Relative distance of half reward (minmax).
    pub offset: f64,
    /// Slope of the sigmoid (zscore).
    pub alpha: f64,
    /// Distances closer together than this are equal.
    pub range_epsilon: f64,
    /// DBSCAN radius in standardised space; 0 turns clustering off.
    pub dbscan_eps: f64,
    /// Multiply the radius by sqrt(E).
    pub scale_eps: bool,
    /// Points (itself included) within the radius that make a cluster.
    pub dbscan_min_samples: usize,
    /// Reward of a success without frames: 1 is ours, 0 the authors' code.
    pub missing_success: f64,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            coef: 5.0,
            norm: ProgressNorm::Minmax,
            fail_max: 0.6,
            steepness: 10.0,
            offset: 0.5,
            alpha: 1.0,
            range_epsilon: 1e-6,
            dbscan_eps: 0.5,
            scale_eps: false,
            dbscan_min_samples: 2,
            missing_success: 1.0,
        }
    }
}

/// Rewards and what they were made of; -1 where there is no distance (successes, episodes without reference).
#[derive(Clone, Debug, PartialEq)]
pub struct ProgressRewards {
    /// [B] in 0..=1.
    pub rewards: Vec<f64>,
    /// [B] distance to the nearest centre.
    pub distance: Vec<f64>,
    /// [B] the distance relative to the batch's other failures (minmax) or its z score.
    pub normalised: Vec<f64>,
}

/// The paper.
pub const PAPER: Paper = Paper {
    id: "srpo",
    title: "SRPO: Self-Referential Policy Optimization for Vision-Language-Action Models",
    arxiv: "2511.15605",
    summary: "Failures are paid by their closeness to the batch's own successes.",
    blocks: &[BlockKind::reward::<Progress>()],
    recipe,
    vectors: Some(("srpo.json", 12)),
    end_to_end: Some("configs/tabletop_srpo.toml"),
};

/// Progress rewards, groups of middling success, group-standardised rewards, clip-higher, trajectories averaged first.
pub fn recipe() -> Composition {
    let surrogate = ClippedRatio { clip_low: 0.2, clip_high: 0.28, dual_clip: Some(10_000.0) };
    Composition::new(&surrogate, Aggregation::SeqMeanTokenMean)
        .reward(&Progress::default())
        .filter(&AccuracyFilter::default())
        .advantage(&GroupNorm::default())
}

impl Block for Progress {
    fn needs(&self) -> Vec<Input> {
        vec![EMBEDDINGS, SUCCESS, TASK_IDS]
    }

    fn gives(&self) -> Vec<Input> {
        vec![PROGRESS, REWARDS]
    }

    fn validate(&self) -> Result<()> {
        let least = |name, got: f64, low: f64, expected| {
            if got >= low && got.is_finite() { Ok(()) } else { Err(Error::Setting { name, got, expected }) }
        };
        least("coef", self.coef, 0.0, "0 or more")?;
        least("fail_max", self.fail_max, 0.0, "0 or more")?;
        least("steepness", self.steepness, f64::MIN, "a finite number")?;
        least("offset", self.offset, f64::MIN, "a finite number")?;
        least("alpha", self.alpha, f64::MIN, "a finite number")?;
        least("range_epsilon", self.range_epsilon, 0.0, "0 or more")?;
        least("dbscan_eps", self.dbscan_eps, 0.0, "0 (no clusters) or more")?;
        least("missing_success", self.missing_success, 0.0, "0 or more")
    }

    fn describe(&self) -> String {
        let norm = match self.norm {
            ProgressNorm::Minmax => format!("{} sigmoid of the relative distance", self.fail_max),
            ProgressNorm::Zscore => "sigmoid of the distance's z score".into(),
        };
        format!("success 1, failures by closeness to successes ({norm}), times {}", self.coef)
    }
}

impl Kind for Progress {
    const KIND: &'static str = "progress";
}

impl Reward for Progress {
    fn shape(&self, batch: &mut Batch, _state: &mut State) -> Result<()> {
        let success: Vec<bool> = batch.numbers(SUCCESS)?.iter().map(|&x| x != 0.0).collect();
        let out = progress_rewards(batch.vectors(EMBEDDINGS)?, &success, batch.ids(TASK_IDS)?, self)?;
        let rewards: Vec<f64> = out.rewards.iter().map(|r| r * self.coef).collect();
        batch.set(PROGRESS, out.rewards)?;
        batch.set(REWARDS, rewards)
    }
}

/// Rewards of a batch. `embeddings` [B][E] (an all-zero row means "no frames"), `success` [B], `task_ids` [B]: the task
/// WITHOUT the trial, so that all trials of a task share their successes.
///
/// # Errors
/// Lengths differ, or a value is not finite.
pub fn progress_rewards(
    embeddings: &[Vec<f64>],
    success: &[bool],
    task_ids: &[u64],
    settings: &Progress,
) -> Result<ProgressRewards> {
    let b = embeddings.len();
    for (name, got) in [("success", success.len()), ("task_ids", task_ids.len())] {
        if got != b {
            return Err(Error::Shape { name, got: vec![got], expected: format!("[{b}], like `embeddings`") });
        }
    }
    let width = embeddings.first().map_or(0, Vec::len);
    for (index, row) in embeddings.iter().enumerate() {
        if row.len() != width {
            let expected = format!("{width} numbers, like the first row");
            return Err(Error::Shape { name: "embeddings", got: vec![row.len()], expected });
        }
        if let Some(&got) = row.iter().find(|x| !x.is_finite()) {
            return Err(Error::NotFinite { name: "embeddings", index, got });
        }
    }
    let seen: Vec<bool> = embeddings.iter().map(|e| e.iter().any(|&x| x != 0.0)).collect();
    let mut out =
        ProgressRewards { rewards: vec![0.0; b], distance: vec![-1.0; b], normalised: vec![-1.0; b] };
    for index in members(task_ids).values() {
        let of = |wanted: bool| -> Vec<usize> {
            index.iter().copied().filter(|&i| seen[i] && success[i] == wanted).collect()
        };
        let (good, bad) = (of(true), of(false));
        for &i in index.iter().filter(|&&i| success[i]) {
            out.rewards[i] = if seen[i] { 1.0 } else { settings.missing_success };
        }
        if good.is_empty() || bad.is_empty() {
            continue;
        }
        let successes: Vec<&[f64]> = good.iter().map(|&i| embeddings[i].as_slice()).collect();
        let centres = reference_centres(&successes, settings);
        let nearest =
            |i: usize| centres.iter().map(|c| distance(&embeddings[i], c)).fold(f64::INFINITY, f64::min);
        let d: Vec<f64> = bad.iter().map(|&i| nearest(i)).collect();
        for ((&i, d), (x, reward)) in bad.iter().zip(&d).zip(grade(&d, settings)) {
            (out.distance[i], out.normalised[i], out.rewards[i]) = (*d, x, reward);
        }
    }
    Ok(out)
}

/// Normalised distance and reward of every failure of a task.
fn grade(d: &[f64], s: &Progress) -> Vec<(f64, f64)> {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match s.norm {
        ProgressNorm::Minmax => {
            let low = d.iter().copied().fold(f64::INFINITY, f64::min);
            let range = d.iter().copied().fold(f64::NEG_INFINITY, f64::max) - low;
            let relative = |d: f64| if range >= s.range_epsilon { (d - low) / range } else { 0.5 };
            d.iter()
                .map(|&d| (relative(d), s.fail_max * sigmoid(s.steepness * (s.offset - relative(d)))))
                .collect()
        }
        ProgressNorm::Zscore => {
            let n = d.len() as f64;
            let mean = d.iter().sum::<f64>() / n;
            let std = (d.iter().map(|d| (d - mean) * (d - mean)).sum::<f64>() / n).sqrt();
            let z = |d: f64| (d - mean) / (std + 1e-8);
            d.iter().map(|&d| (z(d), sigmoid(-s.alpha * z(d)))).collect()
        }
    }
}

/// Centres of the clusters among standardised successes, in raw space; their mean when no cluster forms.
fn reference_centres(successes: &[&[f64]], s: &Progress) -> Vec<Vec<f64>> {
    let (n, width) = (successes.len() as f64, successes[0].len());
    let mean: Vec<f64> = (0..width).map(|j| successes.iter().map(|e| e[j]).sum::<f64>() / n).collect();
    let spread = |j: usize| {
        let variance = successes.iter().map(|e| (e[j] - mean[j]) * (e[j] - mean[j])).sum::<f64>() / n;
        if variance == 0.0 { 1.0 } else { variance.sqrt() }
    };
    let std: Vec<f64> = (0..width).map(spread).collect();
    let scaled: Vec<Vec<f64>> =
        successes.iter().map(|e| (0..width).map(|j| (e[j] - mean[j]) / std[j]).collect()).collect();
    let eps = if s.scale_eps { s.dbscan_eps * (width as f64).sqrt() } else { s.dbscan_eps };
    let clusters = if eps > 0.0 { dbscan(&scaled, eps, s.dbscan_min_samples) } else { Vec::new() };
    if clusters.is_empty() {
        return vec![mean];
    }
    let centre = |cluster: &Vec<usize>| {
        let m = cluster.len() as f64;
        (0..width)
            .map(|j| mean[j] + std[j] * cluster.iter().map(|&i| scaled[i][j]).sum::<f64>() / m)
            .collect()
    };
    clusters.iter().map(centre).collect()
}

/// DBSCAN (Ester et al. 1996): clusters as lists of indices, noise left out. A point is a core point when at least
/// `min_samples` points, itself included, lie within `eps` (distance <= eps); clusters grow from core points in index
/// order, and a border point belongs to the first cluster that reaches it.
fn dbscan(points: &[Vec<f64>], eps: f64, min_samples: usize) -> Vec<Vec<usize>> {
    let near: Vec<Vec<usize>> = points
        .iter()
        .map(|p| (0..points.len()).filter(|&j| distance(p, &points[j]) <= eps).collect())
        .collect();
    let core = |i: usize| near[i].len() >= min_samples;
    let mut taken = vec![false; points.len()];
    let mut clusters = Vec::new();
    for start in 0..points.len() {
        if taken[start] || !core(start) {
            continue;
        }
        taken[start] = true;
        let mut cluster = vec![start];
        let mut next = 0;
        while next < cluster.len() {
            let i = cluster[next];
            next += 1;
            if core(i) {
                for &j in &near[i] {
                    if !std::mem::replace(&mut taken[j], true) {
                        cluster.push(j);
                    }
                }
            }
        }
        clusters.push(cluster);
    }
    clusters
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn points(x: &[f64]) -> Vec<Vec<f64>> {
        x.iter().map(|&x| vec![x, 1.0]).collect()
    }

    #[test]
    fn closer_failures_earn_more_and_never_as_much_as_a_success() {
        for norm in [ProgressNorm::Minmax, ProgressNorm::Zscore] {
            let settings = Progress { norm, ..Progress::default() };
            let e = points(&[0.0, 0.2, 1.0, 3.0, 9.0]);
            let r = progress_rewards(&e, &[true, true, false, false, false], &[1; 5], &settings).unwrap();
            assert_eq!(r.rewards[..2], [1.0, 1.0]);
            assert!(1.0 > r.rewards[2] && r.rewards[2] > r.rewards[3] && r.rewards[3] > r.rewards[4]);
        }
    }

    #[test]
    fn tasks_do_not_see_each_other_and_no_reference_means_no_reward() {
        let e = points(&[0.0, 1.0, 5.0, 6.0]);
        let success = [true, false, false, false];
        let r = progress_rewards(&e, &success, &[0, 0, 1, 1], &Progress::default()).unwrap();
        assert!((r.rewards[1] - 0.3).abs() < 1e-12, "a single failure is half way");
        assert_eq!(r.rewards[2..], [0.0, 0.0]);
    }

    #[test]
    fn missing_frames() {
        let e = vec![vec![0.0, 0.0], vec![1.0, 2.0], vec![3.0, 1.0]];
        let success = [true, true, false];
        let ours = progress_rewards(&e, &success, &[0; 3], &Progress::default()).unwrap();
        let authors = Progress { missing_success: 0.0, ..Progress::default() };
        let authors = progress_rewards(&e, &success, &[0; 3], &authors).unwrap();
        assert_eq!((ours.rewards[0], authors.rewards[0]), (1.0, 0.0));
        assert_eq!(ours.rewards[1..], authors.rewards[1..]);
    }

    #[test]
    fn dbscan_needs_core_points_and_keeps_border_points() {
        let line: Vec<Vec<f64>> = [0.0, 1.0, 2.0, 10.0, 20.0, 21.0].iter().map(|&x| vec![x]).collect();
        assert_eq!(dbscan(&line, 1.0, 2), [vec![0, 1, 2], vec![4, 5]]);
        assert_eq!(dbscan(&line, 1.0, 3), [vec![1, 0, 2]]);
        assert!(dbscan(&line, 0.5, 2).is_empty());
    }

    #[test]
    fn bad_input_is_named() {
        let message = |e: Error| e.to_string();
        let s = Progress::default();
        assert!(message(progress_rewards(&points(&[1.0]), &[], &[0], &s).unwrap_err()).contains("`success`"));
        let nan = vec![vec![f64::NAN]];
        assert!(message(progress_rewards(&nan, &[true], &[0], &s).unwrap_err()).contains("embeddings"));
        let odd = vec![vec![1.0], vec![1.0, 2.0]];
        assert!(message(progress_rewards(&odd, &[true; 2], &[0; 2], &s).unwrap_err()).contains("[2]"));
    }
}
