//! What must hold for any batch: checked on random ones.
#![allow(clippy::unwrap_used)]

use candle_core::{Device, Tensor, Var};
use efference_objectives::batch::{LOG_PROBS, OLD_LOG_PROBS};
use efference_objectives::regularizer::{EntropyBonus, Kl};
use efference_objectives::surrogate::ClippedRatio;
use efference_objectives::{Aggregation, Batch, Normaliser, Objective, Signals, State, Table};
use proptest::prelude::*;

const MODES: [Aggregation; 4] = [
    Aggregation::TokenMean,
    Aggregation::SeqMeanTokenSum,
    Aggregation::SeqMeanTokenMean,
    Aggregation::SeqMeanTokenSumNorm,
];

#[derive(Clone, Debug)]
struct Numbers {
    log_probs: Table,
    old: Table,
    advantages: Table,
    mask: Table,
}

fn batches() -> impl Strategy<Value = Numbers> {
    (1usize..5, 1usize..8).prop_flat_map(|(rows, cols)| {
        let table = move |range: std::ops::Range<f64>| {
            proptest::collection::vec(range, rows * cols).prop_map(move |values| Table { rows, cols, values })
        };
        let mask = proptest::collection::vec(prop_oneof![Just(0.0), Just(1.0), Just(1.0)], rows * cols)
            .prop_map(move |values| Table { rows, cols, values });
        (table(-4.0..-0.1), table(-4.0..-0.1), table(-2.0..2.0), mask)
            .prop_map(|(log_probs, old, advantages, mask)| Numbers { log_probs, old, advantages, mask })
    })
}

fn objective(aggregation: Aggregation) -> Objective {
    Objective::new(ClippedRatio { clip_low: 0.2, clip_high: 0.28, dual_clip: Some(3.0) }, aggregation)
}

fn tensor(table: &Table) -> Tensor {
    table.to_tensor(&Tensor::new(0f64, &Device::Cpu).unwrap()).unwrap()
}

