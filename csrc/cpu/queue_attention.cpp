// Queue attention on the CPU, in one pass over the queue; the algebra is in docs/queue_loss.md.
//
// A block of queries is transposed, so that each lane of a vector is one query: the row maximum and the row sum are
// then plain vector operations, and the queue is read as it lies in memory. For a block of keys:
//
//   scores   s[key][query]   = sum_c key[c] query[c]           6 keys x 4 vectors of queries in registers
//   weights  p               = 2^(s - running maximum)         in units of log 2, folded into the query
//   sum      e[query][c]    += sum_key p[key][query] key[c]    6 queries x 4 vectors of c in registers
//
// Threads take ranges of the queue, so that a few queries use every core; their partial sums are combined in order,
// so that the result depends on the number of threads asked for, and on nothing else.

#include <cmath>
#include <cstdlib>

#include "../ssl_core.h"
#include "vector.h"

namespace {

using ssl_core::Dtype;
using ssl_core::QueueAttention;

constexpr int kRows = 6;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kVectors = 4;  // 6 x 4 sums, 4 loads and a broadcast fill 29 of 32 registers
#else
constexpr int kVectors = 2;  // 15 of 16
#endif
constexpr int kQueries = kVectors * kLanes;
constexpr int64_t kKeys = 192;  // of a block: its scores and keys fit in the second-level cache; 96 to 384 time alike
constexpr float kLog2e = 1.44269504088896341f;
constexpr double kLn2 = 0.693147180559945309;
constexpr float kLowest = -3.402823466e38f;
// Unit rows have s >= -1/temperature, and 2^-126 is the smallest normal number: 2 log2(e) / temperature < 126.
constexpr float kLargestBoundedInverseTemperature = 43.f;

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// c[r][:] += sum_i a[r * a_row + i * a_step] * b[i * b_step + :]
template <int ROWS, int VECTORS>
INLINE void multiply(Vector (&c)[ROWS][VECTORS], const float* a, int64_t a_row, int64_t a_step, const float* b,
                     int64_t b_step, int64_t depth) {
    for (int64_t i = 0; i < depth; ++i, a += a_step, b += b_step) {
        Vector right[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) right[v] = load(b + v * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const Vector left = broadcast(a[r * a_row]);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) c[r][v] += left * right[v];
        }
    }
}

struct Keys {
    const float* rows;
    int64_t stride, count;
};

template <int ROWS, int VECTORS>
void score_rows(const float* keys, int64_t stride, const float* queries, int64_t dim, float* scores) {
    Vector c[ROWS][VECTORS] = {};
    multiply<ROWS, VECTORS>(c, keys, stride, 1, queries, kQueries, dim);
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) store(scores + r * kQueries + v * kLanes, c[r][v]);
}

template <int VECTORS>
void score(const Keys& keys, const float* queries, int64_t dim, float* scores) {
    int64_t j = 0;
    const auto rows = [&](auto function, int64_t count) {
        for (; j + count <= keys.count; j += count)
            function(keys.rows + j * keys.stride, keys.stride, queries, dim, scores + j * kQueries);
    };
    // Fewer vectors leave registers for more keys, and enough independent sums to hide the latency of the product.
    constexpr int many = VECTORS == kVectors ? kRows : VECTORS == 3 ? 8 : 12;
    rows(score_rows<many, VECTORS>, many);
    rows(score_rows<2, VECTORS>, 2);
    rows(score_rows<1, VECTORS>, 1);
}

template <int ROWS, int VECTORS>
void sum_rows(const float* weights, const Keys& keys, int64_t column, float* sums, int64_t stride) {
    Vector c[ROWS][VECTORS] = {};
    multiply<ROWS, VECTORS>(c, weights, 1, kQueries, keys.rows + column, keys.stride, keys.count);
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) {
            float* at = sums + r * stride + column + v * kLanes;
            store(at, load(at) + c[r][v]);
        }
}

