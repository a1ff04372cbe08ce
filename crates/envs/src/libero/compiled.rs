//! A compiled scene with the names of `meta.json` resolved and checked against it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use efference_mujoco::{Kind, Model};

use super::facts::Fact;
use super::meta::{JointMeta, ObjectKind, Threshold};
use super::pack::{MAX_TEXT_BYTES, read};
use super::{Error, Pack, Profile, Result};

/// An object or fixture.
#[derive(Debug)]
pub(crate) struct Thing {
    pub name: String,
    pub body: usize,
    pub movable: bool,
    category: String,
    thresholds: BTreeMap<String, Threshold>,
    /// Places in `qpos` of its hinges and slides.
    pub joints: Vec<usize>,
}

impl Thing {
    /// When it counts as `open`, `close`, `turnon` or `turnoff`.
    pub fn threshold(&self, state: &str) -> Option<Threshold> {
        self.thresholds.get(state).copied().or_else(|| Threshold::of_category(&self.category, state))
    }
}

/// A site that facts talk about.
#[derive(Debug)]
pub(crate) struct Place {
    pub name: String,
    pub site: usize,
    /// The thing that it is part of.
    pub parent: Option<usize>,
    pub joints: Vec<usize>,
    pub half_size: [f64; 3],
}

/// The flame of a stove: a site that shows when the knob is on.
#[derive(Debug)]
pub(crate) struct Burner {
    pub site: usize,
    pub on: Fact,
}

/// Where a fixture stands, in its parent's frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Standing {
    pub body: usize,
    pub pos: [f64; 3],
    pub quat: [f64; 4],
}

#[derive(Debug)]
pub(crate) struct Compiled {
    pub model: Arc<Model>,
    pub eef_site: usize,
    pub hand: usize,
    pub arm_qpos: [usize; 7],
    pub arm_dofs: [usize; 7],
    pub arm_motors: [usize; 7],
    pub finger_qpos: [usize; 2],
    pub finger_dofs: [usize; 2],
    pub finger_servos: [usize; 2],
    pub pads: [Vec<usize>; 2],
    /// In the order of their bodies.
    pub things: Vec<Thing>,
    pub places: Vec<Place>,
    /// The thing that a geom is a contact geom of.
    pub geom_thing: Vec<Option<u16>>,
    pub goal: Vec<Fact>,
    pub burners: Vec<Burner>,
    /// The table of fixture poses; all entries name the same bodies in the same order.
    pub standings: Vec<Vec<Standing>>,
}

type Checked<T> = std::result::Result<T, (String, String)>;

impl Compiled {
    pub fn new(pack: &Pack, profile: Profile) -> Result<Self> {
        let mut path = pack.dir.join("model.xml");
        let fast = pack.dir.join("model_fast.xml");
        if profile == Profile::Fast && fast.is_file() {
            path = fast;
        }
        let mut model = load(&path)?;
        // Nothing reads them, and the wrist's force sensors cost a pass over the tree.
        model.set_compute_sensors(false);
        let meta_path = pack.dir.join("meta.json");
        let mut scene = Self::resolve(pack, Arc::new(model)).map_err(|(field, problem)| Error::Field {
            path: meta_path.clone(),
            field,
            problem,
        })?;
        let goal = pack.meta.goal.iter().map(|fact| Fact::resolve(&scene, fact)).collect::<Result<_>>();
        scene.goal = goal.map_err(|error| Error::Field {
            path: meta_path,
            field: "goal".into(),
            problem: format!("holds a fact that the scene does not allow: {error}"),
        })?;
        Ok(scene)
    }

