// The scheduler behind cuda_emulation.h: blocks one after another, each thread of a block a fiber of its own.
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <algorithm>
#include <vector>

#include <sys/mman.h>

#include "cuda_emulation.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulation {
namespace {

constexpr size_t STACK = 128 << 10;   // per thread; only touched pages cost memory
constexpr size_t GUARD = 256;         // bytes on both sides of every piece of shared memory
constexpr size_t ARENA = 512 << 10;   // all shared memory of a block with its guards
constexpr unsigned char POISON = 0xff;  // NaN in every float type
constexpr unsigned FULL = 0xffffffffu;

#if defined(__x86_64__)
// Pushes what the calling convention keeps, changes stacks, pops.
extern "C" void efference_emulation_switch(void** save, void* load);
asm(R"(
.text
.globl efference_emulation_switch
.type efference_emulation_switch, @function
efference_emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size efference_emulation_switch, .-efference_emulation_switch
.section .note.GNU-stack,"",@progbits
.text
)");
#endif

enum class State { Ready, Barrier, Warp, Done };

struct Copy {
    void* to;
    const void* from;
    unsigned bytes;
    bool valid;
    int group;
};

struct Fiber {
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
    dim3 index;
    unsigned number = 0;
    State state = State::Done;
    unsigned exchanges = 0;  // warp operations so far; its parity chooses the slots
    std::vector<Copy> copies;
    int committed = 0;
};

struct Warp {
    unsigned arrived = 0;
    const char* what = nullptr;
    alignas(16) unsigned char slots[2][32][SLOT_BYTES];
};

struct Piece {
    const void* key;
    unsigned char* start;
    size_t bytes;
};

struct Machine {
    unsigned char* stacks = nullptr;
    std::unique_ptr<Fiber[]> fibers{new Fiber[1024]};
    std::unique_ptr<Warp[]> warps{new Warp[32]};
    std::unique_ptr<unsigned char[]> memory{new unsigned char[ARENA + 16]};
    unsigned char* arena = nullptr;
    size_t used = 0;
    std::vector<Piece> pieces;
    dim3 block, block_size, grid;
    unsigned threads = 0, at_barrier = 0, done = 0;
    const Entry* entry = nullptr;
    const void* const* arguments = nullptr;
    Fiber* current = nullptr;
    bool eager = false;  // asynchronous copies happen at once instead of as late as they may
    bool failed = false;
    std::string message;
#if defined(__x86_64__)
    void* scheduler = nullptr;
#else
    ucontext_t scheduler;
#endif

    Machine() {
        void* at = mmap(nullptr, STACK * 1024, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) {
            std::fprintf(stderr, "emulation: no memory for stacks\n");
            std::abort();
        }
        stacks = static_cast<unsigned char*>(at);
        arena = memory.get() + (16 - reinterpret_cast<uintptr_t>(memory.get()) % 16) % 16;
    }
    ~Machine() { munmap(stacks, STACK * 1024); }

    void start(Fiber& fiber);
    void resume(Fiber& fiber);
    void yield();
    unsigned char* piece(const void* key, size_t bytes);
    void check_guards();
    void run_block(uint64_t schedule, uint64_t block_number, size_t dynamic);
    bool run_warp(unsigned warp, const std::vector<unsigned>& lanes);
    void explain_deadlock();
};

// A launch stays on its thread, so fibers never change threads. Not inlined: the address of a thread's variable may
// not be kept across a switch by the compiler (it would not change here, but nothing should rely on that).
thread_local std::unique_ptr<Machine> machine;

Machine& here() { return *machine; }

void run_current() {
    Machine& m = here();
    m.entry->call(m.arguments);
    m.current->state = State::Done;
    m.done += 1;
    m.yield();
    std::abort();  // a finished fiber is never resumed
}

void Machine::start(Fiber& fiber) {
    fiber.state = State::Ready;
    fiber.exchanges = 0;
    fiber.copies.clear();
    fiber.committed = 0;
    unsigned char* stack = stacks + STACK * fiber.number;
#if defined(__x86_64__)
    // The first switch pops six registers and returns into run_current, whose stack must be 8 off a multiple of 16.
    void** top = reinterpret_cast<void**>(stack + STACK);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&run_current);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber.stack_pointer = top;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_current, 0);
