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
#include "products.h"

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

/* Of one thread. Each part is a whole number of 8 floats, so that `pairs`, of 8 bytes a field, are aligned too. */
struct scratch {
    float *x;           /* rows of inputs, activated: [2 room d + (TAPS - 1) d][step] */
    float *transformed; /* points of pairs: [POINTS][most][step], or as many integers of 16 bits */
    float *sums;        /* [POINTS][most][VP_PANEL] */
    float *scales;      /* integers: of each row of `transformed` */
    float *values;      /* integers: the points of one pair before they are rounded, [POINTS][step] */
    struct pair *pairs; /* [most] */
    size_t step;
    int64_t room, most; /* groups and pairs at once */
};

struct place { /* in the work of a thread: what is to be transformed next */
    int64_t batch;
    int64_t group;  /* -1: the entry's first */
    int64_t packed; /* groups before it whose rows are in x still */
};

static struct scratch take_scratch(const struct conv *c, int64_t most_groups) {
    const int64_t height = tile_height(c->p->vectors), d = c->p->dilation;
    struct scratch s = {.step = row_step(c->channels)};
    s.room = SCRATCH_FLOATS / (int64_t)(s.step * POINTS) / d;
    if (s.room < (2 * height + d - 1) / d) s.room = (2 * height + d - 1) / d;
    if (s.room > most_groups * c->batch) s.room = most_groups * c->batch;
    s.most = s.room * d;
    const size_t rows = s.room * 2 * d + (TAPS - 1) * d, points = POINTS * s.most;
    const size_t pairs = s.most * (sizeof(struct pair) / sizeof(float));
    s.x = scratch_get(rows * s.step + points * (s.step + VP_PANEL + 1) + POINTS * s.step + pairs);
    s.transformed = s.x + rows * s.step;
    s.sums = s.transformed + points * s.step;
    s.scales = s.sums + points * VP_PANEL;
    s.values = s.scales + points;
    s.pairs = (struct pair *)(s.values + POINTS * s.step);
    return s;
}

/* Transform as many groups as fit, of as many batch entries, so that weights are read once for all; of each entry
 * part `ith` of `nth`. Returns the number of pairs. */
static int64_t fill(const struct conv *c, const struct scratch *s, struct place *next, int ith, int nth) {
    const struct vp_conv1d *p = c->p;
    const int32_t *position = (const int32_t *)tensor_data(tensor_src(c->dst, p->position));
    const int d = p->dilation;
    const size_t step = s->step;
    int64_t count = 0;
    for (int64_t used = 0; next->batch < c->batch && used < s->room;) {
        const int64_t start = (int64_t)position[next->batch] * p->rate - p->delay;
        const int64_t phase = (start % (2 * d) + 2 * d) % (2 * d), groups = (c->rows + phase + 2 * d - 1) / (2 * d);
        const int64_t end = groups * (ith + 1) / nth, g = next->group < 0 ? groups * ith / nth : next->group;
        const int64_t n = end - g < s->room - used ? end - g : s->room - used;
        const int64_t base = g * 2 * d - phase, kept = next->group < 0 ? 0 : (TAPS - 1) * d; /* rows packed before */
        const struct window in = input_window(c, next->batch);
        if (kept) memmove(s->x, s->x + step * next->packed * 2 * d, kept * step * sizeof(float));
        if (n > 0)
            pack_rows(s->x + kept * step, step, &in, base + kept, n * 2 * d + (TAPS - 1) * d - kept, c->channels,
                      &c->activation);
        for (int64_t i = 0; i < n * d; i++) {
            const int64_t t = base + i / d * 2 * d + i % d;
            const int has_y0 = t >= 0 && t < c->rows, has_y1 = t + d >= 0 && t + d < c->rows;
            if (!has_y0 && !has_y1) continue;
            const float *inputs = s->x + (t - base) * step;
            if (c->integers) {
                transform(s->values, step, inputs, step * d, c->channels);
                for (int point = 0; point < POINTS; point++) {
                    const int64_t row = point * s->most + count;
                    int16_t *integers = (int16_t *)s->transformed + row * step;
                    s->scales[row] = quantise_row(integers, s->values + point * step, c->channels);
                }
            } else {
                transform(s->transformed + count * step, step * s->most, inputs, step * d, c->channels);
            }
            s->pairs[count++] = (struct pair){.first = t, .batch = next->batch};
        }
        used += n;
        *next = g + n >= end ? (struct place){next->batch + 1, -1, n} : (struct place){next->batch, g + n, n};
    }
    return count;
}

