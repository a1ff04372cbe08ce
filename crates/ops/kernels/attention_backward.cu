// Attention on tensor cores, backward. Probabilities are computed again from the log-sum-exp that the forward pass kept.
// No sums meet in memory: one kernel owns tiles of keys and passes over the queries (dk, dv), the other owns tiles of
// queries and passes over the keys (dq). So the result has the same bits every time, for 7 products instead of 5.
//
// With p = e^(s - lse), s = q k scale:  dv = p^T dout,  dp = dout v^T,  ds = p (dp - delta),  delta = sum(out dout),
// dq = ds k scale,  dk = ds^T q scale.
#include "attention.cuh"

namespace efference {

constexpr int OWN = 64, PASS = 32, THREADS = 128;  // rows a block owns, rows of a tile that passes by

// delta of one row per warp.
template <class T>
__device__ __forceinline__ void delta_rows(const T* out, const T* dout, float* delta, i64 rows, int width) {
    i64 row = i64(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= rows) return;
    int lane = threadIdx.x % 32;
    out += row * width;
    dout += row * width;
    float sum = 0.0f;
    if (width % 4 == 0 && aligned_to(4 * sizeof(T), out, dout)) {
        for (int i = lane * 4; i < width; i += 128) {
            float a[4], b[4];
            load<4>(out + i, a);
            load<4>(dout + i, b);
            sum += a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
        }
    } else {
        for (int i = lane; i < width; i += 32) sum += to_f32(out[i]) * to_f32(dout[i]);
    }
    sum = warp_sum(sum);
    if (lane == 0) delta[row] = sum;
}

// lse in powers of 2. Where nothing is visible every probability is set to 0; base 0 keeps NaN away until then.
__device__ __forceinline__ float base_of(float lse) { return lse == NEG_INFINITY ? 0.0f : lse * LOG2_E; }

// Transposed scores: rows are the warp's 16 keys, columns the 32 queries that pass by, so that probabilities come out
// as the `a` of dv and dk.
// HELD: so many columns / 16 of its keys and values a warp keeps in registers, the rest it loads for every tile.
template <class T, int D, int HELD>
__device__ __forceinline__ void dkdv(const T* q, const T* k, const T* v, const T* dout, const float* lse,
                                     const float* delta, T* dk, T* dv, const Shape s) {
    SHARED_DYNAMIC(raw);
    SHARED(float, bases, 2 * PASS);
    SHARED(float, deltas, 2 * PASS);
    T* memory = reinterpret_cast<T*>(raw);
    typedef Tile<T, D> Rows;
    Rows keys{memory}, values{memory + Rows::size(OWN)};
    T* stages = memory + 2 * Rows::size(OWN);
    auto queries_of = [&](int i) { return Rows{stages + i % 2 * 2 * Rows::size(PASS)}; };
    auto douts_of = [&](int i) { return Rows{stages + (i % 2 * 2 + 1) * Rows::size(PASS)}; };

    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int sample = blockIdx.z, first_key = blockIdx.x * OWN;
    int group = s.heads / s.kv_heads;
    i64 kv_head = i64(sample) * s.kv_heads + blockIdx.y, q_head = i64(sample) * s.heads + blockIdx.y * group;
    i64 kv_at = kv_head * s.tk * s.head_dim;
    const u8* valid = s.valid_of(sample);

    int first_tile = s.queries_start(first_key) / PASS;
    int end_tile = (s.tq + PASS - 1) / PASS;
    int per_head = end_tile > first_tile ? end_tile - first_tile : 0;
    int passes = per_head * group;  // all tiles of the first query head, then of the next of the group
    auto fetch = [&](int pass) {
        if (pass < passes) {
            i64 head = q_head + pass / per_head;
            int first = (first_tile + pass % per_head) * PASS;
            queries_of(pass).template load_async<PASS, THREADS>(q + head * s.tq * s.head_dim, first, s.tq, s.head_dim);
            douts_of(pass).template load_async<PASS, THREADS>(dout + head * s.tq * s.head_dim, first, s.tq, s.head_dim);
            int i = threadIdx.x % PASS;
            if (threadIdx.x < 2 * PASS) {
                bool is_lse = threadIdx.x < PASS, inside = first + i < s.tq;
                const float* from = (is_lse ? lse : delta) + head * s.tq;
                float* to = (is_lse ? bases : deltas) + pass % 2 * PASS + i;
                copy_async<4>(to, inside ? from + first + i : from, inside);
            }
        }
        copies_commit();
    };

    keys.template load_async<OWN, THREADS>(k + kv_at, first_key, s.tk, s.head_dim);
    values.template load_async<OWN, THREADS>(v + kv_at, first_key, s.tk, s.head_dim);
    fetch(0);

    float grad_k[D / 8][4], grad_v[D / 8][4];
    clear(grad_k);
    clear(grad_v);
    float factor = s.scale * LOG2_E;
    int my_key = first_key + warp * 16 + g;
    bool key_visible[2] = {s.key_visible(valid, my_key), s.key_visible(valid, my_key + 8)};

    u32 key_rows[HELD][4], value_rows[HELD][4];
    if (passes > 0) {
        copies_wait<0>();
        __syncthreads();
#pragma unroll
        for (int d = 0; d < HELD; ++d) {
            keys.load_a(key_rows[d], warp * 16, d * 16);
            values.load_a(value_rows[d], warp * 16, d * 16);
        }
    }

    for (int pass = 0; pass < passes; ++pass) {
        fetch(pass + 1);
        copies_wait<1>();
        __syncthreads();
        Rows queries = queries_of(pass), douts = douts_of(pass);
        int first_query = (first_tile + pass % per_head) * PASS;

        float p[PASS / 8][4], ds[PASS / 8][4];
        clear(p);
        clear(ds);
#pragma unroll
        for (int d = 0; d < D / 16; ++d) {
            u32 loaded_a[4], loaded_c[4];
            if (d >= HELD) {
                keys.load_a(loaded_a, warp * 16, d * 16);
                values.load_a(loaded_c, warp * 16, d * 16);
            }
            const u32(&a)[4] = d < HELD ? key_rows[d < HELD ? d : 0] : loaded_a;
            const u32(&c)[4] = d < HELD ? value_rows[d < HELD ? d : 0] : loaded_c;
#pragma unroll
            for (int n = 0; n < PASS / 16; ++n) {
                u32 b[4];
                queries.load_b_transposed(b, n * 16, d * 16);
                multiply<T>(p[2 * n], a, b[0], b[1]);
                multiply<T>(p[2 * n + 1], a, b[2], b[3]);
                douts.load_b_transposed(b, n * 16, d * 16);
                multiply<T>(ds[2 * n], c, b[0], b[1]);
                multiply<T>(ds[2 * n + 1], c, b[2], b[3]);
            }
        }
        bool all = s.all_visible(first_query, first_key + OWN);
#pragma unroll
        for (int n = 0; n < PASS / 8; ++n) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                int column = n * 8 + 2 * t + j, query = first_query + column;
                float base = base_of(bases[pass % 2 * PASS + column]), along = deltas[pass % 2 * PASS + column];
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    // Beyond the last query dout and delta are 0, so whatever p is adds nothing.
                    float e = exp2_fast(p[n][2 * r + j] * factor - base);
                    if (!all && !(key_visible[r] && s.pair_visible(query, my_key + 8 * r))) e = 0.0f;
                    p[n][2 * r + j] = e;
                    ds[n][2 * r + j] = e * (ds[n][2 * r + j] - along);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < PASS / 16; ++j) {
            u32 a[4], c[4];
            as_a<T>(a, p[2 * j], p[2 * j + 1]);
            as_a<T>(c, ds[2 * j], ds[2 * j + 1]);
#pragma unroll
            for (int n = 0; n < D / 16; ++n) {
                u32 b[4];
                douts.load_b(b, j * 16, n * 16);
                multiply<T>(grad_v[2 * n], a, b[0], b[1]);
                multiply<T>(grad_v[2 * n + 1], a, b[2], b[3]);
                queries.load_b(b, j * 16, n * 16);
                multiply<T>(grad_k[2 * n], c, b[0], b[1]);
                multiply<T>(grad_k[2 * n + 1], c, b[2], b[3]);
            }
        }
        __syncthreads();  // the stage may be overwritten
    }
    copies_wait<0>();
    __syncthreads();
    int first = first_key + warp * 16;
    keys.store(grad_k, s.scale, s.scale, warp * 16, dk + kv_at, first, s.tk, s.head_dim);
    values.store(grad_v, 1.0f, 1.0f, warp * 16, dv + kv_at, first, s.tk, s.head_dim);
}

