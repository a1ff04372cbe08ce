//! Ctrl-C in the middle of the work.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use efference_data::EpisodeStore;

#[test]
fn an_interrupted_job_keeps_what_it_has_and_can_be_finished() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("demos");
    let efference = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_efference"));
        command.args(["--json", "demos", "tabletop", "--image-size", "16", "--task", "press_button"]);
        command.arg("--out").arg(&store).args(more).stdout(Stdio::piped());
        command
    };
    let mut child = efference(&["--per-task", "5000"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.find(|line| line.as_ref().unwrap().contains("progress")).unwrap().unwrap();
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    for line in lines {
        line.unwrap();
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let stored = EpisodeStore::open(&store).unwrap().len();
    assert!((1..5000).contains(&stored), "{stored}");

    let wanted = (stored + 1).to_string();
    assert!(efference(&["--append", "--per-task", &wanted]).output().unwrap().status.success());
    let seeds: Vec<u64> =
        EpisodeStore::open(&store).unwrap().entries().iter().map(|entry| entry.meta.seed).collect();
    let distinct: std::collections::BTreeSet<u64> = seeds.iter().copied().collect();
    assert_eq!((seeds.len(), distinct.len()), (stored + 1, stored + 1));
}