#endif
}

void Machine::resume(Fiber& fiber) {
    current = &fiber;
#if defined(__x86_64__)
    efference_emulation_switch(&scheduler, fiber.stack_pointer);
#else
    swapcontext(&scheduler, &fiber.context);
#endif
}

void Machine::yield() {
#if defined(__x86_64__)
    efference_emulation_switch(&current->stack_pointer, scheduler);
#else
    swapcontext(&current->context, &scheduler);
#endif
}

unsigned char* Machine::piece(const void* key, size_t bytes) {
    for (const Piece& piece : pieces) {
        if (piece.key == key) return piece.start;
    }
    size_t need = 2 * GUARD + (bytes + 15) / 16 * 16;
    if (used + need > ARENA) fail("shared memory: %zu more bytes do not fit", bytes);
    unsigned char* start = arena + used + GUARD;
    std::memset(arena + used, POISON, need);
    used += need;
    pieces.push_back({key, start, bytes});
    return start;
}

void Machine::check_guards() {
    for (const Piece& piece : pieces) {
        size_t after = GUARD + (piece.bytes + 15) / 16 * 16 - piece.bytes;
        const unsigned char* end = piece.start + piece.bytes;
        bool broken = false;
        for (size_t i = 0; i < GUARD; ++i) broken |= piece.start[-1 - ptrdiff_t(i)] != POISON;
        for (size_t i = 0; i < after; ++i) broken |= end[i] != POISON;
        if (broken && !failed) {
            failed = true;
            message = "a write outside shared memory (a piece of " + std::to_string(piece.bytes) + " bytes)";
        }
    }
}

// Whether anything ran.
bool Machine::run_warp(unsigned warp, const std::vector<unsigned>& lanes) {
    bool ran = false;
    for (bool progress = true; progress && !failed;) {
        progress = false;
        for (unsigned lane : lanes) {
            Fiber& fiber = fibers[warp * 32 + lane];
            if (fiber.state != State::Ready) continue;
            resume(fiber);
            if (failed) return true;
            progress = ran = true;
        }
    }
    return ran;
}

void Machine::explain_deadlock() {
    for (unsigned i = 0; i < threads; ++i) {
        if (fibers[i].state == State::Warp) {
            const Warp& warp = warps[i / 32];
            char text[160];
            std::snprintf(text, sizeof text, "warp %u: lanes %08x wait in %s, the others never come", i / 32,
                          warp.arrived, warp.what);
            message = text;
            return;
        }
    }
    message = "__syncthreads: " + std::to_string(at_barrier) + " of " + std::to_string(threads) +
              " threads wait, " + std::to_string(done) + " have ended";
}

void Machine::run_block(uint64_t schedule, uint64_t block_number, size_t dynamic) {
    threads = block_size.x * block_size.y * block_size.z;
    at_barrier = done = 0;
    used = 0;
    pieces.clear();
    piece(nullptr, dynamic);  // the first piece is what the launch asked for
    unsigned count = threads / 32;
    std::vector<unsigned> warp_order(count), lane_order(32);
    for (unsigned i = 0; i < count; ++i) warp_order[i] = i;
    for (unsigned i = 0; i < 32; ++i) lane_order[i] = i;
    if (schedule == 1) {
        std::reverse(warp_order.begin(), warp_order.end());
        std::reverse(lane_order.begin(), lane_order.end());
    } else if (schedule > 1) {
        std::mt19937_64 random(schedule * 0x9e3779b97f4a7c15ull + block_number);
        std::shuffle(warp_order.begin(), warp_order.end(), random);
        std::shuffle(lane_order.begin(), lane_order.end(), random);
    }
    for (unsigned i = 0; i < threads; ++i) {
        Fiber& fiber = fibers[i];
        fiber.number = i;
        fiber.index = {i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y};
        start(fiber);
    }
    for (unsigned i = 0; i < count; ++i) warps[i].arrived = 0;
    while (done < threads && !failed) {
        bool ran = false;
        for (unsigned warp : warp_order) {
            ran |= run_warp(warp, lane_order);
            if (failed) return;
        }
        if (!ran) {
            explain_deadlock();
            failed = true;
        }
    }
    if (!failed) check_guards();
}

