// Attention without tensor cores, for f32, head widths that they do not take, and unaligned tensors. The same scheme: a
// block of 16 x 16 threads owns a tile of rows, tiles of the other side pass by; everything in f32.
#include "attention.cuh"

namespace efference {

constexpr int SIDE = 16;

// R x R pairs per thread: rows y + 16 i, columns x + 16 j of a tile of 16 R.
template <int R>
struct Plain {
    static constexpr int ROWS = SIDE * R;
    static constexpr int WIDE = R == 2 ? 128 / SIDE : 256 / SIDE;  // columns of a row per thread, at most

    // Rows of `width` numbers, one number apart from the next row so that a column's numbers lie in different banks.
    struct Matrix {
        float* at;
        int stride;
        __device__ __forceinline__ float* row(int i) const { return at + i * stride; }
    };

    template <class T>
    __device__ static __forceinline__ void fetch(Matrix to, const T* from, int first, int limit, int width) {
        for (int i = threadIdx.x; i < ROWS * width; i += SIDE * SIDE) {
            int r = i / width, c = i - r * width;
            to.row(r)[c] = first + r < limit ? to_f32(from[i64(first + r) * width + c]) : 0.0f;
        }
    }

    // c[i][j] = row (y + 16 i) of a times row (x + 16 j) of b.
    __device__ static __forceinline__ void dots(float (&c)[R][R], Matrix a, Matrix b, int width) {
        int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
#pragma unroll
        for (int i = 0; i < R; ++i) {
#pragma unroll
            for (int j = 0; j < R; ++j) c[i][j] = 0.0f;
        }
        for (int k = 0; k < width; ++k) {
            float left[R], right[R];
#pragma unroll
            for (int i = 0; i < R; ++i) {
                left[i] = a.row(y + SIDE * i)[k];
                right[i] = b.row(x + SIDE * i)[k];
            }
#pragma unroll
            for (int i = 0; i < R; ++i) {
#pragma unroll
                for (int j = 0; j < R; ++j) c[i][j] += left[i] * right[j];
            }
        }
    }

    // c[i][w] += row (y + 16 i) of p times column x + 16 w of b.
    __device__ static __forceinline__ void accumulate(float (&c)[R][WIDE], Matrix p, Matrix b, int width) {
        int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
        for (int k = 0; k < ROWS; ++k) {
            float left[R];
#pragma unroll
            for (int i = 0; i < R; ++i) left[i] = p.row(y + SIDE * i)[k];
#pragma unroll
            for (int w = 0; w < WIDE; ++w) {
                if (x + SIDE * w < width) {
                    float right = b.row(k)[x + SIDE * w];
#pragma unroll
                    for (int i = 0; i < R; ++i) c[i][w] += left[i] * right;
                }
            }
        }
    }

    template <class T>
    __device__ static __forceinline__ void write(const float (&c)[R][WIDE], const float (&factor)[R], T* to, int first,
                                                 int limit, int width) {
        int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
#pragma unroll
        for (int i = 0; i < R; ++i) {
            int row = first + y + SIDE * i;
#pragma unroll
            for (int w = 0; w < WIDE; ++w) {
                if (row < limit && x + SIDE * w < width) {
                    to[i64(row) * width + x + SIDE * w] = from_f32<T>(c[i][w] * factor[i]);
                }
            }
        }
    }
};

template <int R>
__device__ __forceinline__ void clear(float (&c)[R][Plain<R>::WIDE]) {
#pragma unroll
    for (int i = 0; i < R; ++i) {
#pragma unroll
        for (int w = 0; w < Plain<R>::WIDE; ++w) c[i][w] = 0.0f;
    }
}

// Over the 16 threads that share a row.
__device__ __forceinline__ float row_max(float x) {
#pragma unroll
    for (int lanes = 8; lanes > 0; lanes >>= 1) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, lanes));
    return x;
}
__device__ __forceinline__ float row_sum(float x) {
#pragma unroll
    for (int lanes = 8; lanes > 0; lanes >>= 1) x += __shfl_xor_sync(ALL_LANES, x, lanes);
    return x;
}

