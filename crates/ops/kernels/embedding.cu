// Rows of a table by id, the sum of their gradients, and images and videos cut into patches.
#include "common.cuh"

namespace efference {

template <int N, class T>
__device__ __forceinline__ void gather(const T* table, const u32* ids, T* out, i64 n, int width) {
    i64 thread = i64(blockIdx.x) * blockDim.x + threadIdx.x, threads = i64(gridDim.x) * blockDim.x;
    int packs = width / N;
    for (i64 p = thread; p < n * packs; p += threads) {
        i64 row = p / packs;
        int column = int(p - row * packs) * N;
        *reinterpret_cast<Pack<T, N>*>(out + row * width + column) =
            *reinterpret_cast<const Pack<T, N>*>(table + i64(ids[row]) * width + column);
    }
}

// One id and 128 columns a block: 32 lanes with 4 columns each; 8 warps take the id's places in turn.
template <class T>
__device__ __forceinline__ void scatter(const T* dout, const u32* order, const u32* starts, const u32* ids, T* dtable,
                                        int width) {
    SHARED(float, sums, 8 * 128);
    constexpr int N = 4;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int column = (blockIdx.y * 32 + lane) * N, columns = width - column < N ? width - column : N;
    u32 first = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    bool vectors = width % N == 0 && aligned_to(N * sizeof(T), dout);
    float sum[N] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (columns > 0) {
#pragma unroll 4
        for (u32 place = first + warp; place < end; place += 8) {
            const T* from = dout + i64(order[place]) * width + column;
            float g[N];
            if (vectors) {
                load<N>(from, g);
            } else {
#pragma unroll
                for (int i = 0; i < N; ++i) g[i] = i < columns ? to_f32(from[i]) : 0.0f;
            }
#pragma unroll
            for (int i = 0; i < N; ++i) sum[i] += g[i];
        }
    }
#pragma unroll
    for (int i = 0; i < N; ++i) sums[warp * 128 + lane * N + i] = sum[i];
    __syncthreads();
    int mine = blockIdx.y * 128 + threadIdx.x;
    if (threadIdx.x < 128 && mine < width) {
        float total = sums[threadIdx.x];
#pragma unroll
        for (int w = 1; w < 8; ++w) total += sums[w * 128 + threadIdx.x];
        dtable[i64(ids[blockIdx.x]) * width + mine] = from_f32<T>(total);
    }
}

// Number `i` of the patches and the number of the image it is.
__device__ __forceinline__ i64 pixel_of(i64 i, int channels, int frames, int height, int width, int tubelet,
                                        int patch_h, int patch_w) {
    int across = width / patch_w, down = height / patch_h, deep = frames / tubelet;
    int column = int(i % patch_w);
    i /= patch_w;
    int row = int(i % patch_h);
    i /= patch_h;
    int frame = int(i % tubelet);
    i /= tubelet;
    int channel = int(i % channels);
    i /= channels;
    int patch_x = int(i % across);
    i /= across;
    int patch_y = int(i % down);
    i /= down;
    int patch_t = int(i % deep);
    i64 sample = i / deep;
    i64 at = (sample * channels + channel) * frames + patch_t * tubelet + frame;
    return (at * height + patch_y * patch_h + row) * width + patch_x * patch_w + column;
}

template <class T>
__device__ __forceinline__ void patchify(const T* x, T* out, i64 n, int channels, int frames, int height, int width,
                                         int tubelet, int patch_h, int patch_w, int inverse) {
    i64 thread = i64(blockIdx.x) * blockDim.x + threadIdx.x, threads = i64(gridDim.x) * blockDim.x;
    for (i64 i = thread; i < n; i += threads) {
        i64 pixel = pixel_of(i, channels, frames, height, width, tubelet, patch_h, patch_w);
        if (inverse) {
            out[pixel] = x[i];
        } else {
            out[i] = x[pixel];
        }
    }
}

}  // namespace efference

using namespace efference;

#define KERNELS(NAME, T)                                                                                       \
    KERNEL(embedding_##NAME, const T* table, const u32* ids, T* out, i64 n, int width) {                       \
        if (width % Width<T>::N == 0 && aligned_to(16, table, out)) {                                          \
            gather<Width<T>::N>(table, ids, out, n, width);                                                    \
        } else {                                                                                               \
            gather<1>(table, ids, out, n, width);                                                              \
        }                                                                                                      \
    }                                                                                                          \
    KERNEL_BOUNDS(256, embedding_grad_##NAME, const T* dout, const u32* order, const u32* starts,              \
                  const u32* ids, T* dtable, int segments, int width) {                                        \
        (void)segments;                                                                                        \
        scatter(dout, order, starts, ids, dtable, width);                                                      \
    }                                                                                                          \
    KERNEL(patchify_##NAME, const T* x, T* out, i64 n, int channels, int frames, int height, int width,        \
           int tubelet, int patch_h, int patch_w, int inverse) {                                               \
        patchify(x, out, n, channels, frames, height, width, tubelet, patch_h, patch_w, inverse);              \
    }
FOR_EACH_TYPE(KERNELS)
