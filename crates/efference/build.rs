//! Lets the program find libmujoco.so when it is started without cargo.

fn main() {
    if let Ok(folder) = std::env::var("DEP_MUJOCO_LIB_DIR") {
        println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{folder}");
    }
}
