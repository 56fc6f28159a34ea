// Views of images: each view's instructions, one after the other, on a picture of float32 planes that stays in the
// cache; what they mean is defined by ssl_core/views/ops. All views of an image are drawn by one thread, so that
// the image is read from memory once.

#include "views/color.h"
#include "views/geometry.h"
#include "views/resample.h"

namespace {

using ssl_core::Distortion;
using ssl_core::Opcode;
using ssl_core::Outcome;
using ssl_core::RenderViews;
using ssl_core::View;

constexpr int kFields = 7, kLayout = 6;

Image as_image(const Picture& picture) {
    return {picture.data, Dtype::float32, picture.channels, picture.height, picture.width, picture.plane(), picture.width, 1};
}

// What an image's view is made of next: the image itself until the first op, then the canvas' picture.
struct Drawing {
    Image image;
    Canvas* canvas;
    bool is_drawn;
    Outcome* outcome;

    // Nothing that a function can do; its result is false, as where memory runs out.
    bool unknown(Outcome::Kind kind, double number) {
        *outcome = {kind, number};
        return false;
    }

    // The picture that a geometric op reads, while it draws the next one at the front.
    bool source(Image& from) {
        if (is_drawn) {
            if (!unmirror(*canvas)) return false;
            const Picture picture = canvas->picture;
            canvas->swap();  // the front is the back's now, to be drawn over
            from = as_image(picture);
        } else {
            from = image;
        }
        is_drawn = true;
        return true;
    }

    bool is_drawn_or_read() {
        return is_drawn || fit(0, 0, image.height, image.width, image.height, image.width, 0, 0, false);
    }

    // The box resized to (height, width), of which the canvas shows the (to_height, to_width) part at (start_y, start_x).
    bool fit(int64_t top, int64_t left, int64_t box_height, int64_t box_width, int64_t height, int64_t width,
             int64_t start_y, int64_t start_x, bool bicubic, int64_t to_height = 0, int64_t to_width = 0) {
        Image from;
        if (!source(from)) return false;
        to_height = to_height ? to_height : height;
        to_width = to_width ? to_width : width;
        Axis vertical, horizontal;
        return canvas->start(from.channels, to_height, to_width) &&
               make_axis(vertical, canvas->vertical, box_height, height, start_y, to_height, bicubic) &&
               make_axis(horizontal, canvas->horizontal, box_width, width, start_x, to_width, bicubic) &&
               resample(from, top, left, vertical, horizontal, bicubic, canvas->picture, 0, 0, canvas->rows);
    }

    // The (size size) window with its corner at (top, left), zeros outside of the picture.
    bool window(int64_t top, int64_t left, int64_t size) {
        Image from;
        if (!source(from) || !canvas->start(from.channels, size, size)) return false;
        memset(canvas->picture.data, 0, sizeof(float) * canvas->picture.size());
        const int64_t first_y = larger(top, 0), stop_y = smaller(top + size, from.height);
        const int64_t first_x = larger(left, 0), stop_x = smaller(left + size, from.width);
        if (first_y >= stop_y || first_x >= stop_x) return true;
        Axis vertical, horizontal;
        const int64_t rows = stop_y - first_y, columns = stop_x - first_x;
        return make_axis(vertical, canvas->vertical, rows, rows, 0, rows, false) &&
               make_axis(horizontal, canvas->horizontal, columns, columns, 0, columns, false) &&
               resample(from, first_y, first_x, vertical, horizontal, false, canvas->picture, first_y - top,
                        first_x - left, canvas->rows);
    }

