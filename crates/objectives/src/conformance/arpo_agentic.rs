//! Cases of `arpo_agentic.json`, and the replay of rollout trees that AEPO shares.

use candle_core::Var;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::advantage::{GroupNorm, Spread, group_norm};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, GROUP_IDS, LOG_PROBS, REF_LOG_PROBS, REWARDS, Signals};
use crate::block::{Advantage, Surrogate, TokenRule};
use crate::error::Error;
use crate::objective::Objective;
use crate::papers::arpo_agentic::{
    BranchRule, EntropyOver, RESPONSE_IDS, Rollout, Segment, SharedPrefix, Stop, Tree, TreeSettings, score,
    segment_entropy,
};
use crate::regularizer::Kl;
use crate::state::State;
use crate::surrogate::ClippedRatio;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "reward" => rewards(case),
        "advantages" => advantages(case),
        "loss" => loss(case),
        "rollout" => rollout(case, BranchRule::Rise),
        other => Err(Failure::NotImplemented(format!("function `{other}` of arpo_agentic"))),
    }
}

/// An input that is no tensor of numbers: texts and lists of them.
pub(super) fn input<T: DeserializeOwned>(case: &Case, name: &str) -> Result<T, Failure> {
    let value = case.inputs.get(name).cloned().unwrap_or(Value::Null);
    serde_json::from_value(value).map_err(|e| Failure::Missing(format!("inputs.{name}: {e}")))
}

/// The replayed surrogate settings of verl's code bases.
pub(super) fn clip(case: &Case) -> Result<ClippedRatio, Failure> {
    Ok(ClippedRatio {
        clip_low: case.param("clip_low")?,
        clip_high: case.param("clip_high")?,
        dual_clip: case.param("dual_clip_c")?,
    })
}

/// GRPO's standardisation with the case's epsilon.
pub(super) fn group(case: &Case) -> Result<GroupNorm, Failure> {
    let by_std = case.param::<Option<bool>>("norm_adv_by_std")?.unwrap_or(true);
    let spread = if by_std { Spread::Unbiased } else { Spread::None };
    let epsilon = case.param::<Option<f64>>("epsilon")?.unwrap_or(1e-6);
    Ok(GroupNorm { spread, epsilon, ..GroupNorm::default() })
}

fn loss(case: &Case) -> Outcome {
    let (log_probs, batch, signals) = case.policy_batch()?;
    policy_loss(case, clip(case)?, &log_probs, &batch, &signals)
}

/// A clipped loss with an optional KL, and everything that the code bases report about it.
pub(super) fn policy_loss(
    case: &Case,
    surrogate: impl Surrogate + 'static,
    log_probs: &Var,
    batch: &Batch,
    signals: &Signals,
) -> Outcome {
    let (aggregation, whole) = (case.param::<Aggregation>("agg")?, batch.normaliser());
    let mut objective = Objective::new(surrogate, aggregation);
    let mut kl_loss = 0.0;
    if case.inputs.contains_key("ref_log_probs") {
        let coef = case.param::<Option<f64>>("kl_coef")?.unwrap_or(0.0);
        let kl = Kl { coef, estimator: case.param("kl_type")?, ..Kl::default() };
        // The weight may be 0, and the KL is reported all the same.
        let estimate = kl.estimator.estimate(&batch.tensor(LOG_PROBS)?, &batch.tensor(REF_LOG_PROBS)?)?;
        kl_loss = values(&aggregation.apply(&estimate, batch.mask(), &whole)?)?.iter().sum();
        objective.regularizers.push(Box::new(kl));
    }
    let parts = objective.loss(batch, signals, &whole, &State::default())?;
    Ok(Outputs::from([
        ("pg_loss", vec![parts.pg_loss]),
        ("kl_loss", vec![kl_loss]),
        ("loss", values(&parts.loss)?),
        ("clip_frac", vec![parts.stat("clip_frac")]),
        ("clip_frac_lower", vec![parts.stat("clip_frac_lower")]),
        ("ppo_kl", vec![parts.stat("approx_kl")]),
        ("grad_log_probs", gradient(&parts.loss, log_probs)?),
    ]))
}

fn rewards(case: &Case) -> Outcome {
    let solutions: Vec<String> = input(case, "solutions")?;
    let references: Vec<Value> = input(case, "ground_truths")?;
    let scores = solutions.iter().zip(&references).map(|(solution, reference)| {
        let references: Vec<&str> = match reference {
            Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
            one => one.as_str().into_iter().collect(),
        };
        score(solution, &references)
    });
    Ok(Outputs::from([("scores", scores.collect())]))
}

fn advantages(case: &Case) -> Outcome {
    let groups = case.whole("group_ids")?;
    let mut batch = Batch::new(case.table("response_mask")?)
        .with(REWARDS, case.numbers("rewards")?)?
        .with(GROUP_IDS, groups.clone())?;
    let settings = group(case)?;
    let mut signals = Signals::new(settings.advantages(&batch, &mut State::default())?);
    let scalar = group_norm(&case.numbers("rewards")?, &groups, &settings)?;
    if case.inputs.contains_key("responses") {
        batch.set(RESPONSE_IDS, case.table("responses")?)?;
        SharedPrefix {}.prepare(&batch, &mut signals, &mut State::default())?;
    }
    Ok(Outputs::from([("scalar_advantages", scalar), ("advantages", signals.advantages.values)]))
}

