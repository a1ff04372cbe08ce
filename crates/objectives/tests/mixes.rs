//! Compositions that no paper has, written as a person would write them; and sentences that refuse those that lack
//! something.
#![allow(clippy::unwrap_used)]

mod synthetic;

use efference_objectives::batch::{
    EMBEDDINGS, ENTROPY, GROUP_IDS, LOG_PROBS, OLD_LOG_PROBS, REF_LOG_PROBS, REWARDS, Signals, TURN_IDS,
    VALUES,
};
use efference_objectives::block::{Block, TokenRule};
use efference_objectives::{Aggregation, Batch, Composition, Input, Objective, State, algorithms};
use synthetic::{Fields, chain};

/// Name, papers whose blocks it takes, composition.
const MIXES: &[(&str, &[&str], &str)] = &[
    (
        "leave one out on rewards less an adaptive KL, GSPO's ratio, an entropy bonus",
        &["rloo", "gspo"],
        r#"
        aggregation = "seq-mean-token-mean"
        reward = [{ kind = "terminal" }, { kind = "kl_in_reward", coef = 0.05, target = 0.02 }]
        advantage = { kind = "leave_one_out" }
        surrogate = { kind = "gspo", clip_low = 0.01, clip_high = 0.02 }
        regularizer = [{ kind = "entropy_bonus", coef = 0.01 }]
        "#,
    ),
    (
        "SRPO's progress reward, OPO's baseline, CISPO's weights on the least certain tokens, a KL",
        &["srpo", "opo", "cispo", "grpo_trl"],
        r#"
        aggregation = "token-mean"
        reward = [{ kind = "progress", norm = "zscore" }]
        advantage = { kind = "opo" }
        weight = [{ kind = "top_entropy", share = 0.5 }]
        surrogate = { kind = "cispo", clip_low = 1.0, clip_high = 1.0 }
        regularizer = [{ kind = "kl", coef = 0.02, estimator = "k3+" }]
        "#,
    ),
    (
        "PPO's critic under GMPO's geometric mean, prompts chosen as in DAPO",
        &["ppo", "gmpo", "dapo"],
        r#"
        aggregation = "seq-mean-token-mean"
        reward = [{ kind = "dapo_overlong", max = 8, buffer = 4 }, { kind = "terminal" }]
        filter = [{ kind = "varying_success" }]
        advantage = { kind = "gae", lambda = 0.9 }
        weight = [{ kind = "value_targets", lambda = 0.9 }]
        surrogate = { kind = "geo_mean" }
        regularizer = [{ kind = "clipped_value", coef = 0.5 }, { kind = "kl", anchor = "old", estimator = "k2" }]
        "#,
    ),
    (
        "several rewards, SAPO's gate, nothing from bad sequences that are far off",
        &["grpo_trl", "sapo"],
        r#"
        aggregation = "seq-mean-token-sum-norm"
        advantage = { kind = "trl_norm", weights = [1.0, 0.5, 2.0], combine = "normalize_then_sum" }
        weight = [{ kind = "off_policy_mask", threshold = 0.05 }]
        surrogate = { kind = "sapo" }
        regularizer = [{ kind = "trl_kl", bias_correction = true }]
        "#,
    ),
    (
        "SRPO's reward credited turn by turn with a critic",
        &["srpo"],
        r#"
        aggregation = "seq-mean-token-mean"
        reward = [{ kind = "progress" }]
        advantage = { kind = "turn_gae", lambda = 0.9 }
        surrogate = { kind = "clipped_ratio", clip_high = 0.28 }
        "#,
    ),
    (
        "PAPO's perception term, DCPO's bounds, GiGPO's step advantages",
        &["papo", "dcpo", "gigpo"],
        r#"
        aggregation = "token-mean"
        reward = [{ kind = "step_returns" }]
        advantage = { kind = "group_in_group" }
        bounds = { kind = "dynamic_adaptive_clip" }
        surrogate = { kind = "clipped_ratio" }
        regularizer = [{ kind = "perception_kl" }]
        "#,
    ),
];

