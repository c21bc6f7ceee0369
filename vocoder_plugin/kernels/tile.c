#include "tile.h"

#include <stdlib.h>

#include "mathvec.h"
#include "snake.h"

const float vp_elu = 1.0f;

static _Thread_local struct {
    float *data;
    size_t floats;
} scratch;

#if !defined(_WIN32) /* free it when the thread ends */
#include <pthread.h>
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static void make_key(void) {
    if (pthread_key_create(&key, free)) abort();
}
static void freed_at_exit(void *memory) {
    pthread_once(&once, make_key);
    pthread_setspecific(key, memory);
}
#else
static void freed_at_exit(void *memory) { (void)memory; } /* ggml keeps its threads there */
#endif

float *scratch_get(size_t floats) {
    if (scratch.floats < floats) {
        free(scratch.data);
        scratch.data = malloc(floats * sizeof(float));
        scratch.floats = scratch.data ? floats : 0;
        if (!scratch.data) abort(); /* as ggml does when it is out of memory */
        freed_at_exit(scratch.data);
    }
    return scratch.data;
}

void pack_rows(float *out, size_t step, const struct window *w, int64_t first, int64_t n, int channels,
               const float *alpha, const float *inverse) {
    for (int64_t r = 0; channels == 1 && !alpha && r < n; r++) { /* samples */
        const float *row = window_row(w, first + r);
        out[r * step] = row ? *row : 0.0f;
    }
    if (channels == 1 && !alpha) return;
    for (int64_t r = 0; r < n; r++, out += step) {
        const float *row = window_row(w, first + r);
        if (!row) {
            memset(out, 0, channels * sizeof(float)); /* snake(0) = elu(0) = 0 */
        } else if (!alpha) {
            memcpy(out, row, channels * sizeof(float));
        } else if (alpha == &vp_elu) {
            for (int c = 0; c < channels; c += VP_LANES)
                store_some(out + c, elu_lanes(load_some(row + c, channels - c)), channels - c);
        } else {
            int c = 0;
            for (; c + VP_LANES <= channels; c += VP_LANES)
                *(vfloat *)(out + c) =
                    snake(*(const vfloat *)(row + c), *(const vfloat *)(alpha + c), *(const vfloat *)(inverse + c));
            if (c < channels) { /* the last, partial vector */
                float part[3][VP_LANES] = {{0}};
                size_t bytes = (channels - c) * sizeof(float);
                memcpy(part[0], row + c, bytes);
                memcpy(part[1], alpha + c, bytes);
                memcpy(part[2], inverse + c, bytes);
                vfloat y = snake(*(vfloat *)part[0], *(vfloat *)part[1], *(vfloat *)part[2]);
                memcpy(out + c, &y, bytes);
            }
        }
    }
}

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
