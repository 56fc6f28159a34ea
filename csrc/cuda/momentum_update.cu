// The moving average of all parameters in one launch, through a table of their addresses on the device.

#include <cuda_bf16.h>

#include "ssl_core_cuda.h"

namespace {

constexpr int kThreads = 256;

// As torch.lerp: exact at both ends.
__device__ inline float lerp(float target, float online, float weight) {
    return weight < 0.5f ? target + weight * (online - target) : online - (1 - weight) * (online - target);
}

__global__ void __launch_bounds__(kThreads)
    momentum_update_kernel(const int64_t* table, int64_t chunk, const double* momentum) {
    const int64_t* row = table + static_cast<int64_t>(blockIdx.x) * 5;
    const int64_t first = row[3], last = first + chunk < row[4] ? first + chunk : row[4];
    float* target = reinterpret_cast<float*>(row[0]);
    const float* online = reinterpret_cast<const float*>(row[1]);
    __nv_bfloat16* shadow = reinterpret_cast<__nv_bfloat16*>(row[2]);
    const float weight = static_cast<float>(1 - *momentum);
    int64_t i = first + 4 * threadIdx.x;
    // Parameters start at multiples of 16 bytes, unless they are parts of others.
    if (row[0] % 16 == 0 && row[1] % 16 == 0 && row[2] % 8 == 0)
        for (; i + 4 <= last; i += 4 * kThreads) {
            float4 t = *reinterpret_cast<float4*>(target + i);
            const float4 o = *reinterpret_cast<const float4*>(online + i);
            t = make_float4(lerp(t.x, o.x, weight), lerp(t.y, o.y, weight), lerp(t.z, o.z, weight), lerp(t.w, o.w, weight));
            *reinterpret_cast<float4*>(target + i) = t;
            if (shadow) {
                reinterpret_cast<__nv_bfloat162*>(shadow + i)[0] = __floats2bfloat162_rn(t.x, t.y);
                reinterpret_cast<__nv_bfloat162*>(shadow + i)[1] = __floats2bfloat162_rn(t.z, t.w);
            }
        }
    for (; i < last; i += 4 * kThreads)
        for (int64_t j = i; j < i + 4 && j < last; ++j) {
            target[j] = lerp(target[j], online[j], weight);
            if (shadow) shadow[j] = __float2bfloat16_rn(target[j]);
        }
}

}  // namespace

SSL_CORE_EXPORT int ssl_core_cuda_momentum_update(const int64_t* table, int64_t num_chunks, int64_t chunk,
                                                  const double* momentum, void* stream) {
    momentum_update_kernel<<<static_cast<unsigned>(num_chunks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        table, chunk, momentum);
    return cudaGetLastError();
}
