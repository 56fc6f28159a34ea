// Color ops in place, on pictures in [0, 1] of any number of channels; ssl_core/views/color.py defines each.
#pragma once

#include "picture.h"

namespace {

constexpr float kLuma[3] = {0.2989f, 0.587f, 0.114f};

INLINE Vector lerp(Vector from, Vector to, float weight) { return from + weight * (to - from); }

INLINE Vector gray_at(const Picture& picture, int64_t i) {
    const float* first = picture.data + i;
    const int64_t plane = picture.plane();
    if (picture.channels == 1) return load(first);
    if (picture.channels == 3)
        return kLuma[0] * load(first) + kLuma[1] * load(first + plane) + kLuma[2] * load(first + 2 * plane);
    Vector sum = {};
    for (int64_t c = 0; c < picture.channels; ++c) sum += load(first + c * plane);
    return sum / static_cast<float>(picture.channels);
}

INLINE double sum_of(const float* values, int64_t count) {
    constexpr int64_t kChunk = 64 * kLanes;  // short float sums, added up in double
    double total = 0;
    for (int64_t start = 0; start < count; start += kChunk) {
        const int64_t stop = smaller(start + kChunk, count);
        Vector sum = {};
        int64_t i = start;
        for (; i + kLanes <= stop; i += kLanes) sum += load(values + i);
        for (int lane = 0; lane < kLanes; ++lane) total += static_cast<double>(sum[lane]);
        for (; i < stop; ++i) total += static_cast<double>(values[i]);
    }
    return total;
}

double mean_gray(const Picture& picture) {
    double sum = 0;
    for (int64_t c = 0; c < picture.channels; ++c) {
        const double weight = picture.channels == 3 ? kLuma[c] : 1.0 / static_cast<double>(picture.channels);
        sum += weight * sum_of(picture.row(c, 0), picture.pixels());
    }
    return sum / static_cast<double>(picture.pixels());
}

void brightness(const Picture& picture, float factor) {
    for_each_vector(picture, [=](Vector x) { return clamp(x * factor); });
}

void contrast(const Picture& picture, float factor) {
    const Vector mean = broadcast(static_cast<float>(mean_gray(picture)));
    for_each_vector(picture, [=](Vector x) { return clamp(lerp(mean, x, factor)); });
}

void saturation(const Picture& picture, float factor) {
    if (picture.channels == 1) return;
    const int64_t plane = picture.plane();
    for (int64_t i = 0; i < plane; i += kLanes) {
        const Vector gray = gray_at(picture, i);
        for (int64_t c = 0; c < picture.channels; ++c) {
            float* at = picture.data + c * plane + i;
            store(at, clamp(lerp(gray, load(at), factor)));
        }
    }
}

void grayscale(const Picture& picture) {
    const int64_t plane = picture.plane();
    for (int64_t i = 0; i < plane; i += kLanes) {
        const Vector gray = gray_at(picture, i);
        for (int64_t c = 0; c < picture.channels; ++c) store(picture.data + c * plane + i, gray);
    }
}

INLINE Vector absolute(Vector x) { return (Vector)((Bits)x & 0x7FFFFFFFu); }

// A channel at a distance of d sextants from its own color is at the pixel's maximum below one, at its minimum above
// two, and linear in between.
void shift_hue(const Picture& picture, double sextants) {
    const int64_t plane = picture.plane();
    float* red = picture.data;
    float* green = red + plane;
    float* blue = green + plane;
    float unshifted[3];
    for (int c = 0; c < 3; ++c) {
        const double turned = 2.0 * c - sextants + 1;
        unshifted[c] = static_cast<float>(turned - 6 * floor(turned / 6) - 1);
    }
    for (int64_t i = 0; i < plane; i += kLanes) {
        const Vector r = load(red + i), g = load(green + i), b = load(blue + i);
        const Vector highest = r > g ? (r > b ? r : b) : (g > b ? g : b);
        const Vector lowest = r < g ? (r < b ? r : b) : (g < b ? g : b);
        const Vector chroma = highest - lowest;
        const Vector inverse = 1.f / (chroma > 1e-12f ? chroma : broadcast(1e-12f));
        const Vector hue = r == highest   ? (g - b) * inverse
                           : g == highest ? (b - r) * inverse + 2.f
                                          : (r - g) * inverse + 4.f;
        float* planes[3] = {red + i, green + i, blue + i};
        for (int c = 0; c < 3; ++c) {
            const Vector distance = absolute(absolute(hue - unshifted[c]) - 3.f);
            store(planes[c], lowest + chroma * clamp(distance - 1.f));
        }
    }
}

// Rotation in the plane of the first harmonic over the channels.
bool rotate_first_harmonic(Canvas& canvas, double angle) {
    const Picture& picture = canvas.picture;
    const int64_t channels = picture.channels, plane = picture.plane();
    if (!canvas.rows.reserve(channels * kLanes + channels * channels)) return false;
    float* pixel = canvas.rows.data;  // a vector of each channel
    float* rotation = pixel + channels * kLanes;
    for (int64_t c = 0; c < channels; ++c) {
        for (int64_t k = 0; k < channels; ++k) {
            const double apart = 2 * M_PI * static_cast<double>(c - k) / static_cast<double>(channels);
            const double turned = cos(apart) * (cos(angle) - 1) + sin(apart) * sin(angle);
            rotation[c * channels + k] = static_cast<float>(2 * turned / static_cast<double>(channels));
        }
    }
    for (int64_t i = 0; i < plane; i += kLanes) {
        for (int64_t c = 0; c < channels; ++c) store(pixel + c * kLanes, load(picture.data + c * plane + i));
        for (int64_t c = 0; c < channels; ++c) {
            Vector sum = load(pixel + c * kLanes);
            for (int64_t k = 0; k < channels; ++k) sum += rotation[c * channels + k] * load(pixel + k * kLanes);
            store(picture.data + c * plane + i, clamp(sum));
        }
    }
    return true;
}

bool hue(Canvas& canvas, double shift) {
    if (canvas.picture.channels > 3) return rotate_first_harmonic(canvas, 2 * M_PI * shift);
    if (canvas.picture.channels == 3) shift_hue(canvas.picture, 6 * shift);
    return true;
}

// In the order'th of the permutations of (brightness, contrast, saturation, hue), in lexicographic order.
bool jitter(Canvas& canvas, const double* amounts, int order) {
    int left[4] = {0, 1, 2, 3};
    for (int place = 0, count = 6; place < 4; count /= place < 2 ? 3 - place : 1, ++place) {
        const int chosen = order / count;
        order -= chosen * count;
        const int change = left[chosen];
        for (int i = chosen; i < 3; ++i) left[i] = left[i + 1];
        const float factor = static_cast<float>(amounts[change]);
        if (change == 3) {
            if (amounts[3] != 0 && !hue(canvas, amounts[3])) return false;
        } else if (amounts[change] != 1) {
            (change == 0 ? brightness : change == 1 ? contrast : saturation)(canvas.picture, factor);
        }
    }
    return true;
}

void solarize(const Picture& picture, float threshold) {
    for_each_vector(picture, [=](Vector x) { return x >= threshold ? 1.f - x : x; });
}

void invert(const Picture& picture) {
    for_each_vector(picture, [](Vector x) { return 1.f - x; });
}

void solarize_add(const Picture& picture, float added) {
    for_each_vector(picture, [=](Vector x) {
        x = x + added;
        x = x < 1.f ? x : broadcast(1.f);
        return x >= 127.5f / 255.f ? 1.f - x : x;
    });
}

// Each channel's levels replaced by those of a table of its own.
template <typename MakeTable>
void replace_levels(const Picture& picture, MakeTable make_table) {
    for (int64_t c = 0; c < picture.channels; ++c) {
        float* values = picture.row(c, 0);
        int32_t counts[256] = {};
        for (int64_t i = 0; i < picture.pixels(); ++i) ++counts[level_of(values[i])];
        float table[256];
        make_table(counts, table);
        for (int level = 0; level < 256; ++level) table[level] /= 255.f;
        for (int64_t i = 0; i < picture.pixels(); ++i) values[i] = table[level_of(values[i])];
    }
}

void posterize(const Picture& picture, int bits) {
    const int mask = 0xFF00 >> bits & 0xFF;
    replace_levels(picture, [=](const int32_t*, float* table) {
        for (int level = 0; level < 256; ++level) table[level] = static_cast<float>(level & mask);
    });
}

void autocontrast(const Picture& picture) {
    replace_levels(picture, [](const int32_t* counts, float* table) {
        int low = 0, high = 255;
        while (!counts[low]) ++low;
        while (!counts[high]) --high;
        const double scale = 255.0 / (high > low ? high - low : 1);
        for (int level = 0; level < 256; ++level) {
            // Two roundings: contracted to one, the cut would give another level here and there.
            const volatile double stretched = level * scale, offset = low * scale;
            const double cut = trunc(stretched - offset);
            table[level] = static_cast<float>(high <= low ? level : cut < 0 ? 0 : cut > 255 ? 255 : cut);
        }
    });
}

void equalize(const Picture& picture) {
    replace_levels(picture, [&](const int32_t* counts, float* table) {
        int highest = 255;
        while (!counts[highest]) --highest;
        const int64_t step = (picture.pixels() - counts[highest]) / 255;
        int64_t below = 0;
        for (int level = 0; level < 256; ++level) {
            table[level] = static_cast<float>(step ? smaller((step / 2 + below) / step, 255) : level);
            below += counts[level];
        }
    });
}

}  // namespace
