//! Networks with Hugging Face tensor names.
//!
//! Read [`vla`] first: the vision-language-action policy in the shape of OpenVLA-OFT, made of [`vit`] (vision
//! encoder), [`llama`] (decoder) and [`projector`]s. [`flow`] is the generator of 3D flow. Every weight is a named entry of [`params::ParamStore`].
//! Everything that is trained goes through `efference_ops`.

pub mod action;
pub mod config;
pub mod conformance;
pub mod episode_encoder;
pub mod error;
pub mod flow;
mod layers;
pub mod llama;
pub mod onnx;
pub mod params;
pub mod pixels;
pub mod projector;
pub mod sampling;
pub mod sft;
pub mod tokenizer;
pub mod vit;
pub mod vla;

pub use action::{Quantiles, decode_action, encode_action};
pub use config::{ACTION_BINS, Placeholders, TextConfig, VisionConfig, VlaConfig};
pub use episode_encoder::{EpisodeEncoder, RandomConv, sample_frame_indices};
pub use error::{Error, Result};
pub use params::{Init, ParamPath, ParamStore};
pub use pixels::pixels_from_rgb;
pub use sampling::{Draw, sample_bins};
pub use sft::action_nll;
pub use tokenizer::{BUILT_IN_TOKENIZER, PromptIds, Tokenizer, prompt_text};
pub use vla::{Choice, SpecialIds, Vla, VlaInput, score_logits};
