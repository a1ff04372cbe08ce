//! The compiled scenes and the indices of what the tasks talk about.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use efference_mujoco::{Kind, Model};

use super::arms::AnyArm;
use super::{ArmKind, FlowTask};
use crate::Result;
use crate::tabletop::Quality;

/// Which variant of the scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Variant {
    pub task: FlowTask,
    pub arm: ArmKind,
    pub quality: Quality,
}

/// Names resolved once.
pub(crate) struct Scene {
    pub model: Arc<Model>,
    pub variant: Variant,
    pub arm: AnyArm,
    /// The body that is moved.
    pub object: usize,
    /// Its joint: free, or the drawer's slide.
    pub joint: usize,
    /// Its geoms, those that are drawn.
    pub object_geoms: Vec<usize>,
    /// Mocap index of the body that the task moves it to, or of the cabinet.
    pub target: usize,
    /// Mocap indices and geoms of the bystanders: box, can, ball.
    pub bystanders: [(usize, usize); 3],
    /// Left pad, right pad, palm: what collides of the arm.
    pub robot: [usize; 3],
    pub camera: usize,
    pub table_top: usize,
    pub lights: [usize; 2],
    /// Geoms by name; replicated ones have numbers at the end.
    geoms: Vec<(String, usize)>,
}

const MAIN: &str = include_str!("../../../../sims/flow/flow.xml");
const ARM7: &str = include_str!("../../../../sims/tabletop/arm.xml");
const ARM6: &str = include_str!("../../../../sims/flow/arm6.xml");
const FAST: &[u8] = include_bytes!("../../../../sims/tabletop/quality_fast.xml");
const PRETTY: &[u8] = include_bytes!("../../../../sims/tabletop/quality_pretty.xml");

/// The tabletop's wrist bends one way only and stops after less than a turn, as its tasks need no more; grasps from the
/// side and half turns do.
const WIDER: [(&str, &str); 3] = [
    (r#"name="joint5" axis="0 0 1" range="-2.6 2.6""#, r#"name="joint5" axis="0 0 1" range="-9 9""#),
    (r#"name="joint6" axis="0 1 0" range="-0.4 3.0""#, r#"name="joint6" axis="0 1 0" range="-2.2 2.6""#),
    (r#"name="joint7" axis="0 0 1" range="-3.0 3.0""#, r#"name="joint7" axis="0 0 1" range="-9 9""#),
];

const fn task_xml(task: FlowTask) -> &'static [u8] {
    match task {
        FlowTask::Pour => include_bytes!("../../../../sims/flow/pour.xml"),
        FlowTask::Insert => include_bytes!("../../../../sims/flow/insert.xml"),
        FlowTask::Hang => include_bytes!("../../../../sims/flow/hang.xml"),
        FlowTask::Drawer => include_bytes!("../../../../sims/flow/drawer.xml"),
        FlowTask::Push => include_bytes!("../../../../sims/flow/push.xml"),
    }
}

const fn target_name(task: FlowTask) -> &'static str {
    match task {
        FlowTask::Pour => "bowl",
        FlowTask::Insert => "holder",
        FlowTask::Hang => "stand",
        FlowTask::Drawer => "cabinet",
        FlowTask::Push => "mark",
    }
}

/// Stiffness, damping and largest torque of the servos, from the shoulder on.
const fn servos(arm: ArmKind) -> &'static [[u32; 3]] {
    match arm {
        ArmKind::Arm7 => &[
            [4000, 180, 100],
            [4000, 180, 100],
            [2000, 90, 55],
            [2000, 90, 55],
            [800, 36, 28],
            [800, 36, 28],
            [500, 22, 18],
        ],
        ArmKind::Arm6 => &[
            [4500, 200, 120],
            [4500, 200, 120],
            [2500, 110, 70],
            [900, 40, 30],
            [900, 40, 30],
            [500, 22, 18],
        ],
    }
}

impl Scene {
    /// The scene of this variant, compiled at first use and shared from then on.
    pub fn get(variant: Variant) -> Result<Arc<Self>> {
        static SCENES: Mutex<BTreeMap<Variant, Arc<Scene>>> = Mutex::new(BTreeMap::new());
        let mut scenes = SCENES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scene) = scenes.get(&variant) {
            return Ok(Arc::clone(scene));
        }
        let scene = Arc::new(Self::compile(variant)?);
        scenes.insert(variant, Arc::clone(&scene));
        Ok(scene)
    }

    fn compile(variant: Variant) -> Result<Self> {
        let arm_xml = match variant.arm {
            ArmKind::Arm7 => WIDER.iter().fold(ARM7.to_owned(), |xml, (from, to)| xml.replace(from, to)),
            ArmKind::Arm6 => ARM6.to_owned(),
        };
        let mut actuators = String::new();
        for (i, [kp, kv, force]) in (1..).zip(servos(variant.arm)) {
            actuators.push_str(&format!(
                r#"<position name="joint{i}" joint="joint{i}" kp="{kp}" kv="{kv}" forcerange="-{force} {force}"/>"#
            ));
        }
        let xml = MAIN.replace("<!-- actuators -->", &actuators);
        let quality = if variant.quality == Quality::Pretty { PRETTY } else { FAST };
        let files: [(&str, &[u8]); 3] = [
            ("arm.xml", arm_xml.as_bytes()),
            ("task.xml", task_xml(variant.task)),
            ("quality_fast.xml", quality),
        ];
        let model = Arc::new(Model::from_xml_string_with_assets(&xml, &files)?);
        let object = model.body_id("object")?;
        let geoms: Vec<_> = (0..model.count(Kind::Geom))
            .filter_map(|geom| Some((model.name(Kind::Geom, geom)?.to_owned(), geom)))
            .collect();
        let object_geoms = (0..model.count(Kind::Geom))
            .filter(|geom| model.geom_body(*geom) == object && model.geom_group(*geom) < 3)
            .collect();
        let mocap = |name: &str| -> Result<usize> { Ok(model.body_mocap(model.body_id(name)?).unwrap_or(0)) };
        let bystander = |name: &str| -> Result<(usize, usize)> { Ok((mocap(name)?, model.geom_id(name)?)) };
        Ok(Self {
            variant,
            arm: AnyArm::find(&model, variant.arm)?,
            object,
            joint: model.joint_id("object")?,
            object_geoms,
            target: mocap(target_name(variant.task))?,
            bystanders: [
                bystander("bystander_box")?,
                bystander("bystander_can")?,
                bystander("bystander_ball")?,
            ],
            robot: [model.geom_id("pad_left")?, model.geom_id("pad_right")?, model.geom_id("palm")?],
            camera: model.camera_id(super::SCENE_CAMERA)?,
            table_top: model.geom_id("table_top")?,
            lights: [model.light_id("key")?, model.light_id("fill")?],
            geoms,
            model,
        })
    }

    /// The geoms of this name, or of this name and a number, in order.
    pub fn geoms<'a>(&'a self, name: &'a str) -> impl Iterator<Item = usize> + 'a {
        self.geoms.iter().filter_map(move |(there, geom)| {
            let rest = there.strip_prefix(name)?;
            rest.bytes().all(|b| b.is_ascii_digit()).then_some(*geom)
        })
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_arm_has_the_joints_that_are_widened() {
        for (from, _) in super::WIDER {
            assert_eq!(super::ARM7.matches(from).count(), 1, "{from}");
        }
    }
}
