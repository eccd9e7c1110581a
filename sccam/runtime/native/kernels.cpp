// Everything in one piece. It is compiled once for each instruction set, into a library of its own; which of them is
// loaded is decided when the program runs (see __init__.py).
#include "crf.h"
#include "labels.h"
#include "merge.h"
#include "walk.h"

// The best instruction set of this processor: 0 any, 1 AVX2 with FMA, 2 AVX-512 F, BW, DQ, VL.
SCCAM_EXPORT int sccam_instruction_set() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}
