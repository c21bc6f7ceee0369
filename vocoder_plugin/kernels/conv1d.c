/* 1-D convolution over channels-last rows, as an implicit matrix product.
 *
 *   y[t, o] = bias[o] + sum_j sum_i w[o, i, j] * act(x[t * stride + j * dilation, i])  (+ skip[t, o])
 *
 * x is a window (see kernels.h), act is Snake or nothing. A transposed convolution of kernel q * s and
 * stride s is the same sum with q taps and s * out_channels outputs, so it needs no code of its own.
 *
 * A thread takes rows (narrow layers) or panels of output channels (wide layers, whose weights would
 * otherwise be read by every thread). It copies rows of the window into a scratch buffer, applying
 * Snake on the way, then walks panels; within a panel, blocks of input channels whose weights stay in
 * L1/L2 while all row tiles of the buffer use them. Each output is the same sequence of operations
 * whatever the thread count, the chunk it arrives in or its place in a tile: results are bit-identical.
 */
#include "conv1d.h"
#include "snake.h"
#include "tile.h"

struct vp_layout vp_layout;

VP_API int32_t vp_vectors(void) { return VP_VECS; }
VP_API int32_t vp_lanes(void) { return VP_LANES; }
VP_API void vp_set_layout(const struct vp_layout *layout) { vp_layout = *layout; }

/* |sin x| of n values, n a multiple of VP_LANES: for measuring the sine. */
VP_API void vp_sine_magnitude(float *out, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i += VP_LANES) *(vfloat *)(out + i) = sine_magnitude(*(const vfloat *)(x + i));
}

#define SCRATCH_FLOATS (96 * 1024) /* target size of the scratch buffer: fits in L2 beside the weights */

struct segment { /* consecutive output rows of one batch entry, their inputs packed at x */
    struct window in, skip;
    char *x;
    float *scale; /* integers: of each packed row */
    char *y;
    int64_t first, rows;
};
#define MOST_SEGMENTS 64

