//! A real network in the real simulator.
#![allow(clippy::unwrap_used)]

use candle_core::Device;
use efference_envs::tabletop::{CAMERAS, TabletopEnv, TabletopOptions, train_seed};
use efference_envs::{ACTION_DIM, Env, PROPRIO_DIM};
use efference_nets::{ParamStore, Quantiles, Tokenizer, Vla, VlaConfig};
use efference_rollout::{
    CollectOptions, Collector, Decision, EnvSource, EpisodePlan, Error, Noise, Trajectory, VlaPolicy,
};

struct Tabletop {
    options: TabletopOptions,
    cameras: Vec<String>,
}

impl EnvSource for Tabletop {
    fn make(&self, task: &str) -> efference_envs::Result<Box<dyn Env>> {
        Ok(Box::new(TabletopEnv::new(task, &self.options)?))
    }
    fn cameras(&self) -> &[String] {
        &self.cameras
    }
}

/// 11 steps: the last chunk of 8 is cut short.
fn tabletop() -> Tabletop {
    let options = TabletopOptions { max_steps: 11, ..TabletopOptions::default() };
    Tabletop { options, cameras: CAMERAS.map(String::from).to_vec() }
}

fn policy(seed: u64) -> VlaPolicy {
    let tokenizer = Tokenizer::built_in().unwrap();
    let mut params = ParamStore::new(seed, Device::Cpu);
    let mut config = VlaConfig::quickstart();
    config.vision.patch_size = 16;
    let net = Vla::new(&mut params, &config, tokenizer.special()).unwrap();
    let (action_stats, proprio_stats) = (Quantiles::unit(ACTION_DIM), Quantiles::unit(PROPRIO_DIM));
    VlaPolicy { net, params, tokenizer, action_stats, proprio_stats }
}

fn plans() -> Vec<EpisodePlan> {
    let tasks = ["pick_red_cube", "open_drawer", "press_button"];
    (0..5)
        .map(|i| EpisodePlan {
            task: tasks[i % 3].into(),
            env_seed: train_seed(i as u64 / 2),
            action_seed: 100 + i as u64,
            mirrored: false,
            group: (i / 2) as u64,
        })
        .collect()
}

fn run(
    policy: &VlaPolicy,
    plans: &[EpisodePlan],
    temperature: f64,
    slots: usize,
    threads: usize,
) -> Vec<Trajectory> {
    let source = tabletop();
    let options = CollectOptions { temperature, noise: Noise::Token, slots, keep_snapshots: true };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| Collector::new(&source).collect(policy, plans, &options, &mut |_| true)).unwrap()
}

/// What must be the same bits.
fn bits(t: &Trajectory) -> impl PartialEq + std::fmt::Debug + use<> {
    let decisions = t.decisions.iter().map(|d| {
        let log_probs: Vec<u32> = d.log_probs.iter().map(|x| x.to_bits()).collect();
        (d.pixels.clone(), d.proprio.map(f32::to_bits), d.action_ids.clone(), log_probs)
    });
    (t.plan.clone(), decisions.collect::<Vec<_>>(), t.finish_steps, t.success, t.snapshots.clone())
}

#[test]
fn episodes_do_not_depend_on_slots_threads_or_company() {
    let (policy, plans) = (policy(1), plans());
    let whole: Vec<_> = run(&policy, &plans, 1.6, 5, 2).iter().map(bits).collect();
    assert_eq!(run(&policy, &plans, 1.6, 2, 1).iter().map(bits).collect::<Vec<_>>(), whole);
    let alone = run(&policy, &plans[3..4], 1.6, 1, 2);
    assert_eq!(bits(&alone[0]), whole[3]);
    assert_ne!(whole[0], whole[1]);
}

#[test]
fn a_trajectory_is_whole() {
    let policy = policy(1);
    for (t, plan) in run(&policy, &plans(), 1.6, 3, 2).iter().zip(plans()) {
        assert_eq!(t.plan, plan);
        assert_eq!((t.finish_steps, t.decisions.len(), t.snapshots.len()), (11, 2, 12));
        assert!(!t.success && t.aborted.is_none() && t.remaining > 0.0);
        assert!(t.decisions.iter().all(|d| d.action_ids.len() == 56 && d.log_probs.iter().all(|&p| p < 0.0)));
        assert_ne!(t.decisions[0].pixels, t.decisions[1].pixels, "the arm has moved");
    }
}

#[test]
fn the_on_policy_ratio_is_exactly_one_and_a_changed_weight_is_noticed() {
    let policy = policy(2);
    let trajectories = run(&policy, &plans(), 1.6, 4, 2);
    let decisions: Vec<&Decision> = trajectories.iter().flat_map(|t| &t.decisions).collect();
    let scored = policy.score(&decisions, 1.6).unwrap().log_probs;
    VlaPolicy::check_on_policy(&decisions, &scored, 0.0).unwrap();
    let other_temperature = policy.score(&decisions, 1.0).unwrap().log_probs;
    assert!(VlaPolicy::check_on_policy(&decisions, &other_temperature, 1e-4).is_err());
    let (_, head) = policy.params.vars().iter().find(|(name, _)| name.ends_with("lm_head.weight")).unwrap();
    head.set(&(head.as_tensor() * 1.01).unwrap()).unwrap();
    let changed = policy.score(&decisions, 1.6).unwrap().log_probs;
    let error = VlaPolicy::check_on_policy(&decisions, &changed, 0.0).unwrap_err();
    assert!(matches!(error, Error::RatioNotOne { worst, .. } if worst > 0.0), "{error}");
}

#[test]
fn greedy_ignores_the_seed_and_chunks_round_trip() {
    let policy = policy(3);
    let mut plans = plans();
    let first = run(&policy, &plans, 0.0, 2, 2);
    plans.iter_mut().for_each(|p| p.action_seed += 1);
    let second = run(&policy, &plans, 0.0, 2, 2);
    for (a, b) in first.iter().zip(&second) {
        assert_eq!(a.decisions[0].action_ids, b.decisions[0].action_ids);
    }
    let actions = vec![[-1.0, -0.3, 0.0, 0.2, 0.5, 0.99, 1.0f32]; 8];
    let back = policy.decode_chunk(&policy.encode_chunk(&actions));
    for (a, b) in actions.as_flattened().iter().zip(back.as_flattened()) {
        assert!((a - b).abs() <= 1.0 / 255.0 + 1e-6, "{a} came back as {b}");
    }
}

#[test]
fn an_unknown_task_is_an_error_and_a_stop_is_none() {
    let (policy, source) = (policy(1), tabletop());
    let options = CollectOptions { temperature: 1.6, noise: Noise::Token, slots: 2, keep_snapshots: false };
    let mut bad = plans();
    bad[1].task = "pick_red_cub".into();
    let error = Collector::new(&source).collect(&policy, &bad, &options, &mut |_| true).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        error.to_string().contains("pick_red_cub") && cause.contains("pick_red_cube"),
        "{error}: {cause}"
    );
    let stopped = Collector::new(&source).collect(&policy, &plans(), &options, &mut |_| false).unwrap();
    assert!(stopped.is_empty());
}
