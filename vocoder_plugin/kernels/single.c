/* The convolution of conv1d.c for one output channel and stride 1: dot products along the input channels. */
#include <string.h>

#include "conv1d.h"

#define SCRATCH_FLOATS (32 * 1024)

/* Sum of x[tap * tap_step + c] * w[tap * w_step + c]; channels are padded with zeros to whole vectors. */
static float dot(const float *x, size_t tap_step, const float *w, size_t w_step, int taps, int channels) {
    vfloat even = {0}, odd = {0}; /* two chains, as an addition takes several cycles */
    for (int tap = 0; tap < taps; tap++, x += tap_step, w += w_step) {
        int c = 0;
        for (; c + 2 * VP_LANES <= channels; c += 2 * VP_LANES) {
            even = multiply_add(*(const vfloat *)(x + c), *(const vfloat *)(w + c), even);
            odd = multiply_add(*(const vfloat *)(x + c + VP_LANES), *(const vfloat *)(w + c + VP_LANES), odd);
        }
        if (c < channels) even = multiply_add(*(const vfloat *)(x + c), *(const vfloat *)(w + c), even);
    }
    even += odd;
    for (int half = VP_LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) even[i] += even[i + half];
    return even[0];
}

/* A ggml custom operation: dst [1, rows, batch]; userdata is a struct vp_conv1d. Weights: float [taps][channels]. */
VP_API void vp_conv1d_single(void *dst, int ith, int nth, void *userdata) {
    const struct conv c = read_conv(dst, userdata);
    const int padded = whole_vectors(c.channels), taps = c.p->taps, dilation = c.p->dilation;
    const int64_t row0 = c.rows * ith / nth, row1 = c.rows * (ith + 1) / nth;
    const size_t step = row_step(c.channels);
    const int span = (taps - 1) * dilation + 1;
    const int64_t room = SCRATCH_FLOATS / (int64_t)step > span ? SCRATCH_FLOATS / (int64_t)step : span;
    const float *weight = (const float *)c.weight;
    float *x = scratch_get(step * (room + span));
    for (int64_t b = 0; b < c.batch; b++) {
        const struct window in = input_window(&c, b), skip = skip_window(&c, b);
        for (int64_t t = row0; t < row1; t += room) {
            const int64_t n = row1 - t < room ? row1 - t : room;
            pack_rows(x, step, &in, t, n + span - 1, c.channels, &c.activation);
            for (int64_t r = 0; c.channels % VP_LANES && r < n + span - 1; r++)
                memset(x + r * step + c.channels, 0, (padded - c.channels) * sizeof(float));
            for (int64_t i = 0; i < n; i++) {
                const float *s = window_row(&skip, c.p->skip_first + t + i);
                float *y = (float *)(tensor_data(dst) + b * tensor_nb(dst, 2) + (t + i) * tensor_nb(dst, 1));
                *y = dot(x + i * step, step * dilation, weight, padded, taps, padded) + c.bias[0] + (s ? s[0] : 0.0f);
            }
        }
    }
}
