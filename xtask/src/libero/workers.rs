//! Python processes that export one task after the other.
//!
//! An interpreter takes seconds to load the benchmark, so each worker keeps one. A worker that dies fails the task that it
//! had, and another one takes its place.

use super::plan::Order;
use crate::{
    error::{Error, Result, io},
    paths::Paths,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{BufRead, BufReader, IsTerminal, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// What `export.py` answers to an order.
#[derive(Deserialize)]
struct Answer {
    error: Option<String>,
}

struct Worker {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Worker {
    fn start(python: &Path, export: &Path, packs: &Path, log: &Path) -> Result<Self> {
        let log_file = File::create(log).map_err(io("create", log))?;
        let mut command = Command::new(python);
        command.arg(export).arg("--packs").arg(packs);
        // The parallelism is over tasks; nothing is drawn here, and robosuite must not look for a GPU.
        command.env("OMP_NUM_THREADS", "1").env("MUJOCO_GL", "egl");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log_file);
        let hint = "the virtual environment may be damaged: delete `target/libero/venv`";
        let start = |source| Error::Start {
            command: crate::process::show(&command_for_show(python, export)),
            source,
            hint: hint.to_owned(),
        };
        let mut child = command.spawn().map_err(start)?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Error::Libero { problem: "the exporter has no pipes".to_owned() });
        };
        Ok(Self { child, to, from: BufReader::new(from) })
    }

    /// Exports one task. The error says what went wrong, and whether the worker can go on.
    fn run(&mut self, order: &Order) -> std::result::Result<(), (String, bool)> {
        let line = serde_json::to_string(order).map_err(|e| (e.to_string(), true))?;
        let mut answer = String::new();
        let sent = writeln!(self.to, "{line}").and_then(|()| self.to.flush());
        match sent.and_then(|()| self.from.read_line(&mut answer)) {
            Ok(0) | Err(_) => {
                let how = self.child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
                Err((format!("the exporter ended ({how})"), false))
            }
            Ok(_) => match serde_json::from_str(&answer) {
                Ok(Answer { error: None }) => Ok(()),
                Ok(Answer { error: Some(error) }) => Err((error, true)),
                Err(e) => Err((format!("the exporter's answer is unreadable: {e}"), false)),
            },
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command_for_show(python: &Path, export: &Path) -> Command {
    let mut command = Command::new(python);
    command.arg(export);
    command
}

/// Exports all orders, `jobs` at a time. What fails does not stop the others; the error lists it.
pub fn export(
    paths: &Paths,
    python: &Path,
    export: &Path,
    packs: &Path,
    orders: Vec<Order>,
    jobs: usize,
) -> Result<()> {
    let logs = paths.target.join("libero/logs");
    fs::create_dir_all(&logs).map_err(io("create", &logs))?;
    let count = orders.len();
    let progress = Progress::new(count);
    let queue = Mutex::new(VecDeque::from(orders));
    let failed = Mutex::new(Vec::new());
    let work = |number: usize| -> Result<()> {
        let log = logs.join(format!("export-{number}.log"));
        let mut worker: Option<Worker> = None;
        loop {
            let order = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(order) = order else { return Ok(()) };
            let mut running = match worker.take() {
                Some(running) => running,
                None => Worker::start(python, export, packs, &log)?,
            };
            let name = format!("{}_{}", order.suite, order.task);
            match running.run(&order) {
                Ok(()) => worker = Some(running),
                Err((problem, goes_on)) => {
                    let kept = keep_log(&log, &logs, &name);
                    progress.say(&format!("{name}: {problem}"));
                    failed
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(format!("  {name}: {problem} ({})\n", kept.display()));
                    worker = goes_on.then_some(running);
                }
            }
            progress.done(&name);
        }
    };
    let ended: Vec<Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs.min(count)).map(|number| scope.spawn(move || work(number))).collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    progress.end();
    ended.into_iter().collect::<Result<()>>()?;
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if failed.is_empty() {
        return Ok(());
    }
    let problem = format!("{} of {count} tasks could not be exported:\n{}", failed.len(), failed.concat());
    Err(Error::Libero { problem: problem.trim_end().to_owned() })
}

/// The log of a failure, under the task's name: the worker's own log is begun anew by the next worker.
fn keep_log(log: &Path, logs: &Path, name: &str) -> PathBuf {
    let kept = logs.join(format!("{name}.log"));
    if fs::copy(log, &kept).is_ok() { kept } else { log.to_path_buf() }
}

/// A bar on a terminal, a line per task elsewhere.
struct Progress {
    bar: ProgressBar,
    lines: bool,
    start: Instant,
    count: usize,
}

impl Progress {
    fn new(count: usize) -> Self {
        let lines = !std::io::stderr().is_terminal();
        let bar = if lines { ProgressBar::hidden() } else { ProgressBar::new(count as u64) };
        let style = "{bar:30} {pos}/{len} tasks, {msg}{eta} left";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_length(count as u64);
        bar.enable_steady_tick(Duration::from_millis(250));
        Self { bar, lines, start: Instant::now(), count }
    }

    fn say(&self, text: &str) {
        if self.lines {
            println!("{text}");
        } else {
            self.bar.println(text);
        }
    }

    fn done(&self, name: &str) {
        self.bar.inc(1);
        let done = self.bar.position();
        let per_minute = done as f64 / self.start.elapsed().as_secs_f64() * 60.0;
        self.bar.set_message(format!("{per_minute:.1} a minute, "));
        if self.lines {
            let left = (self.count as u64 - done) as f64 / per_minute;
            println!("{done}/{} {name}: {per_minute:.1} tasks a minute, {left:.0} minutes left", self.count);
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}
