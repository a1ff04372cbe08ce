//! Cases of `hbpo.json`.

use super::case::{Case, Failure, Outcome, Outputs};
use super::verl_loss::LossCase;
use crate::papers::hbpo::{BudgetAdvantage, BudgetReward, RewardForm, Verdict};
use crate::surrogate::ClippedRatio;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "reward" => reward(case),
        "advantages" => advantages(case),
        "loss" => {
            let surrogate = ClippedRatio {
                clip_low: case.param("clip_low")?,
                clip_high: case.param("clip_high")?,
                dual_clip: Some(case.param("clip_ratio_c")?),
            };
            LossCase::read(case)?.run(surrogate, None)
        }
        other => Err(Failure::NotImplemented(format!("function `{other}` of hbpo"))),
    }
}

fn reward(case: &Case) -> Outcome {
    let form: String = case.param("form")?;
    let default = BudgetReward::default();
    let or = |name: &str, default: f64| Ok::<_, Failure>(case.param::<Option<f64>>(name)?.unwrap_or(default));
    let settings = BudgetReward {
        beta: case.param("beta")?,
        alpha: case.param("alpha")?,
        l_max: case.param("l_max")?,
        pi: case.param("pi")?,
        form: if form == "piecewise" { RewardForm::Piecewise } else { RewardForm::Minimum },
        incorrect: or("incorrect_reward", default.incorrect)?,
        malformed: or("format_error_reward", default.malformed)?,
        floor_at_zero: false,
    };
    let (budgets, lengths) = (case.numbers("budget")?, case.numbers("length")?);
    // Kinds: 0 right, 1 wrong, 2 no answer, 3 reasoning not closed; or a flag for right.
    let verdicts: Vec<Verdict> = if case.inputs.contains_key("kind") {
        let of = |kind| match kind {
            0 => Verdict::Right,
            1 => Verdict::Wrong,
            _ => Verdict::Malformed,
        };
        case.whole("kind")?.into_iter().map(of).collect()
    } else {
        let of = |right| if right == 0 { Verdict::Wrong } else { Verdict::Right };
        case.whole("correct")?.into_iter().map(of).collect()
    };
    let announced = |b: f64| Some(b).filter(|&b| b > 0.0);
    let cases = verdicts.iter().zip(&lengths).zip(&budgets);
    let rewards = cases.map(|((&verdict, &n), &b)| settings.reward(verdict, n, announced(b))).collect();
    let none = or("no_budget_value", settings.l_max)?;
    Ok(Outputs::from([
        ("reward", rewards),
        ("reported_budget", budgets.iter().map(|&b| announced(b).unwrap_or(none)).collect()),
    ]))
}

fn advantages(case: &Case) -> Outcome {
    let settings = BudgetAdvantage {
        epsilon: case.param("eps")?,
        beta: case.param("beta")?,
        l_max: case.param("l_max")?,
        pi: case.param("pi")?,
        intra_weight: case.param("intra_weight")?,
        centre: false,
    };
    let groups = case.whole("group_ids")?;
    let terms = settings.terms(&case.numbers("rewards")?, &case.numbers("budgets")?, &groups)?;
    let advantages = Table::broadcast(&terms.advantages, &case.table("response_mask")?)?;
    Ok(Outputs::from([("advantages", advantages.values), ("intra", terms.intra), ("inter", terms.inter)]))
}
