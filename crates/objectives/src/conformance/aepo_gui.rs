//! Cases of `aepo_gui.json`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::case::{Case, Failure, Outcome, Outputs, code};
use crate::advantage::{GroupBaseline, LeaveOneOut};
use crate::batch::{Batch, GROUP_IDS, REWARDS};
use crate::block::Advantage;
use crate::grounding::{Rect, limit_pixels, smart_resize};
use crate::papers::aepo_gui::benchmarks::{
    Correctness, MmbenchCell, OsworldTarget, ScreenSpotPro, layout_overlap, mmbench, negative_hit,
    normalised_hit, osworld_hit, ui_vision_hit,
};
use crate::papers::aepo_gui::metrics::{GroupLevel, Judgement, Statistics, Target, judge, standardise};
use crate::papers::aepo_gui::{AnswerScore, ExplorationReward, collinear};
use crate::state::State;

pub(super) fn run(case: &Case) -> Outcome {
    let has = |name: &str| case.inputs.contains_key(name);
    match case.function.as_str() {
        "reward" => reward(case),
        "collinear" => collinear_sets(case),
        "advantages" => advantages(case),
        "resize" => resize(case),
        "hit" => hit(case),
        "parse" => parse(case),
        "metric" if has("groups") => statistics(case),
        "metric" if has("pred") => layout(case),
        "metric" if has("records") => mmbench_scores(case),
        "metric" if has("docs") => osworld(case),
        "metric" => pointing(case),
        other => Err(Failure::NotImplemented(format!("function `{other}` of aepo_gui"))),
    }
}

fn flag(b: bool) -> f64 {
    f64::from(u8::from(b))
}

fn as_json(value: impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(value).map_err(|e| Failure::Missing(e.to_string()))
}

fn reward(case: &Case) -> Outcome {
    let optional = |name: &str| case.param::<Option<f64>>(name);
    let defaults = ExplorationReward::default();
    let settings = ExplorationReward {
        format_weight: optional("fmt_ratio")?.unwrap_or(defaults.format_weight),
        accuracy_weight: optional("acc_ratio")?.unwrap_or(defaults.accuracy_weight),
        no_think: case.param::<Option<bool>>("no_think")?.unwrap_or(false),
        ..defaults
    };
    let target: Rect = case.input("bbox")?;
    let responses: Vec<String> = case.input("responses")?;
    let scores: Vec<AnswerScore> = responses.iter().map(|r| settings.score(r, &target)).collect();
    let column = |of: fn(&AnswerScore) -> f64| scores.iter().map(of).collect();
    Ok(Outputs::from([
        ("score", column(|s| s.score)),
        ("format", column(|s| s.format)),
        ("accuracy", column(|s| s.accuracy)),
        ("num_pred", column(|s| s.num_pred as f64)),
        ("has_correct", column(|s| flag(s.has_correct))),
        ("first_correct", column(|s| flag(s.first_correct))),
        ("only_correct", column(|s| flag(s.only_correct))),
        ("is_collinear", column(|s| flag(s.is_collinear))),
    ]))
}

fn collinear_sets(case: &Case) -> Outcome {
    let sets: Vec<Vec<[f64; 2]>> = case.input("point_sets")?;
    let (relative, absolute) = (case.param("rel_tol")?, case.param::<Option<f64>>("abs_tol")?.unwrap_or(0.0));
    let on_a_line = |set: &Vec<[f64; 2]>| {
        let points: Vec<_> = set.iter().map(|p| p.map(Some)).collect();
        flag(collinear(&points, relative, absolute) == Some(true))
    };
    Ok(Outputs::from([("is_collinear", sets.iter().map(on_a_line).collect())]))
}

fn advantages(case: &Case) -> Outcome {
    let batch = Batch::new(case.table("response_mask")?)
        .with(REWARDS, case.numbers("rewards")?)?
        .with(GROUP_IDS, case.whole("group_ids")?)?;
    let block = LeaveOneOut { alone: GroupBaseline::KeepsReward };
    Ok(Outputs::from([("advantages", block.advantages(&batch, &mut State::default())?.values)]))
}

fn resize(case: &Case) -> Outcome {
    let sizes: Vec<[usize; 2]> = case.input("sizes_w_h")?;
    let (factor, least) = (case.param("factor")?, case.param("min_pixels")?);
    let (first, second) = (case.param("max_image_pixels")?, case.param("second_max_pixels")?);
    let mut out = Vec::new();
    for [width, height] in sizes {
        let (width, height) = limit_pixels((width, height), first);
        let (height, width) = smart_resize((height, width), factor, least, second)?;
        out.extend([width as f64, height as f64]);
    }
    Ok(Outputs::from([("resized_w_h", out)]))
}

fn hit(case: &Case) -> Outcome {
    let elements: Vec<Target> = case.input("elements")?;
    let points: Vec<[f64; 2]> = case.input("points")?;
    let hits = elements.iter().zip(points).map(|(element, point)| flag(element.contains(point)));
    Ok(Outputs::from([("hit", hits.collect())]))
}

