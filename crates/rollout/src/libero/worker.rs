//! The simulator in a process of its own: whatever happens to it costs one episode, not the evaluation.
//!
//! Questions and answers are JSON lines over the process's standard input and output; pictures go through a file that both
//! have open, in shared memory (`/dev/shm`) where there is one. A worker that does not answer within the time limit is
//! killed; a new one is started for the next episode.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use efference_envs::SceneState;
use efference_envs::libero::SimOptions;
use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::simulator::{Camera, Felt, Native, Packs, Simulator, SimulatorError, Stepped};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Question {
    /// First of all: packs by task number, settings, the file for pictures.
    Hello {
        packs: Vec<(usize, PathBuf)>,
        options: SimOptions,
        frames: PathBuf,
    },
    Start {
        task: usize,
        episode: usize,
    },
    Step {
        action: [f64; 7],
    },
    Felt,
    Scene,
    Render {
        camera: Camera,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Ready,
    Stepped(Stepped),
    Felt(Felt),
    Scene(Box<SceneState>),
    /// The picture is at the start of the file.
    Frame {
        width: u32,
        height: u32,
    },
    Task {
        task: usize,
        why: String,
    },
    NoState {
        task: usize,
        episode: usize,
        saved: usize,
    },
    Failed {
        why: String,
    },
}

/// Longest line that is read from a worker.
const MAX_LINE: u64 = 1 << 20;

/// How a worker is started.
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    /// The program: this one.
    pub program: PathBuf,
    /// Its arguments: `env-worker`.
    pub arguments: Vec<String>,
}

/// Time limits of a worker.
#[derive(Clone, Copy, Debug)]
pub struct WorkerLimits {
    /// For compiling a scene and restoring a state.
    pub start: Duration,
    /// For a control step, an observation or a picture.
    pub step: Duration,
}

/// A simulator in another process.
pub struct Isolated {
    command: WorkerCommand,
    packs: Arc<Packs>,
    options: SimOptions,
    limits: WorkerLimits,
    process: Option<Process>,
}

impl Isolated {
    /// No process is started before the first episode.
    pub fn new(command: WorkerCommand, packs: Arc<Packs>, options: SimOptions, limits: WorkerLimits) -> Self {
        Self { command, packs, options, limits, process: None }
    }

    /// The worker's process id while it lives.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.child.id())
    }

    fn launch(&mut self) -> Result<(), SimulatorError> {
        let process = Process::launch(&self.command).map_err(|e| SimulatorError::Died {
            why: format!("`{}` could not be started: {e}", self.command.program.display()),
        })?;
        let hello = Question::Hello {
            packs: self.packs.dirs().iter().map(|(&task, dir)| (task, absolute(dir))).collect(),
            options: self.options,
            frames: process.frames.path().into(),
        };
        self.process = Some(process);
        match self.ask(&hello, self.limits.start, "start")? {
            Answer::Ready => Ok(()),
            _ => Err(self.confused()),
        }
    }

    /// Asks the worker; one that is dead, silent or confused is put away.
    fn ask(
        &mut self,
        question: &Question,
        limit: Duration,
        what: &'static str,
    ) -> Result<Answer, SimulatorError> {
        let Some(process) = &mut self.process else {
            return Err(SimulatorError::Died {
                why: "it ended before; the next episode starts a new one".into(),
            });
        };
        let answer = process.ask(question, limit, what);
        if answer.is_err() {
            self.process = None;
        }
        match answer? {
            Answer::Task { task, why } => Err(SimulatorError::Task { task, why }),
            Answer::NoState { task, episode, saved } => Err(SimulatorError::NoState { task, episode, saved }),
            Answer::Failed { why } => Err(SimulatorError::Failed { why }),
            answer => Ok(answer),
        }
    }

    fn confused(&mut self) -> SimulatorError {
        self.process = None;
        SimulatorError::Died { why: "it answered another question and was put away".into() }
    }
}

/// The worker may have another working folder one day; ours is the one that relative paths are meant in.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.into())
}

impl Simulator for Isolated {
    fn start(&mut self, task: usize, episode: usize) -> Result<(), SimulatorError> {
        if self.process.is_none() {
            self.launch()?;
        }
        match self.ask(&Question::Start { task, episode }, self.limits.start, "restore an initial state")? {
            Answer::Ready => Ok(()),
            _ => Err(self.confused()),
        }
    }

    fn step(&mut self, action: &[f64; 7]) -> Result<Stepped, SimulatorError> {
        match self.ask(&Question::Step { action: *action }, self.limits.step, "finish a control step")? {
            Answer::Stepped(stepped) => Ok(stepped),
            _ => Err(self.confused()),
        }
    }

    fn felt(&mut self) -> Result<Felt, SimulatorError> {
        match self.ask(&Question::Felt, self.limits.step, "tell its observation")? {
            Answer::Felt(felt) => Ok(felt),
            _ => Err(self.confused()),
        }
    }

    fn scene(&mut self) -> Result<SceneState, SimulatorError> {
        match self.ask(&Question::Scene, self.limits.step, "tell its poses")? {
            Answer::Scene(scene) => Ok(*scene),
            _ => Err(self.confused()),
        }
    }

