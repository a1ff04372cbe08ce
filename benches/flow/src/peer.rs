//! The Python process.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use efference_geometry::Point3;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::scene::{HIGH, LOW, Scene};

/// What it is to do.
#[derive(Serialize)]
struct Order<'a> {
    /// Row-major.
    hand: Vec<f64>,
    keypoints: &'a [Point3<f64>],
    collision_points: &'a [Point3<f64>],
    targets: &'a [Vec<Point3<f64>>],
    low: [f64; 3],
    high: [f64; 3],
    sdf: &'a [f64],
    /// `flow` or `rekep`.
    cost: &'a str,
    /// Dual annealing for the first pose.
    annealing: bool,
}

/// How long it took, in seconds, and what the poses cost.
#[derive(Deserialize)]
pub struct Answer {
    pub seconds: f64,
    pub costs: Vec<f64>,
}

#[derive(Deserialize)]
struct Hello {
    scipy: String,
    numpy: String,
}

pub struct Peer {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    pub scipy: String,
    pub numpy: String,
}

impl Peer {
    pub fn start(python: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../peers/flow_scipy.py");
        let mut child = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{python} does not start: {error}"));
        let to = child.stdin.take().unwrap();
        let mut from = BufReader::new(child.stdout.take().unwrap());
        let Hello { scipy, numpy } = answer(&mut from);
        Self { child, to, from, scipy, numpy }
    }

    pub fn plan(&mut self, scene: &Scene, cost: &str, annealing: bool) -> Answer {
        let order = Order {
            hand: scene.hand.to_homogeneous().transpose().as_slice().to_vec(),
            keypoints: &scene.keypoints,
            collision_points: &scene.collision_points,
            targets: &scene.targets,
            low: LOW,
            high: HIGH,
            sdf: &scene.sdf_values,
            cost,
            annealing,
        };
        writeln!(self.to, "{}", serde_json::to_string(&order).unwrap()).unwrap();
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
