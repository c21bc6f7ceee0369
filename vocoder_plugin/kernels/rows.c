#include "rows.h"

#include <stdlib.h>

#include "mathvec.h"
#include "params.h"
#include "snake.h"

typedef int16_t vhalf __attribute__((vector_size(2 * VP_LANES), aligned(2)));

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
               const struct activation *activation) {
    const int kind = activation->kind;
    const float *alpha = activation->alpha, *inverse = activation->inverse;
    for (int64_t r = 0; channels == 1 && kind == VP_NONE && r < n; r++) { /* samples */
        const float *row = window_row(w, first + r);
        out[r * step] = row ? *row : 0.0f;
    }
    if (channels == 1 && kind == VP_NONE) return;
    for (int64_t r = 0; r < n; r++, out += step) {
        const float *row = window_row(w, first + r);
        if (!row) {
            memset(out, 0, channels * sizeof(float)); /* snake(0) = elu(0) = 0 */
        } else if (kind == VP_NONE) {
            memcpy(out, row, channels * sizeof(float));
        } else if (kind == VP_ELU) {
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

float quantise_row(int16_t *out, const float *x, int n) {
    vint largest = {0}; /* of magnitudes, whose bits sort as integers */
    int c = 0;
    for (; c + VP_LANES <= n; c += VP_LANES) {
        vint magnitude = *(const vint *)(x + c) & 0x7fffffff, greater = magnitude > largest;
        largest = (magnitude & greater) | (largest & ~greater);
    }
    float most = 0;
    for (; c < n; c++)
        if (fabsf(x[c]) > most) most = fabsf(x[c]);
    for (int i = 0; i < VP_LANES; i++) {
        const int32_t bits = largest[i];
        float value;
        memcpy(&value, &bits, sizeof value);
        if (value > most) most = value;
    }
    const float factor = most > 1e-30f ? INPUT_MAX / most : 0.0f;
    for (c = 0; c < n; c += VP_LANES) { /* adding 1.5 * 2^23 leaves the rounded integer in the low bits */
        const vfloat rounded = *(const vfloat *)(x + c) * factor + 12582912.0f;
        *(vhalf *)(out + c) = __builtin_convertvector((vint)rounded, vhalf);
    }
    return most / INPUT_MAX;
}
