// Enough of CUDA to run the kernels of this folder on a CPU, thread by thread, and to catch what a GPU would not
// report: barriers that not all threads reach, warp operations with absent lanes, accesses outside shared memory,
// reads of shared memory nobody wrote (it starts as NaN), and, by running in several orders, missing barriers.
//
// Every thread of a block is a fiber (runtime.cpp). Warp operations are collective: a lane waits until all 32 lanes
// have come. What is not here is not used by the kernels.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

namespace emulation {

// What the running thread may ask for.
const dim3& thread_index();
const dim3& block_index();
const dim3& block_size();
const dim3& grid_size();

// Ends the launch with an error that names block and thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

void block_barrier();

constexpr int SLOT_BYTES = 64;
using Slots = unsigned char (*)[SLOT_BYTES];
// All 32 lanes hand in up to SLOT_BYTES; the last to come runs `combine` (may be null) over the 32 slots; everybody
// then reads them. `what` must be the same pointer in all lanes.
Slots warp_exchange(unsigned mask, const void* in, size_t bytes, const char* what, void (*combine)(Slots));
unsigned lane();

void* dynamic_shared();
// Shared memory of one declaration; the first thread of the block to come makes it.
void* static_shared(const void* key, size_t bytes);
// Where `bytes` from `address` on must lie inside one piece of shared memory.
void check_shared(const void* address, size_t bytes, const char* what);

void async_copy(void* to, const void* from, size_t bytes, bool valid);
void async_commit();
void async_wait(int pending);

struct Entry {
    const char* name;
    const char* types;  // p pointer, i i32, l i64, u u32, f f32, d f64
    void (*call)(const void* const* arguments);
    Entry* next;
};
void add(Entry* entry);

template <class A>
constexpr char type_letter() {
    if (std::is_pointer<A>::value) return 'p';
    if (std::is_same<A, int>::value) return 'i';
    if (std::is_same<A, long long>::value) return 'l';
    if (std::is_same<A, unsigned>::value) return 'u';
    if (std::is_same<A, float>::value) return 'f';
    if (std::is_same<A, double>::value) return 'd';
    return '?';
}

// Takes a kernel's argument types apart, so that it can be called with a list of addresses.
template <class... A>
struct Kernel {
    static constexpr char types[] = {type_letter<A>()..., 0};
    template <void (*F)(A...), size_t... I>
    static void call_with(const void* const* arguments, std::index_sequence<I...>) {
        F(*static_cast<const A*>(arguments[I])...);
    }
    template <void (*F)(A...)>
    static void call(const void* const* arguments) {
        call_with<F>(arguments, std::index_sequence_for<A...>{});
    }
};
template <class... A>
Kernel<A...> kernel_of(void (*)(A...));

struct Registration {
    Entry entry;
    Registration(const char* name, const char* types, void (*call)(const void* const*))
        : entry{name, types, call, nullptr} {
        add(&entry);
    }
};

// One value per lane in, the value of lane `from(lane)` out.
template <class T>
T shuffle(unsigned mask, T value, unsigned from, const char* what) {
    static_assert(sizeof(T) <= SLOT_BYTES);
    Slots slots = warp_exchange(mask, &value, sizeof(T), what, nullptr);
    T out;
    std::memcpy(&out, slots[from], sizeof(T));
    return out;
}

}  // namespace emulation

#define threadIdx (::emulation::thread_index())
#define blockIdx (::emulation::block_index())
#define blockDim (::emulation::block_size())
#define gridDim (::emulation::grid_size())

// A kernel: `KERNEL(name, arguments...) { body }`.
#define KERNEL_BOUNDS(bounds, name, ...)                                                                       \
    extern "C" void name(__VA_ARGS__);                                                                         \
    static ::emulation::Registration registered_##name{                                                        \
        #name, decltype(::emulation::kernel_of(name))::types,                                                  \
        &decltype(::emulation::kernel_of(name))::template call<name>};                                         \
    extern "C" void name(__VA_ARGS__)
#define KERNEL(name, ...) KERNEL_BOUNDS(0, name, __VA_ARGS__)

// `SHARED(float, sums, 32)` declares shared memory for 32 floats; `SHARED_DYNAMIC(raw)` names what the launch gave.
#define SHARED(type, name, count)                                                                              \
    static char key_of_##name;                                                                                 \
    type* const name = static_cast<type*>(::emulation::static_shared(&key_of_##name, sizeof(type) * (count)))
#define SHARED_DYNAMIC(name) unsigned char* const name = static_cast<unsigned char*>(::emulation::dynamic_shared())

inline void __syncthreads() { emulation::block_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    static const char what[] = "__syncwarp";
    emulation::warp_exchange(mask, nullptr, 0, what, nullptr);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
    static const char what[] = "__shfl_xor_sync";
    return emulation::shuffle(mask, value, emulation::lane() ^ unsigned(lanes), what);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from) {
    static const char what[] = "__shfl_sync";
    return emulation::shuffle(mask, value, unsigned(from) & 31u, what);
}

inline float __expf(float x) { return std::exp(x); }
// These are rounded by themselves whatever the compiler may fuse.
inline float __fmul_rn(float a, float b) {
    volatile float product = a * b;
    return product;
}
inline float __fadd_rn(float a, float b) {
    volatile float sum = a + b;
    return sum;
}
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
template <class T>
T __ldg(const T* at) {
    return *at;
}

namespace emulation {
inline unsigned bits_of(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float float_of(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
}  // namespace emulation

// bfloat16: the upper half of an f32, rounded to nearest even; NaN becomes 0x7fff as on the device.
struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) { return emulation::float_of(unsigned(x.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16(float x) {
    if (std::isnan(x)) return {0x7fff};
    unsigned bits = emulation::bits_of(x);
    bits += 0x7fffu + (bits >> 16 & 1u);
    return {uint16_t(bits >> 16)};
}

// IEEE half precision: 5 bits of exponent, 10 of mantissa, rounded to nearest even; NaN becomes 0x7fff.
struct __half {
    uint16_t bits;
};
inline float __half2float(__half x) {
    int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
    float value;
    if (exponent == 31) {
        value = mantissa ? NAN : INFINITY;
    } else if (exponent == 0) {
        value = std::ldexp(float(mantissa), -24);
    } else {
        value = std::ldexp(float(mantissa + 1024), exponent - 25);
    }
    return x.bits & 0x8000 ? -value : value;
}
inline __half __float2half(float x) {
    if (std::isnan(x)) return {0x7fff};
    uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    float size = std::fabs(x);
    if (size >= 65520.0f) return {uint16_t(sign | 0x7c00)};
    // The spacing of half numbers near `size` is 2^(e - 10), 2^-24 below the smallest normal number.
    int e;
    std::frexp(size, &e);  // size in [2^(e-1), 2^e)
    int step = size < 6.103515625e-05f ? -24 : e - 11;
    // A power of two divides exactly; nearbyint rounds to nearest even.
    long units = long(std::nearbyint(std::ldexp(size, -step)));
    if (step == -24) return {uint16_t(sign | units)};  // 1024 units carry into the smallest normal number by themselves
    if (units == 2048) {
        units = 1024;
        step += 1;
    }
    return {uint16_t(sign | (step + 25) << 10 | (units - 1024))};
}
