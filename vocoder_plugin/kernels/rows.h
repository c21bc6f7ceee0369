/* Rows of a window on their way into products: packed into scratch memory, activated, made integers. */
#ifndef VP_ROWS_H
#define VP_ROWS_H

#include "kernels.h"

#define ROW_PAD 16 /* floats between rows, so that rows do not fall into the same cache sets */
#define INPUT_MAX 8190 /* of the integers that rows become */

struct activation {
    int kind; /* VP_NONE, VP_SNAKE or VP_ELU */
    const float *alpha, *inverse; /* of Snake */
};

/* Memory of this thread, kept from call to call; its content is not. */
float *scratch_get(size_t floats);

/* Copy rows [first, first + n) of the window, the activation applied, into rows of `step` floats. */
void pack_rows(float *out, size_t step, const struct window *w, int64_t first, int64_t n, int channels,
               const struct activation *activation);

/* Integers and their scale (largest magnitude / INPUT_MAX) for n floats; out is filled up to a multiple of VP_LANES. */
float quantise_row(int16_t *out, const float *x, int n);

VP_INLINE size_t row_step(int channels) { return (channels + ROW_PAD - 1) / ROW_PAD * ROW_PAD + ROW_PAD; }

VP_INLINE int whole_vectors(int channels) { return (channels + VP_LANES - 1) / VP_LANES * VP_LANES; }

/* Channels that the packed weights of a block have: integers come in pairs. */
VP_INLINE int packed_channels(int channels, int integers) { return integers ? (channels + 1) / 2 * 2 : channels; }

#endif
