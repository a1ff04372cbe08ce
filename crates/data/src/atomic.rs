//! Files and folders that are either there in full or not there at all.
//!
//! Everything is first written beside its target under a hidden name, synced, and renamed: a kill, a crash or
//! a full disk at any moment leaves the target as it was. What such an end leaves behind is a hidden sibling,
//! which [`remove_stale`] clears away.
//!
//! ```text
//! DIR/.NAME.PID-START.tmp   ──sync──►   DIR/NAME   ──►   sync DIR
//! ```
//!
//! PID and START (nanoseconds since 1970 at which that process first wrote) tell a left-over from a file that
//! another living process is writing right now.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Why something could not be written. The target is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder does not accept new files: read-only mount or missing rights.
    #[error("cannot write `{}`: the folder is read-only for this user; choose another folder or change its permissions", path.display())]
    ReadOnly {
        /// What was to be written.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// No space (or no quota) left.
    #[error("cannot write `{}`: the disk is full; nothing was replaced, free some space and try again", path.display())]
    DiskFull {
        /// What was to be written.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A parent of the target exists but is a file.
    #[error("cannot write `{}`: a part of this path is a file, not a folder; choose another path", path.display())]
    NotAFolder {
        /// What was to be written.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The target has no file name (`/`, `..`).
    #[error("cannot write `{}`: the path does not end in a name", path.display())]
    NoName {
        /// What was to be written.
        path: PathBuf,
    },
    /// Anything else the system refused.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was being done ("create", "rename", …).
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl Error {
    /// Sorts a system error by what the user can do about it.
    pub fn from_io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path, source },
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                Self::ReadOnly { path, source }
            }
            // Making `file/x` fails with NotADirectory, making the folder `file` with AlreadyExists.
            io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => Self::NotAFolder { path, source },
            _ => Self::Io { action, path, source },
        }
    }
}

/// Writes `bytes` to `path`, replacing what was there. Makes missing parent folders.
///
/// # Errors
/// [`Error`]; `path` is then unchanged and no temporary file is left.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write_file_with(path, |file| file.write_all(bytes))
}

/// Like [`write_file`] for content that is produced piece by piece.
///
/// # Errors
/// [`Error`], also for an error that `fill` returns; `path` is then unchanged.
pub fn write_file_with(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), Error> {
    let parent = make_parent(path)?;
    let temp = TempSibling::new(path)?;
    let file = File::create_new(&temp.path).map_err(|e| Error::from_io("create", path, e))?;
    fill_and_sync(file, path, fill)?;
    fs::rename(&temp.path, path).map_err(|e| Error::from_io("rename a temporary file to", path, e))?;
    sync_dir(parent)
}

/// Builds a folder with `build` (given an empty temporary folder) and moves it to `path` in one step,
/// replacing the folder that was there. Makes missing parent folders; syncs every file `build` made.
///
/// # Errors
/// What `build` returns, or [`Error`]; `path` is then unchanged and the temporary folder is gone.
pub fn write_dir<E: From<Error>>(path: &Path, build: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
    let parent = make_parent(path)?;
    let temp = TempSibling::new(path)?;
    fs::create_dir(&temp.path).map_err(|e| Error::from_io("create", path, e))?;
    build(&temp.path)?;
    sync_tree(&temp.path)?;
    if path.exists() {
        exchange(&temp.path, path)?; // the old folder is now the temporary one, removed when `temp` drops
    } else {
        fs::rename(&temp.path, path).map_err(|e| Error::from_io("rename a temporary folder to", path, e))?;
    }
    Ok(sync_dir(parent)?)
}

/// Removes the hidden temporary siblings that dead processes left in `dir`; returns what was removed.
/// A folder that does not exist has none.
///
/// # Errors
/// [`Error`] if the folder cannot be listed or a left-over cannot be removed.
pub fn remove_stale(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::from_io("list", dir, e)),
    };
    let mut removed = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::from_io("list", dir, e))?.path();
        if path.file_name().is_some_and(is_stale) {
            remove_any(&path).map_err(|e| Error::from_io("remove", &path, e))?;
            removed.push(path);
        }
    }
    removed.sort();
    Ok(removed)
}

/// Whether `name` is the hidden name under which something is (or was) being written.
pub fn is_temporary(name: &OsStr) -> bool {
    owner(name).is_some()
}

/// A hidden path beside the target; whatever lies there when this is dropped is removed.
struct TempSibling {
    path: PathBuf,
}

impl TempSibling {
    fn new(target: &Path) -> Result<Self, Error> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let Some(name) = target.file_name() else {
            return Err(Error::NoName { path: target.to_path_buf() });
        };
        let mut hidden = OsString::from(".");
        hidden.push(name);
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        hidden.push(format!(".{n}.{}-{}.tmp", std::process::id(), process_start_nanos()));
        Ok(Self { path: target.with_file_name(hidden) })
    }
}

impl Drop for TempSibling {
    fn drop(&mut self) {
        // After a successful rename nothing is there; after a failure the first error is the one to report.
        let _ = remove_any(&self.path);
    }
}

fn remove_any(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Tells this process from an earlier one that had the same id.
fn process_start_nanos() -> u128 {
    static START: OnceLock<u128> = OnceLock::new();
    *START.get_or_init(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos()))
}

/// (process id, its first write in nanoseconds) from `.NAME.N.PID-START.tmp`.
fn owner(name: &OsStr) -> Option<(u32, u128)> {
    let name = name.to_str()?.strip_prefix('.')?.strip_suffix(".tmp")?;
    let (pid, start) = name.rsplit('.').next()?.split_once('-')?;
    Some((pid.parse().ok()?, start.parse().ok()?))
}