/// A scripted engine's outputs.
pub(super) struct Script<'a> {
    case: &'a Case,
    vocabulary: usize,
    empty: u32,
    result: Vec<u32>,
}

impl<'a> Script<'a> {
    pub(super) fn new(case: &'a Case) -> Result<Self, Failure> {
        let (vocabulary, empty) = (case.param("vocab_size")?, case.param("empty_query_token")?);
        let result = case.whole("result_tokens")?.iter().map(|&t| t as u32).collect();
        Ok(Self { case, vocabulary, empty, result })
    }

    /// The lists of engine outputs under `name`.
    pub(super) fn calls(&self, name: &str) -> Result<Vec<Vec<Segment>>, Failure> {
        let calls: Vec<Value> = input(self.case, name)?;
        calls.iter().map(|call| self.segments(call)).collect()
    }

    fn segments(&self, call: &Value) -> Result<Vec<Segment>, Failure> {
        let missing = || Failure::Missing("engine_outputs".into());
        let outputs = call.get("engine_outputs").and_then(Value::as_array).ok_or_else(missing)?;
        outputs.iter().map(|output| self.segment(output).ok_or_else(missing)).collect()
    }

    fn segment(&self, output: &Value) -> Option<Segment> {
        let tokens: Option<Vec<u32>> =
            output.get("tokens")?.as_array()?.iter().map(|t| Some(t.as_u64()? as u32)).collect();
        let list = |top: &Value| top.as_array()?.iter().map(number).collect::<Option<Vec<f64>>>();
        let top: Option<Vec<Vec<f64>>> = output.get("topk_logprobs")?.as_array()?.iter().map(list).collect();
        let tool = output.get("stop_reason").and_then(Value::as_str).is_some();
        let stop = match output.get("finish_reason").and_then(Value::as_str) {
            Some("length") => Stop::Length,
            _ if tool => Stop::Tool,
            _ => Stop::Eos,
        };
        let entropy = segment_entropy(&top?, self.vocabulary, 20, EntropyOver::Sum);
        Some(Segment { tokens: tokens?, entropy, stop })
    }

    /// One iteration of a tree. Numbers of uniforms that were not recorded fail.
    pub(super) fn advance(
        &self,
        tree: &mut Tree,
        segments: &[Segment],
        uniform: &mut dyn FnMut() -> f64,
    ) -> Result<(), Error> {
        let mut tool =
            |rollout: &Rollout| (rollout.tokens.last() != Some(&self.empty)).then(|| self.result.clone());
        tree.advance(segments, &mut tool, uniform)
    }
}

/// Decimals stand as strings in the file's exact form.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

pub(super) fn settings(case: &Case, rule: BranchRule) -> Result<TreeSettings, Failure> {
    Ok(TreeSettings {
        num_samples: case.param("num_samples")?,
        beam_size: case.param("beam_size")?,
        call_limit: case.param("tool_call_limit")?,
        response_length: case.param("response_length")?,
        branch_probability: case.param("branch_probability")?,
        entropy_weight: case.param("entropy_weight")?,
        rule,
        eos: 2,
    })
}

pub(super) fn rollout(case: &Case, rule: BranchRule) -> Outcome {
    let prompts = input::<Vec<Value>>(case, "prompts")?.len();
    let roots = vec![case.param("initial_rollouts")?; prompts];
    rollout_from(case, settings(case, rule)?, &roots)
}

/// Replays a recorded rollout from `roots`.
pub(super) fn rollout_from(case: &Case, settings: TreeSettings, roots: &[usize]) -> Outcome {
    let script = Script::new(case)?;
    let mut tree = Tree::new(settings, roots)?;
    let mut uniforms = case.numbers("uniforms")?.into_iter();
    let (mut active, mut counts, mut used, mut most) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let float = |x: &usize| *x as f64;
    for segments in script.calls("iterations")? {
        active.extend(tree.active().iter().map(float));
        counts.extend(tree.counts().iter().map(float));
        most.push(tree.max_tokens() as f64);
        let mut drawn = 0.0;
        script.advance(&mut tree, &segments, &mut || {
            drawn += 1.0;
            uniforms.next().unwrap_or(f64::NAN)
        })?;
        used.push(drawn);
    }
    if !tree.active().is_empty() {
        return Err(Failure::Elsewhere("rollouts are left after the last iteration".into()));
    }
    let width = settings.response_length;
    let padded = |x: Vec<f64>| x.into_iter().chain(std::iter::repeat(0.0)).take(width).collect::<Vec<f64>>();
    let rows = tree.finish();
    let responses = rows.iter().flat_map(|r| padded(r.tokens.iter().map(|&t| f64::from(t)).collect()));
    let masks = rows.iter().flat_map(|r| padded(r.mask.iter().map(|&m| f64::from(m)).collect()));
    let first = tree.rollouts().iter().map(|r| r.first_entropy.unwrap_or(f64::NAN));
    Ok(Outputs::from([
        ("active_indices", active),
        ("rollouts_per_sample", counts),
        ("uniforms_used_per_iteration", used),
        ("engine_max_tokens", most),
        ("initial_entropy", first.collect()),
        ("responses", responses.collect()),
        ("loss_mask", masks.collect()),
        ("initial_rollouts", roots.iter().map(float).collect()),
        ("consecutive_branches_final", tree.consecutive().iter().map(float).collect()),
    ]))
}
