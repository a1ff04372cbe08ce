//! The parts together, on scenes small enough for seconds.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use candle_core::Device;
use efference_nets::flow::QueryCode;

use super::config::{FlowConfig, SamplerConfig};
use super::random::Gaussian;
use super::scene::{Jitter, Scene};
use super::synthetic::synthetic_scene;
use super::{FlowModel, FlowSpec, evaluate, run};
use crate::report::{Event, Recorded, Reporter, Silent, StopFlag};
use crate::run_dir::Taken;

fn config(out: &Path, sets: &[&str]) -> FlowConfig {
    let text = "[data]\nsynthetic = true\n[model]\nsize = \"xs\"\npicture = false\ngoal = true\nframes = 4\n\
                [train]\nsteps = 6\nbatch = 3\npoints_min = 4\npoints_max = 9\nwarmup_steps = 2\n\
                [eval]\nsynthetic_scenes = 6\nsamples = 2\npoints = 8\n[sampler]\nsteps = 3\n";
    let mut all = vec![format!("run.out={}", out.display())];
    all.extend(sets.iter().map(ToString::to_string));
    FlowConfig::from_text(Path::new("test.toml"), text, &all).unwrap()
}

/// A model whose weights have moved off zero.
fn trained(dir: &Path, sets: &[&str]) -> FlowModel {
    let config = config(dir, sets);
    let summary = run::start(&config, Taken::Suffix, &Silent, &StopFlag::new()).unwrap();
    assert!(summary.finished);
    FlowModel::load(summary.run.to_str().unwrap(), Device::Cpu).unwrap()
}

fn code(model: &FlowModel, scene: &Scene) -> QueryCode {
    let all: Vec<usize> = (0..scene.flow.points()).collect();
    scene.code(&model.spec.net, &all, Jitter::default(), &mut Gaussian::new(0)).unwrap()
}

/// Asks for a stop after so many updates.
struct StopAfter(u64, StopFlag);

impl Reporter for StopAfter {
    fn report(&self, event: &Event) {
        if let Event::Metrics { step, stage, .. } = event
            && *step == self.0
            && !stage.starts_with("eval")
        {
            self.1.request();
        }
    }
}

#[test]
fn a_run_that_was_stopped_goes_on_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let rl = ["rl.iterations=2", "rl.scenes=2", "rl.group=2", "rl.steps=3", "rl.points=6", "rl.lr=0.001"];
    let whole = run::start(&config(dir.path(), &rl), Taken::Suffix, &Silent, &StopFlag::new()).unwrap();
    for stop_at in [3, 7] {
        let stop = StopFlag::new();
        let reporter = StopAfter(stop_at, stop.clone());
        let part = run::start(&config(dir.path(), &rl), Taken::Suffix, &reporter, &stop).unwrap();
        assert!(!part.finished && part.step == stop_at);
        let rest = run::resume(&part.run, &[], &Silent, &StopFlag::new()).unwrap();
        assert!(rest.finished);
        let file = |run: &Path| std::fs::read(run.join("flow_world.safetensors")).unwrap();
        assert_eq!(file(&whole.run), file(&rest.run), "stopped at {stop_at}");
        let log = |run: &Path| -> Vec<_> {
            let mut records = crate::metrics::read(&run.join("metrics.jsonl")).unwrap();
            records.iter_mut().for_each(|r| r.values.retain(|name, _| crate::metrics::is_reproducible(name)));
            records
        };
        assert_eq!(log(&whole.run), log(&rest.run));
        let other = run::resume(&part.run, &["train.lr=0.5".into()], &Silent, &StopFlag::new());
        assert!(matches!(other, Err(crate::Error::OtherConfig { .. })));
    }
}

#[test]
fn a_sample_depends_on_its_seed_alone() {
    let dir = tempfile::tempdir().unwrap();
    let model = trained(dir.path(), &[]);
    let scenes: Vec<Scene> = (0..3).map(|seed| synthetic_scene(seed, 12, 4).unwrap()).collect();
    let codes: Vec<QueryCode> = scenes.iter().map(|scene| code(&model, scene)).collect();
    for sampler in [
        SamplerConfig { steps: 4, ..SamplerConfig::default() },
        SamplerConfig { steps: 4, guidance: 1.5, eta: 0.5, rigid: false, ..SamplerConfig::default() },
        SamplerConfig { steps: 4, integrator: "heun".into(), ..SamplerConfig::default() },
    ] {
        let many = model.of_codes(&codes, &sampler, 3, &[7, 8, 9]).unwrap();
        let alone = crate::run::in_pool(1, || model.of_codes(&codes[1..2], &sampler, 2, &[8])).unwrap();
        assert_eq!(alone[0], many[1][..2]);
        assert_ne!(many[1][0], many[1][1]);
        for (scene, flows) in scenes.iter().zip(&many) {
            assert!(flows.iter().all(|flow| flow.frames() == 5 && flow.at(0) == scene.flow.at(0)));
            if sampler.rigid {
                let worst =
                    |f| efference_geometry::rigid::rigidity_rms(f).unwrap().into_iter().fold(0.0, f64::max);
                assert!(flows.iter().map(worst).fold(0.0, f64::max) < 1e-5, "a projected flow is rigid");
            }
        }
    }
}

