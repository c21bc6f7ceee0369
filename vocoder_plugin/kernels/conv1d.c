/* 1-D convolution over channels-last rows, as an implicit matrix product.
 *
 *   y[t, o] = bias[o] + sum_j sum_i w[o, i, j] * act(x[t * stride + j * dilation, i])  (+ skip[t, o])
 *
 * x is a window (see kernels.h), act is Snake, ELU or nothing. A transposed convolution of kernel q * s and
 * stride s is the same sum with q taps and s * out_channels outputs, so it needs no code of its own.
 *
 * A thread takes rows (narrow layers) or panels of output channels (wide layers, whose weights would
 * otherwise be read by every thread). It copies rows of the window into a scratch buffer, applying
 * it on the way, then walks panels; within a panel, blocks of input channels whose weights stay in
 * L1/L2 while all row tiles of the buffer use them. Each output is the same sequence of operations
 * whatever the thread count, the chunk it arrives in or its place in a tile: results are bit-identical.
 */
#include "conv1d.h"
#include "products.h"

#define SCRATCH_FLOATS (96 * 1024) /* target size of the scratch buffer: fits in L2 beside the weights */
#define MOST_SEGMENTS 64

struct share { /* of one thread */
    int64_t row0, row1;
    int panel0, panel1;
};

struct scratch { /* of one thread; its parts hold floats, and vectors are loaded from any float's address */
    char *x;       /* packed rows: `room` of `step` floats, or as many integers of 16 bits */
    float *scales; /* integers: of each packed row */
    float *row;    /* integers: a row before it is rounded */
    size_t step;
    int64_t room;
};

struct segment { /* consecutive output rows of one batch entry, their inputs packed at x */
    struct window skip;
    const char *x;
    const float *scale; /* integers: of each packed row */
    char *y;
    int64_t first, rows;
};

static struct share take_share(const struct conv *c, int height, int ith, int nth) {
    const size_t weights = (size_t)c->p->taps * packed_channels(c->channels, c->integers) * c->panel_outputs * c->panels;
    const int wide = c->panels >= nth && weights > 256 * 1024;
    struct share s = {0, c->rows, 0, c->panels};
    if (wide || c->rows < 2 * height * nth) {
        s.panel0 = c->panels * ith / nth;
        s.panel1 = c->panels * (ith + 1) / nth;
    } else {
        const int64_t tiles = (c->rows + height - 1) / height, end = tiles * (ith + 1) / nth * height;
        s.row0 = tiles * ith / nth * height;
        if (end < s.row1) s.row1 = end;
    }
    return s;
}

static struct scratch take_scratch(const struct conv *c, int height, int span) {
    struct scratch s = {.step = c->channels == 1 && !c->integers ? 1 : row_step(c->channels)}; /* samples need no padding */
    const int64_t least = 4 * height * c->p->stride + span;
    s.room = SCRATCH_FLOATS / (int64_t)s.step;
    if (s.room < least) s.room = least;
    float *memory = scratch_get((s.step + 1) * s.room + s.step);
    s.x = (char *)memory;
    s.scales = memory + s.step * s.room;
    s.row = s.scales + s.room;
    return s;
}

/* Pack the rows that give outputs from *t of entry *batch on, of as many batch entries as fit: weights are read
 * once for all. Returns the number of segments. */
