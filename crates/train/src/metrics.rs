//! `metrics.jsonl`: one line of numbers per update, append-only, exact under resume.
//!
//! ```text
//! {"step":120,"stage":"rl","entropy":3.1,"success":0.62,"time/update_secs":4.2}
//! ```
//!
//! `step` counts updates over the whole run. A value that is not finite is `null`. Names are shared by all
//! algorithms so that curves overlay; those that start with `time/`, `speed/` or `memory/` measure the
//! machine and are the only ones that two runs with the same seed may differ in ([`is_reproducible`]).

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use efference_data::atomic;
use serde_json::{Map, Value};

use crate::report::Values;

/// One line of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Update within the run, over all stages, from 1.
    pub step: u64,
    /// `pretrain`, `sft`, `rl`, `eval`.
    pub stage: String,
    /// Named numbers.
    pub values: Values,
}

/// Why the log could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The system refused a write; the log ends with the last whole line.
    #[error(transparent)]
    Write(#[from] atomic::Error),
    /// The log could not be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The log.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The log is shorter than the checkpoint says it was, so it cannot be continued.
    #[error(
        "`{}` has {got} bytes, but the checkpoint was saved when it had {expected}; \
         restore the file, or resume a copy of the run", path.display()
    )]
    Short {
        /// The log.
        path: PathBuf,
        /// Bytes at the time of the checkpoint.
        expected: u64,
        /// Bytes now.
        got: u64,
    },
    /// A line in the middle is not a record.
    #[error("`{}`, line {line}: not a metrics record: {why}", path.display())]
    Line {
        /// The log.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
}

/// Whether two runs with the same configuration must agree in this value bit for bit.
pub fn is_reproducible(name: &str) -> bool {
    !["time/", "speed/", "memory/"].iter().any(|prefix| name.starts_with(prefix))
}

impl Record {
    /// The line without its newline; keys in alphabetical order after `step` and `stage`.
    pub fn to_line(&self) -> String {
        // Written by hand in this order because a JSON map would sort `stage` and `step` into the values.
        let mut line = format!("{{\"step\":{},\"stage\":{}", self.step, Value::from(self.stage.as_str()));
        for (name, x) in &self.values {
            line.push_str(&format!(",{}:{}", Value::from(name.as_str()), Value::from(*x)));
        }
        line.push('}');
        line
    }

    fn from_line(line: &str) -> Result<Self, String> {
        let mut map: Map<String, Value> = serde_json::from_str(line).map_err(|e| e.to_string())?;
        let step = map.remove("step").and_then(|v| v.as_u64()).ok_or("`step` is missing")?;
        let stage =
            map.remove("stage").and_then(|v| v.as_str().map(String::from)).ok_or("`stage` is missing")?;
        let number = |(name, v): (String, Value)| match v {
            Value::Null => Ok((name, f64::NAN)),
            v => v.as_f64().map(|x| (name.clone(), x)).ok_or_else(|| format!("`{name}` is not a number")),
        };
        Ok(Self { step, stage, values: map.into_iter().map(number).collect::<Result<_, _>>()? })
    }
}

/// The open log of a running run.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl MetricsLog {
    /// Starts an empty log.
    ///
    /// # Errors
    /// [`MetricsError::Write`].
    pub fn create(path: &Path) -> Result<Self, MetricsError> {
        let file = File::create(path).map_err(|e| atomic::Error::from_io("create", path, e))?;
        Ok(Self { file, path: path.into(), bytes: 0 })
    }

    /// Continues a log as it was when it had `bytes` bytes; what came later (a torn line included) is cut off.
    ///
    /// # Errors
    /// [`MetricsError::Short`] if it has fewer, [`MetricsError::Read`], [`MetricsError::Write`].
    pub fn resume(path: &Path, bytes: u64) -> Result<Self, MetricsError> {
        let read = |source| MetricsError::Read { path: path.into(), source };
        let mut file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && bytes == 0 => return Self::create(path),
            other => other.map_err(read)?,
        };
        let got = file.metadata().map_err(read)?.len();
        if got < bytes {
            return Err(MetricsError::Short { path: path.into(), expected: bytes, got });
        }
        let cut = file.set_len(bytes).and_then(|()| file.seek(SeekFrom::End(0)));
        cut.map_err(|e| atomic::Error::from_io("truncate", path, e))?;
        Ok(Self { file, path: path.into(), bytes })
    }

    /// Adds one line and hands it to the system.
    ///
    /// # Errors
    /// [`MetricsError::Write`]; the log then ends with the line before.
    pub fn append(&mut self, record: &Record) -> Result<(), MetricsError> {
        let line = record.to_line() + "\n";
        if let Err(e) = self.file.write_all(line.as_bytes()) {
            // Take back the torn part, so that the next line does not stick to it; the first error is reported.
            let _ = self.file.set_len(self.bytes).and_then(|()| self.file.seek(SeekFrom::End(0)));
            return Err(atomic::Error::from_io("append to", &self.path, e).into());
        }
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Makes sure that the log is on disk, and returns its length in bytes. Call it before a checkpoint that
    /// remembers this length.
    ///
    /// # Errors
    /// [`MetricsError::Write`].
    pub fn sync(&mut self) -> Result<u64, MetricsError> {
        self.file.sync_data().map_err(|e| atomic::Error::from_io("sync", &self.path, e))?;
        Ok(self.bytes)
    }
}

