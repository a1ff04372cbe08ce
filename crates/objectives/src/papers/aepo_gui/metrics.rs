//! How InfiGUI-G1 is evaluated: samples in one form, hits, and accuracies over nested groups.
//!
//! Accuracy counts the FIRST point, exploration success any point; both are weighted by samples. A response whose
//! list cannot be read is a miss and does not enter the mean number of points.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::coordinate;
use crate::error::{Error, Result};
use crate::grounding::{RayRule, Rect, polygon_contains};

/// What is to be clicked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Target {
    /// A rectangle.
    Box(Rect),
    /// Corners of a polygon.
    Polygon {
        /// [x, y] each.
        polygon: Vec<[f64; 2]>,
    },
    /// Nothing: the element is absent.
    Absent {},
}

impl Target {
    /// Whether a click hits. Edges of a box are inside.
    pub fn contains(&self, point: [f64; 2]) -> bool {
        match self {
            Self::Box(target) => target.contains(point),
            Self::Polygon { polygon } => polygon_contains(polygon, point, RayRule::UpToCrossing),
            Self::Absent {} => false,
        }
    }
}

/// One response, judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Judgement {
    /// Whether the first point hits, or rightly nothing was proposed.
    pub correct: bool,
    /// Whether any point hits, or rightly nothing was proposed.
    pub has_correct: bool,
    /// Number of points; `None` when they cannot be read or there is no target.
    pub num_answers: Option<usize>,
}

/// Judges a response. `think_mode`: what stands before the last `</think>` is dropped.
pub fn judge(response: &str, target: &Target, think_mode: bool) -> Judgement {
    let answer = match response.rsplit_once("</think>") {
        Some((_, answer)) if think_mode => answer,
        _ => response,
    };
    let list = match (answer.find('['), answer.rfind(']')) {
        (Some(a), Some(b)) if a < b => serde_json::from_str::<Vec<Value>>(&answer[a..=b]).ok(),
        _ => None,
    };
    let list = list.filter(|list| !list.is_empty());
    if *target == (Target::Absent {}) {
        return Judgement { correct: list.is_none(), has_correct: list.is_none(), num_answers: None };
    }
    let Some(list) = list else { return Judgement::default() };
    let mut rank = None;
    for (i, item) in list.iter().enumerate() {
        let Some([x, y, ..]) = item.get("point_2d").and_then(Value::as_array).map(Vec::as_slice) else {
            return Judgement::default();
        };
        let (Some(x), Some(y)) = (coordinate(x), coordinate(y)) else { return Judgement::default() };
        if target.contains([x, y]) {
            rank = Some(i);
            break;
        }
    }
    let points = list.iter().filter(|item| item.get("point_2d").is_some()).count();
    Judgement { correct: rank == Some(0), has_correct: rank.is_some(), num_answers: Some(points) }
}

/// One level of a sample's group: a name, or several that all count it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum GroupLevel {
    /// One group.
    One(String),
    /// Several groups.
    Many(Vec<String>),
}

/// Counts and accuracies of a group of samples.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Statistics {
    /// Samples.
    pub total: usize,
    /// First points that hit.
    pub correct: usize,
    /// Samples with a hit.
    pub has_correct: usize,
    /// correct / total.
    pub correct_accuracy: f64,
    /// has_correct / total.
    pub has_correct_accuracy: f64,
    /// Mean number of points over the samples that could be read; 0 without one.
    pub avg_num_answers: f64,
    /// By the next level of the group.
    pub subgroups: BTreeMap<String, Statistics>,
    #[serde(skip)]
    answers: usize,
    #[serde(skip)]
    parsed: usize,
}

