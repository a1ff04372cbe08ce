#![allow(clippy::unwrap_used)]
use candle_core::{Device, Tensor, Var};

use super::*;
use crate::diffusion::Clip;
use crate::error::Error;
use crate::surrogate::ClippedRatio;

/// Numbers without a pattern, about -2 to 2, [2, 3, 2].
fn some(seed: usize) -> Tensor {
    let values: Vec<f64> = (0..12).map(|i| 2.0 * ((7 * i + 13 * seed + 1) as f64).sin()).collect();
    Tensor::from_vec(values, (2, 3, 2), &Device::Cpu).unwrap()
}

fn gap(a: &Tensor, b: &Tensor) -> f64 {
    let gap = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    gap.to_scalar::<f64>().unwrap()
}

fn table() -> NoiseTable {
    NoiseSchedule { precision: Precision::Double, ..NoiseSchedule::default() }.table().unwrap()
}

const ALL: [Prediction; 3] = [Prediction::Epsilon, Prediction::VPrediction, Prediction::Sample];

/// With a perfect network DDIM goes along x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps, down to x_0.
#[test]
fn a_perfect_network_leads_back() {
    let (table, clean, noise) = (table(), some(1), some(2));
    for prediction in ALL {
        let sampler = Ddim { prediction, ..Ddim::default() };
        let (t, previous) = (801, 401);
        let x_t = add_noise(&table, &clean, &noise, &[t; 2]).unwrap();
        let output = prediction.target(&table, &clean, &noise, &[t; 2]).unwrap();
        let step = sampler.step(&table, &x_t, &output, t, Some(previous), None).unwrap();
        assert!(gap(&step.previous, &add_noise(&table, &clean, &noise, &[previous; 2]).unwrap()) < 1e-12);
        assert!(gap(&step.clean, &clean) < 1e-12);
        let last = sampler.step(&table, &x_t, &output, t, None, None).unwrap();
        assert!(gap(&last.previous, &clean) < 1e-12);
        let loss = diffusion_loss(&table, prediction, &output, &clean, &noise, &[t; 2]).unwrap();
        assert_eq!(loss.to_scalar::<f64>().unwrap(), 0.0);
    }
    let model = |x: &Tensor, t: usize| -> Result<Tensor> {
        let alpha_bar = table.alpha_bar(t)?;
        Ok(((x - (&clean * alpha_bar.sqrt())?)? / (1.0 - alpha_bar).sqrt())?)
    };
    let walk =
        ddim_sample(&Ddim::default(), &table, &noise, 7, (Spacing::Leading, 1), model, |_| unreachable!());
    assert!(gap(walk.unwrap().last().unwrap(), &clean) < 1e-9);
}

/// Every sample has its own timestep.
#[test]
fn samples_of_a_batch_are_independent() {
    let (table, clean, noise) = (table(), some(1), some(2));
    let both = add_noise(&table, &clean, &noise, &[10, 900]).unwrap();
    for (row, t) in [10, 900].into_iter().enumerate() {
        let one = |x: &Tensor| x.narrow(0, row, 1).unwrap();
        let alone = add_noise(&table, &one(&clean), &one(&noise), &[t]).unwrap();
        assert_eq!(gap(&one(&both), &alone), 0.0);
    }
}

/// DDIM at eta 1 draws from DDPM's posterior.
#[test]
fn ddim_with_full_noise_is_ddpm() {
    let (table, x_t, output, fresh) = (table(), some(3), some(4), some(5));
    for prediction in ALL {
        let ddim = Ddim { prediction, eta: 1.0, clip: None };
        let ddpm = Ddpm { prediction, ..Ddpm::default() };
        for (t, previous) in [(999, 998), (500, 100), (1, 0)] {
            let a = ddim.step(&table, &x_t, &output, t, Some(previous), Some(&fresh)).unwrap();
            let b = ddpm.step(&table, &x_t, &output, t, Some(previous), Some(&fresh)).unwrap();
            assert!((a.std - b.std).abs() < 1e-12 && a.std > 0.0);
            assert!(gap(&a.previous, &b.previous) < 1e-10, "{prediction:?} {t}");
        }
        let last = ddpm.step(&table, &x_t, &output, 0, None, None).unwrap();
        assert_eq!(gap(&last.previous, &last.mean), 0.0);
    }
}

