// Where the pixels of a picture go, and what its neighborhood does to a pixel; ssl_core/views/geometry.py defines the
// first, and the reference's blur and sharpness the second.
#pragma once

#include "picture.h"

namespace {

// to[x] = from[width - 1 - x]
INLINE void mirror_row(const float* from, int64_t width, float* to) {
    int64_t x = 0;
    for (; x + kLanes <= width; x += kLanes) store(to + x, reversed(load(from + width - kLanes - x)));
    for (; x < width; ++x) to[x] = from[width - 1 - x];
}

// Exchanges left and right, where that was put off.
bool unmirror(Canvas& canvas) {
    if (!canvas.is_mirrored) return true;
    Picture mirrored;
    if (!canvas.behind(mirrored)) return false;
    for (int64_t c = 0; c < mirrored.channels; ++c)
        for (int64_t y = 0; y < mirrored.height; ++y)
            mirror_row(canvas.picture.row(c, y), mirrored.width, mirrored.row(c, y));
    canvas.swap();
    canvas.is_mirrored = false;
    return true;
}

// The pixel seen at distance i from the first of n, which continue by reflection.
INLINE int64_t reflected(int64_t i, int64_t n) {
    if (i >= 0 && i < n) return i;
    const int64_t period = n > 1 ? 2 * (n - 1) : 1;
    i = (i % period + period) % period;
    return smaller(i, period - i);
}

// to[x] = sum_t weights[t] at(t)[x] for N vectors.
template <int N, typename At>
INLINE void weigh(const float* weights, int64_t taps, At at, float* to) {
    Vector sum[N] = {};
    for (int64_t t = 0; t < taps; ++t) {
        const float* from = at(t);
        for (int v = 0; v < N; ++v) sum[v] += weights[t] * load(from + v * kLanes);
    }
    for (int v = 0; v < N; ++v) store(to + v * kLanes, sum[v]);
}

// The same for a row, in whole vectors: what follows its end is read and written too.
template <typename At>
INLINE void weigh_row(int64_t width, const float* weights, int64_t taps, At at, float* to) {
    int64_t x = 0;
    const auto moved = [&](int64_t t) { return at(t) + x; };
    for (; x + 3 * kLanes < width; x += 4 * kLanes) weigh<4>(weights, taps, moved, to + x);
    for (; x + kLanes < width; x += 2 * kLanes) weigh<2>(weights, taps, moved, to + x);
    for (; x < width; x += kLanes) weigh<1>(weights, taps, moved, to + x);
}

bool blur(Canvas& canvas, double sigma) {
    if (!(sigma > 0)) return true;
    const Picture& picture = canvas.picture;
    const int64_t radius = whole(ceil(3 * fmin(sigma, 1e6))), taps = 2 * radius + 1;
    const int64_t height = picture.height, width = picture.width, room = round_up(width);
    Picture smooth;
    if (!canvas.behind(smooth) || !canvas.rows.reserve(taps + 2 * room + 2 * radius)) return false;
    float* weights = canvas.rows.data;
    float* across = weights + taps;
    float* down = across + room;  // with what is seen beyond both ends
    double total = 0;
    for (int64_t t = 0; t < taps; ++t) {
        const double distance = static_cast<double>(t - radius) / sigma;
        total += exp(-0.5 * distance * distance);
    }
    for (int64_t t = 0; t < taps; ++t) {
        const double distance = static_cast<double>(t - radius) / sigma;
        weights[t] = static_cast<float>(exp(-0.5 * distance * distance) / total);
    }
    for (int64_t c = 0; c < smooth.channels; ++c) {
        for (int64_t y = 0; y < height; ++y) {
            const auto row = [&](int64_t t) { return picture.row(c, reflected(y + t - radius, height)); };
            weigh_row(width, weights, taps, row, down + radius);
            for (int64_t i = 1; i <= radius; ++i) {
                down[radius - i] = down[radius + reflected(-i, width)];
                down[radius + width - 1 + i] = down[radius + reflected(width - 1 + i, width)];
            }
            weigh_row(width, weights, taps, [&](int64_t t) { return down + t; }, across);
            memcpy(smooth.row(c, y), across, sizeof(float) * width);
        }
    }
    canvas.swap();
    return true;
}

bool sharpness(Canvas& canvas, float factor) {
    Picture sharp;
    if (canvas.picture.height < 3 || canvas.picture.width < 3) return true;
    if (!canvas.behind(sharp)) return false;
    memcpy(sharp.data, canvas.picture.data, sizeof(float) * sharp.size());
    const int64_t width = sharp.width;
    for (int64_t c = 0; c < sharp.channels; ++c) {
        for (int64_t y = 1; y < sharp.height - 1; ++y) {
            const float* above = canvas.picture.row(c, y - 1);
            const float* row = above + width;
            const float* below = row + width;
            float* to = sharp.row(c, y);
            for (int64_t x = 1; x < width - 1; x += kLanes) {
                Vector sum = 4.f * load(row + x);
                for (int side = -1; side <= 1; ++side)
                    sum += load(above + x + side) + load(row + x + side) + load(below + x + side);
                const Vector smooth = sum / 13.f;
                const Vector value = smooth + factor * (load(row + x) - smooth);
                memcpy(to + x, &value, sizeof(float) * smaller(kLanes, width - 1 - x));
            }
        }
    }
    canvas.swap();
    for_each_vector(canvas.picture, [](Vector x) { return clamp(x); });
    return true;
}

// In units of 2^-16 pixels.
INLINE int64_t fixed(double number) { return whole(floor(number * 65536 + 0.5)); }

// Each pixel copies the one in which its center falls: a point (x, y) of the result is (a x + b y + c, d x + e y + f).
bool affine(Canvas& canvas, double a, double b, double c, double d, double e, double f) {
    Picture moved;
    const int64_t height = canvas.picture.height, width = canvas.picture.width;
    if (!unmirror(canvas) || !canvas.behind(moved) || !canvas.rows.reserve(width)) return false;
    int32_t* source = reinterpret_cast<int32_t*>(canvas.rows.data);  // of each pixel of a row; -1 outside
    const int64_t fixed_a = fixed(a), fixed_b = fixed(b), fixed_d = fixed(d), fixed_e = fixed(e);
    const int64_t fixed_c = fixed(c + a * 0.5 + b * 0.5), fixed_f = fixed(f + d * 0.5 + e * 0.5);
    for (int64_t y = 0; y < height; ++y) {
        const int64_t from_x = fixed_b * y + fixed_c, from_y = fixed_e * y + fixed_f;
        if (fixed_a == 65536 && fixed_d == 0) {  // a row of the picture, moved
            const int64_t row = from_y >> 16, shift = from_x >> 16;
            const int64_t first = smaller(larger(-shift, 0), width), stop = larger(smaller(width - shift, width), first);
            const bool is_inside = row >= 0 && row < height;
            for (int64_t channel = 0; channel < moved.channels; ++channel) {
                float* to = moved.row(channel, y);
                memset(to, 0, sizeof(float) * width);
                if (is_inside)
                    memcpy(to + first, canvas.picture.row(channel, row) + first + shift, sizeof(float) * (stop - first));
            }
            continue;
        }
        for (int64_t x = 0; x < width; ++x) {
            const int64_t column = (fixed_a * x + from_x) >> 16, row = (fixed_d * x + from_y) >> 16;
            const bool is_inside = column >= 0 && column < width && row >= 0 && row < height;
            source[x] = is_inside ? static_cast<int32_t>(row * width + column) : -1;
        }
        for (int64_t channel = 0; channel < moved.channels; ++channel) {
            const float* from = canvas.picture.row(channel, 0);
            float* to = moved.row(channel, y);
            for (int64_t x = 0; x < width; ++x) to[x] = source[x] < 0 ? 0.f : from[source[x]];
        }
    }
    canvas.swap();
    return true;
}

bool rotate(Canvas& canvas, double degrees) {
    // Rounded, so that whole quarter turns have exact coefficients.
    const double angle = degrees * (M_PI / 180);
    const double cosine = nearbyint(cos(angle) * 1e15) / 1e15, sine = nearbyint(sin(angle) * 1e15) / 1e15;
    const double x = static_cast<double>(canvas.picture.width) / 2, y = static_cast<double>(canvas.picture.height) / 2;
    return affine(canvas, cosine, -sine, x - (cosine * x - sine * y), sine, cosine, y - (sine * x + cosine * y));
}

bool translate(Canvas& canvas, double x, double y) { return affine(canvas, 1, 0, x, 0, 1, y); }

bool cutout(Canvas& canvas, double side, double x, double y) {
    if (!unmirror(canvas)) return false;
    const Picture& picture = canvas.picture;
    const auto span = [=](double center, int64_t length, int64_t& first, int64_t& stop) {
        const double start = center * static_cast<double>(length) - side / 2;
        first = larger(whole(start), 0);
        stop = smaller(whole(static_cast<double>(first) + side), length) + 1;
        stop = smaller(stop, length);
    };
    int64_t left, top, right, bottom;
    span(x, picture.width, left, right);
    span(y, picture.height, top, bottom);
    constexpr float kLevels[3] = {125, 123, 114};
    for (int64_t c = 0; c < picture.channels; ++c) {
        const float level = (picture.channels == 3 ? kLevels[c] : (125 + 123 + 114) / 3.f) / 255.f;
        for (int64_t row = top; row < bottom; ++row)
            for (int64_t column = left; column < right; ++column) picture.row(c, row)[column] = level;
    }
    return true;
}

// Place i shows cell cells[i] of a grid of cells, numbered row by row.
bool shuffle_cells(Canvas& canvas, int64_t grid, const double* cells) {
    Picture shuffled;
    if (!unmirror(canvas) || !canvas.behind(shuffled)) return false;
    const int64_t height = shuffled.height / grid, width = shuffled.width / grid;
    for (int64_t c = 0; c < shuffled.channels; ++c) {
        for (int64_t place = 0; place < grid * grid; ++place) {
            const int64_t cell = between(0, whole(cells[place]), grid * grid - 1);
            for (int64_t y = 0; y < height; ++y)
                memcpy(shuffled.row(c, place / grid * height + y) + place % grid * width,
                       canvas.picture.row(c, cell / grid * height + y) + cell % grid * width, sizeof(float) * width);
        }
    }
    canvas.swap();
    return true;
}

}  // namespace
