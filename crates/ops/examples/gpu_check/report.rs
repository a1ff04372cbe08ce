//! What the numbers were measured on, and the file they go into.

use std::fmt;
use std::path::Path;
use std::process::Command;

use crate::Result;

const BEGIN: &str = "<!-- gpu: begin -->";
const END: &str = "<!-- gpu: end -->";

/// Card, driver, day, commit.
pub(crate) struct Machine {
    card: String,
    day: String,
    commit: &'static str,
}

fn line(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

impl Machine {
    pub fn look(ordinal: usize) -> Self {
        let id = ordinal.to_string();
        let query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader", "-i", &id];
        let unknown = || "unknown card (no nvidia-smi)".to_owned();
        Machine {
            card: line("nvidia-smi", &query).unwrap_or_else(unknown),
            day: line("date", &["-u", "+%Y-%m-%d"]).unwrap_or_else(|| "unknown day".to_owned()),
            commit: option_env!("EFFERENCE_COMMIT").unwrap_or("unknown"),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (card, driver, memory), {}, commit {}", self.card, self.day, self.commit)
    }
}

/// Replaces what stands between the markers of `path`.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    let old =
        std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let parts = old.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let Some((before, after)) = parts else {
        return Err(format!("{} lacks the lines `{BEGIN}` and `{END}`", path.display()).into());
    };
    let new = format!("{before}{BEGIN}\n{}\n{END}{after}", text.trim());
    std::fs::write(path, new).map_err(|error| format!("cannot write {}: {error}", path.display()).into())
}
