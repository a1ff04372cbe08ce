//! Names of LIBERO-Plus' tasks.

use std::str::FromStr;

/// The parts of a name such as `turn_on_the_stove_view_330_15_150_-4_6_initstate_0_noise_37`.
#[derive(Clone, Debug, PartialEq)]
pub struct PlusName {
    /// The task without perturbation.
    pub base: String,
    /// Number of the paraphrase, `_language_K`.
    pub language: Option<u64>,
    /// Angle of the camera about the vertical in degrees, 0 to 359.
    pub horizontal: i32,
    /// Angle of the camera above its usual place in degrees.
    pub vertical: i32,
    /// Distance of the camera as a factor.
    pub scale: f64,
    /// Turn of the camera at its place to the side, degrees.
    pub end_rot: i32,
    /// Turn of the camera at its place upwards, degrees.
    pub end_vertical: i32,
    /// Variant of the robot's start; 0 is the usual one.
    pub init_variant: u64,
    /// Number of the noise, 1 to 50; 0 is none.
    pub noise: u64,
    /// Number of the background, `_table_N` or `_tb_N`.
    pub table: Option<u64>,
    /// Number of the light, `_light_N`.
    pub light: Option<u64>,
    /// Number of the set of further objects, `_add_N`.
    pub add: Option<u64>,
    /// Level of the layout, `_levelL_sampleS`.
    pub level: Option<u64>,
    /// Sample of the layout.
    pub sample: Option<u64>,
    /// Whether the objects that the task is about have moved, `_moved`.
    pub moved: bool,
}

/// A name whose ending is damaged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is no name of LIBERO-Plus: expected {expected} at `{rest}`")]
pub struct UnreadableName {
    /// The name.
    pub name: String,
    /// What may stand there.
    pub expected: &'static str,
    /// What stands there.
    pub rest: String,
}

impl PlusName {
    fn of(base: &str) -> Self {
        Self {
            base: base.to_owned(),
            language: None,
            horizontal: 0,
            vertical: 0,
            scale: 1.0,
            end_rot: 0,
            end_vertical: 0,
            init_variant: 0,
            noise: 0,
            table: None,
            light: None,
            add: None,
            level: None,
            sample: None,
            moved: false,
        }
    }
}

impl FromStr for PlusName {
    type Err = UnreadableName;

    fn from_str(name: &str) -> Result<Self, UnreadableName> {
        if let Some((front, view)) = name.split_once("_view_") {
            return view_name(name, front, view);
        }
        for (mark, field) in [("_table_", 0), ("_tb_", 0), ("_light_", 1), ("_add_", 2)] {
            // The mark may be part of a task's words, so a number has to end the name.
            if let Some((base, number)) = name.rsplit_once(mark)
                && let Ok(number) = number.parse()
            {
                let mut parts = Self::of(base);
                *[&mut parts.table, &mut parts.light, &mut parts.add][field] = Some(number);
                return Ok(parts);
            }
        }
        if let Some((base, layout)) = name.rsplit_once("_level") {
            let numbers = layout.split_once("_sample");
            let read = numbers.and_then(|(l, s)| Some((l.parse().ok()?, s.parse().ok()?)));
            let expected = "`_levelL_sampleS` with two numbers";
            let (level, sample) = read.ok_or_else(|| unreadable(name, expected, layout))?;
            let mut parts = Self::of(base.strip_suffix("_moved").unwrap_or(base));
            parts.moved = base.ends_with("_moved");
            (parts.level, parts.sample) = (Some(level), Some(sample));
            return Ok(parts);
        }
        Ok(Self::of(name))
    }
}

fn unreadable(name: &str, expected: &'static str, rest: &str) -> UnreadableName {
    UnreadableName { name: name.to_owned(), expected, rest: rest.to_owned() }
}

/// `FRONT[_language_K]_view_H_V_S_R_P_initstate_I[_noise_N]`.
fn view_name(name: &str, front: &str, view: &str) -> Result<PlusName, UnreadableName> {
    let mut parts = match front.rsplit_once("_language_") {
        Some((base, k)) => {
            let expected = "a number after `_language_`";
            let k = k.parse().map_err(|_| unreadable(name, expected, k))?;
            PlusName { language: Some(k), ..PlusName::of(base) }
        }
        None => PlusName::of(front),
    };
    let words: Vec<&str> = view.split('_').collect();
    let expected = "`_view_H_V_S_R_P_initstate_I` or the same with `_noise_N`, whole numbers";
    let wrong = || unreadable(name, expected, view);
    let (variant, noise) = match words[..] {
        [_, _, _, _, _, "initstate", i] => (i, "0"),
        [_, _, _, _, _, "initstate", i, "noise", n] => (i, n),
        _ => return Err(wrong()),
    };
    let mut numbers = [0; 5];
    for (number, word) in numbers.iter_mut().zip(&words) {
        *number = word.parse().map_err(|_| wrong())?;
    }
    [parts.horizontal, parts.vertical, _, parts.end_rot, parts.end_vertical] = numbers;
    if numbers[2] <= 0 {
        return Err(unreadable(name, "a distance in percent above 0", view));
    }
    parts.scale = f64::from(numbers[2]) / 100.0;
    parts.init_variant = variant.parse().map_err(|_| wrong())?;
    parts.noise = noise.parse().map_err(|_| wrong())?;
    if parts.noise > 50 {
        return Err(unreadable(name, "a noise of 0 to 50", noise));
    }
    Ok(parts)
}
