// The nonlinearities and their slopes, by the formulas of the CPU (src/activation.rs).
#pragma once
#include "common.cuh"

namespace efference {

enum Activation { NONE = -1, GELU_TANH = 0, GELU_ERF = 1, SILU = 2, RELU = 3 };

constexpr float GELU_LINEAR = 1.5957691216057308f;                // 2 sqrt(2 / pi)
constexpr float GELU_CUBIC = 1.5957691216057308f * 0.044715f;
constexpr float ROOT_HALF = 0.7071067811865476f;
constexpr float NORMAL_SCALE = 0.3989422804014327f;               // 1 / sqrt(2 pi)

__device__ __forceinline__ float clamp(float x, float limit) { return fminf(fmaxf(x, -limit), limit); }

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <int KIND>
__device__ __forceinline__ float activate(float x) {
    if (KIND == GELU_TANH) {
        // (1 + tanh u) / 2 = sigmoid(2u). Beyond 12 it is 0 or 1; the clamp keeps x^3 finite.
        float c = clamp(x, 12.0f);
        return x * sigmoid(c * (c * c * GELU_CUBIC + GELU_LINEAR));
    }
    if (KIND == GELU_ERF) return 0.5f * x + 0.5f * x * erff(x * ROOT_HALF);
    if (KIND == SILU) return x * sigmoid(x);
    if (KIND == RELU) return fmaxf(x, 0.0f);
    return x;
}

template <int KIND>
__device__ __forceinline__ float slope(float x) {
    if (KIND == GELU_TANH) {
        float c = clamp(x, 12.0f), c2 = c * c;
        float s = sigmoid(c * (c2 * GELU_CUBIC + GELU_LINEAR));
        float du = c2 * (3.0f * GELU_CUBIC) + GELU_LINEAR;
        return c * du * (1.0f - s) * s + s;
    }
    if (KIND == GELU_ERF) {
        float c = clamp(x, 40.0f);
        return c * NORMAL_SCALE * expf(-0.5f * c * c) + 0.5f * erff(x * ROOT_HALF) + 0.5f;
    }
    if (KIND == SILU) {
        float s = sigmoid(x);
        // Beyond 100 the second factor is exactly 0 and x could be infinite.
        return clamp(x, 100.0f) * (1.0f - s) * s + s;
    }
    if (KIND == RELU) return x > 0.0f ? 1.0f : 0.0f;
    return 1.0f;
}

// Calls `body.template run<KIND>()`: the switch stands outside of all loops.
template <class Body>
__device__ __forceinline__ void with_activation(int kind, Body body) {
    switch (kind) {
        case GELU_TANH: body.template run<GELU_TANH>(); break;
        case GELU_ERF: body.template run<GELU_ERF>(); break;
        case SILU: body.template run<SILU>(); break;
        case RELU: body.template run<RELU>(); break;
        default: body.template run<NONE>(); break;
    }
}

}  // namespace efference
