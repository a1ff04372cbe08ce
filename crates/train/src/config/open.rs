//! Sections whose keys belong to others: an algorithm's settings in `[rl.objective]`, the network's in `[model.shape]`.
//!
//! Keys and types are checked against the owner's defaults; what is left to refuse, the owner refuses.

use efference_objectives::registry::Algorithm;
use toml::{Table, Value};

use super::error::Problem;
use super::resolve::Source;
use super::{RlConfig, TrainConfig};
use crate::error::Error;
use crate::network;

const OBJECTIVE: &str = "rl.objective";
const SHAPE: &str = "model.shape";

/// Adds what is wrong with the open sections of `config`.
pub(super) fn check(config: &TrainConfig, source: &Source, out: &mut Vec<Problem>) {
    if let Some(rl) = &config.rl {
        objective(rl, source, out);
    }
    shape(config, source, out);
}

fn objective(rl: &RlConfig, source: &Source, out: &mut Vec<Problem>) {
    let (algorithm, settings) = (&rl.algorithm, &rl.objective);
    let inputs = crate::rl::inputs(rl);
    let Ok(preset) = Algorithm::from_table(algorithm, &Table::new()) else { return };
    let before = out.len();
    source.check_like(settings, &preset.composition.keys(settings), OBJECTIVE, out);
    if out.len() > before {
        return;
    }
    let refused = |table: &Table| {
        Algorithm::from_table(algorithm, table).and_then(|a| a.objective.check(&inputs)).err()
    };
    out.extend(refused(settings).map(|error| {
        // What the preset alone cannot do is no fault of a setting.
        let field = if refused(&Table::new()).is_some() {
            "rl.algorithm".into()
        } else {
            culprit(settings, OBJECTIVE, &|table| refused(table).is_some())
        };
        let what = match error {
            efference_objectives::Error::Block { reason, .. } => reason,
            efference_objectives::Error::Setting { name, got, expected } => {
                return source.problem(
                    &field,
                    format!("{got} is out of range"),
                    format!("`{name}`: {expected}"),
                );
            }
            other => other.to_string(),
        };
        source.problem(&field, what, format!("see configs/algorithms/{algorithm}.toml"))
    }));
}

fn shape(config: &TrainConfig, source: &Source, out: &mut Vec<Problem>) {
    let settings = &config.model.shape;
    let Ok(preset) = Table::try_from(network::preset(&config.model.preset)) else { return };
    let before = out.len();
    source.check_like(settings, &preset, SHAPE, out);
    let image_size = settings.get("vision").and_then(|v| v.get("image_size")).and_then(Value::as_integer);
    if image_size.is_some_and(|size| size != config.env.image_size as i64) {
        let what = format!("the images have `env.image_size` = {} px", config.env.image_size);
        out.push(source.problem("model.shape.vision.image_size", what, "set it there"));
    }
    if out.len() > before {
        return;
    }
    let with = |table: &Table| {
        let mut config = config.clone();
        config.model.shape = table.clone();
        network::vla_config(&config).err()
    };
    let Some(error) = with(settings) else { return };
    let Error::Setting { source: cause, .. } = &error else {
        out.push(source.problem(SHAPE, error.to_string(), ""));
        return;
    };
    out.push(match cause.downcast_ref::<efference_nets::Error>() {
        Some(efference_nets::Error::Config { field, got, expected }) => {
            let field = match *field {
                "vision.image_size" => "env.image_size".into(),
                field => format!("{SHAPE}.{field}"),
            };
            source.problem(&field, format!("{got} makes no network"), format!("allowed: {expected}"))
        }
        _ => {
            let field = culprit(settings, SHAPE, &|table| with(table).is_some());
            source.problem(&field, cause.to_string(), "")
        }
    });
}

/// The first key of `table` that is refused on its own; the whole section if they are refused together only.
fn culprit(table: &Table, path: &str, refused: &dyn Fn(&Table) -> bool) -> String {
    leaves(table, &mut Vec::new())
        .into_iter()
        .find(|(keys, value)| {
            let mut alone = (*value).clone();
            for key in keys.iter().rev() {
                alone = Value::Table(Table::from_iter([((*key).to_string(), alone)]));
            }
            alone.as_table().is_some_and(refused)
        })
        .map_or_else(|| path.into(), |(keys, _)| format!("{path}.{}", keys.join(".")))
}

/// Every value that is no table, with the keys that lead to it.
fn leaves<'t>(table: &'t Table, above: &mut Vec<&'t str>) -> Vec<(Vec<&'t str>, &'t Value)> {
    let mut out = Vec::new();
    for (key, value) in table {
        above.push(key);
        match value {
            Value::Table(inner) => out.extend(leaves(inner, above)),
            value => out.push((above.clone(), value)),
        }
        above.pop();
    }
    out
}