fn parse(case: &Case) -> Outcome {
    let (benchmarks, samples): (Vec<String>, Vec<Value>) = (case.input("benchmark")?, case.input("samples")?);
    let standard = samples.iter().zip(&benchmarks).map(|(sample, name)| standardise(sample, name));
    let standard = standard.collect::<Result<Vec<_>, _>>()?;
    Ok(Outputs::from([("standardised", code(&as_json(standard)?))]))
}

fn statistics(case: &Case) -> Outcome {
    let think = case.param("think_mode")?;
    let (responses, targets): (Vec<String>, Vec<Target>) = (case.input("responses")?, case.input("gt")?);
    let groups: Vec<Vec<GroupLevel>> = case.input("groups")?;
    let judged: Vec<Judgement> =
        responses.iter().zip(&targets).map(|(response, target)| judge(response, target, think)).collect();
    let all = Statistics::of(judged.iter().zip(groups.iter().map(Vec::as_slice)));
    Ok(Outputs::from([("per_sample", code(&as_json(judged)?)), ("statistics", code(&as_json(all)?))]))
}

#[derive(Deserialize)]
struct Pointing {
    bbox: Option<[f64; 4]>,
    img_size: Option<[f64; 2]>,
    image_size: Option<[f64; 2]>,
    point: Option<[f64; 2]>,
    result: Option<String>,
    group: Option<String>,
    ui_type: Option<String>,
}

/// ScreenSpot-Pro, whose samples have `img_size` or are negative, and UI-Vision.
fn pointing(case: &Case) -> Outcome {
    let samples: Vec<Pointing> = case.input("samples")?;
    let verdict = |s: &Pointing| match (s.bbox, s.img_size, s.image_size) {
        (Some(bbox), Some(size), _) => Ok(normalised_hit(bbox, size, s.point)),
        (Some(bbox), None, Some(size)) => Ok(ui_vision_hit(bbox, size, s.point)),
        _ => match &s.result {
            Some(result) => Ok(negative_hit(result)),
            None => Err(Failure::Missing("inputs.samples with a box or a result".into())),
        },
    };
    let verdicts: Vec<Correctness> = samples.iter().map(verdict).collect::<Result<_, _>>()?;
    let kind = |s: &'_ Pointing| s.ui_type.clone().unwrap_or_default();
    let kinds: Vec<String> = samples.iter().map(kind).collect();
    let pairs = || verdicts.iter().copied().zip(kinds.iter().map(String::as_str)).zip(&samples);
    let groups: BTreeSet<&String> = samples.iter().filter_map(|s| s.group.as_ref()).collect();
    let mut by_group = BTreeMap::new();
    for group in groups {
        let inside = pairs().filter(|(_, s)| s.group.as_ref() == Some(group)).map(|(pair, _)| pair);
        by_group.insert(format!("group:{group}"), ScreenSpotPro::of(inside));
    }
    let overall = ScreenSpotPro::of(pairs().map(|(pair, _)| pair));
    Ok(Outputs::from([
        ("correctness", code(&as_json(verdicts.clone())?)),
        ("overall", code(&as_json(overall)?)),
        ("by_group", code(&as_json(by_group)?)),
    ]))
}

fn layout(case: &Case) -> Outcome {
    let (predicted, truth): (Vec<Option<[f64; 4]>>, Vec<[f64; 4]>) = (case.input("pred")?, case.input("gt")?);
    let overlaps: Vec<_> = predicted
        .iter()
        .zip(truth)
        .map(|(p, t)| layout_overlap(p.map(Rect::corners), Rect::corners(t)))
        .collect();
    Ok(Outputs::from([
        ("iou", overlaps.iter().map(|o| o.iou).collect()),
        ("precision_field", overlaps.iter().map(|o| o.precision).collect()),
        ("recall_field", overlaps.iter().map(|o| o.recall).collect()),
    ]))
}

fn mmbench_scores(case: &Case) -> Outcome {
    let scores = mmbench(&case.input::<Vec<MmbenchCell>>("records")?);
    let level = |name: &str| scores.levels.get(name).copied().unwrap_or(0.0);
    let summary = json!({
        "Average accuracy": scores.average,
        "Basic accuracy": level("basic"),
        "Advanced accuracy": level("advanced"),
    });
    let per_platform = code(&as_json(&scores.platforms)?);
    Ok(Outputs::from([("summary", code(&summary)), ("per_platform", per_platform)]))
}

fn osworld(case: &Case) -> Outcome {
    let docs: Vec<OsworldTarget> = case.input("docs")?;
    let responses: Vec<String> = case.input("responses")?;
    let correct: Vec<f64> = docs.iter().zip(&responses).map(|(doc, r)| flag(osworld_hit(doc, r))).collect();
    let mean = |kind: Option<&str>| {
        let chosen: Vec<f64> = docs
            .iter()
            .zip(&correct)
            .filter(|(doc, _)| kind.is_none_or(|kind| doc.box_type == kind))
            .map(|(_, &c)| c)
            .collect();
        vec![chosen.iter().sum::<f64>() / chosen.len().max(1) as f64]
    };
    Ok(Outputs::from([
        ("accuracy", mean(None)),
        ("refusal_accuracy", mean(Some("refusal"))),
        ("bbox_accuracy", mean(Some("bbox"))),
        ("polygon_accuracy", mean(Some("polygon"))),
        ("correct", correct),
    ]))
}
