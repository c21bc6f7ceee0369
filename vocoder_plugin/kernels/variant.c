/* What a caller asks and tells a variant: whether the CPU can run it, its vectors, fields of tensors and parameters. */
#include <string.h>

#include "kernels.h"
#include "params.h"

struct vp_layout vp_layout;

VP_API int32_t vp_vectors(void) { return VP_VECS; }
VP_API int32_t vp_lanes(void) { return VP_LANES; }
VP_API void vp_set_layout(const struct vp_layout *layout) { vp_layout = *layout; }

#define SIZE(s) {#s, sizeof(struct s)}
#define FIELD(s, f) {#s "." #f, offsetof(struct s, f)}
#define VALUE(v) {#v, v}
static const struct {
    const char *name;
    int32_t value;
} known[] = {
    VALUE(VP_NONE), VALUE(VP_SNAKE), VALUE(VP_ELU),
    SIZE(vp_conv1d), FIELD(vp_conv1d, taps), FIELD(vp_conv1d, dilation), FIELD(vp_conv1d, stride),
    FIELD(vp_conv1d, vectors), FIELD(vp_conv1d, block), FIELD(vp_conv1d, together), FIELD(vp_conv1d, weight_bytes),
    FIELD(vp_conv1d, activation), FIELD(vp_conv1d, zeros), FIELD(vp_conv1d, skip_zeros), FIELD(vp_conv1d, skip_first),
    FIELD(vp_conv1d, rate), FIELD(vp_conv1d, delay), FIELD(vp_conv1d, weight), FIELD(vp_conv1d, scale),
    FIELD(vp_conv1d, bias), FIELD(vp_conv1d, chunk), FIELD(vp_conv1d, history), FIELD(vp_conv1d, alpha),
    FIELD(vp_conv1d, inverse), FIELD(vp_conv1d, skip_chunk), FIELD(vp_conv1d, skip_history), FIELD(vp_conv1d, position),
    SIZE(vp_norm), FIELD(vp_norm, epsilon), FIELD(vp_norm, groups), FIELD(vp_norm, mode), FIELD(vp_norm, left),
    FIELD(vp_norm, right), FIELD(vp_norm, taps),
    SIZE(vp_attention), FIELD(vp_attention, scale), FIELD(vp_attention, keys), FIELD(vp_attention, heads),
    SIZE(vp_sliding_attention), FIELD(vp_sliding_attention, heads), FIELD(vp_sliding_attention, window),
    FIELD(vp_sliding_attention, capacity), FIELD(vp_sliding_attention, offset),
    SIZE(vp_lstm), FIELD(vp_lstm, arrived), FIELD(vp_lstm, left),
};

/* Size of a struct, offset of "struct.field" or value of an enum's constant; -1 for other names. */
VP_API int32_t vp_layout_of(const char *name) {
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(known[i].name, name)) return known[i].value;
    return -1;
}

/* Whether this CPU can run the named variant. Part of all, called only in the baseline one. */
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