Entry*& entries() {
    static Entry* first = nullptr;
    return first;
}

}  // namespace

void add(Entry* entry) {
    entry->next = entries();
    entries() = entry;
}

__attribute__((noinline)) const dim3& thread_index() { return here().current->index; }
__attribute__((noinline)) const dim3& block_index() { return here().block; }
__attribute__((noinline)) const dim3& block_size() { return here().block_size; }
__attribute__((noinline)) const dim3& grid_size() { return here().grid; }
__attribute__((noinline)) unsigned lane() { return here().current->number % 32; }

void fail(const char* format, ...) {
    Machine& m = here();
    char text[256];
    va_list list;
    va_start(list, format);
    std::vsnprintf(text, sizeof text, format, list);
    va_end(list);
    const dim3 &t = m.current->index, &b = m.block;
    char place[160];
    std::snprintf(place, sizeof place, " (block %u %u %u, thread %u %u %u)", b.x, b.y, b.z, t.x, t.y, t.z);
    m.message = std::string(text) + place;
    m.failed = true;
    for (;;) m.yield();
}

__attribute__((noinline)) void block_barrier() {
    Machine& m = here();
    m.at_barrier += 1;
    if (m.at_barrier == m.threads) {
        m.at_barrier = 0;
        for (unsigned i = 0; i < m.threads; ++i) {
            if (m.fibers[i].state == State::Barrier) m.fibers[i].state = State::Ready;
        }
        // Goes back to the scheduler as well: who came last has no head start.
        m.yield();
        return;
    }
    m.current->state = State::Barrier;
    m.yield();
}

__attribute__((noinline)) Slots warp_exchange(unsigned mask, const void* in, size_t bytes, const char* what,
                                              void (*combine)(Slots)) {
    Machine& m = here();
    Fiber& fiber = *m.current;
    Warp& warp = m.warps[fiber.number / 32];
    unsigned lane = fiber.number % 32;
    if (mask != FULL) fail("%s with mask %08x: only full warps are emulated", what, mask);
    if (warp.arrived == 0) {
        warp.what = what;
    } else if (warp.what != what) {
        fail("%s while other lanes of the warp are in %s", what, warp.what);
    }
    // Two sets of slots in turn: a lane that is one operation ahead does not overwrite what others still read, and none
    // can be two ahead.
    Slots slots = warp.slots[fiber.exchanges++ & 1];
    if (bytes) std::memcpy(slots[lane], in, bytes);
    warp.arrived |= 1u << lane;
    if (warp.arrived == FULL) {
        warp.arrived = 0;
        if (combine) combine(slots);
        for (unsigned i = fiber.number / 32 * 32, end = i + 32; i < end; ++i) {
            if (m.fibers[i].state == State::Warp) m.fibers[i].state = State::Ready;
        }
        return slots;
    }
    fiber.state = State::Warp;
    m.yield();
    return slots;
}

__attribute__((noinline)) void* dynamic_shared() { return here().pieces[0].start; }

__attribute__((noinline)) void* static_shared(const void* key, size_t bytes) { return here().piece(key, bytes); }

__attribute__((noinline)) void check_shared(const void* address, size_t bytes, const char* what) {
    const unsigned char* at = static_cast<const unsigned char*>(address);
    for (const Piece& piece : here().pieces) {
        if (at >= piece.start && at + bytes <= piece.start + piece.bytes) {
            if (reinterpret_cast<uintptr_t>(at) % bytes != 0) fail("%s: address not aligned to %zu", what, bytes);
            return;
        }
    }
    fail("%s: address outside shared memory", what);
}

