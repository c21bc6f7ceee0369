/* The convolution of conv1d.c for kernel 7 and stride 1, with 8 products in place of 14.
 *
 * Minimal filtering F(2,7) (Winograd 1980; Lavin and Gray 2016, arXiv:1509.09308): two outputs that lie one
 * dilation apart, y0 and y1, need inputs d0 … d7. With B^T d and G w taken at the points 0, ±1, ±2, ±1/2 and
 * infinity, their products m0 … m7 give y0 = m0 + m1 + … + m6 and y1 = (m1 - m2) + 2 (m3 - m4) + (m5 - m6) / 2 + m7.
 * Products are summed over input channels before they are combined: eight matrix products.
 *
 * Which outputs make a pair depends on their position in the stream, not in the chunk, and y0 does not touch
 * d7, nor y1 d0, so samples do not depend on how a stream is cut: an output whose partner lies outside the
 * chunk is computed by the same operations.
 */
#include "conv1d.h"
#include "tile.h"

#define POINTS 8
#define TAPS 7
#define SCRATCH_FLOATS (128 * 1024) /* target size of the transformed inputs */

/* B^T d for rows of inputs `step` floats apart; point p goes to v + p * plane. */
static void transform(float *v, size_t plane, const float *x, size_t step, int channels) {
    for (int c = 0; c < channels; c += VP_LANES, x += VP_LANES, v += VP_LANES) {
        vfloat d[POINTS], even, odd;
        for (int i = 0; i < POINTS; i++) d[i] = *(const vfloat *)(x + i * step);
        *(vfloat *)v = multiply_add(d[2] - d[4], splat(5.25f), d[6] - d[0]);
        even = multiply_add(d[4], splat(-4.25f), d[6] + d[2]);
        odd = multiply_add(d[3], splat(-4.25f), d[5] + d[1]);
        *(vfloat *)(v + 1 * plane) = even + odd;
        *(vfloat *)(v + 2 * plane) = even - odd;
        even = multiply_add(d[2], splat(0.25f), multiply_add(d[4], splat(-1.25f), d[6]));
        odd = multiply_add(d[1], splat(0.5f), multiply_add(d[3], splat(-2.5f), 2.0f * d[5]));
        *(vfloat *)(v + 3 * plane) = even + odd;
        *(vfloat *)(v + 4 * plane) = even - odd;
        even = multiply_add(d[2], splat(4.0f), multiply_add(d[4], splat(-5.0f), d[6]));
        odd = multiply_add(d[1], splat(2.0f), multiply_add(d[3], splat(-2.5f), 0.5f * d[5]));
        *(vfloat *)(v + 5 * plane) = even + odd;
        *(vfloat *)(v + 6 * plane) = even - odd;
        *(vfloat *)(v + 7 * plane) = multiply_add(d[3] - d[5], splat(5.25f), d[7] - d[1]);
    }
}

struct output { /* where the sums of a panel go, in one batch entry */
    const float *bias; /* VP_PANEL values */
    struct window skip;
    int64_t skip_first, rows;
    int channel, width;
    char *y;
    size_t y_step;
};

VP_INLINE void store(const struct output *o, int64_t t, vfloat *sum, const int vectors) {
    const float *s = window_row(&o->skip, o->skip_first + t);
    if (s) {
        vfloat skip[VP_VECS];
        load_part(skip, s + o->channel, o->width, vectors);
        for (int k = 0; k < vectors; k++) sum[k] += skip[k];
    }
    store_part((float *)(o->y + t * o->y_step) + o->channel, sum, o->width, vectors);
}

