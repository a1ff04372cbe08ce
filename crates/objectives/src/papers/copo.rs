//! COPO: Consistency-Aware Policy Optimization (arXiv 2508.04138).
//!
//! Base: GRPO. New: a second, global advantage compares prompts with each other, so that a group whose answers
//! are all right or all wrong still teaches. The two clipped losses are blended per prompt by the entropy of its
//! final answers: diverse answers learn inside the group, consistent ones against the other prompts.
//!
//! ```text
//! H_q = -sum_c p_c log2(p_c + 1e-8)      over distinct answers;   acc_q = mean reward
//! R_q = acc_q (1 - lam H_q), lam = (1 - 1/n)/log2 n     with reward_coef; else R_q = acc_q
//! A_i = (r_i - mean_q)/(std_q + eps);   G_q = (R_q - mean)/(std + eps) over prompts, each once, unbiased
//! w_q = sigmoid(k (H_q - b))
//! loss = agg( u l(A) + v l(G) ), l the clipped ratio with dual clip
//!
//! mode                  u                v
//! no-global             1                0
//! only-global           0                1
//! only-soft             w                1 - u
//! soft-with-zero        w [r_i != 0]     1 - u      released script
//! soft-with-forced      w [A_i != 0]     1 - u
//! only-zero             [r_i != 0]       1 - u
//! only-forced           [A_i != 0]       1 - u
//! only-soft-with-coef   w                (1 - w) global_loss_coef
//! ```
//!
//! `only-soft` is the paper's method and the default. G and H come from the full batch, before any split.
//! Answers are compared by identity (`answer_ids` [B]); all answers that could not be read should share one id.
//! A batch with a single prompt has G = 0. G takes easy prompts for merit: keep its weight small when
//! difficulties mix.
//!
//! Where we differ: without division by the spread the code forgets the rewards and its `*-zero` modes turn purely
//! global; here they read the rewards. The code computes H in f32. Source: hijih/copo-code `core_algos.py`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Paper;
use crate::advantage::{GroupNorm, members};
use crate::aggregation::Aggregation;
use crate::batch::{Batch, GROUP_IDS, Input, OUTCOMES, Signals};
use crate::block::{Block, BlockKind, Kind, Surrogate, SurrogateLoss, Terms, TokenRule};
use crate::composition::Composition;
use crate::error::{Error, Result};
use crate::state::State;
use crate::surrogate::ClippedRatio;
use crate::table::Table;

/// Equal numbers are equal final answers.
pub const ANSWER_IDS: Input =
    Input::new("answer_ids", "[B]", "identity of the final answer; equal answers, equal ids");

/// Names of what the rule hands to the surrogate, [B, T] each.
/// Global advantages and both losses' weights: made by [`ConsistencyBlend`], read from the signals.
pub const BLEND: Input = Input::new(
    "consistency_blend",
    "[B, T]",
    "global advantages and both losses' weights, from `consistency_blend`",
);

const GLOBAL: &str = "copo.global_advantages";
const LOCAL_WEIGHT: &str = "copo.local_weight";
const GLOBAL_WEIGHT: &str = "copo.global_weight";

/// The paper.
pub const PAPER: Paper = Paper {
    id: "copo",
    title: "COPO: Consistency-Aware Policy Optimization",
    arxiv: "2508.04138",
    summary: "Prompts are compared too: consistent answers learn from that, diverse ones in their group.",
    blocks: &[BlockKind::weight::<ConsistencyBlend>(), BlockKind::surrogate::<BlendedClip>()],
    recipe,
    vectors: Some(("copo.json", 11)),
    end_to_end: None,
};

/// Group-standardised rewards, the consistency blend, both clipped losses, sequences averaged first.
pub fn recipe() -> Composition {
    Composition::new(&BlendedClip::default(), Aggregation::SeqMeanTokenMean)
        .advantage(&GroupNorm::default())
        .weight(&ConsistencyBlend::default())
}

