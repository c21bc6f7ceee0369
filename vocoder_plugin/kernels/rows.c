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
    for (int64_t r = 0; r < n; r++, out += step) {
        const float *row = window_row(w, first + r);
        if (channels == 1 && kind == VP_NONE) { /* samples */
            *out = row ? *row : 0.0f;
        } else if (!row) {
            memset(out, 0, channels * sizeof(float)); /* snake(0) = elu(0) = 0 */
        } else if (kind == VP_NONE) {
            memcpy(out, row, channels * sizeof(float));
        } else if (kind == VP_ELU) {
            for (int c = 0; c < channels; c += VP_LANES)
                store_some(out + c, elu_lanes(load_some(row + c, channels - c)), channels - c);
        } else {
            for (int c = 0; c < channels; c += VP_LANES) {
                const int left = channels - c;
                const vfloat a = load_some(alpha + c, left), b = load_some(inverse + c, left);
                store_some(out + c, snake(load_some(row + c, left), a, b), left);
            }
        }
    }
}

float quantise_row(int16_t *out, const float *x, int n) {
    vfloat largest = {0};
    for (int c = 0; c < n; c += VP_LANES) largest = most(magnitude(load_some(x + c, n - c)), largest);
    const float top = greatest_lane(largest), factor = top > 1e-30f ? INPUT_MAX / top : 0.0f;
    for (int c = 0; c < n; c += VP_LANES) { /* adding 1.5 * 2^23 leaves the rounded integer in the low bits */
        const vfloat rounded = *(const vfloat *)(x + c) * factor + 12582912.0f;
        *(vhalf *)(out + c) = __builtin_convertvector((vint)rounded, vhalf);
    }
    return top / INPUT_MAX;
}
