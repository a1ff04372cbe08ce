// Tensor-core products and the copies that feed them: PTX on the device, the documented lane layouts in the emulation.
//
// A product is m16n8k16: c [16, 8] f32 += a [16, 16] b [16, 8], spread over a warp. With g = lane / 4, t = lane % 4
// and two numbers to a register:
//   a[0] = (g, 2t), (g, 2t + 1)      a[1] = the same of row g + 8     a[2], a[3] = those of columns + 8
//   b0 = (2t, g), (2t + 1, g)        b1 = those of rows + 8
//   c[0], c[1] = (g, 2t), (g, 2t + 1)    c[2], c[3] = those of row g + 8
// (PTX ISA, "Matrix Fragments for mma.m16n8k16".) So the accumulators of two neighbouring products are the `a` of a
// following one, with no exchange between lanes.
#pragma once
#include "common.cuh"

namespace efference {

#if defined(__CUDACC__)

__device__ __forceinline__ u32 shared_address(const void* at) { return static_cast<u32>(__cvta_generic_to_shared(at)); }

template <class T>
__device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);

template <>
__device__ __forceinline__ void multiply<__nv_bfloat16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void multiply<__half>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices from shared memory; lane l gives the address (16-byte aligned) of row l % 8 of matrix l / 8. Of
// each matrix a lane gets (g, 2t), (g, 2t + 1); transposed: (2t, g), (2t + 1, g).
template <class T>
__device__ __forceinline__ void load_matrices(u32 (&r)[4], const T* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

template <class T>
__device__ __forceinline__ void load_matrices_transposed(u32 (&r)[4], const T* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Starts to copy BYTES (4 or 16) from device to shared memory; zeros where not valid (nothing is read then).
template <int BYTES>
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
    int bytes = valid ? BYTES : 0;
    if (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                     : "memory");
    }
}

// Ends a group of copies.
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's groups are under way.
template <int PENDING>
__device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// 2^x, results below 2^-126 are 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

template <class T>
__device__ __forceinline__ u32 pack2(float low, float high);
template <>
__device__ __forceinline__ u32 pack2<__nv_bfloat16>(float low, float high) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
template <>
__device__ __forceinline__ u32 pack2<__half>(float low, float high) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

#else  // the emulation

template <class T>
u32 pack2(float low, float high) {
    return u32(from_f32<T>(low).bits) | u32(from_f32<T>(high).bits) << 16;
}

struct Operands {
    u32 a[4], b[2];
    float c[4];
};

template <class T>
float half_of(u32 pair, int i) {
    return to_f32(T{uint16_t(i ? pair >> 16 : pair)});
}

template <class T>
void multiply_warp(emulation::Slots slots) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        Operands in;
        std::memcpy(&in, slots[lane], sizeof in);
        int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 2; ++i) {
            for (int r = 0; r < 4; ++r) a[g + r % 2 * 8][2 * t + i + r / 2 * 8] = half_of<T>(in.a[r], i);
            for (int r = 0; r < 2; ++r) b[2 * t + i + r * 8][g] = half_of<T>(in.b[r], i);
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        Operands in;
        std::memcpy(&in, slots[lane], sizeof in);
        for (int i = 0; i < 4; ++i) {
            int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            // Products of halves are exact in f32; the order of the device's sum is not documented.
            for (int k = 0; k < 16; ++k) in.c[i] += a[row][k] * b[k][column];
        }
        std::memcpy(slots[lane], in.c, sizeof in.c);
    }
}

template <class T>
void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    static const char what[] = "mma";
    Operands in;
    std::memcpy(in.a, a, sizeof a);
    in.b[0] = b0;
    in.b[1] = b1;
    std::memcpy(in.c, c, sizeof c);
    emulation::Slots slots = emulation::warp_exchange(ALL_LANES, &in, sizeof in, what, multiply_warp<T>);
    std::memcpy(c, slots[emulation::lane()], sizeof c);
}

// The addresses of the lanes become what each lane receives, while all of them stand still.
template <bool TRANSPOSED>
void load_matrices_warp(emulation::Slots slots) {
    const uint16_t* rows[32];
    for (int lane = 0; lane < 32; ++lane) std::memcpy(&rows[lane], slots[lane], sizeof rows[lane]);
    for (int lane = 0; lane < 32; ++lane) {
        uint16_t out[8];
        int g = lane / 4, t = lane % 4;
        for (int m = 0; m < 4; ++m) {
            for (int i = 0; i < 2; ++i) {
                out[2 * m + i] = TRANSPOSED ? rows[8 * m + 2 * t + i][g] : rows[8 * m + g][2 * t + i];
            }
        }
        std::memcpy(slots[lane], out, sizeof out);
    }
}

template <bool TRANSPOSED>
void load_matrices_from(u32 (&r)[4], const void* row) {
    static const char what[] = "ldmatrix";
    emulation::check_shared(row, 16, what);
    emulation::Slots slots =
        emulation::warp_exchange(ALL_LANES, &row, sizeof row, what, load_matrices_warp<TRANSPOSED>);
    std::memcpy(r, slots[emulation::lane()], sizeof r);
}

template <class T>
void load_matrices(u32 (&r)[4], const T* row) {
    load_matrices_from<false>(r, row);
}
template <class T>
void load_matrices_transposed(u32 (&r)[4], const T* row) {
    load_matrices_from<true>(r, row);
}

template <int BYTES>
void copy_async(void* to, const void* from, bool valid) {
    emulation::async_copy(to, from, BYTES, valid);
}
inline void copies_commit() { emulation::async_commit(); }
template <int PENDING>
void copies_wait() {
    emulation::async_wait(PENDING);
}

inline float exp2_fast(float x) {
    float y = std::exp2(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}

#endif

}  // namespace efference
