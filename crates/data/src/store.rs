//! A folder of episodes.
//!
//! ```text
//! DIR/
//!   index.json                 {"format": "efference-episodes", "version": 1, "episodes": [ENTRY, …]}
//!   episode_00000.safetensors  one episode each
//!   episode_00001.safetensors
//!   .lock                      held (by the operating system) while a writer is open
//! ```
//!
//! ENTRY is [`Entry`]: file, sha256 (64 hex digits), bytes, steps, frames and the episode's [`EpisodeMeta`]
//! fields. An episode exists when the index names it: the writer first writes the episode's file, then replaces
//! the index, each atomically. A kill between the two leaves a file nobody names, which the next append
//! overwrites.
//!
//! | tensor | type, shape | |
//! |---|---|---|
//! | `actions` | F32 \[T, 7\] | see [`crate::ACTION_DIM`] |
//! | `proprio` | F32 \[T, 8\] | see [`crate::PROPRIO_DIM`] |
//! | `rewards` | F32 \[T\] | |
//! | `states` | F64 \[T, S\] | optional: full simulator states |
//! | `frame_steps` | U32 \[F\] | control step of each stored frame, strictly increasing, < T |
//! | `camera.NAME.png` | U8 \[bytes\] | the F PNG pictures (RGB, 8 bit) of a camera, one after the other |
//! | `camera.NAME.offsets` | I64 \[F + 1\] | picture f is bytes `offsets[f]..offsets[f + 1]` |
//!
//! The safetensors header's metadata has one entry, `efference.episode`: JSON with `format_version` (1), `meta`
//! ([`EpisodeMeta`]) and `cameras` (name → \[width, height\] in pixels). Numbers are little-endian. The same text
//! with an example in Python is `docs/episode_format.md`.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::episode::{Episode, EpisodeMeta};
use crate::error::{Error, Result};
use crate::{atomic, codec, index};

/// Version of index and episode files.
pub const FORMAT_VERSION: u64 = 1;
/// The index's file name.
pub const INDEX: &str = "index.json";

const FORMAT: &str = "efference-episodes";
const LOCK: &str = ".lock";

/// One line of the index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// File name inside the folder.
    pub file: String,
    /// SHA-256 of the file, 64 lower-case hex digits.
    pub sha256: String,
    /// Length of the file.
    pub bytes: u64,
    /// Control steps, T.
    pub steps: usize,
    /// Stored frames per camera, F.
    pub frames: usize,
    /// Task, instruction, seed, success, source, mujoco_version, control_hz, extra.
    #[serde(flatten)]
    pub meta: EpisodeMeta,
}

#[derive(Serialize, Deserialize)]
struct Index {
    format: String,
    version: u64,
    episodes: Vec<Entry>,
}

/// What to do with an episode that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCorrupt {
    /// Stop and return the error.
    Error,
    /// Pass over it and keep the error in [`Episodes::skipped`]. Only damage to single episodes is passed
    /// over ([`Error::is_corrupt_episode`]).
    Skip,
}

/// A folder of episodes, open for reading.
#[derive(Clone, Debug)]
pub struct EpisodeStore {
    dir: PathBuf,
    entries: Vec<Entry>,
}

impl EpisodeStore {
    /// Reads the index of `dir`; the episodes stay on disk.
    ///
    /// # Errors
    /// [`Error::NotAStore`], [`Error::Index`], [`Error::Version`], [`Error::Read`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref().to_path_buf();
        let entries = read_index(&dir)?.ok_or_else(|| Error::NotAStore { path: dir.clone() })?;
        Ok(Self { dir, entries })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the index says about each episode, in the order they were added.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Number of episodes.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the index is there but lists nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Loads and checks episode `index` (from 0).
    ///
    /// # Errors
    /// [`Error::NoEpisode`], or what is wrong with its file.
    pub fn load(&self, index: usize) -> Result<Episode> {
        let entry = self.entries.get(index).ok_or_else(|| Error::NoEpisode {
            path: self.dir.clone(),
            index,
            episodes: self.len(),
        })?;
        let path = self.dir.join(&entry.file);
        let bytes = read_checked(&path, entry)?;
        codec::decode(&bytes, &path)
    }

    /// The episodes in order, each loaded when it is asked for.
    pub fn iter(&self, on_corrupt: OnCorrupt) -> Episodes<'_> {
        Episodes { store: self, next: 0, on_corrupt, skipped: Vec::new() }
    }

    /// All episodes, and the errors of those that [`OnCorrupt::Skip`] passed over.
    ///
    /// # Errors
    /// The first error that is not to be passed over.
    pub fn load_all(&self, on_corrupt: OnCorrupt) -> Result<(Vec<Episode>, Vec<Error>)> {
        let mut episodes = self.iter(on_corrupt);
        let loaded = episodes.by_ref().collect::<Result<_>>()?;
        Ok((loaded, episodes.skipped))
    }
}

