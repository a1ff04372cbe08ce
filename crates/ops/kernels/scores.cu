// Log-probabilities and entropies of chosen tokens, cross entropy against distributions, and their gradients. One block
// per row reads the logits once: each thread carries an online softmax over its share.
#include "common.cuh"

namespace efference {

// Of the numbers z seen so far: the largest, the sum of e^(z - top), and the sum of e^(z - top) (z - top). Numbers of
// -inf add nothing.
struct Online {
    float top = NEG_INFINITY, total = 0.0f, weighted = 0.0f;

    // Makes `new_top` >= top the reference.
    __device__ __forceinline__ void raise(float new_top) {
        if (new_top == top) return;
        // From nothing (top -inf, both sums 0) there is nothing to carry, and -inf * 0 must not be formed.
        if (total > 0.0f) {
            float off = top - new_top, factor = expf(off);
            weighted = factor > 0.0f ? factor * (weighted + off * total) : 0.0f;
            total *= factor;
        }
        top = new_top;
    }
    __device__ __forceinline__ void add(float z) {
        float off = z - top, e = expf(off);
        if (e > 0.0f) {
            total += e;
            weighted += e * off;
        } else if (!(e == 0.0f)) {
            total = weighted = e;  // NaN: top and z are both infinite, or z is NaN
        }
    }
    template <int N>
    __device__ __forceinline__ void add(const float (&z)[N]) {
        float largest = z[0];
#pragma unroll
        for (int i = 1; i < N; ++i) largest = fmaxf(largest, z[i]);
        if (largest > top) raise(largest);
        if (top == NEG_INFINITY && !has_nan(z)) return;  // nothing but impossible tokens so far
#pragma unroll
        for (int i = 0; i < N; ++i) add(z[i]);
    }
    template <int N>
    __device__ static __forceinline__ bool has_nan(const float (&z)[N]) {
        bool any = false;
#pragma unroll
        for (int i = 0; i < N; ++i) any = any || z[i] != z[i];
        return any;
    }
};

// Calls f(first column, numbers) over a row of n numbers, shared out over the block: packs of 16 bytes, or single
// numbers.
template <class T, class F>
__device__ __forceinline__ void over_row(const T* row, int n, F f) {
    constexpr int N = Width<T>::N;
    int packs = aligned_to(16, row) ? n / N : 0;
    for (int p = threadIdx.x; p < packs; p += blockDim.x) {
        float x[N];
        load<N>(row + p * N, x);
        f(p * N, x);
    }
    for (int i = packs * N + threadIdx.x; i < n; i += blockDim.x) {
        float x[1] = {to_f32(row[i])};
        f(i, x);
    }
}

// The online sums of a whole row, the same in all threads.
template <class T>
__device__ __forceinline__ Online summary(const T* row, int n, float inverse) {
    Online mine;
    over_row(row, n, [&](int, auto& x) {
        float z[sizeof(x) / sizeof(float)];
#pragma unroll
        for (int i = 0; i < int(sizeof(x) / sizeof(float)); ++i) z[i] = x[i] * inverse;
        mine.add(z);
    });
    float top = block_max(mine.top);
    mine.raise(top);
    float sums[2] = {mine.total, mine.weighted};
    block_sum(sums);
    Online all;
    all.top = top;
    all.total = sums[0];
    all.weighted = sums[1];
    return all;
}

// A row in three numbers, kept for the backward pass relative to the largest z, so that logits of 1e4 cost no digits:
// the largest z, the log of the sum of e^(z - top), the mean of z - top under the softmax (never above 0).
struct Stats {
    float top, log, mean;

