// Layer norm and RMS norm over the last axis, forward (with a residual) and backward.
//
// One block works on one row at a time and holds it in registers: each thread up to 8 of its numbers, so device memory
// is read once and written once.
#include "common.cuh"

namespace efference {

constexpr int HELD = 8;  // numbers of a row per thread

// Which numbers of a row a thread holds: packs of N in turn, or single numbers where vectors do not fit. Slot s of
// `HELD` is number `at(s)` of the row.
template <int N>
struct Slot {
    __device__ static __forceinline__ int at(int s) {
        return (s / N * blockDim.x + threadIdx.x) * N + s % N;
    }
};

template <int N, class T>
__device__ __forceinline__ void load_row(const T* row, int width, float (&x)[HELD]) {
#pragma unroll
    for (int s = 0; s < HELD; s += N) {
        int at = Slot<N>::at(s);
        float part[N];
        if (at < width) {
            load<N>(row + at, part);
        } else {
#pragma unroll
            for (int i = 0; i < N; ++i) part[i] = 0.0f;
        }
#pragma unroll
        for (int i = 0; i < N; ++i) x[s + i] = part[i];
    }
}

template <int N, class T>
__device__ __forceinline__ void store_row(T* row, int width, const float (&x)[HELD]) {
#pragma unroll
    for (int s = 0; s < HELD; s += N) {
        int at = Slot<N>::at(s);
        float part[N];
#pragma unroll
        for (int i = 0; i < N; ++i) part[i] = x[s + i];
        if (at < width) store<N>(row + at, part);
    }
}

// Mean to subtract and factor to multiply by.
template <bool RMS, int N>
__device__ __forceinline__ void statistics(const float (&x)[HELD], int width, float eps, float& mean, float& scale) {
    mean = 0.0f;
    if (!RMS) {
        float sum[1] = {0.0f};
#pragma unroll
        for (int s = 0; s < HELD; ++s) sum[0] += x[s];
        block_sum(sum);
        mean = sum[0] / width;
    }
    float squares[1] = {0.0f};
#pragma unroll
    for (int s = 0; s < HELD; ++s) {
        float off = Slot<N>::at(s) < width ? x[s] - mean : 0.0f;
        squares[0] += off * off;
    }
    block_sum(squares);
    scale = 1.0f / sqrtf(squares[0] / width + eps);
}

template <bool RMS, int N, class T>
__device__ __forceinline__ void forward(const T* x, const T* residual, const T* weight, const T* bias, T* sum, T* y,
                                        float* stats, int width, float eps) {
    i64 row = blockIdx.x, from = row * width;
    float a[HELD], w[HELD];
    load_row<N>(x + from, width, a);
    if (residual) {
        load_row<N>(residual + from, width, w);
#pragma unroll
        for (int s = 0; s < HELD; ++s) a[s] = rounded<T>(a[s] + w[s]);
        store_row<N>(sum + from, width, a);
    }
    load_row<N>(weight, width, w);  // before the sums: under way while they wait
    float mean, scale;
    statistics<RMS, N>(a, width, eps, mean, scale);
    if (RMS) {
#pragma unroll
        for (int s = 0; s < HELD; ++s) a[s] = a[s] * scale * w[s];
    } else {
        float b[HELD];
        load_row<N>(bias, width, b);
#pragma unroll
        for (int s = 0; s < HELD; ++s) a[s] = (a[s] - mean) * scale * w[s] + b[s];
    }
    store_row<N>(y + from, width, a);
    if (stats && threadIdx.x == 0) {
        stats[2 * row] = mean;
        stats[2 * row + 1] = scale;
    }
}

template <bool RMS, class T>
__device__ __forceinline__ void norm(const T* x, const T* residual, const T* weight, const T* bias, T* sum, T* y,
                                     float* stats, int width, float eps) {
    constexpr int N = Width<T>::N;
    if (width % N == 0 && aligned_to(16, x, residual, weight, bias, sum, y)) {
        forward<RMS, N>(x, residual, weight, bias, sum, y, stats, width, eps);
    } else {
        forward<RMS, 1>(x, residual, weight, bias, sum, y, stats, width, eps);
    }
}

// With n = (x - mean) scale and g = dy weight: dx = (g - mean(g) - n mean(g n)) scale, no mean(g) for RMS.
template <bool RMS, int N, class T>
__device__ __forceinline__ void backward(const T* x, const T* weight, const T* dy, const T* dsum, const float* stats,
                                         T* dx, float* dw, float* db, i64 rows, int width, int part, float eps) {
    i64 first = i64(blockIdx.x) * part, end = first + part < rows ? first + part : rows;
    float sum_w[HELD], sum_b[HELD];
#pragma unroll
    for (int s = 0; s < HELD; ++s) sum_w[s] = sum_b[s] = 0.0f;
    for (i64 row = first; row < end; ++row) {
        i64 from = row * width;
        float a[HELD], g[HELD];
        load_row<N>(x + from, width, a);
        load_row<N>(dy + from, width, g);
        float mean, scale;
        if (stats) {
            mean = stats[2 * row];
            scale = stats[2 * row + 1];
        } else {
            statistics<RMS, N>(a, width, eps, mean, scale);
        }
        // Again for every row: from the nearest cache, and eight registers less than keeping it.
        float w[HELD];
        load_row<N>(weight, width, w);
        float sums[2] = {0.0f, 0.0f};
#pragma unroll
        for (int s = 0; s < HELD; ++s) {
            a[s] = (a[s] - mean) * scale;  // beyond the row g is 0, and so is all it is multiplied by
            sum_w[s] += g[s] * a[s];
            if (!RMS) sum_b[s] += g[s];
            g[s] *= w[s];
            sums[0] += g[s] * a[s];
            sums[1] += g[s];
        }
        if (RMS) {
            float along[1] = {sums[0]};
            block_sum(along);
            sums[0] = along[0];
        } else {
            block_sum(sums);
        }
        float along = sums[0] / width, level = RMS ? 0.0f : sums[1] / width;
#pragma unroll
        for (int s = 0; s < HELD; ++s) g[s] = (g[s] - level - a[s] * along) * scale;
        if (dsum) {
            load_row<N>(dsum + from, width, a);
#pragma unroll
            for (int s = 0; s < HELD; ++s) g[s] += a[s];
        }
        store_row<N>(dx + from, width, g);
    }
    // f32 whatever T: as single numbers or four at a time, whichever the slots allow.
    constexpr int M = N < 4 ? N : 4;
    i64 to = i64(blockIdx.x) * width;
#pragma unroll
    for (int s = 0; s < HELD; s += M) {
        int at = Slot<N>::at(s);
        if (at >= width) continue;
        float a[M], b[M];
#pragma unroll
        for (int i = 0; i < M; ++i) {
            a[i] = sum_w[s + i];
            b[i] = sum_b[s + i];
        }
        if (dw) store<M>(dw + to + at, a);
        if (!RMS && db) store<M>(db + to + at, b);
    }
}

template <bool RMS, class T>
__device__ __forceinline__ void norm_grad(const T* x, const T* weight, const T* dy, const T* dsum, const float* stats,
                                          T* dx, float* dw, float* db, i64 rows, int width, int part, float eps) {
    constexpr int N = Width<T>::N;
    bool vectors = width % N == 0 && aligned_to(16, x, weight, dy, dsum, dx) && aligned_to(16, dw, db);
    if (vectors) {
        backward<RMS, N>(x, weight, dy, dsum, stats, dx, dw, db, rows, width, part, eps);
    } else {
        backward<RMS, 1>(x, weight, dy, dsum, stats, dx, dw, db, rows, width, part, eps);
    }
}

}  // namespace efference

