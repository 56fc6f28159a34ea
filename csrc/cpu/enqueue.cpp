// Keys into the ring buffer: normalize, round, write, and move the cursor.

#include <cmath>

#include "../ssl_core.h"
#include "vector.h"

namespace {

using ssl_core::Dtype;
using ssl_core::Enqueue;

// As torch.nn.functional.normalize: a zero key stays zero.
constexpr float kSmallestNorm = 1e-12f;

float norm_of(const float* key, int64_t dim) {
    Vector squares = {};
    int64_t c = 0;
    for (; c + kLanes <= dim; c += kLanes) {
        const Vector part = load(key + c);
        squares += part * part;
    }
    double sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += static_cast<double>(squares[lane]);
    for (; c < dim; ++c) sum += static_cast<double>(key[c]) * key[c];
    const float norm = static_cast<float>(sqrt(sum));
    return norm < kSmallestNorm ? kSmallestNorm : norm;
}

}  // namespace

void SSL_CORE_SYMBOL(enqueue)(const Enqueue& call) {
    const int64_t dropped = call.num_keys > call.num_rows ? call.num_keys - call.num_rows : 0;
    const int64_t cursor = *call.cursor;
#pragma omp parallel for schedule(static) num_threads(call.threads) if (call.num_keys * call.dim > 65536)
    for (int64_t i = dropped; i < call.num_keys; ++i) {
        const float* key = call.keys + i * call.keys_stride;
        const float norm = norm_of(key, call.dim);
        const int64_t at = (cursor + i) % call.num_rows * call.queue_stride;
        if (call.queue_dtype == Dtype::float32) {
            float* row = static_cast<float*>(call.queue) + at;
            for (int64_t c = 0; c < call.dim; ++c) row[c] = key[c] / norm;
        } else {
            uint16_t* row = static_cast<uint16_t*>(call.queue) + at;
            for (int64_t c = 0; c < call.dim; ++c) row[c] = to_bfloat16(key[c] / norm);
        }
    }
    *call.cursor = (cursor + call.num_keys) % call.num_rows;
    const int64_t length = *call.length + call.num_keys;
    *call.length = length < call.num_rows ? length : call.num_rows;
}
