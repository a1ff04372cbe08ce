#![allow(clippy::unwrap_used)]
use std::path::Path;

use super::*;

const SMALL: &str =
    "[run]\nname = \"a\"\n\n[sft]\nsteps = 5\n\n[rl]\nalgorithm = \"grpo\"\ngroup = 4\nprompts = 8\n";

fn resolve(text: &str, sets: &[&str]) -> Result<TrainConfig, ConfigError> {
    let sets: Vec<String> = sets.iter().map(|s| (*s).to_string()).collect();
    TrainConfig::from_text(Path::new("x.toml"), text, &sets)
}

fn message(text: &str, sets: &[&str]) -> String {
    resolve(text, sets).unwrap_err().to_string()
}

#[test]
fn defaults_fit_their_own_ranges() {
    fn walk(fields: &[Field]) {
        for f in fields {
            if let Kind::Table(inner) = f.kind {
                walk(&inner());
            }
            assert!(!f.doc.trim().is_empty(), "{}", f.name);
            if let Some(Check::In(range)) = f.check
                && f.default != "none"
            {
                assert!(range.contains(f.default.parse().unwrap()), "{} = {}", f.name, f.default);
            }
        }
    }
    walk(&fields());
}

#[test]
fn absent_stages_stay_absent_and_the_rest_takes_defaults() {
    let c = resolve(SMALL, &[]).unwrap();
    assert!(c.pretrain.is_none());
    assert_eq!(c.sft.as_ref().unwrap().steps, 5);
    assert_eq!(c.rl.as_ref().unwrap().temperature, 1.6);
    assert_eq!(c.eval.episodes_per_task, 50);
}

#[test]
fn overrides_win_in_order_and_need_no_shell_quotes() {
    let c = resolve(SMALL, &["rl.group=8", "rl.group=2", "run.name=42", "rl.lr=1", "rl.minutes=2"]).unwrap();
    let rl = c.rl.unwrap();
    assert_eq!((rl.group, c.run.name.as_str(), rl.lr, rl.minutes), (2, "42", 1.0, Some(2.0)));
    // A section that the file does not have appears with its defaults.
    assert_eq!(resolve(SMALL, &["pretrain.steps=3"]).unwrap().pretrain.unwrap().batch, 32);
}

#[test]
fn what_is_written_is_read_back_equal() {
    let c =
        resolve(SMALL, &["rl.objective.surrogate.clip_high=0.28", "rl.minutes=2.5", "sft.lr=3e-4"]).unwrap();
    let again = resolve(&c.to_toml().unwrap(), &[]).unwrap();
    assert_eq!(c, again);
}

#[test]
fn fingerprint_ignores_threads_but_not_the_seed() {
    let print = |sets: &[&str]| resolve(SMALL, sets).unwrap().fingerprint().unwrap();
    assert_eq!(print(&[]), print(&["run.threads=7", "run.name=b", "rl.minutes=3", "record.rerun=false"]));
    assert_eq!(print(&[]), print(&["model.gradient_checkpointing=true"]));
    assert_ne!(print(&[]), print(&["optimizer.kind=adafactor"]));
    assert_ne!(print(&[]), print(&["run.seed=1"]));
    assert_ne!(print(&[]), print(&["rl.lr=0.5"]));
}

#[test]
fn unknown_key_names_file_line_key_and_nearest() {
    let m = message("[rl]\ngroup = 4\ntemperatur = 1.0\n", &[]);
    assert_eq!(m, "x.toml:3:1: `rl.temperatur`: unknown key (did you mean `rl.temperature`?)");
    let m = message("[sfft]\nsteps = 4\n", &[]);
    assert!(m.starts_with("x.toml:1:2: `sfft`: unknown section (did you mean `sft`?)"), "{m}");
    let m = message(SMALL, &["rl.gruop=4"]);
    assert_eq!(m, "--set rl.gruop=4: `rl.gruop`: unknown key (did you mean `rl.group`?)");
    let m = message("[rl]\n[sft]\nprompts = 4\n", &[]);
    assert!(m.contains("x.toml:3:1: `sft.prompts`: unknown key (`rl.prompts` exists"), "{m}");
}