fn is_stale(name: &OsStr) -> bool {
    match owner(name) {
        None => false,
        Some((pid, start)) if pid == std::process::id() => start != process_start_nanos(),
        Some((pid, _)) => !is_alive(pid),
    }
}

/// Without `/proc` every process counts as alive: better a left-over than a file taken from its writer.
fn is_alive(pid: u32) -> bool {
    let proc = Path::new("/proc");
    !proc.join("self").exists() || proc.join(pid.to_string()).exists()
}

fn make_parent(path: &Path) -> Result<&Path, Error> {
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(|e| Error::from_io("create the folder of", path, e))?;
    Ok(parent)
}

fn fill_and_sync(
    file: File,
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), Error> {
    let mut buffered = BufWriter::with_capacity(1 << 20, file);
    fill(&mut buffered).map_err(|e| Error::from_io("write", path, e))?;
    let file = buffered.into_inner().map_err(|e| Error::from_io("write", path, e.into_error()))?;
    file.sync_all().map_err(|e| Error::from_io("write", path, e))
}

fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::from_io("sync", dir, e))
}

fn sync_tree(dir: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(dir).map_err(|e| Error::from_io("list", dir, e))? {
        let entry = entry.map_err(|e| Error::from_io("list", dir, e))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(|e| Error::from_io("look at", dir, e))?);
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            File::open(&path).and_then(|f| f.sync_all()).map_err(|e| Error::from_io("sync", &path, e))?;
        }
    }
    sync_dir(dir)
}

/// Swaps two folders in one step, so that the target exists at every moment. File systems that cannot do that
/// get two renames.
fn exchange(temp: &Path, target: &Path) -> Result<(), Error> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    let failed = |e: io::Error| Error::from_io("replace", target, e);
    match renameat_with(CWD, temp, CWD, target, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            let aside = TempSibling::new(target)?;
            fs::rename(target, &aside.path).map_err(failed)?;
            fs::rename(temp, target).map_err(failed)
        }
        Err(e) => Err(failed(e.into())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut all: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    }

    #[test]
    fn writes_replaces_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/file");
        write_file(&path, b"one").unwrap();
        write_file(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(path.parent().unwrap()), ["file"]);
    }

    #[test]
    fn failed_fill_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_file(&path, b"old").unwrap();
        let e = write_file_with(&path, |w| {
            w.write_all(b"half of the new")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(matches!(e, Err(Error::DiskFull { path: p, .. }) if p == path));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn full_disk_is_named() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let e = fill_and_sync(full, Path::new("out/weights"), |w| w.write_all(&[0; 3 << 20]));
        let e = e.unwrap_err();
        assert!(matches!(e, Error::DiskFull { .. }), "{e:?}");
        assert!(e.to_string().contains("`out/weights`: the disk is full"), "{e}");
        // Content smaller than the buffer only fails when the buffer is emptied: that must not be lost either.
        let full = File::options().write(true).open("/dev/full").unwrap();
        let e = fill_and_sync(full, Path::new("x"), |w| w.write_all(b"short"));
        assert!(matches!(e, Err(Error::DiskFull { .. })));
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), b"x").unwrap();
        for path in ["file/below", "file/far/below"] {
            let e = write_file(&dir.path().join(path), b"y").unwrap_err();
            assert!(matches!(e, Error::NotAFolder { .. }), "{e:?}");
        }
        assert!(matches!(write_file(Path::new("/"), b"y"), Err(Error::NoName { .. })));
    }

    #[test]
    fn read_only_is_sorted_from_other_errors() {
        for kind in [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::PermissionDenied] {
            assert!(matches!(Error::from_io("write", Path::new("x"), kind.into()), Error::ReadOnly { .. }));
        }
        // /proc refuses new files even to root.
        if Path::new("/proc/self").exists() {
            assert!(write_file(Path::new("/proc/efference-test"), b"y").is_err());
        }
    }

    #[test]
    fn folders_replace_folders() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("step");
        for text in ["one", "two"] {
            write_dir::<Error>(&path, |tmp| {
                fs::create_dir(tmp.join(text)).unwrap();
                write_file(&tmp.join(text).join("w"), text.as_bytes())
            })
            .unwrap();
            assert_eq!(names(&path), [text]);
        }
        let e = write_dir::<Error>(&path, |tmp| {
            fs::write(tmp.join("half"), b"").unwrap();
            Err(Error::NoName { path: tmp.to_path_buf() })
        });
        assert!(e.is_err());
        assert_eq!(names(&path), ["two"]);
        assert_eq!(names(dir.path()), ["step"]);
    }

    #[test]
    fn only_left_overs_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let me = std::process::id();
        let keep = [
            "file".to_string(),
            ".hidden".to_string(),
            ".notes.tmp".to_string(),
            format!(".live.0.{me}-{}.tmp", process_start_nanos()),
        ];
        let gone = [format!(".a.0.{me}-1.tmp"), ".b.3.4294967295-12.tmp".to_string()]; // no process has that id
        for name in keep.iter().chain(&gone) {
            fs::write(dir.path().join(name), b"x").unwrap();
        }
        fs::create_dir_all(dir.path().join(".d.0.4294967295-1.tmp/inside")).unwrap();
        assert_eq!(remove_stale(dir.path()).unwrap().len(), 3);
        let mut expected = keep.to_vec();
        expected.sort();
        assert_eq!(names(dir.path()), expected);
        assert!(remove_stale(&dir.path().join("absent")).unwrap().is_empty());
    }
}
