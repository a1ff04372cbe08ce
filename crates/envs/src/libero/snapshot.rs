//! A simulation, put away.

use serde::{Deserialize, Serialize};

use super::compiled::Standing;
use super::{Error, LiberoSim, Result};

/// Everything that a simulation's future, its present observation and its pictures depend on: a few hundred numbers.
/// Plain numbers, so that it can be stored and sent; [`LiberoSim::restore`] knows their order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiberoSnapshot {
    numbers: Vec<f64>,
}

impl LiberoSnapshot {
    /// The numbers, for example to store them with an episode.
    pub fn numbers(&self) -> &[f64] {
        &self.numbers
    }

    /// A snapshot from stored numbers; `restore` checks that they fit the task.
    pub fn from_numbers(numbers: Vec<f64>) -> Self {
        Self { numbers }
    }
}

/// Walks over all numbers of a snapshot in their order: writing collects them, reading puts them back.
trait Walk {
    fn slice(&mut self, values: &mut [f64]);

    fn number(&mut self, value: &mut f64) {
        self.slice(std::slice::from_mut(value));
    }

    fn flag(&mut self, value: &mut bool) {
        let mut number = f64::from(u8::from(*value));
        self.number(&mut number);
        *value = number != 0.0;
    }
}

struct Write(Vec<f64>);

impl Walk for Write {
    fn slice(&mut self, values: &mut [f64]) {
        self.0.extend_from_slice(values);
    }
}

struct Read<'a>(&'a [f64]);

impl Walk for Read<'_> {
    fn slice(&mut self, values: &mut [f64]) {
        let (now, later) = self.0.split_at(values.len());
        values.copy_from_slice(now);
        self.0 = later;
    }
}

/// The parts of a simulation that a snapshot holds.
struct Parts {
    state: Vec<f64>,
    pose_qpos: Vec<f64>,
    seen_qpos: Vec<f64>,
    /// joint_pos, joint_vel, eef_pos, eef_quat, gripper_qpos, gripper_qvel, then pos and quat of each object.
    observation: Vec<f64>,
    goal: [f64; 12],
    gripper: [f64; 2],
    fresh: bool,
    clock: f64,
    sampled: bool,
    steps: f64,
    stopped: bool,
    flames: Vec<f64>,
    /// pos and quat of each fixture.
    standings: Vec<f64>,
}

impl Parts {
    fn walk(&mut self, walk: &mut impl Walk) {
        walk.slice(&mut self.state);
        walk.slice(&mut self.pose_qpos);
        walk.slice(&mut self.seen_qpos);
        walk.slice(&mut self.observation);
        walk.slice(&mut self.goal);
        walk.slice(&mut self.gripper);
        walk.flag(&mut self.fresh);
        walk.number(&mut self.clock);
        walk.flag(&mut self.sampled);
        walk.number(&mut self.steps);
        walk.flag(&mut self.stopped);
        walk.slice(&mut self.flames);
        walk.slice(&mut self.standings);
    }
}

impl LiberoSim {
    /// The simulation as it is now.
    pub fn snapshot(&self) -> LiberoSnapshot {
        let mut walk = Write(Vec::new());
        self.parts().walk(&mut walk);
        LiberoSnapshot { numbers: walk.0 }
    }

    /// Puts a snapshot of this task back, from this simulation or another one. What follows is bit for bit what followed
    /// when it was taken; observation, predicates and pictures are those of then.
    ///
    /// # Errors
    /// [`Error::Snapshot`] when it is of another task.
    pub fn restore(&mut self, snapshot: &LiberoSnapshot) -> Result<()> {
        // Sizes come from this task, so that nothing in the snapshot can lead anywhere.
        let mut parts = self.parts();
        let mut sizes = Write(Vec::with_capacity(snapshot.numbers.len()));
        parts.walk(&mut sizes);
        if sizes.0.len() != snapshot.numbers.len() {
            return Err(Error::Snapshot { expected: sizes.0.len(), got: snapshot.numbers.len() });
        }
        parts.walk(&mut Read(&snapshot.numbers));
        self.put(&parts)
    }

