//! The PyTorch process: a line with a case and a number of repeats goes in, a line with seconds comes back.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

pub struct Peer {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    pub version: String,
}

impl Peer {
    pub fn start(python: &str, threads: usize) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/torch_ops.py");
        let mut child = Command::new(python)
            .arg(script)
            .env("BENCH_THREADS", threads.to_string())
            .env("OMP_NUM_THREADS", threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{python} does not start: {error}"));
        let to = child.stdin.take().unwrap();
        let from = BufReader::new(child.stdout.take().unwrap());
        let mut peer = Self { child, to, from, version: String::new() };
        let hello = peer.answer();
        peer.version = hello["version"].as_str().unwrap_or("of unknown version").to_owned();
        assert_eq!(hello["threads"].as_u64(), Some(threads as u64), "PyTorch took another number of threads");
        peer
    }

    /// Seconds of each of `repeats` runs of `case`.
    pub fn run(&mut self, case: &str, repeats: usize) -> Vec<f64> {
        writeln!(self.to, "{case} {repeats}").unwrap();
        self.to.flush().unwrap();
        let answer = self.answer();
        let seconds: Vec<f64> =
            answer["seconds"].as_array().unwrap().iter().filter_map(|s| s.as_f64()).collect();
        assert_eq!(seconds.len(), repeats, "PyTorch ran {case} another number of times");
        seconds
    }

    fn answer(&mut self) -> serde_json::Value {
        let mut line = String::new();
        let read = self.from.read_line(&mut line).unwrap();
        assert!(read > 0, "PyTorch's side ended; what it said is above");
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
