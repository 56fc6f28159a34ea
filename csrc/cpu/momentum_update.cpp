// The moving average of all parameters in one parallel pass, whatever their sizes.

#include "../ssl_core.h"
#include "vector.h"

namespace {

using ssl_core::MomentumUpdate;

// As torch.lerp: exact at both ends, a momentum of 1 and of 0.
template <typename Number>
INLINE Number lerp(Number target, Number online, float weight) {
    return weight < 0.5f ? target + weight * (online - target) : online - (1 - weight) * (online - target);
}

void update(float* target, const float* online, uint16_t* shadow, int64_t size, float weight) {
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) store(target + i, lerp(load(target + i), load(online + i), weight));
    for (; i < size; ++i) target[i] = lerp(target[i], online[i], weight);
    if (shadow)
        for (i = 0; i < size; ++i) shadow[i] = to_bfloat16(target[i]);
}

}  // namespace

void SSL_CORE_SYMBOL(momentum_update)(const MomentumUpdate& call) {
    const float weight = static_cast<float>(1 - call.momentum);
    int64_t total = 0;
    for (int64_t p = 0; p < call.num_params; ++p) total += call.sizes[p];
    const int64_t parts = call.threads;
#pragma omp parallel for schedule(static, 1) num_threads(call.threads) if (total > 65536)
    for (int64_t part = 0; part < parts; ++part) {
        // Elements [first, last) of all parameters laid end to end.
        const int64_t first = total * part / parts, last = total * (part + 1) / parts;
        int64_t start = 0;
        for (int64_t p = 0; p < call.num_params && start < last; start += call.sizes[p++]) {
            const int64_t from = first > start ? first - start : 0;
            const int64_t to = last - start < call.sizes[p] ? last - start : call.sizes[p];
            if (from < to)
                update(call.targets[p] + from, call.onlines[p] + from, call.shadows ? call.shadows[p] + from : nullptr,
                       to - from, weight);
        }
    }
}