impl Statistics {
    /// Over samples with their groups, outermost level first.
    pub fn of<'a>(samples: impl IntoIterator<Item = (&'a Judgement, &'a [GroupLevel])>) -> Self {
        let mut all = Self::default();
        samples.into_iter().for_each(|(judgement, groups)| all.add(judgement, groups));
        all.finish();
        all
    }

    fn add(&mut self, judgement: &Judgement, groups: &[GroupLevel]) {
        self.total += 1;
        self.correct += usize::from(judgement.correct);
        self.has_correct += usize::from(judgement.has_correct);
        self.answers += judgement.num_answers.unwrap_or(0);
        self.parsed += usize::from(judgement.num_answers.is_some());
        let Some((level, deeper)) = groups.split_first() else { return };
        let names = match level {
            GroupLevel::One(name) => std::slice::from_ref(name),
            GroupLevel::Many(names) => names,
        };
        for name in names {
            self.subgroups.entry(name.clone()).or_default().add(judgement, deeper);
        }
    }

    fn finish(&mut self) {
        self.correct_accuracy = share(self.correct, self.total);
        self.has_correct_accuracy = share(self.has_correct, self.total);
        self.avg_num_answers = share(self.answers, self.parsed);
        self.subgroups.values_mut().for_each(Self::finish);
    }
}

/// part / whole, 0 of nothing.
pub(super) fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// A benchmark's sample in the common form.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Path of the image.
    pub images: String,
    /// What to click.
    pub instruction: String,
    /// Where it is, in pixels of the stored image.
    pub bbox: Rect,
    /// Outermost level first.
    pub group: Vec<GroupLevel>,
}

/// Categories of UI-Vision's applications.
const UI_VISION: [(&str, &str); 6] = [
    ("Education", "Anki|Zotero|GrassGIS|Calibre|Audacity|QGIS|OpenBoard|Mendeley"),
    ("Browsers", "Brave|Chromium|Mozilla Firefox|DuckDuckGo"),
    (
        "Development",
        "VSCode|Atom|FreeCAD|Eclipse|NetBeans|PyCharm|IntelliJ IDEA|Brackets|Geany|Bluefish|KDevelop|Komodo Edit|\
         Code::Blocks|Qt Creator|Arduino IDE|Spyder|Ubuntu Terminal|Conky|Bash|Gedit",
    ),
    (
        "Productivity",
        "LibreOffice Calc|LibreOffice Draw|LibreOffice Impress|LibreOffice Writer|draw.io|Joplin|OpenProject|Affine|\
         Zulip|PDFedit|OnlyOffice Calendar|OnlyOffice Document Editor|OnlyOffice Forms|OnlyOffice PDF Forms|\
         OnlyOffice Presentation|OnlyOffice Spreadsheet|Nextcloud|Gnumeric|Simplenote|Cryptomator|WeKan|7-Zip|\
         GnuCash|Bitwarden|Metabase|Jitsi|Flameshot|Nemo",
    ),
    (
        "Creativity",
        "Blender|GIMP|Inkscape|Krita|Darktable|FontForge|MuseScore|Scribus|OpenShot|OBS Studio|Lightworks|Shotcut|\
         Natron|OpenToonz|WordPress",
    ),
    ("Entertainment", "VLC Media Player|Kodi|Element|Signal|Mastodon|Lemmy|Matrix|Emby"),
];

/// The category of an application in UI-Vision, whatever its case.
pub fn ui_vision_category(application: &str) -> Option<&'static str> {
    let has = |names: &str| names.split('|').any(|name| name.eq_ignore_ascii_case(application));
    UI_VISION.iter().find(|(_, names)| has(names)).map(|(category, _)| *category)
}

