//! The Python process.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What it is to do.
#[derive(Serialize)]
pub struct Order {
    pub suite: String,
    pub task: usize,
    pub pictures: bool,
    /// Saved initial state.
    pub state: usize,
    pub idle: usize,
    pub steps: usize,
}

/// How long it took, in seconds.
#[derive(Deserialize)]
pub struct Answer {
    pub reset: f64,
    pub seconds: f64,
    /// Where the hand is afterwards.
    pub eef: [f64; 3],
}

#[derive(Deserialize)]
struct Hello {
    mujoco: String,
    robosuite: String,
}

pub struct Peer {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    pub mujoco: String,
    pub robosuite: String,
}

impl Peer {
    pub fn start(python: &str, side: usize) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../peers/libero_python.py");
        let mut child = Command::new(python)
            .arg(script)
            .arg(side.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{python} does not start: {error}"));
        let to = child.stdin.take().unwrap();
        let mut from = BufReader::new(child.stdout.take().unwrap());
        let Hello { mujoco, robosuite } = answer(&mut from);
        Self { child, to, from, mujoco, robosuite }
    }

    pub fn run(&mut self, order: &Order) -> Answer {
        writeln!(self.to, "{}", serde_json::to_string(order).unwrap()).unwrap();
        self.to.flush().unwrap();
        answer(&mut self.from)
    }
}

fn answer<T: DeserializeOwned>(from: &mut impl BufRead) -> T {
    let mut line = String::new();
    let read = from.read_line(&mut line).unwrap();
    assert!(read > 0, "Python's side ended; what it said is above");
    serde_json::from_str(&line).unwrap()
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