/* Sums of one panel's products, for every point of all pairs. */
static void multiply(const struct conv *c, const struct scratch *s, int64_t count, int panel) {
    static const float zeros[VP_PANEL];
    const struct vp_conv1d *p = c->p;
    const int height = tile_height(p->vectors);
    for (int point = 0; point < POINTS; point++) {
        const size_t part = (size_t)panel * POINTS + point, row0 = point * s->most;
        const size_t weights = packed_channels(c->channels, c->integers) * c->panel_outputs;
        const char *w = c->weight + part * weights * p->weight_bytes;
        for (int c0 = 0; c0 < c->channels; c0 += p->block) {
            const int block = c->channels - c0 < p->block ? c->channels - c0 : p->block;
            struct tile_args a = {
                .row_step = s->step, .weight = w, .vectors = p->vectors, .taps = 1, .channels = block,
                .bias = c0 ? NULL : zeros, .y_step = VP_PANEL, .width = c->panel_outputs,
                .weight_scale = c->scale + part * c->panel_outputs, .scale_step = 1,
            };
            for (int64_t r = 0; r < count; r += height) {
                a.x = (char *)s->transformed + ((row0 + r) * s->step + c0) * c->x_bytes;
                a.x_scale = s->scales + row0 + r;
                a.y = s->sums + (row0 + r) * VP_PANEL;
                tile_rows(&a, count - r < height ? (int)(count - r) : height, p->weight_bytes);
            }
            w += (size_t)packed_channels(block, c->integers) * c->panel_outputs * p->weight_bytes;
        }
    }
}

/* The sums of one panel into its outputs. */
static void finish(const struct conv *c, const struct scratch *s, int64_t count, int panel) {
    float bias[VP_PANEL] = {0};
    struct output o = {
        .bias = bias, .skip_first = c->p->skip_first, .rows = c->rows, .channel = panel * c->panel_outputs,
        .width = panel_width(c, panel), .y_step = tensor_nb(c->dst, 1),
    };
    if (c->bias) memcpy(bias, c->bias + o.channel, o.width * sizeof(float));
    for (int64_t i = 0; i < count; i++) {
        const struct pair pair = s->pairs[i];
        const float *sums = s->sums + i * VP_PANEL;
        if (i == 0 || pair.batch != s->pairs[i - 1].batch) {
            o.y = tensor_data(c->dst) + pair.batch * tensor_nb(c->dst, 2);
            o.skip = skip_window(c, pair.batch);
        }
        if (c->p->vectors == 2)
            combine(&o, sums, VP_PANEL * s->most, pair.first, c->p->dilation, 2);
        else
            combine(&o, sums, VP_PANEL * s->most, pair.first, c->p->dilation, VP_VECS);
    }
}

/* A ggml custom operation: dst [out_channels, rows, batch]; userdata is a struct vp_conv1d. */
VP_API void vp_conv1d_winograd(void *dst, int ith, int nth, void *userdata) {
    const struct conv c = read_conv(dst, userdata);
    const int d = c.p->dilation;
    /* A group is the 2 d outputs of d pairs. Threads share groups, or panels where there are few. */
    const int64_t most_groups = (c.rows + 2 * d - 1) / (2 * d) + 1;
    const int by_panel = most_groups * d < 4 * tile_height(c.p->vectors) * nth;
    const int panel0 = by_panel ? c.panels * ith / nth : 0, panel1 = by_panel ? c.panels * (ith + 1) / nth : c.panels;
    if (panel0 >= panel1) return;
    const struct scratch scratch = take_scratch(&c, most_groups);
    struct place next = {0, -1, 0};
    while (next.batch < c.batch) {
        const int64_t count = by_panel ? fill(&c, &scratch, &next, 0, 1) : fill(&c, &scratch, &next, ith, nth);
        for (int panel = panel0; panel < panel1; panel++) {
            multiply(&c, &scratch, count, panel);
            finish(&c, &scratch, count, panel);
        }
    }
}
