//! System libraries and tools that the package manager brings: EGL and Mesa for headless rendering, a C compiler, pip.

use crate::{
    error::{Error, Result},
    process,
};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Libraries that headless rendering opens at run time; any one name of a line will do.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("EGL", &["libEGL.so.1"]),
    ("an EGL driver", &["libEGL_mesa.so.0", "libEGL_nvidia.so.0"]),
    // Before Mesa 24.2 one file per driver, since then one for all. NVIDIA brings its own.
    ("an OpenGL driver", &["dri/swrast_dri.so", "libgallium-*.so", "libnvidia-eglcore.so.*"]),
    ("OpenGL", &["libOpenGL.so.0"]),
];

/// Package managers with the packages that hold the libraries.
const MANAGERS: &[(&str, &str)] = &[
    (
        "apt-get",
        "apt-get install -y --no-install-recommends libegl1 libegl-mesa0 libgl1-mesa-dri libgl1 libopengl0",
    ),
    ("dnf", "dnf install -y mesa-libEGL mesa-dri-drivers libglvnd-egl libglvnd-opengl"),
    ("pacman", "pacman -S --noconfirm mesa libglvnd"),
    ("zypper", "zypper install -y Mesa-libEGL1 Mesa-dri libOpenGL0"),
];

/// Brings the missing libraries where we are root and have apt-get; otherwise names the command.
pub fn setup() -> Result<()> {
    let folders = library_folders();
    let lacking = missing(&folders);
    if lacking.is_empty() {
        println!("EGL and OpenGL: already there");
        return Ok(());
    }
    if !(is_root() && has("apt-get")) {
        return Err(Error::SystemLibraries { missing: lacking.join(", "), command: install_command() });
    }
    println!("missing: {}", lacking.join(", "));
    let hint = "headless rendering needs these packages; install them by hand and run the same command again";
    let mut words = MANAGERS[0].1.split(' ');
    let mut apt = Command::new(words.next().unwrap_or_default());
    process::quiet(Command::new("apt-get").arg("update"), hint)?;
    process::quiet(apt.args(words).env("DEBIAN_FRONTEND", "noninteractive"), hint)?;
    let lacking = missing(&library_folders());
    if lacking.is_empty() {
        println!("EGL and OpenGL: installed");
        return Ok(());
    }
    Err(Error::SystemLibraries {
        missing: format!("{} (still)", lacking.join(", ")),
        command: install_command(),
    })
}

/// What `cargo xtask doctor` says about the libraries.
pub fn check() -> std::result::Result<String, (String, String)> {
    let folders = library_folders();
    let lacking = missing(&folders);
    if lacking.is_empty() {
        Ok("EGL and OpenGL libraries".to_owned())
    } else {
        Err((format!("{} (headless rendering)", lacking.join(", ")), install_command()))
    }
}

/// The command that brings the libraries, for this machine's package manager.
pub fn install_command() -> String {
    let (_, command) = MANAGERS.iter().find(|(manager, _)| has(manager)).unwrap_or(&MANAGERS[0]);
    if is_root() { (*command).to_owned() } else { format!("sudo {command}") }
}

fn missing(folders: &[PathBuf]) -> Vec<&'static str> {
    let there = |name: &&str| folders.iter().any(|folder| exists(folder, name));
    LIBRARIES.iter().filter(|(_, names)| !names.iter().any(there)).map(|(what, _)| *what).collect()
}

/// Whether a folder holds a file; `*` stands for any characters.
fn exists(folder: &Path, name: &str) -> bool {
    let Some((prefix, suffix)) = name.split_once('*') else { return folder.join(name).exists() };
    let Ok(entries) = folder.read_dir() else { return false };
    entries.flatten().any(|entry| {
        let found = entry.file_name();
        found.to_str().is_some_and(|f| {
            f.len() >= prefix.len() + suffix.len() && f.starts_with(prefix) && f.ends_with(suffix)
        })
    })
}

/// Where the dynamic linker looks: its variable, its cache, its defaults.
fn library_folders() -> Vec<PathBuf> {
    let arch = std::env::consts::ARCH;
    let mut folders: Vec<PathBuf> = std::env::var_os("LD_LIBRARY_PATH")
        .map(|path| std::env::split_paths(&path).collect())
        .unwrap_or_default();
    for folder in ["/lib", "/usr/lib", "/lib64", "/usr/lib64", "/usr/local/lib"] {
        folders.push(Path::new(folder).join(format!("{arch}-linux-gnu")));
        folders.push(folder.into());
    }
    // `ldconfig` is often not on a user's path.
    for ldconfig in ["ldconfig", "/sbin/ldconfig", "/usr/sbin/ldconfig"] {
        if let Ok(output) = Command::new(ldconfig).arg("-p").output() {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let files = text.lines().filter_map(|line| line.split(" => ").nth(1));
            folders.extend(files.filter_map(|file| Path::new(file).parent().map(Path::to_path_buf)));
            break;
        }
    }
    folders.sort();
    folders.dedup();
    folders
}

/// Whether the dynamic linker finds a library.
pub fn has_library(name: &str) -> bool {
    library_folders().iter().any(|folder| exists(folder, name))
}

/// Whether a program is on the path.
pub fn has(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

fn is_root() -> bool {
    process::quiet(Command::new("id").arg("-u"), "").is_ok_and(|id| id.trim() == "0")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn each_library_is_missed_until_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let folders = [folder.path().to_path_buf()];
        assert_eq!(missing(&folders), ["EGL", "an EGL driver", "an OpenGL driver", "OpenGL"]);
        for (file, left) in [
            ("libEGL.so.1", 3),
            ("libOpenGL.so.0", 2),
            ("libgallium-24.3.so", 1),
            ("libEGL_mesa.so", 1),
            ("libEGL_nvidia.so.0", 0),
        ] {
            std::fs::write(folder.path().join(file), "").unwrap();
            assert_eq!(missing(&folders).len(), left, "after {file}: {:?}", missing(&folders));
        }
    }
}
