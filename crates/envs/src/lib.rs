//! Simulators behind one trait, and the scripted experts that solve them.