/// The mixes whose papers are there, built.
fn mixes() -> Vec<(&'static str, Objective)> {
    let there = |id: &&str| algorithms().iter().any(|paper| paper.id == *id);
    let whole = MIXES.iter().filter(|(_, papers, _)| papers.iter().all(there));
    let build = |text: &str| toml::from_str::<Composition>(text).unwrap().build();
    whole.map(|(name, _, text)| (*name, build(text).unwrap_or_else(|e| panic!("{name}: {e}")))).collect()
}

#[test]
fn mixes_learn() {
    let mixes = mixes();
    assert_eq!(mixes.len(), MIXES.len());
    for (name, objective) in &mixes {
        objective.check(&objective.needs()).unwrap();
        let mut state = State::default();
        let fields = Fields::for_objective(objective, 3).unwrap_or_else(|e| panic!("{name}: {e}"));
        for _ in 0..2 {
            let run = fields.run(objective, &mut state).unwrap_or_else(|e| panic!("{name}: {}", chain(&e)));
            assert!(run.loss.is_finite() && run.loss != 0.0, "{name}: loss {}", run.loss);
            let log_probs = &run.gradients[LOG_PROBS.name];
            assert!(log_probs.iter().all(|g| g.is_finite()), "{name}");
            assert!(log_probs.iter().any(|&g| g != 0.0), "{name}: no gradient");
            // The parts are what the loss is the sum of.
            let sum = run.parts.pg_loss + run.parts.regularizers.iter().map(|(_, x)| x).sum::<f64>();
            assert!((run.loss - sum).abs() < 1e-12, "{name}: {} and {sum}", run.loss);
            for (term, x) in &run.parts.regularizers {
                assert!(x.is_finite() && *x != 0.0, "{name}: {term} is {x}");
            }
        }
    }
}

/// Takes every needed input away in turn: the sentence names it and a block that reads it.
#[test]
fn whatever_is_missing_is_named_with_its_block() {
    for (name, objective) in &mixes() {
        let needs = objective.needs();
        for missing in &needs {
            let rest: Vec<Input> = needs.iter().filter(|input| *input != missing).copied().collect();
            let sentence =
                objective.check(&rest).err().unwrap_or_else(|| panic!("{name}: {missing} is not missed"));
            let sentence = sentence.to_string();
            assert!(sentence.contains(&format!("`{}`", missing.name)), "{name}: {sentence}");
            let readers = objective.blocks().into_iter().filter(|(_, block)| {
                block.needs().contains(missing) || block.needs_one_of().contains(missing)
            });
            let named = readers.map(|(role, block)| format!("the {role} \"{}\"", block.describe()));
            assert!(named.into_iter().any(|block| sentence.contains(&block)), "{name}: {sentence}");
        }
    }
}

fn refused(text: &str, available: &[Input]) -> String {
    let objective = toml::from_str::<Composition>(text).unwrap().build().unwrap();
    objective.check(available).unwrap_err().to_string()
}

#[test]
fn refusals_in_words() {
    let grpo =
        "aggregation = \"token-mean\"\nadvantage.kind = \"group_norm\"\nsurrogate.kind = \"clipped_ratio\"\n";
    let have = [LOG_PROBS, OLD_LOG_PROBS, GROUP_IDS, REWARDS];
    let no_reference = refused(&format!("{grpo}[[regularizer]]\nkind = \"kl\""), &have);
    assert_eq!(
        no_reference,
        "this composition does not work: the regularizer \"0.001 KL to the reference (k3)\" needs `ref_log_probs` \
         [B, T] (log-probability under a frozen reference policy), which is not there"
    );
    let no_entropy = refused(&format!("{grpo}[[regularizer]]\nkind = \"entropy_bonus\""), &have);
    assert!(no_entropy.contains("\"-0.001 entropy\" needs `entropy`"), "{no_entropy}");
    let no_reward = refused(grpo, &have[..3]);
    assert!(no_reward.contains("(R - mean) / (std + eps)\" needs `rewards`"), "{no_reward}");
    assert!(no_reward.contains("or `token_rewards`"), "{no_reward}");
    let critic = grpo.replace("group_norm", "gae") + "[[reward]]\nkind = \"terminal\"";
    let no_values = refused(&critic, &have);
    assert!(
        no_values.contains("the advantage \"GAE (gamma 1, lambda 1, whitened)\" needs `values`"),
        "{no_values}"
    );
    let no_terminal = refused(&grpo.replace("group_norm", "gae"), &[&have[..], &[VALUES]].concat());
    assert!(no_terminal.contains("needs `token_rewards`"), "{no_terminal}");
    let no_video = refused(&format!("{grpo}[[reward]]\nkind = \"progress\""), &have);
    assert!(no_video.contains(&format!("needs {EMBEDDINGS}")), "{no_video}");
    // A reward made by a block before is there, by one after it is not.
    let kl_first = "[[reward]]\nkind = \"kl_in_reward\"\n[[reward]]\nkind = \"terminal\"";
    let order = refused(&format!("{grpo}{kl_first}"), &[&have[..], &[REF_LOG_PROBS]].concat());
    assert!(order.contains("KL to the reference per token\" needs `token_rewards`"), "{order}");
    let no_advantage = refused(&grpo.replace("advantage.kind = \"group_norm\"\n", ""), &have);
    assert!(no_advantage.contains("needs an `advantage` block"), "{no_advantage}");
}