#[test]
fn clipping_bounds_the_clean_estimate_only() {
    let (table, x_t, output) = (table(), some(3), some(4));
    let step = Ddim { clip: Some(1.0), ..Ddim::default() }
        .step(&table, &x_t, &output, 900, Some(860), None)
        .unwrap();
    let size = step.clean.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f64>().unwrap();
    assert_eq!(size, 1.0);
    let (kept, rest) = (table.alpha_bar(860).unwrap().sqrt(), (1.0 - table.alpha_bar(860).unwrap()).sqrt());
    let expected = ((&step.clean * kept).unwrap() + (&output * rest).unwrap()).unwrap();
    assert!(gap(&step.previous, &expected) < 1e-12);
}

/// f32 keeps what the libraries compute: visible in the ratio of signal to noise at the first timestep.
#[test]
fn single_precision_is_another_schedule() {
    let base = NoiseSchedule { beta_start: 1e-4, beta_end: 0.02, ..NoiseSchedule::default() };
    let double = NoiseSchedule { precision: Precision::Double, ..base }.table().unwrap();
    assert!((double.snr(0).unwrap() - 9999.0).abs() < 1e-6);
    assert!((base.table().unwrap().snr(0).unwrap() - 9997.34).abs() < 0.01);
    for shape in [BetaSchedule::Linear, BetaSchedule::ScaledLinear, BetaSchedule::SquaredCos] {
        for timesteps in [1, 2, 50] {
            let table = NoiseSchedule { shape, timesteps, ..base }.table().unwrap();
            let kept: Vec<f64> = (0..timesteps).map(|t| table.alpha_bar(t).unwrap()).collect();
            assert!(kept.is_sorted_by(|a, b| a > b) && kept.iter().all(|x| *x > 0.0 && *x < 1.0));
        }
    }
}

#[test]
fn samplers_visit_what_they_say() {
    assert_eq!(Spacing::Leading.timesteps(4, 10, 1).unwrap(), [7, 5, 3, 1]);
    assert_eq!(Spacing::Trailing.timesteps(4, 10, 1).unwrap(), [9, 7, 4, 1]); // 10, 7.5, 5, 2.5 to even, minus 1
    assert_eq!(Spacing::Linspace.timesteps(4, 10, 1).unwrap(), [9, 6, 3, 0]);
    for spacing in [Spacing::Leading, Spacing::Trailing, Spacing::Linspace] {
        assert!(spacing.timesteps(0, 10, 0).is_err() && spacing.timesteps(11, 10, 0).is_err());
        let all = spacing.timesteps(10, 10, 0).unwrap();
        assert_eq!(all, (0..10).rev().collect::<Vec<_>>(), "{spacing:?}");
    }
    assert!(Spacing::Leading.timesteps(10, 10, 1).is_err());
    assert_eq!((previous_timestep(41, 25, 1000), previous_timestep(1, 25, 1000)), (Some(1), None));
}

/// The velocity of one straight path is constant: any number of steps arrives.
#[test]
fn a_straight_flow_arrives() {
    let (clean, noise) = (some(1), some(2));
    let pair = flow_matching_pair(&clean, &noise, &[0.25, 1.0]).unwrap();
    assert!(gap(&pair.x_t.narrow(0, 1, 1).unwrap(), &noise.narrow(0, 1, 1).unwrap()) < 1e-15);
    for integrator in [Integrator::Euler, Integrator::Heun] {
        for steps in [1, 3] {
            let walk = flow_sample(integrator, &noise, steps, |_, _| Ok(pair.target.clone())).unwrap();
            assert_eq!(walk.len(), steps + 1);
            assert!(gap(walk.last().unwrap(), &clean) < 1e-12);
        }
    }
}

#[test]
fn guidance_extrapolates() {
    let (without, with) = (some(1), some(2));
    assert!(gap(&guide(&without, &with, 0.0).unwrap(), &without) < 1e-15);
    assert!(gap(&guide(&without, &with, 1.0).unwrap(), &with) < 1e-15);
    assert!(gap(&guide(&with, &with, 8.0).unwrap(), &with) < 1e-15);
}

