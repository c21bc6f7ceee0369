/* What the convolutions share: scratch memory, rows with Snake applied, and the register tile. */
#ifndef VP_TILE_H
#define VP_TILE_H

#include <string.h>

#include "kernels.h"

#define ROW_PAD 16 /* floats between rows, so that rows do not fall into the same cache sets */

/* Memory of this thread, kept from call to call; its content is not. */
float *scratch_get(size_t floats);

/* Copy rows [first, first + n) of the window, Snake applied (alpha NULL: none), into rows of `step` floats. */
void pack_rows(float *out, size_t step, const struct window *w, int64_t first, int64_t n, int channels,
               const float *alpha, const float *inverse);

struct tile_args {
    const float *x;      /* first row of the tile in the scratch buffer, at the block's first channel */
    size_t row_step;     /* floats between the inputs of neighbouring outputs */
    size_t tap_step;     /* floats between the inputs of neighbouring taps */
    const float *weight; /* packed: [tap][channel][VP_PANEL] */
    int taps, channels;
    const float *bias; /* first block: add the bias; else what is in y */
    float *y;
    size_t y_step;
    int width; /* output channels of the panel that exist, 1..VP_PANEL */
    const struct window *skip;
    int64_t skip_row;  /* last block: add these rows of the skip window */
    int skip_channel;
};

VP_INLINE void load_part(vfloat *v, const float *p, int width) {
    if (width == VP_PANEL) {
        for (int k = 0; k < VP_VECS; k++) v[k] = *(const vfloat *)(p + k * VP_LANES);
    } else {
        float part[VP_PANEL] = {0};
        memcpy(part, p, width * sizeof(float));
        for (int k = 0; k < VP_VECS; k++) v[k] = *(vfloat *)(part + k * VP_LANES);
    }
}

VP_INLINE void store_part(float *p, const vfloat *v, int width) {
    if (width == VP_PANEL) {
        for (int k = 0; k < VP_VECS; k++) *(vfloat *)(p + k * VP_LANES) = v[k];
    } else {
        float part[VP_PANEL];
        for (int k = 0; k < VP_VECS; k++) *(vfloat *)(part + k * VP_LANES) = v[k];
        memcpy(p, part, width * sizeof(float));
    }
}

/* Products of `rows` rows (1 to VP_ROWS) with one panel of weights. */
void tile_rows(const struct tile_args *a, int rows);

VP_INLINE size_t row_step(int channels) { return (channels + ROW_PAD - 1) / ROW_PAD * ROW_PAD + ROW_PAD; }

VP_INLINE const float *source_floats(const void *dst, int index) {
    const void *t = tensor_src(dst, index);
    return t ? (const float *)tensor_data(t) : NULL;
}

#endif
