//! The benchmark itself, bit for bit.

use std::collections::BTreeMap;
use std::sync::Arc;

use efference_mujoco::{Data, Error as SimError, Model};
use serde::{Deserialize, Serialize};

use super::clock::Clock;
use super::compiled::{Compiled, Standing, version_at_least};
use super::controller::{Arm, Controller};
use super::facts::Fact;
use super::{Error, FixturePose, LiberoObservation, ObjectObservation, Pack, Result};

/// Steps that evaluators idle after restoring an initial state, while objects fall and settle.
pub const IDLE_STEPS: usize = 10;
/// The action of an idle step: stand still, open the gripper.
pub const IDLE_ACTION: [f64; 7] = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0];

/// m/s or rad/s beyond which the simulation counts as unstable: two radians in one physics step are no motion any more.
const MAX_SPEED: f64 = 1000.0;

/// How often physics are computed in a physics step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubstepOrder {
    /// As Python LIBERO does: two forward passes before the one of the step. Before MuJoCo 3.3.6 they move the solver's
    /// starting point, so whole runs agree with Python's. For tests and published evaluations.
    #[default]
    Exact,
    /// One pass. Held objects drift from Python's by up to a centimetre; everything else agrees. For training.
    Fused,
}

/// What pictures cost and show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// As LIBERO draws: shadows, reflections, four samples per pixel, the pack's own meshes.
    #[default]
    Faithful,
    /// No effects, one sample per pixel, and the reduced meshes and textures of `model_fast.xml` if the pack has it.
    Fast,
}

/// How a simulation is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimOptions {
    /// Order of the passes in a physics step.
    pub order: SubstepOrder,
    /// Quality of pictures; physics are the same.
    pub profile: Profile,
    /// Side of the square pictures in pixels, 16 to 2048; LIBERO's data sets have 128 or 256.
    pub image_size: usize,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self { order: SubstepOrder::Exact, profile: Profile::Faithful, image_size: 128 }
    }
}

/// What one control step led to.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// 1 when the goal holds now, else 0.
    pub reward: f64,
    /// Whether all facts of the goal hold at this instant.
    pub success: bool,
    /// `success`, or the simulation had to stop. Stepping on after a success is allowed, as in LIBERO.
    pub done: bool,
    /// Control steps since the reset.
    pub steps: usize,
    /// Why the simulation had to stop (it became unstable), if it had to.
    pub aborted: Option<String>,
}

/// One simulation of a task. `Send`: simulations may move between threads, and give the same bits on each.
///
/// Poses ([`LiberoSim::body_pose`], ...) and predicates are those that the last physics step began with (2 ms before the
/// joint values of [`LiberoSim::qpos`]); the observation and the pictures are older by another physics step, as in LIBERO.
pub struct LiberoSim {
    pub(super) pack: Arc<Pack>,
    pub(super) options: SimOptions,
    pub(super) scene: Arc<Compiled>,
    pub(super) data: Data,
    pub(super) controller: Controller,
    /// The arm at the reset; the same for all resets.
    pub(super) reset_arm: Arm,
    pub(super) clock: Clock,
    pub(super) observation: LiberoObservation,
    /// Positions that the poses in `data` were computed from, [nq].
    pub(super) pose_qpos: Vec<f64>,
    /// Positions that the observation's poses, and so its pictures, were computed from, [nq].
    pub(super) seen_qpos: Vec<f64>,
    /// Alpha of each burner's flame, now and when the observation was taken.
    pub(super) flames: Vec<[f32; 2]>,
    pub(super) steps: usize,
    /// Why no step is possible; `None` while the simulation runs.
    pub(super) stopped: Option<String>,
    /// The simulator's state as of the last completed call: for snapshots, and for going back from an instability.
    pub(super) state: Vec<f64>,
    /// Whether the additional passes of the exact order have an effect.
    extra_passes: bool,
}

