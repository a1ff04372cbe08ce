// What turns a convolution into a matrix product: the numbers under the kernel at every output pixel, and their way back.
#include "common.cuh"

namespace efference {

struct Convolution {
    int channels, height, width, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, out_h, out_w;

    __device__ __forceinline__ i64 numbers() const { return i64(channels) * kernel_h * kernel_w; }
};

// out [B oh ow, C kh kw]: what output pixel (row) reads through kernel element (column); 0 in the padding.
template <class T>
__device__ __forceinline__ void im2col(const T* x, T* out, i64 n, const Convolution c) {
    i64 thread = i64(blockIdx.x) * blockDim.x + threadIdx.x, threads = i64(gridDim.x) * blockDim.x;
    i64 numbers = c.numbers();
    for (i64 i = thread; i < n; i += threads) {
        i64 pixel = i / numbers;
        int element = int(i - pixel * numbers);
        int kernel_x = element % c.kernel_w, kernel_y = element / c.kernel_w % c.kernel_h;
        int channel = element / c.kernel_w / c.kernel_h;
        int out_x = int(pixel % c.out_w), out_y = int(pixel / c.out_w % c.out_h);
        i64 sample = pixel / c.out_w / c.out_h;
        int row = out_y * c.stride_h + kernel_y - c.padding_h, column = out_x * c.stride_w + kernel_x - c.padding_w;
        bool inside = row >= 0 && row < c.height && column >= 0 && column < c.width;
        i64 at = ((sample * c.channels + channel) * c.height + row) * c.width + column;
        out[i] = inside ? x[at] : from_f32<T>(0.0f);
    }
}

// x [B, C, H, W] = for every number of the image the sum over all places that read it, in the order of the kernel.
template <class T>
__device__ __forceinline__ void col2im(const T* columns, T* x, i64 n, const Convolution c) {
    i64 thread = i64(blockIdx.x) * blockDim.x + threadIdx.x, threads = i64(gridDim.x) * blockDim.x;
    i64 numbers = c.numbers();
    for (i64 i = thread; i < n; i += threads) {
        int column = int(i % c.width), row = int(i / c.width % c.height);
        i64 plane = i / c.width / c.height, sample = plane / c.channels;
        int channel = int(plane - sample * c.channels);
        float sum = 0.0f;
        for (int kernel_y = 0; kernel_y < c.kernel_h; ++kernel_y) {
            int down = row + c.padding_h - kernel_y;
            if (down < 0 || down % c.stride_h != 0 || down / c.stride_h >= c.out_h) continue;
            for (int kernel_x = 0; kernel_x < c.kernel_w; ++kernel_x) {
                int across = column + c.padding_w - kernel_x;
                if (across < 0 || across % c.stride_w != 0 || across / c.stride_w >= c.out_w) continue;
                i64 pixel = (sample * c.out_h + down / c.stride_h) * c.out_w + across / c.stride_w;
                i64 element = (i64(channel) * c.kernel_h + kernel_y) * c.kernel_w + kernel_x;
                sum += to_f32(columns[pixel * numbers + element]);
            }
        }
        x[i] = from_f32<T>(sum);
    }
}

}  // namespace efference

using namespace efference;

#define CONVOLUTION                                                                                              \
    int channels, int height, int width, int kernel_h, int kernel_w, int stride_h, int stride_w, int padding_h, \
        int padding_w, int out_h, int out_w
#define SIZES                                                                                                    \
    Convolution {                                                                                                \
        channels, height, width, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, out_h, out_w      \
    }
#define KERNELS(NAME, T)                                                                                       \
    KERNEL(im2col_##NAME, const T* x, T* out, i64 n, CONVOLUTION) { im2col(x, out, n, SIZES); }                \
    KERNEL(col2im_##NAME, const T* columns, T* x, i64 n, CONVOLUTION) { col2im(columns, x, n, SIZES); }
FOR_EACH_TYPE(KERNELS)