// Rows are the warp's 16 queries, columns the 32 keys that pass by.
template <class T, int D, int HELD>
__device__ __forceinline__ void dq_tile(const T* q, const T* k, const T* v, const T* dout, const float* lse,
                                        const float* delta, T* dq, const Shape s) {
    SHARED_DYNAMIC(raw);
    T* memory = reinterpret_cast<T*>(raw);
    typedef Tile<T, D> Rows;
    Rows queries{memory}, douts{memory + Rows::size(OWN)};
    T* stages = memory + 2 * Rows::size(OWN);
    auto keys_of = [&](int i) { return Rows{stages + i % 2 * 2 * Rows::size(PASS)}; };
    auto values_of = [&](int i) { return Rows{stages + (i % 2 * 2 + 1) * Rows::size(PASS)}; };

    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int sample = blockIdx.z, head = blockIdx.y;
    int first_query = (gridDim.x - 1 - blockIdx.x) * OWN;  // the longest first, as forward
    i64 q_head = i64(sample) * s.heads + head;
    i64 kv_head = i64(sample) * s.kv_heads + head / (s.heads / s.kv_heads);
    i64 q_at = q_head * s.tq * s.head_dim;
    k += kv_head * s.tk * s.head_dim;
    v += kv_head * s.tk * s.head_dim;
    const u8* valid = s.valid_of(sample);

    int last_query = first_query + OWN < s.tq ? first_query + OWN - 1 : s.tq - 1;
    int passes = (s.keys_end(last_query) + PASS - 1) / PASS;
    auto fetch = [&](int pass) {
        if (pass < passes) {
            keys_of(pass).template load_async<PASS, THREADS>(k, pass * PASS, s.tk, s.head_dim);
            values_of(pass).template load_async<PASS, THREADS>(v, pass * PASS, s.tk, s.head_dim);
        }
        copies_commit();
    };
    queries.template load_async<OWN, THREADS>(q + q_at, first_query, s.tq, s.head_dim);
    douts.template load_async<OWN, THREADS>(dout + q_at, first_query, s.tq, s.head_dim);
    fetch(0);

    float grad[D / 8][4];
    clear(grad);
    float factor = s.scale * LOG2_E;
    int my_query = first_query + warp * 16 + g;
    float base[2], along[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        bool inside = my_query + 8 * r < s.tq;
        base[r] = inside ? base_of(lse[q_head * s.tq + my_query + 8 * r]) : 0.0f;
        along[r] = inside ? delta[q_head * s.tq + my_query + 8 * r] : 0.0f;
    }

    u32 query_rows[HELD][4], dout_rows[HELD][4];
    copies_wait<0>();
    __syncthreads();
#pragma unroll
    for (int d = 0; d < HELD; ++d) {
        queries.load_a(query_rows[d], warp * 16, d * 16);
        douts.load_a(dout_rows[d], warp * 16, d * 16);
    }

    for (int pass = 0; pass < passes; ++pass) {
        fetch(pass + 1);
        copies_wait<1>();
        __syncthreads();
        Rows keys = keys_of(pass), values = values_of(pass);
        float p[PASS / 8][4], ds[PASS / 8][4];
        clear(p);
        clear(ds);
#pragma unroll
        for (int d = 0; d < D / 16; ++d) {
            u32 loaded_a[4], loaded_c[4];
            if (d >= HELD) {
                queries.load_a(loaded_a, warp * 16, d * 16);
                douts.load_a(loaded_c, warp * 16, d * 16);
            }
            const u32(&a)[4] = d < HELD ? query_rows[d < HELD ? d : 0] : loaded_a;
            const u32(&c)[4] = d < HELD ? dout_rows[d < HELD ? d : 0] : loaded_c;
#pragma unroll
            for (int n = 0; n < PASS / 16; ++n) {
                u32 b[4];
                keys.load_b_transposed(b, n * 16, d * 16);
                multiply<T>(p[2 * n], a, b[0], b[1]);
                multiply<T>(p[2 * n + 1], a, b[2], b[3]);
                values.load_b_transposed(b, n * 16, d * 16);
                multiply<T>(ds[2 * n], c, b[0], b[1]);
                multiply<T>(ds[2 * n + 1], c, b[2], b[3]);
            }
        }
        int first_key = pass * PASS;
        bool all = s.all_visible(first_query + warp * 16, first_key + PASS);
#pragma unroll
        for (int n = 0; n < PASS / 8; ++n) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                int key = first_key + n * 8 + 2 * t + j;
                bool visible = all || s.key_visible(valid, key);
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    float e = exp2_fast(p[n][2 * r + j] * factor - base[r]);
                    if (!all && !(visible && s.pair_visible(my_query + 8 * r, key))) e = 0.0f;
                    ds[n][2 * r + j] = e * (ds[n][2 * r + j] - along[r]);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < PASS / 16; ++j) {
            u32 a[4];
            as_a<T>(a, ds[2 * j], ds[2 * j + 1]);
#pragma unroll
            for (int n = 0; n < D / 16; ++n) {
                u32 b[4];
                keys.load_b(b, j * 16, n * 16);
                multiply<T>(grad[2 * n], a, b[0], b[1]);
                multiply<T>(grad[2 * n + 1], a, b[2], b[3]);
            }
        }
        __syncthreads();  // the stage may be overwritten
    }
    copies_wait<0>();
    __syncthreads();
    queries.store(grad, s.scale, s.scale, warp * 16, dq + q_at, first_query + warp * 16, s.tq, s.head_dim);
}

}  // namespace efference

