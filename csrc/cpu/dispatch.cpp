// Which instruction set runs: the widest that this processor and its operating system know, unless one is asked for.

#include "dispatch.h"

#define SSL_CORE_DECLARE(isa)                                                   \
    bool ssl_core_queue_attention_##isa(const ssl_core::QueueAttention&);       \
    void ssl_core_enqueue_##isa(const ssl_core::Enqueue&);                      \
    void ssl_core_momentum_update_##isa(const ssl_core::MomentumUpdate&);           \
    void ssl_core_uniform_##isa(const ssl_core::Uniform&);                          \
    ssl_core::Outcome ssl_core_render_views_##isa(const ssl_core::RenderViews&);

#define SSL_CORE_KERNELS(isa) \
    {                                                                                                   \
        ssl_core_queue_attention_##isa, ssl_core_enqueue_##isa, ssl_core_momentum_update_##isa,         \
            ssl_core_uniform_##isa, ssl_core_render_views_##isa                                         \
    }

SSL_CORE_DECLARE(generic)
#if defined(__x86_64__)
SSL_CORE_DECLARE(avx2)
SSL_CORE_DECLARE(avx512)
#endif

namespace ssl_core {

const std::vector<InstructionSet>& instruction_sets() {
    static const std::vector<InstructionSet> found = [] {
        std::vector<InstructionSet> sets;
#if defined(__x86_64__)
        __builtin_cpu_init();
        const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
        if (avx2 && avx512) sets.push_back({"avx512", SSL_CORE_KERNELS(avx512)});
        if (avx2) sets.push_back({"avx2", SSL_CORE_KERNELS(avx2)});
#endif
        sets.push_back({"generic", SSL_CORE_KERNELS(generic)});
        return sets;
    }();
    return found;
}

}  // namespace ssl_core
