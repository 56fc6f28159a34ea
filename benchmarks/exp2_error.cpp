// The error of the kernels' exponential at every float32 from -126 to 0, against float64, and that of the C library's.
#include "../csrc/cpu/vector.h"

#include <cmath>
#include <cstdio>

struct Error {
    double largest = 0, sum = 0, squares = 0;
    float at = 0;
    void add(float x, double relative) {
        sum += relative;
        squares += relative * relative;
        if (std::fabs(relative) > largest) largest = std::fabs(relative), at = x;
    }
    void print(double count) const {
        printf("%.3e %.3e %.3e %.9g\n", largest, sum / count, std::sqrt(squares / count), at);
    }
};

int main() {
    Error ours, library;
    double count = 0;
    const float last = -126.f;
    uint32_t last_word;
    memcpy(&last_word, &last, 4);
    for (uint32_t word = 0x80000000u; word <= last_word; word += kLanes) {
        Vector x = {};
        for (int lane = 0; lane < kLanes; ++lane) {
            const uint32_t own = word + lane < last_word ? word + lane : last_word;
            float value;
            memcpy(&value, &own, 4);
            x[lane] = value;
        }
        const Vector power = exp2(x);
        for (int lane = 0; lane < kLanes; ++lane) {
            const double exact = std::exp2(static_cast<double>(x[lane]));
            ours.add(x[lane], power[lane] / exact - 1);
            library.add(x[lane], std::exp2(x[lane]) / exact - 1);
        }
        count += kLanes;
    }
    ours.print(count);
    library.print(count);
}