    __device__ __forceinline__ Stats(float top, float log, float mean) : top(top), log(log), mean(mean) {}
    __device__ __forceinline__ explicit Stats(const Online& row)
        : top(row.top), log(logf(row.total)), mean(row.weighted / row.total) {
        // Nothing but impossible tokens: every log-probability is -inf, the entropy 0, and there is no gradient.
        if (row.top == NEG_INFINITY && row.total == 0.0f) {
            top = 0.0f;
            log = mean = 1.0f;
        }
    }
    // NaN counts as possible, or it would get lost.
    __device__ __forceinline__ bool possible() const { return !(mean > 0.0f); }
    __device__ __forceinline__ float log_prob(float z) const { return z - top - log; }
    __device__ __forceinline__ void write(float* at) const {
        at[0] = top;
        at[1] = log;
        at[2] = mean;
    }
    __device__ static __forceinline__ Stats read(const float* at) { return Stats(at[0], at[1], at[2]); }
};

__device__ __forceinline__ void write_scores(const Stats& row, float chosen, float* out) {
    out[0] = row.log_prob(chosen);
    out[1] = row.log - row.mean;
}

template <class T>
__device__ __forceinline__ void token_scores(const T* logits, const u32* ids, float* out, float* stats, int vocab,
                                             float inverse) {
    i64 at = blockIdx.x;
    const T* row = logits + at * vocab;
    Stats all(summary(row, vocab, inverse));
    if (threadIdx.x != 0) return;
    write_scores(all, to_f32(row[ids[at]]) * inverse, out + 2 * at);
    if (stats) all.write(stats + 3 * at);
}

// Of a row while the vocabulary passes: Online, z of the chosen token, the sum of all z.
constexpr int STATE = 5;

template <class T>
__device__ __forceinline__ void update(const T* logits, const u32* ids, float* state, int chunk, int start, int first,
                                       float inverse) {
    i64 at = blockIdx.x;
    const T* row = logits + at * chunk;
    Online all = summary(row, chunk, inverse);
    float sum[1] = {0.0f};
    over_row(row, chunk, [&](int, auto& x) {
#pragma unroll
        for (int i = 0; i < int(sizeof(x) / sizeof(float)); ++i) sum[0] += x[i] * inverse;
    });
    block_sum(sum);
    if (threadIdx.x != 0) return;
    state += STATE * at;
    i64 chosen = i64(ids[at]) - start;
    bool here = chosen >= 0 && chosen < chunk;
    if (first) {
        state[3] = state[4] = 0.0f;
    } else {
        Online before;
        before.top = state[0];
        before.total = state[1];
        before.weighted = state[2];
        float top = fmaxf(before.top, all.top);
        before.raise(top);
        all.raise(top);
        all.total += before.total;
        all.weighted += before.weighted;
    }
    state[0] = all.top;
    state[1] = all.total;
    state[2] = all.weighted;
    if (here) state[3] = to_f32(row[chosen]) * inverse;
    state[4] += sum[0];
}

// d log p_id = -p_j (+1 at id), d entropy = -p_j (z_j - mean), d mean of log p = 1/V - p_j, each times 1 / temperature.
template <class T>
__device__ __forceinline__ void token_scores_grad(const T* logits, const u32* ids, const float* stats,
                                                  const float* dout, T* dlogits, int chunk, int start, int vocab,
                                                  int columns, float inverse) {
    constexpr int N = Width<T>::N;
    i64 at = blockIdx.x;
    const T* row = logits + at * chunk;
    T* drow = dlogits + at * chunk;
    Stats all = stats ? Stats::read(stats + 3 * at) : Stats(summary(row, chunk, inverse));
    dout += columns * at;
    float g_log = dout[0] * inverse, g_entropy = dout[1] * inverse, g_all = columns > 2 ? dout[2] * inverse : 0.0f;
    if (!all.possible()) g_log = g_entropy = g_all = 0.0f;
    float share = g_all / vocab, g_p = g_log + g_all;
    i64 chosen = i64(ids[at]) - start;
    auto slope = [&](int column, float x) {
        float z = x * inverse - all.top, p = expf(z - all.log);
        float off = p > 0.0f ? z - all.mean : 0.0f;
        float d = share - p * (off * g_entropy + g_p);
        return column == chosen ? d + g_log : d;
    };
    int packs = aligned_to(16, row, drow) ? chunk / N : 0;
    for (int p = threadIdx.x; p < packs; p += blockDim.x) {
        float x[N];
        load<N>(row + p * N, x);
#pragma unroll
        for (int i = 0; i < N; ++i) x[i] = slope(p * N + i, x[i]);
        store<N>(drow + p * N, x);
    }
    for (int i = packs * N + threadIdx.x; i < chunk; i += blockDim.x) drow[i] = from_f32<T>(slope(i, to_f32(row[i])));
}

// sum of t (log sum e^x - x) and sum of t, over a row.
template <class T>
__device__ __forceinline__ void soft(const T* logits, const T* targets, float* out, float* stats, int vocab) {
    i64 at = blockIdx.x;
    const T *row = logits + at * vocab, *target = targets + at * vocab;
    Stats all(summary(row, vocab, 1.0f));
    float sums[2] = {0.0f, 0.0f};
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
        float t = to_f32(target[i]);
        if (t > 0.0f) sums[0] -= t * all.log_prob(to_f32(row[i]));
        sums[1] += t;
    }
    block_sum(sums);
    if (threadIdx.x != 0) return;
    out[at] = sums[0];
    if (stats) {
        stats[3 * at] = all.top;
        stats[3 * at + 1] = all.log;
        stats[3 * at + 2] = sums[1];
    }
}