/// Works on turns.
struct PerTurn;

impl Block for PerTurn {
    fn needs(&self) -> Vec<Input> {
        vec![TURN_IDS]
    }

    fn describe(&self) -> String {
        "one weight per turn".into()
    }
}

impl TokenRule for PerTurn {
    fn prepare(
        &self,
        batch: &Batch,
        signals: &mut Signals,
        _state: &mut State,
    ) -> efference_objectives::Result<()> {
        let turns = batch.table(TURN_IDS)?;
        signals.weights.values.iter_mut().zip(&turns.values).for_each(|(w, turn)| *w = 1.0 + turn);
        Ok(())
    }
}

#[test]
fn blocks_from_outside_the_crate_mix_too() {
    let gpg = || {
        toml::from_str::<Composition>("aggregation = \"token-mean\"\nsurrogate.kind = \"policy_gradient\"")
    };
    let mut objective = gpg().unwrap().build().unwrap();
    objective.advantage = Some(Box::new(efference_objectives::advantage::GroupNorm::default()));
    objective.weights.push(Box::new(PerTurn));
    let no_turns = objective.check(&[LOG_PROBS, GROUP_IDS, REWARDS]).unwrap_err().to_string();
    assert!(no_turns.contains("the weight \"one weight per turn\" needs `turn_ids`"), "{no_turns}");
    let fields = Fields::for_objective(&objective, 5).unwrap();
    let weighted = fields.run(&objective, &mut State::default()).unwrap();
    objective.weights.clear();
    let plain = fields.run(&objective, &mut State::default()).unwrap();
    let turns = fields.batch().0.table(TURN_IDS).unwrap();
    for (i, turn) in turns.values.iter().enumerate() {
        let (w, p) = (weighted.gradients[LOG_PROBS.name][i], plain.gradients[LOG_PROBS.name][i]);
        assert!((w - (1.0 + turn.max(0.0)) * p).abs() < 1e-15, "{i}: {w} and {p}");
    }
    assert_eq!(objective.aggregation, Aggregation::TokenMean);
}

/// Bounds that nobody reads are refused.
#[test]
fn bounds_without_a_clip_are_refused() {
    struct Fixed;
    impl Block for Fixed {
        fn describe(&self) -> String {
            "fixed bounds".into()
        }
    }
    impl TokenRule for Fixed {}
    let have = [LOG_PROBS, OLD_LOG_PROBS, GROUP_IDS, REWARDS, ENTROPY];
    for (kind, clips) in [("clipped_ratio", true), ("gspo", true), ("cispo", true), ("sapo", false)] {
        let text =
            format!("aggregation = \"token-mean\"\nadvantage.kind = \"opo\"\nsurrogate.kind = \"{kind}\"");
        let mut objective = toml::from_str::<Composition>(&text).unwrap().build().unwrap();
        objective.bounds = Some(Box::new(Fixed));
        match objective.check(&have) {
            Ok(()) => assert!(clips, "{kind}"),
            Err(e) => assert!(
                !clips && e.to_string().contains("no clip bounds for \"fixed bounds\""),
                "{kind}: {e}"
            ),
        }
    }
}
