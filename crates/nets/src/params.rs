//! Trainable weights by name, in the names of Hugging Face checkpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;

use crate::error::{Error, Result};

/// Room for the header of a weights file: names, shapes and a map of texts.
const HEADER_BYTES: u64 = 16 << 20;

/// How a weight starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All one value.
    Constant(f32),
    /// Gaussian with mean 0 and this standard deviation, cut at two of them.
    Normal(f32),
}

/// All weights of a network, sorted by name. Registering a network's layers creates them; loading replaces them.
#[derive(Clone)]
pub struct ParamStore {
    seed: u64,
    device: Device,
    vars: BTreeMap<String, Var>,
    frozen: Vec<String>,
}

/// A place in the tree of names: `store.root().pp("language_model").pp("model")`.
pub struct ParamPath<'s> {
    store: &'s mut ParamStore,
    prefix: String,
    constant: bool,
}

impl ParamStore {
    /// No weights yet. Initial values are a function of `seed` and each weight's name, not of the order of creation.
    pub fn new(seed: u64, device: Device) -> Self {
        Self { seed, device, vars: BTreeMap::new(), frozen: Vec::new() }
    }

    /// The empty prefix.
    pub fn root(&mut self) -> ParamPath<'_> {
        ParamPath { store: self, prefix: String::new(), constant: false }
    }

    /// The empty prefix; weights taken below it share the memory of the variables but record no gradient. For a network
    /// that only acts.
    pub fn constants(&mut self) -> ParamPath<'_> {
        ParamPath { store: self, prefix: String::new(), constant: true }
    }

    /// Weights that `patterns` name are no longer trained: no gradient is computed for them and no optimiser holds
    /// moments of theirs. Networks see it when they are made (or made again) from this store afterwards.
    ///
    /// A pattern is the beginning of a name; with `*`, which stands for any text, it is a whole name. A pattern after
    /// `!` is trained after all; the last one that fits decides. `["*", "!*.lora_*"]` trains adapters only.
    pub fn freeze<S: AsRef<str>>(&mut self, patterns: &[S]) {
        self.frozen = patterns.iter().map(|p| p.as_ref().to_string()).collect();
    }

    /// Patterns of [`freeze`](Self::freeze) that fit no weight there is.
    pub fn idle_patterns(&self) -> impl Iterator<Item = &str> {
        let idle = |pattern: &&str| !self.vars.keys().any(|name| fits(pattern.trim_start_matches('!'), name));
        self.frozen.iter().map(String::as_str).filter(idle)
    }

    /// The weights that are trained, sorted by name: all that are not frozen.
    pub fn trainable(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.vars.iter().map(|(name, var)| (name.as_str(), var)).filter(|(name, _)| !self.is_frozen(name))
    }

    fn is_frozen(&self, name: &str) -> bool {
        let mut frozen = false;
        for pattern in &self.frozen {
            let (pattern, freezes) =
                pattern.strip_prefix('!').map_or((pattern.as_str(), true), |p| (p, false));
            if fits(pattern, name) {
                frozen = freezes;
            }
        }
        frozen
    }

    /// Names and weights, sorted by name.
    pub fn vars(&self) -> &BTreeMap<String, Var> {
        &self.vars
    }

    /// Where the weights live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Number of trainable numbers.
    pub fn count(&self) -> usize {
        self.vars.values().map(|v| v.elem_count()).sum()
    }

    /// Whether weight decay applies to `name`: to matrices, not to biases, norms, position or token embeddings.
    pub fn decays(name: &str, var: &Var) -> bool {
        let embedding =
            ["embed_tokens", "position_embedding", "action_queries"].iter().any(|e| name.contains(e));
        var.dims().len() >= 2 && !embedding
    }

    /// Writes the weights to `path`: into a file beside it, synced, then renamed, so that `path` is never half a file.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn save(&self, path: &Path) -> Result<()> {
        let fail = |source| Error::Write { path: path.into(), source };
        let bytes = self.to_bytes()?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let beside = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
        let written = File::create(&beside)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
            .and_then(|()| std::fs::rename(&beside, path));
        written.map_err(|source| {
            // What is left of a failed attempt is of no use; a second failure would hide the first.
            let _ = std::fs::remove_file(&beside);
            fail(source)
        })
    }

    /// The weights as safetensors bytes, f32 little-endian, sorted by name.
    ///
    /// # Errors
    /// A weight cannot be copied from its device.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut data = Vec::with_capacity(self.vars.len());
        for (name, var) in &self.vars {
            let values = var.as_tensor().flatten_all()?.to_vec1::<f32>()?;
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            data.push((name.as_str(), var.dims().to_vec(), bytes));
        }
        let views = data
            .iter()
            .map(|(name, dims, bytes)| {
                let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, dims.clone(), bytes);
                view.map(|v| (*name, v))
                    .map_err(|e| Error::Corrupt { path: name.into(), reason: e.to_string() })
            })
            .collect::<Result<Vec<_>>>()?;
        safetensors::serialize(views, None)
            .map_err(|e| Error::Corrupt { path: "weights in memory".into(), reason: e.to_string() })
    }

    /// Replaces every weight by the file's. All or nothing: an error leaves the weights as they were.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::TooLarge`], [`Error::Corrupt`], [`Error::Names`], [`Error::Shape`], [`Error::Dtype`],
    /// [`Error::NotFinite`].
    pub fn load(&self, path: &Path) -> Result<()> {
        let fail = |source| Error::Read { path: path.into(), source };
        let file = File::open(path).map_err(fail)?;
        // Sizes before memory: a file this network could have written holds at most four bytes per number and a header.
        let bytes = file.metadata().map_err(fail)?.len();
        let most = 4 * self.count() as u64 + HEADER_BYTES;
        if bytes > most {
            return Err(Error::TooLarge { path: path.into(), bytes, most });
        }
        let mut content = Vec::with_capacity(bytes as usize);
        file.take(most).read_to_end(&mut content).map_err(fail)?;
        self.load_bytes(path, &content)
    }

    /// As [`load`](Self::load) for bytes that are already in memory; `path` only names them in messages.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_bytes(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let file = SafeTensors::deserialize(bytes)
            .map_err(|e| Error::Corrupt { path: path.into(), reason: e.to_string() })?;
        let held: BTreeSet<&str> = file.names().into_iter().collect();
        let missing: Vec<String> = self.vars.keys().filter(|n| !held.contains(n.as_str())).cloned().collect();
        let unexpected: Vec<String> =
            held.iter().filter(|n| !self.vars.contains_key(**n)).map(|n| n.to_string()).collect();
        if !missing.is_empty() || !unexpected.is_empty() {
            return Err(Error::Names { path: path.into(), missing, unexpected });
        }
        let tensor = |name: &str| {
            let corrupt = |e| Error::Corrupt { path: path.into(), reason: format!("{name}: {e}") };
            file.tensor(name).map_err(corrupt)
        };
        let mut reshaped = Vec::new();
        for (name, var) in &self.vars {
            let view = tensor(name)?;
            if view.shape() != var.dims() {
                reshaped.push((name.clone(), view.shape().to_vec(), var.dims().to_vec()));
            }
        }
        if !reshaped.is_empty() {
            return Err(Error::Shape { path: path.into(), tensors: reshaped });
        }
        let mut fresh = Vec::with_capacity(self.vars.len());
        for (name, var) in &self.vars {
            let view = tensor(name)?;
            let dtype = match view.dtype() {
                safetensors::Dtype::F32 => DType::F32,
                safetensors::Dtype::F16 => DType::F16,
                safetensors::Dtype::BF16 => DType::BF16,
                other => {
                    let got = format!("{other:?}");
                    return Err(Error::Dtype { path: path.into(), name: name.clone(), got });
                }
            };
            let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &self.device)?
                .to_dtype(DType::F32)?;
            if !tensor.flatten_all()?.to_vec1::<f32>()?.iter().all(|x| x.is_finite()) {
                return Err(Error::NotFinite { path: path.into(), name: name.clone() });
            }
            fresh.push((var, tensor));
        }
        for (var, tensor) in fresh {
            var.set(&tensor)?;
        }
        Ok(())
    }
}

