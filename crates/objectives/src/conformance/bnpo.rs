//! Cases of `bnpo.json`.

use super::case::{Case, Failure, Outcome, Outputs};
use super::verl_loss::LossCase;
use crate::batch::{Batch, GROUP_IDS};
use crate::block::Advantage;
use crate::papers::bnpo::{BetaNorm, REWARD_COMPONENTS, beta_weight};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "advantages" => advantages(case),
        "advantages_decomposed" => decomposed(case),
        "schedule" => weights(case),
        "loss" => {
            let surrogate = ClippedRatio {
                clip_low: case.param("clip_low")?,
                clip_high: case.param("clip_high")?,
                dual_clip: Some(case.param("clip_ratio_c")?),
            };
            LossCase::read(case)?.run(surrogate, None)
        }
        other => Err(Failure::NotImplemented(format!("function `{other}` of bnpo"))),
    }
}

fn settings(case: &Case) -> Result<BetaNorm, Failure> {
    let default = BetaNorm::default();
    Ok(BetaNorm {
        min_value: case.param("min_value")?,
        max_value: case.param("max_value")?,
        weight_max: case.param::<Option<f64>>("weight_max")?.unwrap_or(default.weight_max),
        ..default
    })
}

fn advantages(case: &Case) -> Outcome {
    let out = settings(case)?.normalise(&case.numbers("rewards")?, &case.whole("group_ids")?)?;
    let advantages = Table::broadcast(&out.advantages, &case.table("response_mask")?)?;
    Ok(Outputs::from([
        ("advantages", advantages.values),
        ("p", out.success),
        ("p_mean", vec![out.fit.mean]),
        ("p_var", vec![out.fit.variance]),
        ("a", vec![out.fit.a]),
        ("b", vec![out.fit.b]),
        ("alpha", vec![out.fit.alpha]),
        ("beta", vec![out.fit.beta]),
        ("group_weight", out.weights),
    ]))
}

fn decomposed(case: &Case) -> Outcome {
    let (settings, mask, groups) = (settings(case)?, case.table("response_mask")?, case.whole("group_ids")?);
    const NAMES: [&str; 8] = [
        "advantages_0",
        "advantages_1",
        "advantages_2",
        "advantages_3",
        "advantages_4",
        "advantages_5",
        "advantages_6",
        "advantages_7",
    ];
    let mut outputs = Outputs::new();
    let mut components = vec![Vec::new(); mask.rows];
    for (k, name) in NAMES.iter().enumerate().take(case.param("n_rewards")?) {
        let rewards = case.numbers(&format!("rewards_{k}"))?;
        let one = settings.normalise(&rewards, &groups)?;
        outputs.insert(name, Table::broadcast(&one.advantages, &mask)?.values);
        components.iter_mut().zip(rewards).for_each(|(row, r)| row.push(r));
    }
    let batch = Batch::new(mask).with(GROUP_IDS, groups)?.with(REWARD_COMPONENTS, components)?;
    let block = BetaNorm { decompose: true, ..settings };
    outputs.insert("advantages", block.advantages(&batch, &mut State::default())?.values);
    Ok(outputs)
}

/// Rows in the order alpha, beta, weights.
fn weights(case: &Case) -> Outcome {
    let (p, max) = (case.numbers("p")?, case.param("weight_max")?);
    let mut rows = Vec::new();
    for pair in case.numbers("alpha_beta")?.chunks_exact(2) {
        let (alpha, beta) = (pair[0], pair[1]);
        rows.extend([alpha, beta]);
        rows.extend(p.iter().map(|&p| beta_weight(p, alpha, beta, max)));
    }
    Ok(Outputs::from([("rows", rows)]))
}