/* A ggml custom operation: dst [out_channels, rows, batch]; userdata is a struct vp_conv1d. */
VP_API void vp_conv1d(void *dst, int ith, int nth, void *userdata) {
    const struct vp_conv1d *p = userdata;
    const void *chunk = tensor_src(dst, p->chunk), *history = tensor_src(dst, p->history);
    const int channels = (int)tensor_ne(chunk ? chunk : history, 0);
    const int outputs = (int)tensor_ne(dst, 0);
    const int64_t n_rows = tensor_ne(dst, 1), n_batch = tensor_ne(dst, 2);
    const int panel_outputs = p->vectors * VP_LANES, height = tile_height(p->vectors);
    const int panels = (outputs + panel_outputs - 1) / panel_outputs;
    const int integers = p->weight_bytes < 4;
    const size_t x_bytes = integers ? sizeof(int16_t) : sizeof(float);
    const size_t step = channels == 1 && !integers ? 1 : row_step(channels); /* samples need no padding */
    const size_t panel_weights = (size_t)p->taps * packed_channels(channels, integers) * panel_outputs;
    const char *weight = tensor_data(tensor_src(dst, p->weight));
    const float *scale = source_floats(dst, p->scale), *bias = source_floats(dst, p->bias);
    const float *alpha = p->elu ? &vp_elu : source_floats(dst, p->alpha), *inverse = source_floats(dst, p->inverse);
    const int has_skip = p->skip_chunk >= 0 || p->skip_history >= 0;

    int64_t row0 = 0, row1 = n_rows;
    int panel0 = 0, panel1 = panels;
    const int wide = panels >= nth && panel_weights * panels > 256 * 1024;
    if (wide || n_rows < 2 * height * nth) {
        panel0 = panels * ith / nth;
        panel1 = panels * (ith + 1) / nth;
    } else {
        const int64_t tiles = (n_rows + height - 1) / height;
        row0 = tiles * ith / nth * height;
        row1 = tiles * (ith + 1) / nth * height;
        if (row1 > n_rows) row1 = n_rows;
    }
    if (row0 >= row1 || panel0 >= panel1) return;

    const int span = (p->taps - 1) * p->dilation + 1;
    int64_t room = SCRATCH_FLOATS / (int64_t)step; /* rows of the scratch buffer */
    if (room < 4 * height * p->stride + span) room = 4 * height * p->stride + span;
    char *buffer = (char *)scratch_get((step + 1) * room + step);
    float *scales = (float *)buffer + step * room, *row = scales + room;

    /* Fill the buffer with segments of rows, of as many batch entries as fit, so that weights are read once for all. */
    struct segment segments[MOST_SEGMENTS];
    int64_t batch = 0, t = row0;
    while (batch < n_batch) {
        int count = 0;
        for (int64_t used = 0; batch < n_batch && count < MOST_SEGMENTS;) {
            int64_t n = (room - used - span) / p->stride + 1;
            if (room - used < span) break;
            if (n < row1 - t) {
                n -= n % height;
                if (n <= 0) break;
            } else {
                n = row1 - t;
            }
            struct segment *s = &segments[count++];
            s->in = make_window(history, chunk, p->zeros, batch);
            s->skip = make_window(tensor_src(dst, p->skip_history), tensor_src(dst, p->skip_chunk), p->skip_zeros, batch);
            s->x = buffer + used * step * x_bytes;
            s->scale = scales + used;
            s->y = tensor_data(dst) + batch * tensor_nb(dst, 2);
            s->first = t;
            s->rows = n;
            const int64_t packed = (n - 1) * p->stride + span;
            if (!integers) pack_rows((float *)s->x, step, &s->in, t * p->stride, packed, channels, alpha, inverse);
            for (int64_t i = 0; integers && i < packed; i++) {
                pack_rows(row, step, &s->in, t * p->stride + i, 1, channels, alpha, inverse);
                s->scale[i] = quantise_row((int16_t *)s->x + i * step, row, channels);
            }
            used += packed;
            t += n;
            if (t >= row1) t = row0, batch++;
        }
        for (int panel = panel0; panel < panel1; panel++) {
            float start[VP_PANEL] = {0};
            const int first_output = panel * panel_outputs;
            const int width = outputs - first_output < panel_outputs ? outputs - first_output : panel_outputs;
            if (bias) memcpy(start, bias + first_output, width * sizeof(float));
            const char *w = weight + panel * panel_weights * p->weight_bytes;
            for (int tap = 0; tap < p->taps; tap += p->together) {
                for (int c0 = 0; c0 < channels; c0 += p->block) {
                    const int block = channels - c0 < p->block ? channels - c0 : p->block;
                    const int last = tap + p->together >= p->taps && c0 + block == channels;
                    struct tile_args a = {
                        .row_step = step * p->stride, .tap_step = step * p->dilation, .weight = w,
                        .vectors = p->vectors, .taps = p->together,
                        .channels = block, .bias = tap + c0 == 0 ? start : NULL, .width = width,
                        .y_step = tensor_nb(dst, 1) / sizeof(float), .skip_channel = first_output,
                        .weight_scale = scale + ((size_t)panel * p->taps + tap) * panel_outputs, .scale_step = p->stride,
                    };
                    for (const struct segment *s = segments; s < segments + count; s++) {
                        a.skip = has_skip && last ? &s->skip : NULL;
                        for (int64_t r = 0; r < s->rows; r += height) {
                            const int64_t in = r * p->stride + tap * p->dilation;
                            a.x = s->x + (in * step + c0) * x_bytes;
                            a.x_scale = s->scale + in;
                            a.y = (float *)(s->y + (s->first + r) * tensor_nb(dst, 1)) + first_output;
                            a.skip_row = p->skip_first + s->first + r;
                            tile_rows(&a, s->rows - r < height ? (int)(s->rows - r) : height, p->weight_bytes);
                        }
                    }
                    w += (size_t)p->together * packed_channels(block, integers) * panel_outputs * p->weight_bytes;
                }
            }
        }
    }
}