impl ParamPath<'_> {
    /// One level down.
    pub fn pp(&mut self, name: &str) -> ParamPath<'_> {
        let prefix = if self.prefix.is_empty() { name.into() } else { format!("{}.{name}", self.prefix) };
        ParamPath { store: self.store, prefix, constant: self.constant }
    }

    /// The weight `name` here, created with `init` unless it exists.
    ///
    /// # Errors
    /// It exists with another shape, or there is no memory for it.
    pub fn get(&mut self, name: &str, dims: &[usize], init: Init) -> Result<Tensor> {
        let path = if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) };
        if !self.store.vars.contains_key(&path) {
            let count = dims.iter().product();
            let values = match init {
                Init::Constant(x) => vec![x; count],
                Init::Normal(std) => truncated_normal(count, std, seed_of(self.store.seed, &path)),
            };
            let var = Var::from_tensor(&Tensor::from_vec(values, dims, &self.store.device)?)?;
            self.store.vars.insert(path.clone(), var);
        }
        let constant = self.constant || self.store.is_frozen(&path);
        let var = &self.store.vars[&path];
        if var.dims() != dims {
            let got = var.dims().to_vec();
            return Err(Error::Input { name: "weight", got, expected: format!("{dims:?} for `{path}`") });
        }
        Ok(if constant { var.as_detached_tensor() } else { var.as_tensor().clone() })
    }
}

