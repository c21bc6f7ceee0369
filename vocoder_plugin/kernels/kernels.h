/* Shared by all kernels: vector width, how ggml's tensors are read, how a window of rows is addressed.
 *
 * One source, compiled once per instruction set:
 *   VP_LANES  floats in a vector register
 *   VP_ROWS   output rows (time steps) of a register tile
 *   VP_VECS   vectors of output channels of a register tile; VP_ROWS * VP_VECS accumulators
 * Convolutions have a second tile of 2 vectors where VP_VECS is 3, for outputs that fill 3 badly.
 */
#ifndef VP_KERNELS_H
#define VP_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#ifndef VP_LANES
#define VP_LANES 4
#define VP_ROWS 4
#define VP_VECS 2
#endif

#define VP_PANEL (VP_LANES * VP_VECS) /* output channels computed together; weights are packed in panels */
#if VP_VECS == 3
#define VP_TALL_ROWS 12 /* rows of the tile of 2 vectors */
#else
#define VP_TALL_ROWS VP_ROWS
#endif

#if defined(_WIN32)
#define VP_API __declspec(dllexport)
#else
#define VP_API __attribute__((visibility("default")))
#endif

typedef float vfloat __attribute__((vector_size(4 * VP_LANES), aligned(4)));
typedef int32_t vint __attribute__((vector_size(4 * VP_LANES), aligned(4)));

#define VP_INLINE static inline __attribute__((always_inline))

VP_INLINE vfloat splat(float x) { return x - (vfloat){0}; }

/* a * b + c, rounded once where the processor can. Contraction by the compiler is off (setup.py): it would
 * round the same sum in different ways in different copies of a loop, and results must not depend on which ran. */
VP_INLINE vfloat multiply_add(vfloat a, vfloat b, vfloat c) {
#if defined(__AVX512F__) && VP_LANES == 16
    return (vfloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && VP_LANES == 8
    return (vfloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_FMA) && VP_LANES == 4
    return (vfloat)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/* Byte offsets of the fields of ggml_tensor, told by the bindings: no header of ggml is used. */
struct vp_layout {
    int64_t data, ne, nb, src;
};
extern struct vp_layout vp_layout;

VP_INLINE char *tensor_data(const void *t) { return *(char **)((const char *)t + vp_layout.data); }
VP_INLINE int64_t tensor_ne(const void *t, int i) { return ((const int64_t *)((const char *)t + vp_layout.ne))[i]; }
VP_INLINE size_t tensor_nb(const void *t, int i) { return ((const size_t *)((const char *)t + vp_layout.nb))[i]; }
VP_INLINE const void *tensor_src(const void *t, int i) {
    return i < 0 ? NULL : ((void *const *)((const char *)t + vp_layout.src))[i];
}
VP_INLINE float *tensor_row(const void *t, int64_t r) { return (float *)(tensor_data(t) + r * tensor_nb(t, 1)); }
VP_INLINE const float *source_floats(const void *t, int i) { /* NULL where there is no such source */
    const void *source = tensor_src(t, i);
    return source ? (const float *)tensor_data(source) : NULL;
}

struct span {
    const char *first;
    size_t step; /* bytes from row to row */
    int64_t rows;
};

VP_INLINE struct span span_of(const void *t, int64_t batch) {
    if (!t) return (struct span){0};
    return (struct span){tensor_data(t) + batch * tensor_nb(t, 2), tensor_nb(t, 1), tensor_ne(t, 1)};
}

/* Rows of channels seen through a window: `zeros` rows of padding, then the history that an earlier
 * chunk left, then this chunk; rows beyond are padding again. Nothing is copied to join them. */
struct window {
    int64_t zeros;
    struct span history, chunk;
};

/* The row, or NULL for a row of zeros. */
VP_INLINE const float *window_row(const struct window *w, int64_t r) {
    r -= w->zeros;
    if (r < 0) return NULL;
    if (r < w->history.rows) return (const float *)(w->history.first + r * w->history.step);
    r -= w->history.rows;
    return r < w->chunk.rows ? (const float *)(w->chunk.first + r * w->chunk.step) : NULL;
}

#endif
