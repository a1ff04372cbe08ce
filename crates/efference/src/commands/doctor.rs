//! `efference doctor`: what this machine has, what is missing, and the command that brings it.

use std::path::{Path, PathBuf};

use efference_data::atomic;
use efference_envs::Env;
use efference_envs::tabletop::{CAMERAS, TabletopEnv, TabletopOptions, Task, eval_seed};
use efference_mujoco::{Model, RenderQuality, Renderer};
use efference_viz::view::{INSTALL, Viewer};
use serde_json::json;

use crate::commands::doctor_libero;
use crate::errors::{Failure, Result};
use crate::native;
use crate::text::bytes;
use crate::ui::Ui;

/// Say what this machine has, what is missing, and the command that brings it
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The folder that runs will be written to
    #[arg(long, value_name = "DIR", default_value = "runs")]
    runs: PathBuf,
    /// Look at LIBERO instead: packs, gripper sign, image orientation, quaternion, the scripted expert
    #[arg(long)]
    libero: bool,
    /// With --libero: a suite; without, the first task that has a pack is looked at
    #[arg(long, requires = "libero")]
    suite: Option<String>,
    /// With --libero: a checkpoint or run folder whose statistics are looked at
    #[arg(long, value_name = "CHECKPOINT", requires = "libero")]
    policy: Option<PathBuf>,
}

