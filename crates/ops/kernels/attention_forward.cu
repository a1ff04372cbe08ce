// Attention on tensor cores, forward: the scheme of FlashAttention-2 (Dao 2023, arXiv 2307.08691).
//
// A block of 4 warps works on 128 queries of one head, each warp on 32 (so that every fragment of keys and values it
// loads serves two products), whose scores, probabilities and outputs stay in its registers. Keys and values pass by in
// tiles through two stages of shared memory: while one is multiplied, the next is under way.
#include "attention.cuh"

namespace efference {

constexpr int QUERIES = 128, THREADS = 128, ROWS = 2;  // ROWS: tiles of 16 queries of a warp

// How the registers are shared out: a thread has 255, of which the outputs take D.
template <int D>
struct Plan {
    static constexpr bool HOLD = D <= 80;            // queries stay in registers (D / 2 of them)
    static constexpr int KEYS = D <= 64 ? 64 : 32;   // keys of a tile; their scores take as many registers
};

// Shared memory holds 256 rows: the stages from row 0 on, the queries in rows 128 to 255. With tiles of 64 keys the
// second stage lies over the queries, which must be in registers by then.
template <class T, int D, bool PACKED>
__device__ __forceinline__ void attention(const T* q, const T* k, const T* v, T* out, float* lse, const Shape s) {
    constexpr int KEYS = Plan<D>::KEYS;
    constexpr bool HOLD = Plan<D>::HOLD;
    static_assert(HOLD || 4 * KEYS <= 128, "queries in shared memory must not be overwritten");
    SHARED_DYNAMIC(raw);
    T* memory = reinterpret_cast<T*>(raw);
    constexpr int SIZE = Tile<T, D>::size(KEYS);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int sample = blockIdx.z, head = blockIdx.y;
    // Packed: the queries of all heads that share a key-value head follow each other in memory and are rows of one
    // matrix, row r at position r % Tq. For decoding, where a head has a query or two.
    int group = s.heads / s.kv_heads;
    const int rows = PACKED ? group * s.tq : s.tq;
    auto position = [&](int row) { return PACKED ? row % s.tq : row; };
    // The last queries see most keys under a causal mask: they start first.
    int first_row = (gridDim.x - 1 - blockIdx.x) * QUERIES;
    if (first_row >= rows) return;
    i64 q_head = i64(sample) * s.heads + (PACKED ? head * group : head);
    i64 kv_head = i64(sample) * s.kv_heads + (PACKED ? head : head / group);
    q += q_head * s.tq * s.head_dim;
    out += q_head * s.tq * s.head_dim;
    lse += q_head * s.tq;
    k += kv_head * s.tk * s.head_dim;
    v += kv_head * s.tk * s.head_dim;
    const u8* valid = s.valid_of(sample);

    // The first and the last position among rows first .. end.
    auto one_head = [&](int first, int end) { return !PACKED || first / s.tq == (end - 1) / s.tq; };
    auto first_position = [&](int first, int end) { return one_head(first, end) ? position(first) : 0; };
    auto last_position = [&](int first, int end) { return one_head(first, end) ? position(end - 1) : s.tq - 1; };
    int end_row = first_row + QUERIES < rows ? first_row + QUERIES : rows;
    int tiles = (s.keys_end(last_position(first_row, end_row)) + KEYS - 1) / KEYS;
    auto keys_of = [&](int tile) { return Tile<T, D>{memory + tile % 2 * 2 * SIZE}; };
    auto values_of = [&](int tile) { return Tile<T, D>{memory + (tile % 2 * 2 + 1) * SIZE}; };
    auto fetch = [&](int tile) {
        if (tile < tiles) {
            keys_of(tile).template load_async<KEYS, THREADS>(k, tile * KEYS, s.tk, s.head_dim);
            values_of(tile).template load_async<KEYS, THREADS>(v, tile * KEYS, s.tk, s.head_dim);
        }
        copies_commit();
    };

    const int my_row = warp * ROWS * 16;  // the warp's first in the block
    Tile<T, D> queries{memory + Tile<T, D>::size(128)};
    // With a negative scale the queries change their signs instead, so that the largest product is the largest score.
    auto load_queries = [&](u32(&a)[4], int m, int d) {
        queries.load_a(a, my_row + m * 16, d * 16);
        if (s.scale < 0.0f) {
#pragma unroll
            for (int i = 0; i < 4; ++i) a[i] ^= 0x80008000u;
        }
    };
    u32 query[HOLD ? D / 16 : 1][ROWS][4];
    queries.template load_async<QUERIES, THREADS>(q, first_row, rows, s.head_dim);
    copies_commit();
    fetch(0);
    if (HOLD) {
        copies_wait<1>();
        __syncthreads();
#pragma unroll
        for (int d = 0; d < D / 16; ++d) {
#pragma unroll
            for (int m = 0; m < ROWS; ++m) load_queries(query[HOLD ? d : 0][m], m, d);
        }
        __syncthreads();
    }

    float output[ROWS][D / 8][4];
    // Of rows g and g + 8 of each tile: the largest product, the lane's share of the sum of powers.
    float top[ROWS][2], total[ROWS][2];
#pragma unroll
    for (int m = 0; m < ROWS; ++m) {
        clear(output[m]);
        top[m][0] = top[m][1] = NEG_INFINITY;
        total[m][0] = total[m][1] = 0.0f;
    }
    // Products times this are powers of 2. Above 0, so that -inf times it is -inf.
    float factor = fmaxf(fabsf(s.scale) * LOG2_E, 1e-37f);
    // Keys from here on are hidden from all of the warp's queries; none are visible to queries beyond the last.
    int my_first = first_row + my_row, my_last = my_first + ROWS * 16 < rows ? my_first + ROWS * 16 : rows;
    int my_end = my_first < rows ? s.keys_end(last_position(my_first, my_last)) : 0;
    int my_least = my_first < rows ? first_position(my_first, my_last) : 0;

    for (int tile = 0; tile < tiles; ++tile) {
        fetch(tile + 1);
        copies_wait<1>();
        __syncthreads();
        Tile<T, D> keys = keys_of(tile), values = values_of(tile);
        int first_key = tile * KEYS;
        if (first_key < my_end) {
            float score[ROWS][KEYS / 8][4];
#pragma unroll
            for (int m = 0; m < ROWS; ++m) clear(score[m]);
#pragma unroll
            for (int d = 0; d < D / 16; ++d) {
                u32 a[ROWS][4];
                if (!HOLD) {
#pragma unroll
                    for (int m = 0; m < ROWS; ++m) load_queries(a[m], m, d);
                }
#pragma unroll
                for (int n = 0; n < KEYS / 16; ++n) {
                    u32 b[4];
                    keys.load_b_transposed(b, n * 16, d * 16);
#pragma unroll
                    for (int m = 0; m < ROWS; ++m) {
                        const u32(&rows)[4] = HOLD ? query[HOLD ? d : 0][m] : a[m];
                        multiply<T>(score[m][2 * n], rows, b[0], b[1]);
                        multiply<T>(score[m][2 * n + 1], rows, b[2], b[3]);
                    }
                }
            }
            if (!s.all_visible(my_least, first_key + KEYS)) {
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
                    for (int j = 0; j < 2; ++j) {
                        int key = first_key + n * 8 + 2 * t + j;
                        bool visible = s.key_visible(valid, key);
#pragma unroll
                        for (int m = 0; m < ROWS; ++m) {
#pragma unroll
                            for (int r = 0; r < 2; ++r) {
                                int query = position(my_first + m * 16 + g + 8 * r);
                                if (!visible || !s.pair_visible(query, key)) score[m][n][2 * r + j] = NEG_INFINITY;
                            }
                        }
                    }
                }
            }
#pragma unroll
            for (int m = 0; m < ROWS; ++m) {
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    float largest = top[m][r];
#pragma unroll
                    for (int n = 0; n < KEYS / 8; ++n) {
                        largest = fmaxf(largest, fmaxf(score[m][n][2 * r], score[m][n][2 * r + 1]));
                    }
                    largest = quad_max(largest);
                    // While nothing is visible there is nothing to rescale; 0 keeps -inf - -inf away. Every rounding is
                    // spelled out: an unchanged largest must rescale by exactly 1, and all ways to launch this must
                    // give the same bits, so the compiler may not choose what to fuse.
                    float base = largest == NEG_INFINITY ? 0.0f : __fmul_rn(largest, factor);
                    float rescale = exp2_fast(__fadd_rn(__fmul_rn(top[m][r], factor), -base));
                    top[m][r] = largest;
                    total[m][r] = __fmul_rn(total[m][r], rescale);
#pragma unroll
                    for (int n = 0; n < D / 8; ++n) {
                        output[m][n][2 * r] *= rescale;
                        output[m][n][2 * r + 1] *= rescale;
                    }
#pragma unroll
                    for (int n = 0; n < KEYS / 8; ++n) {
                        score[m][n][2 * r] = exp2_fast(__fmaf_rn(score[m][n][2 * r], factor, -base));
                        score[m][n][2 * r + 1] = exp2_fast(__fmaf_rn(score[m][n][2 * r + 1], factor, -base));
                        total[m][r] += score[m][n][2 * r] + score[m][n][2 * r + 1];
                    }
                }
            }
#pragma unroll
            for (int j = 0; j < KEYS / 16; ++j) {
                u32 p[ROWS][4];
#pragma unroll
                for (int m = 0; m < ROWS; ++m) as_a<T>(p[m], score[m][2 * j], score[m][2 * j + 1]);
#pragma unroll
                for (int n = 0; n < D / 16; ++n) {
                    u32 b[4];
                    values.load_b(b, j * 16, n * 16);
#pragma unroll
                    for (int m = 0; m < ROWS; ++m) {
                        multiply<T>(output[m][2 * n], p[m], b[0], b[1]);
                        multiply<T>(output[m][2 * n + 1], p[m], b[2], b[3]);
                    }
                }
            }
        }
        __syncthreads();  // the stage may be overwritten
    }
    copies_wait<0>();  // no copy may land on what is stored below
    __syncthreads();

    Tile<T, D> results{memory};
