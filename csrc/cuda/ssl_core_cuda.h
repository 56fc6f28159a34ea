// The C interface of the CUDA library: device addresses, sizes, and the stream to launch on. Every function returns the
// error of its launches (a cudaError_t, 0 for none) and waits for nothing.
#pragma once

#include <cstdint>

#define SSL_CORE_EXPORT extern "C" __attribute__((visibility("default")))

// Changes whenever a signature does; the Python side refuses another number.
constexpr int kAbi = 2;

SSL_CORE_EXPORT int ssl_core_cuda_abi();

// query (num_rows dim) and queue (num_keys dim) are contiguous bfloat16 from a multiple of 16 bytes on, dim is 64, 128 or 256;
// length, exclude and key_bias may be null. partial (splits 3 num_rows) and partial_sums (splits num_rows dim) are workspace.
SSL_CORE_EXPORT int ssl_core_cuda_queue_attention(const void* query, const void* queue, const float* inverse_temperature,
                                                  const int64_t* length, const int64_t* exclude, const float* key_bias,
                                                  float* partial, float* partial_sums, float* lse, float* expectation,
                                                  int64_t num_rows, int64_t num_keys, int64_t dim, int64_t splits,
                                                  int normalized, void* stream);

// queue (num_rows dim) is float32, or bfloat16 where queue_is_bfloat16; keys (num_keys dim) float32; both contiguous.
SSL_CORE_EXPORT int ssl_core_cuda_enqueue(void* queue, const float* keys, int64_t* cursor, int64_t* length,
                                          int64_t num_rows, int64_t num_keys, int64_t dim, int queue_is_bfloat16,
                                          void* stream);

// table (num_chunks 5): addresses of target, online and shadow (or 0), first element, size of the parameter.
SSL_CORE_EXPORT int ssl_core_cuda_momentum_update(const int64_t* table, int64_t num_chunks, int64_t chunk,
                                                  const double* momentum, void* stream);
