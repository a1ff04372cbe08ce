//! Cases of `spo_segment.json`.

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::advantage::WhitenAdvantages;
use crate::aggregation::Aggregation;
use crate::batch::Signals;
use crate::objective::Objective;
use crate::papers::spo_segment::{
    ChainSampling, EdgeMethod, SegmentRatio, Tree, UnsureKl, UnsureTokens, segment_advantages,
};
use crate::state::State;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "chain_segment_advantages" => chain(case),
        "tree_segment_advantages" => tree(case),
        "loss" => loss(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of spo_segment"))),
    }
}

fn chain(case: &Case) -> Outcome {
    let old = case.numbers("old_log_probs")?;
    let sampling = ChainSampling {
        threshold: case.param("prob_threshold")?,
        interval: case.param("cutpoint_interval")?,
        rollouts: case.param("mc_rollouts")?,
    };
    let cuts = sampling.cutpoints(&old);
    let mean = |n: &f64| if sampling.rollouts == 0 { 0.0 } else { n / sampling.rollouts as f64 };
    let means: Vec<f64> = case.numbers("mc_success_counts")?.iter().map(mean).collect();
    let score = case.numbers("score")?.first().copied().unwrap_or_default();
    let advantages = segment_advantages(&old, &cuts, &means, score, sampling.threshold)?;
    Ok(Outputs::from([
        ("cutpoints", cuts.iter().map(|&c| c as f64).collect()),
        ("segment_values", means),
        ("token_advantages", advantages),
    ]))
}

fn tree(case: &Case) -> Outcome {
    let parents: Vec<i64> = case.numbers("parent")?.iter().map(|&p| p as i64).collect();
    let leaf: Vec<bool> = case.numbers("is_leaf")?.iter().map(|&x| x != 0.0).collect();
    let tree = Tree::new(&parents, &leaf, &case.numbers("leaf_reward")?)?;
    let edges = tree.edges(case.param::<EdgeMethod>("adv_method")?, case.param("std_eps")?);
    let keep_all: bool = case.param("keep_zero_advantage")?;
    let kept: Vec<_> = edges.iter().filter(|e| keep_all || tree.teaches(e)).collect();
    Ok(Outputs::from([
        ("edge_advantage_all", edges.iter().map(|e| e.advantage).collect()),
        ("edge_child_all", edges.iter().map(|e| e.child as f64).collect()),
        ("kept_edge_child", kept.iter().map(|e| e.child as f64).collect()),
        ("kept_edge_advantage", kept.iter().map(|e| e.advantage).collect()),
        ("node_value", tree.values),
    ]))
}

fn loss(case: &Case) -> Outcome {
    let limit: f64 = case.param("log_ratio_clamp")?;
    let clip = case.param("cliprange")?;
    let ratio = SegmentRatio { clip, log_ratio_clamp: limit, ..SegmentRatio::default() };
    let mut objective = Objective::new(ratio, Aggregation::TokenMean);
    if case.param("use_prob_mask")? {
        objective.weights.push(Box::new(UnsureTokens { threshold: case.param("prob_threshold")? }));
    }
    let (epsilon, unbiased) = (case.param("whiten_eps")?, case.param("unbiased_variance")?);
    objective.weights.push(Box::new(WhitenAdvantages { epsilon, unbiased, per_update: false }));
    match case.param::<Option<String>>("kl_estimator")?.as_deref() {
        None | Some("none") => {}
        Some("k3") => {
            let coef = case.param("kl_coef")?;
            objective.regularizers.push(Box::new(UnsureKl {
                coef,
                log_ratio_clamp: limit,
                ..UnsureKl::default()
            }));
        }
        Some(other) => return Err(Failure::NotImplemented(format!("KL estimator `{other}` of spo_segment"))),
    }
    let (log_probs, batch, _) = case.policy_batch()?;
    let (mut signals, mut state) = (Signals::new(case.table("raw_advantages")?), State::default());
    for rule in &objective.weights {
        rule.prepare(&batch, &mut signals, &mut state)?;
    }
    let parts = objective.loss(&batch, &signals, &batch.normaliser(), &state)?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("grad_log_probs", gradient(&parts.loss, &log_probs)?),
        ("clip_frac", vec![parts.stat("clip_frac")]),
        ("whitened_advantages", signals.advantages.values),
    ]))
}
