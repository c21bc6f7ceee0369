/* The convolution of conv1d.c for one output channel and stride 1: dot products along the input channels. */
#include "conv1d.h"
#include "tile.h"

#define SCRATCH_FLOATS (32 * 1024)

/* Sum of x[tap * tap_step + c] * w[tap * w_step + c]; channels are padded with zeros to whole vectors. */
static float dot(const float *x, size_t tap_step, const float *w, size_t w_step, int taps, int channels) {
    vfloat sum[2] = {{0}, {0}}; /* two chains, as an addition takes several cycles */
    for (int tap = 0; tap < taps; tap++)
        for (int c = 0; c < channels; c += VP_LANES)
            sum[c / VP_LANES % 2] = multiply_add(*(const vfloat *)(x + tap * tap_step + c),
                                                 *(const vfloat *)(w + tap * w_step + c), sum[c / VP_LANES % 2]);
    sum[0] += sum[1];
    for (int half = VP_LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) sum[0][i] += sum[0][i + half];
    return sum[0][0];
}

/* A ggml custom operation: dst [1, rows, batch]; userdata is a struct vp_conv1d. Weights: float [taps][channels]. */
VP_API void vp_conv1d_single(void *dst, int ith, int nth, void *userdata) {
    const struct vp_conv1d *p = userdata;
    const void *chunk = tensor_src(dst, p->chunk), *history = tensor_src(dst, p->history);
    const int channels = (int)tensor_ne(chunk ? chunk : history, 0), padded = whole_vectors(channels);
    const float *weight = source_floats(dst, p->weight), *bias = source_floats(dst, p->bias);
    const float *alpha = p->elu ? &vp_elu : source_floats(dst, p->alpha), *inverse = source_floats(dst, p->inverse);
    const int64_t n_rows = tensor_ne(dst, 1), n_batch = tensor_ne(dst, 2);
    const int64_t row0 = n_rows * ith / nth, row1 = n_rows * (ith + 1) / nth;
    const size_t step = row_step(channels);
    const int span = (p->taps - 1) * p->dilation + 1;
    const int64_t room = SCRATCH_FLOATS / (int64_t)step > span ? SCRATCH_FLOATS / (int64_t)step : span;
    float *x = scratch_get(step * (room + span));
    for (int64_t b = 0; b < n_batch; b++) {
        const struct window in = make_window(history, chunk, p->zeros, b);
        const struct window skip = make_window(tensor_src(dst, p->skip_history), tensor_src(dst, p->skip_chunk), p->skip_zeros, b);
        for (int64_t t = row0; t < row1; t += room) {
            const int64_t n = row1 - t < room ? row1 - t : room;
            pack_rows(x, step, &in, t, n + span - 1, channels, alpha, inverse);
            for (int64_t r = 0; channels % VP_LANES && r < n + span - 1; r++)
                memset(x + r * step + channels, 0, (padded - channels) * sizeof(float));
            for (int64_t i = 0; i < n; i++) {
                const float *s = window_row(&skip, p->skip_first + t + i);
                float *y = (float *)(tensor_data(dst) + b * tensor_nb(dst, 2) + (t + i) * tensor_nb(dst, 1));
                *y = dot(x + i * step, step * p->dilation, weight, padded, p->taps, padded) + bias[0] + (s ? s[0] : 0.0f);
            }
        }
    }
}