    fn parts(&self) -> Parts {
        let seen = &self.observation;
        let mut observation: Vec<f64> = [
            &seen.joint_pos[..],
            &seen.joint_vel,
            &seen.eef_pos,
            &seen.eef_quat,
            &seen.gripper_qpos,
            &seen.gripper_qvel,
        ]
        .concat();
        for object in &seen.objects {
            observation.extend(object.pos);
            observation.extend(object.quat);
        }
        let mut goal = [0.0; 12];
        goal[..3].copy_from_slice(self.controller.goal_pos.as_slice());
        goal[3..].copy_from_slice(self.controller.goal_mat.as_slice());
        let model = self.data.model();
        let mut standings = Vec::new();
        for at in self.scene.standings.first().into_iter().flatten() {
            standings.extend(model.body_pos(at.body));
            standings.extend(model.body_quat(at.body));
        }
        Parts {
            state: self.state.clone(),
            pose_qpos: self.pose_qpos.clone(),
            seen_qpos: self.seen_qpos.clone(),
            observation,
            goal,
            gripper: self.controller.gripper,
            fresh: self.controller.fresh,
            clock: self.clock.since,
            sampled: self.clock.sampled,
            steps: self.steps as f64,
            stopped: self.stopped.is_some(),
            flames: self.flames.iter().flatten().map(|alpha| f64::from(*alpha)).collect(),
            standings,
        }
    }

    fn put(&mut self, parts: &Parts) -> Result<()> {
        let bodies: Vec<usize> = self.scene.standings.iter().take(1).flatten().map(|at| at.body).collect();
        let standings: Vec<Standing> = bodies
            .into_iter()
            .zip(parts.standings.as_chunks::<7>().0)
            .map(|(body, &[x, y, z, qw, qx, qy, qz])| Standing {
                body,
                pos: [x, y, z],
                quat: [qw, qx, qy, qz],
            })
            .collect();
        self.stand(&standings)?;
        // First the poses and contacts, which may be older than the state; then the state itself.
        self.data.state_set(&parts.state)?;
        self.data.qpos_mut().copy_from_slice(&parts.pose_qpos);
        self.data.forward_position()?;
        self.data.state_set(&parts.state)?;
        self.pose_qpos.copy_from_slice(&parts.pose_qpos);
        self.seen_qpos.copy_from_slice(&parts.seen_qpos);

        let seen = &mut self.observation;
        let mut rest = Read(&parts.observation);
        let arm: [&mut [f64]; 6] = [
            &mut seen.joint_pos,
            &mut seen.joint_vel,
            &mut seen.eef_pos,
            &mut seen.eef_quat,
            &mut seen.gripper_qpos,
            &mut seen.gripper_qvel,
        ];
        arm.into_iter().for_each(|values| rest.slice(values));
        for object in &mut seen.objects {
            rest.slice(&mut object.pos);
            rest.slice(&mut object.quat);
        }
        self.controller.goal_pos.copy_from_slice(&parts.goal[..3]);
        self.controller.goal_mat.copy_from_slice(&parts.goal[3..]);
        self.controller.gripper = parts.gripper;
        self.controller.fresh = parts.fresh;
        if parts.fresh {
            // Only a reset leaves it so.
            self.controller.set_arm(&self.reset_arm);
        }
        (self.clock.since, self.clock.sampled) = (parts.clock, parts.sampled);
        self.steps = parts.steps as usize;
        self.stopped = parts.stopped.then(|| "the simulation became unstable before the snapshot".to_owned());
        for (flame, alphas) in self.flames.iter_mut().zip(parts.flames.as_chunks::<2>().0) {
            *flame = alphas.map(|alpha| alpha as f32);
        }
        self.state.copy_from_slice(&parts.state);
        Ok(())
    }
}
