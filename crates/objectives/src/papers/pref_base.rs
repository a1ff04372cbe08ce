//! DPO: Direct Preference Optimization (arXiv 2305.18290) and its relatives, the base of preference papers.
//!
//! Two answers to one prompt, one preferred: raise its log-ratio to a reference above the other's. No reward model, no
//! sampling, no advantages:
//!
//! ```text
//! u_c = s_c - s_ref_c,  u_r = s_r - s_ref_r     s = sum of the response's token log-probabilities (natural log)
//! loss = mean over pairs of -log sigmoid(beta (u_c - u_r))
//! ```
//!
//! All forms are settings of two blocks: [`Preference`] (against a reference) and [`ReferenceFree`]. Named presets:
//!
//! | preset | block, `loss` | paper |
//! |---|---|---|
//! | `pref_base`, `dpo` | `preference`, `sigmoid` | 2305.18290 |
//! | `ipo` | `preference`, `ipo` (length-normalised; `ipo_sum` is the paper's sum) | 2310.12036 |
//! | `robust_dpo` | `preference`, `robust` | 2403.00409 |
//! | `sppo` | `preference`, `sppo_hard` | 2405.00675 |
//! | `simpo` | `reference_free_preference`, `simpo` | 2405.14734 |
//! | `cpo` | `reference_free_preference`, `sigmoid` | 2401.08417 |
//!
//! Formulas as in TRL's `DPOTrainer` and `CPOTrainer`. Rows: see [`crate::pairs`]. The two `aot` losses sort over the
//! batch, so there, and only there, a loss depends on how the batch is cut. A pair whose responses are equal has loss
//! log 2 and gradients that cancel between its rows.

use super::Paper;
use crate::aggregation::Aggregation;
use crate::composition::Composition;
use crate::surrogate::{FreeLoss, PairLoss, Preference, ReferenceFree};

const VECTORS: Option<(&str, usize)> = Some(("pref_base.json", 24));

/// The paper.
pub const PAPER: Paper = Paper {
    id: "pref_base",
    title: "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    arxiv: "2305.18290",
    summary: "The preferred answer's log-ratio to the reference rises above the other's.",
    blocks: &[],
    recipe,
    vectors: VECTORS,
    end_to_end: None,
};

/// DPO under its own name.
pub const DPO: Paper = Paper { id: "dpo", ..PAPER };

/// IPO.
pub const IPO: Paper = Paper {
    id: "ipo",
    title: "A General Theoretical Paradigm to Understand Learning from Human Preferences",
    arxiv: "2310.12036",
    summary: "Log-ratio margins are regressed on 1/(2 beta), so that certain preferences do not drift off.",
    recipe: || of(Preference { loss: PairLoss::Ipo, ..Preference::default() }),
    ..PAPER
};

/// Robust DPO.
pub const ROBUST: Paper = Paper {
    id: "robust_dpo",
    title: "Provably Robust DPO: Aligning Language Models with Noisy Feedback",
    arxiv: "2403.00409",
    summary: "DPO without bias where a known share of the labels is wrong.",
    recipe: || of(Preference { loss: PairLoss::Robust, label_smoothing: 0.1, ..Preference::default() }),
    ..PAPER
};

/// SPPO with hard labels.
pub const SPPO: Paper = Paper {
    id: "sppo",
    title: "Self-Play Preference Optimization for Language Model Alignment",
    arxiv: "2405.00675",
    summary: "Each answer's log-ratio is regressed on its own win rate.",
    recipe: || of(Preference { loss: PairLoss::SppoHard, ..Preference::default() }),
    ..PAPER
};

/// SimPO.
pub const SIMPO: Paper = Paper {
    id: "simpo",
    title: "SimPO: Simple Preference Optimization with a Reference-Free Reward",
    arxiv: "2405.14734",
    summary: "Mean log-probabilities with a margin, no reference.",
    recipe: || Composition::new(&ReferenceFree::default(), Aggregation::TokenMean),
    ..PAPER
};

/// CPO without its behaviour-cloning term.
pub const CPO: Paper = Paper {
    id: "cpo",
    title: "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation",
    arxiv: "2401.08417",
    summary: "DPO's loss without a reference.",
    recipe: cpo,
    ..PAPER
};

fn cpo() -> Composition {
    let loss = ReferenceFree {
        loss: FreeLoss::Sigmoid,
        beta: 0.1,
        gamma: 0.0,
        length_normalised: false,
        ..ReferenceFree::default()
    };
    Composition::new(&loss, Aggregation::TokenMean)
}

