//! Networks with Hugging Face tensor names: vision encoders, language models, the OpenVLA-OFT shaped policy.
