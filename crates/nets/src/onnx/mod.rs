//! Frozen networks in ONNX files, run by ONNX Runtime.
//!
//! [`OnnxModel`] is any of them: named tensors in, named tensors out. [`DepthNet`] and [`TrackNet`] know what a depth
//! network and a point tracker take and give; together they make flow of ordinary videos.
//!
//! The library is loaded when a model is first asked for: `ORT_DYLIB_PATH`, or what `cargo xtask onnx` fetched beside
//! the program. Nothing else here needs it.

mod depth;
mod pictures;
mod tracks;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use ort::session::Session;
use ort::value::{DynValue, Tensor, TensorElementType};

use crate::error::{Error, Result};

pub use depth::{DepthMeaning, DepthNet};
pub use tracks::{TrackNet, Tracks};

/// The version that is fetched; its file is `libonnxruntime.so.VERSION`.
pub const RUNTIME_VERSION: &str = "1.24.4";

/// Names the library to load, if it is set.
pub const RUNTIME_VARIABLE: &str = "ORT_DYLIB_PATH";

/// Largest model file that is read.
const MOST_BYTES: u64 = 8 << 30;

/// Where ONNX Runtime is: [`RUNTIME_VARIABLE`], or `native/onnxruntime-VERSION/lib` in a folder above the program or in
/// `target` here.
#[must_use]
pub fn runtime_library() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(RUNTIME_VARIABLE).filter(|name| !name.is_empty()) {
        return Some(named.into());
    }
    let inside = Path::new("native")
        .join(format!("onnxruntime-{RUNTIME_VERSION}"))
        .join(format!("lib/libonnxruntime.so.{RUNTIME_VERSION}"));
    let program = std::env::current_exe().unwrap_or_default();
    let folders = program.ancestors().skip(1).chain([Path::new("target")]);
    folders.map(|folder| folder.join(&inside)).find(|file| file.is_file())
}

/// Loads the library once per process and gives its description.
///
/// # Errors
/// [`Error::OnnxRuntime`]: not there, or too old.
pub fn runtime() -> Result<&'static str> {
    static LOADED: OnceLock<std::result::Result<&'static str, String>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        let library = runtime_library().ok_or("it is not installed")?;
        ort::init_from(&library).map_err(|e| e.to_string())?.with_telemetry(false).commit();
        Ok(ort::info())
    });
    loaded.clone().map_err(|reason| Error::OnnxRuntime { reason })
}

/// One input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name in the file.
    pub name: String,
    /// Its sizes; `None` where the file leaves them open.
    pub dims: Vec<Option<usize>>,
    kind: TensorElementType,
}

/// Numbers with their sizes, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Sizes, outermost first.
    pub dims: Vec<usize>,
    /// As many numbers as the product of the sizes.
    pub values: Vec<f32>,
}

/// A model that was read, with its session. May be asked from several threads; they take turns.
#[derive(Debug)]
pub struct OnnxModel {
    path: PathBuf,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    session: Mutex<Session>,
}

