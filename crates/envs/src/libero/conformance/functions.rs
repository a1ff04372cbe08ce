//! Reference vectors of single functions: predicates, goals, scaling of actions.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::libero::controller::scale_action;
use crate::libero::meta::Threshold;
use crate::libero::predicates::{in_box, on_object, on_site};

/// Numbers by name, in row-major order.
pub type Numbers = BTreeMap<String, Vec<f64>>;

/// The functions that [`function`] computes.
pub fn known_functions() -> &'static [&'static str] {
    &["in_box", "under", "on_objects", "joint_predicates", "joint_predicates_multi", "goal", "osc_scale"]
}

/// The outputs of a case of `eval_libero.json`; truth values are 0 and 1. `None` for functions that are not computed here.
///
/// # Errors
/// Names the parameter or input that is absent or has a wrong length.
pub fn function(name: &str, params: &Value, inputs: &Numbers) -> Option<Result<Numbers, String>> {
    let case = Case { params, inputs };
    Some(match name {
        "in_box" => case.site("inside", in_box),
        "under" => case.site("on", on_site),
        "on_objects" => case.on_objects(),
        "joint_predicates" => case.joint_predicates(),
        "joint_predicates_multi" => case.several_joints(),
        "goal" => case.goal(),
        "osc_scale" => case.osc_scale(),
        _ => return None,
    })
}

/// The classes of fixtures in the vectors, and our names of them.
const FIXTURES: [(&str, &str); 6] = [
    ("Microwave", "microwave"),
    ("ShortCabinet", "short_cabinet"),
    ("ShortFridge", "short_fridge"),
    ("WoodenCabinet", "wooden_cabinet"),
    ("WhiteCabinet", "white_cabinet"),
    ("FlatStove", "flat_stove"),
];

type SitePredicate = fn([f64; 3], &[f64; 9], [f64; 3], [f64; 3]) -> bool;

struct Case<'a> {
    params: &'a Value,
    inputs: &'a Numbers,
}

impl Case<'_> {
    fn numbers(&self, name: &str) -> Result<&[f64], String> {
        self.inputs
            .get(name)
            .map(Vec::as_slice)
            .ok_or_else(|| format!("the case has no usable `inputs.{name}`"))
    }

    fn rows<const N: usize>(&self, name: &str) -> Result<&[[f64; N]], String> {
        match self.numbers(name)?.as_chunks() {
            (rows, []) => Ok(rows),
            (_, rest) => Err(format!("`inputs.{name}` has {} numbers too many for rows of {N}", rest.len())),
        }
    }

    fn param<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, String> {
        let value = self.params.get(name).ok_or_else(|| format!("the case has no `params.{name}`"))?;
        T::deserialize(value).map_err(|error| format!("`params.{name}`: {error}"))
    }

    fn site(&self, output: &str, predicate: SitePredicate) -> Result<Numbers, String> {
        let half_size = self.param("half_size")?;
        let sites = self.rows("site_pos")?.iter().zip(self.rows("site_mat")?);
        let truth =
            sites.zip(self.rows("point")?).map(|((pos, mat), point)| predicate(*pos, mat, half_size, *point));
        Ok(outputs([(output, truth.collect())]))
    }

    fn on_objects(&self) -> Result<Numbers, String> {
        let places = self.rows("top_pos")?.iter().zip(self.rows("bottom_pos")?);
        let truth = places
            .zip(self.numbers("contact")?)
            .map(|((top, bottom), contact)| on_object(*top, *bottom, *contact != 0.0));
        Ok(outputs([("on", truth.collect())]))
    }

    fn joint_predicates(&self) -> Result<Numbers, String> {
        let qpos = self.numbers("qpos")?;
        let mut out = Numbers::new();
        for (class, category) in FIXTURES {
            for (state, predicate) in
                [("open", "open"), ("close", "close"), ("on", "turnon"), ("off", "turnoff")]
            {
                if let Some(threshold) = Threshold::of_category(category, predicate) {
                    let truth = qpos.iter().map(|q| threshold.holds([*q])).collect();
                    out.extend(outputs([(&format!("{class}.{state}"), truth)]));
                }
            }
        }
        Ok(out)
    }

    fn several_joints(&self) -> Result<Numbers, String> {
        let class: String = self.param("fixture")?;
        let category = FIXTURES.iter().find(|(name, _)| *name == class).map_or("", |(_, category)| *category);
        let states: &[[f64; 3]] = self.rows("qpos")?;
        let truth = |predicate| {
            let threshold = Threshold::of_category(category, predicate)
                .ok_or_else(|| format!("`params.fixture` is `{class}`, which cannot {predicate}"))?;
            Ok::<Vec<bool>, String>(states.iter().map(|joints| threshold.holds(*joints)).collect())
        };
        Ok(outputs([("open", truth("open")?), ("close", truth("close")?)]))
    }

    fn goal(&self) -> Result<Numbers, String> {
        let half_size = self.param("half_size")?;
        let open = Threshold::of_category("wooden_cabinet", "open").ok_or("a cabinet cannot open")?;
        let (pos, yaw): (&[[f64; 3]], _) = (self.rows("site_pos")?, self.numbers("site_yaw")?);
        let (inside, upon): (&[[f64; 3]], &[[f64; 3]]) =
            (self.rows("cube_pos_in")?, self.rows("cube_pos_on")?);
        let (drawer, contact) = (self.numbers("drawer_qpos")?, self.numbers("contact_cube_tray")?);
        if [yaw.len(), inside.len(), upon.len(), drawer.len(), contact.len()].iter().any(|n| *n != pos.len())
        {
            return Err("the inputs have different lengths".into());
        }
        let mat = |yaw: f64| [yaw.cos(), -yaw.sin(), 0.0, yaw.sin(), yaw.cos(), 0.0, 0.0, 0.0, 1.0];
        let rows = 0..pos.len();
        let in_and_open = rows
            .clone()
            .map(|i| in_box(pos[i], &mat(yaw[i]), half_size, inside[i]) && open.holds([drawer[i]]));
        let on = rows.map(|i| on_site(pos[i], &mat(yaw[i]), half_size, upon[i]) && contact[i] != 0.0);
        Ok(outputs([("in_and_open", in_and_open.collect()), ("on_site_needs_parent_contact", on.collect())]))
    }

    fn osc_scale(&self) -> Result<Numbers, String> {
        let (low, high, out): (f64, f64, [f64; 6]) =
            (self.param("input_min")?, self.param("input_max")?, self.param("output_max")?);
        let actions: &[[f64; 6]] = self.rows("action")?;
        let deltas =
            actions.iter().flat_map(|action| scale_action([low, high], [&out.map(|x| -x), &out], action));
        Ok(Numbers::from([("delta".to_owned(), deltas.collect())]))
    }
}

fn outputs<const N: usize>(named: [(&str, Vec<bool>); N]) -> Numbers {
    let number = |truth: Vec<bool>| truth.into_iter().map(|t| f64::from(u8::from(t))).collect();
    named.into_iter().map(|(name, truth)| (name.to_owned(), number(truth))).collect()
}
