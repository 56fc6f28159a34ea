// Boxes of an image at another size, antialiased as by torch's interpolate: columns of the box first, then its rows.
#pragma once

#include "picture.h"

namespace {

// What each of `outputs` positions along an axis is made of: `taps` inputs from `first` on, weights[tap][position].
struct Axis {
    const int32_t* first;
    const float* weights;
    int64_t inputs, outputs, padded, taps;

    INLINE int64_t taps_at(int64_t position) const { return smaller(taps, inputs - first[position]); }
};

INLINE double filter(double x, bool bicubic) {
    x = fabs(x);
    if (!bicubic) return x < 1 ? 1 - x : 0;
    constexpr double a = -0.5;  // Keys' cubic, as Pillow and torch with antialias
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

// Positions [start, start + outputs) of an axis of `inputs` pixels that is resized to `resized`.
bool make_axis(Axis& axis, Buffer& memory, int64_t inputs, int64_t resized, int64_t start, int64_t outputs, bool bicubic) {
    const double scale = static_cast<double>(inputs) / resized, stretch = scale > 1 ? scale : 1;
    const double support = (bicubic ? 2 : 1) * stretch;
    const int64_t taps = inputs == resized ? 1 : smaller(static_cast<int64_t>(ceil(support)) * 2 + 1, inputs);
    const int64_t padded = round_up(outputs);
    if (!memory.reserve((taps + 1) * padded)) return false;
    int32_t* first = reinterpret_cast<int32_t*>(memory.data);
    float* weights = memory.data + padded;
    memset(weights, 0, sizeof(float) * taps * padded);
    for (int64_t i = 0; i < padded; ++i) {
        const int64_t position = start + (i < outputs ? i : outputs - 1);
        if (inputs == resized) {
            first[i] = static_cast<int32_t>(position);
            weights[i] = 1;
            continue;
        }
        const double center = scale * (position + 0.5);
        const int64_t from = larger(static_cast<int64_t>(center - support + 0.5), 0);
        const int64_t count = smaller(smaller(static_cast<int64_t>(center + support + 0.5), inputs) - from, taps);
        first[i] = static_cast<int32_t>(from);
        double total = 0;
        for (int64_t t = 0; t < count; ++t) total += filter((t + from - center + 0.5) / stretch, bicubic);
        for (int64_t t = 0; t < count; ++t)
            weights[t * padded + i] = static_cast<float>(filter((t + from - center + 0.5) / stretch, bicubic) / total);
    }
    axis = {first, weights, inputs, outputs, padded, taps};
    return true;
}

INLINE Vector converted(const float* from) { return load(from); }

INLINE Vector converted(const uint16_t* from) {
    typedef uint16_t Words __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));
    return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const Words*>(from), Integers), Vector);
}

INLINE Vector converted(const uint8_t* from) {
    // GCC would convert bytes one by one.
#if defined(__AVX512F__)
    return (Vector)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__AVX2__)
    return (Vector)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
    typedef uint8_t Bytes __attribute__((vector_size(kLanes), aligned(1), may_alias));
    return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const Bytes*>(from), Integers), Vector);
#endif
}

// to[x] = scale * sum_t weights[t * step] from[t * stride + x]
template <typename T>
void blend_rows(const T* from, int64_t stride, const float* weights, int64_t step, int64_t taps, float scale,
                int64_t length, float* to) {
    constexpr int kBlock = 4;
    int64_t x = 0;
    for (; x + kBlock * kLanes <= length; x += kBlock * kLanes) {
        Vector sum[kBlock] = {};
        for (int64_t t = 0; t < taps; ++t) {
            const Vector weight = broadcast(weights[t * step] * scale);
            for (int v = 0; v < kBlock; ++v) sum[v] += weight * converted(from + t * stride + x + v * kLanes);
        }
        for (int v = 0; v < kBlock; ++v) store(to + x + v * kLanes, sum[v]);
    }
    // The last vector may overlap the one before: nothing beyond the row is read.
    while (x < length && length >= kLanes) {
        if (x > length - kLanes) x = length - kLanes;
        Vector sum = {};
        for (int64_t t = 0; t < taps; ++t) sum += weights[t * step] * scale * converted(from + t * stride + x);
        store(to + x, sum);
        x += kLanes;
    }
    for (; x < length; ++x) {
        float sum = 0;
        for (int64_t t = 0; t < taps; ++t) sum += weights[t * step] * scale * static_cast<float>(from[t * stride + x]);
        to[x] = sum;
    }
}

// row[first[x] + t] for the positions of one vector, by steps of t.
struct Window {
    const float* row;
    Integers first;
#if defined(__AVX512F__)
    __m512 low, high;
    bool is_narrow;  // all that is read lies in two vectors

