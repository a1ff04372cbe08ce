//! File + `--set` overrides + defaults → one checked [`TrainConfig`](super::TrainConfig).
//!
//! serde alone would stop at the first fault and forget which command-line argument or line it came from.
//! So the merged tree is walked against the settings' own descriptions first, all faults are collected with
//! their places, and serde then only copies values that are known to fit.

use std::collections::BTreeMap;
use std::ops::Range as Span;
use std::path::Path;

use toml::de::DeTable;
use toml::{Table, Value};

use super::error::{ConfigError, Place, Problem};
use super::settings::{Check, Field, Kind};

/// The merged tree and where each part of it was written.
pub(super) struct Source {
    pub(super) tree: Table,
    /// All settings there are, to say where a key that is unknown here belongs.
    pub(super) known: Vec<Field>,
    places: BTreeMap<String, Place>,
}

impl Source {
    /// Parses `text`, which was read from `file`, and remembers where every key stands.
    pub(super) fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let place = |span: Span<usize>| at(file, text, span.start);
        let spanned = DeTable::parse(text).map_err(|e| syntax(&e, place(e.span().unwrap_or(0..0))))?;
        let mut places = BTreeMap::new();
        remember(spanned.get_ref(), "", &place, &mut places);
        let tree = text.parse::<Table>().map_err(|e| syntax(&e, place(e.span().unwrap_or(0..0))))?;
        Ok(Self { tree, known: super::fields(), places })
    }

    /// Applies one `section.key=value`. The value is read as TOML; a bare word is text, and `a,b` is a list
    /// where the setting holds a list, so that a shell needs no second layer of quotes.
    pub(super) fn set(&mut self, text: &str, fields: &[Field]) -> Result<(), ConfigError> {
        let bad = || ConfigError::Override { text: text.into() };
        let (path, raw) = text.split_once('=').ok_or_else(bad)?;
        let (path, raw) = (path.trim(), raw.trim());
        let keys: Vec<&str> = path.split('.').map(str::trim).collect();
        if keys.iter().any(|k| k.is_empty()) {
            return Err(bad());
        }
        let value = read_value(raw, find(fields, &keys).map(|f| f.kind));
        let (last, parents) = keys.split_last().ok_or_else(bad)?;
        let mut table = &mut self.tree;
        let mut walked = String::new();
        for key in parents {
            join(&mut walked, key);
            self.places.entry(walked.clone()).or_insert_with(|| Place::Set(text.into()));
            let entry = table.entry((*key).to_string()).or_insert_with(|| Value::Table(Table::new()));
            if !entry.is_table() {
                *entry = Value::Table(Table::new());
            }
            table = entry.as_table_mut().ok_or_else(bad)?;
        }
        // `none` takes an optional stage or limit away; what is not optional refuses it as a wrong type.
        if raw == "none" && find(fields, &keys).is_some_and(|f| f.optional) {
            table.remove(*last);
        } else {
            table.insert((*last).to_string(), value);
        }
        self.places.insert(keys.join("."), Place::Set(text.into()));
        Ok(())
    }

    /// Whether somebody wrote `path`, so that it is not a default.
    pub(super) fn wrote(&self, path: &str) -> bool {
        self.places.contains_key(path)
    }

    /// Where `path`, or the nearest section around it, was written.
    pub(super) fn place(&self, path: &str) -> Place {
        let mut path = path;
        loop {
            if let Some(place) = self.places.get(path) {
                return place.clone();
            }
            match path.rsplit_once('.') {
                Some((parent, _)) => path = parent,
                None => return Place::Default,
            }
        }
    }

    pub(super) fn problem(&self, field: &str, what: impl Into<String>, help: impl Into<String>) -> Problem {
        Problem { place: self.place(field), field: field.into(), what: what.into(), help: help.into() }
    }

    /// Unknown keys, wrong types and refused values of `table` against `fields`, in the file's order.
    pub(super) fn check(&self, table: &Table, fields: &[Field], path: &str, out: &mut Vec<Problem>) {
        for (key, value) in table {
            let here = joined(path, key);
            match fields.iter().find(|f| f.name == key) {
                Some(field) => self.check_value(value, field, &here, out),
                None => {
                    let known: Vec<String> = fields.iter().map(|f| joined(path, f.name)).collect();
                    let what =
                        if path.is_empty() && value.is_table() { "unknown section" } else { "unknown key" };
                    let elsewhere = all_paths(&self.known, "");
                    out.push(self.problem(&here, what, suggest_key(key, path, &known, &elsewhere)));
                }
            }
        }
    }

    fn check_value(&self, value: &Value, field: &Field, here: &str, out: &mut Vec<Problem>) {
        let fits = match field.kind {
            Kind::Bool => value.is_bool(),
            Kind::Whole => value.is_integer(),
            Kind::Real => value.is_integer() || value.is_float(),
            Kind::Text => value.is_str(),
            Kind::TextList => value.as_array().is_some_and(|a| a.iter().all(Value::is_str)),
            Kind::Table(_) | Kind::Open => value.is_table(),
        };
        if !fits {
            let what = format!("expected {}, got {}", field.kind.words(), got(value));
            out.push(self.problem(here, what, example(field)));
            return;
        }
        if let (Kind::Table(inner), Some(table)) = (field.kind, value.as_table()) {
            self.check(table, &inner(), here, out);
            return;
        }
        match (field.check, number(value)) {
            (Some(Check::In(range)), Some(x)) if !range.contains(x) => {
                out.push(self.problem(here, format!("{value} is out of range"), format!("allowed: {range}")));
            }
            (None, Some(x)) if matches!(field.kind, Kind::Whole) && x < 0.0 => {
                out.push(self.problem(here, format!("{value} is out of range"), "allowed: 0 or more"));
            }
            (None, Some(x)) if !x.is_finite() => {
                out.push(self.problem(here, format!("{value} is not a finite number"), ""));
            }
            _ => {}
        }
        if let (Some(Check::OneOf(list)), Some(word)) = (field.check, value.as_str()) {
            let words = list();
            if !words.iter().any(|known| known == word) {
                out.push(self.problem(here, format!("there is no \"{word}\""), suggest_word(word, &words)));
            }
        }
    }

    /// Unknown keys and wrong types of the section at `path` against `reference`, the same section filled with defaults.
    /// What a text may be only its owner knows.
    pub(super) fn check_like(&self, table: &Table, reference: &Table, path: &str, out: &mut Vec<Problem>) {
        let elsewhere = keys_below(reference, path);
        self.check_below(table, reference, path, &elsewhere, out);
    }

    fn check_below(
        &self,
        table: &Table,
        reference: &Table,
        path: &str,
        elsewhere: &[String],
        out: &mut Vec<Problem>,
    ) {
        for (key, value) in table {
            let here = joined(path, key);
            let Some(model) = reference.get(key) else {
                let known: Vec<String> = reference.keys().map(|k| joined(path, k)).collect();
                out.push(self.problem(&here, "unknown key", suggest_key(key, path, &known, elsewhere)));
                continue;
            };
            match (value, model) {
                (Value::Table(inner), Value::Table(model)) => {
                    self.check_below(inner, model, &here, elsewhere, out);
                }
                (Value::Integer(n), Value::Integer(_)) if *n < 0 => {
                    out.push(self.problem(&here, format!("{n} is out of range"), "allowed: 0 or more"));
                }
                (Value::Integer(_), Value::Float(_)) => {}
                (a, b) if a.same_type(b) => {}
                (a, b) => {
                    let what = format!("expected {}, got {}", type_words(b), got(a));
                    let example = format!("for example: {key} = {}", flat(b));
                    out.push(self.problem(&here, what, if b.is_table() { String::new() } else { example }));
                }
            }
        }
    }
}

