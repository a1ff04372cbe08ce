// What the attention kernels share: who sees whom, and tiles of tensor-core operands.
#pragma once
#include "tensor_core.cuh"

namespace efference {

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

enum MaskMode { FULL = 0, CAUSAL = 1, BLOCKS = 2, PREFIX = 3 };

// The arguments that all attention kernels end with.
#define ATTENTION_TAIL                                                                                           \
    const u8 *key_valid, const u32 *blocks, int heads, int kv_heads, int tq, int tk, int head_dim, float scale, \
        int mask, int prefix
#define ATTENTION_SHAPE \
    Shape { key_valid, blocks, heads, kv_heads, tq, tk, head_dim, scale, mask, prefix }

struct Shape {
    const u8* key_valid;  // [B, Tk] or null
    const u32* blocks;    // [T] or null
    int heads, kv_heads, tq, tk, head_dim;
    float scale;
    int mask, prefix;

    // Keys behind this one are hidden from queries up to `query`.
    __device__ __forceinline__ int keys_end(int query) const {
        if (mask != CAUSAL && mask != PREFIX) return tk;
        int end = query + tk - tq + 1;
        if (mask == PREFIX && end < prefix) end = prefix;
        return end < tk ? end : tk;
    }
    // Queries before this one do not see keys from `key` on.
    __device__ __forceinline__ int queries_start(int key) const {
        if ((mask != CAUSAL && mask != PREFIX) || (mask == PREFIX && key < prefix)) return 0;
        int start = key - (tk - tq);
        return start > 0 ? start : 0;
    }
    // Whether every query from `query` on sees every key before `end`, so that no pair need be looked at.
    __device__ __forceinline__ bool all_visible(int query, int end) const {
        if (end > tk || key_valid || mask == BLOCKS) return false;
        if (mask == FULL) return true;
        return end - 1 <= query + tk - tq || (mask == PREFIX && end <= prefix);
    }
    // `valid` is the sample's row of key_valid, or null.
    __device__ __forceinline__ bool key_visible(const u8* valid, int key) const {
        return key < tk && (!valid || valid[key] != 0);
    }
    // For a key that is visible by itself; `query` may lie beyond the last.
    __device__ __forceinline__ bool pair_visible(int query, int key) const {
        if (mask == FULL) return true;
        if (mask == BLOCKS) return query < tq && blocks[key] <= blocks[query];
        return key <= query + tk - tq || (mask == PREFIX && key < prefix);
    }
    __device__ __forceinline__ const u8* valid_of(int sample) const {
        return key_valid ? key_valid + i64(sample) * tk : nullptr;
    }
};

// Rows of D numbers in shared memory, each 16 bytes longer than it must be: eight rows then start in eight different
// groups of four banks, for every D that is a multiple of 16, and ldmatrix has no conflicts.
template <class T, int D>
struct Tile {
    static constexpr int STRIDE = D + 8;
    T* at;

    __device__ __forceinline__ T* row(int i) const { return at + i * STRIDE; }
    __device__ static constexpr int size(int rows) { return rows * STRIDE; }

    // Starts to load `ROWS` rows from `first` on of a [limit, width] matrix; what is beyond becomes 0.
    template <int ROWS, int THREADS>
    __device__ __forceinline__ void load_async(const T* from, int first, int limit, int width) const {
        constexpr int CHUNKS = D / 8;
#pragma unroll
        for (int c = threadIdx.x; c < ROWS * CHUNKS; c += THREADS) {
            int i = c / CHUNKS, column = c % CHUNKS * 8;
            bool valid = first + i < limit && column < width;
            copy_async<16>(row(i) + column, valid ? from + i64(first + i) * width + column : from, valid);
        }
    }

    // Rows i .. i + 16, columns k .. k + 16 as `a`.
    __device__ __forceinline__ void load_a(u32 (&a)[4], int i, int k) const {
        int lane = threadIdx.x % 32;
        load_matrices(a, row(i + lane % 16) + k + lane / 16 * 8);
    }
    // Rows n .. n + 16 are the columns of two products, columns k .. k + 16 their inner dimension: b[0], b[1] of the
    // first, b[2], b[3] of the second.
    __device__ __forceinline__ void load_b_transposed(u32 (&b)[4], int n, int k) const {
        int lane = threadIdx.x % 32;
        load_matrices(b, row(n + lane / 16 * 8 + lane % 8) + k + lane / 8 % 2 * 8);
    }
    // Rows k .. k + 16 are the inner dimension, columns n .. n + 16 the columns of two products.
    __device__ __forceinline__ void load_b(u32 (&b)[4], int k, int n) const {
        int lane = threadIdx.x % 32;
        load_matrices_transposed(b, row(k + lane % 16) + n + lane / 16 * 8);
    }

    // A warp's accumulators [16, D] times `factor` of the lane's two rows, through this tile (rows i .. i + 16, which are
    // the warp's alone) to rows `first` .. of `to` [limit, width].
    __device__ __forceinline__ void store(const float (&c)[D / 8][4], float factor0, float factor1, int i, T* to,
                                          int first, int limit, int width) const {
        int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) {
            u32 low = pack2<T>(c[n][0] * factor0, c[n][1] * factor0);
            u32 high = pack2<T>(c[n][2] * factor1, c[n][3] * factor1);
            *reinterpret_cast<u32*>(row(i + g) + n * 8 + 2 * t) = low;
            *reinterpret_cast<u32*>(row(i + g + 8) + n * 8 + 2 * t) = high;
        }
        __syncwarp();
        constexpr int CHUNKS = D / 8;
#pragma unroll
        for (int c16 = lane; c16 < 16 * CHUNKS; c16 += 32) {
            int r = c16 / CHUNKS, column = c16 % CHUNKS * 8;
            if (first + r < limit && column < width) {
                *reinterpret_cast<uint4*>(to + i64(first + r) * width + column) =
                    *reinterpret_cast<const uint4*>(row(i + r) + column);
            }
        }
        __syncwarp();
    }
};

// Accumulators of N products begin at 0.
template <int N>
__device__ __forceinline__ void clear(float (&c)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; ++n) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0.0f;
}

// Two neighbouring accumulators [16, 8] as the `a` of a following product, rounded to T.
template <class T>
__device__ __forceinline__ void as_a(u32 (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = pack2<T>(left[0], left[1]);
    a[1] = pack2<T>(left[2], left[3]);
    a[2] = pack2<T>(right[0], right[1]);
    a[3] = pack2<T>(right[2], right[3]);
}

// Largest and sum over the four lanes that share a row.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

}  // namespace efference
