// Attention on tensor cores, forward: the scheme of FlashAttention-2 (Dao 2023, arXiv 2307.08691).
//
// A block of 4 warps works on 64 queries of one head, each warp on 16, whose scores, probabilities and outputs stay in
// its registers. Keys and values pass by in tiles of 64 through two stages of shared memory: while one is multiplied,
// the next is under way.
#include "attention.cuh"

namespace efference {

constexpr int QUERIES = 64, KEYS = 64, THREADS = 128;

template <class T, int D>
__device__ __forceinline__ void attention(const T* q, const T* k, const T* v, T* out, float* lse, const Shape s) {
    SHARED_DYNAMIC(raw);
    T* memory = reinterpret_cast<T*>(raw);
    constexpr int SIZE = Tile<T, D>::size(KEYS);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int sample = blockIdx.z, head = blockIdx.y;
    // The last queries see most keys under a causal mask: they start first.
    int first_query = (gridDim.x - 1 - blockIdx.x) * QUERIES;
    i64 q_head = i64(sample) * s.heads + head;
    i64 kv_head = i64(sample) * s.kv_heads + head / (s.heads / s.kv_heads);
    q += q_head * s.tq * s.head_dim;
    out += q_head * s.tq * s.head_dim;
    lse += q_head * s.tq;
    k += kv_head * s.tk * s.head_dim;
    v += kv_head * s.tk * s.head_dim;
    const u8* valid = s.valid_of(sample);

    int last_query = first_query + QUERIES < s.tq ? first_query + QUERIES - 1 : s.tq - 1;
    int tiles = (s.keys_end(last_query) + KEYS - 1) / KEYS;
    auto keys_of = [&](int tile) { return Tile<T, D>{memory + tile % 2 * 2 * SIZE}; };
    auto values_of = [&](int tile) { return Tile<T, D>{memory + (tile % 2 * 2 + 1) * SIZE}; };
    auto fetch = [&](int tile) {
        if (tile < tiles) {
            keys_of(tile).template load_async<KEYS, THREADS>(k, tile * KEYS, s.tk, s.head_dim);
            values_of(tile).template load_async<KEYS, THREADS>(v, tile * KEYS, s.tk, s.head_dim);
        }
        copies_commit();
    };

    // The queries pass through the second stage into registers before that is needed for keys.
    u32 query[D / 16][4];
    {
        Tile<T, D> queries = keys_of(1);
        queries.template load_async<QUERIES, THREADS>(q, first_query, s.tq, s.head_dim);
        copies_commit();
        fetch(0);
        copies_wait<1>();
        __syncthreads();
#pragma unroll
        for (int d = 0; d < D / 16; ++d) queries.load_a(query[d], warp * 16, d * 16);
        __syncthreads();
    }

    float output[D / 8][4];
#pragma unroll
    for (int n = 0; n < D / 8; ++n) output[n][0] = output[n][1] = output[n][2] = output[n][3] = 0.0f;
    // Of the lane's rows g and g + 8: the largest score (times log2 e), the lane's share of the sum of powers.
    float top[2] = {NEG_INFINITY, NEG_INFINITY}, total[2] = {0.0f, 0.0f};
    float factor = s.scale * LOG2_E;
    int my_query = first_query + warp * 16 + g;

    for (int tile = 0; tile < tiles; ++tile) {
        fetch(tile + 1);
        copies_wait<1>();
        __syncthreads();
        Tile<T, D> keys = keys_of(tile), values = values_of(tile);

        float score[KEYS / 8][4];
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) score[n][0] = score[n][1] = score[n][2] = score[n][3] = 0.0f;
#pragma unroll
        for (int d = 0; d < D / 16; ++d) {
#pragma unroll
            for (int n = 0; n < KEYS / 16; ++n) {
                u32 b[4];
                keys.load_b_transposed(b, n * 16, d * 16);
                multiply<T>(score[2 * n], query[d], b[0], b[1]);
                multiply<T>(score[2 * n + 1], query[d], b[2], b[3]);
            }
        }
        int first_key = tile * KEYS;
        bool all = s.all_visible(first_query + warp * 16, first_key + KEYS);
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) score[n][i] *= factor;
            if (all) continue;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                int key = first_key + n * 8 + 2 * t + i;
                bool visible = s.key_visible(valid, key);
                if (!visible || !s.pair_visible(my_query, key)) score[n][i] = NEG_INFINITY;
                if (!visible || !s.pair_visible(my_query + 8, key)) score[n][2 + i] = NEG_INFINITY;
            }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float largest = top[r];
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n) {
                largest = fmaxf(largest, fmaxf(score[n][2 * r], score[n][2 * r + 1]));
            }
            largest = quad_max(largest);
            // While nothing is visible there is nothing to rescale; 0 keeps -inf - -inf away.
            float base = largest == NEG_INFINITY ? 0.0f : largest;
            float rescale = exp2_fast(top[r] - base);
            top[r] = largest;
            total[r] *= rescale;
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                output[n][2 * r] *= rescale;
                output[n][2 * r + 1] *= rescale;
            }
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n) {
                score[n][2 * r] = exp2_fast(score[n][2 * r] - base);
                score[n][2 * r + 1] = exp2_fast(score[n][2 * r + 1] - base);
                total[r] += score[n][2 * r] + score[n][2 * r + 1];
            }
        }
#pragma unroll
        for (int j = 0; j < KEYS / 16; ++j) {
            u32 p[4];
            as_a<T>(p, score[2 * j], score[2 * j + 1]);
#pragma unroll
            for (int n = 0; n < D / 16; ++n) {
                u32 b[4];
                values.load_b(b, j * 16, n * 16);
                multiply<T>(output[2 * n], p, b[0], b[1]);
                multiply<T>(output[2 * n + 1], p, b[2], b[3]);
            }
        }
        __syncthreads();  // the stage may be overwritten
    }

    float inverse[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float sum = quad_sum(total[r]);
        inverse[r] = sum == 0.0f ? 0.0f : 1.0f / sum;
        int query_row = my_query + 8 * r;
        if (t == 0 && query_row < s.tq) lse[query_row] = sum == 0.0f ? NEG_INFINITY : top[r] * LN_2 + logf(sum);
    }
    // Copies that were started for nothing (none are) must not land on what is stored here.
    copies_wait<0>();
    __syncthreads();
    keys_of(0).store(output, inverse[0], inverse[1], warp * 16, out, first_query + warp * 16, s.tq, s.head_dim);
}

}  // namespace efference

using namespace efference;

#define FORWARD(NAME, T, D)                                                                                    \
    KERNEL_BOUNDS(128, attention_##NAME##_d##D, const T* q, const T* k, const T* v, T* out, float* lse,        \
                  ATTENTION_TAIL) {                                                                            \
        attention<T, D>(q, k, v, out, lse, ATTENTION_SHAPE);                                                   \
    }
#define SIZES(NAME, T) FORWARD(NAME, T, 64) FORWARD(NAME, T, 80) FORWARD(NAME, T, 96) FORWARD(NAME, T, 128)
SIZES(f16, __half)
SIZES(bf16, __nv_bfloat16)