/// All records of a log. A torn last line (the run is being written, or was killed) is left out.
///
/// # Errors
/// [`MetricsError::Read`], or [`MetricsError::Line`] for a broken line that is not the last.
pub fn read(path: &Path) -> Result<Vec<Record>, MetricsError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| MetricsError::Read { path: path.into(), source })?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines().enumerate().filter(|(_, line)| !line.is_empty());
    lines
        .map(|(i, line)| {
            Record::from_line(line).map_err(|why| MetricsError::Line { path: path.into(), line: i + 1, why })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn record(step: u64, loss: f64) -> Record {
        Record { step, stage: "rl".into(), values: Values::from([("loss".into(), loss), ("a".into(), 1.0)]) }
    }

    #[test]
    fn every_f64_comes_back_bit_for_bit() {
        for x in [0.1, -0.0, 1e-308, 1.0 / 3.0, f64::MAX, 5e-324] {
            let line = record(1, x).to_line();
            assert_eq!(Record::from_line(&line).unwrap().values["loss"].to_bits(), x.to_bits(), "{line}");
        }
        let nan = record(1, f64::NAN).to_line();
        assert_eq!(nan, r#"{"step":1,"stage":"rl","a":1.0,"loss":null}"#);
        assert!(Record::from_line(&nan).unwrap().values["loss"].is_nan());
    }

    #[test]
    fn resume_cuts_off_what_came_after_the_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::create(&path).unwrap();
        log.append(&record(1, 1.0)).unwrap();
        let saved = log.sync().unwrap();
        log.append(&record(2, 2.0)).unwrap();
        drop(log);
        // The kill came in the middle of a line.
        let mut torn = OpenOptions::new().append(true).open(&path).unwrap();
        torn.write_all(b"{\"step\":3,\"sta").unwrap();
        assert_eq!(read(&path).unwrap().len(), 2);

        let mut log = MetricsLog::resume(&path, saved).unwrap();
        log.append(&record(2, 5.0)).unwrap();
        assert_eq!(read(&path).unwrap(), [record(1, 1.0), record(2, 5.0)]);
    }

    #[test]
    fn a_log_that_lost_lines_is_not_continued() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        MetricsLog::create(&path).unwrap().append(&record(1, 1.0)).unwrap();
        let e = MetricsLog::resume(&path, 9999).unwrap_err();
        assert!(matches!(e, MetricsError::Short { expected: 9999, .. }), "{e}");
        assert!(matches!(MetricsLog::resume(&dir.path().join("no"), 5), Err(MetricsError::Read { .. })));
    }

    #[test]
    fn a_broken_line_in_the_middle_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(
            &path,
            format!("{}\nnonsense\n{}\n", record(1, 1.0).to_line(), record(2, 1.0).to_line()),
        )
        .unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("line 2: not a metrics record"));
    }

    #[test]
    fn a_full_disk_leaves_whole_lines() {
        // /dev/full accepts an open and refuses every write with "no space left".
        let mut log = MetricsLog { file: File::create("/dev/full").unwrap(), path: "m".into(), bytes: 0 };
        let e = log.append(&record(1, 1.0)).unwrap_err();
        assert!(matches!(e, MetricsError::Write(atomic::Error::DiskFull { .. })), "{e}");
    }
}
