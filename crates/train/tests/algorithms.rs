//! Every algorithm that reads nothing but what tabletop rollouts give goes through the one training loop there is, and
//! those with a memory go on from a checkpoint as if nothing had happened. The policy is too small and too new to
//! succeed, so what is checked is that nothing is missing, refused or not finite, not that it learns.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use efference_objectives::algorithms;
use efference_train::checkpoint::Checkpoint;
use efference_train::config::TrainConfig;
use efference_train::report::{Event, Reporter, Silent, StopFlag};
use efference_train::run_dir::Taken;
use efference_train::{metrics, rl, run};

const CONFIG: &str = r#"
[run]
name = "small"
threads = 2
[env]
tasks = ["press_button", "push_block_to_mark"]
image_size = 32
max_steps = 24
[model.shape]
placeholders = "learned"
text = { hidden_size = 32, num_hidden_layers = 1, intermediate_size = 48 }
vision = { hidden_size = 24, num_hidden_layers = 1, intermediate_size = 32, patch_size = 16 }
[rl]
iterations = 2
prompts = 2
group = 4
mini_batch = 8
temperature = 1.0
lr = 1e-3
encoder.frames = 2
critic = { hidden = 8 }
[eval]
episodes_per_task = 0
[checkpoint]
every = 1
keep_last = 9
[record]
rerun = false
"#;

fn config(out: &Path, name: &str, sets: &[&str]) -> TrainConfig {
    let mut all = vec![format!("run.out={}", out.display()), format!("run.name={name}")];
    all.push(format!("rl.algorithm={name}"));
    all.extend(sets.iter().map(|s| s.to_string()));
    TrainConfig::from_text(Path::new("small.toml"), CONFIG, &all).unwrap_or_else(|e| panic!("{e}"))
}

/// Algorithms whose blocks read nothing else.
fn trainable() -> Vec<&'static str> {
    let text = TrainConfig::from_text(Path::new("small.toml"), CONFIG, &[]).unwrap();
    let inputs = rl::inputs(text.rl.as_ref().unwrap());
    let fits =
        |p: &&efference_objectives::Paper| (p.recipe)().build().is_ok_and(|o| o.check(&inputs).is_ok());
    algorithms().into_iter().filter(fits).map(|p| p.id).collect()
}

#[test]
fn whatever_fits_runs() {
    let names = trainable();
    println!("{} algorithms: {}", names.len(), names.join(", "));
    assert_eq!(names.len(), 24, "README and notes say how many: {names:?}");
    for name in names {
        let dir = tempfile::tempdir().unwrap();
        let done = run::start(&config(dir.path(), name, &[]), Taken::Refuse, &Silent, &StopFlag::new())
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let rows = metrics::read(&done.run.join("metrics.jsonl")).unwrap();
        let rl: Vec<_> = rows.iter().filter(|r| r.stage == "rl").collect();
        assert_eq!(rl.len(), 2, "{name}");
        for row in rl {
            let odd = row.values.iter().find(|(_, x)| !x.is_finite());
            let skipped = row.values.get("skipped_steps").copied().unwrap_or(0.0);
            assert!(odd.is_none() && skipped == 0.0, "{name}: {odd:?}, {skipped} skipped");
        }
    }
}

/// Asks for a stop after the first iteration.
struct StopAfterOne<'s>(&'s StopFlag);

impl Reporter for StopAfterOne<'_> {
    fn report(&self, event: &Event) {
        if matches!(event, Event::Metrics { .. }) {
            self.0.request();
        }
    }
}

#[test]
fn what_an_algorithm_remembers_goes_on_from_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let load = |run: &Path| Checkpoint::load(run).unwrap();
    let bits = |c: &Checkpoint| -> Vec<u32> {
        let all = c.model.values().flat_map(|x| x.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        all.map(f32::to_bits).collect()
    };
    let whole = config(&dir.path().join("a"), "dcpo", &[]);
    let whole = load(&run::start(&whole, Taken::Refuse, &Silent, &StopFlag::new()).unwrap().run);

    let (parted, stop) = (config(&dir.path().join("b"), "dcpo", &[]), StopFlag::new());
    let parted = run::start(&parted, Taken::Refuse, &StopAfterOne(&stop), &stop).unwrap().run;
    let half = load(&parted).state.objective;
    assert!(!half.is_empty() && half != whole.state.objective);
    run::resume(&parted, &[], &Silent, &StopFlag::new()).unwrap();
    let parted = load(&parted);
    assert_eq!(parted.state.objective, whole.state.objective);
    assert_eq!(bits(&parted), bits(&whole));
}
