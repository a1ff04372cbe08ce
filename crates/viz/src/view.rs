//! Finding the rerun viewer, which is installed apart from this program.

use crate::error::{Error, Result};
use crate::recorder::RRD_FILE;
use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Command that installs a viewer for our recordings.
pub const INSTALL: &str = "pip install rerun-sdk==0.36.3";
/// Versions of the viewer that read our recordings: the same minor version.
pub const WANTED: &str = "0.36.x";
const WANTED_PREFIX: &str = "0.36.";

/// A viewer that fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Viewer {
    /// Program and its leading arguments: `rerun`, or `python3 -m rerun`.
    pub command: Vec<OsString>,
    /// Its version.
    pub version: String,
}

impl Viewer {
    /// Looks for `rerun`, then for the Python package, in the folders of `PATH`.
    ///
    /// # Errors
    /// [`Error::ViewerVersion`] if only other versions are there, [`Error::ViewerMissing`] if none is; both say
    /// how to install one.
    pub fn find() -> Result<Self> {
        Self::find_in(&env::var_os("PATH").unwrap_or_default())
    }

    /// As [`Viewer::find`], with folders separated as in `PATH`.
    ///
    /// # Errors
    /// As [`Viewer::find`].
    pub fn find_in(search_path: &OsStr) -> Result<Self> {
        let mut other = None;
        for (program, arguments) in
            [("rerun", &[][..]), ("python3", &["-m", "rerun"]), ("python", &["-m", "rerun"])]
        {
            let Some(file) = executable(search_path, program) else { continue };
            let command: Vec<OsString> =
                std::iter::once(file.into()).chain(arguments.iter().map(OsString::from)).collect();
            match version_of(&command) {
                Some(version) if version.starts_with(WANTED_PREFIX) => return Ok(Self { command, version }),
                Some(found) => {
                    let command = [&[program], arguments].concat().join(" ");
                    other.get_or_insert(Error::ViewerVersion {
                        command,
                        found,
                        wanted: WANTED,
                        install: INSTALL,
                    });
                }
                None => {}
            }
        }
        Err(other.unwrap_or(Error::ViewerMissing { install: INSTALL }))
    }

    /// The command that opens `recording`, ready to spawn.
    #[must_use]
    pub fn open_command(&self, recording: &Path) -> Command {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).arg(recording);
        command
    }
}

/// The recording of `run`: the file itself, or [`RRD_FILE`] inside the folder.
///
/// # Errors
/// [`Error::NoRecording`] with the path that was tried.
pub fn recording_of(run: &Path) -> Result<PathBuf> {
    let path = if run.is_dir() { run.join(RRD_FILE) } else { run.to_path_buf() };
    if path.is_file() { Ok(path) } else { Err(Error::NoRecording { path }) }
}

fn executable(search_path: &OsStr, program: &str) -> Option<PathBuf> {
    env::split_paths(search_path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// `rerun --version` prints `rerun-cli 0.36.3 (features) …`; anything else is some other program.
fn version_of(command: &[OsString]) -> Option<String> {
    let mut process = Command::new(&command[0]);
    let output = process.args(&command[1..]).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with("rerun"))?;
    let version = line.split_whitespace().nth(1)?;
    version.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn fake(dir: &Path, program: &str, answer: &str) {
        let file = dir.join(program);
        fs::write(&file, format!("#!/bin/sh\necho '{answer}'\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn finds_the_right_version_or_says_how_to_install_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let missing = Viewer::find_in(path.as_os_str()).unwrap_err().to_string();
        assert!(missing.ends_with("pip install rerun-sdk==0.36.3"), "{missing}");

        fake(path, "rerun", "rerun-cli 0.22.1 (map_view) [rustc]");
        let old = Viewer::find_in(path.as_os_str()).unwrap_err().to_string();
        assert!(old.contains("`rerun` is version 0.22.1") && old.contains(INSTALL), "{old}");

        fake(path, "python3", "rerun-cli 0.36.1 (map_view)");
        let viewer = Viewer::find_in(path.as_os_str()).unwrap();
        assert_eq!(viewer.command, [path.join("python3").into_os_string(), "-m".into(), "rerun".into()]);

        fake(path, "rerun", "rerun-cli 0.36.3 (map_view)");
        let viewer = Viewer::find_in(path.as_os_str()).unwrap();
        assert_eq!(viewer.version, "0.36.3");
        let command = viewer.open_command(Path::new("run/recording.rrd"));
        assert_eq!(command.get_args().collect::<Vec<_>>(), ["run/recording.rrd"]);

        fake(path, "python3", "No module named rerun");
        fake(path, "rerun", "usage: rerun COMMAND again and again");
        assert!(matches!(Viewer::find_in(path.as_os_str()), Err(Error::ViewerMissing { .. })));
    }

    #[test]
    fn a_run_without_recording_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            matches!(recording_of(dir.path()), Err(Error::NoRecording { path }) if path.ends_with(RRD_FILE))
        );
        fs::write(dir.path().join(RRD_FILE), b"RRF2").unwrap();
        assert_eq!(recording_of(dir.path()).unwrap(), dir.path().join(RRD_FILE));
    }
}