/// Brings a benchmark's record into the common form: `screenspot-pro`, `screenspot-v2`, `ui-vision`, `mmbench-gui`,
/// `i2e-bench`. `_data_name` is the name of the record's file.
///
/// # Errors
/// [`Error::Invalid`]: another benchmark, or a field that is missing or of another type.
pub fn standardise(record: &Value, benchmark: &str) -> Result<Sample> {
    let wrong = |reason: String| Error::Invalid { what: "benchmark record", reason };
    let text = |key: &str| {
        let text = record.get(key).and_then(Value::as_str);
        text.map(str::to_string).ok_or_else(|| wrong(format!("no text `{key}`")))
    };
    let numbers = |key: &str| -> Result<Vec<f64>> {
        let list = record.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        list.iter().map(|x| x.as_f64().ok_or_else(|| wrong(format!("`{key}` holds no number")))).collect()
    };
    let corners = |key: &str| {
        let numbers = numbers(key)?;
        <[f64; 4]>::try_from(numbers).map_err(|x| wrong(format!("`{key}` has {} numbers, not 4", x.len())))
    };
    let one = |name: &str| GroupLevel::One(name.to_lowercase());
    let optional = |key: &str| record.get(key).and_then(Value::as_str).map(one);
    let part = |name: &str, at: usize| {
        name.split('_').nth(at).map(one).ok_or_else(|| wrong(format!("`_data_name` is `{name}`")))
    };
    let sample = |images, instruction, bbox, group: GroupLevel, deeper: Option<GroupLevel>| Sample {
        images,
        instruction,
        bbox,
        group: std::iter::once(group).chain(deeper).collect(),
    };
    Ok(match benchmark {
        "screenspot-pro" => sample(
            text("img_filename")?,
            text("instruction")?,
            Rect::corners(corners("bbox")?),
            one(&text("group")?),
            optional("ui_type"),
        ),
        "screenspot-v2" => sample(
            text("img_filename")?,
            text("instruction")?,
            Rect::sized(corners("bbox")?),
            part(&text("_data_name")?, 1)?,
            optional("data_type"),
        ),
        "ui-vision" => {
            let name = text("_data_name")?;
            let mut names = vec![name.rsplit('_').next().unwrap_or_default().to_lowercase()];
            names.extend(ui_vision_category(&text("platform")?).map(str::to_string));
            let rect = Rect::corners(corners("bbox")?);
            sample(text("image_path")?, text("prompt_to_evaluate")?, rect, GroupLevel::Many(names), None)
        }
        "mmbench-gui" => {
            let size = numbers("image_size")?;
            let [width, height] = size[..] else {
                return Err(wrong("`image_size` needs two numbers".into()));
            };
            let [x1, y1, x2, y2] = corners("bbox")?;
            let rect = Rect { x1: x1 * width, y1: y1 * height, x2: x2 * width, y2: y2 * height };
            let platform = text("platform")?;
            let image = format!("{platform}/{}", text("image_path")?);
            sample(image, text("instruction")?, rect, one(&platform), optional("grounding_type"))
        }
        "i2e-bench" => {
            let kind = record.get("annotations").and_then(|a| a.get("instr_type")).and_then(Value::as_str);
            let kind = kind.ok_or_else(|| wrong("no text `annotations.instr_type`".into()))?;
            let rect = Rect::corners(corners("bounding_box")?);
            sample(text("image")?, text("instruction")?, rect, one(kind), optional("source"))
        }
        other => return Err(wrong(format!("there is no benchmark `{other}`"))),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn records_that_lack_something_are_named() {
        let record =
            serde_json::json!({"img_filename": "a", "instruction": "b", "bbox": [1, 2, 3], "group": "CAD"});
        let message = |benchmark| standardise(&record, benchmark).unwrap_err().to_string();
        assert!(message("screenspot-pro").contains("3 numbers"));
        assert!(message("mmbench-gui").contains("image_size"));
        assert!(message("?").contains("benchmark `?`"));
    }

    #[test]
    fn a_bad_point_before_a_hit_voids_the_sample_and_behind_it_does_not() {
        let target = Target::Box(Rect::corners([10.0, 10.0, 20.0, 20.0]));
        let judged = |text: &str| judge(text, &target, false);
        assert_eq!(judged(r#"[{"p": 1}, {"point_2d": [15, 15]}]"#), Judgement::default());
        let hit = judged(r#"[{"point_2d": [15, 15]}, {"p": 1}]"#);
        assert_eq!(hit, Judgement { correct: true, has_correct: true, num_answers: Some(1) });
    }
}