    fn resolve(pack: &Pack, model: Arc<Model>) -> Checked<Self> {
        let meta = &pack.meta;
        let named = |field: &str, found: efference_mujoco::Result<usize>| {
            found.map_err(|error| (field.to_owned(), format!("names what the scene lacks: {error}")))
        };
        let sizes = [
            ("nq", meta.nq, model.nq()),
            ("nv", meta.nv, model.nv()),
            ("nu", meta.nu, model.nu()),
            ("na", meta.na, model.na()),
            ("site_rgba_after_reset", meta.site_rgba_after_reset.len(), model.count(Kind::Site)),
        ];
        for (field, said, there) in sizes {
            if said != there {
                return Err((field.into(), format!("says {said}, but the scene has {there}")));
            }
        }
        if (meta.timestep - model.timestep_secs()).abs() > 1e-12 {
            let problem = format!("says {}, but the scene has {}", meta.timestep, model.timestep_secs());
            return Err(("timestep".into(), problem));
        }
        for (field, joints) in
            [("robot.joints", &meta.robot.joints), ("gripper.joints", &meta.gripper.joints)]
        {
            check_joints(&model, field, joints)?;
        }
        for (field, actuators) in
            [("robot.actuators", &meta.robot.actuators), ("gripper.actuators", &meta.gripper.actuators)]
        {
            check_range(field, actuators, model.nu())?;
        }
        let ngeom = model.count(Kind::Geom);
        check_range("gripper.left_geoms", &meta.gripper.left_geoms, ngeom)?;
        check_range("gripper.right_geoms", &meta.gripper.right_geoms, ngeom)?;

        let mut things = Vec::with_capacity(meta.objects.len());
        for (name, object) in &meta.objects {
            let field = |part: &str| format!("objects.{name}.{part}");
            let body = named(&field("root_body"), model.body_id(&object.root_body))?;
            check_joints(&model, &field("joints"), &object.joints)?;
            check_range(&field("contact_geom_ids"), &object.contact_geom_ids, ngeom)?;
            things.push(Thing {
                name: name.clone(),
                body,
                movable: object.kind == ObjectKind::Object,
                category: object.category.clone(),
                thresholds: object.predicates.clone(),
                joints: scalar_joints(&model, &object.joints),
            });
        }
        things.sort_by_key(|thing| thing.body);
        let index = |name: &str| things.iter().position(|thing| thing.name == name);
        let mut geom_thing = vec![None; ngeom];
        for (i, thing) in things.iter().enumerate() {
            for geom in &meta.objects[&thing.name].contact_geom_ids {
                if geom_thing[*geom].replace(i as u16).is_some() {
                    let field = format!("objects.{}.contact_geom_ids", thing.name);
                    return Err((field, format!("holds geom {geom}, which belongs to another object too")));
                }
            }
        }
        let mut places = Vec::with_capacity(meta.sites.len());
        for (name, site) in &meta.sites {
            let field = |part: &str| format!("sites.{name}.{part}");
            check_range(&field("site_id"), &[site.site_id], model.count(Kind::Site))?;
            check_joints(&model, &field("joints"), &site.joints)?;
            places.push(Place {
                name: name.clone(),
                site: site.site_id,
                parent: site.parent.as_deref().and_then(index),
                joints: scalar_joints(&model, &site.joints),
                half_size: site.size,
            });
        }
        let mut standings = Vec::with_capacity(meta.fixture_poses.resets.len());
        for (k, reset) in meta.fixture_poses.resets.iter().enumerate() {
            let mut entry = Vec::with_capacity(reset.len());
            for (name, pose) in reset {
                let field = format!("fixture_poses.resets[{k}].{name}.body");
                let body = named(&field, model.body_id(&pose.body))?;
                entry.push(Standing { body, pos: pose.pos, quat: pose.quat });
            }
            let bodies = |entry: &[Standing]| entry.iter().map(|at| at.body).collect::<Vec<_>>();
            if standings.first().is_some_and(|first: &Vec<Standing>| bodies(first) != bodies(&entry)) {
                let field = format!("fixture_poses.resets[{k}]");
                return Err((field, "names other fixtures than the first entry".into()));
            }
            standings.push(entry);
        }
        let [arm_qpos, arm_dofs]: [[usize; 7]; 2] = addresses(&meta.robot.joints);
        let [finger_qpos, finger_dofs]: [[usize; 2]; 2] = addresses(&meta.gripper.joints);
        let mut scene = Self {
            eef_site: named("controller.eef_site", model.site_id(&meta.controller.eef_site))?,
            hand: named("robot.hand_body", model.body_id(&meta.robot.hand_body))?,
            arm_qpos,
            arm_dofs,
            arm_motors: std::array::from_fn(|i| meta.robot.actuators[i]),
            finger_qpos,
            finger_dofs,
            finger_servos: std::array::from_fn(|i| meta.gripper.actuators[i]),
            pads: [meta.gripper.left_geoms.clone(), meta.gripper.right_geoms.clone()],
            things,
            places,
            geom_thing,
            goal: Vec::new(),
            burners: Vec::new(),
            standings,
            model,
        };
        for (name, object) in &meta.objects {
            if let Some(site) = object.vis_sites.get("burner") {
                let field = format!("objects.{name}.vis_sites.burner");
                let site = named(&field, scene.model.site_id(site))?;
                let on = Fact::resolve(&scene, &["turnon".into(), name.clone()])
                    .map_err(|error| (field, format!("belongs to what cannot be on: {error}")))?;
                scene.burners.push(Burner { site, on });
            }
        }
        Ok(scene)
    }