    int64_t height() const { return is_drawn ? canvas->picture.height : image.height; }
    int64_t width() const { return is_drawn ? canvas->picture.width : image.width; }
};

// Rounded to even, as in Python.
INLINE int64_t rounded(double number) { return static_cast<int64_t>(nearbyint(number)); }

bool center_crop(Drawing& drawing, int64_t short_side, int64_t size, bool bicubic) {
    const int64_t height = drawing.height(), width = drawing.width();
    const int64_t new_height = height <= width ? short_side : short_side * height / width;
    const int64_t new_width = width <= height ? short_side : short_side * width / height;
    return drawing.fit(0, 0, height, width, new_height, new_width, rounded(static_cast<double>(new_height - size) / 2),
                       rounded(static_cast<double>(new_width - size) / 2), bicubic, size, size);
}

bool resize(Drawing& drawing, int64_t side, bool bicubic, bool is_padded) {
    const int64_t height = drawing.height(), width = drawing.width();
    if (!is_padded) return drawing.fit(0, 0, height, width, side, side, 0, 0, bicubic);
    const double longest = static_cast<double>(larger(height, width));
    const int64_t new_height = larger(1, rounded(static_cast<double>(height * side) / longest));
    const int64_t new_width = larger(1, rounded(static_cast<double>(width * side) / longest));
    return drawing.fit(0, 0, height, width, new_height, new_width, 0, 0, bicubic) &&
           drawing.window(-((side - new_height) / 2), -((side - new_width) / 2), side);
}

bool distort(Drawing& drawing, double number, double magnitude, const double* place) {
    Canvas& canvas = *drawing.canvas;
    const Picture& picture = canvas.picture;
    const float factor = static_cast<float>(magnitude);
    const auto kind = static_cast<Distortion>(whole(number));
    if (static_cast<double>(whole(number)) != number) return drawing.unknown(Outcome::unknown_distortion, number);
    switch (kind) {
        case Distortion::identity: return true;
        case Distortion::autocontrast: autocontrast(picture); return true;
        case Distortion::brightness: brightness(picture, factor); return true;
        case Distortion::color: saturation(picture, factor); return true;
        case Distortion::contrast: contrast(picture, factor); return true;
        case Distortion::equalize: equalize(picture); return true;
        case Distortion::invert: invert(picture); return true;
        case Distortion::posterize: posterize(picture, static_cast<int>(between(1, whole(magnitude), 8))); return true;
        case Distortion::rotate: return rotate(canvas, magnitude);
        case Distortion::sharpness: return sharpness(canvas, factor);
        case Distortion::shear_x: return affine(canvas, 1, magnitude, 0, 0, 1, 0);
        case Distortion::shear_y: return affine(canvas, 1, 0, 0, magnitude, 1, 0);
        // Half a level below, so that the rounding of what came before does not decide.
        case Distortion::solarize: solarize(picture, static_cast<float>((ceil(magnitude) - 0.5) / 255)); return true;
        case Distortion::translate_x:
            return translate(canvas, trunc(magnitude * static_cast<double>(picture.width)), 0);
        case Distortion::translate_y:
            return translate(canvas, 0, trunc(magnitude * static_cast<double>(picture.height)));
        case Distortion::solarize_add: solarize_add(picture, static_cast<float>(magnitude / 255)); return true;
        case Distortion::cutout: return cutout(canvas, magnitude, place[0], place[1]);
        case Distortion::translate_x_px: return translate(canvas, magnitude, 0);
        case Distortion::translate_y_px: return translate(canvas, 0, magnitude);
    }
    return drawing.unknown(Outcome::unknown_distortion, number);
}

bool run(Drawing& drawing, const double* instruction, const double* parameters, int64_t size) {
    Canvas& canvas = *drawing.canvas;
    const double* own = parameters + static_cast<int64_t>(instruction[1]);
    const double a = instruction[2];
    const bool b = instruction[3] != 0, c = instruction[4] != 0;
    const auto opcode = static_cast<Opcode>(whole(instruction[0]));
    switch (opcode) {
        case Opcode::crop: {
            // Cut to the image, as a slice would be.
            const int64_t top = between(0, whole(own[0]), drawing.height() - 1);
            const int64_t left = between(0, whole(own[1]), drawing.width() - 1);
            return drawing.fit(top, left, between(1, whole(own[2]), drawing.height() - top),
                               between(1, whole(own[3]), drawing.width() - left), size, size, 0, 0, a != 0);
        }
        case Opcode::window:
            return drawing.window(whole(own[0]), whole(own[1]), size);
        case Opcode::center_crop:
            return center_crop(drawing, a != 0 ? static_cast<int64_t>(a) : size, size, b);
        case Opcode::resize:
            return resize(drawing, a != 0 ? static_cast<int64_t>(a) : size, b, c);
        default:
            break;
    }
    if (!drawing.is_drawn_or_read()) return false;
    switch (opcode) {
        case Opcode::flip:
            canvas.is_mirrored ^= own[0] != 0;
            return true;
        case Opcode::jitter:
            return jitter(canvas, own, static_cast<int>(between(0, whole(own[4]), 23)));
        case Opcode::gray:
            if (own[0] != 0) grayscale(canvas.picture);
            return true;
        case Opcode::blur:
            return blur(canvas, own[0]);
        case Opcode::solarize:
            if (own[0] != 0) solarize(canvas.picture, static_cast<float>(a));
            return true;
        case Opcode::distort:
            return distort(drawing, own[0], own[1], own + 2);
        case Opcode::jigsaw:
            return shuffle_cells(canvas, whole(a), own);
        default:
            return drawing.unknown(Outcome::unknown_opcode, instruction[0]);
    }
}

INLINE uint16_t to_float16(float value) {
    // To nearest, ties to even; a picture that is normalized sanely is far from the largest half.
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7FFFFFFF;
    if (rest >= 0x47800000) return static_cast<uint16_t>(sign | (rest > 0x7F800000 ? 0x7E00 : 0x7C00));
    if (rest < 0x38800000) {  // subnormal: let an addition round
        float magnitude;
        memcpy(&magnitude, &rest, 4);
        magnitude += 0.5f;
        memcpy(&bits, &magnitude, 4);
        return static_cast<uint16_t>(sign | (bits - 0x3F000000));
    }
    return static_cast<uint16_t>(sign | ((rest - 0x38000000 + 0xFFF + (rest >> 13 & 1)) >> 13));
}

// (x - mean) / std of the picture, cut to [0, 1] before.
bool write(const RenderViews& call, const View& view, int64_t image, Canvas& canvas) {
    const Picture& picture = canvas.picture;
    const int64_t side = view.size, channels = picture.channels, elements = channels * side * side;
    const int64_t room = round_up(side);
    if (!canvas.rows.reserve(channels * room + channels * side)) return false;
    float* planar = canvas.rows.data;
    float* mixed = planar + channels * room;
    const auto put = [&](const float* values, int64_t count, int64_t at) {
        at += image * elements;
        if (call.result_dtype == Dtype::float32) {
            memcpy(static_cast<float*>(view.result) + at, values, sizeof(float) * count);
            return;
        }
        uint16_t* to = static_cast<uint16_t*>(view.result) + at;
        if (call.result_dtype == Dtype::bfloat16)
            for (int64_t i = 0; i < count; ++i) to[i] = to_bfloat16(values[i]);
        else
            for (int64_t i = 0; i < count; ++i) to[i] = to_float16(values[i]);
    };
    for (int64_t y = 0; y < side; ++y) {
        for (int64_t c = 0; c < channels; ++c) {
            const float mean = call.mean[c], inverse = 1 / call.std[c];
            const float* from = picture.row(c, y);
            float* to = planar + c * room;
            if (canvas.is_mirrored) {
                mirror_row(from, side, to);
                from = to;
            }
            for (int64_t x = 0; x < side; x += kLanes) store(to + x, (clamp(load(from + x)) - mean) * inverse);
            if (!call.channels_last) put(to, side, (c * side + y) * side);
        }
        if (!call.channels_last) continue;
        for (int64_t x = 0; x < side; ++x)
            for (int64_t c = 0; c < channels; ++c) mixed[x * channels + c] = planar[c * room + x];
        put(mixed, side * channels, y * side * channels);
    }
    return true;
}

// Pictures that later views of the same image continue.
struct Kept {
    Buffer memory;
    bool is_wanted, is_mirrored;
};

bool draw(const RenderViews& call, int64_t index, Canvas& canvas, Kept* kept, Outcome& outcome) {
    const int64_t* layout = call.layout + index * kLayout;
    const int64_t bytes = call.pixel_dtype == Dtype::uint8 ? 1 : call.pixel_dtype == Dtype::uint16 ? 2 : 4;
    const Image image{static_cast<const char*>(call.pixels) + layout[0] * bytes,
                      call.pixel_dtype,
                      call.channels,
                      layout[1],
                      layout[2],
                      layout[3],
                      layout[4],
                      layout[5]};
    for (int64_t v = 0; v < call.num_views; ++v) {
        const View& view = call.views[v];
        Drawing drawing{image, &canvas, false, &outcome};
        canvas.is_mirrored = false;
        if (view.continues >= 0) {
            const Kept& before = kept[view.continues];
            if (!canvas.start(call.channels, view.size, view.size)) return false;
            memcpy(canvas.picture.data, before.memory.data, sizeof(float) * canvas.picture.size());
            canvas.is_mirrored = before.is_mirrored;
            drawing.is_drawn = true;
        }
        const double* parameters = view.parameters + index * view.num_parameters;
        for (int64_t i = 0; i < view.num_instructions; ++i) {
            const double* instruction = view.instructions + i * kFields;
            const int64_t condition = static_cast<int64_t>(instruction[5]);
            if (condition >= 0 && parameters[condition] != instruction[6]) continue;
            if (!run(drawing, instruction, parameters, view.size)) return false;
        }
        if (canvas.picture.height != view.size || canvas.picture.width != view.size) return false;
        if (kept[v].is_wanted) {
            if (!kept[v].memory.reserve(canvas.picture.size())) return false;
            memcpy(kept[v].memory.data, canvas.picture.data, sizeof(float) * canvas.picture.size());
            kept[v].is_mirrored = canvas.is_mirrored;
        }
        if (!write(call, view, index, canvas)) return false;
    }
    return true;
}

}  // namespace

Outcome SSL_CORE_SYMBOL(render_views)(const RenderViews& call) {
    Outcome outcome{Outcome::done, 0};
#pragma omp parallel num_threads(call.threads) if (call.num_images > 1)
    {
        Canvas canvas{};
        Kept* kept = static_cast<Kept*>(calloc(call.num_views, sizeof(Kept)));
        bool is_done = kept != nullptr || call.num_views == 0;
        Outcome problem{Outcome::out_of_memory, 0};
        if (is_done)
            for (int64_t v = 0; v < call.num_views; ++v)
                if (call.views[v].continues >= 0) kept[call.views[v].continues].is_wanted = true;
#pragma omp for schedule(dynamic, 1)
        for (int64_t image = 0; image < call.num_images; ++image)
            is_done = is_done && draw(call, image, canvas, kept, problem);
        if (!is_done)
#pragma omp critical
            outcome = problem;
        if (kept)
            for (int64_t v = 0; v < call.num_views; ++v) free(kept[v].memory.data);
        free(kept);
        canvas.release();
    }
    return outcome;
}