template <int R, class T>
__device__ __forceinline__ void forward(const T* q, const T* k, const T* v, T* out, float* lse, const Shape s) {
    SHARED_DYNAMIC(raw);
    typedef Plain<R> P;
    constexpr int ROWS = P::ROWS;
    typename P::Matrix queries{reinterpret_cast<float*>(raw), s.head_dim + 1};
    typename P::Matrix others{queries.row(ROWS), s.head_dim + 1}, p{others.row(ROWS), ROWS + 1};
    int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE, sample = blockIdx.z, head = blockIdx.y;
    int first_query = (gridDim.x - 1 - blockIdx.x) * ROWS;
    i64 q_head = i64(sample) * s.heads + head;
    i64 kv_head = i64(sample) * s.kv_heads + head / (s.heads / s.kv_heads);
    const u8* valid = s.valid_of(sample);
    k += kv_head * s.tk * s.head_dim;
    v += kv_head * s.tk * s.head_dim;
    P::fetch(queries, q + q_head * s.tq * s.head_dim, first_query, s.tq, s.head_dim);

    float output[R][P::WIDE], top[R], total[R];
    clear<R>(output);
#pragma unroll
    for (int i = 0; i < R; ++i) {
        top[i] = NEG_INFINITY;
        total[i] = 0.0f;
    }
    int last_query = first_query + ROWS < s.tq ? first_query + ROWS - 1 : s.tq - 1;
    int end = s.keys_end(last_query);
    for (int first_key = 0; first_key < end; first_key += ROWS) {
        __syncthreads();  // nobody reads the last tile any more
        P::fetch(others, k, first_key, s.tk, s.head_dim);
        __syncthreads();
        float score[R][R];
        P::dots(score, queries, others, s.head_dim);
#pragma unroll
        for (int i = 0; i < R; ++i) {
            int query = first_query + y + SIDE * i;
            float largest = NEG_INFINITY;
#pragma unroll
            for (int j = 0; j < R; ++j) {
                int key = first_key + x + SIDE * j;
                bool visible = s.key_visible(valid, key) && s.pair_visible(query, key);
                score[i][j] = visible ? score[i][j] * s.scale : NEG_INFINITY;
                largest = fmaxf(largest, score[i][j]);
            }
            largest = fmaxf(top[i], row_max(largest));
            float base = largest == NEG_INFINITY ? 0.0f : largest;
            float rescale = expf(top[i] - base);
            top[i] = largest;
            total[i] *= rescale;
#pragma unroll
            for (int w = 0; w < P::WIDE; ++w) output[i][w] *= rescale;
#pragma unroll
            for (int j = 0; j < R; ++j) {
                float e = expf(score[i][j] - base);
                total[i] += e;
                p.row(y + SIDE * i)[x + SIDE * j] = e;
            }
        }
        __syncthreads();
        P::fetch(others, v, first_key, s.tk, s.head_dim);
        __syncthreads();
        P::accumulate(output, p, others, s.head_dim);
    }
    float inverse[R];
#pragma unroll
    for (int i = 0; i < R; ++i) {
        float sum = row_sum(total[i]);
        inverse[i] = sum == 0.0f ? 0.0f : 1.0f / sum;
        int query = first_query + y + SIDE * i;
        if (x == 0 && query < s.tq) lse[q_head * s.tq + query] = sum == 0.0f ? NEG_INFINITY : top[i] + logf(sum);
    }
    P::write(output, inverse, out + q_head * s.tq * s.head_dim, first_query, s.tq, s.head_dim);
}

// The probability of a pair; lse is -inf only where nothing is visible.
__device__ __forceinline__ float probability(const Shape& s, const u8* valid, int query, int key, float score,
                                             float lse) {
    bool visible = query < s.tq && s.key_visible(valid, key) && s.pair_visible(query, key);
    return visible ? expf(score * s.scale - lse) : 0.0f;
}

template <int R, class T>
__device__ __forceinline__ void dkdv(const T* q, const T* k, const T* v, const T* dout, const float* lse,
                                     const float* delta, T* dk, T* dv, const Shape s) {
    SHARED_DYNAMIC(raw);
    typedef Plain<R> P;
    constexpr int ROWS = P::ROWS;
    int stride = s.head_dim + 1;
    typename P::Matrix keys{reinterpret_cast<float*>(raw), stride}, values{keys.row(ROWS), stride};
    typename P::Matrix queries{values.row(ROWS), stride}, douts{queries.row(ROWS), stride};
    typename P::Matrix p{douts.row(ROWS), ROWS + 1}, ds{p.row(ROWS), ROWS + 1};
    int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE, sample = blockIdx.z, first_key = blockIdx.x * ROWS;
    int group = s.heads / s.kv_heads;
    i64 kv_at = (i64(sample) * s.kv_heads + blockIdx.y) * s.tk * s.head_dim;
    const u8* valid = s.valid_of(sample);
    P::fetch(keys, k + kv_at, first_key, s.tk, s.head_dim);
    P::fetch(values, v + kv_at, first_key, s.tk, s.head_dim);

    float grad_k[R][P::WIDE], grad_v[R][P::WIDE];
    clear<R>(grad_k);
    clear<R>(grad_v);
    for (int member = 0; member < group; ++member) {
        i64 q_head = i64(sample) * s.heads + blockIdx.y * group + member;
        i64 q_at = q_head * s.tq * s.head_dim;
        for (int first = s.queries_start(first_key) / ROWS * ROWS; first < s.tq; first += ROWS) {
            __syncthreads();
            P::fetch(queries, q + q_at, first, s.tq, s.head_dim);
            P::fetch(douts, dout + q_at, first, s.tq, s.head_dim);
            __syncthreads();
            float score[R][R], dp[R][R];
            P::dots(score, keys, queries, s.head_dim);
            P::dots(dp, values, douts, s.head_dim);
#pragma unroll
            for (int j = 0; j < R; ++j) {
                int query = first + x + SIDE * j;
                float log = query < s.tq ? lse[q_head * s.tq + query] : 0.0f;
                float along = query < s.tq ? delta[q_head * s.tq + query] : 0.0f;
#pragma unroll
                for (int i = 0; i < R; ++i) {
                    float e = probability(s, valid, query, first_key + y + SIDE * i, score[i][j], log);
                    p.row(y + SIDE * i)[x + SIDE * j] = e;
                    ds.row(y + SIDE * i)[x + SIDE * j] = e * (dp[i][j] - along);
                }
            }
            __syncthreads();
            P::accumulate(grad_v, p, douts, s.head_dim);
            P::accumulate(grad_k, ds, queries, s.head_dim);
        }
    }
    float factor[R], one[R];
#pragma unroll
    for (int i = 0; i < R; ++i) {
        factor[i] = s.scale;
        one[i] = 1.0f;
    }
    P::write(grad_k, factor, dk + kv_at, first_key, s.tk, s.head_dim);
    P::write(grad_v, one, dv + kv_at, first_key, s.tk, s.head_dim);
}