static int fill(struct segment *segments, const struct conv *c, const struct share *share, const struct scratch *scratch,
                int height, int span, int64_t *batch, int64_t *t) {
    const int stride = c->p->stride;
    const size_t step = scratch->step;
    int count = 0;
    for (int64_t used = 0; *batch < c->batch && count < MOST_SEGMENTS && scratch->room - used >= span;) {
        int64_t n = (scratch->room - used - span) / stride + 1;
        if (n < share->row1 - *t) {
            n -= n % height;
            if (n <= 0) break;
        } else {
            n = share->row1 - *t;
        }
        char *x = scratch->x + used * step * c->x_bytes;
        float *scale = scratch->scales + used;
        char *y = tensor_data(c->dst) + *batch * tensor_nb(c->dst, 2);
        segments[count++] = (struct segment){skip_window(c, *batch), x, scale, y, *t, n};
        const struct window in = input_window(c, *batch);
        const int64_t packed = (n - 1) * stride + span;
        if (!c->integers) pack_rows((float *)x, step, &in, *t * stride, packed, c->channels, &c->activation);
        for (int64_t i = 0; c->integers && i < packed; i++) {
            pack_rows(scratch->row, step, &in, *t * stride + i, 1, c->channels, &c->activation);
            scale[i] = quantise_row((int16_t *)x + i * step, scratch->row, c->channels);
        }
        used += packed;
        *t += n;
        if (*t >= share->row1) *t = share->row0, ++*batch;
    }
    return count;
}

/* The outputs of one panel for all packed rows. */
static void multiply(const struct conv *c, const struct segment *segments, int count, size_t step, int height, int panel) {
    const struct vp_conv1d *p = c->p;
    const int channels = c->channels, integers = c->integers, bytes = p->weight_bytes, panel_outputs = c->panel_outputs;
    const int first_output = panel * panel_outputs, width = panel_width(c, panel);
    const int has_skip = c->skip_chunk || c->skip_history;
    const size_t x_bytes = c->x_bytes, y_bytes = tensor_nb(c->dst, 1);
    float start[VP_PANEL] = {0};
    if (c->bias) memcpy(start, c->bias + first_output, width * sizeof(float));
    const char *w = c->weight + (size_t)panel * p->taps * packed_channels(channels, integers) * panel_outputs * bytes;
    for (int tap = 0; tap < p->taps; tap += p->together) {
        for (int c0 = 0; c0 < channels; c0 += p->block) {
            const int block = channels - c0 < p->block ? channels - c0 : p->block;
            const int last = tap + p->together >= p->taps && c0 + block == channels;
            struct tile_args a = {
                .row_step = step * p->stride, .tap_step = step * p->dilation, .weight = w, .vectors = p->vectors,
                .taps = p->together, .channels = block, .bias = tap + c0 == 0 ? start : NULL, .width = width,
                .y_step = y_bytes / sizeof(float), .skip_channel = first_output, .scale_step = p->stride,
                .weight_scale = c->scale + ((size_t)panel * p->taps + tap) * panel_outputs,
            };
            for (const struct segment *s = segments; s < segments + count; s++) {
                a.skip = has_skip && last ? &s->skip : NULL;
                for (int64_t r = 0; r < s->rows; r += height) {
                    const int64_t in = r * p->stride + tap * p->dilation;
                    a.x = s->x + (in * step + c0) * x_bytes;
                    a.x_scale = s->scale + in;
                    a.y = (float *)(s->y + (s->first + r) * y_bytes) + first_output;
                    a.skip_row = p->skip_first + s->first + r;
                    tile_rows(&a, s->rows - r < height ? (int)(s->rows - r) : height, bytes);
                }
            }
            w += (size_t)p->together * packed_channels(block, integers) * panel_outputs * bytes;
        }
    }
}

/* A ggml custom operation: dst [out_channels, rows, batch]; userdata is a struct vp_conv1d. */
VP_API void vp_conv1d(void *dst, int ith, int nth, void *userdata) {
    const struct conv c = read_conv(dst, userdata);
    const int height = tile_height(c.p->vectors), span = (c.p->taps - 1) * c.p->dilation + 1;
    const struct share share = take_share(&c, height, ith, nth);
    if (share.row0 >= share.row1 || share.panel0 >= share.panel1) return;
    const struct scratch scratch = take_scratch(&c, height, span);
    struct segment segments[MOST_SEGMENTS];
    int64_t batch = 0, t = share.row0;
    while (batch < c.batch) {
        const int count = fill(segments, &c, &share, &scratch, height, span, &batch, &t);
        for (int panel = share.panel0; panel < share.panel1; panel++)
            multiply(&c, segments, count, scratch.step, height, panel);
    }
}