/// Dotted paths of every key of `table`, which stands at `path`.
fn keys_below(table: &Table, path: &str) -> Vec<String> {
    let mut out = Vec::new();
    for (key, value) in table {
        let here = joined(path, key);
        if let Value::Table(inner) = value {
            out.extend(keys_below(inner, &here));
        }
        out.push(here);
    }
    out
}

fn syntax(error: &toml::de::Error, place: Place) -> ConfigError {
    ConfigError::Syntax { place, message: error.message().to_string() }
}

/// Line and column, both from 1, of byte `offset`.
fn at(file: &Path, text: &str, offset: usize) -> Place {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    Place::File {
        file: file.to_path_buf(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
    }
}

fn remember(
    table: &DeTable<'_>,
    path: &str,
    place: &impl Fn(Span<usize>) -> Place,
    out: &mut BTreeMap<String, Place>,
) {
    for (key, value) in table.iter() {
        let here = joined(path, key.get_ref());
        out.insert(here.clone(), place(key.span()));
        if let Some(inner) = value.get_ref().as_table() {
            remember(inner, &here, place, out);
        }
    }
}

fn joined(path: &str, key: &str) -> String {
    let mut out = path.to_string();
    join(&mut out, key);
    out
}

fn join(path: &mut String, key: &str) {
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(key);
}

/// The description of the setting at `keys`, if there is one.
fn find(fields: &[Field], keys: &[&str]) -> Option<Field> {
    let (first, rest) = keys.split_first()?;
    let field = fields.iter().find(|f| f.name == *first)?;
    match field.kind {
        _ if rest.is_empty() => Some(field.clone()),
        Kind::Table(inner) => find(&inner(), rest),
        _ => None,
    }
}

fn read_value(raw: &str, kind: Option<Kind>) -> Value {
    let parsed = format!("v = {raw}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
    match (kind, parsed) {
        (Some(Kind::Text), Some(Value::String(text))) => Value::String(text),
        (Some(Kind::Text), _) => Value::String(raw.into()),
        (Some(Kind::TextList), Some(list @ Value::Array(_))) => list,
        (Some(Kind::TextList), _) => {
            let words = raw.trim_matches(['[', ']']).split(',').map(|w| w.trim().trim_matches('"'));
            Value::Array(words.filter(|w| !w.is_empty()).map(|w| Value::String(w.into())).collect())
        }
        (_, Some(value)) => value,
        (_, None) => Value::String(raw.into()),
    }
}

fn number(value: &Value) -> Option<f64> {
    value.as_integer().map(|n| n as f64).or_else(|| value.as_float())
}

fn type_words(value: &Value) -> &'static str {
    match value {
        Value::Boolean(_) => "true or false",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::String(_) => "text in quotes",
        Value::Array(_) => "a list",
        Value::Table(_) => "a section",
        Value::Datetime(_) => "a date",
    }
}

/// The value as one would say it, with its text when that is short.
fn got(value: &Value) -> String {
    match value {
        Value::Boolean(b) => format!("`{b}`"),
        Value::String(_) => format!("the text {}", flat(value)),
        Value::Integer(_) | Value::Float(_) => format!("the number {value}"),
        other => type_words(other).to_string(),
    }
}

fn flat(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(57).chain("...".chars()).collect() }
}

