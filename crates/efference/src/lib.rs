//! Train, watch and evaluate multimodal and embodied policies.