#[test]
fn wrong_type_says_expected_and_got() {
    let m = message("[rl]\ngroup = \"eight\"\n", &[]);
    assert_eq!(
        m,
        "x.toml:2:1: `rl.group`: expected a whole number, got the text \"eight\" (for example: group = 8)"
    );
    assert!(message("rl = 3\n", &[]).contains("`rl`: expected a section, got the number 3"));
    assert!(message(SMALL, &["record.rerun=1"]).contains("expected true or false, got the number 1"));
    assert!(message("[env]\ntasks = [1]\n[rl]\n", &[]).contains("expected a list of texts, got a list"));
}

#[test]
fn out_of_range_says_the_range() {
    let m = message("[rl]\ngroup = -4\n\n[sft]\nbatch = 0\n", &[]);
    assert!(m.contains("x.toml:2:1: `rl.group`: -4 is out of range (allowed: 2 to 1024)"), "{m}");
    assert!(m.contains("x.toml:5:1: `sft.batch`: 0 is out of range (allowed: 1 or more)"), "{m}");
    assert!(message(SMALL, &["rl.lr=nan"]).contains("nan is out of range"));
    assert!(message(SMALL, &["rl.temperature=0"]).contains("allowed: greater than 0, at most 100"));
    assert!(message(SMALL, &["rl.iterations=99999999999999999999"]).contains("expected a whole number"));
}

#[test]
fn unknown_names_list_what_exists() {
    let m = message(SMALL, &["rl.algorithm=srp"]);
    assert!(m.contains("there is no \"srp\" (nearest: \"srpo\"; known: "), "{m}");
    assert!(m.contains("grpo, ") && m.contains("srpo"), "{m}");
}

#[test]
fn not_toml_and_not_an_override() {
    let m = message("[rl]\ngroup = = 3\n", &[]);
    assert!(m.starts_with("x.toml:2:9: not valid TOML: "), "{m}");
    assert!(message(SMALL, &["rl.group"]).contains("expected `section.key=value`"));
    assert!(message(SMALL, &["rl..group=3"]).contains("expected `section.key=value`"));
    let e = TrainConfig::load(Path::new("/nowhere/x.toml"), &[]).unwrap_err();
    assert!(e.to_string().contains("cannot read the configuration `/nowhere/x.toml`"));
}

#[test]
fn settings_that_contradict_each_other() {
    assert!(message(SMALL, &["rl.mini_batch=33"]).contains("an iteration has only 32"));
    assert!(message("[run]\nname = \"x\"\n", &[]).contains("no training stage is configured"));
    assert!(message(SMALL, &["eval.weights=ema"]).contains("no average of the weights is kept"));
    assert!(resolve(SMALL, &["eval.weights=ema", "optimizer.ema=0.99"]).is_ok());
    assert!(message(SMALL, &["optimizer.kind=sgd"]).contains("known: adamw, adamw8bit, adafactor"));
    assert!(message(SMALL, &["optimizer.ema=1"]).contains("out of range"));
    assert!(message(SMALL, &["run.name=../x"]).contains("cannot name a folder"));
}

#[test]
fn the_table_of_settings_shows_every_section() {
    let table = settings_table();
    for section in [
        "[run]",
        "[env]",
        "[model]",
        "[optimizer]",
        "[pretrain]",
        "[sft]",
        "[rl]",
        "[rl.encoder]",
        "[eval]",
        "[record]",
    ] {
        assert!(table.contains(section), "{section}");
    }
    assert!(table.contains("temperature            1.6"));
    let longest = table.lines().max_by_key(|line| line.chars().count()).unwrap();
    assert!(longest.chars().count() < 100, "{longest}");
}

#[test]
fn none_takes_an_optional_setting_or_stage_away() {
    let load = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
        TrainConfig::from_text(std::path::Path::new("x.toml"), "[sft]\n[rl]\nminutes = 3\n", &sets)
    };
    let config = load(&["rl.minutes=none", "sft=none"]).unwrap();
    assert!(config.sft.is_none() && config.rl.unwrap().minutes.is_none());
    assert!(load(&["rl.lr=none"]).unwrap_err().to_string().contains("rl.lr"));
}
