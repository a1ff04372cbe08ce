//! Perturbations of a task in the style of LIBERO-Plus: what a policy should not care about.
//!
//! A [`Perturbation`] changes the loaded scene (camera, light, background), the saved initial state (robot, layout), the
//! pictures (noise) and the instruction; the task, its goal and its physics stay. [`Perturbation::from_name`] reads the
//! names of LIBERO-Plus; what their numbers stand for is LIBERO-Plus' own for the camera and our choice, drawn from
//! the number, for the others, because its textures, lights and layouts are files that we do not have.
//!
//! Everything is a function of its arguments: the same name, episode and step give the same bytes.

mod background;
mod camera;
mod language;
mod layout;
mod light;
mod name;
mod noise;
mod robot;

use efference_mujoco::Model;

pub use background::Background;
pub use camera::View;
pub use language::paraphrase;
pub use layout::Layout;
pub use light::Light;
pub use name::{PlusName, UnreadableName};
pub use noise::{Noise, NoiseKind};
pub use robot::RobotStart;

use super::Meta;

/// All that is changed. The default changes nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Perturbation {
    /// Where `agentview` looks from.
    pub view: View,
    /// Other light.
    pub light: Option<Light>,
    /// Other colours of table, floor and walls.
    pub background: Option<Background>,
    /// Objects at other places.
    pub layout: Option<Layout>,
    /// Another pose of the arm at the start.
    pub robot: Option<RobotStart>,
    /// Damage to the pictures of `agentview`.
    pub noise: Option<Noise>,
    /// Number of the paraphrase of the instruction.
    pub language: Option<usize>,
}

/// What a perturbation cannot do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The scene lacks something.
    #[error("the scene of {task} has no {what}")]
    Scene {
        /// The task.
        task: String,
        /// What was looked for.
        what: String,
    },
    /// The initial state is of another task.
    #[error("an initial state of {task} has {expected} numbers (time, qpos, qvel), got {got}")]
    State {
        /// The task.
        task: String,
        /// 1 + nq + nv.
        expected: usize,
        /// What was given.
        got: usize,
    },
    /// More objects than the scene has.
    #[error("`{name}` adds objects to the scene, which this version cannot")]
    Distractors {
        /// The name.
        name: String,
    },
    /// No such name.
    #[error(transparent)]
    Name(#[from] UnreadableName),
}

impl Perturbation {
    /// The perturbation that a name of LIBERO-Plus asks for, and the task that it is applied to.
    ///
    /// # Errors
    /// [`Error::Name`], and [`Error::Distractors`] for names with `_add_`.
    pub fn from_name(name: &str) -> Result<(String, Self), Error> {
        let parts: PlusName = name.parse()?;
        if parts.add.is_some() {
            return Err(Error::Distractors { name: name.to_owned() });
        }
        let layout = |level| Layout { level, sample: parts.sample.unwrap_or(0), moved: parts.moved };
        let perturbation = Self {
            view: View {
                horizontal_deg: f64::from(parts.horizontal),
                vertical_deg: f64::from(parts.vertical),
                distance: parts.scale,
                pan_deg: f64::from(parts.end_rot),
                tilt_deg: f64::from(parts.end_vertical),
            },
            light: parts.light.map(Light::variant),
            background: parts.table.map(Background::variant),
            layout: parts.level.map(layout),
            robot: (parts.init_variant > 0).then_some(RobotStart { variant: parts.init_variant }),
            noise: Noise::from_number(parts.noise),
            language: parts.language.map(|k| k as usize),
        };
        Ok((parts.base, perturbation))
    }

    /// Changes the scene: camera, light, background. Call it once, on the environment's own copy of the model.
    ///
    /// # Errors
    /// [`Error::Scene`] if the scene lacks the camera.
    pub fn apply_to_model(&self, model: &mut Model, meta: &Meta) -> Result<(), Error> {
        self.view.apply(model, meta)?;
        if let Some(light) = &self.light {
            light.apply(model);
        }
        if let Some(background) = &self.background {
            background.apply(model, meta);
        }
        Ok(())
    }

    /// Changes a saved initial state (time, qpos, qvel): arm and layout.
    ///
    /// # Errors
    /// [`Error::State`] if its length is another task's.
    pub fn apply_to_state(&self, state: &mut [f64], meta: &Meta) -> Result<(), Error> {
        let expected = 1 + meta.nq + meta.nv;
        if state.len() != expected {
            return Err(Error::State { task: meta.name.clone(), expected, got: state.len() });
        }
        let qpos = &mut state[1..=meta.nq];
        if let Some(robot) = &self.robot {
            robot.apply(qpos, meta);
        }
        if let Some(layout) = &self.layout {
            layout.apply(qpos, meta);
        }
        Ok(())
    }

    /// Damages a picture of `agentview`; those of other cameras are left alone. `rgb` is [height, width, 3].
    ///
    /// # Panics
    /// Panics if `rgb` has another length.
    pub fn apply_to_picture(&self, camera: &str, rgb: &mut [u8], width: usize, height: usize, seed: u64) {
        if let Some(noise) = self.noise.filter(|_| camera == camera::NAME) {
            noise.apply(rgb, width, height, seed);
        }
    }

    /// The instruction for policies.
    pub fn instruction(&self, meta: &Meta) -> String {
        self.language.map_or_else(|| meta.language.clone(), |k| paraphrase(&meta.language, k))
    }
}

/// A generator for one use: what it draws does not depend on what else is drawn.
fn draws(purpose: u64, numbers: [u64; 3]) -> rand_chacha::ChaCha8Rng {
    let mut seed = [0; 32];
    for (bytes, number) in seed.chunks_exact_mut(8).zip([purpose, numbers[0], numbers[1], numbers[2]]) {
        bytes.copy_from_slice(&number.to_le_bytes());
    }
    rand::SeedableRng::from_seed(seed)
}
