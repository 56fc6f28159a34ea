#pragma once

#include <string>
#include <vector>

#include "../ssl_core.h"

namespace ssl_core {

struct InstructionSet {
    std::string name;
    Kernels kernels;
};

// Those that this machine can run, widest first; the last is always there.
const std::vector<InstructionSet>& instruction_sets();

}  // namespace ssl_core
