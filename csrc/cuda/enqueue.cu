// Enqueue in two launches: normalize, round and write; then move the cursor.

#include <cuda_bf16.h>

#include "ssl_core_cuda.h"

namespace {

constexpr int kThreads = 128;

// One block a key; of a batch larger than the queue, block 0 is the first that remains.
template <typename Number>
__global__ void __launch_bounds__(kThreads)
    write_kernel(Number* queue, const float* keys, const int64_t* cursor, int64_t num_rows, int64_t dim, int64_t dropped) {
    __shared__ float parts[kThreads];
    const int64_t index = dropped + blockIdx.x;
    const float* key = keys + index * dim;
    float sum = 0;
    for (int64_t c = threadIdx.x; c < dim; c += kThreads) sum += key[c] * key[c];
    parts[threadIdx.x] = sum;
    __syncthreads();
    for (int half = kThreads / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
        __syncthreads();
    }
    float norm = sqrtf(parts[0]);
    if (norm < 1e-12f) norm = 1e-12f;  // a NaN stays one
    Number* row = queue + (*cursor + index) % num_rows * dim;
    for (int64_t c = threadIdx.x; c < dim; c += kThreads) row[c] = static_cast<Number>(key[c] / norm);
}

// A launch of its own: when it begins, all keys have found their row by the old cursor.
__global__ void advance_kernel(int64_t* cursor, int64_t* length, int64_t num_rows, int64_t num_keys) {
    *cursor = (*cursor + num_keys) % num_rows;
    *length = *length + num_keys < num_rows ? *length + num_keys : num_rows;
}

template <typename Number>
cudaError_t launch(void* queue, const float* keys, int64_t* cursor, int64_t* length, int64_t num_rows, int64_t num_keys,
                   int64_t dim, cudaStream_t stream) {
    const int64_t dropped = num_keys > num_rows ? num_keys - num_rows : 0;
    write_kernel<<<static_cast<unsigned>(num_keys - dropped), kThreads, 0, stream>>>(static_cast<Number*>(queue), keys, cursor,
                                                                                    num_rows, dim, dropped);
    if (const cudaError_t error = cudaGetLastError()) return error;
    advance_kernel<<<1, 1, 0, stream>>>(cursor, length, num_rows, num_keys);
    return cudaGetLastError();
}

}  // namespace

SSL_CORE_EXPORT int ssl_core_cuda_enqueue(void* queue, const float* keys, int64_t* cursor, int64_t* length, int64_t num_rows,
                                          int64_t num_keys, int64_t dim, int queue_is_bfloat16, void* stream) {
    const auto run = queue_is_bfloat16 ? launch<__nv_bfloat16> : launch<float>;
    return run(queue, keys, cursor, length, num_rows, num_keys, dim, static_cast<cudaStream_t>(stream));
}