#[test]
fn a_network_learns_a_handful_of_scenes_by_heart() {
    // The generator draws its scenes from the seed of a step: with one step's seed there are as many as the batch.
    let dir = tempfile::tempdir().unwrap();
    let sets = ["train.steps=1", "train.batch=1"];
    let config = config(dir.path(), &sets);
    let scenes: Vec<Scene> = (0..4).map(|seed| synthetic_scene(seed, 10, 4).unwrap()).collect();
    let spec =
        FlowSpec { net: config.net(), process: config.process.clone(), sampler: config.sampler.clone() };
    let model = FlowModel::new(spec, 1, Device::Cpu).unwrap();
    let settings = super::run::settings(&FlowConfig {
        train: super::FlowTrainConfig { steps: 250, lr: 2e-3, warmup_steps: 10, ..config.train.clone() },
        ..config.clone()
    });
    let mut optimiser = crate::optimise::Optimiser::new(&model.params, settings).unwrap();
    let mut random = Gaussian::new(3);
    for _ in 0..250 {
        let drawn = scenes.iter().map(|s| (s.clone(), Gaussian::new(1))).collect();
        let batch =
            super::batch::clean(&model.spec.net, drawn, 10, 0.0, Jitter::default(), &Device::Cpu).unwrap();
        let batch = super::batch::with_noise(batch, model.process(), &mut random).unwrap();
        let (_, found) = efference_ops::value_and_grad(|| {
            let losses = super::batch::losses(&model.net, &batch)?;
            Ok::<_, crate::Error>((losses.motion + (losses.visibility * 0.1)?)?)
        })
        .unwrap();
        let mut grads = efference_ops::Grads::from_store(found, model.params.trainable()).unwrap();
        optimiser.step(&mut grads).unwrap();
    }
    let sampler = SamplerConfig { steps: 8, ..SamplerConfig::default() };
    let rows = optimiser.acting(true, || evaluate(&model, &scenes, &sampler, 2, 10, 5)).unwrap();
    let all = rows.last().unwrap();
    assert_eq!(all.task, "all");
    let m = &all.summary.mean;
    assert!(m.static_ade_m > 0.08 && m.ade_m < 0.02, "{m:?}");
    assert!(m.occlusion_accuracy > 0.9, "{m:?}");
}

#[test]
fn every_process_trains_and_weights_travel_with_their_meaning() {
    let dir = tempfile::tempdir().unwrap();
    for prediction in ["epsilon", "v_prediction", "sample"] {
        let sets = ["process.kind=diffusion", &format!("process.prediction={prediction}"), "train.steps=4"];
        let model = trained(dir.path(), &sets);
        let bytes = model.to_bytes(false).unwrap();
        let again = FlowModel::from_bytes(Path::new("w"), &bytes, Device::Cpu).unwrap();
        assert_eq!(again.spec, model.spec);
        let scene = synthetic_scene(1, 6, 4).unwrap();
        let ask = |m: &FlowModel| m.of_codes(&[code(m, &scene)], &m.spec.sampler, 1, &[3]).unwrap();
        assert_eq!(ask(&model), ask(&again));
        assert!(FlowModel::from_bytes(Path::new("w"), &bytes[..bytes.len() - 5], Device::Cpu).is_err());
        let half = model.to_bytes(true).unwrap();
        assert!(half.len() < bytes.len() * 6 / 10);
        let near = FlowModel::from_bytes(Path::new("w"), &half, Device::Cpu).unwrap();
        let gap = (ask(&near)[0][0].at(4)[0] - ask(&model)[0][0].at(4)[0]).norm();
        assert!(gap < 0.01, "{gap}");
    }
    let no_model = dir.path().join("x.safetensors");
    std::fs::write(&no_model, b"nonsense").unwrap();
    assert!(FlowModel::load(no_model.to_str().unwrap(), Device::Cpu).is_err());
    assert!(FlowModel::load("/nonexistent", Device::Cpu).is_err());
}

#[test]
fn learning_from_rewards_starts_at_a_ratio_of_one() {
    let dir = tempfile::tempdir().unwrap();
    let rl = ["rl.iterations=1", "rl.scenes=2", "rl.group=3", "rl.steps=3", "rl.points=6"];
    let log = Recorded::default();
    run::start(&config(dir.path(), &rl), Taken::Suffix, &log, &StopFlag::new()).unwrap();
    let values = log.events().into_iter().find_map(|event| match event {
        Event::Metrics { stage, values, .. } if stage == "rl" => Some(values),
        _ => None,
    });
    let values = values.unwrap();
    assert_eq!(values["rl/first/ratio_gap"], 0.0);
    assert!(values["rl/last/ratio_gap"] > 0.0 && values["rl/first/grad_norm"] > 0.0);
    assert!((-2.0..=1.0).contains(&values["rl/reward"]));
}