template <int VECTORS>
void sum_columns(const float* weights, int64_t num_queries, const Keys& keys, int64_t column, float* sums,
                 int64_t stride) {
    int64_t i = 0;
    const auto rows = [&](auto function, int64_t count) {
        for (; i + count <= num_queries; i += count) function(weights + i, keys, column, sums + i * stride, stride);
    };
    rows(sum_rows<kRows, VECTORS>, kRows);
    rows(sum_rows<2, VECTORS>, 2);
    rows(sum_rows<1, VECTORS>, 1);
}

// What a thread has summed over its part of the queue: one maximum, one sum of weights, and dim weighted sums a query.
struct Partial {
    float* maximum;  // (padded rows)
    float* weight;   // (padded rows)
    float* sums;     // (padded rows, padded dim)
};

class Pass {
  public:
    explicit Pass(const QueueAttention& call)
        : call_(call),
          padded_dim_(ceil_div(call.dim, kLanes) * kLanes),
          query_blocks_(ceil_div(call.num_rows, kQueries)),
          key_blocks_(ceil_div(call.num_keys, kKeys)) {
        const int64_t threads = call.threads > 0 ? call.threads : 1;
        splits_ = key_blocks_ < threads ? (key_blocks_ > 0 ? key_blocks_ : 1) : threads;
        row_groups_ = smaller(query_blocks_, threads / splits_);
        const int64_t padded_rows = query_blocks_ * kQueries;
        partial_floats_ = padded_rows * (padded_dim_ + 2);
        scratch_floats_ = kKeys * (kQueries + padded_dim_);
    }

    bool run() {
        const int64_t query_floats = query_blocks_ * kQueries * call_.dim;
        const int64_t items = splits_ * row_groups_;
        const int64_t floats = query_floats + splits_ * partial_floats_ + items * scratch_floats_;
        void* memory = nullptr;
        if (posix_memalign(&memory, 64, 4 * floats + 64) != 0) return false;
        queries_ = static_cast<float*>(memory);
        partials_ = queries_ + query_floats;
        scratch_ = partials_ + splits_ * partial_floats_;
#pragma omp parallel num_threads(static_cast<int>(items))
        {
#pragma omp for schedule(static)
            for (int64_t block = 0; block < query_blocks_; ++block) transpose_queries(block);
#pragma omp for schedule(static, 1)
            for (int64_t item = 0; item < items; ++item)
                accumulate(item % splits_, item / splits_, scratch_ + item * scratch_floats_);
#pragma omp for schedule(static)
            for (int64_t row = 0; row < call_.num_rows; ++row) combine(row);
        }
        free(memory);
        return true;
    }

  private:
    // (kQueries dim) -> (dim kQueries), times log2(e) / temperature; rows beyond the last are zero.
    void transpose_queries(int64_t block) const {
        float* to = queries_ + block * kQueries * call_.dim;
        const int64_t first = block * kQueries;
        const int64_t count = smaller(kQueries, call_.num_rows - first);
        for (int64_t c = 0; c < call_.dim; ++c)
            for (int64_t i = count; i < kQueries; ++i) to[c * kQueries + i] = 0;
        for (int64_t i = 0; i < count; ++i) {
            const float* from = call_.query + (first + i) * call_.query_stride;
            const float scale = call_.inverse_temperature[first + i] * kLog2e;
            for (int64_t c = 0; c < call_.dim; ++c) to[c * kQueries + i] = from[c] * scale;
        }
    }

    Partial partial(int64_t split) const {
        float* at = partials_ + split * partial_floats_;
        const int64_t padded_rows = query_blocks_ * kQueries;
        return {at, at + padded_rows, at + 2 * padded_rows};
    }