template <int R, class T>
__device__ __forceinline__ void dq_tile(const T* q, const T* k, const T* v, const T* dout, const float* lse,
                                        const float* delta, T* dq, const Shape s) {
    SHARED_DYNAMIC(raw);
    typedef Plain<R> P;
    constexpr int ROWS = P::ROWS;
    int stride = s.head_dim + 1;
    typename P::Matrix queries{reinterpret_cast<float*>(raw), stride}, douts{queries.row(ROWS), stride};
    typename P::Matrix keys{douts.row(ROWS), stride}, values{keys.row(ROWS), stride};
    typename P::Matrix ds{values.row(ROWS), ROWS + 1};
    int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE, sample = blockIdx.z, head = blockIdx.y;
    int first_query = (gridDim.x - 1 - blockIdx.x) * ROWS;
    i64 q_head = i64(sample) * s.heads + head, q_at = q_head * s.tq * s.head_dim;
    i64 kv_head = i64(sample) * s.kv_heads + head / (s.heads / s.kv_heads);
    const u8* valid = s.valid_of(sample);
    k += kv_head * s.tk * s.head_dim;
    v += kv_head * s.tk * s.head_dim;
    P::fetch(queries, q + q_at, first_query, s.tq, s.head_dim);
    P::fetch(douts, dout + q_at, first_query, s.tq, s.head_dim);

    float grad[R][P::WIDE], log[R], along[R], factor[R];
    clear<R>(grad);
#pragma unroll
    for (int i = 0; i < R; ++i) {
        int query = first_query + y + SIDE * i;
        log[i] = query < s.tq ? lse[q_head * s.tq + query] : 0.0f;
        along[i] = query < s.tq ? delta[q_head * s.tq + query] : 0.0f;
        factor[i] = s.scale;
    }
    int last_query = first_query + ROWS < s.tq ? first_query + ROWS - 1 : s.tq - 1;
    int end = s.keys_end(last_query);
    for (int first_key = 0; first_key < end; first_key += ROWS) {
        __syncthreads();
        P::fetch(keys, k, first_key, s.tk, s.head_dim);
        P::fetch(values, v, first_key, s.tk, s.head_dim);
        __syncthreads();
        float score[R][R], dp[R][R];
        P::dots(score, queries, keys, s.head_dim);
        P::dots(dp, douts, values, s.head_dim);
#pragma unroll
        for (int i = 0; i < R; ++i) {
#pragma unroll
            for (int j = 0; j < R; ++j) {
                int query = first_query + y + SIDE * i, key = first_key + x + SIDE * j;
                float e = probability(s, valid, query, key, score[i][j], log[i]);
                ds.row(y + SIDE * i)[x + SIDE * j] = e * (dp[i][j] - along[i]);
            }
        }
        __syncthreads();
        P::accumulate(grad, ds, keys, s.head_dim);
    }
    P::write(grad, factor, dq + q_at, first_query, s.tq, s.head_dim);
}

}  // namespace efference

using namespace efference;

#define PLAIN(NAME, T, KIND, R)                                                                                \
    KERNEL_BOUNDS(256, attention_##KIND##_##NAME, const T* q, const T* k, const T* v, T* out, float* lse,      \
                  ATTENTION_TAIL) {                                                                            \
        forward<R>(q, k, v, out, lse, ATTENTION_SHAPE);                                                        \
    }                                                                                                          \
    KERNEL_BOUNDS(256, attention_dkdv_##KIND##_##NAME, const T* q, const T* k, const T* v, const T* dout,      \
                  const float* lse, const float* delta, T* dk, T* dv, ATTENTION_TAIL) {                        \
        dkdv<R>(q, k, v, dout, lse, delta, dk, dv, ATTENTION_SHAPE);                                           \
    }                                                                                                          \
    KERNEL_BOUNDS(256, attention_dq_##KIND##_##NAME, const T* q, const T* k, const T* v, const T* dout,        \
                  const float* lse, const float* delta, T* dq, ATTENTION_TAIL) {                               \
        dq_tile<R>(q, k, v, dout, lse, delta, dq, ATTENTION_SHAPE);                                            \
    }
#define KERNELS(NAME, T) PLAIN(NAME, T, plain, 2) PLAIN(NAME, T, plain_wide, 1)
FOR_EACH_TYPE(KERNELS)
