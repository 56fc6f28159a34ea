// The rate of fused multiply-adds that the processor reaches when nothing else is to be done: the limit of any kernel.
#include "../csrc/cpu/vector.h"

#include <omp.h>

#include <cstdio>
#include <cstdlib>

int main(int, char** arguments) {
    const int threads = atoi(arguments[1]);
    const long steps = 20000000;
    double best = 0;
    for (int repeat = 0; repeat < 7; ++repeat) {
        float sum = 0;
        const double start = omp_get_wtime();
#pragma omp parallel num_threads(threads) reduction(+ : sum)
        {
            // Twelve independent chains hide the latency; different starts keep the compiler from merging them.
            const Vector first = broadcast(static_cast<float>(threads));
            Vector a = first, b = first + 1.f, c = first + 2.f, d = first + 3.f, e = first + 4.f, f = first + 5.f;
            Vector g = first + 6.f, h = first + 7.f, i = first + 8.f, j = first + 9.f, k = first + 10.f, l = first + 11.f;
            const Vector factor = broadcast(.999f), term = broadcast(.001f);
            for (long step = 0; step < steps; ++step) {
                a = a * factor + term, b = b * factor + term, c = c * factor + term, d = d * factor + term;
                e = e * factor + term, f = f * factor + term, g = g * factor + term, h = h * factor + term;
                i = i * factor + term, j = j * factor + term, k = k * factor + term, l = l * factor + term;
            }
            const Vector all = a + b + c + d + e + f + g + h + i + j + k + l;
            for (int lane = 0; lane < kLanes; ++lane) sum += all[lane];
        }
        const double rate = 2. * 12 * kLanes * steps * threads / (omp_get_wtime() - start);
        if (rate > best && sum > 0) best = rate;
    }
    printf("%.4g\n", best);
}
