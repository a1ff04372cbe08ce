//! Lets the program find libmujoco.so when it is started without cargo, and tells it the commit it was built from.

use std::process::Command;

fn main() {
    if let Ok(folder) = std::env::var("DEP_MUJOCO_LIB_DIR") {
        println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{folder}");
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=EFFERENCE_COMMIT");
    if std::env::var_os("EFFERENCE_COMMIT").is_some() {
        return;
    }
    // Without git, or outside a checkout, the commit stays unknown.
    if let (Some(commit), Some(log)) =
        (git(&["rev-parse", "--short=12", "HEAD"]), git(&["rev-parse", "--git-path", "logs/HEAD"]))
    {
        println!("cargo::rustc-env=EFFERENCE_COMMIT={commit}");
        println!("cargo::rerun-if-changed={log}");
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output =
        Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}
