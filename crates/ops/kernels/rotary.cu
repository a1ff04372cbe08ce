// Rotary position embedding in the rotate-half convention, and its transpose.
#include "common.cuh"

namespace efference {

// Rotates N pairs (a[i], c[i]).
template <int N>
__device__ __forceinline__ void turn(float (&a)[N], float (&c)[N], const float (&cos)[N], const float (&sin)[N],
                                     float direction) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        float s = sin[i] * direction, first = a[i];
        a[i] = first * cos[i] - c[i] * s;
        c[i] = c[i] * cos[i] + first * s;
    }
}

template <int N, class T>
__device__ __forceinline__ void rotary(const T* x, const float* cos, const float* sin, const u32* positions, T* out,
                                       i64 rows, int heads, int tokens, int half, int batch_stride, int offset,
                                       float direction) {
    i64 thread = i64(blockIdx.x) * blockDim.x + threadIdx.x, threads = i64(gridDim.x) * blockDim.x;
    int packs = half / N;
    for (i64 p = thread; p < rows * packs; p += threads) {
        i64 row = p / packs;  // (sample, head, token)
        int i = int(p - row * packs) * N;
        int token = int(row % tokens);
        i64 number = row / tokens / heads * batch_stride + token;
        i64 angle = (positions ? i64(positions[number]) : number + offset) * half + i;
        i64 at = row * 2 * half + i;
        float a[N], c[N], cosines[N], sines[N];
        load<N>(x + at, a);
        load<N>(x + at + half, c);
        load<N>(cos + angle, cosines);
        load<N>(sin + angle, sines);
        turn(a, c, cosines, sines, direction);
        store<N>(out + at, a);
        store<N>(out + at + half, c);
    }
}

template <class T>
__device__ __forceinline__ void rotary(const T* x, const float* cos, const float* sin, const u32* positions, T* out,
                                       i64 rows, int heads, int tokens, int half, int batch_stride, int offset,
                                       int inverse) {
    float direction = inverse ? -1.0f : 1.0f;
    // Four pairs at once: 16 bytes of the tables, 8 or 16 of x.
    if (half % 4 == 0 && aligned_to(16, cos, sin) && aligned_to(4 * sizeof(T), x, out)) {
        rotary<4>(x, cos, sin, positions, out, rows, heads, tokens, half, batch_stride, offset, direction);
    } else {
        rotary<1>(x, cos, sin, positions, out, rows, heads, tokens, half, batch_stride, offset, direction);
    }
}

// Neighbouring elements are a pair, and each element has an angle of its own (V-JEPA 2, src/rotary_axes.rs):
// (a, b) -> (a cos0 - b sin0, b cos1 + a sin1).
template <class T>
__device__ __forceinline__ void rotary_pairs(const T* x, const float* cos, const float* sin, T* out, i64 rows,
                                             int heads, int tokens, int half, int batch_stride, int inverse) {
    i64 thread = i64(blockIdx.x) * blockDim.x + threadIdx.x, threads = i64(gridDim.x) * blockDim.x;
    for (i64 p = thread; p < rows * half; p += threads) {
        i64 row = p / half;
        int pair = int(p - row * half);
        i64 angle = ((row / tokens / heads * batch_stride + row % tokens) * half + pair) * 2;
        i64 at = p * 2;
        float a = to_f32(x[at]), b = to_f32(x[at + 1]);
        float cos0 = cos[angle], cos1 = cos[angle + 1], sin0 = sin[angle], sin1 = sin[angle + 1];
        if (inverse) {
            out[at] = from_f32<T>(a * cos0 + b * sin1);
            out[at + 1] = from_f32<T>(b * cos1 - a * sin0);
        } else {
            out[at] = from_f32<T>(a * cos0 - b * sin0);
            out[at + 1] = from_f32<T>(b * cos1 + a * sin1);
        }
    }
}

}  // namespace efference

using namespace efference;

#define KERNELS(NAME, T)                                                                                       \
    KERNEL(rotary_##NAME, const T* x, const float* cos, const float* sin, const u32* positions, T* out,        \
           i64 rows, int heads, int tokens, int half, int batch_stride, int offset, int inverse) {             \
        rotary(x, cos, sin, positions, out, rows, heads, tokens, half, batch_stride, offset, inverse);         \
    }                                                                                                          \
    KERNEL(rotary_pairs_##NAME, const T* x, const float* cos, const float* sin, T* out, i64 rows, int heads,   \
           int tokens, int half, int batch_stride, int inverse) {                                              \
        rotary_pairs(x, cos, sin, out, rows, heads, tokens, half, batch_stride, inverse);                      \
    }
FOR_EACH_TYPE(KERNELS)
