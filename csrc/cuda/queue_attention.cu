// Queue attention on tensor cores (mma.sync, compute capability 8.0 and later), in one pass over the queue.
//
// A block of four warps holds 64 queries, 16 to a warp, in registers. A tile of keys is copied to shared memory once and
// serves as keys, for the scores, and as values, for the weighted sum; the next tile is copied meanwhile. Blocks share the
// queue, and a second kernel combines their parts in order. Weights are rounded to bfloat16 before the second product; two
// sums of them are kept, of the exact ones for lse and of the rounded ones to normalize the expectation.

#include <cuda_bf16.h>

#include "ssl_core_cuda.h"

namespace {

constexpr int kWarps = 4;
constexpr int kRows = 16 * kWarps;  // queries of a block
constexpr float kLog2e = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;
constexpr float kLowest = -3.402823466e38f;
// 2 log2(e) / temperature < 126: the smallest weight of unit rows is a normal number.
constexpr float kLargestBoundedScale = 43.f * kLog2e;

struct Arguments {
    const __nv_bfloat16* query;
    const __nv_bfloat16* queue;
    const float* inverse_temperature;
    const int64_t* length;
    const int64_t* exclude;
    const float* key_bias;
    float* partial;
    float* partial_sums;
    int64_t num_rows, num_keys, keys_per_split;
    bool normalized;
};

__device__ inline void copy_16_bytes(uint32_t to, const void* from, bool is_inside) {
    const int size = is_inside ? 16 : 0;  // the rest is filled with zeros
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(size));
}

template <bool TRANSPOSED>
__device__ inline void load_matrices(uint32_t (&to)[4], uint32_t from) {
    if constexpr (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(from));
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(from));
}