using namespace efference;

#define KERNELS(NAME, T)                                                                                       \
    KERNEL_BOUNDS(1024, layer_norm_##NAME, const T* x, const T* residual, const T* weight, const T* bias,      \
                  T* sum, T* y, float* stats, i64 rows, int width, float eps) {                                \
        (void)rows;                                                                                            \
        norm<false>(x, residual, weight, bias, sum, y, stats, width, eps);                                     \
    }                                                                                                          \
    KERNEL_BOUNDS(1024, rms_norm_##NAME, const T* x, const T* residual, const T* weight, T* sum, T* y,         \
                  float* stats, i64 rows, int width, float eps) {                                              \
        (void)rows;                                                                                            \
        norm<true, T>(x, residual, weight, nullptr, sum, y, stats, width, eps);                                \
    }                                                                                                          \
    KERNEL_BOUNDS(1024, layer_norm_grad_##NAME, const T* x, const T* weight, const T* dy, const T* dsum,        \
                  const float* stats, T* dx, float* dw, float* db, i64 rows, int width, int part, float eps) { \
        norm_grad<false>(x, weight, dy, dsum, stats, dx, dw, db, rows, width, part, eps);                      \
    }                                                                                                          \
    KERNEL_BOUNDS(1024, rms_norm_grad_##NAME, const T* x, const T* weight, const T* dy, const T* dsum,          \
                  const float* stats, T* dx, float* dw, i64 rows, int width, int part, float eps) {            \
        norm_grad<true, T>(x, weight, dy, dsum, stats, dx, dw, nullptr, rows, width, part, eps);               \
    }
FOR_EACH_TYPE(KERNELS)