#pragma unroll
    for (int m = 0; m < ROWS; ++m) {
        float inverse[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float sum = quad_sum(total[m][r]);
            inverse[r] = sum == 0.0f ? 0.0f : 1.0f / sum;
            int row = my_first + m * 16 + g + 8 * r;
            float log = __fmaf_rn(__fmul_rn(top[m][r], factor), LN_2, logf(sum));
            if (t == 0 && row < rows) lse[row] = sum == 0.0f ? NEG_INFINITY : log;
        }
        int at = my_row + m * 16;
        results.store(output[m], inverse[0], inverse[1], at, out, first_row + at, rows, s.head_dim);
    }
}

}  // namespace efference

using namespace efference;

#define FORWARD(NAME, T, D)                                                                                    \
    KERNEL_BOUNDS(128, attention_##NAME##_d##D, const T* q, const T* k, const T* v, T* out, float* lse,        \
                  ATTENTION_TAIL) {                                                                            \
        if (gridDim.y == u32(heads)) {                                                                         \
            attention<T, D, false>(q, k, v, out, lse, ATTENTION_SHAPE);                                        \
        } else {                                                                                               \
            attention<T, D, true>(q, k, v, out, lse, ATTENTION_SHAPE);                                         \
        }                                                                                                      \
    }
#define SIZES(NAME, T) FORWARD(NAME, T, 64) FORWARD(NAME, T, 80) FORWARD(NAME, T, 96) FORWARD(NAME, T, 128)
SIZES(f16, __half)
SIZES(bf16, __nv_bfloat16)