/* m: the eight sums of a pair, `plane` floats apart. */
VP_INLINE void combine(const struct output *o, const float *m, size_t plane, int64_t t, int dilation, const int vectors) {
    vfloat y0[VP_VECS], y1[VP_VECS];
    for (int k = 0; k < vectors; k++) {
        vfloat s[POINTS], bias = *(const vfloat *)(o->bias + k * VP_LANES);
        for (int p = 0; p < POINTS; p++) s[p] = *(const vfloat *)(m + p * plane + k * VP_LANES);
        y0[k] = (s[0] + (s[1] + s[2])) + ((s[3] + s[4]) + (s[5] + s[6])) + bias;
        y1[k] = ((s[1] - s[2]) + 2.0f * (s[3] - s[4])) + (0.5f * (s[5] - s[6]) + s[7]) + bias;
    }
    if (t >= 0) store(o, t, y0, vectors);
    if (t + dilation < o->rows) store(o, t + dilation, y1, vectors);
}

struct pair {
    int64_t first; /* the row of y0, negative where only y1 exists */
    int64_t batch;
};

/* A ggml custom operation: dst [out_channels, rows, batch]; userdata is a struct vp_conv1d. */
VP_API void vp_conv1d_winograd(void *dst, int ith, int nth, void *userdata) {
    const struct vp_conv1d *p = userdata;
    const void *chunk = tensor_src(dst, p->chunk), *history = tensor_src(dst, p->history);
    const int32_t *position = (const int32_t *)tensor_data(tensor_src(dst, p->position));
    const int channels = (int)tensor_ne(chunk ? chunk : history, 0), outputs = (int)tensor_ne(dst, 0);
    const int64_t n_rows = tensor_ne(dst, 1), n_batch = tensor_ne(dst, 2);
    const int panel_outputs = p->vectors * VP_LANES, panels = (outputs + panel_outputs - 1) / panel_outputs;
    const int height = tile_height(p->vectors), d = p->dilation;
    const char *weight = tensor_data(tensor_src(dst, p->weight));
    const float *scale = source_floats(dst, p->scale), *bias = source_floats(dst, p->bias);
    const float *alpha = p->elu ? &vp_elu : source_floats(dst, p->alpha), *inverse = source_floats(dst, p->inverse);
    const int integers = p->weight_bytes < 4;
    const size_t step = row_step(channels), x_bytes = integers ? sizeof(int16_t) : sizeof(float);
    const size_t point_weights = (size_t)packed_channels(channels, integers) * panel_outputs;

    /* A group is the 2 d outputs of d pairs. Threads share groups, or panels where there are few. */
    const int64_t most_groups = (n_rows + 2 * d - 1) / (2 * d) + 1;
    const int by_panel = most_groups * d < 4 * height * nth;
    const int panel0 = by_panel ? panels * ith / nth : 0, panel1 = by_panel ? panels * (ith + 1) / nth : panels;
    if (panel0 >= panel1) return;

    int64_t room = SCRATCH_FLOATS / (int64_t)(step * POINTS) / d; /* groups transformed at once */
    if (room < (2 * height + d - 1) / d) room = (2 * height + d - 1) / d;
    if (room > most_groups * n_batch) room = most_groups * n_batch;
    const int64_t most = room * d, x_rows = room * 2 * d + (TAPS - 1) * d;
    const size_t pair_floats = sizeof(struct pair) / sizeof(float);
    float *x = scratch_get(step * x_rows + (step + VP_PANEL + 1) * POINTS * most + step * POINTS + VP_PANEL + most * pair_floats);
    float *v = x + step * x_rows, *m = v + step * POINTS * most, *scales = m + VP_PANEL * POINTS * most;
    float *values = scales + POINTS * most, *zero = values + step * POINTS;
    struct pair *pairs = (struct pair *)(zero + VP_PANEL);
    memset(zero, 0, VP_PANEL * sizeof(float));

    int64_t b = 0, next = -1, packed = 0; /* batch entry, its next group (-1: the first), groups in x before it */
    while (b < n_batch) {
        /* Transform as many groups as fit, of as many batch entries, so that weights are read once for all. */
        int64_t count = 0;
        for (int64_t used = 0; b < n_batch && used < room;) {
            const int64_t start = (int64_t)position[b] * p->rate - p->delay;
            const int64_t phase = (start % (2 * d) + 2 * d) % (2 * d), groups = (n_rows + phase + 2 * d - 1) / (2 * d);
            const int64_t group0 = by_panel ? 0 : groups * ith / nth, group1 = by_panel ? groups : groups * (ith + 1) / nth;
            const int64_t g = next < 0 ? group0 : next, n = group1 - g < room - used ? group1 - g : room - used;
            const int64_t base = g * 2 * d - phase, kept = next < 0 ? 0 : (TAPS - 1) * d; /* rows packed before */
            const struct window in = make_window(history, chunk, p->zeros, b);
            if (kept) memmove(x, x + step * packed * 2 * d, kept * step * sizeof(float));
            if (n > 0)
                pack_rows(x + kept * step, step, &in, base + kept, n * 2 * d + (TAPS - 1) * d - kept, channels, alpha, inverse);
            for (int64_t i = 0; i < n * d; i++) {
                const int64_t t = base + i / d * 2 * d + i % d;
                const int has_y0 = t >= 0 && t < n_rows, has_y1 = t + d >= 0 && t + d < n_rows;
                if (!has_y0 && !has_y1) continue;
                const float *inputs = x + (t - base) * step;
                if (integers) {
                    transform(values, step, inputs, step * d, channels);
                    for (int point = 0; point < POINTS; point++) {
                        const int64_t row = point * most + count;
                        scales[row] = quantise_row((int16_t *)v + row * step, values + point * step, channels);
                    }
                } else {
                    transform(v + count * step, step * most, inputs, step * d, channels);
                }
                pairs[count++] = (struct pair){.first = t, .batch = b};
            }
            used += n, packed = n, next = g + n;
            if (next >= group1) b++, next = -1;
        }
        for (int panel = panel0; panel < panel1; panel++) {
            for (int point = 0; point < POINTS; point++) {
                const size_t part = (size_t)panel * POINTS + point;
                const char *w = weight + part * point_weights * p->weight_bytes;
                for (int c0 = 0; c0 < channels; c0 += p->block) {
                    const int block = channels - c0 < p->block ? channels - c0 : p->block;
                    struct tile_args a = {
                        .row_step = step, .weight = w, .vectors = p->vectors, .taps = 1, .channels = block, .bias = c0 ? NULL : zero,
                        .y_step = VP_PANEL, .width = panel_outputs, .weight_scale = scale + part * panel_outputs, .scale_step = 1,
                    };
                    for (int64_t r = 0; r < count; r += height) {
                        a.x = (char *)v + ((point * most + r) * step + c0) * x_bytes;
                        a.x_scale = scales + point * most + r;
                        a.y = m + (point * most + r) * VP_PANEL;
                        tile_rows(&a, count - r < height ? (int)(count - r) : height, p->weight_bytes);
                    }
                    w += (size_t)packed_channels(block, integers) * panel_outputs * p->weight_bytes;
                }
            }
            float panel_bias[VP_PANEL] = {0};
            const int first_output = panel * panel_outputs;
            struct output o = {
                .bias = panel_bias, .skip_first = p->skip_first, .rows = n_rows, .channel = first_output,
                .width = outputs - first_output < panel_outputs ? outputs - first_output : panel_outputs,
                .y_step = tensor_nb(dst, 1),
            };
            if (bias) memcpy(panel_bias, bias + o.channel, o.width * sizeof(float));
            for (int64_t i = 0; i < count; i++) {
                if (i == 0 || pairs[i].batch != pairs[i - 1].batch) {
                    const int64_t entry = pairs[i].batch;
                    o.y = tensor_data(dst) + entry * tensor_nb(dst, 2);
                    o.skip = make_window(tensor_src(dst, p->skip_history), tensor_src(dst, p->skip_chunk), p->skip_zeros, entry);
                }
                if (p->vectors == 2)
                    combine(&o, m + i * VP_PANEL, VP_PANEL * most, pairs[i].first, d, 2);
                else
                    combine(&o, m + i * VP_PANEL, VP_PANEL * most, pairs[i].first, d, VP_VECS);
            }
        }
    }
}
