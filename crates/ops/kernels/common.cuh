// What all kernels share: number types, vectors of 16 bytes, sums over a warp and a block.
#pragma once

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

// The emulation (emulation/cuda_emulation.h) registers kernels and watches shared memory through these names.
#define KERNEL_BOUNDS(bounds, name, ...) extern "C" __global__ void __launch_bounds__(bounds) name(__VA_ARGS__)
#define KERNEL(name, ...) extern "C" __global__ void name(__VA_ARGS__)
#define SHARED(type, name, count) __shared__ type name[count]
#define SHARED_DYNAMIC(name) extern __shared__ __align__(16) unsigned char name[]
#else
#include "emulation/cuda_emulation.h"
#endif

// `KERNELS(f32, float)` etc.: one kernel per type of the stored tensors.
#define FOR_EACH_TYPE(KERNELS) KERNELS(f32, float) KERNELS(f16, __half) KERNELS(bf16, __nv_bfloat16)

typedef long long i64;
typedef unsigned int u32;
typedef unsigned char u8;

namespace efference {

constexpr u32 ALL_LANES = 0xffffffffu;
constexpr float NEG_INFINITY = -INFINITY;

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_f32(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_f32(float x);
template <>
__device__ __forceinline__ float from_f32<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ __half from_f32<__half>(float x) {
    return __float2half(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_f32<__nv_bfloat16>(float x) {
    return __float2bfloat16(x);
}

// x as it will be read back from a tensor of T.
template <class T>
__device__ __forceinline__ float rounded(float x) {
    return to_f32(from_f32<T>(x));
}

// N numbers that are loaded and stored in one piece.
template <class T, int N>
struct __align__(sizeof(T) * N) Pack {
    T v[N];
};

// Numbers in 16 bytes.
template <class T>
struct Width {
    static constexpr int N = 16 / sizeof(T);
};

template <int N, class T>
__device__ __forceinline__ void load(const T* at, float (&out)[N]) {
    Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(at);
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = to_f32(pack.v[i]);
}

template <int N, class T>
__device__ __forceinline__ void store(T* at, const float (&in)[N]) {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; ++i) pack.v[i] = from_f32<T>(in[i]);
    *reinterpret_cast<Pack<T, N>*>(at) = pack;
}

// Whether all of the pointers (null is fine) allow accesses of `bytes`.
__device__ __forceinline__ bool aligned_to(u32 bytes, const void* a, const void* b = nullptr, const void* c = nullptr,
                                           const void* d = nullptr, const void* e = nullptr,
                                           const void* f = nullptr) {
    uintptr_t any = reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) | reinterpret_cast<uintptr_t>(c) |
                    reinterpret_cast<uintptr_t>(d) | reinterpret_cast<uintptr_t>(e) | reinterpret_cast<uintptr_t>(f);
    return (any & (bytes - 1)) == 0;
}

// out[k][i] = f(in[..][i])[k] for i < n; out may be in. `f(const float (&in)[IN], float (&out)[OUT])`.
template <int IN, int OUT, class T, class F>
__device__ __forceinline__ void each(i64 n, const T* const (&in)[IN], T* const (&out)[OUT], F f) {
    constexpr int N = Width<T>::N;
    i64 thread = i64(blockIdx.x) * blockDim.x + threadIdx.x, threads = i64(gridDim.x) * blockDim.x;
    bool aligned = true;
#pragma unroll
    for (int k = 0; k < IN; ++k) aligned = aligned && aligned_to(16, in[k]);
#pragma unroll
    for (int k = 0; k < OUT; ++k) aligned = aligned && aligned_to(16, out[k]);
    i64 packs = aligned ? n / N : 0;
    for (i64 p = thread; p < packs; p += threads) {
        float a[IN][N], b[OUT][N];
#pragma unroll
        for (int k = 0; k < IN; ++k) load<N>(in[k] + p * N, a[k]);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            float x[IN], y[OUT];
#pragma unroll
            for (int k = 0; k < IN; ++k) x[k] = a[k][i];
            f(x, y);
#pragma unroll
            for (int k = 0; k < OUT; ++k) b[k][i] = y[k];
        }
#pragma unroll
        for (int k = 0; k < OUT; ++k) store<N>(out[k] + p * N, b[k]);
    }
    for (i64 i = packs * N + thread; i < n; i += threads) {
        float x[IN], y[OUT];
#pragma unroll
        for (int k = 0; k < IN; ++k) x[k] = to_f32(in[k][i]);
        f(x, y);
#pragma unroll
        for (int k = 0; k < OUT; ++k) out[k][i] = from_f32<T>(y[k]);
    }
}

// The same sum, in the same bits, in every lane.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes >>= 1) x += __shfl_xor_sync(ALL_LANES, x, lanes);
    return x;
}

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes >>= 1) x += __shfl_xor_sync(ALL_LANES, x, lanes);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes >>= 1) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, lanes));
    return x;
}

// Sums over all threads of a one-dimensional block, the same bits in every thread.
template <int N, class S>
__device__ __forceinline__ void block_sum(S (&x)[N]) {
    SHARED(S, parts, N * 32);
#pragma unroll
    for (int k = 0; k < N; ++k) x[k] = warp_sum(x[k]);
    int warps = blockDim.x / 32;
    if (warps == 1) return;
    __syncthreads();  // an earlier call may still be reading
    if (threadIdx.x % 32 == 0) {
#pragma unroll
        for (int k = 0; k < N; ++k) parts[k * 32 + threadIdx.x / 32] = x[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < N; ++k) {
        S sum = parts[k * 32];
        for (int w = 1; w < warps; ++w) sum += parts[k * 32 + w];
        x[k] = sum;
    }
}

__device__ __forceinline__ float block_max(float x) {
    SHARED(float, parts, 32);
    x = warp_max(x);
    int warps = blockDim.x / 32;
    if (warps == 1) return x;
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = parts[0];
    for (int w = 1; w < warps; ++w) x = fmaxf(x, parts[w]);
    return x;
}

}  // namespace efference