/// What a check found: words for what is there, or what is wrong and the command that helps.
type Found = std::result::Result<String, (String, &'static str)>;

#[derive(Clone, Copy, PartialEq)]
enum Need {
    /// Nothing works without it.
    Required,
    /// Some commands work without it.
    Optional,
    /// Only told.
    Info,
}

pub(crate) fn run(args: &Args, ui: &Ui) -> Result<()> {
    if args.libero {
        return libero(args, ui);
    }
    let checks: [(&str, Need, Found); 10] = [
        ("processor", Need::Info, Ok(processor())),
        ("memory", Need::Info, memory()),
        ("backend", Need::Info, Ok("CPU (this build has no CUDA)".into())),
        ("MuJoCo", Need::Required, Ok(mujoco())),
        ("EGL", Need::Required, headless_opengl()),
        ("tabletop", Need::Required, tabletop()),
        ("run folder", Need::Required, run_folder(&args.runs)),
        ("rerun viewer", Need::Optional, viewer()),
        ("real demonstrations", Need::Optional, real_demonstrations()),
        ("ONNX Runtime", Need::Optional, onnx_runtime()),
    ];
    let mut missing = Vec::new();
    for (what, need, found) in &checks {
        tell(what, *need, found, ui);
        if *need == Need::Required && found.is_err() {
            missing.push(*what);
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(Failure::new(format!("missing: {}", missing.join(", ")))) }
}

/// What makes LIBERO numbers irreproducible; refuses on any mismatch.
fn libero(args: &Args, ui: &Ui) -> Result<()> {
    let checks = doctor_libero::checks(args.suite.as_deref(), args.policy.as_deref())?;
    let mut failure: Option<Failure> = None;
    for (what, found) in &checks {
        tell(what, Need::Required, found, ui);
        if let Err((_, help)) = found {
            let sofar = failure.take().unwrap_or_else(|| Failure::new("LIBERO is not as its data expect"));
            failure = Some(sofar.help(*help));
        }
    }
    failure.map_or(Ok(()), Err)
}

fn tell(what: &str, need: Need, found: &Found, ui: &Ui) {
    let (state, text, command) = match (found, need) {
        (Ok(text), Need::Info) => ("info", text, None),
        (Ok(text), _) => ("ok", text, None),
        (Err((text, command)), Need::Required) => ("missing", text, Some(*command)),
        (Err((text, command)), _) => ("optional", text, Some(*command)),
    };
    let command = command.filter(|command| !command.is_empty());
    ui.object(&json!({ "check": what, "state": state, "found": text, "command": command }));
    ui.line(format!("{state:8}  {what:19}  {text}"));
    if let Some(command) = command {
        ui.line(format!("{:31}$ {command}", ""));
    }
}

fn processor() -> String {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let model = field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.into());
    let cores = if threads == 1 { "1 thread".into() } else { format!("{threads} threads") };
    format!("{cores}, {}", model.trim())
}

fn memory() -> Found {
    let kib = |name| field("/proc/meminfo", name)?.split_whitespace().next()?.parse::<u64>().ok();
    match (kib("MemTotal"), kib("MemAvailable")) {
        (Some(total), Some(free)) => {
            Ok(format!("{}, {} of it available", bytes(total * 1024), bytes(free * 1024)))
        }
        _ => Ok("unknown (no /proc/meminfo)".into()),
    }
}

/// The value of `NAME : VALUE` in a file of the kernel.
fn field(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
}

/// The program does not start without its library, so it is there.
fn mujoco() -> String {
    format!("{} from {}", efference_mujoco::version(), short(Path::new(efference_mujoco::LIBRARY_DIR)))
}

fn onnx_runtime() -> Found {
    // Loaded, not only found.
    let loaded = efference_nets::onnx::runtime().map_err(|e| (first_line(&e), "cargo xtask onnx"))?;
    let library = efference_nets::onnx::runtime_library().unwrap_or_else(|| loaded.into());
    Ok(format!("{}, for `data video`", short(&library)))
}

const NO_OPENGL: &str = "cargo xtask setup";

fn headless_opengl() -> Found {
    let made = Model::from_xml_string("<mujoco/>")
        .and_then(|model| Renderer::new(&model, 64, 64, RenderQuality::FAST).map(|mut r| r.driver()));
    made.map(|driver| format!("offscreen OpenGL by {driver}"))
        .map_err(|error| (first_line(&error), NO_OPENGL))
}

/// Draws a first frame and steps once: the whole path of a rollout.
fn tabletop() -> Found {
    let frame = || -> efference_envs::Result<_> {
        let mut env = TabletopEnv::with_task(Task::PressButton, &TabletopOptions::default())?;
        env.reset(eval_seed(0))?;
        env.step(&[0.0; 7])?;
        env.render(CAMERAS[0])
    };
    let image = frame().map_err(|error| (first_line(&error), NO_OPENGL))?;
    let colours: std::collections::BTreeSet<[u8; 3]> = image.pixels().map(|p| p.0).collect();
    if colours.len() < 16 {
        return Err((format!("the picture is empty ({} colours)", colours.len()), NO_OPENGL));
    }
    Ok(format!("stepped and drawn, {} x {} px", image.width(), image.height()))
}

/// Writes a file as a run would, and takes it away again.
fn run_folder(runs: &Path) -> Found {
    let existed = runs.is_dir();
    let probe = runs.join(format!(".doctor-{}", std::process::id()));
    let written = atomic::write_file(&probe, b"probe");
    // Nothing that was not there before is left.
    let _ = std::fs::remove_file(&probe);
    if !existed {
        let _ = std::fs::remove_dir(runs);
    }
    match written {
        Ok(()) => Ok(format!("{} is writable", runs.display())),
        Err(error) => Err((first_line(&error), "efference doctor --runs ANOTHER_FOLDER")),
    }
}

fn viewer() -> Found {
    match Viewer::find() {
        Ok(viewer) => Ok(format!("{} ({})", viewer.version, viewer.command[0].to_string_lossy())),
        Err(efference_viz::Error::ViewerVersion { found, wanted, .. }) => {
            Err((format!("version {found} is there, {wanted} is needed"), INSTALL))
        }
        Err(_) => Err(("not installed; `efference view` needs it".into(), INSTALL)),
    }
}

fn real_demonstrations() -> Found {
    match native::robosuite() {
        Some(folder) => Ok(format!("three of a person lifting a cube, in {}", short(&folder))),
        None => Err(("not fetched; `efference demos import` can use them".into(), "cargo xtask real-data")),
    }
}

/// A path as seen from here.
fn short(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}

fn first_line(error: &dyn std::error::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
