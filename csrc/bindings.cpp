// The Python module ssl_core._C: addresses and sizes in, nothing checked here; ssl_core.ops does that.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <new>
#include <sstream>
#include <stdexcept>

#include "cpu/dispatch.h"

namespace py = pybind11;
using namespace ssl_core;

namespace {

template <typename T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

const Kernels& kernels(const std::string& isa) {
    for (const InstructionSet& set : instruction_sets())
        if (isa.empty() || set.name == isa) return set.kernels;
    throw std::invalid_argument("this machine cannot run instruction set " + isa);
}

std::vector<std::string> names_of_instruction_sets() {
    std::vector<std::string> names;
    for (const InstructionSet& set : instruction_sets()) names.push_back(set.name);
    return names;
}

void queue_attention(std::uintptr_t query, std::uintptr_t queue, std::uintptr_t inverse_temperature,
                     std::uintptr_t exclude, std::uintptr_t key_bias, std::uintptr_t lse, std::uintptr_t expectation,
                     std::int64_t num_rows, std::int64_t num_keys, std::int64_t dim, std::int64_t query_stride,
                     std::int64_t queue_stride, bool queue_is_bfloat16, bool bounded, int threads,
                     const std::string& isa) {
    const QueueAttention call{pointer<const float>(query),
                              pointer<const void>(queue),
                              pointer<const float>(inverse_temperature),
                              pointer<const std::int64_t>(exclude),
                              pointer<const float>(key_bias),
                              pointer<float>(lse),
                              pointer<float>(expectation),
                              num_rows,
                              num_keys,
                              dim,
                              query_stride,
                              queue_stride,
                              queue_is_bfloat16 ? Dtype::bfloat16 : Dtype::float32,
                              bounded,
                              threads};
    const Kernels& set = kernels(isa);
    const py::gil_scoped_release release;
    if (!set.queue_attention(call)) throw std::bad_alloc();
}

void enqueue(std::uintptr_t queue, std::uintptr_t keys, std::uintptr_t cursor, std::uintptr_t length,
             std::int64_t num_rows, std::int64_t num_keys, std::int64_t dim, std::int64_t queue_stride,
             std::int64_t keys_stride, bool queue_is_bfloat16, int threads, const std::string& isa) {
    const Enqueue call{pointer<void>(queue),
                       pointer<const float>(keys),
                       pointer<std::int64_t>(cursor),
                       pointer<std::int64_t>(length),
                       num_rows,
                       num_keys,
                       dim,
                       queue_stride,
                       keys_stride,
                       queue_is_bfloat16 ? Dtype::bfloat16 : Dtype::float32,
                       threads};
    const Kernels& set = kernels(isa);
    const py::gil_scoped_release release;
    set.enqueue(call);
}

void momentum_update(const std::vector<std::uintptr_t>& targets, const std::vector<std::uintptr_t>& onlines,
                     const std::vector<std::uintptr_t>& shadows, const std::vector<std::int64_t>& sizes,
                     double momentum, int threads, const std::string& isa) {
    const MomentumUpdate call{reinterpret_cast<float* const*>(targets.data()),
                              reinterpret_cast<const float* const*>(onlines.data()),
                              shadows.empty() ? nullptr : reinterpret_cast<std::uint16_t* const*>(shadows.data()),
                              sizes.data(),
                              static_cast<std::int64_t>(sizes.size()),
                              momentum,
                              threads};
    const Kernels& set = kernels(isa);
    const py::gil_scoped_release release;
    set.momentum_update(call);
}

void uniform(std::uint64_t seed, std::uintptr_t streams, std::uintptr_t result, std::int64_t num_streams,
             std::int64_t num_draws, const std::string& isa) {
    const Uniform call{seed, pointer<const std::int64_t>(streams), pointer<double>(result), num_streams, num_draws};
    const Kernels& set = kernels(isa);
    const py::gil_scoped_release release;
    set.uniform(call);
}

// Names in the order of their numbers.
#define SSL_CORE_NAME(name) #name,
const std::vector<std::string> kOpcodes{SSL_CORE_OPCODES(SSL_CORE_NAME)};
const std::vector<std::string> kDistortions{SSL_CORE_DISTORTIONS(SSL_CORE_NAME)};
#undef SSL_CORE_NAME

std::string unknown(const Outcome& outcome) {
    const bool is_opcode = outcome.kind == Outcome::unknown_opcode;
    const std::vector<std::string>& known = is_opcode ? kOpcodes : kDistortions;
    std::ostringstream text;
    text << "no " << (is_opcode ? "opcode" : "distortion") << " of the compiled kernels has number " << outcome.number
         << ": 0 is " << known.front() << " and " << known.size() - 1 << " is " << known.back();
    return text.str();
}

// Of each view: addresses of instructions, parameters and result, numbers of instructions and parameters, size, and the
// view that it continues.
using ViewNumbers = std::array<std::int64_t, 7>;

void render_views(std::uintptr_t pixels, std::uintptr_t layout, const std::vector<ViewNumbers>& views,
                  std::uintptr_t mean, std::uintptr_t std, std::int64_t num_images, std::int64_t channels,
                  int pixel_dtype, int result_dtype, bool channels_last, int threads, const std::string& isa) {
    std::vector<View> table;
    for (const auto& [instructions, parameters, result, num_instructions, num_parameters, size, continues] : views)
        table.push_back({pointer<const double>(instructions), pointer<const double>(parameters), pointer<void>(result),
                         num_instructions, num_parameters, size, continues});
    const RenderViews call{pointer<const void>(pixels),
                           pointer<const std::int64_t>(layout),
                           table.data(),
                           pointer<const float>(mean),
                           pointer<const float>(std),
                           num_images,
                           static_cast<std::int64_t>(table.size()),
                           channels,
                           static_cast<Dtype>(pixel_dtype),
                           static_cast<Dtype>(result_dtype),
                           channels_last,
                           threads};
    const Kernels& set = kernels(isa);
    const py::gil_scoped_release release;
    const Outcome outcome = set.render_views(call);
    if (outcome.kind == Outcome::out_of_memory) throw std::bad_alloc();
    if (outcome.kind != Outcome::done) throw std::invalid_argument(unknown(outcome));
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "Compiled kernels of ssl_core on the CPU; used through ssl_core.ops.";
    module.def("instruction_sets", names_of_instruction_sets);
    module.def("queue_attention", queue_attention);
    module.def("enqueue", enqueue);
    module.def("momentum_update", momentum_update);
    module.def("uniform", uniform);
    module.def("render_views", render_views);
    module.attr("opcodes") = kOpcodes;
    module.attr("distortions") = kDistortions;
#ifdef _OPENMP
    module.attr("openmp") = true;
#else
    module.attr("openmp") = false;
#endif
}