fn example(field: &Field) -> String {
    match (field.kind, field.default.as_str()) {
        (Kind::Table(_) | Kind::Open, _) | (_, "" | "none") => String::new(),
        (_, default) => format!("for example: {} = {default}", field.name),
    }
}

/// Help for an unknown key: the nearest key of the same section, else the key of that name `elsewhere`.
fn suggest_key(key: &str, path: &str, known: &[String], elsewhere: &[String]) -> String {
    let name = |full: &str| full.rsplit('.').next().unwrap_or(full).to_string();
    let mut best: Option<(usize, &str)> = None;
    for full in known {
        let distance = strsim::damerau_levenshtein(key, &name(full));
        if best.is_none_or(|(d, _)| distance < d) {
            best = Some((distance, full));
        }
    }
    if let Some((distance, full)) = best
        && distance <= key.chars().count().max(3) / 2
    {
        return format!("did you mean `{full}`?");
    }
    if let Some(full) = elsewhere.iter().find(|full| name(full) == key) {
        return format!("`{full}` exists; did you mean that one?");
    }
    let names: Vec<String> = known.iter().map(|full| name(full)).collect();
    let nearest = best.map(|(_, full)| format!("; nearest: `{full}`")).unwrap_or_default();
    let owner = if path.is_empty() { "a configuration".into() } else { format!("[{path}]") };
    format!("{owner} knows: {}{nearest}", names.join(", "))
}

/// Help for a word that is not in the list.
pub(super) fn suggest_word(word: &str, known: &[String]) -> String {
    let mut ranked: Vec<&String> = known.iter().collect();
    ranked.sort_by_key(|k| strsim::damerau_levenshtein(word, k));
    match ranked.first() {
        Some(nearest) => format!("nearest: \"{nearest}\"; known: {}", known.join(", ")),
        None => "none is known".into(),
    }
}

fn all_paths(fields: &[Field], path: &str) -> Vec<String> {
    let mut out = Vec::new();
    for field in fields {
        let here = joined(path, field.name);
        if let Kind::Table(inner) = field.kind {
            out.extend(all_paths(&inner(), &here));
        }
        out.push(here);
    }
    out
}
