/* What the three convolutions (conv1d.c, winograd.c, single.c) read of their operation and its parameters. */
#ifndef VP_CONV1D_H
#define VP_CONV1D_H

#include "params.h"
#include "rows.h"

struct conv {
    const struct vp_conv1d *p;
    const void *dst, *chunk, *history, *skip_chunk, *skip_history; /* tensors; sources are NULL where absent */
    const char *weight;
    const float *scale, *bias;
    struct activation activation;
    int channels, outputs;
    int panel_outputs, panels; /* outputs of a panel of weights, and how many panels there are */
    int integers;
    size_t x_bytes; /* of a packed input */
    int64_t rows, batch;
};

VP_INLINE struct conv read_conv(const void *dst, const struct vp_conv1d *p) {
    struct conv c = {
        .p = p, .dst = dst, .chunk = tensor_src(dst, p->chunk), .history = tensor_src(dst, p->history),
        .skip_chunk = tensor_src(dst, p->skip_chunk), .skip_history = tensor_src(dst, p->skip_history),
        .weight = tensor_data(tensor_src(dst, p->weight)),
        .scale = source_floats(dst, p->scale), .bias = source_floats(dst, p->bias),
        .activation = {p->activation, source_floats(dst, p->alpha), source_floats(dst, p->inverse)},
        .outputs = (int)tensor_ne(dst, 0), .panel_outputs = p->vectors * VP_LANES,
        .integers = p->weight_bytes < 4, .rows = tensor_ne(dst, 1), .batch = tensor_ne(dst, 2),
    };
    c.channels = (int)tensor_ne(c.chunk ? c.chunk : c.history, 0);
    c.panels = (c.outputs + c.panel_outputs - 1) / c.panel_outputs;
    c.x_bytes = c.integers ? sizeof(int16_t) : sizeof(float);
    return c;
}

VP_INLINE struct window input_window(const struct conv *c, int64_t batch) {
    return (struct window){c->p->zeros, span_of(c->history, batch), span_of(c->chunk, batch)};
}

VP_INLINE struct window skip_window(const struct conv *c, int64_t batch) {
    return (struct window){c->p->skip_zeros, span_of(c->skip_history, batch), span_of(c->skip_chunk, batch)};
}

VP_INLINE int panel_width(const struct conv *c, int panel) { /* outputs of the panel that exist */
    const int left = c->outputs - panel * c->panel_outputs;
    return left < c->panel_outputs ? left : c->panel_outputs;
}

#endif