    fn render(&mut self, camera: Camera) -> Result<RgbImage, SimulatorError> {
        let Answer::Frame { width, height } =
            self.ask(&Question::Render { camera }, self.limits.step, "draw a picture")?
        else {
            return Err(self.confused());
        };
        let side = self.options.image_size;
        if (width as usize, height as usize) != (side, side) {
            return Err(self.confused());
        }
        let mut bytes = vec![0; 3 * side * side];
        let frames = self.process.as_ref().map(|process| process.frames.as_file());
        let read =
            frames.map_or_else(|| Err(io::ErrorKind::NotFound.into()), |f| f.read_exact_at(&mut bytes, 0));
        read.map_err(|e| SimulatorError::Died { why: format!("its picture could not be read: {e}") })?;
        RgbImage::from_raw(width, height, bytes).ok_or_else(|| self.confused())
    }
}

struct Process {
    child: Child,
    input: ChildStdin,
    answers: Receiver<io::Result<String>>,
    frames: tempfile::NamedTempFile,
}

impl Process {
    fn launch(command: &WorkerCommand) -> io::Result<Self> {
        let shared = Path::new("/dev/shm");
        let frames = if shared.is_dir() {
            tempfile::NamedTempFile::new_in(shared).or_else(|_| tempfile::NamedTempFile::new())?
        } else {
            tempfile::NamedTempFile::new()?
        };
        let mut child = Command::new(&command.program)
            .args(&command.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let missing = || io::Error::other("its pipes are missing");
        let (input, output) =
            (child.stdin.take().ok_or_else(missing)?, child.stdout.take().ok_or_else(missing)?);
        // Reading has no time limit of its own, so it happens on a thread that ends with the process.
        let (send, answers) = sync_channel(1);
        std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            loop {
                let mut line = String::new();
                let read = io::Read::take(&mut output, MAX_LINE).read_line(&mut line);
                let ended = !matches!(read, Ok(n) if n > 0);
                if send.send(read.map(|_| line)).is_err() || ended {
                    return;
                }
            }
        });
        Ok(Self { child, input, answers, frames })
    }

    fn ask(
        &mut self,
        question: &Question,
        limit: Duration,
        what: &'static str,
    ) -> Result<Answer, SimulatorError> {
        let text = serde_json::to_string(question)
            .map_err(|e| SimulatorError::Failed { why: format!("the question could not be written: {e}") })?;
        // A question is far smaller than a pipe's buffer: this does not wait.
        if self.input.write_all(format!("{text}\n").as_bytes()).and_then(|()| self.input.flush()).is_err() {
            return Err(self.died());
        }
        match self.answers.recv_timeout(limit) {
            Ok(Ok(line)) if !line.is_empty() => serde_json::from_str(&line).map_err(|e| {
                SimulatorError::Died { why: format!("it spoke nonsense and was put away: {e}") }
            }),
            Err(RecvTimeoutError::Timeout) => {
                Err(SimulatorError::Slow { what, limit_s: limit.as_secs_f64() })
            }
            _ => Err(self.died()),
        }
    }

    fn died(&mut self) -> SimulatorError {
        let why = match self.child.wait() {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        SimulatorError::Died { why }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL ends a stopped process, too. One that is gone already is no error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The worker's side: answers until its input ends.
///
/// # Errors
/// The pipes broke: whoever asked is gone.
pub fn serve(input: impl BufRead, mut output: impl Write) -> io::Result<()> {
    let mut stage: Option<(Native, File)> = None;
    for line in input.lines() {
        let line = line?;
        let answer = match serde_json::from_str(&line) {
            Ok(Question::Hello { packs, options, frames }) => match hello(packs, options, &frames) {
                Ok(ready) => {
                    stage = Some(ready);
                    Answer::Ready
                }
                Err(answer) => answer,
            },
            Ok(question) => match &mut stage {
                Some((simulator, frames)) => answer(simulator, frames, question),
                None => Answer::Failed { why: "the first line must be hello".into() },
            },
            Err(error) => Answer::Failed { why: format!("the question cannot be read: {error}") },
        };
        let text = serde_json::to_string(&answer).map_err(io::Error::other)?;
        output.write_all(format!("{text}\n").as_bytes())?;
        output.flush()?;
    }
    Ok(())
}

fn hello(packs: Vec<(usize, PathBuf)>, options: SimOptions, frames: &Path) -> Result<(Native, File), Answer> {
    let file = OpenOptions::new().write(true).open(frames);
    let file = file.map_err(|e| Answer::Failed { why: format!("`{}`: {e}", frames.display()) })?;
    let packs = Packs::new(packs.into_iter().collect());
    Ok((Native::new(Arc::new(packs), options), file))
}

fn answer(simulator: &mut Native, frames: &File, question: Question) -> Answer {
    let answered = match question {
        Question::Start { task, episode } => simulator.start(task, episode).map(|()| Answer::Ready),
        Question::Step { action } => simulator.step(&action).map(Answer::Stepped),
        Question::Felt => simulator.felt().map(Answer::Felt),
        Question::Scene => simulator.scene().map(|scene| Answer::Scene(Box::new(scene))),
        Question::Render { camera } => simulator.render(camera).and_then(|picture| {
            let written = frames.write_all_at(picture.as_raw(), 0);
            written.map_err(|e| SimulatorError::Failed {
                why: format!("the picture could not be written: {e}"),
            })?;
            Ok(Answer::Frame { width: picture.width(), height: picture.height() })
        }),
        Question::Hello { .. } => return Answer::Failed { why: "hello was said before".into() },
    };
    answered.unwrap_or_else(|error| match error {
        SimulatorError::Task { task, why } => Answer::Task { task, why },
        SimulatorError::NoState { task, episode, saved } => Answer::NoState { task, episode, saved },
        SimulatorError::Failed { why } => Answer::Failed { why },
        other => Answer::Failed { why: other.to_string() },
    })
}
