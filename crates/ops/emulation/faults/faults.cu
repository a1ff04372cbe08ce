// Kernels with one fault each: the emulation must find it.
#include "common.cuh"

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
