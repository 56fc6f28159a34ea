// Enqueue in one launch: normalize, round, write, and move the cursor.

#include <cuda_bf16.h>

#include "ssl_core_cuda.h"

namespace {

constexpr int kThreads = 128;

// One block a key; of a batch larger than the queue, block 0 is the first that remains.
template <typename Number>
__global__ void __launch_bounds__(kThreads)
    enqueue_kernel(Number* queue, const float* keys, int64_t* cursor, int64_t* length, int32_t* tickets, int64_t num_rows,
                   int64_t num_keys, int64_t dim, int64_t dropped) {
    __shared__ float parts[kThreads];
    const int64_t start = *cursor, index = dropped + blockIdx.x;
    const float* key = keys + index * dim;
    float sum = 0;
    for (int64_t c = threadIdx.x; c < dim; c += kThreads) sum += key[c] * key[c];
    parts[threadIdx.x] = sum;
    __syncthreads();
    for (int half = kThreads / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
        __syncthreads();
    }
    const float norm = fmaxf(sqrtf(parts[0]), 1e-12f);
    Number* row = queue + (start + index) % num_rows * dim;
    for (int64_t c = threadIdx.x; c < dim; c += kThreads) row[c] = static_cast<Number>(key[c] / norm);
    if (threadIdx.x != 0) return;
    // Whoever takes the last ticket knows that all have read the cursor.
    __threadfence();
    if (atomicAdd(tickets, 1) == static_cast<int32_t>(gridDim.x) - 1) {
        *cursor = (start + num_keys) % num_rows;
        *length = *length + num_keys < num_rows ? *length + num_keys : num_rows;
        *tickets = 0;
    }
}

template <typename Number>
cudaError_t launch(void* queue, const float* keys, int64_t* cursor, int64_t* length, int32_t* tickets, int64_t num_rows,
                   int64_t num_keys, int64_t dim, void* stream) {
    const int64_t dropped = num_keys > num_rows ? num_keys - num_rows : 0;
    enqueue_kernel<<<static_cast<unsigned>(num_keys - dropped), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        static_cast<Number*>(queue), keys, cursor, length, tickets, num_rows, num_keys, dim, dropped);
    return cudaGetLastError();
}

}  // namespace

SSL_CORE_EXPORT int ssl_core_cuda_enqueue(void* queue, const float* keys, int64_t* cursor, int64_t* length, int32_t* tickets,
                                          int64_t num_rows, int64_t num_keys, int64_t dim, int queue_is_bfloat16,
                                          void* stream) {
    const auto run = queue_is_bfloat16 ? launch<__nv_bfloat16> : launch<float>;
    return run(queue, keys, cursor, length, tickets, num_rows, num_keys, dim, stream);
}
