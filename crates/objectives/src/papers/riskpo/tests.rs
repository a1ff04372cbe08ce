#![allow(clippy::unwrap_used)]
use candle_core::{Device, Var};
use proptest::prelude::*;

use super::*;
use crate::batch::REWARDS;

fn batch(rewards: &[f64], groups: &[u64]) -> Batch {
    Batch::new(Table::from_rows(&vec![vec![1.0, 1.0]; rewards.len()]).unwrap())
        .with(REWARDS, rewards.to_vec())
        .unwrap()
        .with(GROUP_IDS, groups.to_vec())
        .unwrap()
}

#[test]
fn bundles_follow_the_order_of_prompts() {
    assert_eq!(consecutive_bundles(&[9, 9, 3, 3, 7, 9], 2), [0, 0, 0, 0, 1, 0]);
    assert_eq!(consecutive_bundles(&[1, 2], 0), [0, 1]);
}

#[test]
fn quantiles_by_hand() {
    assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.5), 2.0);
    assert_eq!(quantile(&[0.0, 10.0], 0.25), 2.5);
    assert_eq!((quantile(&[4.0], 0.9), quantile(&[], 0.9)), (4.0, 0.0));
}

/// The tracked quantiles must reach the next batch's advantages, also through a checkpoint.
#[test]
fn the_second_batch_sees_the_first() {
    let block = MixedValueAtRisk { bundle_size: 2, ..MixedValueAtRisk::default() };
    let groups = [0, 0, 0, 1, 1, 1];
    let mut state = State::default();
    block.advantages(&batch(&[1.0, 1.0, 0.3, 1.0, 0.7, 1.0], &groups), &mut state).unwrap();
    let text = serde_json::to_string(&state).unwrap();
    let mut restored: State = serde_json::from_str(&text).unwrap();
    let next = batch(&[0.0, 0.0, 0.0, 1.0, 0.1, 0.0], &groups);
    let a = block.advantages(&next, &mut state).unwrap();
    assert_eq!(a, block.advantages(&next, &mut restored).unwrap());
    assert_eq!(state, restored);
    assert_ne!(a, block.advantages(&next, &mut State::default()).unwrap());
    let changed = MixedValueAtRisk { levels: 9, ..block };
    assert!(changed.advantages(&next, &mut state).unwrap_err().to_string().contains("levels"));
}

#[test]
fn papers_that_are_all_equal_stay_finite_and_small() {
    let tracked = Tracked { thresholds: Some((1.0, 3.0)), ..Tracked::default() };
    let ours = MixedValueAtRisk { bundle_size: 0, ..MixedValueAtRisk::default() };
    let code = MixedValueAtRisk { min_std: 0.0, max_advantage: 0.0, ..ours };
    let run =
        |s: &MixedValueAtRisk| s.bundled(&[0.0; 4], &[0, 0, 1, 1], &[5; 4], &tracked).unwrap().advantages;
    assert!(run(&ours).iter().all(|a| a.abs() <= 10.0 && *a < 0.0));
    assert!(run(&code).iter().all(|a| a.abs() > 1e5));
}

#[test]
fn incomplete_bundles_and_odd_answers() {
    let groups = [0, 0, 0, 1, 1, 2, 2];
    let rewards = [1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0];
    let run = |incomplete| {
        let block = MixedValueAtRisk { bundle_size: 2, incomplete, ..MixedValueAtRisk::default() };
        let bundles = consecutive_bundles(&groups, 2);
        block.bundled(&rewards, &groups, &bundles, &Tracked::default()).unwrap()
    };
    assert_eq!(run(Incomplete::Keep).scores, [vec![1.0, 1.0], vec![1.0, 0.0]]);
    assert_eq!(run(Incomplete::Rescale).scores, [vec![1.0, 1.0], vec![2.0, 0.0]]);
    let dropped = run(Incomplete::Drop);
    assert_eq!(dropped.scores, [vec![1.0, 1.0]]);
    assert_eq!(dropped.advantages[5..], [0.0; 2]);
    assert_eq!(run(Incomplete::Keep).advantages[2], 0.0); // the third answer has no paper
    let empty = MixedValueAtRisk::default().bundled(&[], &[], &[], &Tracked::default()).unwrap();
    assert!(empty.advantages.is_empty());
}

#[test]
fn sequence_ratio_is_flat_where_it_is_clipped_and_ignores_padding() {
    let log_probs =
        Var::from_vec(vec![0.3f64, 0.3, 0.02, f64::NEG_INFINITY, 0.0, 0.0], (3, 2), &Device::Cpu).unwrap();
    let mask = Table::from_rows(&[vec![1.0, 1.0], vec![1.0, 0.0], vec![0.0, 0.0]]).unwrap();
    let advantages = Table { values: vec![1.0, 1.0, 2.0, 0.0, 0.0, 0.0], ..mask };
    let batch = Batch::new(mask)
        .with(LOG_PROBS, log_probs.as_tensor().clone())
        .unwrap()
        .with(OLD_LOG_PROBS, log_probs.zeros_like().unwrap())
        .unwrap();
    let objective = crate::Objective::new(SequenceRatio::default(), Aggregation::TokenMean);
    let signals = Signals::new(advantages);
    let parts = objective.loss(&batch, &signals, &batch.normaliser(), &State::default()).unwrap();
    let expected = -(1.2 + 2.0 * 0.02f64.exp()) / 2.0;
    assert!((parts.pg_loss - expected).abs() < 1e-12, "{}", parts.pg_loss);
    let grads = parts.loss.backward().unwrap();
    let grad: Vec<f64> = grads.get(log_probs.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!([grad[0], grad[1], grad[3], grad[4], grad[5]], [0.0; 5]);
    assert!((grad[2] + 0.02f64.exp()).abs() < 1e-12);
}

proptest! {
    /// With the natural baseline no paper is pushed up, and more solved questions never mean a lower advantage.
    #[test]
    fn naturally_negative_and_monotone(
        scores in proptest::collection::vec(0u8..6, 2..9),
        down in 0.0f64..3.0,
        width in 0.0f64..2.0,
    ) {
        let mut scores: Vec<f64> = scores.into_iter().map(f64::from).collect();
        scores.sort_by(f64::total_cmp);
        let tracked = Tracked { thresholds: Some((down, down + width)), ..Tracked::default() };
        let x = MixedValueAtRisk::default().paper_advantages(&scores, &tracked);
        prop_assert!(x.iter().all(|&x| x <= 1e-12));
        prop_assert!(x.windows(2).all(|w| w[0] <= w[1] + 1e-12));
    }

    /// On a stationary stream the tracked quantile goes where the empirical one is.
    #[test]
    fn quantiles_converge(start in -2.0f64..7.0) {
        let settings = MixedValueAtRisk { lr_q: 0.05, ..MixedValueAtRisk::default() };
        let mut tracker = QuantileTracker::default();
        tracker.step(&[start], &settings).unwrap();
        let scores: Vec<f64> = (0..100).map(|i| f64::from(i) / 20.0).collect();
        (0..4000).for_each(|_| tracker.step(&scores, &settings).unwrap());
        let (down, up) = tracker.tracked(&settings).thresholds.unwrap();
        prop_assert!((down - 1.0).abs() < 0.1 && (up - 4.5).abs() < 0.1, "{} {}", down, up);
    }
}