impl OnnxModel {
    /// Reads a file. `threads` of one answer; 0 leaves that to the runtime.
    ///
    /// # Errors
    /// [`Error::OnnxRuntime`]; [`Error::Onnx`]: no model that the runtime can run, or one with inputs or outputs that are
    /// no tensors.
    pub fn load(path: &Path, threads: usize) -> Result<Self> {
        runtime()?;
        let refused = |reason: String| Error::Onnx { path: path.into(), reason };
        let size = std::fs::metadata(path).map_err(|e| refused(e.to_string()))?.len();
        if size > MOST_BYTES {
            return Err(refused(format!("{size} bytes are more than any model here")));
        }
        let session = || -> std::result::Result<Session, String> {
            let mut builder = Session::builder().map_err(|e| e.to_string())?;
            if threads > 0 {
                builder = builder.with_intra_threads(threads).map_err(|e| e.to_string())?;
            }
            builder.commit_from_file(path).map_err(|e| e.to_string())
        };
        let session = session().map_err(refused)?;
        let ports = |all: &[ort::value::Outlet]| all.iter().map(port).collect::<Option<Vec<_>>>();
        let tensors = || refused("it takes or gives something that is no tensor".into());
        let (inputs, outputs) =
            (ports(session.inputs()).ok_or_else(tensors)?, ports(session.outputs()).ok_or_else(tensors)?);
        Ok(Self { path: path.into(), inputs, outputs, session: Mutex::new(session) })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it takes, in the file's order.
    #[must_use]
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// What it gives, in the file's order.
    #[must_use]
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// Runs the model on one array per input, in the order of [`inputs`](Self::inputs); gives the outputs in theirs. Values
    /// are converted to what the file says an input is, and back.
    ///
    /// # Errors
    /// [`Error::Onnx`]: another number of arrays, sizes that do not fit, an element type that holds no numbers, or what
    /// the runtime says.
    pub fn run(&self, inputs: Vec<Array>) -> Result<Vec<Array>> {
        if inputs.len() != self.inputs.len() {
            let what = format!("it takes {} tensors, not {}", self.inputs.len(), inputs.len());
            return Err(self.refused(what));
        }
        let mut given = Vec::with_capacity(inputs.len());
        for (port, array) in self.inputs.iter().zip(inputs) {
            let open = |(want, got): (&Option<usize>, &usize)| want.is_none_or(|want| want == *got);
            let fits = port.dims.len() == array.dims.len() && port.dims.iter().zip(&array.dims).all(open);
            if !fits || array.dims.iter().product::<usize>() != array.values.len() {
                let what = format!("`{}` is {}, not {:?}", port.name, port.shape(), array.dims);
                return Err(self.refused(what));
            }
            let value = to_value(port.kind, array).map_err(|why| self.refused(why))?;
            given.push((port.name.as_str(), value));
        }
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = session.run(given).map_err(|e| self.refused(e.to_string()))?;
        let read = |port: &Port| {
            let value = answer.get(&port.name).ok_or_else(|| format!("it did not give `{}`", port.name))?;
            from_value(port, value)
        };
        self.outputs.iter().map(|port| read(port).map_err(|why| self.refused(why))).collect()
    }

    fn refused(&self, reason: String) -> Error {
        Error::Onnx { path: self.path.clone(), reason }
    }
}

impl Port {
    /// Its sizes for a person, `[1, 3, ?, ?]`.
    fn shape(&self) -> String {
        let sizes: Vec<String> =
            self.dims.iter().map(|d| d.map_or_else(|| "?".to_owned(), |d| d.to_string())).collect();
        format!("[{}]", sizes.join(", "))
    }

    fn rank(&self) -> usize {
        self.dims.len()
    }
}

fn port(outlet: &ort::value::Outlet) -> Option<Port> {
    let kind = outlet.dtype();
    let dims = kind.tensor_shape()?.iter().map(|&d| usize::try_from(d).ok()).collect();
    Some(Port { name: outlet.name().to_owned(), dims, kind: kind.tensor_type()? })
}

fn to_value(kind: TensorElementType, array: Array) -> std::result::Result<DynValue, String> {
    let Array { dims, values } = array;
    macro_rules! tensor {
        ($convert:expr) => {
            Tensor::from_array((dims, values.into_iter().map($convert).collect::<Vec<_>>()))
                .map_err(|e| e.to_string())?
                .into_dyn()
        };
    }
    Ok(match kind {
        TensorElementType::Float32 => {
            Tensor::from_array((dims, values)).map_err(|e| e.to_string())?.into_dyn()
        }
        TensorElementType::Float64 => tensor!(f64::from),
        // Pixels and numbers of frames: rounded, not cut.
        TensorElementType::Uint8 => tensor!(|x| x.round() as u8),
        TensorElementType::Int32 => tensor!(|x| x.round() as i32),
        TensorElementType::Int64 => tensor!(|x| x.round() as i64),
        TensorElementType::Bool => tensor!(|x| x != 0.0),
        other => return Err(format!("it takes {other:?}, which is not supported")),
    })
}

fn from_value(port: &Port, value: &DynValue) -> std::result::Result<Array, String> {
    // What the file says may be open; what came out is not.
    let kind = value.dtype().tensor_type().unwrap_or(port.kind);
    macro_rules! numbers {
        ($T:ty, $convert:expr) => {{
            let (shape, data) = value.try_extract_tensor::<$T>().map_err(|e| e.to_string())?;
            let dims = shape.iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect();
            Array { dims, values: data.iter().map($convert).collect() }
        }};
    }
    Ok(match kind {
        TensorElementType::Float32 => numbers!(f32, |x| *x),
        TensorElementType::Float64 => numbers!(f64, |x| *x as f32),
        TensorElementType::Uint8 => numbers!(u8, |x| f32::from(*x)),
        TensorElementType::Int32 => numbers!(i32, |x| *x as f32),
        TensorElementType::Int64 => numbers!(i64, |x| *x as f32),
        TensorElementType::Bool => numbers!(bool, |x| f32::from(u8::from(*x))),
        other => return Err(format!("`{}` is {other:?}, which is not supported", port.name)),
    })
}
