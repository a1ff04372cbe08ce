//! The compiled scene and the indices of what the tasks talk about.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use efference_mujoco::Model;

use super::Quality;
use super::arm;
use super::layout::Thing;
use crate::Result;
use crate::arm::Arm;

/// Which variant of the scene.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Variant {
    pub quality: Quality,
    pub distractors: bool,
}

/// How a thing is put somewhere.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Handle {
    /// Index of its free joint.
    Free(usize),
    /// Index among the mocap bodies.
    Mocap(usize),
}

/// Names resolved once.
pub(crate) struct Scene {
    pub model: Arc<Model>,
    pub variant: Variant,
    /// Body of each [`Thing`].
    pub bodies: [usize; Thing::COUNT],
    pub handles: [Handle; Thing::COUNT],
    /// Free joints of the distractors; empty without them.
    pub distractors: Vec<usize>,
    pub distractor_geoms: Vec<usize>,
    pub grip: usize,
    pub handle_site: usize,
    pub drawer: usize,
    pub button: usize,
    pub pads: [usize; 2],
    pub robot_geoms: [usize; 3],
    pub red: usize,
    pub blue: usize,
    pub green: usize,
    pub handle_geom: usize,
    pub cap_geom: usize,
    pub cap_body: usize,
    pub arm: Arm<7>,
    pub lights: [usize; 2],
}

const MAIN: &str = include_str!("../../../../sims/tabletop/tabletop.xml");
const FILES: [(&str, &[u8]); 4] = [
    ("arm.xml", include_bytes!("../../../../sims/tabletop/arm.xml")),
    ("distractors.xml", include_bytes!("../../../../sims/tabletop/distractors.xml")),
    ("quality_fast.xml", include_bytes!("../../../../sims/tabletop/quality_fast.xml")),
    ("quality_pretty.xml", include_bytes!("../../../../sims/tabletop/quality_pretty.xml")),
];
const DISTRACTORS: [&str; 3] = ["distractor_box", "distractor_puck", "distractor_slab"];

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
        let mut xml = MAIN.to_owned();
        if variant.quality == Quality::Pretty {
            xml = xml.replace("quality_fast.xml", "quality_pretty.xml");
        }
        if variant.distractors {
            xml = xml.replace("<!-- distractors -->", r#"<include file="distractors.xml"/>"#);
        }
        let model = Arc::new(Model::from_xml_string_with_assets(&xml, &FILES)?);
        let mut bodies = [0; Thing::COUNT];
        let mut handles = [Handle::Mocap(0); Thing::COUNT];
        for thing in Thing::ALL {
            let body = model.body_id(thing.name())?;
            bodies[thing as usize] = body;
            handles[thing as usize] = match model.body_mocap(body) {
                Some(mocap) => Handle::Mocap(mocap),
                None => Handle::Free(model.joint_id(thing.name())?),
            };
        }
        let (mut distractors, mut distractor_geoms) = (Vec::new(), Vec::new());
        for name in DISTRACTORS.iter().filter(|_| variant.distractors) {
            distractors.push(model.joint_id(name)?);
            distractor_geoms.push(model.geom_id(name)?);
        }
        let geom = |name| model.geom_id(name);
        let pads = [geom("pad_left")?, geom("pad_right")?];
        Ok(Self {
            variant,
            bodies,
            handles,
            distractors,
            distractor_geoms,
            grip: model.site_id("grip")?,
            handle_site: model.site_id("handle")?,
            drawer: model.joint_id("drawer")?,
            button: model.joint_id("button")?,
            pads,
            robot_geoms: [pads[0], pads[1], geom("palm")?],
            red: geom("red_cube")?,
            blue: geom("blue_block")?,
            green: geom("green_cylinder")?,
            handle_geom: geom("handle")?,
            cap_geom: geom("button_cap")?,
            cap_body: model.body_id("button_cap")?,
            arm: Arm::find(&model, arm::POSTURE)?,
            lights: [model.light_id("key")?, model.light_id("fill")?],
            model,
        })
    }
}