/// How local and global loss are blended; the table is in the module's documentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlendMode {
    /// Local only: GRPO.
    #[serde(alias = "no global")]
    NoGlobal,
    /// Global only.
    #[serde(alias = "only global")]
    OnlyGlobal,
    /// By consistency.
    #[default]
    #[serde(alias = "only soft")]
    OnlySoft,
    /// By consistency; answers without reward learn from the global loss only.
    #[serde(alias = "soft with zero")]
    SoftWithZero,
    /// By consistency; groups without local advantage are fully global.
    #[serde(alias = "soft with forced")]
    SoftWithForced,
    /// Rewarded answers local, others global.
    #[serde(alias = "only zero")]
    OnlyZero,
    /// Groups with local advantage local, others global.
    #[serde(alias = "only forced")]
    OnlyForced,
    /// By consistency, the global loss times a coefficient.
    #[serde(alias = "only soft with coef")]
    OnlySoftWithCoef,
}

/// Global advantages and the weights of both losses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConsistencyBlend {
    /// How to blend.
    pub mode: BlendMode,
    /// Slope of the sigmoid, per bit.
    pub k: f64,
    /// Entropy of equal weights, in bits.
    pub b: f64,
    /// Discount a prompt's mean reward by the entropy of its answers.
    pub reward_coef: bool,
    /// Divide the global advantage by the spread over prompts. The local one has its own setting
    /// (`advantage.spread`).
    pub norm_by_std: bool,
    /// Added to the spread.
    pub epsilon: f64,
    /// Added to a probability inside the logarithm.
    pub entropy_epsilon: f64,
    /// Factor on the global loss of `only-soft-with-coef`.
    pub global_loss_coef: f64,
}

impl Default for ConsistencyBlend {
    fn default() -> Self {
        Self {
            mode: BlendMode::OnlySoft,
            k: 5.0,
            b: 1.0,
            reward_coef: false,
            norm_by_std: true,
            epsilon: 1e-6,
            entropy_epsilon: 1e-8,
            global_loss_coef: 0.5,
        }
    }
}

/// What is known about the prompt of every sequence, [B] each.
#[derive(Clone, Debug, PartialEq)]
pub struct Consistency {
    /// Entropy of the group's answers in bits.
    pub entropy: Vec<f64>,
    /// Mean reward of the group, discounted if so set.
    pub global_rewards: Vec<f64>,
    /// The group's reward against those of the other groups.
    pub global_advantages: Vec<f64>,
}

impl ConsistencyBlend {
    /// Entropies, rewards and advantages of the prompts. `rewards`, `group_ids`, `answer_ids` [B].
    ///
    /// # Errors
    /// Lengths that differ, a reward that is not finite.
    pub fn consistency(&self, rewards: &[f64], group_ids: &[u64], answer_ids: &[u64]) -> Result<Consistency> {
        let b = rewards.len();
        for (name, got) in [("group_ids", group_ids.len()), ("answer_ids", answer_ids.len())] {
            if got != b {
                return Err(Error::Shape {
                    name,
                    got: vec![got],
                    expected: format!("[{b}], like `rewards`"),
                });
            }
        }
        if let Some(index) = rewards.iter().position(|r| !r.is_finite()) {
            return Err(Error::NotFinite { name: "rewards", index, got: rewards[index] });
        }
        let mut out = Consistency {
            entropy: vec![0.0; b],
            global_rewards: vec![0.0; b],
            global_advantages: vec![0.0; b],
        };
        let groups = members(group_ids);
        let mut of_group = Vec::with_capacity(groups.len());
        for index in groups.values() {
            let n = index.len() as f64;
            let mut counts: BTreeMap<u64, f64> = BTreeMap::new();
            index.iter().for_each(|&i| *counts.entry(answer_ids[i]).or_default() += 1.0);
            let entropy =
                -counts.values().map(|c| c / n * (c / n + self.entropy_epsilon).log2()).sum::<f64>();
            let mean = index.iter().map(|&i| rewards[i]).sum::<f64>() / n;
            let discount =
                if self.reward_coef && n > 1.0 { 1.0 - (1.0 - 1.0 / n) / n.log2() * entropy } else { 1.0 };
            for &i in index {
                (out.entropy[i], out.global_rewards[i]) = (entropy, mean * discount);
            }
            of_group.push(mean * discount);
        }
        let advantages = self.standardise(&of_group);
        for (index, a) in groups.values().zip(advantages) {
            index.iter().for_each(|&i| out.global_advantages[i] = a);
        }
        Ok(out)
    }