__device__ inline void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// exp2f without its detour for results below the smallest normal number, which count for nothing beside the largest.
__device__ inline float exp2_flushed(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline float over_quad(float value, bool is_maximum) {
#pragma unroll
    for (int distance = 1; distance <= 2; distance *= 2) {
        const float other = __shfl_xor_sync(0xffffffff, value, distance);
        value = is_maximum ? fmaxf(value, other) : value + other;
    }
    return value;
}

// Chunks of 16 bytes are permuted within a row, so that eight rows of one column lie in different banks.
template <int DIM>
__device__ inline uint32_t address(uint32_t tile, int key, int chunk) {
    return tile + (key * (DIM / 8) + (chunk ^ (key & 7))) * 16;
}

template <int DIM, int KEYS>
__device__ void copy_tile(const Arguments& a, uint32_t tile, int first, int last) {
    constexpr int chunks = DIM / 8;
#pragma unroll
    for (int i = threadIdx.x; i < KEYS * chunks; i += 32 * kWarps) {
        const int key = i / chunks, chunk = i % chunks;
        const bool is_inside = first + key < last;
        const int64_t row = is_inside ? first + key : 0;  // times DIM it may need 64 bits
        copy_16_bytes(address<DIM>(tile, key, chunk), a.queue + row * DIM + chunk * 8, is_inside);
    }
    asm volatile("cp.async.commit_group;\n");
}

// Blocks that a multiprocessor holds at once, by registers: while one waits for its tile another multiplies.
template <int DIM>
constexpr int kResident = DIM == 64 ? 3 : 2;

template <int DIM, int KEYS>
__global__ void __launch_bounds__(32 * kWarps, kResident<DIM>) partial_kernel(Arguments a) {
    extern __shared__ __align__(128) unsigned char shared[];
    const uint32_t tiles = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    constexpr uint32_t tile_bytes = KEYS * DIM * 2;
    const int lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    // This thread's two rows of every 16 x 8 product, and its first column there.
    int64_t rows[2];
    float scale[2];
    int excluded[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        rows[r] = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / 32 * 16 + group + 8 * r;
        const bool is_row = rows[r] < a.num_rows;
        scale[r] = is_row ? a.inverse_temperature[rows[r]] * kLog2e : 0.f;
        excluded[r] = is_row && a.exclude ? static_cast<int>(a.exclude[rows[r]]) : -1;
    }
    uint32_t query[DIM / 16][4];
#pragma unroll
    for (int step = 0; step < DIM / 16; ++step)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int column = step * 16 + 8 * (i / 2) + 2 * quad;
            query[step][i] = rows[i % 2] < a.num_rows
                                 ? *reinterpret_cast<const uint32_t*>(a.query + rows[i % 2] * DIM + column)
                                 : 0u;
        }
    const bool bounded = __syncthreads_and(a.normalized && scale[0] <= kLargestBoundedScale &&
                                           scale[1] <= kLargestBoundedScale);
    float shift[2], weight[2] = {}, rounded_weight[2] = {};
    shift[0] = bounded ? scale[0] : kLowest;
    shift[1] = bounded ? scale[1] : kLowest;
    float sums[DIM / 8][4] = {};

    int64_t limit = a.num_keys;
    if (a.length && *a.length < limit) limit = *a.length;
    const int64_t part = static_cast<int64_t>(blockIdx.y) * a.keys_per_split;
    const int begin = static_cast<int>(part < limit ? part : limit);
    const int end = static_cast<int>(part + a.keys_per_split < limit ? part + a.keys_per_split : limit);
    if (begin < end) copy_tile<DIM, KEYS>(a, tiles, begin, end);
    int current = 0;
    for (int first = begin; first < end; first += KEYS, current ^= 1) {
        if (first + KEYS < end) {
            copy_tile<DIM, KEYS>(a, tiles + (current ^ 1) * tile_bytes, first + KEYS, end);
            asm volatile("cp.async.wait_group 1;\n");
        } else {
            asm volatile("cp.async.wait_group 0;\n");
        }
        __syncthreads();
        const uint32_t tile = tiles + current * tile_bytes;

        float scores[KEYS / 8][4] = {};
        const int matrix = lane / 8, matrix_row = lane % 8;
#pragma unroll
        for (int step = 0; step < DIM / 16; ++step)
#pragma unroll
            for (int n = 0; n < KEYS / 8; n += 2) {
                uint32_t keys[4];
                load_matrices<false>(
                    keys, address<DIM>(tile, (n + matrix / 2) * 8 + matrix_row, step * 2 + matrix % 2));
                multiply(scores[n], query[step], keys[0], keys[1]);
                multiply(scores[n + 1], query[step], keys[2], keys[3]);
            }
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) scores[n][i] *= scale[i / 2];
        // Few tiles have a column to hide, and few calls a bias: one test for each tile.
        bool hides = first + KEYS > end;
#pragma unroll
        for (int r = 0; r < 2; ++r) hides |= excluded[r] >= first && excluded[r] < first + KEYS;
        if (a.key_bias || hides)
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int column = first + n * 8 + 2 * quad + i % 2;
                    if (column >= end || column == excluded[i / 2])
                        scores[n][i] = -INFINITY;
                    else if (a.key_bias)
                        scores[n][i] += a.key_bias[column] * kLog2e;
                }
        if (!bounded)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float largest = shift[r];
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n)
                    largest = fmaxf(largest, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
                largest = over_quad(largest, true);
                const float shrink = exp2_flushed(shift[r] - largest);
                shift[r] = largest;
                weight[r] *= shrink;
                rounded_weight[r] *= shrink;
#pragma unroll
                for (int n = 0; n < DIM / 8; ++n) {
                    sums[n][2 * r] *= shrink;
                    sums[n][2 * r + 1] *= shrink;
                }
            }
        uint32_t weights[KEYS / 16][4];  // as the first factor of the second product
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const float p0 = exp2_flushed(scores[n][2 * r] - shift[r]);
                const float p1 = exp2_flushed(scores[n][2 * r + 1] - shift[r]);
                weight[r] += p0 + p1;
                const __nv_bfloat162 rounded = __floats2bfloat162_rn(p0, p1);
                rounded_weight[r] += __low2float(rounded) + __high2float(rounded);
                weights[n / 2][n % 2 * 2 + r] = *reinterpret_cast<const uint32_t*>(&rounded);
            }
#pragma unroll
        for (int step = 0; step < KEYS / 16; ++step)
