//! A folder of flow episodes.
//!
//! ```text
//! DIR/
//!   index.json            {"format": "efference-flow", "version": 1, "recipe": RECIPE, "next": N, "episodes": [ENTRY, …]}
//!   shard_00000.bin       episodes one after the other
//!   shard_00001.bin
//!   .lock                 held (by the operating system) while a writer is open
//! ```
//!
//! ENTRY is [`FlowEntry`]: where the episode is (`shard`, `offset`, `bytes`), its checksum, and what it is about. An episode
//! exists when the index names it. A shard is written whole, then the index is replaced, each atomically; a kill between
//! the two leaves a shard nobody names, which the next append overwrites. RECIPE is whatever made the set, N how many of
//! its episodes have been tried (some scenes give none): a resumed job goes on there.
//!
//! An episode is one safetensors file within its shard:
//!
//! | tensor | type, shape | |
//! |---|---|---|
//! | `image.png` | U8 \[bytes\] | first picture, RGB, 8 bit |
//! | `depth.png` | U8 \[bytes\] | its depth, grey, 16 bit: units of 0.5 mm along the optical axis, 0 where unknown |
//! | `mask.png` | U8 \[bytes\] | grey, 8 bit: 255 on the object that moves |
//! | `positions` | F32 \[T + 1, N, 3\] | points on the object, world frame, metres; frame 0 belongs to the picture |
//! | `visibility` | U8 \[T + 1, N\] | 255 where the camera sees the point, 0 where not, between: a probability |
//! | `poses` | F64 \[T + 1 or 0, 7\] | world from object: x y z (metres), w x y z (unit quaternion) |
//!
//! The safetensors header's metadata has one entry, `efference.flow`: JSON with `format_version` (1), `instruction`,
//! `task`, `source` (`tabletop`, `libero`, `tracker`), `seed` and `camera`: `intrinsics` (fx, fy, cx, cy, width, height in
//! pixels; the middle of the first pixel is at 0.5, 0.5) and `world_from_camera` (rotation x y z w, translation in
//! metres; axes x right, y down, z forward). Numbers are little-endian.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{FlowEpisode, FlowSource, codec};
use crate::error::{Error, Result};
use crate::store::{INDEX, hex_digest};
use crate::{atomic, index};

/// Version of index and episodes.
pub const FORMAT_VERSION: u64 = 1;

const FORMAT: &str = "efference-flow";
const LOCK: &str = ".lock";
/// An episode larger than this is not read into memory.
const MAX_EPISODE_BYTES: u64 = 256 << 20;
/// A shard is closed when it has so many episodes or bytes.
const SHARD_EPISODES: usize = 256;
const SHARD_BYTES: usize = 64 << 20;

/// One line of the index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowEntry {
    /// File name inside the folder.
    pub shard: String,
    /// First byte of the episode in the shard.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of those bytes, 64 lower-case hex digits.
    pub sha256: String,
    /// Family of the task.
    pub task: String,
    /// Where it comes from.
    pub source: FlowSource,
    /// Seed of scene and motion.
    pub seed: u64,
    /// What to do.
    pub instruction: String,
    /// Frames, the present included.
    pub frames: usize,
    /// Points.
    pub points: usize,
}

#[derive(Serialize, Deserialize)]
struct Index {
    format: String,
    version: u64,
    #[serde(default)]
    recipe: serde_json::Value,
    #[serde(default)]
    next: u64,
    episodes: Vec<FlowEntry>,
}

impl Index {
    fn empty() -> Self {
        let recipe = serde_json::Value::Null;
        Self { format: FORMAT.into(), version: FORMAT_VERSION, recipe, next: 0, episodes: Vec::new() }
    }
}

/// A folder of flow episodes, open for reading. Only the index is in memory.
#[derive(Clone, Debug)]
pub struct FlowStore {
    dir: PathBuf,
    entries: Vec<FlowEntry>,
}

impl FlowStore {
    /// Reads the index of `dir`; the episodes stay on disk.
    ///
    /// # Errors
    /// [`Error::NotAStore`], [`Error::Index`], [`Error::Version`], [`Error::Read`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        match read_index(&dir)? {
            Some(index) => Ok(Self { dir, entries: index.episodes }),
            None => Err(Error::NotAStore { path: dir }),
        }
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How many episodes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What the index says of each episode, in order.
    #[must_use]
    pub fn entries(&self) -> &[FlowEntry] {
        &self.entries
    }

    /// One episode, read and checked. Any number of threads may load at once.
    ///
    /// # Errors
    /// [`Error::NoEpisode`], or what is wrong with its bytes.
    pub fn load(&self, index: usize) -> Result<FlowEpisode> {
        let entry = self.entries.get(index).ok_or_else(|| Error::NoEpisode {
            path: self.dir.clone(),
            index,
            episodes: self.len(),
        })?;
        let path = self.dir.join(&entry.shard);
        codec::decode(&read_checked(&path, entry)?, &path.join(format!("@{}", entry.offset)))
    }

    /// The episodes in order, each loaded when it is asked for.
    pub fn iter(&self) -> impl Iterator<Item = Result<FlowEpisode>> + '_ {
        (0..self.len()).map(|i| self.load(i))
    }
}

