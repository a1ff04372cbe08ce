//! Cases of `p3o.json`: pairwise losses and the reward scale.

use candle_core::{Tensor, Var};

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, LOG_PROBS, OLD_LOG_PROBS, PAIR_IDS, REF_LOG_PROBS, REWARDS, Signals};
use crate::objective::Objective;
use crate::pairs::{Pairs, halves};
use crate::papers::p3o::{PairClip, PairwiseProximal, RunningMoments, RunningScale, mean_std};
use crate::state::State;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "loss" => loss(case),
        "reward_scale" => reward_scale(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of p3o"))),
    }
}

fn settings(case: &Case) -> Result<PairwiseProximal, Failure> {
    let flag = |name: &str| Ok::<_, Failure>(case.param::<Option<bool>>(name)?.unwrap_or(false));
    let clip = match case.param::<String>("variant")?.as_str() {
        "v1" => PairClip::Separate,
        _ if flag("clip_tokenwise")? => PairClip::TokenWise,
        _ if flag("avg_tokenwise")? => PairClip::JointPerToken,
        _ => PairClip::Joint,
    };
    Ok(PairwiseProximal {
        clip,
        kl_coef: case.param("kl_coef")?,
        clip_range: case.param("cliprange")?,
        clip_ratio: case.param("cliprange_ratio")?,
        scale_q: flag("scale_q")?,
    })
}

fn loss(case: &Case) -> Outcome {
    let block = settings(case)?;
    let (first, second): (Var, Var) = (case.var("log_probs_1")?, case.var("log_probs_2")?);
    let both = |name: &str| -> Result<Tensor, Failure> {
        Ok(Tensor::cat(&[case.tensor(&format!("{name}_1"))?, case.tensor(&format!("{name}_2"))?], 0)?)
    };
    let mask = Table::from_tensor(&both("response_mask")?)?;
    let rewards = [case.numbers("rewards_1")?, case.numbers("rewards_2")?].concat();
    let pairs = halves(mask.rows / 2);
    let batch = Batch::new(mask)
        .with(LOG_PROBS, Tensor::cat(&[first.as_tensor(), second.as_tensor()], 0)?)?
        .with(OLD_LOG_PROBS, both("old_log_probs")?)?
        .with(REF_LOG_PROBS, both("ref_log_probs")?)?
        .with(REWARDS, rewards)?
        .with(PAIR_IDS, pairs)?;
    let pairs = Pairs::of(&batch)?;
    let c = block.constants(&batch, &pairs)?;
    // The authors take the share of clipped pairs in single precision.
    let share = |cut: Vec<bool>| {
        f64::from((cut.iter().filter(|&&c| c).count() as f64 / cut.len().max(1) as f64) as f32)
    };
    let pair_share = share(block.joint(&batch, &pairs, &c)?.1);
    let objective = Objective::new(block, Aggregation::TokenMean);
    let signals = Signals::new(batch.mask().filled(0.0));
    let parts = objective.loss(&batch, &signals, &batch.normaliser(), &State::default())?;
    let clipped = if block.clip == PairClip::TokenWise { parts.stat("clip_frac") } else { pair_share };
    let ((q_mean, q_std), (ratio_mean, _)) = (mean_std(&c.q), mean_std(&c.ratio));
    let extreme = |f: fn(f64, f64) -> f64, from: f64| vec![c.ratio.iter().copied().fold(from, f)];
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("grad_log_probs_1", gradient(&parts.loss, &first)?),
        ("grad_log_probs_2", gradient(&parts.loss, &second)?),
        ("policy_clipfrac", vec![clipped]),
        ("q_diff_mean", vec![q_mean]),
        ("q_diff_std", vec![q_std]),
        ("ratio_mean", vec![ratio_mean]),
        ("ratio_max", extreme(f64::max, f64::NEG_INFINITY)),
        ("ratio_min", extreme(f64::min, f64::INFINITY)),
    ]))
}

fn reward_scale(case: &Case) -> Outcome {
    let mode: String = case.param("mode")?;
    if mode != "running" {
        return Err(Failure::NotImplemented(format!("reward scale `{mode}`")));
    }
    let scale = RunningScale { clip: case.param("cliprange_reward")? };
    let mut moments = RunningMoments::default();
    let (mut scaled, mut means, mut stds) = (Vec::new(), Vec::new(), Vec::new());
    for batch in case.table("scores")?.iter() {
        scaled.extend(scale.scale(batch, &mut moments));
        means.push(moments.mean);
        stds.push(moments.std());
    }
    Ok(Outputs::from([("scaled", scaled), ("running_mean", means), ("running_std", stds)]))
}