    /// Unbiased standardisation over prompts; 0 for a single prompt and where all are equal.
    fn standardise(&self, x: &[f64]) -> Vec<f64> {
        if x.iter().all(|v| *v == x[0]) {
            return vec![0.0; x.len()];
        }
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let variance = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (n - 1.0);
        let by = if self.norm_by_std { variance.sqrt() + self.epsilon } else { 1.0 };
        x.iter().map(|v| (v - mean) / by).collect()
    }

    /// w = sigmoid(k (entropy - b)): the weight of the local loss before the mode has its say.
    pub fn soft_weight(&self, entropy: f64) -> f64 {
        1.0 / (1.0 + (-self.k * (entropy - self.b)).exp())
    }

    /// Weights of the local and the global loss of a sequence. `entropy` of its group in bits, `local` its
    /// advantage inside the group.
    pub fn weights(&self, entropy: f64, reward: f64, local: f64) -> (f64, f64) {
        let w = self.soft_weight(entropy);
        let only_if = |yes: bool, w: f64| if yes { w } else { 0.0 };
        let u = match self.mode {
            BlendMode::NoGlobal => 1.0,
            BlendMode::OnlyGlobal => 0.0,
            BlendMode::OnlySoft | BlendMode::OnlySoftWithCoef => w,
            BlendMode::SoftWithZero => only_if(reward != 0.0, w),
            BlendMode::SoftWithForced => only_if(local != 0.0, w),
            BlendMode::OnlyZero => only_if(reward != 0.0, 1.0),
            BlendMode::OnlyForced => only_if(local != 0.0, 1.0),
        };
        let v = if self.mode == BlendMode::OnlySoftWithCoef { self.global_loss_coef } else { 1.0 };
        (u, (1.0 - u) * v)
    }

    /// Hands global advantages [B] and both weights to the surrogate. `entropy` and `rewards` [B].
    ///
    /// # Errors
    /// Lengths that differ.
    pub fn attach(
        &self,
        signals: &mut Signals,
        mask: &Table,
        (global, entropy, rewards): (&[f64], &[f64], &[f64]),
    ) -> Result<()> {
        signals.advantages.same_shape("advantages", mask)?;
        for (name, got) in [("consistency_entropy", entropy.len()), ("rewards", rewards.len())] {
            if got != mask.rows {
                return Err(Error::Shape { name, got: vec![got], expected: format!("[{}]", mask.rows) });
            }
        }
        // The local advantage is that of the first token that counts.
        let local = |i: usize| {
            let tokens = signals.advantages.row(i).iter().zip(mask.row(i));
            tokens.filter(|(_, m)| **m != 0.0).map(|(a, _)| *a).next().unwrap_or(0.0)
        };
        let (u, v): (Vec<f64>, Vec<f64>) =
            (0..mask.rows).map(|i| self.weights(entropy[i], rewards[i], local(i))).unzip();
        for (name, per_row) in [(GLOBAL, global), (LOCAL_WEIGHT, &u), (GLOBAL_WEIGHT, &v)] {
            signals.extra.insert(name.into(), Table::broadcast(per_row, mask)?);
        }
        Ok(())
    }
}

impl Block for ConsistencyBlend {
    fn needs_one_of(&self) -> &'static [Input] {
        OUTCOMES
    }

    fn needs(&self) -> Vec<Input> {
        vec![GROUP_IDS, ANSWER_IDS]
    }

    fn gives(&self) -> Vec<Input> {
        vec![BLEND]
    }

    fn validate(&self) -> Result<()> {
        let checks = [
            ("k", self.k, self.k.is_finite(), "a finite number"),
            ("b", self.b, self.b.is_finite(), "a finite number"),
            ("epsilon", self.epsilon, self.epsilon >= 0.0 && self.epsilon.is_finite(), "0 or more"),
            (
                "entropy_epsilon",
                self.entropy_epsilon,
                self.entropy_epsilon >= 0.0 && self.entropy_epsilon.is_finite(),
                "0 or more",
            ),
            (
                "global_loss_coef",
                self.global_loss_coef,
                self.global_loss_coef >= 0.0 && self.global_loss_coef.is_finite(),
                "0 or more",
            ),
        ];
        match checks.into_iter().find(|check| !check.2) {
            Some((name, got, _, expected)) => Err(Error::Setting { name, got, expected }),
            None => Ok(()),
        }
    }

    fn describe(&self) -> String {
        let mode = toml::Value::try_from(self.mode).ok();
        let mode = mode.as_ref().and_then(toml::Value::as_str).unwrap_or("?");
        format!("local and global advantage, {mode}, sigmoid({} (H - {}))", self.k, self.b)
    }
}