    INLINE Window(const float* row, const int32_t* positions, int64_t taps) : row(row) {
        memcpy(&first, positions, sizeof(first));
        const int32_t start = positions[0];
        is_narrow = positions[kLanes - 1] + taps - start <= 2 * kLanes;
        if (!is_narrow) return;
        first -= start;
        low = _mm512_loadu_ps(row + start);
        high = _mm512_loadu_ps(row + start + kLanes);
    }
    INLINE Vector at(int32_t t) const {
        const __m512i index = (__m512i)(first + t);
        return is_narrow ? (Vector)_mm512_permutex2var_ps(low, index, high) : (Vector)_mm512_i32gather_ps(index, row, 4);
    }
#elif defined(__AVX2__)
    INLINE Window(const float* row, const int32_t* positions, int64_t) : row(row) {
        memcpy(&first, positions, sizeof(first));
    }
    INLINE Vector at(int32_t t) const { return (Vector)_mm256_i32gather_ps(row, (__m256i)(first + t), 4); }
#else
    INLINE Window(const float* row, const int32_t* positions, int64_t) : row(row) {
        memcpy(&first, positions, sizeof(first));
    }
    INLINE Vector at(int32_t t) const {
        Vector found;
        for (int lane = 0; lane < kLanes; ++lane) found[lane] = row[first[lane] + t];
        return found;
    }
#endif
};

// A row of the box at its new width. Behind the row, zeros for two vectors and all taps may be read.
INLINE void resample_row(const float* row, const Axis& axis, bool is_clamped, float* to) {
    for (int64_t x = 0; x < axis.outputs; x += kLanes) {
        const Window window(row, axis.first + x, axis.taps);
        Vector sum = {};
        for (int64_t t = 0; t < axis.taps; ++t) sum += load(axis.weights + t * axis.padded + x) * window.at(t);
        if (is_clamped) sum = clamp(sum);
        if (x + kLanes <= axis.outputs)
            store(to + x, sum);
        else
            memcpy(to + x, &sum, sizeof(float) * (axis.outputs - x));
    }
}

// The rows and columns of `image` from (top, left) on, as two axes say, into a part of a picture.
template <typename T>
bool resample_as(const Image& image, int64_t top, int64_t left, const Axis& vertical, const Axis& horizontal,
                 bool is_clamped, const Picture& picture, int64_t to_top, int64_t to_left, Buffer& rows) {
    const int64_t width = horizontal.inputs, channels = image.channels, room = width + horizontal.taps + 2 * kLanes;
    // Pixels of all channels side by side, as decoders give them, are blended as one long row.
    const bool is_interleaved = image.channel_stride == 1 && image.column_stride == channels && channels > 1;
    if (!rows.reserve((channels + 1) * room + channels * width)) return false;
    float* planar = rows.data;
    float* mixed = rows.data + (channels + 1) * room;
    memset(planar, 0, sizeof(float) * channels * room);
    const float scale = image.dtype == Dtype::uint8 ? 1 / 255.f : image.dtype == Dtype::uint16 ? 1 / 65535.f : 1.f;
    const T* corner = static_cast<const T*>(image.pixels) + top * image.row_stride + left * image.column_stride;
    for (int64_t y = 0; y < vertical.outputs; ++y) {
        const float* weights = vertical.weights + y;
        const int64_t taps = vertical.taps_at(y);
        const T* from = corner + vertical.first[y] * image.row_stride;
        if (is_interleaved) {
            blend_rows(from, image.row_stride, weights, vertical.padded, taps, scale, width * channels, mixed);
            if (channels == 3) {
                for (int64_t x = 0; x < width; ++x) {
                    planar[x] = mixed[3 * x];
                    planar[room + x] = mixed[3 * x + 1];
                    planar[2 * room + x] = mixed[3 * x + 2];
                }
            } else {
                for (int64_t c = 0; c < channels; ++c)
                    for (int64_t x = 0; x < width; ++x) planar[c * room + x] = mixed[x * channels + c];
            }
        }
        for (int64_t c = 0; c < channels; ++c) {
            float* row = planar + c * room;
            const T* channel = from + c * image.channel_stride;
            if (!is_interleaved && image.column_stride == 1) {
                blend_rows(channel, image.row_stride, weights, vertical.padded, taps, scale, width, row);
            } else if (!is_interleaved) {
                for (int64_t x = 0; x < width; ++x) {
                    float sum = 0;
                    for (int64_t t = 0; t < taps; ++t)
                        sum += weights[t * vertical.padded] * scale *
                               static_cast<float>(channel[t * image.row_stride + x * image.column_stride]);
                    row[x] = sum;
                }
            }
            resample_row(row, horizontal, is_clamped, picture.row(c, to_top + y) + to_left);
        }
    }
    return true;
}

bool resample(const Image& image, int64_t top, int64_t left, const Axis& vertical, const Axis& horizontal,
              bool is_clamped, const Picture& picture, int64_t to_top, int64_t to_left, Buffer& rows) {
    const auto run = [&](auto pixel) {
        return resample_as<decltype(pixel)>(image, top, left, vertical, horizontal, is_clamped, picture, to_top, to_left,
                                            rows);
    };
    if (image.dtype == Dtype::uint8) return run(uint8_t{});
    return image.dtype == Dtype::uint16 ? run(uint16_t{}) : run(float{});
}

}  // namespace
