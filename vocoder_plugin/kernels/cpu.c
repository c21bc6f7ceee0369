/* What this CPU can run. Part of every variant, called only in the baseline one. */
#include <string.h>

#include "kernels.h"

VP_API int32_t vp_cpu_supports(const char *variant) {
    if (!strcmp(variant, "baseline")) return 1;
#if defined(__x86_64__) || defined(__i386__)
    __builtin_cpu_init();
    if (!strcmp(variant, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    if (!strcmp(variant, "avx512")) return avx512;
    if (!strcmp(variant, "avx512vnni")) return avx512 && __builtin_cpu_supports("avx512vnni");
#endif
    return 0;
}
