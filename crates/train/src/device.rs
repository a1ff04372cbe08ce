//! Where a run's network computes.
//!
//! Weights, activations and optimiser live on the device; the objectives, which see a number per token, work on the CPU.

use candle_core::Device;

use crate::error::{Error, Result};

/// The device called `cpu`, `cuda` (the first GPU) or `cuda:N`.
///
/// # Errors
/// Another name, a program built without CUDA, or no such GPU.
pub fn open(name: &str) -> Result<Device> {
    let refuse = |source: String| Err(Error::Setting { section: "run.device", source: source.into() });
    let ordinal = match name.split_once(':') {
        None if name == "cpu" => return Ok(Device::Cpu),
        None if name == "cuda" => Some(0),
        Some(("cuda", number)) => number.parse().ok(),
        _ => None,
    };
    let Some(ordinal) = ordinal else {
        return refuse(format!("`{name}` is no device; say cpu, cuda, or cuda:1 for the second GPU"));
    };
    if !cfg!(feature = "cuda") {
        return refuse(format!("`{name}` needs a program built with CUDA; `cargo xtask cuda` makes one"));
    }
    Device::new_cuda(ordinal).or_else(|error| refuse(format!("no CUDA device {ordinal} here: {error}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::open;

    #[test]
    fn names_of_devices() {
        assert!(open("cpu").unwrap().is_cpu());
        for name in ["gpu", "cuda:", "cuda:-1", "cuda:first", "", "cpu:0", "CUDA"] {
            let problem = std::error::Error::source(&open(name).unwrap_err()).unwrap().to_string();
            assert!(problem.contains("is no device"), "{name}: {problem}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn without_cuda_a_gpu_is_refused_with_the_way_to_get_it() {
        let problem = std::error::Error::source(&open("cuda:1").unwrap_err()).unwrap().to_string();
        assert!(problem.contains("cargo xtask cuda"), "{problem}");
    }
}
