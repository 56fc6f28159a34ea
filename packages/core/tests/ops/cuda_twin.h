// As much of CUDA as the kernels of csrc/cuda need, on a CPU: the threads of a block are fibers that take turns.
//
// Warps exchange registers as the PTX ISA says of shfl, ldmatrix and mma. Shared memory begins as NaNs, copies to it land
// at once or when they are waited for, and one of 16 bytes from or to any other address than a multiple of 16 aborts.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y;
    dim3(unsigned x = 1, unsigned y = 1) : x(x), y(y) {}
};
struct Index {
    int x, y;
};
inline Index threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

typedef int cudaError_t;
typedef void* cudaStream_t;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    explicit __nv_bfloat16(float value) {
        uint32_t word;
        memcpy(&word, &value, 4);
        bits = value != value ? 0x7FFF : static_cast<uint16_t>((word + 0x7FFF + (word >> 16 & 1)) >> 16);
    }
    operator float() const {
        const uint32_t word = static_cast<uint32_t>(bits) << 16;
        float value;
        memcpy(&value, &word, 4);
        return value;
    }
};
struct __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return __nv_bfloat16(value); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }
inline float __low2float(__nv_bfloat162 pair) { return pair.x; }
inline float __high2float(__nv_bfloat162 pair) { return pair.y; }

namespace twin {

constexpr int kWarp = 32, kSharedBytes = 48 * 1024;  // what a launch gets without asking for more

struct Copy {
    uint32_t to;
    const void* from;
    int size;
};
struct Thread {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 16);
    int64_t warp_barriers = 0, block_barriers = 0;
    bool is_done = false;
    std::vector<std::vector<Copy>> groups = std::vector<std::vector<Copy>>(1);  // the last is open
    uint32_t shown[6];                                                         // to the other threads of the warp
};
inline std::vector<Thread> threads;
inline ucontext_t scheduler;
inline int current;
inline std::function<void()> body;
alignas(128) inline unsigned char shared[kSharedBytes];

inline Thread& self() { return threads[current]; }
inline const Thread& of_lane(int lane) { return threads[current / kWarp * kWarp + lane]; }
inline int lane() { return current % kWarp; }

// Threads that have returned count as there.
inline void wait_for(int64_t Thread::*barriers, int first, int last) {
    const int64_t number = ++(self().*barriers);
    for (bool is_complete = false; !is_complete;) {
        is_complete = true;
        for (int i = first; i < last; ++i) is_complete &= threads[i].is_done || threads[i].*barriers >= number;
        if (is_complete) continue;
        swapcontext(&self().context, &scheduler);
        threadIdx.x = current;
    }
}
inline void wait_for_warp() {
    const int first = current / kWarp * kWarp;
    wait_for(&Thread::warp_barriers, first, first + kWarp);
}
inline void wait_for_block() { wait_for(&Thread::block_barriers, 0, static_cast<int>(threads.size())); }

inline void enter() {
    body();
    self().is_done = true;
    swapcontext(&self().context, &scheduler);
}

inline void run(dim3 grid, int num_threads, std::function<void()> kernel) {
    body = kernel;
    gridDim = grid;
    blockDim = dim3(num_threads);
    for (unsigned block = 0; block < grid.x * grid.y; ++block) {
        blockIdx = {static_cast<int>(block % grid.x), static_cast<int>(block / grid.x)};
        memset(shared, 0xFF, sizeof(shared));
        threads = std::vector<Thread>(num_threads);
        for (Thread& thread : threads) {
            getcontext(&thread.context);
            thread.context.uc_stack.ss_sp = thread.stack.data();
            thread.context.uc_stack.ss_size = thread.stack.size();
            makecontext(&thread.context, enter, 0);
        }
        for (int left = num_threads; left > 0;) {
            // A warp gets ahead of the others, until it waits for them.
            const int first = rand() % num_threads / kWarp * kWarp, last = std::min(first + kWarp, num_threads);
            for (int steps = rand() % 64; steps >= 0; --steps)
                for (current = first; current < last; ++current) {
                    if (self().is_done) continue;
                    threadIdx.x = current;
                    swapcontext(&scheduler, &self().context);
                    left -= self().is_done;
                }
        }
    }
}