using namespace efference;

#define BACKWARD(NAME, T, D)                                                                                   \
    KERNEL_BOUNDS(128, attention_dkdv_##NAME##_d##D, const T* q, const T* k, const T* v, const T* dout,        \
                  const float* lse, const float* delta, T* dk, T* dv, ATTENTION_TAIL) {                        \
        dkdv<T, D, D <= 80 ? D / 16 : 1>(q, k, v, dout, lse, delta, dk, dv, ATTENTION_SHAPE);                                        \
    }                                                                                                          \
    KERNEL_BOUNDS(128, attention_dq_##NAME##_d##D, const T* q, const T* k, const T* v, const T* dout,          \
                  const float* lse, const float* delta, T* dq, ATTENTION_TAIL) {                               \
        dq_tile<T, D, D / 16>(q, k, v, dout, lse, delta, dq, ATTENTION_SHAPE);                                         \
    }
#define SIZES(NAME, T) BACKWARD(NAME, T, 64) BACKWARD(NAME, T, 80) BACKWARD(NAME, T, 96) BACKWARD(NAME, T, 128)
SIZES(f16, __half)
SIZES(bf16, __nv_bfloat16)

#define KERNELS(NAME, T)                                                                                       \
    KERNEL(attention_delta_##NAME, const T* out, const T* dout, float* delta, i64 rows, int head_dim) {        \
        delta_rows(out, dout, delta, rows, head_dim);                                                          \
    }
FOR_EACH_TYPE(KERNELS)