fn of(loss: Preference) -> Composition {
    Composition::new(&loss, Aggregation::TokenMean)
}

/// Plain DPO, beta 0.1.
pub fn recipe() -> Composition {
    of(Preference::default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Tensor, Var};
    use proptest::prelude::*;

    use super::*;
    use crate::batch::{Batch, LOG_PROBS, PAIR_IDS, REF_LOG_PROBS, Signals};
    use crate::objective::Objective;
    use crate::pairs::{Pairs, halves};
    use crate::state::State;
    use crate::surrogate::ALIGNED_LOG_PROBS;
    use crate::table::Table;

    /// Loss and gradient of a batch in `parts`.
    fn run(
        objective: &Objective,
        p: &[f64],
        r: &[f64],
        mask: &Table,
        ids: Vec<u64>,
        per_part: usize,
    ) -> (f64, Vec<f64>) {
        let shape = (mask.rows, mask.cols);
        let policy = Var::from_tensor(&Tensor::from_slice(p, shape, &Device::Cpu).unwrap()).unwrap();
        let reference = Tensor::from_slice(r, shape, &Device::Cpu).unwrap();
        let pairs = Pairs::from_ids(&ids).unwrap();
        let batch = Batch::new(mask.clone())
            .with(LOG_PROBS, policy.as_tensor().clone())
            .and_then(|b| b.with(REF_LOG_PROBS, reference))
            .and_then(|b| b.with(PAIR_IDS, ids))
            .unwrap();
        let whole = batch.normaliser();
        let mut total = Tensor::new(0f64, &Device::Cpu).unwrap();
        for rows in pairs.parts(per_part) {
            let part = batch.select(&rows).unwrap();
            let signals = Signals::new(part.mask().filled(0.0));
            total =
                (total + objective.loss(&part, &signals, &whole, &State::default()).unwrap().loss).unwrap();
        }
        let grads = total.backward().unwrap();
        let grad = grads.get(policy.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        (total.to_scalar().unwrap(), grad)
    }

    #[test]
    fn equal_answers_cost_log_two_and_their_gradients_cancel() {
        let objective = recipe().build().unwrap();
        let x = [-0.5, -1.0, -0.5, -1.0];
        let mask = Table { rows: 2, cols: 2, values: vec![1.0; 4] };
        let (loss, grad) = run(&objective, &x, &x, &mask, halves(1), 1);
        assert!((loss - 2f64.ln()).abs() < 1e-15);
        assert_eq!(grad, [-0.05, -0.05, 0.05, 0.05]);
    }

    #[test]
    fn extreme_margins_and_masked_infinities_stay_finite() {
        let mask = Table { rows: 2, cols: 2, values: vec![1.0, 0.0, 1.0, 0.0] };
        let p = [-1e4, f64::NEG_INFINITY, -0.1, f64::NAN];
        let r = [-0.1, f64::NEG_INFINITY, -1e4, f64::NEG_INFINITY];
        for paper in [&PAPER, &IPO, &ROBUST, &SPPO, &SIMPO, &CPO] {
            let objective = (paper.recipe)().build().unwrap();
            let (loss, grad) = run(&objective, &p, &r, &mask, halves(1), 1);
            assert!(loss.is_finite() && grad.iter().all(|g| g.is_finite()), "{}", paper.id);
            assert_eq!((grad[1], grad[3]), (0.0, 0.0), "{}", paper.id);
        }
    }

    #[test]
    fn gradients_of_all_forms_are_those_of_finite_differences() {
        let forms = "sigmoid hinge ipo ipo_sum sigmoid_norm robust exo_pair nca_pair bco_pair sppo_hard apo_zero apo_down \
                     discopop aot aot_unpaired";
        let mut objectives = Vec::new();
        for loss in forms.split_whitespace() {
            for divergence in ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] {
                let smooth = if ["robust", "exo_pair", "aot"].contains(&loss) { 0.1 } else { 0.0 };
                let over = format!(
                    "[surrogate]\nloss = \"{loss}\"\nf_divergence = \"{divergence}\"\nbeta = 0.3\nld_alpha = 0.5\n\
                     discopop_tau = 0.5\nlabel_smoothing = {smooth:?}"
                );
                objectives
                    .push((format!("{loss} {divergence}"), recipe().with(&over.parse().unwrap()).unwrap()));
            }
        }
        for loss in ["simpo", "sigmoid", "hinge", "ipo"] {
            let over = format!("[surrogate]\nloss = \"{loss}\"\nalpha = 0.3\nlabel_smoothing = 0.1");
            objectives.push((format!("free {loss}"), cpo().with(&over.parse().unwrap()).unwrap()));
        }
        let p: Vec<f64> = (0..12).map(|i| -0.1 - f64::from(i * 7 % 12) / 5.0).collect();
        let r: Vec<f64> = (0..12).map(|i| -0.2 - f64::from(i * 5 % 12) / 6.0).collect();
        let mut mask = Table { rows: 4, cols: 3, values: vec![1.0; 12] };
        (mask.values[2], mask.values[10], mask.values[11]) = (0.0, 0.0, 0.0);
        for (name, composition) in objectives {
            let objective = composition.build().unwrap();
            let loss = |p: &[f64]| run(&objective, p, &r, &mask, halves(2), 2);
            let (_, grad) = loss(&p);
            for i in 0..12 {
                let moved = |by: f64| {
                    let mut x = p.clone();
                    x[i] += by;
                    loss(&x).0
                };
                let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!(
                    (slope - grad[i]).abs() < 1e-7 * (1.0 + slope.abs()),
                    "{name}, {i}: {slope} {}",
                    grad[i]
                );
            }
        }
    }

    #[test]
    fn weighted_pairs_count_by_the_likelihood_of_both_answers() {
        let x = Tensor::new(&[[-0.5f64, -1.0], [-0.25, -2.0]], &Device::Cpu).unwrap();
        let aligned = Table { rows: 2, cols: 2, values: vec![0.5f64.ln(); 4] };
        let batch = Batch::new(aligned.filled(1.0))
            .with(LOG_PROBS, x.clone())
            .and_then(|b| b.with(REF_LOG_PROBS, (x * 2.0).unwrap()))
            .and_then(|b| b.with(PAIR_IDS, halves(1)))
            .and_then(|b| b.with(ALIGNED_LOG_PROBS, aligned))
            .unwrap();
        let loss = |weighted| {
            let block = Preference { weighted, ..Preference::default() };
            let signals = Signals::new(batch.mask().filled(0.0));
            let objective = Objective::new(block, Aggregation::TokenMean);
            objective.loss(&batch, &signals, &batch.normaliser(), &State::default()).unwrap().pg_loss
        };
        assert!((loss(true) - loss(false) / 4.0).abs() < 1e-15);
    }

    #[test]
    fn a_torn_pair_is_refused() {
        let objective = recipe().build().unwrap();
        let x = Tensor::zeros((2, 1), candle_core::DType::F64, &Device::Cpu).unwrap();
        let batch = Batch::new(Table { rows: 2, cols: 1, values: vec![1.0; 2] })
            .with(LOG_PROBS, x.clone())
            .and_then(|b| b.with(REF_LOG_PROBS, x))
            .and_then(|b| b.with(PAIR_IDS, vec![1u64, 2]))
            .unwrap();
        let signals = Signals::new(batch.mask().filled(0.0));
        let refused = objective.loss(&batch, &signals, &batch.normaliser(), &State::default());
        assert!(refused.err().unwrap().to_string().contains("pair 1 has 1"));
    }

    proptest! {
        #[test]
        fn layout_and_micro_batches_do_not_matter(
            p in proptest::collection::vec(-3.0f64..0.0, 24),
            r in proptest::collection::vec(-3.0f64..0.0, 24),
            m in proptest::collection::vec(prop_oneof![Just(0.0), Just(1.0)], 24),
        ) {
            let mask = Table { rows: 8, cols: 3, values: m };
            // Neighbours instead of halves: row 2i is row i, row 2i + 1 is row i + 4.
            let order: Vec<usize> = (0..4).flat_map(|i| [i, i + 4]).collect();
            let moved = |x: &[f64]| -> Vec<f64> {
                order.iter().flat_map(|&i| x[3 * i..3 * i + 3].to_vec()).collect()
            };
            for paper in [&PAPER, &IPO, &SIMPO, &SPPO] {
                let objective = (paper.recipe)().build().unwrap();
                let (loss, grad) = run(&objective, &p, &r, &mask, halves(4), 4);
                let (cut, cut_grad) = run(&objective, &p, &r, &mask, halves(4), 1);
                let ids = vec![0, 0, 1, 1, 2, 2, 3, 3];
                let (beside, beside_grad) = run(&objective, &moved(&p), &moved(&r), &mask.select(&order), ids, 3);
                let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-12);
                prop_assert!(close(&[loss, loss], &[cut, beside]));
                prop_assert!(close(&grad, &cut_grad) && close(&moved(&grad), &beside_grad));
            }
        }
    }
}