/// The loss of a step is what the clipped-ratio block makes of the same log-probabilities, gradient included; unclipped
/// and with the same policy it is REINFORCE on the mean.
#[test]
fn the_policy_loss_is_the_clipped_ratio() {
    let (table, x_t, sampler) = (table(), some(6), Ddim { eta: 1.0, ..Ddim::default() });
    let output = Var::from_tensor(&some(7)).unwrap();
    let at = (481, Some(441));
    let recorded = {
        let step = sampler.step(&table, &x_t, output.as_tensor(), 481, Some(441), Some(&some(8))).unwrap();
        step.previous.detach()
    };
    let policy = denoising_policy(&sampler, &table, &x_t, output.as_tensor(), &recorded, at).unwrap();
    let advantages = [0.8, -1.1];
    for shift in [[0.0, 0.0], [-0.1, 0.1], [0.1, -0.1], [0.01, -0.02]] {
        let old = (policy.log_probs.detach() + Tensor::new(&shift, &Device::Cpu).unwrap()).unwrap();
        let here = denoising_policy_loss(&policy.log_probs, &old, &advantages, Clip::both(0.05)).unwrap();
        let column = |x: &Tensor| x.unsqueeze(1).unwrap();
        let weights = column(&Tensor::new(&advantages, &Device::Cpu).unwrap());
        let block = ClippedRatio { clip_low: 0.05, clip_high: 0.05, dual_clip: None };
        let there = block.loss(&column(&policy.log_probs), &column(&old), &weights).unwrap();
        let there = there.per_token.mean_all().unwrap();
        assert!(gap(&here.loss, &there) < 1e-15);
        let grad = |loss: &Tensor| match loss.backward().unwrap().get(output.as_tensor()) {
            Some(grad) => grad.clone(),
            None => output.zeros_like().unwrap(),
        };
        assert!(gap(&grad(&here.loss), &grad(&there)) < 1e-15, "{shift:?}");
    }
}

#[test]
fn steps_that_are_not_random_have_no_density() {
    let (table, x, output) = (table(), some(6), some(7));
    let random = Ddim { eta: 1.0, ..Ddim::default() };
    for (sampler, at) in [(Ddim::default(), (481, Some(441))), (random, (1, None))] {
        assert!(matches!(
            denoising_policy(&sampler, &table, &x, &output, &x, at),
            Err(Error::Invalid { .. })
        ));
    }
}

#[test]
fn wrong_inputs_are_errors() {
    let (table, x) = (table(), some(1));
    let narrow = x.narrow(1, 0, 2).unwrap();
    assert!(add_noise(&table, &x, &narrow, &[1, 2]).is_err());
    assert!(add_noise(&table, &x, &x, &[1]).is_err());
    assert!(add_noise(&table, &x, &x, &[1, 1000]).is_err());
    assert!(flow_matching_pair(&x, &x, &[0.5]).is_err());
    assert!(flow_sample(Integrator::Euler, &x, 0, |x, _| Ok(x.clone())).is_err());
    let random = Ddim { eta: 1.0, ..Ddim::default() };
    assert!(matches!(random.step(&table, &x, &x, 9, Some(5), None), Err(Error::Missing { name: "noise" })));
    assert!(random.step(&table, &x, &x, 5, Some(9), Some(&x)).is_err());
    assert!(Ddpm::default().step(&table, &x, &x, 5, Some(9), Some(&x)).is_err());
    for eta in [-1.0, f64::NAN, 2.0] {
        assert!(Ddim { eta, ..Ddim::default() }.step(&table, &x, &x, 9, Some(8), Some(&x)).is_err(), "{eta}");
    }
    assert!(Ddim { clip: Some(0.0), ..Ddim::default() }.step(&table, &x, &x, 9, Some(8), None).is_err());
    let default = NoiseSchedule::default();
    for beta in [0.0, 1.0, f64::NAN] {
        assert!(NoiseSchedule { beta_end: beta, ..default }.table().is_err());
    }
    assert!(NoiseSchedule { timesteps: 0, ..default }.table().is_err());
    assert!(EmaDecay { power: 0.0, ..EmaDecay::default() }.at(5).is_err());
    assert!(timestep_embedding(&[1.0], 4, 0.0, Precision::Double).is_err());
    let none = Tensor::zeros(0, candle_core::DType::F64, &Device::Cpu).unwrap();
    assert!(denoising_policy_loss(&none, &none, &[], Clip::both(0.1)).is_err());
}

#[test]
fn decay_warms_up_between_its_bounds() {
    let ema = EmaDecay { update_after: 3, min: 0.2, max: 0.9, ..EmaDecay::default() };
    let decay: Vec<f64> = (0..500).map(|n| ema.at(n).unwrap()).collect();
    assert!(decay.is_sorted());
    assert_eq!((decay[4], decay[499]), (0.0, 0.9));
    assert!(decay[5] >= 0.2);
}

#[test]
fn embeddings_have_the_asked_size() {
    let table = timestep_embedding(&[0.0, 3.0], 5, 1e4, Precision::Double).unwrap();
    assert_eq!(table.row(0), [1.0, 1.0, 0.0, 0.0, 0.0]);
    assert!((table.row(1)[3] - 0.03f64.sin()).abs() < 1e-15 && table.row(1)[4] == 0.0);
    assert_eq!(timestep_embedding(&[1.0], 0, 1e4, Precision::Single).unwrap().values.len(), 0);
}
