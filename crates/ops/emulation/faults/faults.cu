// Kernels with one fault each: the emulation must find it.
#include "tensor_core.cuh"

KERNEL(fault_barrier, float* out) {
    if (threadIdx.x < 40) __syncthreads();
    out[threadIdx.x] = 0.0f;
}

KERNEL(fault_lanes, float* out) {
    float x = float(threadIdx.x);
    if (threadIdx.x != 3) x = efference::warp_sum(x);
    out[threadIdx.x] = x;
}

KERNEL(fault_mixed, float* out) {
    float x = float(threadIdx.x);
    x = threadIdx.x < 16 ? __shfl_xor_sync(efference::ALL_LANES, x, 1) : __shfl_sync(efference::ALL_LANES, x, 1);
    out[threadIdx.x] = x;
}

KERNEL(fault_shared, float* out) {
    SHARED(float, row, 32);
    row[threadIdx.x + 1] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = row[threadIdx.x];
}

KERNEL(fault_dynamic, float* out) {
    SHARED_DYNAMIC(raw);
    float* row = reinterpret_cast<float*>(raw);
    row[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = row[threadIdx.x];
}

// A barrier is missing between writing and reading: what a thread sees depends on who ran first.
KERNEL(fault_race, float* out) {
    SHARED(float, row, 64);
    row[threadIdx.x] = float(threadIdx.x);
    out[threadIdx.x] = row[63 - threadIdx.x];
}

// Blocks that depend on each other.
KERNEL(fault_blocks, float* out) {
    if (threadIdx.x == 0) out[blockIdx.x] = blockIdx.x == 0 ? 1.0f : out[blockIdx.x - 1] + 1.0f;
}

KERNEL(fault_behind, float* out, int n) { out[n] = float(threadIdx.x); }

// Reads what an asynchronous copy brings without waiting for it.
KERNEL(fault_wait, const float* x, float* out) {
    SHARED(float, row, 64);
    row[threadIdx.x] = 0.0f;
    efference::copy_async<4>(row + threadIdx.x, x + threadIdx.x, true);
    efference::copies_commit();
    __syncthreads();
    out[threadIdx.x] = row[threadIdx.x];
    efference::copies_wait<0>();
}

// Starts a copy over what others still read.
KERNEL(fault_overwrite, const float* x, float* out) {
    SHARED(float, row, 64);
    row[threadIdx.x] = float(threadIdx.x);
    __syncthreads();
    float read = row[63 - threadIdx.x];
    efference::copy_async<4>(row + threadIdx.x, x + threadIdx.x, true);
    efference::copies_commit();
    efference::copies_wait<0>();
    __syncthreads();
    out[threadIdx.x] = read + row[63 - threadIdx.x];
}
