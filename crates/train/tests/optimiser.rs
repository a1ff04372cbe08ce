//! The guards around an update.
#![allow(clippy::unwrap_used)]

use candle_core::{Device, Tensor};
use efference_nets::{Init, ParamStore};
use efference_ops::{Ema, EmaConfig, Grads, OptimizerConfig, Schedule};
use efference_train::Error;
use efference_train::optimise::{Optimiser, OptimiserSettings};

fn store() -> ParamStore {
    let mut store = ParamStore::new(1, Device::Cpu);
    for name in ["eye", "hand"] {
        store.root().pp(name).get("weight", &[3, 2], Init::Normal(1.0)).unwrap();
    }
    store
}

fn settings() -> OptimiserSettings {
    let schedule = Schedule::Constant { warmup_steps: 0 };
    OptimiserSettings {
        stage: "rl",
        lr: 0.1,
        weight_decay: 0.0,
        max_grad_norm: 1.0,
        schedule,
        kind: OptimizerConfig::default(),
        ema: None,
        reach_after: 0,
    }
}

fn grads(entries: &[(&str, f32)]) -> Grads {
    let mut grads = Grads::new();
    for (name, x) in entries {
        grads.add_one(name, &Tensor::full(*x, (3, 2), &Device::Cpu).unwrap()).unwrap();
    }
    grads
}

fn weights(store: &ParamStore) -> Vec<u32> {
    let flat = |v: &candle_core::Var| v.as_tensor().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    store.vars().values().flat_map(flat).map(f32::to_bits).collect()
}

#[test]
fn a_weight_that_the_loss_does_not_reach_stops_the_run_and_is_named() {
    for rest in [None, Some(0.0)] {
        let store = store();
        let before = weights(&store);
        let mut entries = vec![("eye.weight", 1.0)];
        entries.extend(rest.map(|x| ("hand.weight", x)));
        let error = Optimiser::new(&store, settings()).unwrap().step(&mut grads(&entries)).unwrap_err();
        assert!(
            matches!(&error, Error::Unreached { stage: "rl", names } if names == &["hand.weight"]),
            "{error}"
        );
        assert_eq!(weights(&store), before);
    }
}

#[test]
fn a_batch_without_any_gradient_says_nothing_about_reach() {
    let store = store();
    let mut optimiser = Optimiser::new(&store, settings()).unwrap();
    optimiser.step(&mut grads(&[("eye.weight", 0.0), ("hand.weight", 0.0)])).unwrap();
    assert!(optimiser.step(&mut grads(&[("eye.weight", 1.0)])).is_err(), "the check is still to come");
}

#[test]
fn steps_that_are_not_finite_change_nothing_are_counted_and_end_a_run_that_does_nothing_else() {
    let store = store();
    let mut optimiser = Optimiser::new(&store, settings()).unwrap();
    optimiser.step(&mut grads(&[("eye.weight", 1.0), ("hand.weight", 2.0)])).unwrap();
    let before = weights(&store);
    for bad in [f32::NAN, f32::INFINITY] {
        let report = optimiser.step(&mut grads(&[("eye.weight", 1.0), ("hand.weight", bad)])).unwrap();
        assert!(report.skipped);
    }
    assert_eq!((optimiser.skipped(), weights(&store)), (2, before));
    // A good one in between, and the patience begins anew.
    assert!(!optimiser.step(&mut grads(&[("eye.weight", 1.0), ("hand.weight", 1.0)])).unwrap().skipped);
    let mut bad = || optimiser.step(&mut grads(&[("eye.weight", f32::NAN)]));
    let skipped = (0..9).filter(|_| bad().unwrap().skipped).count();
    assert_eq!(skipped, 9);
    assert!(matches!(bad().unwrap_err(), Error::Diverged { stage: "rl", count: 10 }));
}

#[test]
fn a_restored_optimiser_goes_on_bit_for_bit() {
    let step = |optimiser: &mut Optimiser, i: usize| {
        let x = 0.3 + i as f32;
        optimiser.step(&mut grads(&[("eye.weight", x), ("hand.weight", 1.0 / x)])).unwrap();
    };
    let schedule = Schedule::Cosine { warmup_steps: 2, total_steps: 9, final_factor: 0.0 };
    let ema = Some(EmaConfig { decay: 0.9, warmup: true });
    let settings = OptimiserSettings { schedule, ema, ..settings() };
    let whole = store();
    let mut optimiser = Optimiser::new(&whole, settings.clone()).unwrap();
    (0..6).for_each(|i| step(&mut optimiser, i));

    let half = store();
    let mut first = Optimiser::new(&half, settings.clone()).unwrap();
    (0..3).for_each(|i| step(&mut first, i));
    let (state, counters) = (first.state().unwrap(), first.counters().into_iter().collect());
    let mut second = Optimiser::new(&half, settings).unwrap();
    second.restore(&state, &counters).unwrap();
    (3..6).for_each(|i| step(&mut second, i));
    assert_eq!(weights(&half), weights(&whole));
    // The averages too: acting with them, and with the weights again afterwards.
    let trained = weights(&half);
    let average = |optimiser: &mut Optimiser, store: &ParamStore| {
        optimiser.acting(true, || Ok(weights(store))).unwrap()
    };
    let averages = average(&mut second, &half);
    assert_eq!(averages, average(&mut optimiser, &whole));
    assert_ne!(averages, trained);
    assert_eq!(second.acting(false, || Ok(weights(&half))).unwrap(), trained);
    assert_eq!(weights(&half), trained);
}

#[test]
fn averages_are_those_of_the_weights_after_each_step_and_frozen_weights_have_none() {
    let mut store = store();
    store.freeze(&["eye.*"]);
    let config = EmaConfig { decay: 0.5, warmup: false };
    let mut optimiser =
        Optimiser::new(&store, OptimiserSettings { ema: Some(config), ..settings() }).unwrap();
    let mut plain = Ema::new(store.trainable(), config).unwrap();
    let eye = store.vars()["eye.weight"].to_vec2::<f32>().unwrap();
    for i in 0..3 {
        optimiser.step(&mut grads(&[("hand.weight", 1.0 + i as f32)])).unwrap();
        plain.update().unwrap();
    }
    let averages = optimiser.averages().unwrap();
    let names: Vec<&str> = averages.keys().map(String::as_str).collect();
    assert_eq!(names, ["average/ema.hand.weight", "average/step.ema"]);
    let values = |x: &Tensor| x.to_vec2::<f32>().unwrap();
    let expected = plain.state().unwrap();
    assert_eq!(values(&averages["average/ema.hand.weight"]), values(&expected["ema.hand.weight"]));
    assert_eq!(store.vars()["eye.weight"].to_vec2::<f32>().unwrap(), eye);
    // What the optimiser does not hold it refuses.
    assert!(optimiser.step(&mut grads(&[("eye.weight", 1.0), ("hand.weight", 1.0)])).is_err());
}