    void accumulate(int64_t split, int64_t group, float* scratch) const {
        const int64_t first_block = query_blocks_ * group / row_groups_;
        const int64_t last_block = query_blocks_ * (group + 1) / row_groups_;
        const Partial to = partial(split);
        for (int64_t block = first_block; block < last_block; ++block) start(block, to);
        const int64_t end = smaller(call_.num_keys, key_blocks_ * (split + 1) / splits_ * kKeys);
        for (int64_t first = key_blocks_ * split / splits_ * kKeys; first < end; first += kKeys) {
            const Keys keys = read_keys(first, smaller(kKeys, end - first), scratch + kKeys * kQueries);
            for (int64_t block = first_block; block < last_block; ++block) add(block, first, keys, scratch, to);
        }
    }

    bool is_bounded(int64_t block) const {
        if (!call_.bounded || call_.key_bias) return false;
        const int64_t end = smaller((block + 1) * kQueries, call_.num_rows);
        for (int64_t row = block * kQueries; row < end; ++row)
            if (!(call_.inverse_temperature[row] <= kLargestBoundedInverseTemperature)) return false;
        return true;
    }

    void start(int64_t block, const Partial& to) const {
        const int64_t first = block * kQueries;
        const bool bounded = is_bounded(block);
        for (int64_t row = first; row < first + kQueries; ++row) {
            const bool filled = row < call_.num_rows;
            to.maximum[row] = bounded && filled ? call_.inverse_temperature[row] * kLog2e : kLowest;
            to.weight[row] = 0;
        }
        memset(to.sums + first * padded_dim_, 0, 4 * kQueries * padded_dim_);
    }

    // Rows of float32, readable in whole vectors: where they lie, or copied.
    Keys read_keys(int64_t first, int64_t count, float* copy) const {
        if (call_.queue_dtype == Dtype::float32) {
            const float* rows = static_cast<const float*>(call_.queue) + first * call_.queue_stride;
            if (call_.dim == padded_dim_) return {rows, call_.queue_stride, count};
            for (int64_t j = 0; j < count; ++j)
                for (int64_t c = 0; c < padded_dim_; ++c)
                    copy[j * padded_dim_ + c] = c < call_.dim ? rows[j * call_.queue_stride + c] : 0.f;
        } else {
            const uint16_t* rows = static_cast<const uint16_t*>(call_.queue) + first * call_.queue_stride;
            for (int64_t j = 0; j < count; ++j) {
                for (int64_t c = 0; c < call_.dim; ++c)
                    copy[j * padded_dim_ + c] = from_bfloat16(rows[j * call_.queue_stride + c]);
                for (int64_t c = call_.dim; c < padded_dim_; ++c) copy[j * padded_dim_ + c] = 0;
            }
        }
        return {copy, padded_dim_, count};
    }

    // One block of queries against one block of keys.
    void add(int64_t block, int64_t first_key, const Keys& keys, float* scores, const Partial& to) const {
        const int64_t first = block * kQueries;
        const int64_t count = smaller(kQueries, call_.num_rows - first);
        const int64_t vectors = ceil_div(count, kLanes);
        const float* queries = queries_ + first * call_.dim;
        switch (vectors) {
            case 1: score<1>(keys, queries, call_.dim, scores); break;
            case 2: score<2>(keys, queries, call_.dim, scores); break;
#if defined(__AVX512F__) || defined(__aarch64__)
            case 3: score<3>(keys, queries, call_.dim, scores); break;
#endif
            default: score<kVectors>(keys, queries, call_.dim, scores);
        }
        if (call_.key_bias)
            for (int64_t j = 0; j < keys.count; ++j)
                for (int64_t v = 0; v < vectors; ++v) {
                    float* at = scores + j * kQueries + v * kLanes;
                    store(at, load(at) + call_.key_bias[first_key + j] * kLog2e);
                }
        if (call_.exclude)
            for (int64_t i = 0; i < count; ++i) {
                const int64_t j = call_.exclude[first + i] - first_key;
                if (0 <= j && j < keys.count) scores[j * kQueries + i] = -INFINITY;
            }
        if (!is_bounded(block)) raise_maximum(block, keys.count, vectors, scores, to);
        for (int64_t v = 0; v < vectors; ++v) weigh(scores + v * kLanes, keys.count, first + v * kLanes, to);
        float* sums = to.sums + first * padded_dim_;
        int64_t column = 0;
        for (; column + kQueries <= padded_dim_; column += kQueries)
            sum_columns<kVectors>(scores, count, keys, column, sums, padded_dim_);
#if defined(__AVX512F__) || defined(__aarch64__)
        for (; column + 2 * kLanes <= padded_dim_; column += 2 * kLanes)
            sum_columns<2>(scores, count, keys, column, sums, padded_dim_);
#endif
        for (; column < padded_dim_; column += kLanes) sum_columns<1>(scores, count, keys, column, sums, padded_dim_);
    }

