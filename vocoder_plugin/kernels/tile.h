/* What the register tiles share: their arguments, and how their sums reach memory. */
#ifndef VP_TILE_H
#define VP_TILE_H

#include <string.h>

#include "kernels.h"

struct tile_args {
    const void *x;       /* first row of the tile in the scratch buffer, at the block's first channel */
    size_t row_step;     /* values between the inputs of neighbouring outputs */
    size_t tap_step;     /* values between the inputs of neighbouring taps */
    const void *weight;  /* packed: floats [tap][channel][panel], or integers [channel / 2][panel][2] of one tap */
    int vectors; /* of the panel: VP_VECS or 2 */
    int taps, channels;
    const float *x_scale, *weight_scale; /* integers: of each row, `scale_step` apart, and of each output */
    size_t scale_step;
    const float *bias; /* first block: add the bias; else what is in y */
    float *y;
    size_t y_step;
    int width; /* output channels of the panel that exist */
    const struct window *skip;
    int64_t skip_row;  /* last block: add these rows of the skip window */
    int skip_channel;
};

VP_INLINE void load_part(vfloat *v, const float *p, int width, const int vectors) {
    if (width == vectors * VP_LANES) {
        for (int k = 0; k < vectors; k++) v[k] = *(const vfloat *)(p + k * VP_LANES);
    } else {
        float part[VP_PANEL] = {0};
        memcpy(part, p, width * sizeof(float));
        for (int k = 0; k < vectors; k++) v[k] = *(vfloat *)(part + k * VP_LANES);
    }
}

VP_INLINE void store_part(float *p, const vfloat *v, int width, const int vectors) {
    if (width == vectors * VP_LANES) {
        for (int k = 0; k < vectors; k++) *(vfloat *)(p + k * VP_LANES) = v[k];
    } else {
        float part[VP_PANEL];
        for (int k = 0; k < vectors; k++) *(vfloat *)(part + k * VP_LANES) = v[k];
        memcpy(p, part, width * sizeof(float));
    }
}

/* Add up the results of a block with what came before, and after the last block with the skip. */
VP_INLINE void finish_row(const struct tile_args *a, int i, vfloat *sum, const int vectors) {
    vfloat other[VP_VECS];
    load_part(other, a->bias ? a->bias : a->y + i * a->y_step, a->width, vectors);
    for (int k = 0; k < vectors; k++) sum[k] += other[k];
    const float *s = a->skip ? window_row(a->skip, a->skip_row + i) : NULL;
    if (s) {
        load_part(other, s + a->skip_channel, a->width, vectors);
        for (int k = 0; k < vectors; k++) sum[k] += other[k];
    }
    store_part(a->y + i * a->y_step, sum, a->width, vectors);
}

/* TILE(a, rows, vectors) with constants, so that sums stay in registers. */
#define VP_CASE(TILE, rows, vectors) \
    case rows: \
        TILE(a, rows, vectors); \
        break;
#define VP_CASES_4(TILE, v) VP_CASE(TILE, 1, v) VP_CASE(TILE, 2, v) VP_CASE(TILE, 3, v) VP_CASE(TILE, 4, v)
#define VP_CASES_6(TILE, v) VP_CASES_4(TILE, v) VP_CASE(TILE, 5, v) VP_CASE(TILE, 6, v)
#define VP_CASES_8(TILE, v) VP_CASES_6(TILE, v) VP_CASE(TILE, 7, v) VP_CASE(TILE, 8, v)
#define VP_CASES_12(TILE, v) \
    VP_CASES_8(TILE, v) VP_CASE(TILE, 9, v) VP_CASE(TILE, 10, v) VP_CASE(TILE, 11, v) VP_CASE(TILE, 12, v)
#define VP_JOIN(a, b) a##b
#define VP_CASES(most) VP_JOIN(VP_CASES_, most)
#if VP_VECS == 2
#define VP_SWITCH_TILE(TILE, rows) \
    switch (rows) { VP_CASES(VP_ROWS)(TILE, 2) }
#else
#define VP_SWITCH_TILE(TILE, rows) \
    if (a->vectors == 2) { \
        switch (rows) { VP_CASES(VP_TALL_ROWS)(TILE, 2) } \
    } else { \
        switch (rows) { VP_CASES(VP_ROWS)(TILE, VP_VECS) } \
    }
#endif

VP_INLINE int tile_height(int vectors) { return vectors == 2 ? VP_TALL_ROWS : VP_ROWS; }

#endif
