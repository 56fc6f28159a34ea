// Uniform numbers from counters: Philox4x32-10 (Salmon et al., 2011), as ssl_core/philox.py defines it.

#include "../ssl_core.h"
#include "vector.h"

void SSL_CORE_SYMBOL(uniform)(const ssl_core::Uniform& call) {
    const int64_t num_blocks = (call.num_draws + 3) / 4;
    for (int64_t n = 0; n < call.num_streams; ++n) {
        const int64_t* stream = call.streams + 3 * n;
        double* row = call.result + n * call.num_draws;
        for (int64_t block = 0; block < num_blocks; ++block) {
            uint32_t words[4] = {static_cast<uint32_t>(stream[0]), static_cast<uint32_t>(stream[1]),
                                 static_cast<uint32_t>(stream[2]), static_cast<uint32_t>(block)};
            uint32_t key_0 = static_cast<uint32_t>(call.seed), key_1 = static_cast<uint32_t>(call.seed >> 32);
            for (int round = 0; round < 10; ++round) {
                const uint64_t product_0 = 0xD2511F53ull * words[0], product_1 = 0xCD9E8D57ull * words[2];
                const uint32_t next[4] = {static_cast<uint32_t>(product_1 >> 32) ^ words[1] ^ key_0,
                                          static_cast<uint32_t>(product_1),
                                          static_cast<uint32_t>(product_0 >> 32) ^ words[3] ^ key_1,
                                          static_cast<uint32_t>(product_0)};
                memcpy(words, next, sizeof(words));
                key_0 += 0x9E3779B9u;
                key_1 += 0xBB67AE85u;
            }
            for (int64_t i = 4 * block; i < 4 * block + 4 && i < call.num_draws; ++i)
                row[i] = words[i % 4] * (1 / 4294967296.0);
        }
    }
}