/// A folder of flow episodes, open for adding. One writer per folder at a time.
#[derive(Debug)]
pub struct FlowWriter {
    dir: PathBuf,
    index: Index,
    /// Of the shard that is being filled.
    shard: Vec<u8>,
    /// Its episodes; not in the index yet.
    waiting: Vec<FlowEntry>,
    /// Locked until it is dropped, even by a kill.
    _lock: File,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Index({} episodes)", self.episodes.len())
    }
}

impl FlowWriter {
    /// Continues the set in `dir`, or starts it. `recipe` is what makes the episodes; a set with another recipe is refused,
    /// as its numbers would mean something else.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::OtherRecipe`], [`Error::Write`], or what is wrong with the index.
    pub fn append_to(dir: impl AsRef<Path>, recipe: &serde_json::Value) -> Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        fs::create_dir_all(&dir).map_err(|e| atomic::Error::from_io("create", &dir, e))?;
        let path = dir.join(LOCK);
        let lock = File::options().create(true).append(true).open(&path);
        let lock = lock.map_err(|e| atomic::Error::from_io("create", &path, e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Busy { path: dir }),
            Err(TryLockError::Error(e)) => return Err(atomic::Error::from_io("lock", &path, e).into()),
        }
        atomic::remove_stale(&dir)?;
        let found = read_index(&dir)?;
        let is_new = found.is_none();
        let mut index = found.unwrap_or_else(Index::empty);
        if is_new {
            index.recipe = recipe.clone();
        } else if index.recipe != *recipe {
            let (there, wanted) = (index.recipe.to_string(), recipe.to_string());
            return Err(Error::OtherRecipe { path: dir, there, wanted });
        }
        let writer = Self { dir, index, shard: Vec::new(), waiting: Vec::new(), _lock: lock };
        if is_new {
            writer.write_index()?; // so that a folder nobody can write to is noticed before the work
        }
        Ok(writer)
    }

    /// Adds an episode, or notes that the next one of the recipe gave none. It is on disk after [`FlowWriter::flush`], or
    /// when its shard is full.
    ///
    /// # Errors
    /// [`Error::InvalidFlow`] or [`Error::Write`]; what was on disk before is untouched.
    pub fn append(&mut self, episode: Option<&FlowEpisode>) -> Result<()> {
        if let Some(episode) = episode {
            let bytes = codec::encode(episode)?;
            self.waiting.push(FlowEntry {
                shard: String::new(),
                offset: self.shard.len() as u64,
                bytes: bytes.len() as u64,
                sha256: hex_digest(&bytes),
                task: episode.task.clone(),
                source: episode.source,
                seed: episode.seed,
                instruction: episode.instruction.clone(),
                frames: episode.flow.frames(),
                points: episode.flow.points(),
            });
            self.shard.extend(bytes);
        }
        self.index.next += 1;
        if self.waiting.len() >= SHARD_EPISODES || self.shard.len() >= SHARD_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes what is waiting; when this returns it is on disk.
    ///
    /// # Errors
    /// [`Error::Write`]; what was on disk before is untouched.
    pub fn flush(&mut self) -> Result<()> {
        if self.waiting.is_empty() {
            return self.write_index();
        }
        let number = self.index.episodes.last().map_or(0, |last| shard_number(&last.shard) + 1);
        let name = format!("shard_{number:05}.bin");
        atomic::write_file(&self.dir.join(&name), &self.shard)?;
        let before = self.index.episodes.len();
        let waiting = self.waiting.iter().cloned();
        self.index.episodes.extend(waiting.map(|entry| FlowEntry { shard: name.clone(), ..entry }));
        if let Err(e) = self.write_index() {
            self.index.episodes.truncate(before);
            return Err(e);
        }
        self.waiting.clear();
        self.shard.clear();
        Ok(())
    }

    /// The episodes on disk.
    #[must_use]
    pub fn entries(&self) -> &[FlowEntry] {
        &self.index.episodes
    }

    /// How many episodes of the recipe have been tried, those that gave none included: where a resumed job goes on.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.index.next
    }

    fn write_index(&self) -> Result<()> {
        let path = self.dir.join(INDEX);
        let json = serde_json::to_vec(&self.index)
            .map_err(|e| Error::Index { path: path.clone(), problem: e.to_string() })?;
        Ok(atomic::write_file(&path, &json)?)
    }
}