impl Kind for ConsistencyBlend {
    const KIND: &'static str = "consistency_blend";
}

impl TokenRule for ConsistencyBlend {
    fn prepare(&self, batch: &Batch, signals: &mut Signals, _state: &mut State) -> Result<()> {
        let rewards = batch.outcomes()?;
        let found = self.consistency(&rewards, batch.ids(GROUP_IDS)?, batch.ids(ANSWER_IDS)?)?;
        self.attach(signals, batch.mask(), (&found.global_advantages, &found.entropy, &rewards))
    }
}

/// The clipped ratio on local and on global advantages, each with its weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlendedClip(
    /// Both losses' bounds.
    pub ClippedRatio,
);

impl Block for BlendedClip {
    fn needs(&self) -> Vec<Input> {
        [self.0.needs(), vec![BLEND]].concat()
    }

    fn validate(&self) -> Result<()> {
        self.0.validate()
    }

    fn describe(&self) -> String {
        format!("blend of two losses, {}", self.0.describe())
    }
}

impl Kind for BlendedClip {
    const KIND: &'static str = "blended_clip";
}

impl Surrogate for BlendedClip {
    fn loss(&self, batch: &Batch, signals: &Signals) -> Result<SurrogateLoss> {
        let extra = |name: &'static str| signals.extra.get(name).ok_or(Error::Missing { name });
        let global = Signals { advantages: extra(GLOBAL)?.clone(), ..signals.clone() };
        let SurrogateLoss { terms: near, stats } = Surrogate::loss(&self.0, batch, signals)?;
        let SurrogateLoss { terms: far, .. } = Surrogate::loss(&self.0, batch, &global)?;
        let (Terms::Tokens(near), Terms::Tokens(far)) = (near, far) else {
            return Err(Error::Invalid {
                what: "clipped ratio",
                reason: "its terms are not per token".into(),
            });
        };
        let (u, v) = (extra(LOCAL_WEIGHT)?.to_tensor(&near)?, extra(GLOBAL_WEIGHT)?.to_tensor(&near)?);
        Ok(SurrogateLoss { terms: Terms::Tokens(((near * u)? + (far * v)?)?), stats })
    }

