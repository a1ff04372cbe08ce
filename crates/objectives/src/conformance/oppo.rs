//! Cases of `oppo.json`: both steps of the context, reconstruction, scripted labels.

use candle_core::Tensor;

use super::case::{Case, Failure, Outcome, Outputs, gradient, values};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, PAIR_IDS, REWARDS, Signals};
use crate::objective::Objective;
use crate::pairs::halves;
use crate::papers::oppo::{
    ACTION_PREDICTIONS, ACTIONS, ActionReconstruction, CONTEXTS, ContextNorm, ContextTriplet, Labels, Learns,
    OPTIMAL_CONTEXT, window_return,
};
use crate::state::State;
use crate::table::Table;

pub(super) fn run(case: &Case) -> Outcome {
    match case.function.as_str() {
        "preference_loss" => preference_loss(case),
        "reconstruction_loss" => reconstruction(case),
        "window_return" => window_returns(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of oppo"))),
    }
}

/// Preferences as numbers of the pairs' rows: returns, or people's labels.
fn preferences(case: &Case, labels: Labels) -> Result<Vec<f64>, Failure> {
    match labels {
        Labels::Scripted => Ok([case.numbers("return_1")?, case.numbers("return_2")?].concat()),
        Labels::Human => {
            let table = case.table("labels")?;
            let column = |j: usize| table.iter().map(move |row| row.get(j).copied().unwrap_or(f64::NAN));
            Ok(column(0).chain(column(1)).collect())
        }
    }
}

fn preference_loss(case: &Case) -> Outcome {
    let labels: Labels = case.param("variant")?;
    let triplet = ContextTriplet {
        coef: case.param("pref_loss_ratio")?,
        labels,
        learns: Learns::Encoder,
        margin: case.param("margin")?,
        tie_margin: case.param::<Option<f64>>("tie_margin")?.unwrap_or(0.0),
        distance_eps: case.param("distance_eps")?,
    };
    let (phi1, phi2, z) = (case.var("phi_1")?, case.var("phi_2")?, case.var("z_star")?);
    let (pairs, width) = phi1.dims2()?;
    let mask = Table { rows: 2 * pairs, cols: 1, values: vec![1.0; 2 * pairs] };
    let batch = Batch::new(mask)
        .with(CONTEXTS, Tensor::cat(&[phi1.as_tensor(), phi2.as_tensor()], 0)?)?
        .with(OPTIMAL_CONTEXT, z.as_tensor().reshape((1, width))?.broadcast_as((2 * pairs, width))?)?
        .with(REWARDS, preferences(case, labels)?)?
        .with(PAIR_IDS, halves(pairs))?;
    let signals = Signals::new(batch.mask().filled(0.0));
    let run = |objective: Objective| objective.loss(&batch, &signals, &batch.normaliser(), &State::default());
    let alone = |block: ContextTriplet| run(Objective::new(block, Aggregation::TokenMean));
    let norm = |coef| ContextNorm { coef, labels };
    let encoder = |norm: ContextNorm| Objective {
        regularizers: vec![Box::new(norm)],
        ..Objective::new(triplet, Aggregation::TokenMean)
    };
    let step = run(encoder(norm(case.param("phi_norm_loss_ratio")?)))?;
    let norm_loss: f64 = run(encoder(norm(1.0)))?.regularizers.iter().map(|(_, x)| x).sum();
    let optimum = alone(ContextTriplet { coef: 1.0, learns: Learns::Optimum, ..triplet })?;
    let preference = alone(ContextTriplet { coef: 1.0, ..triplet })?;
    Ok(Outputs::from([
        ("preference_loss", values(&preference.loss)?),
        ("norm_loss", vec![norm_loss]),
        ("pairs_used", vec![triplet.strict_pairs(&batch)? as f64]),
        ("loss", values(&step.loss)?),
        ("grad_phi_1", gradient(&step.loss, &phi1)?),
        ("grad_phi_2", gradient(&step.loss, &phi2)?),
        ("z_star_loss", values(&optimum.loss)?),
        ("grad_z_star", gradient(&optimum.loss, &z)?),
    ]))
}

fn reconstruction(case: &Case) -> Outcome {
    let predicted = case.var("action_preds")?;
    let batch = Batch::new(case.table("attention_mask")?)
        .with(ACTION_PREDICTIONS, predicted.as_tensor().clone())?
        .with(ACTIONS, case.tensor("actions")?)?;
    let objective = Objective::new(ActionReconstruction::default(), Aggregation::TokenMean);
    let signals = Signals::new(batch.mask().filled(0.0));
    let parts = objective.loss(&batch, &signals, &batch.normaliser(), &State::default())?;
    Ok(Outputs::from([
        ("loss", values(&parts.loss)?),
        ("grad_action_preds", gradient(&parts.loss, &predicted)?),
    ]))
}

fn window_returns(case: &Case) -> Outcome {
    let (rewards, foresee) = (case.numbers("rewards")?, case.param("foresee")?);
    let scale: f64 = case.param("scale")?;
    let sums: Vec<f64> =
        case.whole("start")?.iter().map(|&start| window_return(&rewards, start as usize, foresee)).collect();
    let scaled = sums.iter().map(|s| s / scale).collect();
    Ok(Outputs::from([("return_sum", sums), ("scaled", scaled)]))
}