#pragma unroll
            for (int n = 0; n < DIM / 8; n += 2) {
                uint32_t values[4];
                load_matrices<true>(values,
                                    address<DIM>(tile, step * 16 + matrix % 2 * 8 + matrix_row, n + matrix / 2));
                multiply(sums[n], weights[step], values[0], values[1]);
                multiply(sums[n + 1], weights[step], values[2], values[3]);
            }
        __syncthreads();  // the next copy overwrites this tile
    }
    const int64_t split = blockIdx.y;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const float all = over_quad(weight[r], false), all_rounded = over_quad(rounded_weight[r], false);
        if (rows[r] >= a.num_rows) continue;
        if (quad == 0) {
            float* at = a.partial + split * 3 * a.num_rows + rows[r];
            at[0] = shift[r];
            at[a.num_rows] = all;
            at[2 * a.num_rows] = all_rounded;
        }
        float* at = a.partial_sums + (split * a.num_rows + rows[r]) * DIM + 2 * quad;
#pragma unroll
        for (int n = 0; n < DIM / 8; ++n)
            *reinterpret_cast<float2*>(at + 8 * n) = make_float2(sums[n][2 * r], sums[n][2 * r + 1]);
    }
}

// One row: the parts of the queue in their order.
__global__ void combine_kernel(const float* partial, const float* partial_sums, float* lse, float* expectation,
                               int64_t num_rows, int64_t splits) {
    const int64_t row = blockIdx.x, dim = blockDim.x, column = threadIdx.x;
    float largest = kLowest;
    for (int64_t s = 0; s < splits; ++s) largest = fmaxf(largest, partial[s * 3 * num_rows + row]);
    float weight = 0, rounded_weight = 0, sum = 0;
    for (int64_t s = 0; s < splits; ++s) {
        const float* at = partial + s * 3 * num_rows + row;
        const float shrink = exp2f(at[0] - largest);
        weight += shrink * at[num_rows];
        rounded_weight += shrink * at[2 * num_rows];
        sum += shrink * partial_sums[(s * num_rows + row) * dim + column];
    }
    const bool is_empty = weight == 0;
    if (column == 0) lse[row] = is_empty ? -INFINITY : (largest + log2f(weight)) * kLn2;
    expectation[row * dim + column] = is_empty ? 0 : sum / rounded_weight;
}

template <int DIM, int KEYS>
cudaError_t launch(Arguments a, int64_t splits, cudaStream_t stream) {
    constexpr int bytes = 2 * KEYS * DIM * 2;
    const int64_t tiles = (a.num_keys + KEYS - 1) / KEYS;
    a.keys_per_split = (tiles + splits - 1) / splits * KEYS;
    static_assert(bytes <= 48 * 1024, "more must be asked for");
    const dim3 grid(static_cast<unsigned>((a.num_rows + kRows - 1) / kRows), static_cast<unsigned>(splits));
    partial_kernel<DIM, KEYS><<<grid, 32 * kWarps, bytes, stream>>>(a);
    return cudaGetLastError();
}

}  // namespace

SSL_CORE_EXPORT int ssl_core_cuda_abi() { return kAbi; }

SSL_CORE_EXPORT int ssl_core_cuda_queue_attention(const void* query, const void* queue, const float* inverse_temperature,
                                                  const int64_t* length, const int64_t* exclude, const float* key_bias,
                                                  float* partial, float* partial_sums, float* lse, float* expectation,
                                                  int64_t num_rows, int64_t num_keys, int64_t dim, int64_t splits,
                                                  int normalized, void* stream) {
    const cudaStream_t on = static_cast<cudaStream_t>(stream);
    const Arguments arguments{static_cast<const __nv_bfloat16*>(query),
                              static_cast<const __nv_bfloat16*>(queue),
                              inverse_temperature,
                              length,
                              exclude,
                              key_bias,
                              partial,
                              partial_sums,
                              num_rows,
                              num_keys,
                              0,
                              normalized != 0 && key_bias == nullptr};
    cudaError_t error = cudaErrorInvalidValue;
    if (dim == 64) error = launch<64, 64>(arguments, splits, on);
    if (dim == 128) error = launch<128, 64>(arguments, splits, on);
    if (dim == 256) error = launch<256, 32>(arguments, splits, on);
    if (error != cudaSuccess) return error;
    combine_kernel<<<static_cast<unsigned>(num_rows), static_cast<unsigned>(dim), 0, on>>>(
        partial, partial_sums, lse, expectation, num_rows, splits);
    return cudaGetLastError();
}
