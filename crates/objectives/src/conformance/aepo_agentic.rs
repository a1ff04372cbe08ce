//! Cases of `aepo_agentic.json`.

use super::arpo_agentic::{Script, input, policy_loss, rollout_from, settings};
use super::case::{Case, Failure, Outcome, Outputs};
use crate::batch::ENTROPY;
use crate::block::TokenRule;
use crate::papers::aepo_agentic::{BalancedClip, Budget, EntropyScaled, Scope};
use crate::papers::arpo_agentic::{BranchRule, Tree, TreeSettings};
use crate::state::State;
use serde_json::Value;

const RULE: BranchRule = BranchRule::Damped { penalty: 0.05 };

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "loss" => loss(case),
        "rollout_budget" => budget(case),
        "rollout" => rollout(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of aepo_agentic"))),
    }
}

fn loss(case: &Case) -> Outcome {
    let (log_probs, mut batch, mut signals) = case.policy_batch()?;
    if case.param("entropy_balanced_advantage")? {
        let coef = case.param::<Option<f64>>("entropy_adv_weight")?.unwrap_or(0.2);
        let rule = EntropyScaled { coef, scope: Scope::MicroBatch, nonnegative: false };
        batch.set(ENTROPY, case.tensor("entropy")?)?;
        rule.update(&batch, &mut signals, &State::default())?;
    }
    let adjusted = signals.advantages.values.clone();
    let plain = super::arpo_agentic::clip(case)?;
    let mut out = if case.param("entropy_balanced_clipping")? {
        let dual_clip = plain.dual_clip.unwrap_or(0.0);
        let clip = BalancedClip { clip_low: plain.clip_low, clip_high: plain.clip_high, dual_clip };
        policy_loss(case, clip, &log_probs, &batch, &signals)?
    } else {
        policy_loss(case, plain, &log_probs, &batch, &signals)?
    };
    out.insert("adjusted_advantages", adjusted);
    Ok(out)
}

fn beta(case: &Case) -> Result<Budget, Failure> {
    let standard = Budget::default();
    Ok(Budget { beta: case.param::<Option<f64>>("beta")?.unwrap_or(standard.beta), ..standard })
}

fn budget(case: &Case) -> Outcome {
    let rows: Vec<Value> = input(case, "rows")?;
    let budget = beta(case)?;
    let number = |x: &Value| x.as_f64().or_else(|| x.as_str()?.parse().ok());
    let roots = |row: &Value| -> Option<f64> {
        let total = row.get("total_budget")?.as_u64()? as usize;
        let steps: Option<Vec<f64>> = row.get("h_steps")?.as_array()?.iter().map(number).collect();
        Some(budget.roots(total, number(row.get("h_root")?)?, &steps?) as f64)
    };
    let roots: Option<Vec<f64>> = rows.iter().map(roots).collect();
    Ok(Outputs::from([("global_rollouts", roots.ok_or_else(|| Failure::Missing("inputs.rows".into()))?)]))
}

fn rollout(case: &Case) -> Outcome {
    let prompts = input::<Vec<Value>>(case, "prompts")?.len();
    let settings = settings(case, RULE)?;
    if !case.param::<Option<bool>>("enable_dynamic_rollouts")?.unwrap_or(false) {
        return rollout_from(case, settings, &vec![case.param("initial_rollouts")?; prompts]);
    }
    // One short continuation, then one complete trajectory of every prompt.
    let script = Script::new(case)?;
    let calls = script.calls("monitor_calls")?;
    let Some((first, calls)) = calls.split_first() else {
        return Err(Failure::Missing("inputs.monitor_calls".into()));
    };
    let mut tree = Tree::new(TreeSettings { num_samples: 1, ..settings }, &vec![1; prompts])?;
    let mut steps = vec![Vec::new(); prompts];
    for segments in calls {
        for (&i, segment) in tree.active().iter().zip(segments) {
            steps[tree.rollouts()[i].prompt].push(segment.entropy);
        }
        script.advance(&mut tree, segments, &mut || f64::NAN)?;
    }
    let budget = beta(case)?;
    let root: Vec<f64> = first.iter().map(|segment| segment.entropy).collect();
    let roots: Vec<usize> =
        root.iter().zip(&steps).map(|(h, steps)| budget.roots(settings.num_samples, *h, steps)).collect();
    let mut out = rollout_from(case, settings, &roots)?;
    out.insert("h_root", root);
    Ok(out)
}