fn shard_number(name: &str) -> u64 {
    let digits: String = name.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

/// `None` if there is no index.
fn read_index(dir: &Path) -> Result<Option<Index>> {
    let Some(index) = index::read::<Index>(dir, FORMAT, FORMAT_VERSION)? else { return Ok(None) };
    for entry in &index.episodes {
        index::check_name(dir, &entry.shard)?;
        if entry.bytes > MAX_EPISODE_BYTES {
            let problem = format!("an episode of {} bytes is too large", entry.bytes);
            return Err(Error::Index { path: dir.join(INDEX), problem });
        }
    }
    Ok(Some(index))
}

/// The episode's bytes if they are there and have the index's checksum.
fn read_checked(path: &Path, entry: &FlowEntry) -> Result<Vec<u8>> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => Error::Missing { path: path.into() },
        _ => Error::Read { path: path.into(), source },
    };
    let mut file = File::open(path).map_err(failed)?;
    let got = file.metadata().map_err(failed)?.len();
    let end = entry.offset.saturating_add(entry.bytes);
    if got < end {
        return Err(Error::Size { path: path.into(), got, expected: end });
    }
    file.seek(SeekFrom::Start(entry.offset)).map_err(failed)?;
    let mut bytes = vec![0; entry.bytes as usize];
    file.read_exact(&mut bytes).map_err(failed)?;
    let got = hex_digest(&bytes);
    if got != entry.sha256 {
        return Err(Error::Checksum { path: path.into(), got, expected: entry.sha256.clone() });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::episode::tests::episode;
    use super::*;
    use serde_json::json;

    #[test]
    fn episodes_come_back_in_any_order_and_a_resumed_job_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let recipe = json!({"tasks": ["push"]});
        let mut writer = FlowWriter::append_to(dir.path(), &recipe).unwrap();
        writer.append(Some(&episode(0, 3))).unwrap();
        writer.append(None).unwrap();
        writer.append(Some(&episode(2, 3))).unwrap();
        writer.flush().unwrap();
        assert!(matches!(FlowWriter::append_to(dir.path(), &recipe), Err(Error::Busy { .. })));
        // What was not flushed is as if it had not been.
        writer.append(Some(&episode(3, 3))).unwrap();
        drop(writer);
        let mut writer = FlowWriter::append_to(dir.path(), &recipe).unwrap();
        assert_eq!((writer.next(), writer.entries().len()), (3, 2));
        writer.append(Some(&episode(3, 4))).unwrap();
        writer.flush().unwrap();
        drop(writer);
        let store = FlowStore::open(dir.path()).unwrap();
        let seeds: Vec<u64> = [2, 0, 1].iter().map(|i| store.load(*i).unwrap().seed).collect();
        assert_eq!(seeds, [3, 0, 2]);
        assert_eq!(store.entries()[2].frames, 4);
        assert!(matches!(store.load(3), Err(Error::NoEpisode { index: 3, episodes: 3, .. })));
        let other = FlowWriter::append_to(dir.path(), &json!({"tasks": ["pour"]}));
        assert!(matches!(other, Err(Error::OtherRecipe { .. })));
    }

    #[test]
    fn damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(FlowStore::open(dir.path()), Err(Error::NotAStore { .. })));
        let mut writer = FlowWriter::append_to(dir.path(), &json!(null)).unwrap();
        writer.append(Some(&episode(0, 3))).unwrap();
        writer.append(Some(&episode(1, 3))).unwrap();
        writer.flush().unwrap();
        drop(writer);
        let store = FlowStore::open(dir.path()).unwrap();
        let shard = dir.path().join(&store.entries()[0].shard);
        let mut bytes = fs::read(&shard).unwrap();
        bytes[100] ^= 1;
        fs::write(&shard, &bytes).unwrap();
        assert!(matches!(store.load(0), Err(Error::Checksum { .. })));
        assert_eq!(store.load(1).unwrap().seed, 1);
        fs::write(&shard, &bytes[..bytes.len() - 1]).unwrap();
        assert!(matches!(store.load(1), Err(Error::Size { .. })));
        fs::remove_file(&shard).unwrap();
        assert!(matches!(store.load(1), Err(Error::Missing { .. })));
        for (text, word) in [
            ("{", "EOF"),
            (r#"{"format": "efference-episodes", "version": 1}"#, "`format`"),
            (r#"{"format": "efference-flow"}"#, "`version` is missing"),
            (r#"{"format": "efference-flow", "version": 9}"#, "format version 9"),
        ] {
            fs::write(dir.path().join(INDEX), text).unwrap();
            let message = FlowStore::open(dir.path()).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn shards_are_closed_when_they_are_full() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = FlowWriter::append_to(dir.path(), &json!(null)).unwrap();
        let one = episode(0, 2);
        for _ in 0..SHARD_EPISODES + 1 {
            writer.append(Some(&one)).unwrap();
        }
        assert_eq!(writer.entries().len(), SHARD_EPISODES);
        writer.flush().unwrap();
        drop(writer);
        let store = FlowStore::open(dir.path()).unwrap();
        assert_eq!(store.entries()[SHARD_EPISODES].shard, "shard_00001.bin");
        assert_eq!(store.load(SHARD_EPISODES).unwrap(), store.load(0).unwrap());
    }
}
