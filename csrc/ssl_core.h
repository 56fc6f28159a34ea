// The C interface of the compiled core: raw pointers, sizes and strides, no exceptions, no torch, no Python.
#pragma once

#include <cstdint>

namespace ssl_core {

enum class Dtype : int32_t { float32 = 0, bfloat16 = 1, float16 = 2, uint8 = 3, uint16 = 4 };

// lse_i = log sum_j exp(s_ij), expectation_i = sum_j softmax(s_i)_j queue_j, s_ij = query_i.queue_j * inverse_temperature_i
// + key_bias_j over the columns j < num_keys, without column exclude_i. Rows of query and queue are contiguous in
// themselves; outputs are contiguous.
struct QueueAttention {
    const float* query;                // (num_rows dim), row stride query_stride
    const void* queue;                 // (num_keys dim) of queue_dtype, row stride queue_stride
    const float* inverse_temperature;  // (num_rows)
    const int64_t* exclude;            // (num_rows), -1 for none; or null
    const float* key_bias;             // (num_keys); or null
    float* lse;                        // (num_rows)
    float* expectation;                // (num_rows dim)
    int64_t num_rows, num_keys, dim;
    int64_t query_stride, queue_stride;  // in elements
    Dtype queue_dtype;
    bool bounded;     // unit rows: 1 / temperature replaces the running maximum
    int32_t threads;  // at most
};

// Row (cursor + i) mod num_rows of the queue becomes key i, l2-normalized and rounded to the queue's dtype; of more keys
// than rows the last ones remain. Cursor and length move as if the keys had been inserted one by one.
struct Enqueue {
    void* queue;        // (num_rows dim) of queue_dtype, row stride queue_stride
    const float* keys;  // (num_keys dim), row stride keys_stride
    int64_t* cursor;
    int64_t* length;
    int64_t num_rows, num_keys, dim;
    int64_t queue_stride, keys_stride;  // in elements
    Dtype queue_dtype;
    int32_t threads;
};

// target_p <- momentum target_p + (1 - momentum) online_p for each parameter p; its bfloat16 copy follows.
struct MomentumUpdate {
    float* const* targets;
    const float* const* onlines;
    uint16_t* const* shadows;  // or null
    const int64_t* sizes;      // elements of each parameter
    int64_t num_params;
    double momentum;
    int32_t threads;
};

// The first num_draws of each stream's numbers in [0, 1), multiples of 2^-32.
struct Uniform {
    uint64_t seed;
    const int64_t* streams;  // (num_streams 3), each below 2^32
    double* result;          // (num_streams num_draws)
    int64_t num_streams, num_draws;
};

// What an instruction of a view does, and what distort does: as in ssl_core/ops/instructions.py, in its order. Each list
// becomes an enumeration here and names in bindings.cpp.
#define SSL_CORE_OPCODES(each) \
    each(crop) each(window) each(center_crop) each(resize) each(flip) each(jitter) each(gray) each(blur) each(solarize) \
    each(distort) each(jigsaw)
#define SSL_CORE_DISTORTIONS(each) \
    each(identity) each(autocontrast) each(brightness) each(color) each(contrast) each(equalize) each(invert) \
    each(posterize) each(rotate) each(sharpness) each(shear_x) each(shear_y) each(solarize) each(translate_x) \
    each(translate_y) each(solarize_add) each(cutout) each(translate_x_px) each(translate_y_px)

#define SSL_CORE_ENUMERATOR(name) name,
enum class Opcode : int32_t { SSL_CORE_OPCODES(SSL_CORE_ENUMERATOR) };
enum class Distortion : int32_t { SSL_CORE_DISTORTIONS(SSL_CORE_ENUMERATOR) };
#undef SSL_CORE_ENUMERATOR

// One view of every image: its instructions run one after the other on each image's picture.
struct View {
    const double* instructions;  // (num_instructions 7): opcode, column, a, b, c, condition, wanted
    const double* parameters;    // (num_images num_parameters)
    void* result;                // (num_images channels size size)
    int64_t num_instructions, num_parameters, size;
    int64_t continues;  // the earlier view whose picture it begins with, or -1
};

struct RenderViews {
    const void* pixels;     // of pixel_dtype: uint8, uint16, or float32 in [0, 1]
    const int64_t* layout;  // (num_images 6): offset, height, width, strides of channel, row and column, in elements
    const View* views;
    const float* mean;  // (channels)
    const float* std;   // (channels)
    int64_t num_images, num_views, channels;
    Dtype pixel_dtype, result_dtype;
    bool channels_last;
    int32_t threads;  // at most
};

// What became of a call, and the number that nothing here has.
struct Outcome {
    enum Kind : int32_t { done, out_of_memory, unknown_opcode, unknown_distortion } kind;
    double number;
};

// The kernels, compiled once for each instruction set.
struct Kernels {
    bool (*queue_attention)(const QueueAttention&);  // false when memory runs out
    void (*enqueue)(const Enqueue&);
    void (*momentum_update)(const MomentumUpdate&);
    void (*uniform)(const Uniform&);
    Outcome (*render_views)(const RenderViews&);
};

}  // namespace ssl_core