template <class T>
__device__ __forceinline__ void soft_grad(const T* logits, const T* targets, const float* stats, const float* dout,
                                          T* dlogits, int vocab) {
    i64 at = blockIdx.x;
    const T *row = logits + at * vocab, *target = targets + at * vocab;
    T* drow = dlogits + at * vocab;
    float top, log, mass;
    if (stats) {
        top = stats[3 * at];
        log = stats[3 * at + 1];
        mass = stats[3 * at + 2];
    } else {
        Stats all(summary(row, vocab, 1.0f));
        top = all.top;
        log = all.log;
        float sum[1] = {0.0f};
        for (int i = threadIdx.x; i < vocab; i += blockDim.x) sum[0] += to_f32(target[i]);
        block_sum(sum);
        mass = sum[0];
    }
    float g = dout[at];
    for (int i = threadIdx.x; i < vocab; i += blockDim.x) {
        drow[i] = from_f32<T>((expf(to_f32(row[i]) - top - log) * mass - to_f32(target[i])) * g);
    }
}

}  // namespace efference

using namespace efference;

#define KERNELS(NAME, T)                                                                                       \
    KERNEL_BOUNDS(1024, token_scores_##NAME, const T* logits, const u32* ids, float* out, float* stats,        \
                  i64 rows, int vocab, float inverse_temperature) {                                            \
        (void)rows;                                                                                            \
        token_scores(logits, ids, out, stats, vocab, inverse_temperature);                                     \
    }                                                                                                          \
    KERNEL_BOUNDS(1024, token_scores_update_##NAME, const T* logits, const u32* ids, float* state, i64 rows,   \
                  int chunk, int start, int first, float inverse_temperature) {                                \
        (void)rows;                                                                                            \
        update(logits, ids, state, chunk, start, first, inverse_temperature);                                  \
    }                                                                                                          \
    KERNEL_BOUNDS(1024, token_scores_grad_##NAME, const T* logits, const u32* ids, const float* stats,         \
                  const float* dout, T* dlogits, i64 rows, int chunk, int start, int vocab, int columns,       \
                  float inverse_temperature) {                                                                 \
        (void)rows;                                                                                            \
        token_scores_grad(logits, ids, stats, dout, dlogits, chunk, start, vocab, columns,                     \
                          inverse_temperature);                                                                \
    }                                                                                                          \
    KERNEL_BOUNDS(1024, cross_entropy_soft_##NAME, const T* logits, const T* targets, float* out,              \
                  float* stats, i64 rows, int vocab) {                                                         \
        (void)rows;                                                                                            \
        soft(logits, targets, out, stats, vocab);                                                              \
    }                                                                                                          \
    KERNEL_BOUNDS(1024, cross_entropy_soft_grad_##NAME, const T* logits, const T* targets, const float* stats, \
                  const float* dout, T* dlogits, i64 rows, int vocab) {                                        \
        (void)rows;                                                                                            \
        soft_grad(logits, targets, stats, dout, dlogits, vocab);                                               \
    }
FOR_EACH_TYPE(KERNELS)

KERNEL(token_scores_finish, const float* state, float* out, float* stats, i64 rows, int vocab, int columns) {
    i64 threads = i64(gridDim.x) * blockDim.x;
    for (i64 at = i64(blockIdx.x) * blockDim.x + threadIdx.x; at < rows; at += threads) {
        const float* from = state + STATE * at;
        Online row;
        row.top = from[0];
        row.total = from[1];
        row.weighted = from[2];
        Stats all(row);
        write_scores(all, from[3], out + columns * at);
        if (columns > 2) out[columns * at + 2] = all.log_prob(from[4] / vocab);
        if (stats) all.write(stats + 3 * at);
    }
}