    fn uses_bounds(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{Device, Var};
    use proptest::prelude::*;

    use super::*;
    use crate::batch::{LOG_PROBS, OLD_LOG_PROBS, REWARDS};
    use crate::registry::Algorithm;

    #[test]
    fn a_blend_without_its_weights_is_refused() {
        let only = toml::from_str::<Composition>(
            "aggregation = \"token-mean\"\nadvantage = { kind = \"group_norm\" }\nsurrogate = { kind = \"blended_clip\" }",
        );
        let objective = only.unwrap().build().unwrap();
        let inputs = [LOG_PROBS, OLD_LOG_PROBS, REWARDS, GROUP_IDS, ANSWER_IDS];
        let message = objective.check(&inputs).unwrap_err().to_string();
        assert!(message.contains("consistency_blend"), "{message}");
        Algorithm::from_table("copo", &toml::Table::new()).unwrap().objective.check(&inputs).unwrap();
    }

    #[test]
    fn consistent_groups_teach_against_each_other() {
        let block = ConsistencyBlend::default();
        let rewards = [0.0, 0.0, 1.0, 1.0];
        let found = block.consistency(&rewards, &[4, 4, 2, 2], &[9, 9, 5, 5]).unwrap();
        assert!(found.entropy.iter().all(|h| h.abs() < 1e-7));
        assert!(found.global_advantages[0] < -0.7 && found.global_advantages[2] > 0.7);
        assert!(block.soft_weight(0.0) < 0.01 && block.soft_weight(2.0) > 0.99);
        let one = block.consistency(&rewards, &[1; 4], &[1, 2, 3, 4]).unwrap();
        assert_eq!(one.global_advantages, [0.0; 4], "a single prompt has nothing to be compared with");
        assert!((one.entropy[0] - 2.0).abs() < 1e-6);
        let coef = ConsistencyBlend { reward_coef: true, ..block };
        let discounted = coef.consistency(&rewards, &[1; 4], &[1, 2, 3, 4]).unwrap();
        assert!((discounted.global_rewards[0] - 0.5 / 4.0).abs() < 1e-6, "1/n at maximal entropy");
        let lone = coef.consistency(&[1.0, 0.0], &[1, 2], &[1, 2]).unwrap();
        assert!((lone.global_rewards[0] - 1.0).abs() < 1e-9 && lone.global_advantages[0].is_finite());
    }

    #[test]
    fn an_empty_batch_and_wrong_lengths() {
        let block = ConsistencyBlend::default();
        assert!(block.consistency(&[], &[], &[]).unwrap().entropy.is_empty());
        assert!(block.consistency(&[1.0], &[1], &[]).unwrap_err().to_string().contains("answer_ids"));
        assert!(block.consistency(&[f64::NAN], &[1], &[1]).is_err());
    }

    /// Gradient with the recipe and `mode`, over micro-batches `parts`.
    fn gradient(
        mode: &str,
        lp: &[Vec<f64>],
        rewards: &[f64],
        answers: &[u64],
        parts: &[&[usize]],
    ) -> Vec<f64> {
        let var = Var::new(lp.to_vec(), &Device::Cpu).unwrap();
        let mut mask = Table::from_rows(&vec![vec![1.0; lp[0].len()]; lp.len()]).unwrap();
        mask.values[1] = 0.0;
        let batch = Batch::new(mask)
            .with(LOG_PROBS, var.as_tensor().clone())
            .unwrap()
            .with(OLD_LOG_PROBS, (var.as_tensor().detach() * 1.05).unwrap())
            .unwrap()
            .with(REWARDS, rewards.to_vec())
            .unwrap()
            .with(GROUP_IDS, vec![0, 1, 0, 1, 0, 1])
            .unwrap()
            .with(ANSWER_IDS, answers.to_vec())
            .unwrap();
        let over = format!("[weight.consistency_blend]\nmode = \"{mode}\"").parse().unwrap();
        let objective = Algorithm::from_table("copo", &over).unwrap().objective;
        let ready = objective.prepare(batch, &mut State::default()).unwrap();
        let mut total = vec![0.0; var.elem_count()];
        for rows in parts {
            let (part, signals) = (ready.batch.select(rows).unwrap(), ready.signals.select(rows));
            let parts =
                objective.loss(&part, &signals, &ready.batch.normaliser(), &State::default()).unwrap();
            let grads = parts.loss.backward().unwrap();
            let grad: Vec<f64> =
                grads.get(var.as_tensor()).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            total.iter_mut().zip(grad).for_each(|(a, b)| *a += b);
        }
        total
    }

    proptest! {
        #[test]
        fn splits_add_up_and_equal_groups_learn_globally_only(
            lp in proptest::collection::vec(proptest::collection::vec(-3.0f64..-0.1, 3), 6),
            answers in proptest::collection::vec(0u64..3, 6),
        ) {
            let rewards = [1.0, 0.0, 1.0, 0.0, 1.0, 1.0];
            let whole = gradient("soft-with-zero", &lp, &rewards, &answers, &[&[0, 1, 2, 3, 4, 5]]);
            let split = gradient("soft-with-zero", &lp, &rewards, &answers, &[&[0, 5, 2], &[4, 3, 1]]);
            for (a, b) in whole.iter().zip(&split) {
                prop_assert!((a - b).abs() < 1e-12);
            }
            // Group 0 is all right: no local gradient, exactly; forced to the global loss it has one.
            let rows = |g: &[f64]| -> Vec<f64> {
                [0usize, 2, 4].iter().flat_map(|i| g[i * 3..i * 3 + 3].to_vec()).collect()
            };
            let local = gradient("no-global", &lp, &rewards, &answers, &[&[0, 1, 2, 3, 4, 5]]);
            prop_assert!(rows(&local).iter().all(|g| *g == 0.0));
            let forced = gradient("only-forced", &lp, &rewards, &answers, &[&[0, 1, 2, 3, 4, 5]]);
            let global = gradient("only-global", &lp, &rewards, &answers, &[&[0, 1, 2, 3, 4, 5]]);
            prop_assert_eq!(rows(&forced), rows(&global));
            prop_assert!(rows(&global).iter().any(|g| *g != 0.0));
            prop_assert_eq!(whole[1], 0.0);
        }
    }
}
