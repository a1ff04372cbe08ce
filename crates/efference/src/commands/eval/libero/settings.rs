//! Every setting that moves LIBERO numbers, as it is stored, compared and printed.

use efference_envs::libero::{Pack, Profile, SimOptions};
use efference_mujoco::{Model, RenderQuality, Renderer};
use efference_rollout::libero::Protocol;
use efference_train::checkpoint::sha256;
use serde_json::{Map, Value, json};

use super::Opened;
use crate::errors::{Failure, Result};
use crate::ui::Ui;

/// The settings of an evaluation. Two that are equal here give equal results.
pub(super) fn collect(
    suite: &str,
    protocol: &Protocol,
    options: &SimOptions,
    packs: &Opened,
    policy: Value,
) -> Result<Value> {
    let mut hashes = Map::new();
    let mut looks = Vec::new();
    for (task, pack) in packs {
        hashes.insert(task.to_string(), hash(pack, options.profile)?.into());
        let info = look(pack, options.profile);
        if !looks.contains(&info) {
            looks.push(info);
        }
    }
    Ok(json!({
        "suite": suite,
        "program": concat!("efference ", env!("CARGO_PKG_VERSION")),
        "mujoco": efference_envs::mujoco_version(),
        "renderer": renderer(),
        "simulation": options,
        "pictures_of_packs": if looks.len() == 1 { looks.remove(0) } else { looks.into() },
        "packs_sha256": hashes,
        "initial_states": "saved state i and entry i of the table of fixture poses",
        "protocol": protocol,
        "policy": policy,
    }))
}

/// The commit that this program was built from. Stored, but no reason to refuse a resume.
pub(super) fn commit() -> &'static str {
    option_env!("EFFERENCE_COMMIT").unwrap_or("unknown")
}

/// The driver of offscreen pictures; software and hardware draw differently.
fn renderer() -> String {
    let made = Model::from_xml_string("<mujoco/>")
        .and_then(|model| Renderer::new(&model, 64, 64, RenderQuality::FAST).map(|mut r| r.driver()));
    made.unwrap_or_else(|error| format!("none ({})", error.to_string().lines().next().unwrap_or_default()))
}

/// Colour space, texture cap and triangles of what is drawn.
fn look(pack: &Pack, profile: Profile) -> Value {
    let info = &pack.meta.pack_info;
    let name = if profile == Profile::Fast { "fast" } else { "faithful" };
    let variant = info.get("variants").and_then(|variants| variants.get(name)).unwrap_or(&Value::Null);
    let of = |field: &str| variant.get(field).or_else(|| info.get(field)).cloned().unwrap_or(Value::Null);
    json!({
        "colorspace": of("colorspace"),
        "texture_cap_px": of("texture_cap"),
        "most_triangles": of("mesh_max_faces"),
    })
}

/// Of the files that decide how a task is simulated.
fn hash(pack: &Pack, profile: Profile) -> Result<String> {
    let mut names = vec!["meta.json", "model.xml", pack.meta.init_states.file.as_str()];
    if profile == Profile::Fast && pack.dir.join("model_fast.xml").is_file() {
        names.push("model_fast.xml");
    }
    let mut sums = String::new();
    for name in names {
        let path = pack.dir.join(name);
        let bytes = std::fs::read(&path)
            .map_err(|e| Failure::from(e).doing(format!("cannot read `{}`", path.display())))?;
        sums += &format!("{name} {}\n", sha256(&bytes));
    }
    Ok(sha256(sums.as_bytes())[..16].to_owned())
}

/// One line per setting.
pub(super) fn lines(settings: &Value) -> Vec<(String, String)> {
    let of = |path: &[&str]| path.iter().try_fold(settings, |value, name| value.get(name));
    let text = |path: &[&str]| match of(path) {
        None | Some(Value::Null) => "unknown".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    let executed = match of(&["protocol", "executed"]) {
        None | Some(Value::Null) => "all".to_owned(),
        Some(value) => value.to_string(),
    };
    let seed = text(&["protocol", "seed"]);
    let steps = format!("{} + {} idle", text(&["protocol", "max_steps"]), text(&["protocol", "idle_steps"]));
    let pictures = format!(
        "{} (drawn {} px, colorspace {}, textures <= {} px)",
        text(&["protocol", "images"]),
        text(&["simulation", "image_size"]),
        text(&["pictures_of_packs", "colorspace"]),
        text(&["pictures_of_packs", "texture_cap_px"])
    );
    let mut lines = vec![
        ("program".to_owned(), format!("{}, commit {}", text(&["program"]), commit())),
        ("MuJoCo".into(), text(&["mujoco"])),
        ("renderer".into(), text(&["renderer"])),
        ("substeps".into(), text(&["simulation", "order"])),
        ("profile".into(), text(&["simulation", "profile"])),
        ("protocol".into(), text(&["protocol", "name"])),
        ("pictures".into(), pictures),
        ("control steps".into(), steps),
        ("executed actions".into(), executed),
        ("gripper".into(), text(&["protocol", "gripper"])),
        ("instruction".into(), text(&["protocol", "instruction"])),
        ("quaternion".into(), text(&["protocol", "quaternion"])),
        ("initial states".into(), text(&["initial_states"])),
        ("seed".into(), seed),
        ("policy".into(), text(&["policy", "kind"])),
    ];
    for (name, field) in
        [("chunk", "chunk"), ("temperature", "temperature"), ("action statistics", "action_statistics")]
    {
        if of(&["policy", field]).is_some() {
            lines.push((name.into(), text(&["policy", field])));
        }
    }
    if let Some(Value::Object(hashes)) = of(&["packs_sha256"]) {
        let all: Vec<String> =
            hashes.iter().map(|(task, sum)| format!("{task} {}", sum.as_str().unwrap_or(""))).collect();
        let sum = sha256(all.join("\n").as_bytes());
        lines.push(("packs".into(), format!("{} tasks, sha256 {}", hashes.len(), &sum[..16])));
    }
    lines
}

pub(super) fn tell(settings: &Value, ui: &Ui) {
    for (name, value) in lines(settings) {
        let shown: String = value.chars().take(160).collect();
        ui.note(format!("  {name:17} {shown}"));
    }
}
