//! A thin, safe layer over one chosen version of MuJoCo, with headless rendering by EGL.
