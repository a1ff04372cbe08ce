//! The workbench with a flow as its reward: for any trainer that takes an environment.

use std::sync::Arc;

use efference_data::flow::FlowQuery;
use efference_envs::flow::{FlowEnv, POINTS};
use efference_envs::{Action, Env, EnvSpec, Error as EnvError, Observation, Outcome, SceneState, Snapshot};
use efference_geometry::{Flow3d, Frame, Point3};
use serde::{Deserialize, Serialize};

use super::{FlowTracker, Predictor, Result};
use crate::seeds::{Purpose, seed_for};

/// Which form of the reward is paid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardForm {
    /// Every step [`super::FlowReward::dense`], within 0 and 1.
    Dense,
    /// Every step [`super::FlowReward::shaped`], and 1 more when the task is done.
    #[default]
    Shaped,
}

/// Where the reference flow of an episode comes from.
#[derive(Clone)]
pub enum Reference {
    /// A motion of the environment's own that does the task.
    Oracle,
    /// A predictor that sees the first picture.
    Predicted(Arc<dyn Predictor>),
}

/// A [`FlowEnv`] whose [`Outcome::reward`] says how far along a reference flow its object is. Success stays the
/// environment's.
pub struct FlowRewardEnv {
    env: FlowEnv,
    reference: Reference,
    form: RewardForm,
    /// Of the running episode, with the points in the object's frame.
    tracking: Option<(FlowTracker, Vec<Point3<f64>>)>,
}

impl FlowRewardEnv {
    /// Around an environment.
    #[must_use]
    pub fn new(env: FlowEnv, reference: Reference, form: RewardForm) -> Self {
        Self { env, reference, form, tracking: None }
    }

    /// The environment inside.
    #[must_use]
    pub fn inner(&self) -> &FlowEnv {
        &self.env
    }

    /// A flow for the episode that was just started.
    fn refer(&mut self, seed: u64) -> Result<(FlowTracker, Vec<Point3<f64>>)> {
        let seed = seed_for(seed, Purpose::Flow, &[u64::MAX - 1]);
        let view = self.env.view()?;
        let points = self.env.seen_points(&view, POINTS, seed)?;
        let object = self.env.object_pose();
        let flow = match &self.reference {
            Reference::Oracle => {
                let poses = self.env.motion(seed)?.poses;
                Flow3d::rigid(Frame::World, &points, &poses, vec![1.0; points.len() * poses.len()])?
            }
            Reference::Predicted(predictor) => {
                let query = FlowQuery {
                    instruction: self.env.instruction().to_owned(),
                    camera: view.camera,
                    image: view.image,
                    depth_m: view.depth_m,
                    points: points.iter().map(|p| object * p).collect(),
                };
                let flow = predictor.predict(&query, 1, seed)?.pop();
                flow.ok_or_else(|| super::Error::Answer { why: "no flow".into() })?
            }
        };
        Ok((FlowTracker::new(flow)?, points))
    }

    /// The reward of the present state; the shaped form counts from the last call.
    fn reward(&mut self) -> Result<Option<super::FlowReward>> {
        let Some((tracker, points)) = &mut self.tracking else { return Ok(None) };
        let object = self.env.object_pose();
        let now: Vec<Point3<f64>> = points.iter().map(|p| object * p).collect();
        tracker.step(&now, &Point3::from(self.env.grip_pose().translation.vector)).map(Some)
    }
}

/// An error of the planner as one of the environment.
fn outside(error: super::Error) -> EnvError {
    match error {
        super::Error::Env(error) => error,
        other => EnvError::NotRunning { why: format!("there is no reference flow: {other}") },
    }
}

impl Env for FlowRewardEnv {
    fn spec(&self) -> &EnvSpec {
        self.env.spec()
    }

    fn instruction(&self) -> &str {
        self.env.instruction()
    }

    fn reset(&mut self, seed: u64) -> efference_envs::Result<Observation> {
        self.tracking = None;
        let observation = self.env.reset(seed)?;
        self.tracking = Some(self.refer(seed).map_err(outside)?);
        self.reward().map_err(outside)?;
        Ok(observation)
    }

    fn step(&mut self, action: &Action) -> efference_envs::Result<Outcome> {
        let mut outcome = self.env.step(action)?;
        if let Some(reward) = self.reward().map_err(outside)? {
            outcome.reward = match self.form {
                RewardForm::Dense => reward.dense as f32,
                RewardForm::Shaped => reward.shaped as f32 + f32::from(u8::from(outcome.success)),
            };
        }
        Ok(outcome)
    }

    fn render_into(&mut self, camera: &str, out: &mut [u8]) -> efference_envs::Result<()> {
        self.env.render_into(camera, out)
    }

    fn snapshot(&self) -> Snapshot {
        self.env.snapshot()
    }

    /// Within the episode that is running: the reference flow stays.
    fn restore(&mut self, snapshot: &Snapshot) -> efference_envs::Result<()> {
        self.env.restore(snapshot)?;
        // The potential is a function of the state; what was paid before the snapshot is not paid again.
        self.reward().map_err(outside)?;
        Ok(())
    }

    fn scene_state(&self) -> SceneState {
        self.env.scene_state()
    }

    fn remaining(&self) -> f64 {
        self.env.remaining()
    }
}