impl LiberoSim {
    /// A simulation of the task, reset to entry 0. The first one of a pack and profile compiles the scene (tenths of a
    /// second to seconds); later ones take about a millisecond.
    ///
    /// # Errors
    /// [`Error::Option`], and what [`Pack::open`] did not see: [`Error::Model`] for a scene that does not load,
    /// [`Error::Field`] for a description that does not fit it.
    pub fn new(pack: &Arc<Pack>, options: &SimOptions) -> Result<Self> {
        if !(16..=2048).contains(&options.image_size) {
            let got = options.image_size.to_string();
            return Err(Error::Option { field: "image_size", expected: "between 16 and 2048 pixels", got });
        }
        let scene = pack.compiled(options.profile)?;
        // A layer of its own: fixtures stand elsewhere in each simulation.
        let model = Arc::new(scene.model.try_clone()?);
        let mut data = Data::new(&model)?;
        drop(model);
        place_arm(pack, &scene, &mut data)?;
        let controller = Controller::new(&pack.meta, &scene, &data)?;
        let objects = vec![ObjectObservation::default(); scene.things.iter().filter(|t| t.movable).count()];
        let mut sim = Self {
            pack: Arc::clone(pack),
            options: *options,
            reset_arm: controller.arm().clone(),
            controller,
            clock: Clock::new(&pack.meta),
            observation: LiberoObservation { objects, ..Default::default() },
            pose_qpos: vec![0.0; pack.meta.nq],
            seen_qpos: vec![0.0; pack.meta.nq],
            flames: vec![[0.0; 2]; scene.burners.len()],
            steps: 0,
            stopped: None,
            state: data.state()?,
            extra_passes: options.order == SubstepOrder::Exact && !version_at_least([3, 3, 6]),
            scene,
            data,
        };
        sim.reset(0)?;
        Ok(sim)
    }

    /// How it was set up.
    pub fn options(&self) -> &SimOptions {
        &self.options
    }

    /// The task.
    pub fn pack(&self) -> &Arc<Pack> {
        &self.pack
    }

    /// This simulation's model.
    pub fn model(&self) -> &Arc<Model> {
        self.data.model()
    }

    /// This simulation's own model, for changing looks, lights and cameras: the next picture shows it. Changes stay over
    /// resets, except those of fixtures' places and sites' colours.
    ///
    /// # Errors
    /// [`Error::Simulator`] when memory runs out.
    pub fn model_mut(&mut self) -> Result<&mut Model> {
        Ok(self.data.model_mut()?)
    }

    /// What LIBERO's `reset` does: fixtures at entry `k` of the pack's table (modulo its length), the arm at its default
    /// angles, everything else as in the scene. Then usually [`LiberoSim::set_init_state`].
    ///
    /// # Errors
    /// [`Error::Simulator`] if MuJoCo refuses.
    pub fn reset(&mut self, k: usize) -> Result<()> {
        let scene = Arc::clone(&self.scene);
        let entries = scene.standings.len();
        let standings = if entries == 0 { &[][..] } else { &scene.standings[k % entries] };
        self.stand(standings)?;
        let model = self.data.model_mut()?;
        for (site, rgba) in self.pack.meta.site_rgba_after_reset.iter().enumerate() {
            model.set_site_rgba(site, *rgba);
        }
        for (flame, burner) in self.flames.iter_mut().zip(&scene.burners) {
            *flame = [self.pack.meta.site_rgba_after_reset[burner.site][3]; 2];
        }
        self.data.reset()?;
        place_arm(&self.pack, &scene, &mut self.data)?;
        self.controller.reset(&self.reset_arm);
        self.clock = Clock::new(&self.pack.meta);
        self.steps = 0;
        self.stopped = None;
        self.pose_qpos.copy_from_slice(self.data.qpos());
        if self.clock.forced() {
            self.sample();
        }
        self.data.state_get(&mut self.state)?;
        Ok(())
    }

