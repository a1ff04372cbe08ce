// Around a matrix product: bias and activation, and their gradients.
#include "activation.cuh"

namespace efference {

template <class T>
struct BiasActivation {
    const T *x, *bias;
    T *before, *y;
    i64 rows;
    int width;

    template <int KIND>
    __device__ void run() const {
        constexpr int N = Width<T>::N;
        i64 thread = i64(blockIdx.x) * blockDim.x + threadIdx.x, threads = i64(gridDim.x) * blockDim.x;
        i64 n = rows * width;
        // With a width that N divides, a pack lies in one row.
        bool vectors = width % N == 0 && aligned_to(16, x, bias, before, y);
        i64 packs = vectors ? n / N : 0;
        for (i64 p = thread; p < packs; p += threads) {
            float a[N];
            load<N>(x + p * N, a);
            if (bias) {
                float b[N];
                load<N>(bias + p * N % width, b);
#pragma unroll
                for (int i = 0; i < N; ++i) a[i] = rounded<T>(a[i] + b[i]);
            }
            if (before) store<N>(before + p * N, a);
#pragma unroll
            for (int i = 0; i < N; ++i) a[i] = activate<KIND>(a[i]);
            store<N>(y + p * N, a);
        }
        for (i64 i = packs * N + thread; i < n; i += threads) {
            float a = to_f32(x[i]);
            if (bias) a = rounded<T>(a + to_f32(bias[i % width]));
            if (before) before[i] = from_f32<T>(a);
            y[i] = from_f32<T>(activate<KIND>(a));
        }
    }
};

// A block takes 128 columns of `part` rows: 32 lanes with 4 columns each, 8 warps that take rows in turn.
template <class T>
struct BiasActivationGrad {
    const T *before, *dy;
    T* dx;
    float *partial, *sums;  // sums: shared memory for 8 * 128
    i64 rows;
    int width, part;

    template <int KIND>
    __device__ void run() const {
        constexpr int N = 4;
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        int column = (blockIdx.x * 32 + lane) * N;
        i64 first = i64(blockIdx.y) * part, end = first + part < rows ? first + part : rows;
        bool vectors = width % N == 0 && aligned_to(N * sizeof(T), KIND == NONE ? nullptr : before, dy, dx);
        int columns = width - column < N ? width - column : N;  // 0 or less: none
        float sum[N] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (columns > 0) {
#pragma unroll 4
            for (i64 row = first + warp; row < end; row += 8) {
                i64 at = row * width + column;
                float g[N], x[N];
                if (vectors) {
                    load<N>(dy + at, g);
                    if (KIND != NONE) load<N>(before + at, x);
                } else {
#pragma unroll
                    for (int i = 0; i < N; ++i) {
                        g[i] = i < columns ? to_f32(dy[at + i]) : 0.0f;
                        x[i] = KIND != NONE && i < columns ? to_f32(before[at + i]) : 0.0f;
                    }
                }
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    if (KIND != NONE) g[i] = rounded<T>(g[i] * slope<KIND>(x[i]));
                    sum[i] += g[i];
                }
                if (dx) {
                    if (vectors) {
                        store<N>(dx + at, g);
                    } else {
#pragma unroll
                        for (int i = 0; i < N; ++i) {
                            if (i < columns) dx[at + i] = from_f32<T>(g[i]);
                        }
                    }
                }
            }
        }
        if (!partial) return;
#pragma unroll
        for (int i = 0; i < N; ++i) sums[warp * 128 + lane * N + i] = sum[i];
        __syncthreads();
        int mine = blockIdx.x * 128 + threadIdx.x;
        if (threadIdx.x < 128 && mine < width) {
            float total = sums[threadIdx.x];
#pragma unroll
            for (int w = 1; w < 8; ++w) total += sums[w * 128 + threadIdx.x];
            partial[i64(blockIdx.y) * width + mine] = total;
        }
    }
};

// 32 columns a block; 8 warps take parts in turn, then their sums are added in order.
template <class T>
__device__ __forceinline__ void column_sum_finish(const float* partial, T* out, int parts, int width) {
    SHARED(float, sums, 8 * 32);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (column < width) {
#pragma unroll 8
        for (int part = warp; part < parts; part += 8) sum += partial[i64(part) * width + column];
    }
    sums[warp * 32 + lane] = sum;
    __syncthreads();
    if (warp == 0 && column < width) {
        float total = sums[lane];
#pragma unroll
        for (int w = 1; w < 8; ++w) total += sums[w * 32 + lane];
        out[column] = from_f32<T>(total);
    }
}

}  // namespace efference

using namespace efference;

#define KERNELS(NAME, T)                                                                                       \
    KERNEL(bias_activation_##NAME, const T* x, const T* bias, T* before, T* y, i64 rows, int width, int kind) { \
        with_activation(kind, BiasActivation<T>{x, bias, before, y, rows, width});                             \
    }                                                                                                          \
    KERNEL_BOUNDS(256, bias_activation_grad_##NAME, const T* before, const T* dy, T* dx, float* partial,       \
                  i64 rows, int width, int part, int kind) {                                                   \
        SHARED(float, sums, 8 * 128);                                                                          \
        with_activation(kind, BiasActivationGrad<T>{before, dy, dx, partial, sums, rows, width, part});        \
    }                                                                                                          \
    KERNEL_BOUNDS(256, column_sum_finish_##NAME, const float* partial, T* out, int parts, int width) {         \
        column_sum_finish(partial, out, parts, width);                                                         \
    }
FOR_EACH_TYPE(KERNELS)
