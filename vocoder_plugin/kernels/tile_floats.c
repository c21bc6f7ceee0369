/* The register tile for floats. */
#include "tile.h"

VP_INLINE void tile(const struct tile_args *a, const int rows, const int vectors) {
    vfloat acc[VP_TALL_ROWS][VP_VECS];
    for (int i = 0; i < rows; i++)
        for (int k = 0; k < vectors; k++) acc[i][k] = (vfloat){0};

    const float *w = a->weight;
    const size_t step = a->row_step;
    for (int tap = 0; tap < a->taps; tap++) {
        /* every third row has a pointer, the two after it an index: 3 or 4 address registers for 8 or 12 rows */
        const float *row[(VP_TALL_ROWS + 2) / 3];
        for (int i = 0; i < rows; i += 3) row[i / 3] = (const float *)a->x + tap * a->tap_step + i * step;
#pragma GCC unroll 4
        for (int c = 0; c < a->channels; c++, w += vectors * VP_LANES) {
            vfloat wv[VP_VECS];
            for (int k = 0; k < vectors; k++) wv[k] = *(const vfloat *)(w + k * VP_LANES);
#pragma GCC unroll 16
            for (int i = 0; i < rows; i++) {
                const vfloat x = splat(row[i / 3][(i % 3) * step + c]);
                for (int k = 0; k < vectors; k++) acc[i][k] = multiply_add(wv[k], x, acc[i][k]);
            }
        }
    }
    for (int i = 0; i < rows; i++) finish_row(a, i, acc[i], vectors);
}

void tile_float(const struct tile_args *a, int rows) { VP_SWITCH_TILE(tile, rows) }
