// AdamW over one parameter, the norm of gradients, the clipping factor.
#include "common.cuh"

namespace efference {

template <class G>
struct Compute {
    typedef __nv_bfloat16 Type;
};
template <>
struct Compute<__half> {
    typedef __half Type;
};

struct Rule {
    float factor, beta1, rest1, beta2, rest2, keep, rate, root, eps;

    // Every product and sum is rounded by itself, never fused: the same bits as on the CPU.
    __device__ __forceinline__ void step(float& w, float g, float& m, float& v) const {
        g = __fmul_rn(g, factor);
        m = __fadd_rn(__fmul_rn(m, beta1), __fmul_rn(g, rest1));
        v = __fadd_rn(__fmul_rn(v, beta2), __fmul_rn(__fmul_rn(g, g), rest2));
        float down = __fadd_rn(__fmul_rn(sqrtf(v), root), eps);
        w = __fadd_rn(__fmul_rn(w, keep), -__fmul_rn(m / down, rate));
    }
};

template <int N, class G, class C>
__device__ __forceinline__ void adamw(float* weight, const G* grad, float* exp_avg, float* exp_avg_sq, C* copy,
                                      i64 first, i64 end, Rule rule) {
    i64 thread = i64(blockIdx.x) * blockDim.x + threadIdx.x, threads = i64(gridDim.x) * blockDim.x;
    for (i64 at = first + thread * N; at < end; at += threads * N) {
        float w[N], g[N], m[N], v[N];
        load<N>(weight + at, w);
        load<N>(grad + at, g);
        load<N>(exp_avg + at, m);
        load<N>(exp_avg_sq + at, v);
#pragma unroll
        for (int i = 0; i < N; ++i) rule.step(w[i], g[i], m[i], v[i]);
        store<N>(weight + at, w);
        store<N>(exp_avg + at, m);
        store<N>(exp_avg_sq + at, v);
        if (copy) store<N>(copy + at, w);
    }
}

constexpr i64 SQUARES = 16384;  // elements per partial sum

template <class T>
__device__ __forceinline__ void sum_squares(const T* x, double* partial, i64 n) {
    constexpr int N = Width<T>::N;
    i64 first = i64(blockIdx.x) * SQUARES, rest = n - first;
    int count = int(rest < SQUARES ? rest : SQUARES);
    x += first;
    int packs = aligned_to(16, x) ? count / N : 0;
    // Squared in f64: the square of an f32 cannot overflow there.
    double sum[1] = {0.0};
#pragma unroll 4
    for (int p = threadIdx.x; p < packs; p += blockDim.x) {
        float a[N];
        load<N>(x + p * N, a);
#pragma unroll
        for (int i = 0; i < N; ++i) sum[0] += double(a[i]) * double(a[i]);
    }
    for (int i = packs * N + threadIdx.x; i < count; i += blockDim.x) {
        double a = to_f32(x[i]);
        sum[0] += a * a;
    }
    block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum[0];
}

}  // namespace efference

using namespace efference;

#define KERNELS(NAME, G)                                                                                       \
    KERNEL(adamw_##NAME, float* weight, const G* grad, float* exp_avg, float* exp_avg_sq,                      \
           Compute<G>::Type* copy, i64 n, const float* device_factor, float factor, float beta1, float rest1,  \
           float beta2, float rest2, float keep, float rate, float root, float eps) {                          \
        if (device_factor) factor *= device_factor[0];                                                         \
        Rule rule{factor, beta1, rest1, beta2, rest2, keep, rate, root, eps};                                  \
        bool vectors = aligned_to(16, weight, exp_avg, exp_avg_sq) && aligned_to(4 * sizeof(G), grad) &&       \
                       aligned_to(8, copy);                                                                    \
        i64 packed = vectors ? n / 4 * 4 : 0;                                                                  \
        adamw<4>(weight, grad, exp_avg, exp_avg_sq, copy, 0, packed, rule);                                    \
        adamw<1>(weight, grad, exp_avg, exp_avg_sq, copy, packed, n, rule);                                    \
    }                                                                                                          \
    KERNEL_BOUNDS(256, sum_squares_##NAME, const G* x, double* partial, i64 n) { sum_squares(x, partial, n); }
FOR_EACH_TYPE(KERNELS)

KERNEL_BOUNDS(1024, sum_finish, const double* partial, double* out, i64 n) {
    double sum[1] = {0.0};
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) sum[0] += partial[i];
    block_sum(sum);
    if (threadIdx.x == 0) out[0] = sum[0];
}

KERNEL(clip_factor, const double* sum, float* factor, double max_norm) {
    if (threadIdx.x != 0) return;
    double clip = max_norm / (sqrt(sum[0]) + 1e-6);
    // A sum that is not finite gives 0 or NaN here: the gradients stay as they are, the host skips the step.
    factor[0] = sum[0] < INFINITY && clip < 1.0 ? float(clip) : 1.0f;
}
