//! The program as a person or a script meets it.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use efference_data::{EpisodeStore, RgbImage};
use serde_json::Value;

fn efference(arguments: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    Command::new(env!("CARGO_BIN_EXE_efference")).args(arguments).current_dir(root).output().unwrap()
}

/// Standard output of a command that must succeed.
fn out(arguments: &[&str]) -> String {
    let output = efference(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Exit code and standard error of a command that must fail, which is one clear error.
fn err(arguments: &[&str]) -> (i32, String) {
    let output = efference(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains("panicked"), "{arguments:?}: {text}");
    (output.status.code().unwrap(), text)
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

#[test]
fn the_repositorys_vectors_pass() {
    let text = out(&["conformance", "tests/golden"]);
    let last = text.lines().last().unwrap();
    assert!(last.starts_with("688 passed, 0 failed"), "{last}");
    let lines = json_lines(&out(&["--json", "conformance", "tests/golden/srpo.json"]));
    assert_eq!((lines.len(), &lines[12]["passed"], &lines[0]["verdict"]), (13, &12.into(), &"passed".into()));
}

#[test]
fn a_wrong_vector_is_shown_with_its_place_and_fails() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wrong.json");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/srpo.json");
    let mut vectors: Value = serde_json::from_str(&std::fs::read_to_string(root).unwrap()).unwrap();
    vectors["cases"][1]["outputs"]["distance"]["data"][3] = 1e3.into();
    std::fs::write(&file, vectors.to_string()).unwrap();
    let output = efference(&["conformance", file.to_str().unwrap()]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let place = "no_cluster_uses_mean_of_successes: output `distance`: worst error 9.862e-1 at index 3";
    assert!(text.contains(place), "{text}");
    assert!(text.lines().last().unwrap().starts_with("11 passed, 1 failed"), "{text}");
    std::fs::write(&file, r#"{"id": "unheard_of", "cases": []}"#).unwrap();
    assert_eq!(err(&["conformance", file.to_str().unwrap()]).0, 1, "nothing replayed is no success");
}

#[test]
fn algorithms_are_listed_with_what_verifies_them() {
    let text = out(&["algorithms"]);
    let srpo = text.lines().find(|line| line.starts_with("srpo")).unwrap();
    assert!(srpo.contains("2511.15605") && srpo.contains("12/12"), "{srpo}");
    let lines = json_lines(&out(&["algorithms", "--json"]));
    assert!(lines.iter().any(|line| line["algorithm"] == "grpo" && line["passed"] == line["cases"]));
}

#[test]
fn an_algorithm_is_shown_as_a_composition() {
    let text = out(&["algorithms", "papo"]);
    for part in
        ["2507.06448", "perception_kl", "clip_high = 0.3", "aug_log_probs", "configs/algorithms/papo.toml"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let lines = json_lines(&out(&["algorithms", "papo", "--json"]));
    assert_eq!(lines[0]["composition"]["surrogate"]["kind"], "clipped_ratio");
    let (code, message) = err(&["algorithms", "papi"]);
    assert!(code == 1 && message.contains("papo"), "{code} {message}");
}

#[test]
fn demonstrations_are_made_listed_and_added_to() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("deep/demos");
    let dir = store.to_str().unwrap();
    let make = ["demos", "tabletop", "--out", dir, "--task", "press_button", "--image-size", "16"];
    let text = out(&make);
    assert!(text.contains("press_button  1       0"), "{text}");
    let listed = out(&["demos", "list", dir, "--check"]);
    assert!(listed.contains("press the button") && listed.contains("1 whole, 0 damaged"), "{listed}");
    let episode = EpisodeStore::open(&store).unwrap().load(0).unwrap();
    assert!(episode.meta.success && episode.frames() == episode.steps() && episode.states.is_some());

    let (code, text) = err(&make);
    assert!(code == 1 && text.contains("already holds 1 episode") && text.contains("--append"), "{text}");
    out(&[&make[..], &["--append", "--per-task", "2"]].concat());
    let entries = EpisodeStore::open(&store).unwrap().entries().to_vec();
    assert!(entries.len() == 2 && entries[0].meta.seed != entries[1].meta.seed);

    std::fs::write(store.join(&entries[1].file), "damaged").unwrap();
    let output = efference(&["demos", "list", dir, "--check"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&entries[1].file) && text.contains("1 whole, 1 damaged"), "{text}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn the_number_of_threads_leaves_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let index = |threads: &str| {
        let store = folder.path().join(threads);
        let arguments = ["demos", "tabletop", "--per-task", "3", "--image-size", "16", "--noise", "0.3"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_efference"));
        command.args(arguments).args(["--task", "open_drawer", "--out"]).arg(&store);
        assert!(command.env("RAYON_NUM_THREADS", threads).output().unwrap().status.success());
        std::fs::read_to_string(store.join("index.json")).unwrap()
    };
    assert_eq!(index("1"), index("3"));
}

#[test]
fn an_unknown_task_names_the_nearest() {
    let (code, text) = err(&["demos", "tabletop", "--out", "/tmp/never", "--task", "open_drawr"]);
    assert_eq!(code, 2);
    assert!(text.contains("'open_drawr'") && text.contains("similar value exists: 'open_drawer'"), "{text}");
}

#[test]
fn a_folder_that_cannot_be_made_is_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let below = folder.path().join("file/demos");
    let (code, text) = err(&["demos", "tabletop", "--out", below.to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(text.starts_with("error: cannot write `") && text.contains("file, not a folder"), "{text}");
    assert_eq!(text.matches("error: ").count(), 1, "{text}");
}

#[test]
fn what_is_not_there_is_named() {
    for arguments in [
        &["demos", "list", "/nowhere"][..],
        &["demos", "import", "/nowhere", "--out", "/tmp/never", "--assets", "/nowhere"],
        &["view", "/nowhere"],
        &["conformance", "/nowhere"],
    ] {
        let (code, text) = err(arguments);
        assert!(
            code == 1 && text.starts_with("error: ") && text.contains("/nowhere"),
            "{arguments:?}: {text}"
        );
    }
}

#[test]
fn json_is_one_object_per_line_also_for_errors() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("demos");
    let dir = store.to_str().unwrap();
    let lines = json_lines(&out(&["--json", "demos", "tabletop", "--task", "press_button", "--out", dir]));
    let events: Vec<&str> = lines.iter().filter_map(|line| line["event"].as_str()).collect();
    assert_eq!(events, ["stage", "progress"]);
    assert_eq!(lines.last().unwrap()["stored"], 1);
    assert_eq!(json_lines(&out(&["demos", "list", dir, "--json"]))[0]["task"], "press_button");
    let (_, text) = err(&["view", "/nowhere", "--json"]);
    assert!(json_lines(&text)[0]["error"].as_str().unwrap().contains("/nowhere"));
    let (code, text) = err(&["demos", "list", "--json"]);
    assert_eq!((code, json_lines(&text)[0]["exit_code"].as_u64()), (2, Some(2)));
}

#[test]
fn the_doctor_finds_what_the_tests_need() {
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path().join("runs");
    let text = out(&["doctor", "--runs", runs.to_str().unwrap()]);
    for line in ["ok        MuJoCo", "ok        EGL", "ok        tabletop", "ok        run folder"] {
        assert!(text.contains(line), "{text}");
    }
    assert!(!runs.exists());
    std::fs::write(&runs, "").unwrap();
    let output = efference(&["doctor", "--runs", runs.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("missing: run folder"));
}

#[test]
fn quiet_says_only_results() {
    let output = efference(&["--quiet", "algorithms"]);
    assert!(output.status.success() && output.stderr.is_empty() && !output.stdout.is_empty());
}

#[test]
fn recorded_libero_demonstrations_become_episodes() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["libero_demo.hdf5", "libero_lerobot_v2", "libero_lerobot_v3"] {
        let dir = folder.path().join(name);
        let dir = dir.to_str().unwrap();
        let from = format!("crates/data/tests/fixtures/{name}");
        let lines = json_lines(&out(&["--json", "demos", "import", &from, "--out", dir, "--drop-idle"]));
        let episodes: u64 = lines.iter().filter_map(|line| line["episodes"].as_u64()).sum();
        let dropped: u64 = lines.iter().filter_map(|line| line["idle_steps_dropped"].as_u64()).sum();
        assert_eq!((episodes, dropped), (2, 2), "{name}");
        let store = EpisodeStore::open(dir).unwrap();
        let first = store.load(0).unwrap();
        assert_eq!((store.len(), first.steps(), first.actions[0][6]), (2, 4, -1.0), "{name}");
        assert_eq!(err(&["demos", "import", &from, "--out", dir]).0, 1, "the folder holds episodes");
    }
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let out = folder.path().join("out");
    let (code, text) = err(&["demos", "import", empty.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert!(code == 1 && text.contains("meta/info.json") && text.contains("LeRobot"), "{text}");
}

#[test]
fn libero_tasks_that_are_not_there_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("out");
    let demos = |arguments: &[&str]| {
        let all = [&["demos", "libero", "--out", dir.to_str().unwrap()], arguments].concat();
        err(&all)
    };
    let (code, text) = demos(&["--suite", "libero_spatail"]);
    assert!(code == 2 && text.contains("did you mean libero_spatial?"), "{text}");
    let (code, text) = demos(&["--suite", "libero_goal", "--task", "10"]);
    assert!(code == 2 && text.contains("its tasks are 0 to 9"), "{text}");
    assert_eq!(demos(&["--noise", "1"]).0, 2);
    assert!(!dir.exists());
}

#[test]
fn pictures_and_two_networks_become_flow() {
    let folder = tempfile::tempdir().unwrap();
    let (clip, set) = (folder.path().join("clip"), folder.path().join("set"));
    std::fs::create_dir(&clip).unwrap();
    std::fs::write(
        clip.join("clip.json"),
        r#"{"instruction": "Slide the card", "task": "slide", "fx": 90, "fy": 90, "cx": 49, "cy": 42}"#,
    )
    .unwrap();
    for t in 0..14u32 {
        // A white card on black, at rest at first.
        let left = 14 + 4 * t.saturating_sub(5);
        let card = |x, y| (left..left + 20).contains(&x) && (30..50).contains(&y);
        let picture =
            RgbImage::from_fn(98, 84, |x, y| if card(x, y) { [255; 3].into() } else { [0; 3].into() });
        picture.save(clip.join(format!("{t:03}.png"))).unwrap();
    }
    let network = |name: &str| format!("{}/../nets/tests/fixtures/{name}.onnx", env!("CARGO_MANIFEST_DIR"));
    let (depth, tracker) = (network("depth"), network("tracker"));
    let (clip, set) = (clip.to_str().unwrap(), set.to_str().unwrap());
    let made = out(&[
        "data",
        "video",
        clip,
        "--out",
        set,
        "--depth-net",
        &depth,
        "--track-net",
        &tracker,
        "--grid",
        "20",
        "--depth-scale",
        "0.4",
    ]);
    assert!(made.contains("1 episode made"), "{made}");
    assert!(out(&["data", "check", set]).contains("1 episode"), "the set is whole");
    let store = efference_data::flow::FlowStore::open(Path::new(set)).unwrap();
    let episode = store.load(0).unwrap();
    let (first, last) = (episode.flow.at(0), episode.flow.at(episode.flow.frames() - 1));
    // White is 2.5 for the network, here 1 m; 32 pixels to the right at 90 pixels of focal length are 36 cm.
    for (a, b) in first.iter().zip(last) {
        let moved = b - a;
        assert!((moved.norm() - 32.0 / 90.0).abs() < 0.01 && moved.y < -0.34, "{moved}");
    }
    let (code, text) = err(&["data", "video", clip, "--out", set, "--track-net", &tracker]);
    assert!(code != 0 && text.contains("--depth-net"), "{text}");
}