inline void land(const Copy& copy) {
    memset(shared + copy.to, 0, 16);
    memcpy(shared + copy.to, copy.from, copy.size);
}
inline void copy_16_bytes(uint32_t to, const void* from, int size) {
    if (to % 16 || reinterpret_cast<uintptr_t>(from) % 16 || to + 16 > kSharedBytes) abort();
    if (rand() % 2)
        land({to, from, size});
    else
        self().groups.back().push_back({to, from, size});
}
inline void commit() { self().groups.emplace_back(); }
inline void wait_for_copies(size_t pending) {
    for (auto& groups = self().groups; groups.size() > pending + 1; groups.erase(groups.begin()))
        for (const Copy& copy : groups.front()) land(copy);
}

// Lane 8 m + r has the address of row r of matrix m; lane l gets of each matrix row l / 4, columns 2 (l % 4) and the next.
inline void load_matrices(uint32_t (&to)[4], uint32_t from, bool transposed) {
    self().shown[0] = from;
    wait_for_warp();
    for (int matrix = 0; matrix < 4; ++matrix)
        for (int i = 0; i < 2; ++i) {
            const int row = lane() / 4, column = lane() % 4 * 2 + i;
            const uint32_t at = of_lane(8 * matrix + (transposed ? column : row)).shown[0];
            if (at % 16) abort();
            memcpy(reinterpret_cast<char*>(&to[matrix]) + 2 * i, shared + at + 2 * (transposed ? row : column), 2);
        }
    wait_for_warp();
}

inline float half_of(uint32_t word, int which) {
    __nv_bfloat16 value;
    value.bits = static_cast<uint16_t>(word >> (16 * which));
    return value;
}

// m16n8k16: element i of a is (l / 4 + 8 if i / 2 is odd, 2 (l % 4) + i % 2 + 8 if i >= 4), of b
// (2 (l % 4) + i % 2 + 8 if i >= 2, l / 4), and of c (l / 4 + 8 if i >= 2, 2 (l % 4) + i % 2).
inline void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const uint32_t shown[6] = {a[0], a[1], a[2], a[3], b0, b1};
    memcpy(self().shown, shown, sizeof(shown));
    wait_for_warp();
    for (int i = 0; i < 4; ++i) {
        const int row = lane() / 4 + 8 * (i / 2), column = lane() % 4 * 2 + i % 2;
        double sum = c[i];
        for (int k = 0; k < 16; ++k) {
            const float left = half_of(of_lane(row % 8 * 4 + k % 8 / 2).shown[k / 8 * 2 + row / 8], k % 2);
            sum += static_cast<double>(left) * half_of(of_lane(column * 4 + k % 8 / 2).shown[4 + k / 8], k % 2);
        }
        c[i] = static_cast<float>(sum);
    }
    wait_for_warp();
}

}  // namespace twin

inline void __syncthreads() { twin::wait_for_block(); }

inline int __syncthreads_and(int predicate) {
    twin::self().shown[0] = predicate != 0;
    twin::wait_for_block();
    int result = 1;
    for (const twin::Thread& thread : twin::threads) result &= thread.shown[0];
    twin::wait_for_block();
    return result;
}

inline float __shfl_xor_sync(unsigned, float value, int distance) {
    memcpy(twin::self().shown, &value, 4);
    twin::wait_for_warp();
    memcpy(&value, twin::of_lane(twin::lane() ^ distance).shown, 4);
    twin::wait_for_warp();
    return value;
}

inline size_t __cvta_generic_to_shared(const void* address) {
    return static_cast<const unsigned char*>(address) - twin::shared;
}
