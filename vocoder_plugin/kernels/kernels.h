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

/* Rows of channels seen through a window: `zeros` rows of padding, then the history that an earlier
 * chunk left, then this chunk; rows beyond are padding again. Nothing is copied to join them. */
struct window {
    const char *history, *chunk;
    size_t history_step, chunk_step; /* bytes from row to row */
    int64_t zeros, n_history, n_chunk;
};

VP_INLINE struct window make_window(const void *history, const void *chunk, int64_t zeros, int64_t batch) {
    struct window w = {0};
    w.zeros = zeros;
    if (history) {
        w.history = tensor_data(history) + batch * tensor_nb(history, 2);
        w.history_step = tensor_nb(history, 1);
        w.n_history = tensor_ne(history, 1);
    }
    if (chunk) {
        w.chunk = tensor_data(chunk) + batch * tensor_nb(chunk, 2);
        w.chunk_step = tensor_nb(chunk, 1);
        w.n_chunk = tensor_ne(chunk, 1);
    }
    return w;
}

/* The row, or NULL for a row of zeros. */
VP_INLINE const float *window_row(const struct window *w, int64_t r) {
    r -= w->zeros;
    if (r < 0) return NULL;
    if (r < w->n_history) return (const float *)(w->history + r * w->history_step);
    r -= w->n_history;
    if (r < w->n_chunk) return (const float *)(w->chunk + r * w->chunk_step);
    return NULL;
}

#endif
