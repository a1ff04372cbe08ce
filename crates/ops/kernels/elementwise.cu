// Fill, cast, sum in place, activations.
#include "activation.cuh"

namespace efference {

template <class From, class To>
__device__ __forceinline__ void cast(const From* x, To* out, i64 n) {
    // As many numbers at once as fit 16 bytes of the wider type.
    constexpr int N = Width<From>::N < Width<To>::N ? Width<From>::N : Width<To>::N;
    i64 thread = i64(blockIdx.x) * blockDim.x + threadIdx.x, threads = i64(gridDim.x) * blockDim.x;
    i64 packs = aligned_to(16, x, out) ? n / N : 0;
    for (i64 p = thread; p < packs; p += threads) {
        float a[N];
        load<N>(x + p * N, a);
        store<N>(out + p * N, a);
    }
    for (i64 i = packs * N + thread; i < n; i += threads) out[i] = from_f32<To>(to_f32(x[i]));
}

template <class Y, class X>
__device__ __forceinline__ void scale_add(Y* y, const X* x, i64 n, float a, float b) {
    constexpr int N = Width<X>::N < Width<Y>::N ? Width<X>::N : Width<Y>::N;
    i64 thread = i64(blockIdx.x) * blockDim.x + threadIdx.x, threads = i64(gridDim.x) * blockDim.x;
    i64 packs = aligned_to(16, x, y) ? n / N : 0;
    for (i64 p = thread; p < packs; p += threads) {
        float u[N], v[N];
        load<N>(x + p * N, u);
        if (a != 0.0f) load<N>(y + p * N, v);
#pragma unroll
        for (int i = 0; i < N; ++i) u[i] = a != 0.0f ? a * v[i] + b * u[i] : b * u[i];
        store<N>(y + p * N, u);
    }
    for (i64 i = packs * N + thread; i < n; i += threads) {
        float u = b * to_f32(x[i]);
        y[i] = from_f32<Y>(a != 0.0f ? a * to_f32(y[i]) + u : u);
    }
}

template <class T>
struct Activate {
    const T* x;
    T* y;
    i64 n;
    template <int KIND>
    __device__ void run() const {
        const T* const in[1] = {x};
        T* const out[1] = {y};
        each(n, in, out, [](const float(&a)[1], float(&b)[1]) { b[0] = activate<KIND>(a[0]); });
    }
};

template <class T>
struct ActivateGrad {
    const T *x, *dy;
    T* dx;
    i64 n;
    template <int KIND>
    __device__ void run() const {
        const T* const in[2] = {x, dy};
        T* const out[1] = {dx};
        each(n, in, out, [](const float(&a)[2], float(&b)[1]) { b[0] = a[1] * slope<KIND>(a[0]); });
    }
};

}  // namespace efference

using namespace efference;

#define KERNELS(NAME, T)                                                                                       \
    KERNEL(fill_##NAME, T* out, i64 n, float value) {                                                          \
        i64 threads = i64(gridDim.x) * blockDim.x;                                                             \
        T rounded_value = from_f32<T>(value);                                                                  \
        for (i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += threads) out[i] = rounded_value;  \
    }                                                                                                          \
    KERNEL(activation_##NAME, const T* x, T* y, i64 n, int kind) { with_activation(kind, Activate<T>{x, y, n}); } \
    KERNEL(activation_grad_##NAME, const T* x, const T* dy, T* dx, i64 n, int kind) {                          \
        with_activation(kind, ActivateGrad<T>{x, dy, dx, n});                                                  \
    }                                                                                                          \
    KERNEL(swiglu_##NAME, const T* gate, const T* up, T* out, i64 n) {                                         \
        const T* const in[2] = {gate, up};                                                                     \
        T* const outs[1] = {out};                                                                              \
        each(n, in, outs, [](const float(&a)[2], float(&b)[1]) { b[0] = activate<SILU>(a[0]) * a[1]; });       \
    }                                                                                                          \
    KERNEL(swiglu_grad_##NAME, const T* gate, const T* up, const T* dout, T* dgate, T* dup, i64 n) {           \
        const T* const in[3] = {gate, up, dout};                                                               \
        T* const outs[2] = {dgate, dup};                                                                       \
        each(n, in, outs, [](const float(&a)[3], float(&b)[2]) {                                               \
            b[0] = a[2] * a[1] * slope<SILU>(a[0]);                                                            \
            b[1] = a[2] * activate<SILU>(a[0]);                                                                \
        });                                                                                                    \
    }
FOR_EACH_TYPE(KERNELS)

#define CAST(FROM_NAME, FROM, TO_NAME, TO) \
    KERNEL(cast_##FROM_NAME##_##TO_NAME, const FROM* x, TO* out, i64 n) { cast(x, out, n); }
CAST(f32, float, f16, __half)
CAST(f32, float, bf16, __nv_bfloat16)
CAST(f16, __half, f32, float)
CAST(f16, __half, bf16, __nv_bfloat16)
CAST(bf16, __nv_bfloat16, f32, float)
CAST(bf16, __nv_bfloat16, f16, __half)

#define SCALE_ADD(Y_NAME, Y, X_NAME, X) \
    KERNEL(scale_add_##Y_NAME##_##X_NAME, Y* y, const X* x, i64 n, float a, float b) { scale_add(y, x, n, a, b); }
SCALE_ADD(f32, float, f32, float)
SCALE_ADD(f32, float, f16, __half)
SCALE_ADD(f32, float, bf16, __nv_bfloat16)
SCALE_ADD(f16, __half, f16, __half)
SCALE_ADD(bf16, __nv_bfloat16, bf16, __nv_bfloat16)