    /// What LIBERO's `set_init_state` does: restores time, qpos and qvel, [1 + nq + nv]. The gripper's command, the
    /// controller's goal and the step counter stay.
    ///
    /// # Errors
    /// [`Error::State`] for another length or numbers that are not finite.
    pub fn set_init_state(&mut self, state: &[f64]) -> Result<()> {
        let (nq, nv) = (self.pack.meta.nq, self.pack.meta.nv);
        if state.len() != 1 + nq + nv {
            let problem = format!("it has {} numbers, expected 1 + nq + nv = {}", state.len(), 1 + nq + nv);
            return Err(Error::State { problem });
        }
        if let Some(place) = state.iter().position(|number| !number.is_finite()) {
            return Err(Error::State { problem: format!("number {place} is {}", state[place]) });
        }
        self.data.set_time_secs(state[0]);
        self.data.qpos_mut().copy_from_slice(&state[1..=nq]);
        self.data.qvel_mut().copy_from_slice(&state[1 + nq..]);
        self.data.forward()?;
        self.pose_qpos.copy_from_slice(&state[1..=nq]);
        self.stopped = None;
        self.light_burners();
        if self.clock.forced() {
            self.sample();
        }
        self.data.state_get(&mut self.state)?;
        Ok(())
    }

    /// One control step of 25 physics steps. `action`: translation x y z (-1..=1 are 5 cm), rotation as axis-angle (-1..=1
    /// are 0.5 rad), both in world axes and clipped; gripper: its sign opens (negative) or closes.
    ///
    /// # Errors
    /// [`Error::NotRunning`] after the horizon or an instability, [`Error::Action`] for numbers that are not finite. An
    /// unstable simulation is not an error: [`Step::aborted`] says why, and the state is that before the step.
    pub fn step(&mut self, action: &[f64; 7]) -> Result<Step> {
        if let Some((index, value)) = action.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(Error::Action { index, value: *value });
        }
        if let Some(why) = &self.stopped {
            return Err(Error::NotRunning { why: why.clone() });
        }
        let horizon = self.pack.meta.horizon;
        if self.steps >= horizon {
            return Err(Error::NotRunning {
                why: format!("the episode ended after {horizon} control steps"),
            });
        }
        let aborted = match self.substeps(action) {
            Ok(()) => {
                let speed = self.data.qvel().iter().fold(0.0, |top, v| f64::max(top, v.abs()));
                (speed > MAX_SPEED).then(|| format!("something moves at {speed:.0} m/s or rad/s"))
            }
            Err(error @ SimError::Unstable { .. }) => Some(error.to_string()),
            Err(error) => return Err(error.into()),
        };
        self.steps += 1;
        if let Some(why) = &aborted {
            self.stopped = Some(format!("the simulation became unstable: {why}"));
            self.data.state_set(&self.state)?;
            self.data.forward_position()?;
            self.pose_qpos.copy_from_slice(self.data.qpos());
        }
        let success = aborted.is_none() && self.success();
        self.light_burners();
        self.data.state_get(&mut self.state)?;
        Ok(Step {
            reward: f64::from(u8::from(success)),
            success,
            done: success || aborted.is_some(),
            steps: self.steps,
            aborted,
        })
    }

    fn substeps(&mut self, action: &[f64; 7]) -> efference_mujoco::Result<()> {
        for k in 0..self.pack.meta.substeps {
            self.pose_qpos.copy_from_slice(self.data.qpos());
            self.data.step1()?;
            if self.extra_passes {
                // With the controls of the substep before, as Python does. Positions and velocities stay, so nothing
                // but the solver's part of these passes can differ from what is there.
                self.data.forward_acceleration()?;
                if !self.controller.fresh {
                    self.data.forward_acceleration()?;
                }
            }
            self.controller.refresh(&self.scene, &self.data)?;
            if k == 0 {
                self.controller.set_goal(action);
            }
            self.controller.act(&self.scene, &mut self.data, action[6]);
            self.data.step2()?;
            if self.clock.tick() {
                self.sample();
            }
        }
        Ok(())
    }

    /// Takes the observation: poses as computed last, joint values as they are.
    fn sample(&mut self) {
        let (scene, data, seen) = (&self.scene, &self.data, &mut self.observation);
        let (qpos, qvel) = (data.qpos(), data.qvel());
        seen.joint_pos = scene.arm_qpos.map(|adr| qpos[adr]);
        seen.joint_vel = scene.arm_dofs.map(|dof| qvel[dof]);
        seen.gripper_qpos = scene.finger_qpos.map(|adr| qpos[adr]);
        seen.gripper_qvel = scene.finger_dofs.map(|dof| qvel[dof]);
        seen.eef_pos = data.site_pos(scene.eef_site);
        seen.eef_quat = xyzw(data.body_quat(scene.hand));
        let movable = scene.things.iter().filter(|thing| thing.movable);
        for (object, thing) in seen.objects.iter_mut().zip(movable) {
            *object =
                ObjectObservation { pos: data.body_pos(thing.body), quat: xyzw(data.body_quat(thing.body)) };
        }
        self.seen_qpos.copy_from_slice(&self.pose_qpos);
        for flame in &mut self.flames {
            flame[1] = flame[0];
        }
    }

    /// Shows the flames of burners whose knob is on and hides the others.
    fn light_burners(&mut self) {
        for (flame, burner) in self.flames.iter_mut().zip(&self.scene.burners) {
            let alpha = flame[0];
            if (alpha <= 0.0) == burner.on.holds(&self.scene, &self.data) {
                flame[0] = 1.0 - alpha;
            }
        }
    }

    /// Puts fixtures elsewhere than at an entry of the table: poses by the fixtures' names, in the frames of their bodies'
    /// parents. Takes effect with the next [`LiberoSim::set_init_state`] or step; the next reset undoes it.
    ///
    /// # Errors
    /// [`Error::Simulator`] for a body that the scene does not have.
    pub fn set_fixture_poses(&mut self, poses: &BTreeMap<String, FixturePose>) -> Result<()> {
        let model = self.data.model();
        let at = |pose: &FixturePose| {
            Ok(Standing { body: model.body_id(&pose.body)?, pos: pose.pos, quat: pose.quat })
        };
        let standings = poses.values().map(at).collect::<Result<Vec<_>>>()?;
        self.stand(&standings)
    }

    /// Puts fixtures somewhere.
    pub(super) fn stand(&mut self, standings: &[Standing]) -> Result<()> {
        let model = self.data.model_mut()?;
        for at in standings {
            model.set_body_pos(at.body, at.pos);
            model.set_body_quat(at.body, at.quat);
        }
        Ok(())
    }

    /// The observation, as last sampled.
    pub fn observation(&self) -> &LiberoObservation {
        &self.observation
    }

    /// Control steps since the reset.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Whether all facts of the goal hold now.
    pub fn success(&self) -> bool {
        self.scene.goal.iter().all(|fact| fact.holds(&self.scene, &self.data))
    }

    /// Whether a fact, `[predicate, object]` or `[predicate, object, place]`, holds now.
    ///
    /// # Errors
    /// [`Error::Predicate`] for names that the task does not have and predicates that are not defined for them.
    pub fn predicate(&self, fact: &[String]) -> Result<bool> {
        Ok(Fact::resolve(&self.scene, fact)?.holds(&self.scene, &self.data))
    }

    /// How far the goal is from holding: the sum over its facts of metres between the centres, or radians from the
    /// threshold; 0 when done. Hand-made progress, for reports.
    pub fn remaining(&self) -> f64 {
        self.scene.goal.iter().map(|fact| fact.distance(&self.scene, &self.data)).sum()
    }
}

pub(super) fn xyzw([w, x, y, z]: [f64; 4]) -> [f64; 4] {
    [x, y, z, w]
}

/// The arm's pose at a reset, in an otherwise initial state.
fn place_arm(pack: &Pack, scene: &Compiled, data: &mut Data) -> Result<()> {
    let qpos = data.qpos_mut();
    for (adr, angle) in scene.arm_qpos.iter().zip(pack.meta.robot.init_qpos) {
        qpos[*adr] = angle;
    }
    data.forward()?;
    Ok(())
}