// A copy may land any time between its start and the wait for it. In one order of threads it lands at once, so that who
// still reads the old content shows; in the others when it is waited for, so that who reads too early shows.
__attribute__((noinline)) void async_copy(void* to, const void* from, size_t bytes, bool valid) {
    check_shared(to, bytes, "cp.async");
    if (valid && reinterpret_cast<uintptr_t>(from) % bytes != 0) fail("cp.async: source not aligned to %zu", bytes);
    if (here().eager) {
        valid ? (void)std::memcpy(to, from, bytes) : (void)std::memset(to, 0, bytes);
        return;
    }
    Fiber& fiber = *here().current;
    fiber.copies.push_back({to, from, unsigned(bytes), valid, fiber.committed});
}

__attribute__((noinline)) void async_commit() { here().current->committed += 1; }

__attribute__((noinline)) void async_wait(int pending) {
    Fiber& fiber = *here().current;
    size_t kept = 0;
    for (const Copy& copy : fiber.copies) {
        if (copy.group >= fiber.committed - pending) {
            fiber.copies[kept++] = copy;
        } else if (copy.valid) {
            std::memcpy(copy.to, copy.from, copy.bytes);
        } else {
            std::memset(copy.to, 0, copy.bytes);
        }
    }
    fiber.copies.resize(kept);
}

}  // namespace emulation

using namespace emulation;

// Runs a kernel; 0, or 1 with a message. `types` has one letter per argument (see Entry). Blocks run in the order of
// their numbers (schedule 0), backwards (1), or shuffled (others), and so do warps and lanes; asynchronous copies land
// at once in schedule 1 and late in the others.
extern "C" int efference_emulation_launch(const char* symbol, const uint32_t* grid, const uint32_t* block,
                                          uint32_t shared, const void* const* arguments, const char* types,
                                          uint64_t schedule, char* message, size_t capacity) {
    auto refuse = [&](const std::string& text) {
        std::snprintf(message, capacity, "%s", text.c_str());
        return 1;
    };
    const Entry* entry = entries();
    while (entry && std::strcmp(entry->name, symbol) != 0) entry = entry->next;
    if (!entry) return refuse("no such kernel");
    if (std::strcmp(entry->types, types) != 0) {
        return refuse(std::string("arguments are `") + types + "`, the kernel takes `" + entry->types + "`");
    }
    uint64_t threads = uint64_t(block[0]) * block[1] * block[2];
    if (threads == 0 || threads > 1024 || threads % 32 != 0) {
        return refuse("a block of " + std::to_string(threads) + " threads: 32 to 1024 in whole warps");
    }
    bool fits = grid[0] && grid[1] && grid[2] && grid[0] < 1u << 31 && grid[1] <= 65535 && grid[2] <= 65535;
    if (!fits) return refuse("a grid that CUDA does not launch");
    if (shared > 227u << 10) return refuse("more than 227 KiB of shared memory");
    if (!machine) machine = std::make_unique<Machine>();
    Machine& m = *machine;
    m.failed = false;
    m.eager = schedule == 1;
    m.entry = entry;
    m.arguments = arguments;
    m.grid = {grid[0], grid[1], grid[2]};
    m.block_size = {block[0], block[1], block[2]};
    uint64_t blocks = uint64_t(grid[0]) * grid[1] * grid[2];
    std::vector<uint64_t> order;
    if (schedule > 1) {
        order.resize(blocks);
        for (uint64_t i = 0; i < blocks; ++i) order[i] = i;
        std::shuffle(order.begin(), order.end(), std::mt19937_64(schedule));
    }
    for (uint64_t i = 0; i < blocks && !m.failed; ++i) {
        uint64_t number = schedule == 0 ? i : schedule == 1 ? blocks - 1 - i : order[i];
        m.block = {unsigned(number % grid[0]), unsigned(number / grid[0] % grid[1]),
                   unsigned(number / grid[0] / grid[1])};
        m.run_block(schedule, number, shared);
    }
    return m.failed ? refuse(m.message) : 0;
}

// The i-th kernel's name and argument letters; null after the last.
extern "C" const char* efference_emulation_kernel(size_t i, const char** types) {
    const Entry* entry = entries();
    while (entry && i--) entry = entry->next;
    if (!entry) return nullptr;
    *types = entry->types;
    return entry->name;
}