/// Iterator over the episodes of a store.
#[derive(Debug)]
pub struct Episodes<'a> {
    store: &'a EpisodeStore,
    next: usize,
    on_corrupt: OnCorrupt,
    skipped: Vec<Error>,
}

impl Episodes<'_> {
    /// The errors of the episodes passed over so far.
    pub fn skipped(&self) -> &[Error] {
        &self.skipped
    }
}

impl Iterator for Episodes<'_> {
    type Item = Result<Episode>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.next < self.store.len() {
            self.next += 1;
            match self.store.load(self.next - 1) {
                Err(e) if self.on_corrupt == OnCorrupt::Skip && e.is_corrupt_episode() => {
                    self.skipped.push(e)
                }
                other => return Some(other),
            }
        }
        None
    }
}

/// A folder of episodes, open for adding. One writer per folder at a time.
#[derive(Debug)]
pub struct EpisodeWriter {
    dir: PathBuf,
    entries: Vec<Entry>,
    /// Locked until it is dropped, even by a kill.
    _lock: File,
}

impl EpisodeWriter {
    /// Starts a new store in `dir`, making the folder where needed.
    ///
    /// # Errors
    /// [`Error::AlreadyThere`] if it holds episodes, [`Error::Busy`], [`Error::Write`].
    pub fn create(dir: impl AsRef<Path>) -> Result<Self> {
        let writer = Self::append_to(dir)?;
        match writer.entries.len() {
            0 => Ok(writer),
            episodes => Err(Error::AlreadyThere { path: writer.dir, episodes }),
        }
    }

    /// Continues the store in `dir` (or starts it), clearing away what an interrupted writer left.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Write`], or what is wrong with the index.
    pub fn append_to(dir: impl AsRef<Path>) -> Result<Self> {
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
        let writer = Self { dir, entries: found.unwrap_or_default(), _lock: lock };
        if is_new {
            writer.write_index()?; // so that a folder nobody can write to is noticed before the work
        }
        Ok(writer)
    }

    /// Stores one episode; when this returns it is on disk. Returns its number.
    ///
    /// # Errors
    /// [`Error::Invalid`] or [`Error::Write`]; the store then is as it was and can be appended to again.
    pub fn append(&mut self, episode: &Episode) -> Result<usize> {
        let bytes = codec::encode(episode)?;
        let number = self.entries.len();
        let file = format!("episode_{number:05}.safetensors");
        atomic::write_file(&self.dir.join(&file), &bytes)?;
        self.entries.push(Entry {
            file,
            sha256: hex_digest(&bytes),
            bytes: bytes.len() as u64,
            steps: episode.steps(),
            frames: episode.frames(),
            meta: episode.meta.clone(),
        });
        if let Err(e) = self.write_index() {
            self.entries.pop();
            return Err(e);
        }
        Ok(number)
    }

    /// The episodes stored so far; a resumed job looks here for what is left to do.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn write_index(&self) -> Result<()> {
        let index = Index { format: FORMAT.into(), version: FORMAT_VERSION, episodes: self.entries.clone() };
        let path = self.dir.join(INDEX);
        let json = serde_json::to_vec_pretty(&index)
            .map_err(|e| Error::Index { path: path.clone(), problem: e.to_string() })?;
        Ok(atomic::write_file(&path, &json)?)
    }
}

/// The index's entries; `None` if there is no index.
fn read_index(dir: &Path) -> Result<Option<Vec<Entry>>> {
    let Some(index) = index::read::<Index>(dir, FORMAT, FORMAT_VERSION)? else { return Ok(None) };
    index.episodes.iter().try_for_each(|entry| index::check_name(dir, &entry.file))?;
    Ok(Some(index.episodes))
}

/// The file's bytes if length and checksum are those of the index.
fn read_checked(path: &Path, entry: &Entry) -> Result<Vec<u8>> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => Error::Missing { path: path.into() },
        _ => Error::Read { path: path.into(), source },
    };
    let mut file = File::open(path).map_err(failed)?;
    let got = file.metadata().map_err(failed)?.len();
    if got != entry.bytes {
        return Err(Error::Size { path: path.into(), got, expected: entry.bytes });
    }
    let mut bytes = Vec::with_capacity(got as usize);
    file.read_to_end(&mut bytes).map_err(failed)?;
    let got = hex_digest(&bytes);
    if got != entry.sha256 {
        return Err(Error::Checksum { path: path.into(), got, expected: entry.sha256.clone() });
    }
    Ok(bytes)
}

pub(crate) fn hex_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