/// Whether `pattern` names `name`, see [`ParamStore::freeze`].
fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return true };
    for part in parts {
        // The earliest place leaves most room for what follows.
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// FNV-1a over the name, started from the seed: stable across platforms and versions.
fn seed_of(seed: u64, name: &str) -> u64 {
    name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// Box-Muller in f64; values beyond two standard deviations are drawn again.
fn truncated_normal(count: usize, std: f32, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = || loop {
        let (u, v): (f64, f64) = (rng.random(), rng.random());
        let x = (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos();
        if x.abs() <= 2.0 {
            return (x * f64::from(std)) as f32;
        }
    };
    (0..count).map(|_| draw()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn store(seed: u64) -> ParamStore {
        let mut store = ParamStore::new(seed, Device::Cpu);
        store.root().pp("a").get("weight", &[3, 4], Init::Normal(0.02)).unwrap();
        store.root().pp("a").get("bias", &[3], Init::Constant(0.5)).unwrap();
        store
    }

    fn values(store: &ParamStore, name: &str) -> Vec<f32> {
        store.vars()[name].as_tensor().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn initial_values_depend_on_seed_and_name_only() {
        let mut other_order = ParamStore::new(7, Device::Cpu);
        other_order.root().pp("a").get("bias", &[3], Init::Constant(0.5)).unwrap();
        other_order.root().get("z", &[9], Init::Normal(1.0)).unwrap();
        other_order.root().pp("a").get("weight", &[3, 4], Init::Normal(0.02)).unwrap();
        assert_eq!(values(&store(7), "a.weight"), values(&other_order, "a.weight"));
        assert_ne!(values(&store(7), "a.weight"), values(&store(8), "a.weight"));
        assert!(values(&store(7), "a.weight").iter().all(|x| x.abs() <= 0.04));
    }

    #[test]
    fn a_round_trip_is_exact() {
        let (a, b) = (store(1), store(2));
        b.load_bytes(Path::new("mem"), &a.to_bytes().unwrap()).unwrap();
        assert_eq!(values(&a, "a.weight"), values(&b, "a.weight"));
    }

    #[test]
    fn saving_replaces_the_file_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        store(1).save(&path).unwrap();
        store(5).save(&path).unwrap();
        let loaded = store(1);
        loaded.load(&path).unwrap();
        assert_eq!(values(&loaded, "a.weight"), values(&store(5), "a.weight"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let nowhere = dir.path().join("no/such/folder/model.safetensors");
        assert!(matches!(store(1).save(&nowhere), Err(Error::Write { .. })));
    }

    #[test]
    fn half_precision_is_widened_and_other_types_are_refused() {
        let bytes = |dtype, data: &[u8], bias: &[u8]| {
            let view = |shape, data| safetensors::tensor::TensorView::new(dtype, shape, data).unwrap();
            let views = [("a.weight", view(vec![3, 4], data)), ("a.bias", view(vec![3], bias))];
            safetensors::serialize(views, None).unwrap()
        };
        let target = store(1);
        let path = Path::new("w.safetensors");
        // 1.5 is 0x3fc0 in bfloat16 and 0x3e00 in half precision.
        for (dtype, word) in
            [(safetensors::Dtype::BF16, [0xc0, 0x3f]), (safetensors::Dtype::F16, [0x00, 0x3e])]
        {
            target.load_bytes(path, &bytes(dtype, &word.repeat(12), &word.repeat(3))).unwrap();
            assert_eq!(values(&target, "a.weight"), [1.5; 12]);
        }
        let error = target.load_bytes(path, &bytes(safetensors::Dtype::I64, &[0; 96], &[0; 24])).unwrap_err();
        assert!(matches!(error, Error::Dtype { .. }));
        let nan = f32::NAN.to_le_bytes();
        let error = target.load_bytes(path, &bytes(safetensors::Dtype::F32, &nan.repeat(12), &nan.repeat(3)));
        assert!(matches!(error.unwrap_err(), Error::NotFinite { .. }));
    }

    #[test]
    fn a_file_that_is_far_too_large_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("huge.safetensors");
        File::create(&path).unwrap().set_len(1 << 34).unwrap(); // sparse: takes no room on disk
        assert!(matches!(store(1).load(&path), Err(Error::TooLarge { bytes, .. }) if bytes == 1 << 34));
    }

    #[test]
    fn frozen_weights_and_constants_record_nothing_but_follow_the_variable() {
        let mut store = store(1);
        store.freeze(&["a.w"]);
        let frozen = store.root().pp("a").get("weight", &[3, 4], Init::Constant(0.0)).unwrap();
        let bias = store.root().pp("a").get("bias", &[3], Init::Constant(0.0)).unwrap();
        let constant = store.constants().pp("a").get("bias", &[3], Init::Constant(0.0)).unwrap();
        assert_eq!([&frozen, &bias, &constant].map(|t| t.track_op()), [false, true, false]);
        assert_eq!(store.trainable().map(|(name, _)| name).collect::<Vec<_>>(), ["a.bias"]);
        store.vars()["a.bias"].set(&Tensor::new(&[1f32, 2.0, 3.0], &Device::Cpu).unwrap()).unwrap();
        assert_eq!(constant.to_vec1::<f32>().unwrap(), [1.0, 2.0, 3.0]);
    }

    #[test]
    fn patterns_name_weights_and_the_last_one_decides() {
        for (pattern, name, fit) in [
            ("a.", "a.weight", true),
            ("a.weight", "a.weight", true),
            ("a.w", "b.a.weight", false),
            ("*.weight", "a.weight", true),
            ("*.weight", "a.weight_norm", false),
            ("a.*.q.*t", "a.0.q.weight", true),
            ("a.*.q.*t", "a.q.weight", false),
            ("*ab*ab", "xab", false),
            ("*ab*ab", "xabab", true),
            ("*", "anything", true),
        ] {
            assert_eq!(fits(pattern, name), fit, "{pattern} {name}");
        }
        let mut store = store(1);
        let trained = |store: &ParamStore| store.trainable().map(|(n, _)| n.to_string()).collect::<Vec<_>>();
        store.freeze(&["*", "!*.bias", "nothing.*"]);
        assert_eq!(trained(&store), ["a.bias"]);
        assert_eq!(store.idle_patterns().collect::<Vec<_>>(), ["nothing.*"]);
        store.freeze(&["!*.bias", "a."]);
        assert!(trained(&store).is_empty());
    }

    #[test]
    fn wrong_files_are_named_and_change_nothing() {
        let target = store(1);
        let before = values(&target, "a.weight");
        let load =
            |bytes: &[u8]| target.load_bytes(Path::new("w.safetensors"), bytes).unwrap_err().to_string();
        let good = target.to_bytes().unwrap();
        assert!(load(&good[..good.len() - 1]).contains("not a valid safetensors file"));
        assert!(load(b"nonsense").contains("w.safetensors"));
        let mut other = store(3);
        other.root().get("extra", &[1], Init::Constant(0.0)).unwrap();
        assert!(load(&other.to_bytes().unwrap()).contains("it also has `extra`"));
        let mut reshaped = ParamStore::new(3, Device::Cpu);
        reshaped.root().pp("a").get("weight", &[4, 3], Init::Constant(9.0)).unwrap();
        reshaped.root().pp("a").get("bias", &[3], Init::Constant(9.0)).unwrap();
        let message = load(&reshaped.to_bytes().unwrap());
        assert!(message.contains("[4, 3]") && message.contains("[3, 4]"), "{message}");
        assert_eq!(values(&target, "a.weight"), before);
        let missing = target.load(Path::new("/nonexistent/w.safetensors")).unwrap_err();
        assert!(matches!(missing, Error::Read { .. }));
    }
}