/// Loss and gradient.
fn run(b: &Numbers, aggregation: Aggregation, whole: &Normaliser) -> (f64, Vec<f64>) {
    let log_probs = Var::from_tensor(&tensor(&b.log_probs)).unwrap();
    let batch = Batch::new(b.mask.clone()).with(LOG_PROBS, log_probs.as_tensor().clone()).unwrap();
    let batch = batch.with(OLD_LOG_PROBS, tensor(&b.old)).unwrap();
    let signals = Signals::new(b.advantages.clone());
    let loss = objective(aggregation).loss(&batch, &signals, whole, &State::default()).unwrap().loss;
    let grads = loss.backward().unwrap();
    let grad = grads.get(log_probs.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (loss.to_scalar().unwrap(), grad)
}

/// Rows `from..to`.
fn rows(t: &Table, from: usize, to: usize) -> Table {
    Table { rows: to - from, cols: t.cols, values: t.values[from * t.cols..to * t.cols].to_vec() }
}

proptest! {
    #[test]
    fn zero_advantage_gives_zero_gradient(b in batches()) {
        let zero = Table { values: vec![0.0; b.mask.values.len()], ..b.mask };
        let b = Numbers { advantages: zero, ..b };
        for mode in MODES {
            let (loss, grad) = run(&b, mode, &Normaliser::of(&b.mask));
            prop_assert_eq!(loss.abs(), 0.0);
            prop_assert!(grad.iter().all(|&g| g == 0.0));
        }
    }

    #[test]
    fn masked_tokens_have_no_influence_even_when_they_are_nan(b in batches()) {
        let mut spoiled = b.clone();
        for (i, &m) in b.mask.values.iter().enumerate() {
            if m == 0.0 {
                spoiled.log_probs.values[i] = f64::NAN;
                spoiled.advantages.values[i] = 1e30;
            }
        }
        for mode in MODES {
            let whole = Normaliser::of(&b.mask);
            let ((clean, _), (loss, grad)) = (run(&b, mode, &whole), run(&spoiled, mode, &whole));
            prop_assert_eq!(clean, loss);
            for (i, &m) in b.mask.values.iter().enumerate() {
                let right = if m == 0.0 { grad[i] == 0.0 } else { grad[i].is_finite() };
                prop_assert!(right, "gradient {} of a token with mask {}", grad[i], m);
            }
        }
    }

    #[test]
    fn micro_batches_add_up_to_the_batch(b in batches(), cut in 0usize..5) {
        let cut = cut.min(b.mask.rows);
        for mode in MODES {
            let whole = Normaliser::of(&b.mask);
            let (loss, grad) = run(&b, mode, &whole);
            let (mut sum, mut parts) = (0.0, Vec::new());
            for (from, to) in [(0, cut), (cut, b.mask.rows)] {
                if from < to {
                    let part = Numbers {
                        log_probs: rows(&b.log_probs, from, to),
                        old: rows(&b.old, from, to),
                        advantages: rows(&b.advantages, from, to),
                        mask: rows(&b.mask, from, to),
                    };
                    let (l, g) = run(&part, mode, &whole);
                    sum += l;
                    parts.extend(g);
                }
            }
            prop_assert!((sum - loss).abs() < 1e-12 * loss.abs().max(1.0));
            prop_assert!(grad.iter().zip(&parts).all(|(a, b)| (a - b).abs() < 1e-12));
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences(b in batches()) {
        let h = 1e-6;
        let whole = Normaliser::of(&b.mask);
        let (_, grad) = run(&b, Aggregation::TokenMean, &whole);
        for (i, &expected) in grad.iter().enumerate() {
            let d = b.log_probs.values[i] - b.old.values[i];
            let a = b.advantages.values[i];
            let kinks = [0.8f64.ln(), 1.28f64.ln(), 3f64.ln()];
            if kinks.iter().any(|k| (d - k).abs() < 1e-4) || a.abs() < 1e-9 {
                continue; // no derivative there
            }
            let at = |x: f64| {
                let mut moved = b.clone();
                moved.log_probs.values[i] = x;
                run(&moved, Aggregation::TokenMean, &whole).0
            };
            let x = b.log_probs.values[i];
            let slope = (at(x + h) - at(x - h)) / (2.0 * h);
            prop_assert!((slope - expected).abs() < 1e-5 * slope.abs().max(1.0), "{} against {}", slope, expected);
        }
    }

    #[test]
    fn on_policy_the_ratio_is_one_and_nothing_is_clipped(b in batches()) {
        let p = tensor(&b.log_probs);
        let batch = Batch::new(b.mask.clone()).with(LOG_PROBS, p.clone()).unwrap().with(OLD_LOG_PROBS, p).unwrap();
        let (signals, whole) = (Signals::new(b.advantages.clone()), Normaliser::of(&b.mask));
        let parts = objective(Aggregation::TokenMean).loss(&batch, &signals, &whole, &State::default()).unwrap();
        for name in ["clip_frac", "clip_frac_lower", "approx_kl"] {
            prop_assert_eq!(parts.stats[name].abs(), 0.0, "{}", name);
        }
        prop_assert_eq!(parts.max_ratio_gap, 0.0);
    }
}

#[test]
fn missing_inputs_and_wrong_shapes_are_named() {
    let table = |rows, cols| Table { rows, cols, values: vec![1.0; rows * cols] };
    let (p, mask) = (tensor(&table(2, 3)), table(2, 3));
    let wrong = table(2, 4);
    let whole = Normaliser::of(&mask);
    let batch = Batch::new(mask.clone()).with(LOG_PROBS, p.clone()).unwrap().with(OLD_LOG_PROBS, p).unwrap();
    let mut o = objective(Aggregation::TokenMean);
    let message = |o: &Objective, advantages: &Table| {
        let signals = Signals::new(advantages.clone());
        o.loss(&batch, &signals, &whole, &State::default()).err().unwrap().to_string()
    };
    assert!(message(&o, &wrong).contains("`advantages` is [2, 4]"));
    o.regularizers = vec![Box::new(EntropyBonus { coef: 0.1, ..EntropyBonus::default() })];
    assert!(message(&o, &mask).contains("`entropy`"));
    o.regularizers = vec![
        Box::new(Kl { coef: 0.1, ..Kl::default() }),
        Box::new(EntropyBonus { coef: 0.1, ..EntropyBonus::default() }),
    ];
    assert!(message(&o, &mask).contains("`ref_log_probs`"));
    let bad = Objective::new(
        ClippedRatio { clip_low: -0.1, clip_high: 0.2, dual_clip: None },
        Aggregation::TokenMean,
    );
    assert!(message(&bad, &mask).contains("clip_low"));
    let narrow = Batch::new(mask.clone()).with(LOG_PROBS, tensor(&wrong)).err().unwrap().to_string();
    assert!(narrow.contains("`log_probs` is [2, 4]"), "{narrow}");
}

#[test]
fn shipped_presets_equal_the_defaults() {
    use efference_objectives::{Algorithm, algorithms};
    for paper in algorithms() {
        let path = format!("{}/../../configs/algorithms/{}.toml", env!("CARGO_MANIFEST_DIR"), paper.id);
        let preset: toml::Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
        let made = |table: &toml::Table| Algorithm::from_table(paper.id, table).unwrap().composition;
        assert_eq!(made(&preset), made(&toml::Table::new()), "{}", paper.id);
    }
}
