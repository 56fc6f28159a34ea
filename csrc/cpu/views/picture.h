// What a view is drawn on: pictures of float32 planes, and the memory that one thread draws with.
#pragma once

#if defined(__SSE__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstdlib>

#include "../../ssl_core.h"
#include "../vector.h"

namespace {

using ssl_core::Dtype;

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t between(int64_t low, int64_t value, int64_t high) { return larger(low, smaller(value, high)); }
// Cut to whole; 0 for what no sane parameter is, whose conversion would be undefined.
INLINE int64_t whole(double number) { return number > -1e12 && number < 1e12 ? static_cast<int64_t>(number) : 0; }
INLINE int64_t round_up(int64_t size) { return (size + kLanes - 1) / kLanes * kLanes; }
INLINE Vector clamp(Vector x) { return min(max(x, Vector{}), broadcast(1.f)); }

// Memory that grows; what it held is lost. Two vectors beyond its end may be read and written.
struct Buffer {
    float* data = nullptr;
    int64_t capacity = 0;

    bool reserve(int64_t floats) {
        floats += 2 * kLanes;
        if (floats <= capacity) return true;
        free(data);
        capacity = (floats + 15) / 16 * 16;
        data = static_cast<float*>(aligned_alloc(64, capacity * 4));
        if (!data) capacity = 0;
        return data != nullptr;
    }
};

// Pixels as they came, or planes of our own: pixel (channel, y, x) is pixels[channel_stride * channel + ...].
struct Image {
    const void* pixels;
    Dtype dtype;
    int64_t channels, height, width, channel_stride, row_stride, column_stride;
};

// Planes of whole vectors, so that pointwise ops need not look at channels or ends; what follows a plane's last pixel
// is anything.
struct Picture {
    float* data;
    int64_t channels, height, width;

    int64_t pixels() const { return height * width; }
    int64_t plane() const { return round_up(height * width); }
    int64_t size() const { return channels * plane(); }
    float* row(int64_t channel, int64_t y) const { return data + channel * plane() + y * width; }
};

// What a thread draws with. The picture is in `front`; an op that cannot work in place draws in `back` and swaps.
struct Canvas {
    Buffer front, back, rows, vertical, horizontal;
    Picture picture;
    bool is_mirrored;  // left and right are still to be exchanged

    bool start(int64_t channels, int64_t height, int64_t width) {
        picture = {nullptr, channels, height, width};
        if (!front.reserve(picture.size())) return false;
        picture.data = front.data;
        return true;
    }

    // A picture of the same size behind the one at the front.
    bool behind(Picture& other) {
        other = picture;
        if (!back.reserve(picture.size())) return false;
        other.data = back.data;
        return true;
    }

    void swap() {
        const Buffer former = front;
        front = back;
        back = former;
        picture.data = front.data;
    }

    void release() {
        Buffer* const all[] = {&front, &back, &rows, &vertical, &horizontal};
        for (Buffer* buffer : all) free(buffer->data);
    }
};

// f on every vector of the picture.
template <typename Function>
INLINE void for_each_vector(const Picture& picture, Function f) {
    for (int64_t i = 0, size = picture.size(); i < size; i += kLanes) store(picture.data + i, f(load(picture.data + i)));
}

// The nearest of 256 levels, ties to even.
INLINE int32_t level_of(float value) {
    // Not by adding 1.5 * 2^23: that sum would be fused with the product, which has to be rounded first.
#if defined(__SSE__)
    const int32_t level = _mm_cvtss_si32(_mm_set_ss(value * 255.f));
#else
    const int32_t level = static_cast<int32_t>(lrintf(value * 255.f));
#endif
    return level < 0 ? 0 : level > 255 ? 255 : level;
}

}  // namespace