    /// Whether a contact joins geoms of the two.
    pub fn touch(&self, data: &efference_mujoco::Data, a: usize, b: usize) -> bool {
        let (a, b) = (Some(a as u16), Some(b as u16));
        data.contact_geoms().any(|geoms| {
            let things = geoms.map(|geom| self.geom_thing[geom]);
            things == [a, b] || things == [b, a]
        })
    }

    /// The place of a thing in [`Compiled::things`].
    pub fn thing(&self, name: &str) -> Result<usize> {
        self.things.iter().position(|thing| thing.name == name).ok_or_else(|| Error::Name {
            kind: "object",
            name: name.to_owned(),
            known: self.things.iter().map(|thing| thing.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }
}

fn addresses<const N: usize>(joints: &[JointMeta]) -> [[usize; N]; 2] {
    [std::array::from_fn(|i| joints[i].qpos_adr), std::array::from_fn(|i| joints[i].dof_adr)]
}

fn check_range(field: &str, ids: &[usize], count: usize) -> Checked<()> {
    match ids.iter().find(|id| **id >= count) {
        Some(id) => Err((field.to_owned(), format!("holds {id}, but the scene has {count}"))),
        None => Ok(()),
    }
}

fn check_joints(model: &Model, field: &str, joints: &[JointMeta]) -> Checked<()> {
    for (i, joint) in joints.iter().enumerate() {
        let fail = |problem: String| Err((format!("{field}[{i}]"), problem));
        match model.joint_id(&joint.name) {
            Err(error) => return fail(format!("names what the scene lacks: {error}")),
            Ok(id) => {
                let there = (model.joint_qpos(id).start, model.joint_dofs(id).start);
                if there != (joint.qpos_adr, joint.dof_adr) {
                    let said = (joint.qpos_adr, joint.dof_adr);
                    return fail(format!(
                        "says that `{}` starts at {said:?} in qpos and qvel, but in the scene it is at {there:?}",
                        joint.name
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Places in `qpos` of the joints with one number.
fn scalar_joints(model: &Model, joints: &[JointMeta]) -> Vec<usize> {
    let scalar = |joint: &&JointMeta| {
        model.joint_id(&joint.name).is_ok_and(|id| model.joint_kind(id).positions() == 1)
    };
    joints.iter().filter(scalar).map(|joint| joint.qpos_adr).collect()
}

/// Versions before 3.3.3 do not know the attribute of textures that says how their bytes are meant; they take them as
/// linear.
fn knows_colorspace() -> bool {
    version_at_least([3, 3, 3])
}

/// Whether the MuJoCo in use is this version or a later one.
pub(super) fn version_at_least(least: [u32; 3]) -> bool {
    let version = efference_mujoco::version();
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let found = std::array::from_fn(|_| parts.next().unwrap_or(0));
    found >= least
}

fn load(path: &Path) -> Result<Model> {
    let failed = |source| Error::Model { path: path.into(), source };
    let bytes = read(path, MAX_TEXT_BYTES)?;
    let text = String::from_utf8_lossy(&bytes);
    let loaded = if !knows_colorspace() && text.contains(COLORSPACE) {
        let text = without_colorspace(&text);
        Model::from_xml_string(&with_absolute_assets(&text, path))
    } else {
        Model::from_xml_file(path)
    };
    loaded.map_err(failed)
}

const COLORSPACE: &str = " colorspace=\"";

fn without_colorspace(xml: &str) -> String {
    let mut parts = xml.split(COLORSPACE);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(part.split_once('"').map_or("", |(_, rest)| rest));
    }
    out
}

/// MJCF from memory has no folder that its `assetdir` could be relative to.
fn with_absolute_assets(xml: &str, path: &Path) -> String {
    const ATTRIBUTE: &str = " assetdir=\"";
    let folder: PathBuf = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
    let Some((before, (dir, after))) =
        xml.split_once(ATTRIBUTE).and_then(|(before, rest)| Some((before, rest.split_once('"')?)))
    else {
        return xml.to_owned();
    };
    let absolute = std::path::absolute(folder.join(dir)).unwrap_or_else(|_| folder.join(dir));
    let escaped =
        absolute.to_string_lossy().replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
    format!("{before}{ATTRIBUTE}{escaped}\"{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colorspace_goes_and_assets_become_absolute() {
        let xml = r#"<a><compiler angle="radian" assetdir="../b"/><t colorspace="sRGB" x="1"/><t y="2" colorspace="linear"/></a>"#;
        let out = with_absolute_assets(&without_colorspace(xml), Path::new("/packs/&1/model.xml"));
        let expected =
            r#"<a><compiler angle="radian" assetdir="/packs/&amp;1/../b"/><t x="1"/><t y="2"/></a>"#;
        assert_eq!(out, expected);
    }
}
