//! Differentiable fused tensor operations with exact gradients.