    void raise_maximum(int64_t block, int64_t num_keys, int64_t vectors, const float* scores, const Partial& to) const {
        for (int64_t v = 0; v < vectors; ++v) {
            const int64_t row = block * kQueries + v * kLanes;
            const Vector before = load(to.maximum + row);
            Vector a = before, b = before, c = before, d = before;  // four chains: a maximum takes several cycles
            int64_t j = 0;
            for (; j + 4 <= num_keys; j += 4) {
                const float* at = scores + j * kQueries + v * kLanes;
                a = max(load(at), a);
                b = max(load(at + kQueries), b);
                c = max(load(at + 2 * kQueries), c);
                d = max(load(at + 3 * kQueries), d);
            }
            for (; j < num_keys; ++j) a = max(load(scores + j * kQueries + v * kLanes), a);
            const Vector after = max(max(a, b), max(c, d));
            if (!any(after > before)) continue;
            store(to.maximum + row, after);
            const Vector shrink = exp2(before - after);
            store(to.weight + row, load(to.weight + row) * shrink);
            for (int lane = 0; lane < kLanes; ++lane) {
                if (shrink[lane] == 1.f) continue;
                float* sums = to.sums + (row + lane) * padded_dim_;
                for (int64_t column = 0; column < padded_dim_; column += kLanes)
                    store(sums + column, load(sums + column) * shrink[lane]);
            }
        }
    }

    // Scores of one vector of queries become weights.
    void weigh(float* scores, int64_t num_keys, int64_t row, const Partial& to) const {
        const Vector maximum = load(to.maximum + row);
        Vector sum = {};
        for (int64_t j = 0; j < num_keys; ++j) {
            const Vector weight = exp2(load(scores + j * kQueries) - maximum);
            sum += weight;
            store(scores + j * kQueries, weight);
        }
        store(to.weight + row, load(to.weight + row) + sum);
    }

    void combine(int64_t row) const {
        float maximum = kLowest;
        for (int64_t split = 0; split < splits_; ++split) {
            const float other = partial(split).maximum[row];
            maximum = other > maximum ? other : maximum;
        }
        double weight = 0;
        float* expectation = call_.expectation + row * call_.dim;
        for (int64_t c = 0; c < call_.dim; ++c) expectation[c] = 0;
        for (int64_t split = 0; split < splits_; ++split) {
            const Partial from = partial(split);
            const float scale = exp2f(from.maximum[row] - maximum);
            weight += static_cast<double>(scale) * from.weight[row];
            const float* sums = from.sums + row * padded_dim_;
            for (int64_t c = 0; c < call_.dim; ++c) expectation[c] += scale * sums[c];
        }
        if (weight == 0) {  // no column
            call_.lse[row] = -INFINITY;
            return;
        }
        call_.lse[row] = static_cast<float>(kLn2 * maximum + log(weight));
        const float inverse = static_cast<float>(1 / weight);
        for (int64_t c = 0; c < call_.dim; ++c) expectation[c] *= inverse;
    }

    const QueueAttention& call_;
    int64_t padded_dim_, query_blocks_, key_blocks_, splits_, row_groups_, partial_floats_, scratch_floats_;
    float *queries_, *partials_, *scratch_;
};

}  // namespace

bool SSL_CORE_SYMBOL(queue_attention)(const QueueAttention& call) { return Pass(call).run(); }
