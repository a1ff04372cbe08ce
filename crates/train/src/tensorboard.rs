//! TensorBoard event files, written from the metrics.
//!
//! The two maintained crates bring a protobuf compiler or a second generation of half the tree; the part of
//! the format that scalars need is forty lines: length-framed records with masked CRC-32C, each a small
//! protobuf message. <https://github.com/tensorflow/tensorboard> `event.proto`, `summary.proto`.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use efference_data::atomic;

use crate::metrics::Record;

/// Name of the event file in a run folder. TensorBoard finds any file whose name contains `tfevents`.
pub const FILE: &str = "events.out.tfevents.efference";

/// An open event file.
#[derive(Debug)]
pub struct EventFile {
    file: File,
}

impl EventFile {
    /// Starts the file anew with `past` records, so that after a resume it shows the continued run only.
    /// Times start at zero: TensorBoard's horizontal axis is the step.
    ///
    /// # Errors
    /// [`atomic::Error`].
    pub fn create(path: &Path, past: &[Record]) -> Result<Self, atomic::Error> {
        let fail = |e| atomic::Error::from_io("create", path, e);
        let mut bytes = frame(&[tag(1, 1), 0f64.to_le_bytes().to_vec(), text(3, b"brain.Event:2")].concat());
        for record in past {
            bytes.extend(frame(&event(record)));
        }
        let mut file = File::create(path).map_err(fail)?;
        file.write_all(&bytes).map_err(fail)?;
        Ok(Self { file })
    }

    /// Adds the numbers of one update as `stage/name`.
    ///
    /// # Errors
    /// The system's answer.
    pub fn append(&mut self, record: &Record) -> std::io::Result<()> {
        self.file.write_all(&frame(&event(record)))
    }
}

/// `Event { wall_time = 1, step = 2, summary = 5 { value = 1 { tag = 1, simple_value = 2 } } }`.
fn event(record: &Record) -> Vec<u8> {
    let mut summary = Vec::new();
    for (name, x) in &record.values {
        let name = if name.contains('/') { name.clone() } else { format!("{}/{name}", record.stage) };
        let value = [text(1, name.as_bytes()), tag(2, 5), (*x as f32).to_le_bytes().to_vec()].concat();
        summary.extend(text(1, &value));
    }
    let time = record.values.get("time/since_start_secs").copied().unwrap_or(0.0);
    [tag(1, 1), time.to_le_bytes().to_vec(), tag(2, 0), varint(record.step), text(5, &summary)].concat()
}

fn tag(field: u64, wire: u64) -> Vec<u8> {
    varint(field << 3 | wire)
}

fn text(field: u64, bytes: &[u8]) -> Vec<u8> {
    [tag(field, 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let masked = |bytes: &[u8]| crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes();
    [&length[..], &masked(&length), payload, &masked(payload)].concat()
}

/// CRC-32C (Castagnoli), bit by bit: a few kilobytes per update do not need a table.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::report::Values;

    #[test]
    fn crc_of_the_check_string() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283); // the published check value of CRC-32C
    }

    #[test]
    fn a_scalar_event_byte_by_byte() {
        let record = Record { step: 300, stage: "rl".into(), values: Values::from([("kl".into(), 0.5)]) };
        let expected = [
            &[0x09][..],
            &[0; 8],                   // wall_time = 0.0
            &[0x10, 0xac, 0x02],       // step = 300
            &[0x2a, 0x0e, 0x0a, 0x0c], // summary, value
            &[0x0a, 0x05],
            b"rl/kl",               // tag
            &[0x15, 0, 0, 0, 0x3f], // simple_value = 0.5f32
        ]
        .concat();
        assert_eq!(event(&record), expected);
    }

    #[test]
    fn frames_follow_each_other_and_check() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let record = |step| Record { step, stage: "rl".into(), values: Values::from([("kl".into(), 0.5)]) };
        let mut events = EventFile::create(&path, &[record(1)]).unwrap();
        events.append(&record(2)).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let (mut at, mut frames) = (0, 0);
        while at < bytes.len() {
            let n = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
            assert_eq!(frame(&bytes[at + 12..at + 12 + n]), bytes[at..at + 16 + n]);
            at += 16 + n;
            frames += 1;
        }
        assert_eq!(frames, 3);
    }
}
